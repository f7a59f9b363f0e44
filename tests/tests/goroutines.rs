//! Guarantee: of programs written in Go the agent sees what goes over TLS, and in each of them the calls of a request are below
//! that request, however many it answers at once.
//!
//! A service asks another for each of its requests, 64 at once over pooled connections: in clear text, and by HTTPS, with
//! HTTP/1.1 and HTTP/2, from the goroutine that answers and from one that it starts. The program has no symbols.

#![expect(clippy::print_stdout, reason = "how many links there are is worth a line")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::asking;
use coati_tests::backend::Backend;
use coati_tests::certificate::certificate;
use coati_tests::process::{self, Running, free_port};
use coati_tests::sample::go_program;
use coati_tests::seen::{Seen, spans_of};

const REQUESTS: usize = 300;
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// How two services speak.
#[derive(Clone, Copy, Debug)]
struct Case {
    name: &'static str,
    is_tls: bool,
    is_http1: bool,
    /// Each call is made by a goroutine that the request's starts.
    spawns: bool,
}

const CASES: [Case; 4] = [
    Case { name: "plain", is_tls: false, is_http1: true, spawns: false },
    Case { name: "spawned", is_tls: false, is_http1: true, spawns: true },
    Case { name: "tls1", is_tls: true, is_http1: true, spawns: true },
    Case { name: "tls2", is_tls: true, is_http1: false, spawns: false },
];

#[test]
fn calls_of_go_programs_are_below_their_requests() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let certificate = certificate(folder.path())?;
    let mut fronts = Vec::new();
    for case in CASES {
        let back = service(case, "back", folder.path(), &certificate, None)?;
        let url = format!("{}://{}", if case.is_tls { "https" } else { "http" }, back.1);
        let front = service(case, "front", folder.path(), &certificate, Some(&url))?;
        fronts.push((case, back, front));
    }
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    // A program is looked into when one of its processes asks another or speaks TLS. HTTP/2 is seen on later connections.
    ask(CASES[0], fronts[0].2.1, "first", 1)?;
    let program = go_program("chain", true)?;
    let is_probed = |output: &str| output.contains(&*program.to_string_lossy()).then_some(());
    agent.process.wait_for("probes in the program", STARTS_WITHIN, is_probed)?;
    ask(CASES[2], fronts[2].2.1, "first", 1)?;
    let is_probed_twice = |output: &str| (output.matches(&*program.to_string_lossy()).count() >= 2).then_some(());
    agent.process.wait_for("probes for TLS in the program", STARTS_WITHIN, is_probed_twice)?;
    for (case, _, (_, front)) in &fronts {
        ask(*case, *front, case.name, REQUESTS)?;
    }
    let all = (2 * REQUESTS * CASES.len()) as u64;
    let served = "{ kind = server && resource.service.name = `chain-stripped` && span.url.path !~ `/first.*` }";
    backend.wait_for_count(served, all, Duration::from_secs(10))?;
    for (case, (_, back), (_, front)) in &fronts {
        let query = format!(
            "{{ kind = server && span.server.port = {} && span.url.path =~ \"/{}/.*\" }}",
            front.port(),
            case.name
        );
        assert_linked(case, &spans_of(&backend, &query)?, front.port(), back.port())?;
    }
    Ok(())
}

/// Asks a service `count` times.
fn ask(case: Case, service: SocketAddr, path: &str, count: usize) -> Result<()> {
    let scheme = if case.is_tls { "https" } else { "http" };
    asking::ask(&format!("{scheme}://{service}/{path}"), case.is_http1, count).with_context(|| format!("{case:?}"))
}

/// Every request is a chain of four spans; links that are missing are counted, and none is wrong.
fn assert_linked(case: &Case, spans: &[Seen], front: u16, back: u16) -> Result<()> {
    let by_id: BTreeMap<&str, &Seen> = spans.iter().map(|span| (span.span_id.as_str(), span)).collect();
    let of = |kind: &str, port: u16| {
        let port = port.to_string();
        let kind = format!("SPAN_KIND_{kind}");
        spans.iter().filter(move |span| span.kind == kind && span.attribute("server.port") == port).collect::<Vec<_>>()
    };
    let served = of("SERVER", front);
    ensure!(
        served.len() == REQUESTS,
        "{case:?}: {} requests of {REQUESTS}, {} spans, such as {:?}",
        served.len(),
        spans.len(),
        spans.first()
    );
    let mut linked = 0;
    for (child, parent_kind) in of("CLIENT", back)
        .into_iter()
        .map(|it| (it, "SPAN_KIND_SERVER"))
        .chain(served.into_iter().map(|it| (it, "SPAN_KIND_CLIENT")))
    {
        let Some(parent) = by_id.get(child.parent_span_id.as_str()) else { continue };
        ensure!(
            parent.kind == parent_kind && parent.path() == child.path(),
            "{case:?}: {} {} is below {} {}",
            child.kind,
            child.path(),
            parent.kind,
            parent.path()
        );
        linked += 1;
    }
    println!("{}: {linked} of {} spans are linked", case.name, 2 * REQUESTS);
    ensure!(linked * 100 >= 2 * REQUESTS * 99, "{case:?}: {linked} links of {}", 2 * REQUESTS);
    Ok(())
}

/// A service that asks `next`, if there is one.
fn service(
    case: Case,
    name: &str,
    folder: &Path,
    certificate: &[String; 2],
    next: Option<&str>,
) -> Result<(Running, SocketAddr)> {
    let listens = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut command = Command::new(go_program("chain", true)?);
    command.args(["-listen", &listens.to_string()]);
    if case.is_tls {
        let [certificate, key] = certificate;
        command.args(["-certificate", certificate, "-key", key]);
    }
    if case.is_http1 {
        command.arg("-http1");
    }
    if case.spawns {
        command.arg("-spawn");
    }
    if let Some(next) = next {
        command.args(["-next", next]);
    }
    let mut running = Running::start(&format!("{}-{name}", case.name), folder, &mut command)?;
    running.wait_for_port(listens, STARTS_WITHIN)?;
    Ok((running, listens))
}
