//! The way of a request: check → log → live set and catalog → acknowledgement.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceResponse};
use tracing::{debug, error};

use super::ExportError;
use super::budget::{Budget, Share};
use super::prepare::{Format, Prepared, prepare};
use super::validate::Rejections;
use crate::catalog::{Seen, TagIndex, Unknown, Watermark};
use crate::generator::Generator;
use crate::live::{Calls, LiveSet, Trace};
use crate::telemetry::{DiscardedLabels, ReceiveMetrics, ReceiverLabels, RefusedLabels, TenantLabels};
use crate::wal::{Entry, Wal};

/// Requests of this size and more are worked on where they do not hold other connections up.
const LARGE_BYTES: usize = 64 << 10;

/// Bounds of [`Ingest`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IngestConfig {
    /// Largest request, bytes after decompression.
    pub max_request_bytes: usize,
    /// Bytes of requests that may be read or in work at once; more is refused until some are done.
    pub max_in_flight_bytes: usize,
    /// Time within which a request must have come.
    pub read_timeout: Duration,
}

impl Default for IngestConfig {
    /// 20 MiB, 64 MiB in work, 30 seconds.
    fn default() -> Self {
        Self { max_request_bytes: 20 << 20, max_in_flight_bytes: 64 << 20, read_timeout: Duration::from_secs(30) }
    }
}

/// Where requests go, and who is told how far that is.
#[derive(Clone)]
pub struct Stages {
    /// The log.
    pub wal: Arc<Wal>,
    /// Traces in memory.
    pub live: Arc<LiveSet>,
    /// Names and values of tags.
    pub tags: Arc<TagIndex>,
    /// Requests of the log that are in the live set.
    pub applied: Arc<Watermark>,
    /// Requests of the log that are in the catalog.
    pub indexed: Arc<Watermark>,
}

/// Takes requests to the log, the live set and the catalog, in this order.
///
/// What is acknowledged is on disk *and* visible.
pub struct Ingest {
    config: IngestConfig,
    stages: Stages,
    /// Makes metrics of spans, if any are wanted.
    generator: Option<Arc<Generator>>,
    budget: Budget,
    metrics: ReceiveMetrics,
    /// Nanoseconds since the epoch.
    clock: fn() -> u64,
}

/// What the live set and the catalog want to know of a request. It is looked for before the request goes to the log: when it
/// is there, its bytes have left the processor's caches.
struct Found {
    calls: Calls,
    unknown: Unknown,
}

impl Ingest {
    /// Wires the stages; `clock` gives nanoseconds since the epoch.
    pub fn new(config: IngestConfig, stages: Stages, metrics: ReceiveMetrics, clock: fn() -> u64) -> Self {
        let budget = Budget::new(config.max_in_flight_bytes, metrics.in_flight_bytes.clone());
        Self { config, stages, generator: None, budget, metrics, clock }
    }

    /// Counts every span that is in the log.
    #[must_use]
    pub fn with_generator(self, generator: Option<Arc<Generator>>) -> Self {
        Self { generator, ..self }
    }

    /// Largest request, bytes after decompression.
    pub fn max_request_bytes(&self) -> usize {
        self.config.max_request_bytes
    }

    /// Time within which a request must have come.
    pub(super) fn read_timeout(&self) -> Duration {
        self.config.read_timeout
    }

    /// What may be in memory of requests.
    pub(super) fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Stores the spans of a request that is already decompressed.
    pub async fn export(
        self: &Arc<Self>,
        tenant: Arc<str>,
        body: Bytes,
        format: Format,
    ) -> Result<ExportTraceServiceResponse, ExportError> {
        self.export_read(tenant, body, format, self.budget.share()).await
    }

    /// As [`Self::export`], with what the request has of the budget already.
    pub(super) async fn export_read(
        self: &Arc<Self>,
        tenant: Arc<str>,
        body: Bytes,
        format: Format,
        share: Share,
    ) -> Result<ExportTraceServiceResponse, ExportError> {
        share.grow_to(body.len()).inspect_err(|error| self.refused(error.reason()))?;
        let ingest = Arc::clone(self);
        // In a task of its own, so that a sender who hangs up cannot stop it between the log and the live set.
        let stored = tokio::spawn(async move {
            let outcome = ingest.store(&tenant, body, format).await;
            drop(share);
            outcome
        });
        let outcome = stored.await.unwrap_or_else(|error| {
            error!(%error, "work on a request broke off");
            Err(ExportError::Internal)
        });
        outcome.inspect_err(|error| self.refused(error.reason()))
    }

    /// Counts a request that was refused whole.
    pub(super) fn refused(&self, reason: &str) {
        self.metrics.refused_requests.get_or_create(&RefusedLabels { reason: reason.to_owned() }).inc();
    }

    async fn store(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        body: Bytes,
        format: Format,
    ) -> Result<ExportTraceServiceResponse, ExportError> {
        let bytes = body.len();
        let (prepared, found) = self.prepare(tenant, body, format).await?;
        let Prepared { traces, spans, rejections, payload, compressed, raw_len } = prepared;
        if !traces.is_empty() {
            let received_ns = (self.clock)();
            let entry = Entry { tenant: Arc::clone(tenant), received_ns, raw_len, compressed, payload };
            let kept = self.keep(tenant, (traces, found), entry, bytes).await;
            kept.inspect_err(|_| self.received(0, spans))?;
        }
        self.received(spans.saturating_sub(rejections.total()), rejections.total());
        self.count(tenant, bytes as u64, spans, &rejections);
        Ok(response(&rejections))
    }

    /// Writes a request of so many bytes to the log, and makes its traces and tags visible.
    async fn keep(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        (traces, found): (Vec<Trace>, Found),
        entry: Entry,
        bytes: usize,
    ) -> Result<(), ExportError> {
        let full = || ExportError::MemoryFull { limit: self.stages.live.limits().total_bytes };
        let room = self.stages.live.reserve(&traces).ok_or_else(full)?;
        let received_ns = entry.received_ns;
        let sequence = self.stages.wal.append(entry).await.map_err(ExportError::Wal)?;
        let (ingest, owner) = (Arc::clone(self), Arc::clone(tenant));
        let fresh = heavy(bytes, move || ingest.apply(&owner, (traces, found), received_ns, sequence)).await?;
        drop(room);
        if self.record(tenant, fresh).await {
            self.stages.indexed.finish(sequence);
        }
        Ok(())
    }

    /// Counts spans that were stored, and those that were not.
    fn received(&self, accepted: u64, refused: u64) {
        let labels = ReceiverLabels { receiver: "otlp" };
        self.metrics.accepted_spans.get_or_create(&labels).inc_by(accepted as i64);
        self.metrics.refused_spans.get_or_create(&labels).inc_by(refused as i64);
    }

    /// A request, ready for the log, and what was found in it.
    async fn prepare(
        self: &Arc<Self>,
        tenant: &Arc<str>,
        body: Bytes,
        format: Format,
    ) -> Result<(Prepared, Found), ExportError> {
        let bytes = body.len();
        if self.stages.live.is_full() {
            // Decoding it would be for nothing.
            return Err(ExportError::MemoryFull { limit: self.stages.live.limits().total_bytes });
        }
        let (ingest, tenant) = (Arc::clone(self), Arc::clone(tenant));
        let work = move || {
            let Stages { live, tags, .. } = &ingest.stages;
            let prepared = prepare(body, format, live, &tenant)?;
            let traces = &prepared.traces;
            let found = Found { calls: Calls::of(traces), unknown: tags.unknown(&tenant, traces) };
            Ok((prepared, found))
        };
        heavy(bytes, work).await?
    }

    /// Makes a request that is in the log visible; returns what is new to the catalog.
    fn apply(
        &self,
        tenant: &str,
        (traces, Found { calls, unknown }): (Vec<Trace>, Found),
        received_ns: u64,
        sequence: u64,
    ) -> Vec<Seen> {
        let Stages { live, tags, applied, .. } = &self.stages;
        let fresh = tags.add(tenant, &traces, unknown);
        if let Some(generator) = &self.generator {
            generator.count(tenant, &traces, received_ns, sequence);
        }
        live.insert_with(tenant, (traces, calls), received_ns, sequence);
        applied.finish(sequence);
        fresh
    }

    /// True if the catalog has all of it. If not, the frame is indexed again at the next start.
    async fn record(&self, tenant: &Arc<str>, fresh: Vec<Seen>) -> bool {
        if self.stages.tags.note(tenant, &fresh) {
            return true;
        }
        let (tags, tenant) = (Arc::clone(&self.stages.tags), Arc::clone(tenant));
        match tokio::task::spawn_blocking(move || tags.record(&tenant, &fresh)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                // The catalog itself warns, and not for each request.
                debug!(error = %crate::telemetry::chain(&error), "tags not indexed");
                false
            }
            Err(error) => {
                error!(%error, "tags not indexed");
                false
            }
        }
    }

    fn count(&self, tenant: &str, bytes: u64, spans: u64, rejections: &Rejections) {
        let labels = TenantLabels { tenant: tenant.to_owned() };
        self.metrics.spans_received.get_or_create(&labels).inc_by(spans);
        self.metrics.bytes_received.get_or_create(&labels).inc_by(bytes);
        for (reason, spans) in rejections.iter() {
            let labels = DiscardedLabels { reason: reason.name().to_owned(), tenant: tenant.to_owned() };
            self.metrics.discarded_spans.get_or_create(&labels).inc_by(spans);
        }
    }
}

/// Does the work on a request of this size where it holds nobody up.
async fn heavy<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T, ExportError> {
    if bytes < LARGE_BYTES {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_| ExportError::Internal)
}

/// `partial_success` is present always, as Tempo has it, and says something only if spans were rejected.
fn response(rejections: &Rejections) -> ExportTraceServiceResponse {
    let partial_success =
        ExportTracePartialSuccess { rejected_spans: rejections.total() as i64, error_message: rejections.to_string() };
    ExportTraceServiceResponse { partial_success: Some(partial_success) }
}
