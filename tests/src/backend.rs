//! A backend of a test.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::http;
use crate::process::{Running, free_port};
use crate::tools::{binaries, binary};

/// How long it may take until it is ready.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A running `coati-backend`.
#[derive(Debug)]
pub struct Backend {
    /// The Tempo API.
    pub api: SocketAddr,
    /// OTLP over gRPC.
    pub grpc: SocketAddr,
    /// OTLP over HTTP.
    pub otlp_http: SocketAddr,
    folder: PathBuf,
    command: Vec<String>,
    /// The process.
    pub process: Running,
}

impl Backend {
    /// Starts a backend on free ports, with its data in `<folder>/data`, and waits until it is ready.
    pub fn start(folder: &Path, arguments: &[&str]) -> Result<Self> {
        Self::start_from(&binaries(), folder, arguments)
    }

    /// The same, with the binary of another build.
    pub fn start_from(binaries: &Path, folder: &Path, arguments: &[&str]) -> Result<Self> {
        let [api, grpc, otlp_http] = [free_port()?, free_port()?, free_port()?].map(local);
        Self::start_at(binaries, folder, arguments, [api, grpc, otlp_http])
    }

    /// The same, on given addresses: API, OTLP over gRPC, OTLP over HTTP.
    pub fn start_at(binaries: &Path, folder: &Path, arguments: &[&str], addresses: [SocketAddr; 3]) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut command: Vec<String> = vec![binary(binaries, "coati-backend")?.to_string_lossy().into_owned()];
        command.extend(["--data-dir".to_owned(), folder.join("data").to_string_lossy().into_owned()]);
        for (flag, address) in ["--api-listen", "--otlp-grpc-listen", "--otlp-http-listen"].iter().zip(addresses) {
            command.extend([(*flag).to_owned(), address.to_string()]);
        }
        command.extend(arguments.iter().map(|&argument| argument.to_owned()));
        let process = spawn(folder, &command)?;
        let [api, grpc, otlp_http] = addresses;
        let mut backend = Self { api, grpc, otlp_http, folder: folder.to_owned(), command, process };
        backend.wait_until_ready()?;
        Ok(backend)
    }

    /// Starts it again on the same data and the same ports, after it was killed or stopped.
    pub fn restart(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_until_ready()
    }

    /// The same, without waiting until it is ready.
    pub fn launch(&mut self) -> Result<()> {
        self.process = spawn(&self.folder, &self.command)?;
        Ok(())
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// SIGTERM; the status with which it ended.
    pub fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop()
    }

    /// GET of a path of the Tempo API.
    pub fn get(&self, path: &str) -> Result<http::Answer> {
        http::get(&format!("http://{}{path}", self.api))
    }

    /// `/api/search` with a TraceQL query; `parameters` as they stand in a URL, with a leading `&`.
    pub fn search(&self, query: &str, parameters: &str) -> Result<Value> {
        let answer = self.get(&format!("/api/search?q={}{parameters}", http::encode(query)))?;
        if answer.status != 200 {
            bail!("{query}: status {}: {}", answer.status, answer.text());
        }
        answer.json()
    }

    /// Spans that match a query: the sum of `matched` over all traces.
    pub fn count(&self, query: &str) -> Result<u64> {
        let found = self.search(query, "&limit=262144&spss=1")?;
        let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
        let sets = list(&found, "traces").into_iter().flat_map(|trace| list(&trace, "spanSets"));
        Ok(sets.filter_map(|set| set.get("matched")?.as_u64()).sum())
    }

    /// Waits until `query` matches at least `wanted` spans; gives the last count.
    pub fn wait_for_count(&self, query: &str, wanted: u64, limit: Duration) -> Result<u64> {
        let begin = Instant::now();
        loop {
            let count = self.count(query)?;
            if count >= wanted || begin.elapsed() > limit {
                return Ok(count);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let url = format!("http://{}/ready", self.api);
        self.process.wait_for("ready backend", READY_WITHIN, |_| {
            http::get(&url).is_ok_and(|answer| answer.status == 200).then_some(())
        })
    }
}

fn spawn(folder: &Path, command: &[String]) -> Result<Running> {
    let (program, arguments) = command.split_first().context("a command has a program")?;
    Running::start("coati-backend", folder, Command::new(program).args(arguments))
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
