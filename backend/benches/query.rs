//! What queries over blocks cost: processor time per million spans that a query looks at, and the time that it takes.
//!
//! `cargo bench -p coati-backend --bench query`, or `cargo xtask bench query`. `COATI_BENCH_TRACES` says how many traces of
//! the corpus there are (41,000, about 717,000 spans), `COATI_BENCH_BLOCKS` in how many blocks they lie (8), and
//! `COATI_BENCH_SMALL_BLOCKS` how many blocks a trace is looked for in by its id (1,000, of 20 traces each). `COATI_BENCH_RUNS`
//! is how often each query is run (3; the fastest one counts), and `COATI_BENCH_ONLY` what the names of those begin with that
//! are to be run, nothing else then (`tags`: the queries of tags and all that follow).
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

mod corpus;
mod measure;

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use coati_backend::block::{BlockId, NewBlock, write_block};
use coati_backend::blocks::{Added, Blocks, BlocksConfig, Change, WriterId};
use coati_backend::catalog::MemoryCatalog;
use coati_backend::live::{Limits, LiveSet, Trace};
use coati_backend::query::{
    Intervals, MetricsPlan, MetricsRequest, Plan, SearchRequest, TagScan, View, query_metrics, scan_names, scan_values,
    search,
};
use coati_backend::store::{LocalStore, Store};
use coati_backend::telemetry::BlocksMetrics;
use coati_backend::traceql;
use corpus::{Corpus, START_NS, traces};
use measure::{cpu, folder, number};
use rustix::fs::{Advice, fadvise};

/// That of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TENANT: &str = "single-tenant";
const SEED: u64 = 1;
const SMALL_TRACES: u64 = 20;

/// Traces that are looked for by their ids.
const LOOKED_FOR: usize = 500;

const SEARCHES: [(&str, &str); 10] = [
    ("service", "{ resource.service.name = \"checkout\" }"),
    ("status", "{ status = error }"),
    ("slow", "{ duration > 1s }"),
    ("slower than any", "{ duration > 1h }"),
    ("rare number", "{ span.client.port = 4242 }"),
    ("absent text", "{ span.http.route = \"/nowhere\" }"),
    ("absent attribute", "{ span.nowhere = 1 }"),
    ("regex", "{ span.url.path =~ \"/cart/1.*/items\" }"),
    ("structural", "{ kind = server } >> { status = error }"),
    ("count", "{ kind = client } | count() > 5"),
];

const METRICS: [(&str, &str); 5] = [
    ("rate", "{} | rate()"),
    ("rate by service", "{} | rate() by(resource.service.name)"),
    ("errors by route", "{ status = error } | rate() by(span.http.route)"),
    ("count by route", "{} | count_over_time() by(span.http.route)"),
    ("quantiles of duration", "{} | quantile_over_time(duration, .5, .99) by(resource.service.name)"),
];

/// What tags are looked for on.
const TAGGED: &str = "{ resource.service.name = \"checkout\" }";

fn main() -> Result<()> {
    let dir = folder()?;
    let all = number("COATI_BENCH_TRACES", 41_000)?;
    let blocks = number("COATI_BENCH_BLOCKS", 8)?.max(1);
    let corpus = traces(Corpus::new(SEED, all));
    let spans: usize = corpus.iter().map(|trace| trace.spans.len()).sum();
    let end_ns = corpus.iter().map(|trace| trace.end_ns).max().context("there is a trace")?;
    let registry = open(&dir.path().join("large"))?;
    // By time, as they would be cut.
    let mut by_time = corpus.clone();
    by_time.sort_by_key(|trace| trace.start_ns);
    for part in by_time.chunks(by_time.len().div_ceil(blocks as usize)) {
        let mut part = part.to_vec();
        part.sort_by_key(|trace| trace.id);
        commit(&registry, &part)?;
    }
    drop((corpus, by_time));
    let bytes: u64 = registry.snapshot().blocks().map(|entry| entry.summary.bytes).sum();
    println!("{spans} spans of {all} traces in {blocks} blocks, {:.1} bytes per span", bytes as f64 / spans as f64);

    let live = LiveSet::new(Limits::default());
    let go_on = AtomicBool::new(false);
    let only = std::env::var("COATI_BENCH_ONLY").unwrap_or_default();
    println!("{:<32} {:>12} {:>10} {:>10}", "search, 20 newest", "ms CPU/M", "ms", "found");
    for (name, query) in SEARCHES.into_iter().filter(|(name, _)| name.starts_with(&only)) {
        let plan = Plan::new(&traceql::parse(query)?)?;
        for (how, limit) in [("", 20), (", all", usize::MAX)] {
            let request = SearchRequest {
                plan: Some(plan.clone()),
                show_spans: true,
                limit,
                spans_per_spanset: 3,
                ..SearchRequest::default()
            };
            let run = || search(&View::new(&live, &registry, TENANT), &request, &go_on);
            let (result, cpu, wall) = fastest(run)?;
            row(&format!("{name}{how}"), cpu, wall, spans, &result.traces.len().to_string());
        }
    }
    println!("{:<32} {:>12} {:>10} {:>10}", "metrics", "ms CPU/M", "ms", "series");
    for (name, query) in METRICS.into_iter().filter(|(name, _)| name.starts_with(&only)) {
        let plan = MetricsPlan::new(&traceql::parse(query)?)?.context("a metrics query")?;
        let step = 5_000_000_000;
        let intervals = Intervals::range(START_NS, end_ns, step);
        let request = MetricsRequest { plan, intervals, exemplars: 100, max_series: 0, max_bytes: 32 << 20 };
        let run = || query_metrics(&View::new(&live, &registry, TENANT), &request, &go_on);
        let (result, cpu, wall) = fastest(run)?;
        row(name, cpu, wall, spans, &result.series.len().to_string());
    }
    if !only.is_empty() && only != "tags" {
        return Ok(());
    }
    println!("{:<32} {:>12} {:>10} {:>10}", "tags of spans of a service", "ms CPU/M", "ms", "found");
    let scan = TagScan { plan: Some(Plan::new(&traceql::parse(TAGGED)?)?), limit: 1_000, ..TagScan::default() };
    let route = traceql::parse_field("span.http.route").map_err(|error| anyhow!("{error}"))?;
    let run = || scan_values(&View::new(&live, &registry, TENANT), &route, &scan, &go_on);
    let ((values, _), cpu, wall) = fastest(run)?;
    row("values", cpu, wall, spans, &values.len().to_string());
    let run = || scan_names(&View::new(&live, &registry, TENANT), &scan, &go_on);
    let ((names, _), cpu, wall) = fastest(run)?;
    row("names", cpu, wall, spans, &names.values().map(BTreeSet::len).sum::<usize>().to_string());

    cold(&dir.path().join("large"), &live, spans)?;
    by_id(&dir.path().join("small"), &live)
}

/// Some queries with nothing of the blocks in memory: no footer here, no page in the system's cache.
fn cold(dir: &Path, live: &LiveSet, spans: usize) -> Result<()> {
    println!("{:<32} {:>12} {:>10} {:>10}", "search, nothing cached", "ms CPU/M", "ms", "found");
    for (name, query) in SEARCHES {
        let plan = Plan::new(&traceql::parse(query)?)?;
        let request = SearchRequest { plan: Some(plan), show_spans: true, limit: 20, ..SearchRequest::default() };
        let registry = open(dir)?;
        // Read at every start.
        registry.warm(&AtomicBool::new(false));
        forget(dir)?;
        let started = Instant::now();
        let (result, cpu) = cpu(|| search(&View::new(live, &registry, TENANT), &request, &AtomicBool::new(false)));
        row(name, cpu, started.elapsed(), spans, &result?.traces.len().to_string());
    }
    Ok(())
}

/// Takes files out of the system's cache.
fn forget(path: &Path) -> Result<()> {
    if path.is_dir() {
        return std::fs::read_dir(path)?.try_for_each(|entry| forget(&entry?.path()));
    }
    fadvise(File::open(path)?, 0, None, Advice::DontNeed).with_context(|| path.display().to_string())
}

/// A trace by its id over many blocks: with nothing in memory but the manifests, and again.
fn by_id(dir: &Path, live: &LiveSet) -> Result<()> {
    let blocks = number("COATI_BENCH_SMALL_BLOCKS", 1_000)?;
    let registry = open(dir)?;
    let corpus = traces(Corpus::new(SEED + 1, blocks * SMALL_TRACES));
    for part in corpus.chunks(SMALL_TRACES as usize) {
        commit(&registry, part)?;
    }
    drop(registry);
    let registry = open(dir)?;
    let (warmed, cpu_of_warming) = cpu(|| registry.warm(&AtomicBool::new(false)));
    let () = warmed;
    println!("{blocks} blocks: filters read in {:.1} ms CPU", millis(cpu_of_warming));
    for how in ["footers not in memory", "again"] {
        let (mut times, mut cpu_times): (Vec<Duration>, Vec<Duration>) = Default::default();
        for trace in corpus.iter().step_by(corpus.len().div_ceil(LOOKED_FOR)) {
            let started = Instant::now();
            let (found, used) = cpu(|| View::find(live, Some(&registry), TENANT, &trace.id));
            times.push(started.elapsed());
            cpu_times.push(used);
            let found = found?;
            ensure!(found.trace.is_some_and(|found| found.spans.len() == trace.spans.len()), "trace {}", trace.id);
        }
        // What other programs take of the machine is in the former only.
        for (of, times) in [("ms", &mut times), ("ms CPU", &mut cpu_times)] {
            times.sort_unstable();
            let at = |part: usize| times.get(times.len() * part / 100).copied().map_or(0.0, millis);
            println!("by id, {how:<24} {:>8.2} {of} median, {:>8.2} {of} of 99 %", at(50), at(99));
        }
    }
    Ok(())
}

fn open(dir: &Path) -> Result<Arc<Blocks>> {
    std::fs::create_dir_all(dir)?;
    let store: Arc<dyn Store> = Arc::new(LocalStore::open(dir)?);
    let catalog = Arc::new(MemoryCatalog::default());
    let config = BlocksConfig::default();
    Ok(Arc::new(Blocks::open(store, WriterId::random(), catalog, config, BlocksMetrics::default())?))
}

/// Makes a block of traces that are sorted by id.
fn commit(registry: &Blocks, traces: &[Arc<Trace>]) -> Result<()> {
    let now_ns = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos() as u64;
    let random = traces.first().map_or(0, |trace| u128::from_be_bytes(trace.id.0));
    let new = NewBlock {
        id: BlockId::new(now_ns, random),
        tenant: TENANT.into(),
        level: 0,
        received_first_ns: START_NS,
        received_last_ns: START_NS,
    };
    let (summary, filter) = write_block(registry.store().as_ref(), new, traces)?;
    let ids = traces.iter().map(|trace| trace.id).collect();
    registry.commit(Change { add: vec![Added { summary, filter, ids }], ..Change::default() })?;
    Ok(())
}

/// Outcome, processor time and time of the run that took the least.
fn fastest<T, E: Into<anyhow::Error>>(run: impl Fn() -> Result<T, E>) -> Result<(T, Duration, Duration)> {
    let measured = || {
        let started = Instant::now();
        let (outcome, cpu) = cpu(&run);
        anyhow::Ok((outcome.map_err(Into::into)?, cpu, started.elapsed()))
    };
    let mut best = measured()?;
    for _ in 1..number("COATI_BENCH_RUNS", 3)? {
        let next = measured()?;
        if next.1 < best.1 {
            best = next;
        }
    }
    Ok(best)
}

fn row(name: &str, cpu: Duration, wall: Duration, spans: usize, found: &str) {
    println!("{name:<32} {:>12.1} {:>10.1} {found:>10}", millis(cpu) * 1e6 / spans as f64, millis(wall));
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
