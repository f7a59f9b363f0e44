//! A server that calls CUDA's driver library, and the library that is in its place where there is no GPU.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Running, free_port};
use crate::tools::{system, workspace};

/// Puts a copy of the library `built` into `folder` under CUDA's name; the copy's path.
pub fn simulated(folder: &Path, built: &Path) -> Result<PathBuf> {
    let library = folder.join("libcuda.so.1");
    std::fs::copy(built, &library).with_context(|| built.display().to_string())?;
    Ok(library)
}

/// A running `tests/sample/cuda.py`.
#[derive(Debug)]
pub struct CudaServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where the server listens that it has started, if it has.
    pub backend: Option<SocketAddr>,
    /// The process.
    pub process: Running,
}

impl CudaServer {
    /// Starts it with its log in `folder`; `has_backend`: it starts another one, which does the work.
    pub fn start(folder: &Path, library: &Path, has_backend: bool) -> Result<Self> {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let address = local(free_port()?);
        let backend = if has_backend { Some(local(free_port()?)) } else { None };
        let mut python = Command::new(system("python3")?);
        python.arg(workspace().join("tests/sample/cuda.py")).arg(address.port().to_string()).arg(library);
        python.args(backend.map(|backend| backend.port().to_string()));
        let mut process = Running::start("cuda", folder, &mut python)?;
        process.wait_for_port(address, Duration::from_secs(20))?;
        Ok(Self { address, backend, process })
    }

    /// `http://127.0.0.1:PORT/work`.
    pub fn url(&self) -> String {
        format!("http://{}/work", self.address)
    }
}
