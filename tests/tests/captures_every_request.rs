//! Guarantee: every request becomes exactly one server span and one client span, with the status that the server's own
//! access log and the client know; what could not be captured is counted.
//!
//! 20,000 requests at 1,000/s over keep-alive connections, through each kind of server.

use std::collections::BTreeMap;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::load::{self, Plan};
use coati_tests::process;
use coati_tests::sample::{Sample, Server};
use rstest::rstest;
use serde_json::Value;

const REQUESTS: usize = 20_000;
const RATE: f64 = 1000.0;

/// How long a span may take from the end of its exchange until it is stored.
const ARRIVES_WITHIN: Duration = Duration::from_secs(15);

/// Requests by status.
type Statuses = BTreeMap<u16, u64>;

#[rstest]
#[case::nginx(Server::Nginx, &["/hello.txt", "/hello.txt?q=1", "/big/none", "/big/", "/empty", "/unavailable"], &[200, 204, 403, 404, 503])]
#[case::fastapi(Server::FastApi, &["/items/1", "/items/2?q=1", "/items/x", "/nothing", "/broken"], &[200, 404, 422, 500])]
#[case::node(Server::Node, &["/health", "/health?q=1", "/nothing", "/broken"], &[200, 404, 500])]
#[case::go(Server::Go, &["/stock/3", "/stock/4?q=1", "/stock/x", "/nothing", "/broken"], &[200, 400, 404, 500])]
fn every_request_is_captured(#[case] server: Server, #[case] paths: &[&str], #[case] expected: &[u16]) -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &["--max-live-bytes", "1GiB"])?;
    let sample = Sample::start_only(&folder.path().join("sample"), &[server])?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;

    let address = sample.address(server);
    let outcome = load::run(&Plan {
        address,
        paths: paths.iter().map(|&path| path.to_owned()).collect(),
        requests: REQUESTS,
        rate: RATE,
        connections: 16,
        keep_alive: true,
    })?;
    println!(
        "{server:?}: {REQUESTS} requests in {:?}, p50 {:.0} µs, p99 {:.0} µs",
        outcome.elapsed,
        outcome.latency_us(0.5),
        outcome.latency_us(0.99)
    );

    let all = 2 * REQUESTS as u64;
    let begin = Instant::now();
    while agent.metric("coati_agent_spans_exported_total", &[])? < all as f64 && begin.elapsed() < ARRIVES_WITHIN {
        thread::sleep(Duration::from_millis(100));
    }
    let metrics = agent.metrics()?;
    // What it holds when it ends comes out too: a span too many would be seen.
    ensure!(agent.stop()?.code() == Some(0), "the agent did not end well:\n{}", agent.process.output());

    let of = |name: &str| coati_tests::agent::sum(&metrics, name, &[]) as u64;
    let lost = of("coati_agent_losses_total") + of("coati_agent_spans_dropped_total");
    ensure!(lost == 0, "{lost} losses are counted:\n{metrics}");
    ensure!(of("coati_agent_ring_sequence_gaps_total") == 0, "records are missing without a counted loss:\n{metrics}");

    let seen = count(outcome.statuses);
    ensure!(seen.keys().copied().eq(expected.iter().copied()), "the server answers with {seen:?}");
    let logged = count(sample.access_log(server)?);
    ensure!(logged == seen, "the access log has {logged:?}, the client saw {seen:?}");
    let (service, port, own) = (server.service_name(), address.port(), std::process::id());
    for side in [
        format!("kind = server && resource.service.name = \"{service}\" && span.server.port = {port}"),
        format!("kind = client && resource.process.pid = {own} && span.server.port = {port}"),
    ] {
        let captured = statuses(&backend, &side)?;
        let spans: u64 = captured.values().sum();
        println!("{server:?}: {spans} spans where {side}");
        ensure!(spans + lost == REQUESTS as u64, "{spans} spans of {REQUESTS} requests where {side}");
        ensure!(captured == seen, "{captured:?} where {side}, the client saw {seen:?}");
    }
    Ok(())
}

fn count(statuses: Vec<u16>) -> Statuses {
    let mut counts = Statuses::new();
    for status in statuses {
        *counts.entry(status).or_default() += 1;
    }
    counts
}

/// Spans by status; 0 stands for none.
fn statuses(backend: &Backend, side: &str) -> Result<Statuses> {
    let key = "http.response.status_code";
    let found = backend.search(&format!("{{ {side} }} | select(span.{key})"), "&limit=262144&spss=100")?;
    let list = |value: &Value, key: &str| value.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut counts = Statuses::new();
    for set in list(&found, "traces").iter().flat_map(|trace| list(trace, "spanSets")) {
        let spans = list(&set, "spans");
        ensure!(set.get("matched").and_then(Value::as_u64) == Some(spans.len() as u64), "a set is not whole: {set}");
        for span in spans {
            let attributes = list(&span, "attributes");
            let status = attributes.iter().find(|attribute| attribute.get("key").is_some_and(|found| found == key));
            let status = status.and_then(|attribute| attribute.get("value")?.get("intValue")?.as_str()?.parse().ok());
            *counts.entry(status.unwrap_or_default()).or_default() += 1;
        }
    }
    Ok(counts)
}
