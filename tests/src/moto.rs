//! A fast S3 server: moto, from the Python environment of the tests. It checks no signatures.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::process::{Running, free_port};
use crate::tools::tool;

/// A running moto; everything it holds is in memory.
#[derive(Debug)]
pub struct Moto {
    /// Where it listens.
    pub address: SocketAddr,
    _process: Running,
}

impl Moto {
    /// Starts it; its log goes to `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let mut command = Command::new(tool("python/bin/moto_server")?);
        command.args(["-H", "127.0.0.1", "-p", &address.port().to_string()]);
        let mut process = Running::start("moto", folder, &mut command)?;
        process.wait_for_port(address, Duration::from_mins(1))?;
        Ok(Self { address, _process: process })
    }
}
