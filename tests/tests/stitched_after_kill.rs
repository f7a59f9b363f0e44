//! Guarantee: what was united across nodes is so after `kill -9`, and no span is in two traces then.
//!
//! The log still has the server's end of a request, the client's end is in a block only: what the server's end belongs to
//! must be known from there.

mod otlp;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use coati_common::stitch::provisional_trace_id;
use coati_common::wellknown::AGENT_SCOPE;
use coati_tests::agent::sum;
use coati_tests::backend::Backend;
use coati_tests::process;
use opentelemetry_proto::tonic::trace::v1::Span;

const CLIENT: u64 = 0x1122_3344_5566_7788;
const TRACE: u128 = 0xabcd;
/// Spans of it keep the log from being let go.
const LONG: u128 = 0x1234;

/// What the server's agent calls the trace.
fn provisional() -> u128 {
    u128::from_be_bytes(provisional_trace_id(CLIENT.to_be_bytes()))
}

fn send(backend: &Backend, span: Span) -> Result<()> {
    let mut request = otlp::request("shop", vec![span]);
    for scope in request.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans) {
        AGENT_SCOPE.clone_into(&mut scope.scope.get_or_insert_default().name);
    }
    otlp::store(backend, &request)
}

fn live_traces(backend: &Backend) -> Result<f64> {
    Ok(sum(&backend.get("/metrics")?.text(), "tempo_live_store_live_traces", &[]))
}

/// Waits, while the long trace goes on, until nothing else is in memory.
fn wait_for_cut(backend: &Backend, spans: &mut u64) -> Result<()> {
    let begin = Instant::now();
    while live_traces(backend)? > 1.0 {
        ensure!(begin.elapsed() < Duration::from_secs(20), "nothing is cut");
        *spans += 1;
        send(backend, otlp::span(LONG, *spans, "long"))?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Both ends are in one trace, under either id, and nowhere else.
fn check(backend: &Backend) -> Result<()> {
    for id in [TRACE, provisional()] {
        let spans = otlp::spans(backend, id)?;
        let names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
        ensure!(names == ["server", "client"], "{id:032x} has {names:?}");
        ensure!(spans.iter().all(|span| span.trace_id == TRACE.to_be_bytes()), "of another trace");
    }
    ensure!(backend.count("{ name = \"server\" }")? == 1, "the server's end is there more than once");
    ensure!(backend.count("{ name = \"client\" } >> { name = \"server\" }")? == 1, "it is not below its client");
    Ok(())
}

#[test]
fn a_united_trace_is_one_after_a_crash() -> Result<()> {
    let folder = process::folder()?;
    let arguments = ["--cut-idle", "1s", "--cut-max-age", "10m", "--cut-max-wait", "100ms"];
    let mut backend = Backend::start(folder.path(), &arguments)?;
    let mut long = 1;
    send(&backend, Span { kind: 3, ..otlp::span(TRACE, CLIENT, "client") })?;
    send(&backend, otlp::span(LONG, long, "long"))?;
    let parent_span_id = CLIENT.to_be_bytes().to_vec();
    send(
        &backend,
        Span { parent_span_id, trace_state: "coati=p".to_owned(), ..otlp::span(provisional(), 7, "server") },
    )?;
    check(&backend)?;
    ensure!(live_traces(&backend)? < 3.0, "not united");
    wait_for_cut(&backend, &mut long)?;
    check(&backend)?;
    backend.process.kill()?;
    backend.restart()?;
    check(&backend)?;
    wait_for_cut(&backend, &mut long)?;
    check(&backend)?;
    ensure!(backend.stop()?.success(), "the backend did not end well:\n{}", backend.process.output());
    let replayed = backend.process.output().matches("log replayed").count();
    ensure!(replayed == 2, "{replayed} replays");
    Ok(())
}
