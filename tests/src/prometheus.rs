//! A Prometheus of a test, as Debian has it.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http;
use crate::process::{Running, free_port};
use crate::tools::system;

/// How long it may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A running Prometheus that takes remote write, exemplars and native histograms.
#[derive(Debug)]
pub struct Prometheus {
    /// Where it listens.
    pub address: SocketAddr,
    folder: PathBuf,
    /// The process.
    pub process: Running,
}

impl Prometheus {
    /// Starts it with its data under `folder`, and waits until it is ready.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_with(folder, &[("prometheus.yml", "global: {scrape_interval: 1s}\n")])
    }

    /// The same with files of its configuration: their names, `prometheus.yml` among them, and what is in them.
    pub fn start_with(folder: &Path, files: &[(&str, &str)]) -> Result<Self> {
        let folder = folder.join("prometheus");
        fs::create_dir_all(&folder)?;
        files.iter().try_for_each(|(name, text)| fs::write(folder.join(name), text))?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let process = spawn(&folder, address)?;
        let mut prometheus = Self { address, folder, process };
        prometheus.wait_until_ready()?;
        Ok(prometheus)
    }

    /// Starts it again on the same data and port, after it was killed or stopped.
    pub fn restart(&mut self) -> Result<()> {
        self.process = spawn(&self.folder, self.address)?;
        self.wait_until_ready()
    }

    /// Where it takes remote write.
    pub fn write_url(&self) -> String {
        format!("http://{}/api/v1/write", self.address)
    }

    /// Result of an instant query, now.
    pub fn query(&self, query: &str) -> Result<Value> {
        query_at(&format!("http://{}", self.address), query, "")
    }

    /// The URL before `/api/v1`.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The value of an instant query that has one series; 0 if it has none.
    pub fn value(&self, query: &str) -> Result<f64> {
        value_of(&self.query(query)?)
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let url = format!("http://{}/-/ready", self.address);
        self.process.wait_for("ready Prometheus", READY_WITHIN, |_| {
            http::get(&url).is_ok_and(|answer| answer.status == 200).then_some(())
        })
    }
}

/// Result of an instant query of a server with Prometheus' API; `parameters` as they stand in a URL, with a leading `&`.
pub fn query_at(base: &str, query: &str, parameters: &str) -> Result<Value> {
    let answer = http::get(&format!("{base}/api/v1/query?query={}{parameters}", http::encode(query)))?;
    if answer.status != 200 {
        bail!("{query}: status {}: {}", answer.status, answer.text());
    }
    let mut answer = answer.json()?;
    answer.pointer_mut("/data/result").map(Value::take).with_context(|| format!("{query}: no result"))
}

/// The value of the only series of a result; 0 if there is none.
pub fn value_of(result: &Value) -> Result<f64> {
    let Some(value) = result.pointer("/0/value/1").and_then(Value::as_str) else { return Ok(0.0) };
    value.parse().with_context(|| value.to_owned())
}

fn spawn(folder: &Path, address: SocketAddr) -> Result<Running> {
    let mut command = Command::new(system("prometheus")?);
    command
        .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .arg("--web.enable-remote-write-receiver")
        .arg("--enable-feature=exemplar-storage,native-histograms");
    Running::start("prometheus", folder, &mut command)
}
