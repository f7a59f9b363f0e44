//! What taking spans in costs: processor time per span of the whole way (receive → log with fsync → live set and catalog →
//! acknowledgement) next to that of decoding the same bytes with prost alone.
//!
//! `cargo bench -p coati-backend --bench ingest`, or `cargo xtask bench ingest`. The sender is a process of its own, so
//! that its time is not counted, and it warms the backend up before, so that memory is full and evicting. Requests are like those of an SDK: 100 spans of 10 traces, with 10 attributes a span and
//! 9 a resource. `COATI_BENCH_REQUESTS` says how many (2,000), `COATI_BENCH_SENDERS` how many wait at once (8).
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::env;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use coati_backend::config::Config;
use coati_backend::server::{self, Server};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Runtime;
use tonic::transport::Channel;

/// That of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SPANS: u64 = 100;

/// Requests that fill the default of 256 MiB for live traces.
const WARM_UP: u64 = 1_500;

/// Set for the sender: the address to send to.
const SEND_TO: &str = "COATI_BENCH_SEND_TO";

fn main() -> Result<()> {
    let requests = number("COATI_BENCH_REQUESTS", 2_000)?;
    let senders = number("COATI_BENCH_SENDERS", 8)?;
    if let Ok(address) = env::var(SEND_TO) {
        return Runtime::new()?.block_on(send(format!("http://{address}"), requests, senders));
    }
    let spans = requests as f64 * SPANS as f64;
    let decode = decode_only(requests)?;
    println!("spans                    {spans:>10.0}   bytes per span {:.0}", decode.bytes as f64 / spans);
    println!("prost decode alone       {:>10.2} µs CPU per span", decode.cpu.as_secs_f64() * 1e6 / spans);
    let whole = whole_path(requests)?;
    println!("whole path (gRPC)        {:>10.2} µs CPU per span", whole.cpu.as_secs_f64() * 1e6 / spans);
    println!("ratio                    {:>10.2}", whole.cpu.as_secs_f64() / decode.cpu.as_secs_f64());
    println!(
        "acknowledged             {:>10.0} spans per second ({senders} senders)",
        spans / whole.wall.as_secs_f64()
    );
    let logged = spans + WARM_UP as f64 * SPANS as f64;
    println!("log                      {:>10.1} bytes per span", whole.log_bytes as f64 / logged);
    println!("resident, peak           {:>10} MiB", whole.peak_mib);
    println!("replay                   {:>10.2} s", whole.replay.as_secs_f64());
    Ok(())
}

fn number(variable: &str, default: usize) -> Result<usize> {
    env::var(variable).map_or(Ok(default), |text| text.parse().with_context(|| format!("{variable}={text}")))
}

struct Decoded {
    cpu: Duration,
    bytes: usize,
}

fn decode_only(requests: usize) -> Result<Decoded> {
    let (mut cpu, mut bytes) = (Duration::ZERO, 0);
    for number in 0..requests {
        let encoded = request(number as u64).encode_to_vec();
        bytes += encoded.len();
        let started = cpu_time();
        let decoded = ExportTraceServiceRequest::decode(encoded.as_slice())?;
        // The backend frees what it decodes as well, when it leaves memory.
        drop(black_box(decoded));
        cpu += cpu_time().saturating_sub(started);
    }
    Ok(Decoded { cpu, bytes })
}

struct Whole {
    cpu: Duration,
    wall: Duration,
    log_bytes: u64,
    peak_mib: u64,
    replay: Duration,
}

fn whole_path(requests: usize) -> Result<Whole> {
    let dir = tempfile::tempdir_in(env::var("COATI_BENCH_DIR").unwrap_or_else(|_| ".".to_owned()))?;
    let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    (config.listen.api, config.listen.otlp_grpc, config.listen.otlp_http) = (any_port, any_port, any_port);
    let runtime = server::runtime()?;
    let server = runtime.block_on(Server::start(&config))?;
    let mut sender = Command::new(env::current_exe()?)
        .env(SEND_TO, server.addresses().otlp_grpc.to_string())
        .env("COATI_BENCH_REQUESTS", requests.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    // The sender closes its output when the backend is warm.
    std::io::copy(&mut sender.stdout.take().context("the sender has an output")?, &mut std::io::sink())?;
    let (cpu, started) = (cpu_time(), Instant::now());
    ensure!(sender.wait()?.success(), "the sender failed");
    let (cpu, wall) = (cpu_time().saturating_sub(cpu), started.elapsed());
    let peak_mib = peak_kib()? / 1024;
    let log_bytes = bytes_under(&dir.path().join("wal"))?;
    runtime.block_on(server.stop());
    let started = Instant::now();
    let server = runtime.block_on(Server::start(&config))?;
    let replay = started.elapsed();
    runtime.block_on(server.stop());
    Ok(Whole { cpu, wall, log_bytes, peak_mib, replay })
}

async fn send(url: String, requests: usize, senders: usize) -> Result<()> {
    let client = TraceServiceClient::connect(url).await?;
    let first = requests as u64;
    send_all(&client, (first..first + WARM_UP).map(request).collect(), senders).await?;
    let bodies = (0..first).map(request).collect();
    rustix::stdio::dup2_stdout(std::fs::File::create("/dev/null")?)?;
    send_all(&client, bodies, senders).await
}

async fn send_all(
    client: &TraceServiceClient<Channel>,
    bodies: Vec<ExportTraceServiceRequest>,
    senders: usize,
) -> Result<()> {
    let (bodies, next) = (Arc::new(bodies), Arc::new(AtomicUsize::new(0)));
    let tasks: Vec<_> = (0..senders)
        .map(|_| {
            let (mut client, bodies, next) = (client.clone(), Arc::clone(&bodies), Arc::clone(&next));
            tokio::spawn(async move {
                while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let answer = client.export(body.clone()).await?.into_inner();
                    if answer.partial_success.is_some_and(|partial| partial.rejected_spans > 0) {
                        bail!("spans were rejected");
                    }
                }
                Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

/// Processor time of this process, all threads, user and system.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn peak_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    line.trim().trim_end_matches(" kB").parse().context("VmHWM")
}

fn bytes_under(dir: &Path) -> Result<u64> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

// === requests, the same in every run ===

/// A sequence of numbers that looks random (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

fn request(number: u64) -> ExportTraceServiceRequest {
    let mut numbers = Numbers(number);
    let service = numbers.below(20);
    let traces: Vec<Vec<u8>> =
        (0..10).map(|_| [numbers.next().to_be_bytes(), numbers.next().to_be_bytes()].concat()).collect();
    let spans = (0..SPANS).map(|index| span(&mut numbers, traces.get(index as usize / 10).cloned(), number));
    let scope = InstrumentationScope {
        name: "io.opentelemetry.http".to_owned(),
        version: "1.2.3".to_owned(),
        ..InstrumentationScope::default()
    };
    let scope_spans = vec![ScopeSpans { scope: Some(scope), spans: spans.collect(), ..ScopeSpans::default() }];
    let attributes = vec![
        text("service.name", format!("service-{service}")),
        text("service.namespace", "shop"),
        text("service.instance.id", format!("service-{service}-7d9c5b8f6-x2x{}", numbers.below(3))),
        text("host.name", format!("node-{}", service % 4)),
        text("os.type", "linux"),
        integer("process.pid", 1000 + service),
        text("process.executable.name", "server"),
        text("telemetry.sdk.language", "go"),
        text("telemetry.sdk.version", "1.38.0"),
    ];
    let resource = Some(Resource { attributes, ..Resource::default() });
    ExportTraceServiceRequest {
        resource_spans: vec![ResourceSpans { resource, scope_spans, ..ResourceSpans::default() }],
    }
}

fn span(numbers: &mut Numbers, trace_id: Option<Vec<u8>>, request: u64) -> Span {
    let route = numbers.below(30);
    let id = numbers.below(100_000);
    let start = 1_795_237_020_000_000_000 + request * 10_000_000 + numbers.below(10_000_000);
    Span {
        trace_id: trace_id.unwrap_or_default(),
        span_id: numbers.next().to_be_bytes().to_vec(),
        parent_span_id: numbers.next().to_be_bytes().to_vec(),
        name: format!("GET /api/v1/resource-{route}/{{id}}"),
        kind: 2,
        start_time_unix_nano: start,
        end_time_unix_nano: start + numbers.below(500_000_000),
        attributes: vec![
            text("http.request.method", "GET"),
            text("http.route", format!("/api/v1/resource-{route}/{{id}}")),
            integer("http.response.status_code", if id.is_multiple_of(50) { 500 } else { 200 }),
            text("url.path", format!("/api/v1/resource-{route}/{id}")),
            text("url.scheme", "http"),
            text("server.address", "shop.example.com"),
            integer("server.port", 8080),
            text("client.address", format!("10.42.{}.{}", id % 4, id % 250)),
            text("user_agent.original", "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36"),
            integer("http.response.body.size", numbers.below(100_000)),
        ],
        status: Some(Status::default()),
        ..Span::default()
    }
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    attribute(key, Value::StringValue(value.into()))
}

fn integer(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(value as i64))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
}
