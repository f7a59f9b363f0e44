//! What counting spans in metrics costs: processor time per span, as `receive` hands them over, and memory with many
//! series.
//!
//! `cargo bench -p coati-backend --bench generator`, or `cargo xtask bench generator`. `COATI_BENCH_TRACES` says how many
//! traces of the corpus are counted (20,000), `COATI_BENCH_ROUND` how many requests are in memory before they are (10); of 1,000 the
//! first have left the processor's caches by then.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

mod corpus;
mod measure;

use std::time::Duration;

use anyhow::Result;
use coati_backend::config::{GeneratorConfig, SpanNameSanitization};
use coati_backend::generator::Generator;
use coati_backend::live::{Trace, group_message};
use coati_backend::telemetry::GeneratorMetrics;
use corpus::{Corpus, START_NS};
use measure::{cpu, micros, number, peak_mib, resident_mib};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

/// That of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TENANT: &str = "single-tenant";

/// Requests that are prepared before they are counted: about as many as wait for one sync of the log.
const ROUND: u64 = 10;

fn main() -> Result<()> {
    coati_backend::server::take_small_pages();
    let traces = number("COATI_BENCH_TRACES", 20_000)?;
    many_series(527, "10,000 series")?;
    many_series(10_000, "10,000 sets of labels, 190,000 series")?;
    let plain = GeneratorConfig::default();
    let (spans, _, series) = corpus(traces, &plain)?;
    println!("{spans} spans of {traces} traces, {series} series");
    let mut limited = plain.clone();
    limited.registry.max_cardinality_per_label = 20;
    let with = |span_name_sanitization| GeneratorConfig { span_name_sanitization, ..plain.clone() };
    for (what, config) in [
        ("span metrics and service graphs", plain.clone()),
        ("and max_cardinality_per_label: 20", limited),
        ("and span_name_sanitization: enabled", with(SpanNameSanitization::Enabled)),
        ("and span_name_sanitization: dry_run", with(SpanNameSanitization::DryRun)),
    ] {
        let (spans, time, series) = corpus(traces, &config)?;
        println!("{what:<40} {:>8.3} µs CPU per span, {series} series", micros(time, spans));
    }
    Ok(())
}

/// Time for the corpus, and how many series it makes.
fn corpus(traces: u64, config: &GeneratorConfig) -> Result<(u64, Duration, usize)> {
    let generator = Generator::new(config, "host", GeneratorMetrics::default(), 0)?;
    let (mut spans, mut time, mut sequence) = (0, Duration::ZERO, 0);
    let mut requests = Corpus::new(1, traces);
    let round = number("COATI_BENCH_ROUND", ROUND)?;
    loop {
        let round: Vec<Vec<Trace>> =
            requests.by_ref().take(round as usize).map(|request| group_message(&request)).collect();
        if round.is_empty() {
            break;
        }
        spans += round.iter().flatten().map(|trace| trace.spans.len() as u64).sum::<u64>();
        let ((), took) = cpu(|| {
            for traces in &round {
                sequence += 1;
                generator.count(TENANT, traces, START_NS + sequence * 1_000_000, sequence);
            }
        });
        time += took;
    }
    let collected = generator.collect(START_NS / 1_000_000 + 60_000);
    Ok((spans, time, collected.series()))
}

/// Memory and time of a collection with so many sets of labels.
fn many_series(sets: u64, what: &str) -> Result<()> {
    let mut config = GeneratorConfig::default();
    config.registry.max_active_series = u32::MAX;
    let generator = Generator::new(&config, "host", GeneratorMetrics::default(), 0)?;
    let Some(request) = Corpus::new(1, 200).next() else { return Ok(()) };
    let before = resident_mib()?;
    for number in 0..sets {
        generator.count(TENANT, &group_message(&renamed(&request, number)), START_NS, number + 1);
    }
    let held = resident_mib()?.saturating_sub(before);
    let (collected, time) = cpu(|| generator.collect(START_NS / 1_000_000 + 1_000));
    println!(
        "{what}: {held} MiB, collected in {:.1} ms CPU, with the copy {} MiB, peak {} MiB",
        time.as_secs_f64() * 1e3,
        resident_mib()?.saturating_sub(before),
        peak_mib()?
    );
    println!("  ({} series)", collected.series());
    Ok(())
}

/// A request with one internal span of a name that no other has.
fn renamed(request: &ExportTraceServiceRequest, number: u64) -> ExportTraceServiceRequest {
    let mut request = request.clone();
    request.resource_spans.truncate(1);
    for scope in request.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans) {
        scope.spans.truncate(1);
        for span in &mut scope.spans {
            (span.name, span.kind) = (format!("GET /a/route/with/a/number/{number}"), 1);
        }
    }
    request
}
