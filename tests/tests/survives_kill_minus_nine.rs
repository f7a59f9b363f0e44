//! Guarantee: a span whose export request was acknowledged is found after `kill -9`, whole and once.
//!
//! Writers export without a pause, over HTTP and gRPC, while the backend is killed 50 times at random moments, also
//! while it starts and replays its log. A request that got no answer is not sent again: it may be there or not, but
//! not twice.

mod otlp;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coati_tests::backend::Backend;
use coati_tests::http;
use fastrand::Rng;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

const KILLS: u32 = 50;
const HTTP_WRITERS: u64 = 4;

/// Trace and span id.
type Key = (u128, u64);

/// What a writer sent: the spans by their ids, and whether they were acknowledged.
#[derive(Default)]
struct Sent {
    acknowledged: BTreeMap<Key, Span>,
    unanswered: BTreeSet<Key>,
    failed_requests: u64,
}

/// Makes requests: a few traces of their own each, and one span for the writer's trace that never ends.
struct Writer {
    number: u64,
    rng: Rng,
    spans: u64,
    sent: Sent,
}

impl Writer {
    fn new(number: u64, seed: u64) -> Self {
        Self { number, rng: Rng::with_seed(seed + number), spans: 0, sent: Sent::default() }
    }

    fn endless_trace(&self) -> u128 {
        u128::from(self.number + 1) << 64
    }

    fn next(&mut self) -> Vec<(Key, Span)> {
        let mut spans = Vec::new();
        for _ in 0..self.rng.u32(1..4) {
            let trace = self.rng.u128(1..);
            for _ in 0..self.rng.u32(1..6) {
                spans.push(self.span(trace));
            }
        }
        spans.push(self.span(self.endless_trace()));
        spans
    }

    fn span(&mut self, trace: u128) -> (Key, Span) {
        self.spans += 1;
        let id = (self.number << 48) + self.spans;
        let mut span = otlp::span(trace, id, "GET /items/{id}");
        let mut random = vec![0; self.rng.usize(0..200)];
        self.rng.fill(&mut random);
        span.attributes.push(otlp::attribute("random", Value::BytesValue(random)));
        ((trace, id), span)
    }

    fn note(&mut self, spans: Vec<(Key, Span)>, acknowledged: bool) {
        if acknowledged {
            self.sent.acknowledged.extend(spans);
        } else {
            self.sent.unanswered.extend(spans.into_iter().map(|(key, _)| key));
            self.sent.failed_requests += 1;
        }
    }

    fn write_http(mut self, address: SocketAddr, stop: &AtomicBool, acknowledged: &AtomicU64) -> Sent {
        while !stop.load(Ordering::Relaxed) {
            let spans = self.next();
            let body = request(&spans).encode_to_vec();
            let answer = http::post(&format!("http://{address}/v1/traces"), otlp::PROTOBUF, &body);
            let stored = answer.is_ok_and(|answer| {
                answer.status == 200 && otlp::rejection(&answer).is_ok_and(|rejected| rejected.is_none())
            });
            acknowledged.fetch_add(u64::from(stored), Ordering::Relaxed);
            self.note(spans, stored);
            if !stored {
                thread::sleep(Duration::from_millis(5));
            }
        }
        self.sent
    }

    async fn write_grpc(mut self, address: SocketAddr, stop: &AtomicBool, acknowledged: &AtomicU64) -> Sent {
        while !stop.load(Ordering::Relaxed) {
            let Ok(mut client) = TraceServiceClient::connect(format!("http://{address}")).await else {
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            };
            loop {
                let spans = self.next();
                let stored = client.export(request(&spans)).await.is_ok_and(|answer| {
                    answer.into_inner().partial_success.is_none_or(|part| part.rejected_spans == 0)
                });
                acknowledged.fetch_add(u64::from(stored), Ordering::Relaxed);
                self.note(spans, stored);
                if !stored || stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        self.sent
    }
}

fn request(spans: &[(Key, Span)]) -> ExportTraceServiceRequest {
    otlp::request("killed", spans.iter().map(|(_, span)| span.clone()).collect())
}

#[test]
fn acknowledged_spans_survive_fifty_kills() -> Result<()> {
    let seed = std::env::var("COATI_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(otlp::now_ns);
    println!("seed {seed}: set COATI_TEST_SEED to repeat it");
    let folder = tempfile::tempdir()?;
    let mut backend = Backend::start(folder.path(), &[])?;
    let stop = Arc::new(AtomicBool::new(false));
    let acknowledged = Arc::new(AtomicU64::new(0));

    let mut writers: Vec<thread::JoinHandle<Sent>> = Vec::new();
    for number in 0..HTTP_WRITERS {
        let (stop, acknowledged, address) = (Arc::clone(&stop), Arc::clone(&acknowledged), backend.otlp_http);
        writers.push(thread::spawn(move || Writer::new(number, seed).write_http(address, &stop, &acknowledged)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    writers.push(thread::spawn({
        let (stop, acknowledged, address) = (Arc::clone(&stop), Arc::clone(&acknowledged), backend.grpc);
        move || runtime.block_on(Writer::new(HTTP_WRITERS, seed).write_grpc(address, &stop, &acknowledged))
    }));

    let mut rng = Rng::with_seed(seed);
    let mut kills_under_ingest = 0;
    for kill in 0..KILLS {
        let before = acknowledged.load(Ordering::Relaxed);
        // Every fourth time it is killed while it starts.
        let limit = if kill % 4 == 3 { 60_000 } else { 300_000 };
        thread::sleep(Duration::from_micros(rng.u64(0..limit)));
        ensure!(backend.process.is_running(), "the backend ended by itself:\n{}", backend.process.output());
        kills_under_ingest += u32::from(acknowledged.load(Ordering::Relaxed) > before);
        backend.process.kill()?;
        if kill % 4 == 2 {
            backend.launch()?;
        } else {
            backend.restart().with_context(|| format!("start after kill {kill}"))?;
        }
    }
    stop.store(true, Ordering::Relaxed);
    let mut all = Sent::default();
    for writer in writers {
        let sent = writer.join().map_err(|_| anyhow::anyhow!("a writer panicked"))?;
        all.acknowledged.extend(sent.acknowledged);
        all.unanswered.extend(sent.unanswered);
        all.failed_requests += sent.failed_requests;
    }
    // Nothing is answered from memory that was there before.
    backend.process.kill()?;
    backend.restart()?;

    let spans = all.acknowledged.len();
    println!(
        "{KILLS} kills, {kills_under_ingest} of them with acknowledgements just before; {} requests and {spans} spans \
         acknowledged, {} requests without an answer",
        acknowledged.load(Ordering::Relaxed),
        all.failed_requests,
    );
    ensure!(kills_under_ingest >= KILLS / 2, "only {kills_under_ingest} kills came under ingest");
    ensure!(all.failed_requests >= u64::from(KILLS / 2), "hardly a request was under way at a kill");
    all.check(&backend)
}

impl Sent {
    /// Reads every trace back and compares each span with what was sent.
    fn check(&self, backend: &Backend) -> Result<()> {
        let traces: BTreeSet<u128> = self.acknowledged.keys().map(|(trace, _)| *trace).collect();
        let (mut lost, mut changed, mut twice, mut unknown, mut of_unanswered) = (0, 0, 0, 0, 0_u64);
        for trace in traces {
            let mut found = BTreeMap::<u64, Span>::new();
            for span in otlp::spans(backend, trace)? {
                let id = u64::from_be_bytes(span.span_id.as_slice().try_into()?);
                twice += u32::from(found.insert(id, span).is_some());
            }
            for ((_, id), span) in self.acknowledged.range((trace, 0)..=(trace, u64::MAX)) {
                match found.remove(id) {
                    None => lost += 1,
                    Some(stored) => changed += u32::from(stored.encode_to_vec() != span.encode_to_vec()),
                }
            }
            let (expected, others): (Vec<_>, Vec<_>) =
                found.into_keys().partition(|&id| self.unanswered.contains(&(trace, id)));
            of_unanswered += expected.len() as u64;
            unknown += others.len();
        }
        let found = (lost, changed, twice, unknown);
        ensure!(
            found == (0, 0, 0, 0),
            "of the acknowledged spans {lost} are lost and {changed} changed; {twice} are there twice, {unknown} were \
             never sent\n{}",
            backend.process.output()
        );
        // Search sees the same spans, and the whole traces of unanswered requests besides.
        let (least, most) =
            (self.acknowledged.len() as u64 + of_unanswered, (self.acknowledged.len() + self.unanswered.len()) as u64);
        let counted = backend.count("{ resource.service.name = \"killed\" }")?;
        ensure!((least..=most).contains(&counted), "search counts {counted} spans, not {least} to {most}");
        Ok(())
    }
}
