//! The sample system: nginx → FastAPI under uvicorn → Node → Go, all real, all on 127.0.0.1 or on several nodes. A longer one has two
//! more between the last two.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::nodes::{Node, Nodes};
use crate::process::{Running, free_port};
use crate::tools::{system, target, tool, workspace};

/// How long a server may take until it listens.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// The servers, in the order in which a request passes them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Server {
    /// Debian's nginx: static files, and a proxy in front of FastAPI.
    Nginx,
    /// A FastAPI application under uvicorn.
    FastApi,
    /// Node's own HTTP server.
    Node,
    /// The server of Python's standard library with a thread for each connection.
    Threads,
    /// Go's `net/http`, which passes requests on.
    GoBetween,
    /// Go's `net/http`.
    Go,
}

impl Server {
    /// Those of the sample system.
    pub const ALL: [Self; 4] = [Self::Nginx, Self::FastApi, Self::Node, Self::Go];
    /// The same with all that pass requests on.
    pub const CHAIN: [Self; 6] = [Self::Nginx, Self::FastApi, Self::Node, Self::Threads, Self::GoBetween, Self::Go];

    /// The port on which it listens where each is on a node of its own.
    pub const fn port_across(self) -> u16 {
        match self {
            Self::Nginx => 8000,
            Self::FastApi => 8010,
            Self::Node => 8020,
            Self::Threads => 8040,
            Self::GoBetween => 8050,
            Self::Go => 8030,
        }
    }

    /// The node on which it is there: every call is one to another node.
    const fn node(self) -> Node {
        match self {
            Self::Nginx | Self::Node | Self::GoBetween => Node::A,
            Self::FastApi | Self::Threads | Self::Go => Node::B,
        }
    }

    /// The name that the agent gives to it: the service names are not configured anywhere.
    pub const fn service_name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::FastApi => "shop",
            Self::Node => "prices",
            Self::Threads => "depot",
            Self::GoBetween => "chain",
            Self::Go => "stock",
        }
    }
}

/// Running servers.
#[derive(Debug)]
pub struct Sample {
    folder: PathBuf,
    places: BTreeMap<Server, Place>,
    // Ended in this order: the front first.
    servers: Vec<(Server, Running)>,
}

/// Waits until a server listens.
type Wait<'a> = &'a mut (dyn FnMut() -> Result<()> + Send);

/// Where a server is.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// Where it listens.
    listens: SocketAddr,
    /// Where who asks it reaches it.
    reached: SocketAddr,
}

impl Sample {
    /// Starts the four servers, with their files in `folder`.
    pub fn start(folder: &Path) -> Result<Self> {
        Self::start_only(folder, &Server::ALL)
    }

    /// Starts some of the servers.
    pub fn start_only(folder: &Path, wanted: &[Server]) -> Result<Self> {
        let place = |server| {
            let listens = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
            Ok((server, Place { listens, reached: listens }))
        };
        let places = Server::ALL.into_iter().map(place).collect::<Result<_>>()?;
        Self::start_at(folder, wanted, places, &|_, program| Ok(Command::new(program)), &|_, wait| wait())
    }

    /// Starts servers on two nodes, by turns, so that each call goes to the other one: of [`Server::ALL`] or of [`Server::CHAIN`].
    pub fn start_across(folder: &Path, nodes: &Nodes, wanted: &[Server]) -> Result<Self> {
        let place = |server: Server| {
            let port = server.port_across();
            let listens = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            (server, Place { listens, reached: server.node().reached(port) })
        };
        let places = wanted.iter().copied().map(place).collect();
        let command = |server: Server, program: &OsStr| Ok(nodes.command(server.node(), program));
        Self::start_at(folder, wanted, places, &command, &|server, wait| nodes.on(server.node(), wait)?)
    }

    /// `command` makes a command that runs where the server is to be, `there` does something there.
    fn start_at(
        folder: &Path,
        wanted: &[Server],
        places: BTreeMap<Server, Place>,
        command: &dyn Fn(Server, &OsStr) -> Result<Command>,
        there: &dyn Fn(Server, Wait<'_>) -> Result<()>,
    ) -> Result<Self> {
        fs::create_dir_all(folder.join("www/big")).with_context(|| folder.display().to_string())?;
        fs::write(folder.join("www/hello.txt"), "hello\n")?;
        fs::write(folder.join("www/big/1m.bin"), vec![b'x'; 1 << 20])?;
        let mut sample = Self { folder: folder.to_owned(), places, servers: Vec::new() };
        let sources = workspace().join("tests/sample");

        // The back first: each has what it asks before it is asked itself.
        for server in Server::CHAIN.into_iter().rev().filter(|server| wanted.contains(server)) {
            let (name, mut command) = sample.command(server, &sources, &|program| command(server, program))?;
            let mut running = Running::start(name, &sample.folder, &mut command)?;
            let listens = SocketAddr::from((Ipv4Addr::LOCALHOST, sample.listens(server)?.port()));
            there(server, &mut || running.wait_for_port(listens, STARTS_WITHIN))?;
            sample.servers.push((server, running));
        }
        sample.servers.reverse();
        Ok(sample)
    }

    /// Where a server is reached.
    pub fn address(&self, server: Server) -> SocketAddr {
        self.places.get(&server).map_or_else(|| SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), |place| place.reached)
    }

    /// `http://ADDRESS:PORT`, there.
    pub fn url(&self, server: Server) -> String {
        format!("http://{}", self.address(server))
    }

    /// Status codes of a server's own access log, one for each request that it answered.
    pub fn access_log(&self, server: Server) -> Result<Vec<u16>> {
        let file = match server {
            Server::Nginx => "nginx-access.log",
            Server::FastApi => "fastapi.log",
            Server::Node => "node.log",
            Server::Threads => "threads.log",
            Server::GoBetween => "go-between.log",
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

    fn listens(&self, server: Server) -> Result<SocketAddr> {
        Ok(self.places.get(&server).context("every server has a place")?.listens)
    }

    /// The first of these that is there.
    fn url_of(&self, servers: &[Server]) -> String {
        let found = servers.iter().find(|server| self.places.contains_key(server));
        found.map_or_else(String::new, |server| self.url(*server))
    }

    /// The name of its log, and how it is started.
    fn command(
        &self,
        server: Server,
        sources: &Path,
        command: &dyn Fn(&OsStr) -> Result<Command>,
    ) -> Result<(&'static str, Command)> {
        let listens = self.listens(server)?;
        Ok(match server {
            Server::Go => {
                let mut go = command(go_program("stock", false)?.as_os_str())?;
                go.env("SAMPLE_LISTEN", listens.to_string());
                ("go", go)
            }
            Server::GoBetween => {
                let mut go = command(go_program("chain", false)?.as_os_str())?;
                go.args(["-http1", "-listen", &listens.to_string(), "-next", &self.url(Server::Go)]);
                ("go-between", go)
            }
            Server::Threads => {
                let mut python = command(tool("python/bin/python")?.as_os_str())?;
                python.arg(sources.join("depot.py")).env("SAMPLE_NEXT", self.url(Server::GoBetween));
                python.env("SAMPLE_HOST", listens.ip().to_string()).env("SAMPLE_PORT", listens.port().to_string());
                ("threads", python)
            }
            Server::Node => {
                let mut node = command(system("node")?.as_os_str())?;
                node.arg(sources.join("prices.js"));
                node.env("SAMPLE_HOST", listens.ip().to_string()).env("SAMPLE_PORT", listens.port().to_string());
                node.env("SAMPLE_GO", self.url_of(&[Server::Threads, Server::Go]));
                ("node", node)
            }
            Server::FastApi => {
                let mut python = command(tool("python/bin/uvicorn")?.as_os_str())?;
                let (host, port) = (listens.ip().to_string(), listens.port().to_string());
                python.args(["shop:app", "--host", &host, "--port", &port]);
                python.arg("--app-dir").arg(sources).env("SAMPLE_NODE", self.url(Server::Node));
                python.env("PYTHONDONTWRITEBYTECODE", "1");
                ("fastapi", python)
            }
            Server::Nginx => {
                let configuration = fs::read_to_string(sources.join("nginx.conf"))?
                    .replace("@DIR@", &self.folder.to_string_lossy())
                    .replace("@APP@", &self.address(Server::FastApi).to_string())
                    .replace("@LISTEN@", &listens.to_string());
                let file = self.folder.join("nginx.conf");
                fs::write(&file, configuration)?;
                let mut nginx = command(system("nginx")?.as_os_str())?;
                nginx.arg("-c").arg(&file).arg("-p").arg(&self.folder);
                ("nginx", nginx)
            }
        })
    }
}

/// A program of `tests/sample` written in Go, built if its source is newer than the last build.
pub fn go_program(package: &str, is_stripped: bool) -> Result<PathBuf> {
    let sources = workspace().join("tests/sample");
    let folder = target().join("sample");
    fs::create_dir_all(&folder)?;
    let output = folder.join(if is_stripped { format!("{package}-stripped") } else { package.to_owned() });
    let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    let source = if package == "stock" { "stock.go".to_owned() } else { format!("{package}/main.go") };
    let source = sources.join(source);
    if modified(&output).is_none_or(|built| modified(&source).is_none_or(|written| written > built)) {
        let status = Command::new(tool("python/bin/go")?)
            .args(["build", "-ldflags", if is_stripped { "-s -w" } else { "" }, "-o"])
            .arg(&output)
            .arg(if package == "stock" { ".".to_owned() } else { format!("./{package}") })
            .current_dir(&sources)
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
