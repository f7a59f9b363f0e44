//! What traces take on disk and what keeping them costs: bytes per span and the share of each column, processor time per
//! span to write, compact and decode blocks, speed of the log's replay, time to be ready, memory of a merge and while idle.
//!
//! `cargo bench -p coati-backend --bench storage`, or `cargo xtask bench storage`. `COATI_BENCH_TRACES` says how many traces
//! of the corpus are stored (41,000, about 717,000 spans), `COATI_BENCH_IDLE_TRACES` how many an idle backend has in blocks
//! (2,000,000: about as many as 1 GiB of blocks hold), `COATI_BENCH_DIR` where (`tmp` of the build), `COATI_BENCH_ONLY` which
//! part alone is run: `blocks`, `merge`, `replay` or `idle`.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

mod corpus;
mod measure;

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coati_backend::block::{Block, BlockId, BlockSummary, NewBlock, write_block};
use coati_backend::blocks::{Added, Blocks, BlocksConfig, Change, WriterId};
use coati_backend::catalog::MemoryCatalog;
use coati_backend::compact::{Compactor, MAX_INPUTS, Outcome};
use coati_backend::config::Config;
use coati_backend::live::{Limits, LiveSet, Trace};
use coati_backend::receive::{Format, Prepared, prepare};
use coati_backend::server::{self, Server};
use coati_backend::store::{LocalStore, Store};
use coati_backend::telemetry::{BlocksMetrics, CompactionMetrics, WalMetrics};
use coati_backend::tools::column_sizes;
use coati_backend::wal::{Entry, Log, RealDisk, Wal, WalConfig};
use corpus::{Corpus, START_NS, small_traces, traces};
use measure::{bytes_under, cpu, folder, micros, number, peak_mib, resident_mib};
use prost::Message;
use tokio::task::JoinSet;

/// That of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 1;
const TENANT: &str = "single-tenant";

/// Requests of which a block is cut: 50,000 spans, about as many as 64 MiB of live traces hold.
const REQUESTS_PER_BLOCK: usize = 500;

/// Traces of a block of the idle backend.
const IDLE_TRACES_PER_BLOCK: u64 = 100_000;

/// Columns that are named; the others are summed up.
const SHOWN_COLUMNS: usize = 30;

/// Set for the process that merges blocks: where these are.
const MERGE_DIR: &str = "COATI_BENCH_MERGE_DIR";

/// Traces of 10 GiB of blocks at 31 bytes per span and 17 spans a trace.
const FULL_TRACES: f64 = (10_u64 << 30) as f64 / (31.0 * 17.0);

/// Set for the backend whose memory is measured: its data directory.
const IDLE_DIR: &str = "COATI_BENCH_IDLE_DIR";

fn main() -> Result<()> {
    server::take_small_pages();
    if let Some(dir) = env::var_os(IDLE_DIR) {
        return idle(Path::new(&dir));
    }
    if let Some(dir) = env::var_os(MERGE_DIR) {
        return merge_here(Path::new(&dir));
    }
    let traces = number("COATI_BENCH_TRACES", 41_000)?;
    let only = env::var("COATI_BENCH_ONLY").ok();
    let is_wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if is_wanted("blocks") {
        blocks(traces)?;
    }
    if is_wanted("merge") {
        merge(traces)?;
    }
    if is_wanted("replay") {
        replay(traces)?;
    }
    if is_wanted("idle") {
        start_with_blocks(number("COATI_BENCH_IDLE_TRACES", 2_000_000)?)?;
    }
    Ok(())
}

fn line(what: &str, value: impl std::fmt::Display, unit: &str) {
    println!("{what:<44} {value:>10} {unit}");
}

// === blocks ===

fn blocks(traces_wanted: u64) -> Result<()> {
    let dir = folder()?;
    let store: Arc<dyn Store> = Arc::new(LocalStore::open(&dir.path().join("store"))?);
    let registry = registry(&store)?;
    let mut requests = Corpus::new(SEED, traces_wanted).peekable();
    let (mut writing, mut committing) = (Duration::ZERO, Duration::ZERO);
    while requests.peek().is_some() {
        let traces = traces(requests.by_ref().take(REQUESTS_PER_BLOCK));
        let (written, cpu_of_write) = cpu(|| write(&store, &traces));
        let added = written?;
        let (committed, cpu_of_commit) = cpu(|| registry.commit(Change { add: vec![added], ..Change::default() }));
        committed?;
        writing += cpu_of_write;
        committing += cpu_of_commit;
    }
    let summaries = listed(&registry);
    let sum = |of: fn(&BlockSummary) -> u64| summaries.iter().map(of).sum::<u64>();
    let spans = sum(|block| block.spans);
    println!("{spans} spans in {} blocks", summaries.len());
    line("writing blocks", format!("{:.2}", micros(writing, spans)), "µs CPU per span");
    line("committing blocks", format!("{:.3}", micros(committing, spans)), "µs CPU per span");
    print_size("blocks as cut", &summaries);
    let (decoded, decoding) = cpu(|| summaries.iter().map(|summary| decode(&store, summary)).sum::<Result<u64>>());
    ensure!(decoded? == spans, "not all spans were read");
    line("decoding blocks", format!("{:.2}", micros(decoding, spans)), "µs CPU per span");

    let (rewritten, compacting) = cpu(|| compact(&registry));
    let rewritten = rewritten?;
    let summaries = listed(&registry);
    println!("compacted to {} blocks, {rewritten} spans written again", summaries.len());
    line("compacting blocks", format!("{:.2}", micros(compacting, rewritten)), "µs CPU per span");
    print_size("blocks after compaction", &summaries);
    let (verified, verifying) = cpu(|| summaries.iter().map(|summary| decode(&store, summary)).sum::<Result<u64>>());
    ensure!(verified? == spans, "not all spans are there after compaction");
    line("decoding compacted blocks", format!("{:.2}", micros(verifying, spans)), "µs CPU per span");
    let largest = summaries.iter().max_by_key(|summary| summary.spans).context("no block")?;
    print_columns(&Block::open(Arc::clone(&store), largest)?);
    line("resident, peak", peak_mib()?, "MiB");
    Ok(())
}

fn listed(registry: &Blocks) -> Vec<BlockSummary> {
    registry.snapshot().blocks().map(|entry| BlockSummary::clone(&entry.summary)).collect()
}

/// Compacts until nothing is due; returns how many spans were written.
fn compact(registry: &Blocks) -> Result<u64> {
    let config = Config::default();
    let metrics = CompactionMetrics::default();
    let mut compactor = Compactor::new(&config.compaction, &config.retention, metrics, clock);
    let mut spans = 0;
    loop {
        match compactor.run_once(registry, config.retention.max_bytes.0, &AtomicBool::new(false))? {
            Outcome::Idle => return Ok(spans),
            Outcome::Compacted(block) => {
                let written = listed(registry).into_iter().find(|summary| summary.id == block);
                spans += written.context("the block is not listed")?.spans;
            }
            other => bail!("{other:?}"),
        }
    }
}

fn print_size(what: &str, summaries: &[BlockSummary]) {
    let sum = |of: fn(&BlockSummary) -> u64| summaries.iter().map(of).sum::<u64>() as f64;
    let spans = sum(|block| block.spans);
    let data = sum(|block| block.bytes) / spans;
    let filter = sum(|block| block.filter_bytes) / spans;
    line(what, format!("{:.2}", data + filter), &format!("bytes per span (data {data:.2}, filter {filter:.2})"));
}

fn print_columns(block: &Block) {
    let spans = block.summary().spans as f64;
    let bytes = block.summary().bytes as f64;
    let sizes = column_sizes(block);
    println!("columns of a block of {spans} spans:");
    let (shown, others) = sizes.split_at(SHOWN_COLUMNS.min(sizes.len()));
    let rest = (format!("{} others", others.len()), others.iter().map(|size| size.bytes).sum());
    for (name, of) in shown.iter().map(|size| (size.name.clone(), size.bytes)).chain([rest]) {
        println!("  {name:<42} {:>7.2} bytes per span {:>6.1} %", of as f64 / spans, of as f64 * 100.0 / bytes);
    }
}

fn decode(store: &Arc<dyn Store>, summary: &BlockSummary) -> Result<u64> {
    let block = Block::open(Arc::clone(store), summary)?;
    block.traces().map(|trace| Ok(trace?.spans.len() as u64)).sum()
}

fn write(store: &Arc<dyn Store>, traces: &[Arc<Trace>]) -> Result<Added> {
    let random = traces.first().map_or(0, |trace| u128::from_be_bytes(trace.id.0));
    let end_ns = traces.iter().map(|trace| trace.end_ns).max().unwrap_or_default();
    let new = NewBlock {
        id: BlockId::new(clock(), random),
        tenant: TENANT.into(),
        level: 0,
        received_first_ns: START_NS,
        received_last_ns: end_ns,
    };
    let (summary, filter) = write_block(store.as_ref(), new, traces)?;
    Ok(Added { summary, filter, ids: traces.iter().map(|trace| trace.id).collect() })
}

// === start ===

fn config(dir: &Path) -> Config {
    let mut config = Config { data_dir: dir.to_owned(), ..Config::default() };
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    // The corpus is of a fixed day.
    config.retention.age = Duration::from_hours(24 * 36_500);
    (config.listen.api, config.listen.otlp_grpc, config.listen.otlp_http) = (any_port, any_port, any_port);
    config
}

/// Starts on a log of which nothing is in blocks yet, as a crash would leave it; then again after a clean stop.
fn replay(traces_wanted: u64) -> Result<()> {
    let dir = folder()?;
    let (log_bytes, raw_bytes) = write_log(&dir.path().join("wal"), traces_wanted)?;
    let runtime = server::runtime()?;
    let config = config(dir.path());
    let started = Instant::now();
    let (server, cpu) = cpu(|| runtime.block_on(Server::start(&config)));
    let took = started.elapsed();
    runtime.block_on(server?.stop());
    let mb_per_second = |bytes: u64| format!("{:.0}", bytes as f64 / 1e6 / took.as_secs_f64());
    println!(
        "replay of a log of {:.1} MB, {:.1} MB before compression",
        log_bytes as f64 / 1e6,
        raw_bytes as f64 / 1e6
    );
    line("ready after", format!("{:.2}", took.as_secs_f64()), &format!("s ({:.2} s CPU)", cpu.as_secs_f64()));
    line("log replayed", mb_per_second(log_bytes), "MB/s");
    line("requests replayed", mb_per_second(raw_bytes), "MB/s before compression");
    let started = Instant::now();
    let server = runtime.block_on(Server::start(&config))?;
    line("ready after a clean stop", format!("{:.3}", started.elapsed().as_secs_f64()), "s");
    runtime.block_on(server.stop());
    Ok(())
}

/// Writes the corpus to a log; returns its bytes, and those of the requests.
fn write_log(dir: &Path, traces_wanted: u64) -> Result<(u64, u64)> {
    let log = Log::open(dir, Arc::new(RealDisk), WalMetrics::default())?;
    let wal = Arc::new(Wal::start(log, WalConfig { segment_bytes: 64 << 20, max_bytes: u64::MAX })?);
    let live = LiveSet::new(Limits::default());
    let runtime = server::runtime()?;
    let mut raw_bytes = 0;
    let mut requests = Corpus::new(SEED, traces_wanted).peekable();
    while requests.peek().is_some() {
        // One sync for all that wait.
        let mut waiting = JoinSet::new();
        for request in requests.by_ref().take(100) {
            let Prepared { payload, compressed, raw_len, .. } =
                prepare(request.encode_to_vec().into(), Format::Protobuf, &live, TENANT)?;
            raw_bytes += u64::from(raw_len);
            let entry = Entry { tenant: TENANT.into(), received_ns: clock(), raw_len, compressed, payload };
            let wal = Arc::clone(&wal);
            waiting.spawn_on(async move { wal.append(entry).await }, runtime.handle());
        }
        for appended in runtime.block_on(waiting.join_all()) {
            appended?;
        }
    }
    wal.close();
    Ok((bytes_under(dir)?, raw_bytes))
}

/// Memory of one merge of as many blocks as one takes, in a process of its own.
fn merge(traces_wanted: u64) -> Result<()> {
    let dir = folder()?;
    let store: Arc<dyn Store> = Arc::new(LocalStore::open(&dir.path().join("store"))?);
    let registry = registry(&store)?;
    let requests: Vec<_> = Corpus::new(SEED, traces_wanted).collect();
    for part in requests.chunks(requests.len().div_ceil(MAX_INPUTS).max(1)) {
        registry.commit(Change { add: vec![write(&store, &traces(part.iter().cloned()))?], ..Change::default() })?;
    }
    drop((registry, store));
    let output = Command::new(env::current_exe()?).env(MERGE_DIR, dir.path()).output()?;
    ensure!(output.status.success(), "the merge failed: {}", String::from_utf8_lossy(&output.stderr));
    print!("{}", String::from_utf8(output.stdout)?);
    Ok(())
}

fn merge_here(dir: &Path) -> Result<()> {
    let store: Arc<dyn Store> = Arc::new(LocalStore::open(&dir.join("store"))?);
    let registry = registry(&store)?;
    let (inputs, before) = (listed(&registry).len(), peak_mib()?);
    let (rewritten, compacting) = cpu(|| compact(&registry));
    println!("merge of {inputs} blocks, {} spans written", rewritten.as_ref().copied().unwrap_or_default());
    line("compacting blocks", format!("{:.2}", micros(compacting, rewritten?)), "µs CPU per span");
    line("resident, before / peak", format!("{before} / {}", peak_mib()?), "MiB");
    Ok(())
}

/// Fills stores with blocks of traces of one span, and starts on them: what an idle backend holds in memory are filters and
/// footers, and these grow with the number of traces.
fn start_with_blocks(traces_wanted: u64) -> Result<()> {
    let mut seconds = Vec::new();
    for traces in [0, traces_wanted / 2, traces_wanted] {
        let dir = folder()?;
        let store: Arc<dyn Store> = Arc::new(LocalStore::open(&dir.path().join("store"))?);
        let registry = registry(&store)?;
        for seed in 0..traces / IDLE_TRACES_PER_BLOCK {
            // Seeds of splitmix64 must be far from each other.
            let traces = small_traces(seed << 48, IDLE_TRACES_PER_BLOCK);
            registry.commit(Change { add: vec![write(&store, &traces)?], ..Change::default() })?;
        }
        drop((registry, store));
        // The first start builds the catalog.
        for start in ["first", "second"] {
            let output = Command::new(env::current_exe()?).env(IDLE_DIR, dir.path()).output()?;
            ensure!(output.status.success(), "the idle backend failed: {}", String::from_utf8_lossy(&output.stderr));
            println!("idle with {traces} traces in blocks, {start} start");
            let text = String::from_utf8(output.stdout)?;
            print!("{text}");
            let resident = text.lines().find(|line| line.starts_with("resident, then"));
            let resident = resident.and_then(|line| line.split_whitespace().nth(2)?.parse::<f64>().ok());
            if start == "second" {
                seconds.push((traces as f64, resident.context("no figure")?));
            }
        }
    }
    if let [_, (some, at_some), (more, at_more)] = *seconds {
        let slope = (at_more - at_some) / (more - some);
        line("resident memory per trace in blocks", format!("{:.2}", slope * 1_048_576.0), "bytes");
        let full = at_more + slope * (FULL_TRACES - more);
        line("resident with 10 GiB of blocks, extrapolated", format!("{full:.0}"), "MiB");
    }
    Ok(())
}

fn idle(dir: &Path) -> Result<()> {
    let runtime = server::runtime()?;
    let started = Instant::now();
    let server = runtime.block_on(Server::start(&config(dir)))?;
    line("ready after", format!("{:.3}", started.elapsed().as_secs_f64()), "s");
    // Filters are loaded, and the catalog is built, after the start.
    let mut quiet = 0;
    while quiet < 5 && started.elapsed() < Duration::from_mins(5) {
        let ((), used) = cpu(|| std::thread::sleep(Duration::from_secs(2)));
        quiet = if used < Duration::from_millis(100) { quiet + 1 } else { 0 };
    }
    line("processor time until idle", format!("{:.2}", measure::cpu_time().as_secs_f64()), "s");
    line("resident, peak", peak_mib()?, "MiB");
    line("resident, then", resident_mib()?, "MiB");
    let path = dir.join("store");
    line("blocks", bytes_under(&path)? >> 20, "MiB");
    runtime.block_on(server.stop());
    Ok(())
}

fn registry(store: &Arc<dyn Store>) -> Result<Blocks> {
    let catalog = Arc::new(MemoryCatalog::default());
    let config = BlocksConfig { clock, ..BlocksConfig::default() };
    Ok(Blocks::open(Arc::clone(store), WriterId::random(), catalog, config, BlocksMetrics::default())?)
}

/// A day after the corpus: everything is to be compacted, and nothing is too old.
fn clock() -> u64 {
    START_NS + 26 * 60 * 60 * 1_000_000_000
}
