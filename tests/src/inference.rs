//! An inference server without a model, and a GPU that plays a timeline.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::process::{Running, free_port};
use crate::tools::{system, workspace};

/// A running `tests/sample/inference.js`.
#[derive(Debug)]
pub struct Inference {
    /// Where it listens.
    pub address: SocketAddr,
    /// The process.
    pub process: Running,
}

impl Inference {
    /// Starts it, with its log in `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut node = Command::new(system("node")?);
        node.arg(workspace().join("tests/sample/inference.js")).env("SAMPLE_PORT", address.port().to_string());
        let mut process = Running::start("inference", folder, &mut node)?;
        process.wait_for_port(address, Duration::from_secs(20))?;
        Ok(Self { address, process })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// Puts a copy of the library `built` with a timeline beside it into `folder`; the copy's path, for the agent.
pub fn simulated_gpu(folder: &Path, built: &Path, timeline: &str) -> Result<PathBuf> {
    let library = folder.join("libnvidia-ml.so.1");
    std::fs::copy(built, &library).with_context(|| built.display().to_string())?;
    std::fs::write(folder.join("libnvidia-ml.so.1.json"), timeline)?;
    Ok(library)
}
