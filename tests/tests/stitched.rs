//! Guarantee: a request that passes several services is one trace, with nothing injected into any of them.
//!
//! nginx → FastAPI → Node → Go, one request at a time: eight spans (a client's and a server's at each step), each the
//! child of the one before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::http;
use coati_tests::process;
use coati_tests::sample::{Sample, Server};
use coati_tests::seen::{Seen, spans_of};

const REQUESTS: u32 = 50;

#[test]
fn a_request_through_four_services_is_one_trace() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let sample = Sample::start(&folder.path().join("sample"))?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    for order in 1..=REQUESTS {
        let answer = http::get(&format!("{}/orders/{order}", sample.url(Server::Nginx)))?;
        ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    }
    let last = format!("{{ kind = server && resource.service.name = \"{}\" }}", Server::Go.service_name());
    backend.wait_for_count(&last, u64::from(REQUESTS), Duration::from_secs(10))?;
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());

    let mut broken = Vec::new();
    for order in 1..=REQUESTS {
        if let Err(error) = one_trace(&backend, order) {
            broken.push(format!("order {order}: {error:#}"));
        }
    }
    ensure!(broken.is_empty(), "{} of {REQUESTS} traces are not right:\n{}", broken.len(), broken.join("\n"));
    Ok(())
}

/// Fails unless the spans of one request are a chain, in one trace, and alone in it.
fn one_trace(backend: &Backend, order: u32) -> Result<()> {
    let nginx = Server::Nginx.service_name();
    let spans = spans_of(
        backend,
        &format!("{{ kind = server && resource.service.name = \"{nginx}\" && span.url.path = \"/orders/{order}\" }}"),
    )?;
    let traces = spans.iter().map(|span| &span.trace_id).collect::<std::collections::BTreeSet<_>>();
    ensure!(traces.len() == 1, "{} traces with nginx", traces.len());
    ensure!(spans.len() == 8, "{} spans: {}", spans.len(), describe(&spans));

    let own = |span: &Seen| span.pid() == Some(std::process::id());
    let caller = spans.iter().find(|span| own(span)).context("no span of the client")?;
    ensure!(caller.parent_span_id.is_empty(), "the client's span has a parent: {}", describe(&spans));
    let mut parent = &caller.span_id;
    for server in Server::ALL {
        for kind in ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"] {
            if (server, kind) == (Server::Go, "SPAN_KIND_CLIENT") {
                continue; // It asks nobody.
            }
            let of_service = |span: &&Seen| span.kind == kind && span.service() == server.service_name();
            let span = spans
                .iter()
                .find(of_service)
                .with_context(|| format!("no {kind} of {}: {}", server.service_name(), describe(&spans)))?;
            ensure!(
                span.parent_span_id == *parent,
                "{kind} of {} has another parent: {}",
                server.service_name(),
                describe(&spans)
            );
            parent = &span.span_id;
        }
    }
    Ok(())
}

fn describe(spans: &[Seen]) -> String {
    let line = |span: &Seen| {
        let Seen { span_id, parent_span_id, kind, name, .. } = span;
        format!("\n  {span_id} parent {parent_span_id:16} {kind:16} {} {name}", span.service())
    };
    spans.iter().map(line).collect()
}
