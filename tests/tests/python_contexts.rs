//! Guarantee: the calls that a service written in Python makes for a request are below that request, however many it answers at
//! once: in event loops by the context in which they are made (PEP 567), in servers with a thread for each request by the thread.
//! What is done for no request is below none.
//!
//! Real uvicorn, FastAPI, httpx, uvloop, asyncio's streams and `http.server` ask a real service written in Go, 64 requests at once, each with a number of its
//! own in its path.

#![expect(clippy::print_stdout, reason = "how many links there are is worth a line")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::asking::{self, AT_ONCE};
use coati_tests::backend::Backend;
use coati_tests::process::{self, Running, free_port};
use coati_tests::sample::go_program;
use coati_tests::seen::{Seen, spans_of};
use coati_tests::tools::{tool, workspace};

const REQUESTS: usize = 128;
const STARTS_WITHIN: Duration = Duration::from_secs(30);
/// Ways to pass a request on: the path's first part, and how many calls it takes.
const OF_LOOP: [(&str, usize); 4] = [("await", 1), ("tasks", 2), ("thread", 1), ("def", 1)];
/// The same under uvloop.
const OF_UVLOOP: [(&str, usize); 4] = OF_LOOP;
const OF_STREAMS: [(&str, usize); 2] = [("streams", 1), ("tasks-of-streams", 1)];
const OF_THREADS: [(&str, usize); 1] = [("depot", 1)];

#[test]
fn calls_of_python_are_below_their_requests() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let back = back(folder.path())?;
    let next = format!("http://{}", back.1);
    let fronts = [
        event_loop("event-loop", folder.path(), &next)?,
        event_loop("uvloop", folder.path(), &next)?,
        script("streams", folder.path(), &next)?,
        script("depot", folder.path(), &next)?,
    ];
    let ports = fronts.each_ref().map(|(_, address)| *address);
    let file = folder.path().join("agent.yaml");
    std::fs::write(&file, "discovery: {include: [{exe_path: \"{python3*,chain-stripped}\"}]}\n")?;
    let arguments = ["--config", &file.to_string_lossy()];
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &arguments)?;
    // It is looked into when a call is seen that may be for several.
    for port in ports {
        ask(port, "first", 2 * AT_ONCE)?;
    }
    let python = std::fs::canonicalize(tool("python/bin/python")?)?;
    let is_probed = |output: &str| output.contains(&*python.to_string_lossy()).then_some(());
    agent.process.wait_for("probes in Python", STARTS_WITHIN, is_probed)?;
    let is_probed = |output: &str| output.contains("/uvloop/loop.").then_some(());
    agent.process.wait_for("probes in uvloop", STARTS_WITHIN, is_probed)?;
    let ways = [&OF_LOOP[..], &OF_UVLOOP, &OF_STREAMS, &OF_THREADS];
    let all = ports.into_iter().zip(ways).flat_map(|(port, ways)| ways.iter().map(move |way| (port, *way)));
    for (port, (way, _)) in all.clone() {
        ask(port, way, REQUESTS)?;
    }
    for (port, (way, calls)) in all {
        let of_way = format!("span.server.port = {} && span.url.path =~ \"/{way}/[0-9]+\"", port.port());
        backend.wait_for_count(
            &format!("{{ kind = server && {of_way} }}"),
            REQUESTS as u64,
            Duration::from_secs(10),
        )?;
        let lost = agent.metric("coati_agent_losses_total", &[])?;
        ensure!(lost < 1.0, "{lost} records are lost");
        assert_linked(way, calls, &spans_of(&backend, &format!("{{ {of_way} }}"))?, port.port(), back.1.port())?;
    }
    // None of these was found in the traces of the others.
    let query = "{ kind = server && span.url.path =~ `/nobody/.*` }";
    let nobody = backend.wait_for_count(query, 20, Duration::from_secs(10))?;
    ensure!(nobody >= 20, "{nobody} calls for nobody");
    Ok(())
}

/// Asks a service `count` times.
fn ask(service: SocketAddr, path: &str, count: usize) -> Result<()> {
    asking::ask(&format!("http://{service}/{path}"), true, count)
}

/// Each call is below the request with the same path; links that are missing are counted, and none is wrong.
fn assert_linked(way: &str, calls: usize, spans: &[Seen], front: u16, back: u16) -> Result<()> {
    let by_id: BTreeMap<&str, &Seen> = spans.iter().map(|span| (span.span_id.as_str(), span)).collect();
    let mut linked = 0;
    for span in spans.iter().filter(|span| span.kind == "SPAN_KIND_CLIENT") {
        if span.attribute("server.port") != back.to_string() {
            continue;
        }
        let Some(parent) = by_id.get(span.parent_span_id.as_str()) else { continue };
        ensure!(
            parent.path() == span.path() && parent.attribute("server.port") == front.to_string(),
            "{way}: a call of {} is below {}",
            span.path(),
            parent.path()
        );
        linked += 1;
    }
    println!("{way}: {linked} of {} calls are linked", calls * REQUESTS);
    ensure!(linked * 100 >= calls * REQUESTS * 99, "{way}: {linked} links of {}", calls * REQUESTS);
    Ok(())
}

/// The service that all ask.
fn back(folder: &Path) -> Result<(Running, SocketAddr)> {
    let listens = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut command = Command::new(go_program("chain", true)?);
    command.args(["-http1", "-listen", &listens.to_string()]);
    start("back", folder, &mut command, listens)
}

/// FastAPI under uvicorn, on one of its event loops.
fn event_loop(name: &str, folder: &Path, next: &str) -> Result<(Running, SocketAddr)> {
    let listens = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut command = Command::new(tool("python/bin/uvicorn")?);
    command.args(["onward:app", "--host", "127.0.0.1", "--port", &listens.port().to_string(), "--app-dir"]);
    command.arg(workspace().join("tests/sample")).args(["--log-level", "warning"]);
    if name == "uvloop" {
        command.args(["--loop", "uvloop", "--http", "httptools"]).env("PYTHONPATH", tool("uvloop")?);
    }
    start(name, folder, command.env("SAMPLE_NEXT", next), listens)
}

/// A server of the standard library: with a thread for each connection, or with a task for each.
fn script(name: &str, folder: &Path, next: &str) -> Result<(Running, SocketAddr)> {
    let listens = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut command = Command::new(tool("python/bin/python")?);
    command.arg(workspace().join(format!("tests/sample/{name}.py"))).env("SAMPLE_NEXT", next);
    command.env("SAMPLE_HOST", "127.0.0.1").env("SAMPLE_PORT", listens.port().to_string());
    start(name, folder, &mut command, listens)
}

fn start(name: &str, folder: &Path, command: &mut Command, listens: SocketAddr) -> Result<(Running, SocketAddr)> {
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    let mut running = Running::start(name, folder, command).context("it does not start")?;
    running.wait_for_port(listens, STARTS_WITHIN)?;
    Ok((running, listens))
}
