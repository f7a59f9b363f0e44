//! What `blocks` counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::TenantLabels;

/// Labels of what the store holds.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct BackendLabels {
    /// The tenant.
    pub tenant: String,
    /// `live`: in the list of blocks.
    pub status: String,
}

/// What `blocks` counts.
#[derive(Clone, Debug, Default)]
pub struct BlocksMetrics {
    /// Blocks in the list.
    pub length: Family<TenantLabels, Gauge>,
    /// Size of their files.
    pub bytes: Family<BackendLabels, Gauge>,
    /// Traces in them, one in two blocks counted twice.
    pub objects: Family<BackendLabels, Gauge>,
    /// Removed blocks whose files were deleted.
    pub deleted: Counter,
    /// Files of blocks that were in no list and were deleted.
    pub orphans: Counter,
    /// Version of the newest manifest that is known.
    pub version: Gauge,
    /// Commits of other writers that came before one of this process.
    pub conflicts: Counter,
    /// Times that a block was left out of an answer because it cannot be read.
    pub unreadable: Counter,
    /// Filters that were lost or damaged and made anew from their blocks.
    pub rebuilt_filters: Counter,
    /// 1 if the list of blocks is older than it once was.
    pub went_back: Gauge,
    /// Blocks that count as lost.
    pub lost: Counter,
    /// Memory of open blocks.
    pub footer_bytes: Gauge,
    /// Memory of filters.
    pub filter_bytes: Gauge,
}

impl BlocksMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let Self {
            length,
            bytes,
            objects,
            deleted,
            orphans,
            version,
            conflicts,
            unreadable,
            rebuilt_filters,
            went_back,
            lost,
            footer_bytes,
            filter_bytes,
        } = self.clone();
        registry.register("tempodb_blocklist_length", "Blocks in the list", length);
        // Gauges whatever they are called: Tempo's dashboards ask for these names.
        registry.register("tempodb_backend_bytes_total", "Size of the blocks in the list", bytes);
        registry.register("tempodb_backend_objects_total", "Traces of the blocks in the list", objects);
        registry.register("tempodb_retention_deleted", "Removed blocks whose files were deleted", deleted);
        let help = "Files of blocks in no list that were deleted";
        registry.register("coati_backend_orphaned_files_deleted", help, orphans);
        registry.register("coati_backend_manifest_version", "Version of the list of blocks", version);
        let help = "Commits of other writers that came before one of this process";
        registry.register("coati_backend_manifest_conflicts", help, conflicts);
        let help = "Times a block was left out of an answer because it cannot be read";
        registry.register("coati_backend_blocks_unreadable", help, unreadable);
        registry.register("coati_backend_filters_rebuilt", "Filters made anew from their blocks", rebuilt_filters);
        let help = "Whether the list of blocks is older than it was: manifests are lost";
        registry.register("coati_backend_manifests_lost", help, went_back);
        let help = "Blocks that cannot be read, nor their filters: they count as lost until the next start";
        registry.register("coati_backend_blocks_lost", help, lost);
        registry.register("coati_backend_open_blocks_bytes", "Memory of open blocks", footer_bytes);
        registry.register("coati_backend_filters_bytes", "Memory of filters of blocks", filter_bytes);
    }
}
