//! What taking spans in costs: processor time per span of the whole way (receive → log with fsync → live set and catalog →
//! acknowledgement) next to that of decoding the same bytes with prost alone, and of the stages alone.
//!
//! `cargo bench -p coati-backend --bench ingest`, or `cargo xtask bench ingest`. The sender is a process of its own, so
//! that its time is not counted. `COATI_BENCH_TRACES` says how many traces of the corpus are sent (41,000, about 717,000
//! spans), `COATI_BENCH_SENDERS` how many requests wait at once (8).
#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

mod corpus;
mod measure;

use std::env;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use coati_backend::config::Config;
use coati_backend::live::LiveSet;
use coati_backend::receive::{Format, prepare};
use coati_backend::server::{self, Server};
use corpus::Corpus;
use measure::{bytes_under, cpu, cpu_time, folder, micros, number, peak_mib};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use prost::Message;
use tokio::runtime::Runtime;

/// That of the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 1;

/// Set for the sender: the address to send to.
const SEND_TO: &str = "COATI_BENCH_SEND_TO";

fn main() -> Result<()> {
    let traces = number("COATI_BENCH_TRACES", 41_000)?;
    let senders = number("COATI_BENCH_SENDERS", 8)?;
    if let Ok(address) = env::var(SEND_TO) {
        return Runtime::new()?.block_on(send(format!("http://{address}"), traces, senders));
    }
    let decode = decode_only(traces)?;
    let spans = decode.spans;
    let line = |what: &str, cpu: Duration| println!("{what:<24} {:>8.2} µs CPU per span", micros(cpu, spans));
    println!("{spans} spans of {traces} traces, {:.0} bytes per span", decode.bytes as f64 / spans as f64);
    line("prost decode alone", decode.cpu);
    let whole = whole_path(traces)?;
    line("whole path (gRPC)", whole.cpu);
    println!("{:<24} {:>8.2}", "ratio", whole.cpu.as_secs_f64() / decode.cpu.as_secs_f64());
    let per_second = spans as f64 / whole.wall.as_secs_f64();
    println!("{:<24} {per_second:>8.0} spans per second ({senders} senders)", "acknowledged");
    println!("{:<24} {:>8.1} bytes per span", "log", whole.log_bytes as f64 / spans as f64);
    println!("{:<24} {:>8} MiB", "resident, peak", whole.peak_mib);
    println!("{:<24} {:>8.2} s", "replay", whole.replay.as_secs_f64());
    println!("stages alone:");
    line("  decode, check, pack", prepare_only(traces)?);
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
        // The backend frees what it decodes as well, when it leaves memory.
        let (outcome, cpu) = cpu(|| ExportTraceServiceRequest::decode(encoded.as_slice()).map(|d| drop(black_box(d))));
        outcome?;
        decoded.cpu += cpu;
    }
    Ok(decoded)
}

fn spans(request: &ExportTraceServiceRequest) -> u64 {
    let scopes = request.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    scopes.map(|scope| scope.spans.len() as u64).sum()
}

fn prepare_only(traces: u64) -> Result<Duration> {
    let live = LiveSet::new(coati_backend::live::Limits::default());
    let mut whole = Duration::ZERO;
    for request in Corpus::new(SEED, traces) {
        let encoded = Bytes::from(request.encode_to_vec());
        let (outcome, cpu) = cpu(|| prepare(encoded, Format::Protobuf, &live, "single-tenant").map(drop));
        outcome?;
        whole += cpu;
    }
    Ok(whole)
}

struct Whole {
    cpu: Duration,
    wall: Duration,
    log_bytes: u64,
    peak_mib: u64,
    replay: Duration,
}

fn whole_path(traces: u64) -> Result<Whole> {
    let dir = folder()?;
    let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    (config.listen.api, config.listen.otlp_grpc, config.listen.otlp_http) = (any_port, any_port, any_port);
    let runtime = server::runtime()?;
    let server = runtime.block_on(Server::start(&config))?;
    let (before, started) = (cpu_time(), Instant::now());
    let mut sender = Command::new(env::current_exe()?)
        .env(SEND_TO, server.addresses().otlp_grpc.to_string())
        .env("COATI_BENCH_TRACES", traces.to_string())
        .spawn()?;
    ensure!(sender.wait()?.success(), "the sender failed");
    let (cpu, wall) = (cpu_time().saturating_sub(before), started.elapsed());
    let peak_mib = peak_mib()?;
    let log_bytes = bytes_under(&dir.path().join("wal"))?;
    runtime.block_on(server.stop());
    let started = Instant::now();
    let server = runtime.block_on(Server::start(&config))?;
    let replay = started.elapsed();
    runtime.block_on(server.stop());
    Ok(Whole { cpu, wall, log_bytes, peak_mib, replay })
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
                    let answer = client.export(request).await?.into_inner();
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
