//! Guarantee: a request that passes services on several nodes, an agent on each, is one trace, with nothing injected into
//! any of them.
//!
//! From outside → nginx on A → FastAPI on B → Node on A → Go on B, through address translation each time, one request at a
//! time: seven spans, each the child of the one before. The first one's parent is the client outside, which nobody watches,
//! until the trace is stored.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coati_tests::agent::{Agent, sum};
use coati_tests::backend::Backend;
use coati_tests::http;
use coati_tests::nodes::{Node, Nodes};
use coati_tests::process;
use coati_tests::sample::{Sample, Server};
use coati_tests::seen::{Seen, spans_of};

const REQUESTS: u32 = 200;
const SPANS: usize = 7;

#[test]
fn a_request_through_two_nodes_is_one_trace() -> Result<()> {
    let folder = process::folder()?;
    let nodes = Nodes::new(&Server::ALL.map(Server::port_across))?;
    // Nothing leaves memory before the end.
    let mut backend = Backend::start(folder.path(), &["--cut-idle", "10m", "--cut-max-age", "10m"])?;
    let sample = Sample::start_across(&folder.path().join("sample"), &nodes, &Server::ALL)?;
    let mut agents = [
        agent_of(&folder.path().join("a"), &backend, "{nginx,node}")?,
        agent_of(&folder.path().join("b"), &backend, "{python3*,stock}")?,
    ];
    // No other test asks for the same.
    let first = std::process::id() * 1_000;
    let orders = first..first + REQUESTS;
    let url = sample.url(Server::Nginx);
    nodes.on(Node::Outside, || {
        orders.clone().try_for_each(|order| {
            let answer = http::get(&format!("{url}/orders/{order}"))?;
            ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
            Ok(())
        })
    })??;
    let last = format!(
        "{{ kind = server && resource.service.name = \"{}\" && span.url.path =~ \"/stock/.*\" }}",
        Server::Go.service_name()
    );
    backend.wait_for_count(&last, u64::from(REQUESTS), Duration::from_secs(10))?;
    for agent in &mut agents {
        // The links are those of the backend, not of an agent that sees both nodes.
        ensure!(agent.metric("coati_agent_links_total", &["by=\"position\""])? < 1.0, "an agent has seen both ends");
        ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());
    }

    check(&backend, first, false).context("in memory")?;
    let united = sum(&backend.get("/metrics")?.text(), "coati_backend_stitch_united_total", &[]);
    ensure!(united >= f64::from(3 * REQUESTS), "{united} traces united");
    ensure!(backend.stop()?.success(), "the backend did not end well:\n{}", backend.process.output());
    backend.restart()?;
    check(&backend, first, true).context("in blocks")
}

/// Fails unless the requests for the orders from `first` on are one trace each.
fn check(backend: &Backend, first: u32, is_root: bool) -> Result<()> {
    let nginx = Server::Nginx.service_name();
    let query = format!(
        "{{ kind = server && resource.service.name = \"{nginx}\" && span.url.path =~ \"/orders/{}.*\" }}",
        first / 1_000
    );
    let mut traces: BTreeMap<String, Vec<Seen>> = BTreeMap::new();
    for span in spans_of(backend, &query)? {
        traces.entry(span.trace_id.clone()).or_default().push(span);
    }
    ensure!(traces.len() == REQUESTS as usize, "{} traces of {REQUESTS} requests", traces.len());
    let wrong: Vec<_> = traces.values().filter_map(|spans| is_chain(spans, is_root).err()).collect();
    let wrong: Vec<_> = wrong.iter().map(|error| format!("{error:#}")).collect();
    ensure!(wrong.is_empty(), "{} of {REQUESTS} traces are not right:\n{}", wrong.len(), wrong.join("\n"));
    Ok(())
}

/// An agent of a node on which these programs run.
fn agent_of(folder: &Path, backend: &Backend, programs: &str) -> Result<Agent> {
    fs::create_dir_all(folder)?;
    let config = folder.join("agent.yaml");
    fs::write(&config, format!("discovery: {{include: [{{exe_path: \"{programs}\"}}]}}\n"))?;
    Agent::start(folder, &format!("http://{}", backend.grpc), &["--config", &config.to_string_lossy()])
}

/// Fails unless the spans of one trace are the chain of a request, and nothing else.
fn is_chain(spans: &[Seen], is_root: bool) -> Result<()> {
    ensure!(spans.len() == SPANS, "{} spans: {}", spans.len(), describe(spans));
    let mut parent: Option<&str> = None;
    for server in Server::ALL {
        for kind in ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"] {
            if (server, kind) == (Server::Go, "SPAN_KIND_CLIENT") {
                continue; // It asks nobody.
            }
            let of_service = |span: &&Seen| span.kind == kind && span.service() == server.service_name();
            let none = || format!("no {kind} of {}: {}", server.service_name(), describe(spans));
            let span = spans.iter().find(of_service).with_context(none)?;
            let is_right = match parent {
                Some(parent) => span.parent_span_id == parent,
                // The client outside gave the provisional trace its name.
                None if !is_root => span.trace_id.get(16..) == Some(&span.parent_span_id),
                None => span.parent_span_id.is_empty(),
            };
            ensure!(is_right, "{kind} of {} has another parent: {}", server.service_name(), describe(spans));
            parent = Some(&span.span_id);
        }
    }
    Ok(())
}

fn describe(spans: &[Seen]) -> String {
    let line = |span: &Seen| {
        let Seen { trace_id, span_id, parent_span_id, kind, name, .. } = span;
        format!("\n  {trace_id} {span_id} parent {parent_span_id:16} {kind:16} {} {name}", span.service())
    };
    spans.iter().map(line).collect()
}
