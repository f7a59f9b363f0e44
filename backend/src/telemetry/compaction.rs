//! What compaction and retention count, under Tempo's names.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::TenantLabels;

/// Labels of what a compaction wrote.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct LevelLabels {
    /// Level of the new block.
    pub level: u8,
}

/// What `compact` counts.
#[derive(Clone, Debug)]
pub struct CompactionMetrics {
    /// Blocks that became part of a new one.
    pub blocks: Family<LevelLabels, Counter>,
    /// Bytes of new blocks.
    pub bytes_written: Family<LevelLabels, Counter>,
    /// Traces of new blocks.
    pub objects_written: Family<LevelLabels, Counter>,
    /// Traces that were in more than one block.
    pub objects_combined: Family<LevelLabels, Counter>,
    /// Spans that had come again, and are there once now.
    pub spans_deduped: Counter,
    /// Traces that went to that of their caller on another node.
    pub united: Counter,
    /// Blocks of jobs that are due.
    pub outstanding_blocks: Family<TenantLabels, Gauge>,
    /// Jobs that failed.
    pub errors: Counter,
    /// Blocks that retention took from the list.
    pub retention_marked: Counter,
    /// Seconds that a deletion took, where there was something to delete.
    pub retention_seconds: Histogram,
    /// Deletions that failed.
    pub retention_errors: Counter,
}

impl Default for CompactionMetrics {
    fn default() -> Self {
        Self {
            blocks: Family::default(),
            bytes_written: Family::default(),
            objects_written: Family::default(),
            objects_combined: Family::default(),
            spans_deduped: Counter::default(),
            united: Counter::default(),
            outstanding_blocks: Family::default(),
            errors: Counter::default(),
            retention_marked: Counter::default(),
            retention_seconds: Histogram::new(exponential_buckets(0.001, 4.0, 8)),
            retention_errors: Counter::default(),
        }
    }
}

impl CompactionMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let Self {
            blocks,
            bytes_written,
            objects_written,
            objects_combined,
            spans_deduped,
            united,
            outstanding_blocks,
            errors,
            retention_marked,
            retention_seconds,
            retention_errors,
        } = self.clone();
        registry.register("tempodb_compaction_blocks", "Blocks that became part of a new one", blocks);
        registry.register("tempodb_compaction_bytes_written", "Bytes of new blocks", bytes_written);
        registry.register("tempodb_compaction_objects_written", "Traces of new blocks", objects_written);
        let help = "Traces that were in more than one block";
        registry.register("tempodb_compaction_objects_combined", help, objects_combined);
        let help = "Spans that had come again and are there once now";
        registry.register("tempodb_compaction_spans_deduped", help, spans_deduped);
        let help = "Traces of a node that were united with that of their caller, which had come late";
        registry.register("coati_backend_compaction_united", help, united);
        registry.register("tempodb_compaction_outstanding_blocks", "Blocks of jobs that are due", outstanding_blocks);
        registry.register("tempodb_compaction_errors", "Compactions that failed", errors);
        let help = "Blocks that retention took from the list";
        registry.register("tempodb_retention_marked_for_deletion", help, retention_marked);
        registry.register("tempodb_retention_duration_seconds", "Seconds a deletion took", retention_seconds);
        registry.register("tempodb_retention_errors", "Deletions that failed", retention_errors);
    }
}
