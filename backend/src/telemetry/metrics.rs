//! Every metric of the backend, one group a stage; each stage is handed its group.

use std::fmt;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::{
    AccessMetrics, BlocksMetrics, CompactionMetrics, GeneratorMetrics, QueryLabels, RequestLabels, StoreMetrics,
};

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Labels of what belongs to a tenant.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct TenantLabels {
    /// The tenant.
    pub tenant: String,
}

/// Labels of spans that were not stored.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct DiscardedLabels {
    /// Why, in Tempo's words where it has one.
    pub reason: String,
    /// The tenant.
    pub tenant: String,
}

/// Labels of export requests that were refused whole.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct RefusedLabels {
    /// Why: `too_large`, `malformed`, `media_type`, `tenant`, `overloaded`, `memory`, `stalled`, `log`.
    pub reason: String,
}

/// Label of how spans came.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct ReceiverLabels {
    /// `otlp`.
    pub receiver: &'static str,
}

/// What `receive` counts.
#[derive(Clone, Debug, Default)]
pub struct ReceiveMetrics {
    /// Spans of acknowledged requests, rejected ones included.
    pub spans_received: Family<TenantLabels, Counter>,
    /// Bytes of acknowledged requests, decompressed.
    pub bytes_received: Family<TenantLabels, Counter>,
    /// Spans that were rejected.
    pub discarded_spans: Family<DiscardedLabels, Counter>,
    /// Spans that were stored; counted as a gauge, because Tempo's name is none of a counter.
    pub accepted_spans: Family<ReceiverLabels, Gauge>,
    /// Spans that were rejected, or refused with their request after it was read; likewise.
    pub refused_spans: Family<ReceiverLabels, Gauge>,
    /// Requests that were refused whole.
    pub refused_requests: Family<RefusedLabels, Counter>,
    /// Bytes of requests that are being worked on.
    pub in_flight_bytes: Gauge,
}

/// What `wal` counts.
#[derive(Clone, Debug)]
pub struct WalMetrics {
    /// Size of all segments.
    pub bytes: Gauge,
    /// Number of segments.
    pub segments: Gauge,
    /// Seconds that a group commit took, write and sync.
    pub commit_seconds: Histogram,
    /// Group commits that failed; their requests were refused.
    pub failed_commits: Counter,
    /// Segments that were given up because a sync failed.
    pub poisoned_segments: Counter,
    /// Segments that were deleted because everything in them is in blocks.
    pub deleted_segments: Counter,
    /// Damaged ranges that were found and set aside.
    pub damaged_ranges: Counter,
    /// Size of all copies of damaged ranges.
    pub quarantine_bytes: Gauge,
    /// Bytes of torn ends that were cut off.
    pub truncated_bytes: Counter,
}

impl Default for WalMetrics {
    fn default() -> Self {
        Self {
            bytes: Gauge::default(),
            segments: Gauge::default(),
            commit_seconds: Histogram::new(exponential_buckets(0.000_1, 2.0, 16)),
            failed_commits: Counter::default(),
            poisoned_segments: Counter::default(),
            deleted_segments: Counter::default(),
            damaged_ranges: Counter::default(),
            quarantine_bytes: Gauge::default(),
            truncated_bytes: Counter::default(),
        }
    }
}

/// What `live` holds, and what `cut` does with it.
#[derive(Clone, Debug)]
pub struct LiveMetrics {
    /// Traces in memory.
    pub traces: Gauge,
    /// Estimate of their memory.
    pub bytes: Gauge,
    /// Traces that were begun.
    pub created: Counter,
    /// Blocks that were begun.
    pub blocks_cut: Counter,
    /// Blocks that were written and committed.
    pub blocks_completed: Counter,
    /// Seconds from the begin of a cut to its commit.
    pub completion_seconds: Histogram,
    /// Cuts that failed; their traces stayed in memory and were tried again.
    pub failed_completions: Counter,
    /// Traces of a node whose caller, on another one, was found.
    pub stitch_united: Counter,
    /// Those whose caller did not come before they were stored: it is outside.
    pub stitch_outside: Counter,
    /// Those of them whose caller came after that.
    pub stitch_late: Counter,
}

impl Default for LiveMetrics {
    fn default() -> Self {
        Self {
            traces: Gauge::default(),
            bytes: Gauge::default(),
            created: Counter::default(),
            blocks_cut: Counter::default(),
            blocks_completed: Counter::default(),
            completion_seconds: Histogram::new(exponential_buckets(0.01, 2.0, 12)),
            failed_completions: Counter::default(),
            stitch_united: Counter::default(),
            stitch_outside: Counter::default(),
            stitch_late: Counter::default(),
        }
    }
}

/// What `catalog` counts.
#[derive(Clone, Debug, Default)]
pub struct CatalogMetrics {
    /// Values (and names) that are not indexed because their tag (or scope) has too many.
    pub over_limit: Counter,
    /// Values that are not indexed because they are too long.
    pub too_long: Counter,
    /// Times that the catalog could not be opened and was begun anew.
    pub rebuilds: Counter,
    /// Writes that failed.
    pub failed_writes: Counter,
}

/// All groups and the registry that they are in.
pub struct Metrics {
    /// Of `access`.
    pub access: AccessMetrics,
    /// Of `receive`.
    pub receive: ReceiveMetrics,
    /// Of `wal`.
    pub wal: WalMetrics,
    /// Of `live`.
    pub live: LiveMetrics,
    /// Of `catalog`.
    pub catalog: CatalogMetrics,
    /// Of `blocks`.
    pub blocks: BlocksMetrics,
    /// Of `store`.
    pub store: StoreMetrics,
    /// Of `compact`.
    pub compaction: CompactionMetrics,
    /// Of `generator`.
    pub generator: GeneratorMetrics,
    /// Seconds from a request's arrival to its answer, every listener.
    pub request_duration: Family<RequestLabels, Histogram>,
    /// Queries, by what they ask for.
    pub queries: Family<QueryLabels, Counter>,
    registry: Registry,
}

impl Metrics {
    /// All metrics at zero, registered.
    pub fn new() -> Self {
        let metrics = Self {
            access: AccessMetrics::default(),
            receive: ReceiveMetrics::default(),
            wal: WalMetrics::default(),
            live: LiveMetrics::default(),
            catalog: CatalogMetrics::default(),
            blocks: BlocksMetrics::default(),
            store: StoreMetrics::default(),
            compaction: CompactionMetrics::default(),
            generator: GeneratorMetrics::default(),
            request_duration: Family::new_with_constructor(|| {
                Histogram::new([0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
            }),
            queries: Family::default(),
            registry: Registry::default(),
        };
        Self { registry: metrics.register(), ..metrics }
    }

    /// All metrics in the `OpenMetrics` text format.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn register(&self) -> Registry {
        let mut registry = Registry::default();

        let build = [
            ("version", env!("CARGO_PKG_VERSION")),
            ("revision", option_env!("COATI_REVISION").unwrap_or_default()),
            ("branch", option_env!("COATI_BRANCH").unwrap_or_default()),
        ];
        let build_info = Family::<Vec<(String, String)>, Gauge>::default();
        let labels = build.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        build_info.get_or_create(&labels).set(1);
        registry.register("tempo_build_info", "Version of the program; the value is 1", build_info);
        let help = "Seconds from a request's arrival to its answer";
        registry.register("tempo_request_duration_seconds", help, self.request_duration.clone());

        let help = "Queries, by what is asked for and how they ended";
        registry.register("tempo_query_frontend_queries", help, self.queries.clone());

        let ReceiveMetrics {
            spans_received,
            bytes_received,
            discarded_spans,
            accepted_spans,
            refused_spans,
            refused_requests,
            in_flight_bytes,
        } = self.receive.clone();
        let help = "Spans of acknowledged export requests";
        registry.register("tempo_distributor_spans_received", help, spans_received);
        let help = "Bytes of acknowledged export requests, decompressed";
        registry.register("tempo_distributor_bytes_received", help, bytes_received);
        registry.register("tempo_discarded_spans", "Spans that were rejected", discarded_spans);
        // These only rise. They are gauges because a counter's name would end with `_total`, which Tempo's do not.
        registry.register("tempo_receiver_accepted_spans", "Spans that were stored", accepted_spans);
        let help = "Spans that were rejected, or refused with their request after it was read";
        registry.register("tempo_receiver_refused_spans", help, refused_spans);
        let help = "Export requests that were refused whole";
        registry.register("coati_backend_refused_requests", help, refused_requests);
        let help = "Bytes of export requests in work";
        registry.register("coati_backend_in_flight_bytes", help, in_flight_bytes);

        let WalMetrics {
            bytes,
            segments,
            commit_seconds,
            failed_commits,
            poisoned_segments,
            deleted_segments,
            damaged_ranges,
            quarantine_bytes,
            truncated_bytes,
        } = self.wal.clone();
        registry.register("coati_backend_wal_bytes", "Size of the log", bytes);
        registry.register("coati_backend_wal_segments", "Segments of the log", segments);
        registry.register("coati_backend_wal_commit_seconds", "Seconds a group commit took", commit_seconds);
        registry.register("coati_backend_wal_failed_commits", "Group commits that failed", failed_commits);
        let help = "Segments given up because a sync failed";
        registry.register("coati_backend_wal_poisoned_segments", help, poisoned_segments);
        registry.register("coati_backend_wal_deleted_segments", "Segments deleted, all in blocks", deleted_segments);
        registry.register("coati_backend_wal_damaged_ranges", "Damaged ranges set aside", damaged_ranges);
        let help = "Size of all copies of damaged ranges";
        registry.register("coati_backend_wal_quarantine_bytes", help, quarantine_bytes);
        registry.register("coati_backend_wal_truncated_bytes", "Bytes of torn ends cut off", truncated_bytes);

        let LiveMetrics {
            traces,
            bytes,
            created,
            blocks_cut,
            blocks_completed,
            completion_seconds,
            failed_completions,
            stitch_united,
            stitch_outside,
            stitch_late,
        } = self.live.clone();
        registry.register("tempo_live_store_live_traces", "Traces in memory", traces);
        registry.register("tempo_live_store_live_trace_bytes", "Estimated memory of live traces", bytes);
        registry.register("tempo_live_store_traces_created", "Traces begun", created);
        registry.register("tempo_live_store_blocks_cut", "Blocks begun", blocks_cut);
        registry.register("tempo_live_store_blocks_completed", "Blocks written and committed", blocks_completed);
        let help = "Seconds from the begin of a cut to its commit";
        registry.register("tempo_live_store_completion_duration_seconds", help, completion_seconds);
        let help = "Cuts that failed and were tried again";
        registry.register("tempo_live_store_failed_completions", help, failed_completions);
        let help = "Traces of a node that were united with that of their caller on another one";
        registry.register("coati_backend_stitch_united", help, stitch_united);
        let help = "Traces of a node that were stored as called from outside";
        registry.register("coati_backend_stitch_outside", help, stitch_outside);
        let help = "Traces of a node that were stored as called from outside before their caller came";
        registry.register("coati_backend_stitch_late", help, stitch_late);

        let CatalogMetrics { over_limit, too_long, rebuilds, failed_writes } = self.catalog.clone();
        let help = "Names and values not indexed because there are too many";
        registry.register("coati_backend_catalog_over_limit", help, over_limit);
        let help = "Values not indexed because they are too long";
        registry.register("coati_backend_catalog_too_long", help, too_long);
        registry.register("coati_backend_catalog_rebuilds", "Times the catalog was begun anew", rebuilds);
        registry.register("coati_backend_catalog_failed_writes", "Writes that failed", failed_writes);

        self.access.register(&mut registry);
        self.blocks.register(&mut registry);
        self.store.register(&mut registry);
        self.compaction.register(&mut registry);
        self.generator.register(&mut registry);
        registry
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
