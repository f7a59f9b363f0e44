//! From the log into memory, at start: what is in no block yet, oldest first.
//!
//! Memory stays bounded on the way, because the cutter runs meanwhile: where there is no room the replay waits for it.

use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, error, info};

use super::ServerError;
use crate::catalog::{TagIndex, Watermark};
use crate::generator::Generator;
use crate::live::{Calls, LiveSet, Trace, group_encoded};
use crate::telemetry::chain;
use crate::wal::{Frame, Log, Unpacker};

/// Bytes of requests that are decoded together; those of three rounds are in memory besides what is live.
const ROUND_BYTES: usize = 4 << 20;

/// Threads that decode.
const DECODERS: usize = 2;

/// Time between looks whether there is room again.
const WAIT: Duration = Duration::from_millis(5);

/// Where the log is replayed to.
pub(super) struct Replay<'a> {
    pub(super) live: &'a LiveSet,
    pub(super) tags: &'a TagIndex,
    /// Told what is in the live set.
    pub(super) applied: &'a Watermark,
    /// Set to end it early.
    pub(super) stopping: &'a AtomicBool,
    /// Frames up to this number are in the catalog already.
    pub(super) indexed: u64,
}

/// What a replay has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Replayed {
    /// Requests that were read.
    pub(super) frames: u64,
    /// Their size before compression.
    pub(super) raw_bytes: u64,
    /// Whether the catalog could not be told of all of them.
    pub(super) index_failed: bool,
    /// Whether it ended before the log did.
    pub(super) stopped: bool,
}

/// The spans of a request, and what stitching wants to know of them.
type Decoded = (Vec<Trace>, Calls);

/// A frame that owns its bytes.
struct Request {
    sequence: u64,
    received_ns: u64,
    tenant: Arc<str>,
    raw_len: u32,
    compressed: bool,
    payload: Vec<u8>,
}

impl Replay<'_> {
    /// Reads every frame from number `from` on.
    pub(super) fn run(&self, log: &Log, from: u64) -> Result<Replayed, ServerError> {
        let started = Instant::now();
        let replayed = thread::scope(|scope| {
            // While one round is inserted the next one is read and decoded.
            let (to_insert, rounds) = sync_channel::<Vec<(Request, Decoded)>>(1);
            let insert_all =
                move || rounds.into_iter().flatten().all(|(request, decoded)| self.insert(&request, decoded));
            let inserting = scope.spawn(insert_all);
            let replayed = self.read(log, from, &to_insert);
            drop(to_insert);
            let all_inserted = inserting.join().map_err(|_| panicked())?;
            Ok(Replayed { stopped: !all_inserted, ..replayed? })
        })?;
        if !replayed.stopped {
            // What is damaged is set aside, and does not come any more.
            self.applied.finish_below(log.next_sequence());
        }
        let seconds = started.elapsed().as_secs_f64();
        let Replayed { frames, raw_bytes, .. } = replayed;
        info!(from, frames, bytes = raw_bytes, seconds, traces = self.live.stats().traces, "log replayed");
        Ok(replayed)
    }

    /// Reads and decodes the log; ends early when nothing is inserted any more.
    fn read(
        &self,
        log: &Log,
        from: u64,
        to_insert: &SyncSender<Vec<(Request, Decoded)>>,
    ) -> Result<Replayed, ServerError> {
        let mut replayed = Replayed::default();
        let (mut round, mut round_bytes) = (Vec::new(), 0);
        let flow = log.oldest_first(from, |frame| {
            replayed.frames += 1;
            replayed.raw_bytes += u64::from(frame.raw_len);
            round_bytes += frame.raw_len as usize;
            round.push(Request::of(frame));
            if round_bytes < ROUND_BYTES {
                return ControlFlow::Continue(());
            }
            round_bytes = 0;
            let sent = self.decode_round(std::mem::take(&mut round), &mut replayed).map(|round| to_insert.send(round));
            match sent {
                Ok(Ok(())) => ControlFlow::Continue(()),
                // Nothing is inserted any more.
                Ok(Err(_)) => ControlFlow::Break(Ok(())),
                Err(error) => ControlFlow::Break(Err(error)),
            }
        });
        match flow.map_err(ServerError::Log)? {
            ControlFlow::Break(outcome) => outcome?,
            ControlFlow::Continue(()) => {
                let decoded = self.decode_round(round, &mut replayed)?;
                // Nobody takes it where the replay is to end early.
                let _stopped = to_insert.send(decoded);
            }
        }
        Ok(replayed)
    }

    /// The spans of requests, which stay in their order.
    fn decode_round(
        &self,
        round: Vec<Request>,
        replayed: &mut Replayed,
    ) -> Result<Vec<(Request, Decoded)>, ServerError> {
        let part = round.len().div_ceil(DECODERS).max(1);
        let decoded = thread::scope(|scope| {
            let decoders: Vec<_> = round.chunks(part).map(|part| scope.spawn(|| self.decode(part))).collect();
            decoders.into_iter().map(thread::ScopedJoinHandle::join).collect::<Result<Vec<_>, _>>()
        });
        let decoded = decoded.map_err(|_| panicked())?;
        replayed.index_failed |= decoded.iter().any(|(_, indexed)| !indexed);
        Ok(round.into_iter().zip(decoded.into_iter().flat_map(|(decoded, _)| decoded)).collect())
    }

    /// The spans of each request, and whether the catalog was told of all of them.
    fn decode(&self, requests: &[Request]) -> (Vec<Decoded>, bool) {
        let (mut unpacker, mut indexed) = (Unpacker::default(), true);
        let decoded = requests.iter().map(|request| {
            let traces = request.decode(&mut unpacker);
            if request.sequence > self.indexed {
                indexed &= observe(self.tags, &request.tenant, &traces);
            }
            // Here, while the spans are in the caches.
            let calls = Calls::of(&traces);
            (traces, calls)
        });
        (decoded.collect(), indexed)
    }

    /// False if it is to end before.
    fn insert(&self, request: &Request, (traces, calls): Decoded) -> bool {
        let room = loop {
            if self.stopping.load(Ordering::Relaxed) {
                return false;
            }
            match self.live.reserve(&traces) {
                Some(room) => break room,
                None => thread::sleep(WAIT),
            }
        };
        let Request { sequence, received_ns, ref tenant, .. } = *request;
        self.live.insert_with(tenant, (traces, calls), received_ns, sequence);
        drop(room);
        self.applied.finish_below(sequence + 1);
        true
    }
}

impl Request {
    fn of(frame: &Frame<'_>) -> Self {
        Self {
            sequence: frame.sequence,
            received_ns: frame.received_ns,
            tenant: frame.tenant.into(),
            raw_len: frame.raw_len,
            compressed: frame.compressed,
            payload: frame.payload.to_vec(),
        }
    }

    fn decode(&self, unpacker: &mut Unpacker) -> Vec<Trace> {
        let Self { sequence, received_ns, tenant, raw_len, compressed, payload } = self;
        let frame = Frame {
            sequence: *sequence,
            received_ns: *received_ns,
            tenant,
            raw_len: *raw_len,
            compressed: *compressed,
            payload,
        };
        let traces = unpacker
            .request(&frame)
            .map_err(|error| chain(&error))
            .and_then(|bytes| group_encoded(bytes).map_err(|error| chain(&error)));
        traces.unwrap_or_else(|error| {
            error!(sequence, error, "frame of the log is sound but cannot be decoded");
            Vec::new()
        })
    }
}

/// Counts what the log has from number `from` on in the metrics that are made of spans.
pub(super) fn count(log: &Log, generator: &Generator, from: u64) -> Result<(), ServerError> {
    let mut unpacker = Unpacker::default();
    let flow = log.oldest_first(from, |frame| {
        let request = Request::of(frame);
        generator.count(&request.tenant, &request.decode(&mut unpacker), request.received_ns, request.sequence);
        ControlFlow::<()>::Continue(())
    });
    flow.map_err(ServerError::Log).map(|_| ())
}

fn panicked() -> ServerError {
    ServerError::Thread { what: "the replay", source: io::Error::other("one of its threads panicked") }
}

/// Tells the catalog of spans; false if it fails.
pub(super) fn observe<'a>(tags: &TagIndex, tenant: &str, traces: impl IntoIterator<Item = &'a Trace>) -> bool {
    let fresh = tags.observe(tenant, traces);
    let recorded = tags.record(tenant, &fresh);
    recorded.inspect_err(|error| debug!(error = %chain(error), "tags not indexed")).is_ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::catalog::{IndexLimits, MemoryCatalog};
    use crate::live::{Limits, TraceId};
    use crate::telemetry::{CatalogMetrics, WalMetrics};
    use crate::wal::{Entry, RealDisk, Wal, WalConfig};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;

    fn request(trace: u8, name: &str) -> Vec<u8> {
        let span = Span { trace_id: vec![trace; 16], span_id: vec![1; 8], name: name.to_owned(), ..Span::default() };
        let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        ExportTraceServiceRequest { resource_spans: vec![resource] }.encode_to_vec()
    }

    /// A log with these requests, by one tenant, received in nanosecond 1, 2, ….
    async fn log(dir: &std::path::Path, requests: &[Vec<u8>]) -> Log {
        let open = || Log::open(dir, Arc::new(RealDisk), WalMetrics::default()).unwrap();
        let wal = Wal::start(open(), WalConfig { segment_bytes: 1_000, max_bytes: u64::MAX }).unwrap();
        for (request, received_ns) in requests.iter().zip(1..) {
            let raw_len = request.len() as u32;
            let payload = request.clone().into();
            let entry = Entry { tenant: "t".into(), received_ns, raw_len, compressed: false, payload };
            wal.append(entry).await.unwrap();
        }
        wal.close();
        open()
    }

    fn tags() -> TagIndex {
        let store = Arc::new(MemoryCatalog::default());
        TagIndex::open(store, IndexLimits::default(), CatalogMetrics::default()).unwrap()
    }

    #[rstest]
    #[case::from_the_start(1, &["a", "b", "c"])]
    #[case::from_the_checkpoint(3, &["c"])]
    #[case::nothing_left(4, &[])]
    #[tokio::test]
    async fn frames_from_the_checkpoint_on_are_live_in_their_order(#[case] from: u64, #[case] expected: &[&str]) {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path(), &["a", "b", "c"].map(|name| request(1, name))).await;
        let (live, tags, applied) = (LiveSet::new(Limits::default()), tags(), Watermark::new(from));
        let stopping = AtomicBool::new(false);
        let replay = Replay { live: &live, tags: &tags, applied: &applied, stopping: &stopping, indexed: 0 };
        let replayed = replay.run(&log, from).unwrap();
        assert_eq!(replayed.frames, expected.len() as u64);
        assert_eq!(applied.below(), 4);
        let trace = live.trace("t", &TraceId([1; 16]));
        let spans = trace.iter().flat_map(|trace| &trace.spans);
        assert_eq!(spans.map(|span| span.view().name.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!(live.first_sequence(), (!expected.is_empty()).then_some(from));
    }

    /// The cutter makes room while the replay goes on, and nothing is dropped.
    #[tokio::test]
    async fn a_log_larger_than_memory_waits_for_room() {
        let dir = tempfile::tempdir().unwrap();
        let requests: Vec<_> = (0..100).map(|trace| request(trace, &"x".repeat(100_000))).collect();
        let log = log(dir.path(), &requests).await;
        let live = LiveSet::new(Limits { total_bytes: 1_000_000, trace_bytes: usize::MAX });
        let (tags, applied, stopping) = (tags(), Watermark::new(1), AtomicBool::new(false));
        let replay = Replay { live: &live, tags: &tags, applied: &applied, stopping: &stopping, indexed: 0 };
        let mut cut_traces = 0;
        thread::scope(|scope| {
            let replaying = scope.spawn(|| replay.run(&log, 1).unwrap());
            while !replaying.is_finished() || live.stats().traces > 0 {
                assert!(live.stats().bytes <= 1_000_000);
                let cut = live.cut(|_| true);
                cut_traces += cut.trace_count();
                cut.commit();
            }
        });
        assert_eq!((cut_traces, applied.below()), (100, 101));
    }

    #[tokio::test]
    async fn a_stop_ends_it_and_what_was_not_read_does_not_count_as_read() {
        let dir = tempfile::tempdir().unwrap();
        let log = log(dir.path(), &[request(1, "a"), request(2, "b")]).await;
        let live = LiveSet::new(Limits { total_bytes: 1, trace_bytes: usize::MAX });
        let (tags, applied, stopping) = (tags(), Watermark::new(1), AtomicBool::new(false));
        let replay = Replay { live: &live, tags: &tags, applied: &applied, stopping: &stopping, indexed: 0 };
        let replayed = thread::scope(|scope| {
            let replaying = scope.spawn(|| replay.run(&log, 1).unwrap());
            while live.stats().traces == 0 {
                thread::yield_now();
            }
            stopping.store(true, Ordering::Relaxed);
            replaying.join().unwrap()
        });
        assert!(replayed.stopped);
        assert_eq!((live.stats().traces, applied.below()), (1, 2));
    }
}
