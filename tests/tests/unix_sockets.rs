//! Guarantee: HTTP on Unix sockets is captured as on TCP, and a proxy that passes requests on to one is a hop of the trace.
//!
//! Client → nginx on TCP → uvicorn on a Unix socket; and curl, which asks that socket itself.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::http;
use coati_tests::process::{self, Running, free_port};
use coati_tests::seen::{Seen, spans_of};
use coati_tests::tools::{system, tool, workspace};

const REQUESTS: u32 = 30;
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// An application on a Unix socket, and nginx in front of it.
struct Servers {
    socket: PathBuf,
    nginx: SocketAddr,
    // Ended in this order.
    _front: Running,
    _app: Running,
}

impl Servers {
    fn start(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let sources = workspace().join("tests/sample");
        let socket = folder.join("app.sock");
        let mut app = Command::new(tool("python/bin/uvicorn")?);
        app.arg("shop:app").arg("--app-dir").arg(&sources).arg("--uds").arg(&socket);
        app.env("SAMPLE_NODE", "http://127.0.0.1:1").env("PYTHONDONTWRITEBYTECODE", "1");
        let mut app = Running::start("uvicorn", folder, &mut app)?;
        app.wait_for("socket", STARTS_WITHIN, |_| socket.exists().then_some(()))?;

        let nginx = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        let configuration = fs::read_to_string(sources.join("nginx.conf"))?
            .replace("@DIR@", &folder.to_string_lossy())
            .replace("@APP@", &format!("unix:{}", socket.display()))
            .replace("@LISTEN@", &nginx.to_string());
        let file = folder.join("nginx.conf");
        fs::write(&file, configuration)?;
        let mut front =
            Running::start("nginx", folder, Command::new(system("nginx")?).arg("-c").arg(&file).arg("-p").arg(folder))?;
        front.wait_for_port(nginx, STARTS_WITHIN)?;
        Ok(Self { socket, nginx, _front: front, _app: app })
    }
}

#[test]
fn a_proxy_in_front_of_a_unix_socket_is_a_hop_of_the_trace() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let servers = Servers::start(&folder.path().join("servers"))?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    for item in 1..=REQUESTS {
        let answer = http::get(&format!("http://{}/items/{item}", servers.nginx))?;
        ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    }
    let mut curl = Command::new(system("curl")?);
    curl.args(["--silent", "--fail", "--output", "/dev/null", "--unix-socket"]).arg(&servers.socket);
    ensure!(curl.arg("http://localhost/items/1000").status()?.success(), "curl failed");

    let served = "{ kind = server && span.network.transport = \"unix\" && span.url.path =~ \"/items/.*\" }";
    backend.wait_for_count(served, u64::from(REQUESTS) + 1, Duration::from_secs(10))?;
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());
    let socket = servers.socket.to_string_lossy();
    for item in 1..=REQUESTS {
        is_one_trace(&backend, item, &socket).with_context(|| format!("item {item}"))?;
    }
    let spans = spans_of(&backend, "{ span.url.path = \"/items/1000\" }")?;
    let [curl, app] = chain(&spans, ["curl", "shop"])?;
    ensure!(curl.attribute("url.full") == "http://localhost/items/1000", "{curl:?}");
    [curl, app].into_iter().try_for_each(|span| is_on(span, &socket))
}

fn is_one_trace(backend: &Backend, item: u32, socket: &str) -> Result<()> {
    let spans = spans_of(backend, &format!("{{ kind = server && span.url.path = \"/items/{item}\" }}"))?;
    let own = std::process::id();
    let of_test = spans.iter().find(|span| span.pid() == Some(own)).context("no span of the client")?;
    let [_, front, upstream, app] = chain(&spans, [of_test.service(), "nginx", "nginx", "shop"])?;
    ensure!(front.attribute("network.transport").is_empty(), "{front:?}");
    [upstream, app].into_iter().try_for_each(|span| is_on(span, socket))
}

/// The spans, each the child of the one before, if they are of these services and there are no others.
fn chain<'a, const N: usize>(spans: &'a [Seen], services: [&str; N]) -> Result<[&'a Seen; N]> {
    ensure!(spans.len() == N, "{} spans: {spans:#?}", spans.len());
    let mut parent = "";
    let mut found = Vec::new();
    for service in services {
        let next = spans.iter().find(|span| span.parent_span_id == parent).context("no such child")?;
        ensure!(next.service() == service, "{} and not {service}: {spans:#?}", next.service());
        parent = &next.span_id;
        found.push(next);
    }
    found.try_into().ok().context("as many as services")
}

/// The span is of a request on the Unix socket at this path.
fn is_on(span: &Seen, socket: &str) -> Result<()> {
    ensure!(span.attribute("network.transport") == "unix", "{span:?}");
    ensure!(span.attribute("server.address") == socket, "{span:?}");
    ensure!(span.attribute("server.port").is_empty(), "{span:?}");
    Ok(())
}
