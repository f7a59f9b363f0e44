//! An inference server without a model, llama.cpp's server with one, and a GPU that plays a timeline.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Running, free_port};
use crate::tools::{system, tool, workspace};

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
        Self::start_with(folder, None)
    }

    /// The same; the server at `runner`, a [`crate::cuda::CudaServer`], does its work.
    pub fn start_with(folder: &Path, runner: Option<SocketAddr>) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut node = Command::new(system("node")?);
        node.arg(workspace().join("tests/sample/inference.js")).env("SAMPLE_PORT", address.port().to_string());
        node.envs(runner.map(|runner| ("SAMPLE_RUNNER", format!("http://{runner}"))));
        let mut process = Running::start("inference", folder, &mut node)?;
        process.wait_for_port(address, Duration::from_secs(20))?;
        Ok(Self { address, process })
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

/// llama.cpp's server of its Python binding, with a model of random weights.
#[derive(Debug)]
pub struct Llama {
    /// Where it listens.
    pub address: SocketAddr,
    /// The process.
    pub process: Running,
}

impl Llama {
    /// Starts it, with its model and its log in `folder`. `None` where `cargo xtask setup` could not install it.
    pub fn start(folder: &Path) -> Result<Option<Self>> {
        let Ok(python) = tool("llama/bin/python") else { return Ok(None) };
        let model = folder.join("random.gguf");
        let written =
            Command::new(&python).arg(workspace().join("tests/sample/random_model.py")).arg(&model).status()?;
        ensure!(written.success(), "no model: {written}");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut server = Command::new(python);
        server.args(["-m", "llama_cpp.server", "--host", "127.0.0.1", "--n_ctx", "2048", "--n_threads", "1"]);
        server.arg("--port").arg(address.port().to_string()).arg("--model").arg(model);
        let mut process = Running::start("llama", folder, &mut server)?;
        process.wait_for_port(address, Duration::from_secs(30))?;
        Ok(Some(Self { address, process }))
    }
}

/// Puts a copy of the library `built` with a timeline beside it into `folder`; the copy's path, for the agent.
pub fn simulated_gpu(folder: &Path, built: &Path, timeline: &str) -> Result<PathBuf> {
    let library = folder.join("libnvidia-ml.so.1");
    std::fs::copy(built, &library).with_context(|| built.display().to_string())?;
    std::fs::write(folder.join("libnvidia-ml.so.1.json"), timeline)?;
    Ok(library)
}
