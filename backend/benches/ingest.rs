//! What taking spans in costs: processor time per span of the whole way (receive → log with fsync → live set and catalog →
//! acknowledgement → block, finished and committed) next to that of decoding the same bytes with prost alone, on one processor
//! and on all of them at once, and of the stages alone.
//!
//! `cargo bench -p coati-backend --bench ingest`, or `cargo xtask bench ingest`. The sender is a process of its own, so
//! that its time is not counted; at the end the same requests are handed over in memory, without sockets, with metrics of spans and
//! without. `COATI_BENCH_TRACES` says how many traces of the corpus are sent (41,000, about 717,000 spans),
//! `COATI_BENCH_SENDERS` how many requests wait at once (32: with 8, two processors stand still a seventh of the time, as the disk
//! has to end one sync before the next), `COATI_BENCH_ROUNDS` how often all are handed over in memory (5). With
//! `COATI_BENCH_ONLY=stages` the whole way is left out, with `direct` all but the requests in memory, with `receiving` all but a
//! server that only reads requests, which is what gRPC costs anyway.
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

mod corpus;
mod direct;
mod measure;

use std::convert::Infallible;
use std::env;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use coati_backend::block::{BlockId, NewBlock, write_block};
use coati_backend::catalog::{IndexLimits, MemoryCatalog, TagIndex};
use coati_backend::live::{Limits, LiveSet};
use coati_backend::receive::{Format, Prepared, prepare};
use coati_backend::server::{self, Server};
use coati_backend::store::LocalStore;
use coati_backend::telemetry::{CatalogMetrics, WalMetrics};
use coati_backend::wal::{Entry, Log, RealDisk, Wal, WalConfig};
use corpus::{Corpus, START_NS};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, Full};
use measure::{bytes_under, cpu, cpu_of_thread, cpu_time, folder, micros, number, peak_mib};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::SERVICE_NAME;
use prost::{DecodeError, Message};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tonic::Code;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service};
use tonic::server::NamedService;
use tonic::transport::Channel;
use tonic::transport::server::TcpIncoming;

/// That of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 1;
const TENANT: &str = "single-tenant";

/// Requests of which a block is cut when the stages run alone: 50,000 spans, about as many as 64 MiB of live traces hold.
const REQUESTS_PER_BLOCK: usize = 500;

/// Requests that share a sync of the log when the stages run alone.
const GROUP: usize = 10;

/// Wait of the sender after a refusal that passes.
const RETRY: Duration = Duration::from_millis(200);

/// Set for the sender: the address to send to.
const SEND_TO: &str = "COATI_BENCH_SEND_TO";

fn main() -> Result<()> {
    let traces = number("COATI_BENCH_TRACES", 41_000)?;
    let senders = number("COATI_BENCH_SENDERS", 32)?;
    if let Ok(address) = env::var(SEND_TO) {
        return Runtime::new()?.block_on(send(format!("http://{address}"), traces, senders));
    }
    server::take_small_pages();
    let decode = decode_only(traces)?;
    let spans = decode.spans;
    let line = |what: &str, cpu: Duration| println!("{what:<24} {:>8.2} µs CPU per span", micros(cpu, spans));
    println!("{spans} spans of {traces} traces, {:.0} bytes per span", decode.bytes as f64 / spans as f64);
    line("prost decode alone", decode.cpu);
    let everywhere = decode_everywhere(traces)?;
    line("  on all processors", everywhere);
    if env::var("COATI_BENCH_ONLY").is_ok_and(|only| only == "stages") {
        return print_stages(traces, spans);
    }
    if env::var("COATI_BENCH_ONLY").is_ok_and(|only| only == "direct") {
        return print_direct(traces, senders, spans);
    }
    line("receiving alone", receive_only(traces)?);
    if env::var("COATI_BENCH_ONLY").is_ok_and(|only| only == "receiving") {
        return Ok(());
    }
    let whole = whole_path(traces)?;
    line("whole path, to the block", whole.cpu);
    println!("{:<24} {:>8.2}", "ratio", whole.cpu.as_secs_f64() / decode.cpu.as_secs_f64());
    println!("{:<24} {:>8.2}", "  to that on all", whole.cpu.as_secs_f64() / everywhere.as_secs_f64());
    line("  until acknowledged", whole.cpu_to_acknowledgement);
    let per_second = spans as f64 / whole.wall.as_secs_f64();
    println!("{:<24} {per_second:>8.0} spans per second ({senders} senders)", "acknowledged");
    println!("{:<24} {:>8.1} bytes per span", "blocks as cut", whole.store_bytes as f64 / spans as f64);
    println!("{:<24} {:>8} MiB", "resident, peak", whole.peak_mib);
    println!("{:<24} {:>8.2} s", "ready after clean stop", whole.start.as_secs_f64());
    print_stages(traces, spans)?;
    print_direct(traces, senders, spans)
}

/// The bar is from the bytes to the finished block: sockets and metrics of spans are not in it. A machine that others share
/// is now fast, now slow: each of several rounds has its own base, and the one in the middle counts.
fn print_direct(traces: u64, senders: u64, spans: u64) -> Result<()> {
    let line = |what: &str, cpu: Duration| println!("{what:<24} {:>8.2} µs CPU per span", micros(cpu, spans));
    let requests: Arc<[Bytes]> = Corpus::new(SEED, traces).map(|request| request.encode_to_vec().into()).collect();
    for (with_metrics, what) in [(false, "without sockets"), (true, "… with metrics of spans")] {
        let mut rounds = (0..number("COATI_BENCH_ROUNDS", 5)?)
            .map(|_| Round::run(&requests, senders, with_metrics))
            .collect::<Result<Vec<_>>>()?;
        rounds.sort_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        let ratios: Vec<_> = rounds.iter().map(|round| format!("{:.2}", round.ratio())).collect();
        let median = rounds.get(rounds.len() / 2).context("no rounds")?;
        println!("{what:<24} {:>8.2} times prost's decode ({})", median.ratio(), ratios.join(", "));
        line("  prost decode alone", median.decode);
        line("  whole", median.direct.cpu);
        line("  until acknowledged", median.direct.cpu_to_acknowledgement);
        let per_second = spans as f64 / median.direct.wall.as_secs_f64();
        println!("{:<24} {per_second:>8.0} spans per second", "  acknowledged");
        for (name, cpu) in median.direct.threads.iter().filter(|(_, cpu)| micros(**cpu, spans) >= 0.01) {
            line(&format!("  thread {name}"), *cpu);
        }
    }
    Ok(())
}

/// The program without sockets, and prost's decode of the same requests from where they lie: the mean of before and after.
struct Round {
    decode: Duration,
    direct: direct::Direct,
}

impl Round {
    fn run(requests: &Arc<[Bytes]>, senders: u64, with_metrics: bool) -> Result<Self> {
        let decode_all = || {
            let (decoded, cpu) = cpu_of_thread(|| requests.iter().try_for_each(|request| decode(request)));
            decoded?;
            anyhow::Ok(cpu)
        };
        let before = decode_all()?;
        let direct = direct::run(requests, senders, with_metrics)?;
        Ok(Self { decode: (before + decode_all()?) / 2, direct })
    }

    fn ratio(&self) -> f64 {
        self.direct.cpu.as_secs_f64() / self.decode.as_secs_f64()
    }
}

fn print_stages(traces: u64, spans: u64) -> Result<()> {
    let line = |what: &str, cpu: Duration| println!("{what:<24} {:>8.2} µs CPU per span", micros(cpu, spans));
    println!("stages alone:");
    let stages = stages(traces)?;
    line("  decode, check, pack", stages.prepare);
    line("  log, with fsync", stages.log);
    line("  tags", stages.tags);
    line("  live set", stages.live);
    line("  block, with fsync", stages.block);
    line("  forgetting", stages.drop);
    println!("{:<24} {:>8.1} bytes per span", "log", stages.log_bytes as f64 / spans as f64);
    println!("{:<24} {:>8.1} bytes per span", "blocks", stages.block_bytes as f64 / spans as f64);
    println!("{:<24} {:>8} MiB", "resident, peak", peak_mib()?);
    Ok(())
}

struct Decoded {
    cpu: Duration,
    spans: u64,
    bytes: usize,
}

fn decode_only(traces: u64) -> Result<Decoded> {
    let mut decoded = Decoded { cpu: Duration::ZERO, spans: 0, bytes: 0 };
    for request in Corpus::new(SEED, traces) {
        let encoded = request.encode_to_vec();
        decoded.bytes += encoded.len();
        decoded.spans += spans(&request);
        let (outcome, cpu) = cpu_of_thread(|| decode(&encoded));
        outcome?;
        decoded.cpu += cpu;
    }
    Ok(decoded)
}

/// The backend frees what it decodes as well, when it leaves memory.
fn decode(encoded: &[u8]) -> Result<(), DecodeError> {
    ExportTraceServiceRequest::decode(encoded).map(|request| drop(black_box(request)))
}

/// Processor time of one of as many that decode at once as there are processors. The whole path keeps all of them busy too, and
/// those that share a core take longer then for the same work.
fn decode_everywhere(traces: u64) -> Result<Duration> {
    let processors = thread::available_parallelism()?.get();
    let decoded: Vec<Result<Decoded>> = thread::scope(|scope| {
        let decoding: Vec<_> = (0..processors).map(|_| scope.spawn(|| decode_only(traces))).collect();
        decoding.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a thread panicked"))).collect()
    });
    let mut cpu = Duration::ZERO;
    for decoded in decoded {
        cpu += decoded?.cpu;
    }
    Ok(cpu / processors as u32)
}

fn spans(request: &ExportTraceServiceRequest) -> u64 {
    let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    scopes.map(|scope| scope.spans.len() as u64).sum()
}

/// Processor time of each stage by itself.
#[derive(Default)]
struct Stages {
    prepare: Duration,
    log: Duration,
    tags: Duration,
    live: Duration,
    block: Duration,
    drop: Duration,
    log_bytes: u64,
    block_bytes: u64,
}

fn stages(traces: u64) -> Result<Stages> {
    let dir = folder()?;
    let log = Log::open(&dir.path().join("wal"), Arc::new(RealDisk), WalMetrics::default())?;
    let wal = Arc::new(Wal::start(log, WalConfig { segment_bytes: 64 << 20, max_bytes: u64::MAX })?);
    let store = LocalStore::open(&dir.path().join("store"))?;
    let catalog = Arc::new(MemoryCatalog::default());
    let tags = TagIndex::open(catalog, IndexLimits::default(), CatalogMetrics::default())?;
    let runtime = server::runtime()?;
    let mut stages = Stages::default();
    let mut requests = Corpus::new(SEED, traces).peekable();
    let mut blocks = 0;
    while requests.peek().is_some() {
        // As many traces as a block is cut of.
        let live = LiveSet::new(Limits { total_bytes: usize::MAX, trace_bytes: usize::MAX });
        for _ in 0..REQUESTS_PER_BLOCK / GROUP {
            let encoded: Vec<Bytes> =
                requests.by_ref().take(GROUP).map(|request| request.encode_to_vec().into()).collect();
            let prepare = |body: Bytes| prepare(body, Format::Protobuf, &live, TENANT);
            let (prepared, cpu_time) = cpu(|| encoded.into_iter().map(prepare).collect::<Result<Vec<_>, _>>());
            stages.prepare += cpu_time;
            let prepared = prepared?;
            log_all(&mut stages, &runtime, &wal, &prepared)?;
            for Prepared { traces, .. } in prepared {
                let (recorded, cpu_time) = cpu(|| {
                    let fresh = tags.observe(TENANT, &traces);
                    tags.record(TENANT, &fresh)
                });
                recorded?;
                stages.tags += cpu_time;
                stages.live += cpu(|| live.insert(TENANT, traces, START_NS, 1)).1;
            }
        }
        let mut traces = live.snapshot(TENANT);
        blocks += 1;
        let (written, cpu_time) = cpu(|| {
            traces.sort_unstable_by_key(|trace| trace.id);
            let new = NewBlock {
                id: BlockId::new(START_NS, blocks),
                tenant: TENANT.into(),
                level: 0,
                received_first_ns: START_NS,
                received_last_ns: START_NS,
            };
            write_block(&store, new, &traces)
        });
        written?;
        stages.block += cpu_time;
        stages.drop += cpu(|| drop((live, traces))).1;
    }
    wal.close();
    stages.log_bytes = bytes_under(&dir.path().join("wal"))?;
    stages.block_bytes = bytes_under(&dir.path().join("store/blocks"))?;
    Ok(stages)
}

/// Writes some requests to the log, all at once as many senders do.
fn log_all(stages: &mut Stages, runtime: &Runtime, wal: &Arc<Wal>, prepared: &[Prepared]) -> Result<()> {
    let mut waiting = JoinSet::new();
    let (logged, cpu_time) = cpu(|| {
        for Prepared { payload, compressed, raw_len, .. } in prepared {
            let (raw_len, compressed, payload) = (*raw_len, *compressed, payload.clone());
            let entry = Entry { tenant: TENANT.into(), received_ns: START_NS, raw_len, compressed, payload };
            let wal = Arc::clone(wal);
            waiting.spawn_on(async move { wal.append(entry).await }, runtime.handle());
        }
        runtime.block_on(waiting.join_all()).into_iter().try_for_each(|appended| appended.map(drop))
    });
    logged?;
    stages.log += cpu_time;
    Ok(())
}

/// Processor time of a server that reads requests as they come over gRPC, and only says that it has.
fn receive_only(traces: u64) -> Result<Duration> {
    let runtime = server::runtime()?;
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.local_addr()?;
    // As the backend has it.
    let mut server = tonic::transport::Server::builder().http2_adaptive_window(Some(true)).max_frame_size(256 << 10);
    let server = server.add_service(Reader);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let serving = runtime.spawn(server.serve_with_incoming(incoming));
    let before = cpu_time();
    let mut sender = sender(address, traces)?;
    ensure!(sender.wait()?.success(), "the sender failed");
    let used = cpu_time().saturating_sub(before);
    serving.abort();
    Ok(used)
}

fn sender(address: SocketAddr, traces: u64) -> Result<Child> {
    let mut command = Command::new(env::current_exe()?);
    command.env(SEND_TO, address.to_string()).env("COATI_BENCH_TRACES", traces.to_string());
    Ok(command.spawn()?)
}

/// Reads a request to its end.
#[derive(Clone)]
struct Reader;

impl NamedService for Reader {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for Reader {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let mut body = request.into_body();
            while let Some(Ok(frame)) = body.frame().await {
                drop(black_box(frame));
            }
            let trailers =
                HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
            // A message of no bytes, which is not compressed.
            let answer = Full::new(Bytes::from_static(&[0; 5])).with_trailers(async { Some(Ok(trailers)) });
            let mut response = http::Response::new(Body::new(answer));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            Ok(response)
        })
    }
}

struct Whole {
    cpu: Duration,
    cpu_to_acknowledgement: Duration,
    wall: Duration,
    store_bytes: u64,
    peak_mib: u64,
    start: Duration,
}

fn whole_path(traces: u64) -> Result<Whole> {
    let dir = folder()?;
    let config = direct::config(dir.path());
    let runtime = server::runtime()?;
    let server = runtime.block_on(Server::start(&config))?;
    let (before, started) = (cpu_time(), Instant::now());
    let mut sender = sender(server.addresses().otlp_grpc, traces)?;
    ensure!(sender.wait()?.success(), "the sender failed");
    let (cpu_to_acknowledgement, wall) = (cpu_time().saturating_sub(before), started.elapsed());
    direct::wait_for_blocks(server.addresses().api)?;
    let cpu = cpu_time().saturating_sub(before);
    let peak_mib = peak_mib()?;
    let store_bytes = bytes_under(&dir.path().join("store/blocks"))?;
    runtime.block_on(server.stop());
    let started = Instant::now();
    let server = runtime.block_on(Server::start(&config))?;
    let start = started.elapsed();
    runtime.block_on(server.stop());
    Ok(Whole { cpu, cpu_to_acknowledgement, wall, store_bytes, peak_mib, start })
}

async fn send(url: String, traces: u64, senders: u64) -> Result<()> {
    let client = TraceServiceClient::connect(url).await?;
    let requests = Arc::new(Mutex::new(Corpus::new(SEED, traces)));
    let tasks: Vec<_> = (0..senders)
        .map(|_| {
            let (mut client, requests) = (client.clone(), Arc::clone(&requests));
            let next = move || requests.lock().unwrap_or_else(PoisonError::into_inner).next();
            tokio::spawn(async move {
                while let Some(request) = next() {
                    send_one(&mut client, request).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Sends a request until it is stored: refusals that pass are part of the protocol.
async fn send_one(client: &mut TraceServiceClient<Channel>, request: ExportTraceServiceRequest) -> Result<()> {
    loop {
        match client.export(request.clone()).await {
            Ok(answer) => {
                let rejected = answer.into_inner().partial_success.map_or(0, |partial| partial.rejected_spans);
                ensure!(rejected == 0, "{rejected} spans were rejected");
                return Ok(());
            }
            Err(status) if matches!(status.code(), Code::ResourceExhausted | Code::Unavailable) => {
                tokio::time::sleep(RETRY).await;
            }
            Err(status) => return Err(status.into()),
        }
    }
}
