//! Guarantee: every request becomes exactly one server span and one client span, with the status that the server's own
//! access log and the client know; what could not be captured is counted.
//!
//! 20,000 requests at 1,000/s over keep-alive connections, through each kind of server.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::load::{self, Plan};
use coati_tests::process;
use coati_tests::sample::{Sample, Server};
use rstest::rstest;

const REQUESTS: usize = 20_000;
const RATE: f64 = 1000.0;

/// Requests by status.
type Statuses = BTreeMap<u16, u64>;

#[rstest]
#[case::nginx(Server::Nginx, &["/hello.txt", "/hello.txt?q=1", "/big/none", "/big/", "/empty", "/unavailable"], &[200, 204, 403, 404, 503])]
#[case::fastapi(Server::FastApi, &["/items/1", "/items/2?q=1", "/items/x", "/nothing", "/broken"], &[200, 404, 422, 500])]
#[case::node(Server::Node, &["/health", "/health?q=1", "/nothing", "/broken"], &[200, 404, 500])]
#[case::go(Server::Go, &["/stock/3", "/stock/4?q=1", "/stock/x", "/nothing", "/broken"], &[200, 400, 404, 500])]
fn every_request_is_captured(#[case] server: Server, #[case] paths: &[&str], #[case] statuses: &[u16]) -> Result<()> {
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
    })?;
    println!(
        "{server:?}: {REQUESTS} requests in {:?}, p50 {:.0} µs, p99 {:.0} µs",
        outcome.elapsed,
        outcome.latency_us(0.5),
        outcome.latency_us(0.99)
    );

    let service = server.service_name();
    let of_server = format!("kind = server && resource.service.name = \"{service}\"");
    let of_client = format!(
        "kind = client && resource.process.pid = {} && span.server.port = {}",
        std::process::id(),
        address.port()
    );
    for of in [&of_server, &of_client] {
        backend.wait_for_count(&format!("{{ {of} }}"), REQUESTS as u64, Duration::from_secs(15))?;
    }
    let metrics = agent.metrics()?;
    // What it holds when it ends comes out too: a span too many would be seen.
    ensure!(agent.stop()?.code() == Some(0), "the agent did not end well:\n{}", agent.process.output());

    let of = |name: &str| coati_tests::agent::sum(&metrics, name, &[]) as u64;
    let lost = of("coati_agent_losses_total") + of("coati_agent_spans_dropped_total");
    let spans = |of: &str| backend.count(&format!("{{ {of} }}"));
    let (servers, clients) = (spans(&of_server)?, spans(&of_client)?);
    println!("{server:?}: {servers} server spans, {clients} client spans, {lost} counted losses");
    ensure!(lost == 0, "{lost} losses are counted:\n{metrics}");
    ensure!(of("coati_agent_ring_sequence_gaps_total") == 0, "records are missing without a counted loss:\n{metrics}");
    ensure!(servers + lost == REQUESTS as u64, "{servers} server spans of {REQUESTS} requests, {lost} counted losses");
    ensure!(clients + lost == REQUESTS as u64, "{clients} client spans of {REQUESTS} requests, {lost} counted losses");

    let seen = count(outcome.statuses);
    ensure!(seen.keys().eq(statuses), "the server answers with {seen:?}");
    let logged = count(sample.access_log(server)?);
    ensure!(logged == seen, "the access log has {logged:?}, the client saw {seen:?}");
    for (side, of) in [("server", &of_server), ("client", &of_client)] {
        let by_status =
            |&status: &u16| Ok((status, spans(&format!("{of} && span.http.response.status_code = {status}"))?));
        let captured = seen.keys().map(by_status).collect::<Result<Statuses>>()?;
        ensure!(captured == seen, "{side} spans have {captured:?}, the client saw {seen:?}");
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
