//! The sample system: nginx → FastAPI under uvicorn → Node → Go, all real, all on 127.0.0.1.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::{Running, free_port};
use crate::tools::{system, target, tool, workspace};

/// How long a server may take until it listens.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// The four servers, in the order in which a request passes them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Server {
    /// Debian's nginx: static files, and a proxy in front of FastAPI.
    Nginx,
    /// A FastAPI application under uvicorn.
    FastApi,
    /// Node's own HTTP server.
    Node,
    /// Go's `net/http`.
    Go,
}

impl Server {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Nginx, Self::FastApi, Self::Node, Self::Go];

    /// The name that the agent gives to it: the service names are not configured anywhere.
    pub const fn service_name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::FastApi => "shop",
            Self::Node => "prices",
            Self::Go => "stock",
        }
    }
}

/// Running servers.
#[derive(Debug)]
pub struct Sample {
    folder: PathBuf,
    ports: BTreeMap<Server, u16>,
    // Ended in this order: the front first.
    servers: Vec<(Server, Running)>,
}

impl Sample {
    /// Starts the four servers, with their files in `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_only(folder, &Server::ALL)
    }

    /// Starts some of the servers.
    pub fn start_only(folder: &Path, wanted: &[Server]) -> Result<Self> {
        fs::create_dir_all(folder.join("www/big")).with_context(|| folder.display().to_string())?;
        fs::write(folder.join("www/hello.txt"), "hello\n")?;
        fs::write(folder.join("www/big/1m.bin"), vec![b'x'; 1 << 20])?;
        let ports: BTreeMap<_, _> =
            Server::ALL.into_iter().map(|server| Ok((server, free_port()?))).collect::<Result<_>>()?;
        let mut sample = Self { folder: folder.to_owned(), ports, servers: Vec::new() };
        let sources = workspace().join("tests/sample");

        // The back first: each has what it asks before it is asked itself.
        for server in Server::ALL.into_iter().rev().filter(|server| wanted.contains(server)) {
            let (name, mut command) = sample.command(server, &sources)?;
            let mut running = Running::start(name, &sample.folder, &mut command)?;
            running.wait_for_port(sample.address(server), STARTS_WITHIN)?;
            sample.servers.push((server, running));
        }
        sample.servers.reverse();
        Ok(sample)
    }

    /// Address of a server.
    pub fn address(&self, server: Server) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.get(&server).copied().unwrap_or_default()))
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self, server: Server) -> String {
        format!("http://{}", self.address(server))
    }

    /// Status codes of a server's own access log, one for each request that it answered.
    pub fn access_log(&self, server: Server) -> Result<Vec<u16>> {
        let file = match server {
            Server::Nginx => "nginx-access.log",
            Server::FastApi => "fastapi.log",
            Server::Node => "node.log",
            Server::Go => "go.log",
        };
        let text = fs::read_to_string(self.folder.join(file)).with_context(|| file.to_owned())?;
        let lines = text.lines();
        Ok(match server {
            // `INFO:     127.0.0.1:40000 - "GET /items/1 HTTP/1.1" 200 OK`
            Server::FastApi => {
                lines.filter_map(|line| line.split_once("HTTP/1.1\" ")?.1.split(' ').next()?.parse().ok()).collect()
            }
            _ => lines.filter_map(|line| line.rsplit_once(' ')?.1.parse().ok()).collect(),
        })
    }

    /// Process ids of the servers that the harness started.
    pub fn ids(&self) -> Vec<u32> {
        self.servers.iter().map(|(_, running)| running.id()).collect()
    }

    fn port(&self, server: Server) -> Result<String> {
        self.ports.get(&server).map(u16::to_string).context("every server has a port")
    }

    /// The name of its log, and how it is started.
    fn command(&self, server: Server, sources: &Path) -> Result<(&'static str, Command)> {
        Ok(match server {
            Server::Go => {
                let mut go = Command::new(go_server(sources)?);
                go.env("SAMPLE_PORT", self.port(Server::Go)?);
                ("go", go)
            }
            Server::Node => {
                let mut node = Command::new(system("node")?);
                node.arg(sources.join("prices.js"));
                node.env("SAMPLE_PORT", self.port(Server::Node)?).env("SAMPLE_GO", self.url(Server::Go));
                ("node", node)
            }
            Server::FastApi => {
                let mut python = Command::new(tool("python/bin/uvicorn")?);
                python.args(["shop:app", "--host", "127.0.0.1", "--port", &self.port(Server::FastApi)?]);
                python.arg("--app-dir").arg(sources).env("SAMPLE_NODE", self.url(Server::Node));
                python.env("PYTHONDONTWRITEBYTECODE", "1");
                ("fastapi", python)
            }
            Server::Nginx => {
                let configuration = fs::read_to_string(sources.join("nginx.conf"))?
                    .replace("@DIR@", &self.folder.to_string_lossy())
                    .replace("@APP_PORT@", &self.port(Server::FastApi)?)
                    .replace("@PORT@", &self.port(Server::Nginx)?);
                let file = self.folder.join("nginx.conf");
                fs::write(&file, configuration)?;
                let mut nginx = Command::new(system("nginx")?);
                nginx.arg("-c").arg(&file).arg("-p").arg(&self.folder);
                ("nginx", nginx)
            }
        })
    }
}

/// Builds the Go server if its source is newer than the last build.
fn go_server(sources: &Path) -> Result<PathBuf> {
    let folder = target().join("sample");
    fs::create_dir_all(&folder)?;
    let output = folder.join("stock");
    let source = sources.join("stock.go");
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    if modified(&output).is_none_or(|built| modified(&source).is_none_or(|written| written > built)) {
        let status = Command::new(tool("python/bin/go")?)
            .args(["build", "-o"])
            .arg(&output)
            .arg(".")
            .current_dir(sources)
            .env("GOFLAGS", "-mod=mod")
            .env("GOCACHE", target().join("sample/go-cache"))
            .env("GOTOOLCHAIN", "local")
            .env("CGO_ENABLED", "0")
            .status()
            .context("cannot start go")?;
        ensure!(status.success(), "go build failed: {status}");
    }
    Ok(output)
}
