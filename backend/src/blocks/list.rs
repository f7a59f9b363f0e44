//! What a query knows of the blocks.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use foldhash::quality::RandomState;

use super::filters::{FilterRoom, FilterSlot};
use crate::block::{BlockId, BlockSummary, Filter};
use crate::live::TraceId;

/// A block in the list.
///
/// As long as somebody holds it here, the files of the block stay.
#[derive(Debug)]
pub struct BlockEntry {
    /// What is known of it.
    pub summary: Arc<BlockSummary>,
    pub(super) filter: FilterSlot,
    is_lost: AtomicBool,
}

impl BlockEntry {
    pub(super) fn new(summary: Arc<BlockSummary>, room: &Arc<FilterRoom>) -> Self {
        Self { summary, filter: FilterSlot::new(Arc::clone(room)), is_lost: AtomicBool::new(false) }
    }

    /// Whether neither its filter nor itself can be read. Until the next start nothing is looked for in it: queries only say
    /// that it is missing.
    pub fn is_lost(&self) -> bool {
        self.is_lost.load(Ordering::Relaxed)
    }

    pub(super) fn set_lost(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    /// Identity.
    pub fn id(&self) -> BlockId {
        self.summary.id
    }

    /// Which traces the block may have, if that is in memory already; see [`super::Blocks::filter`].
    pub fn loaded_filter(&self) -> Option<&Filter> {
        self.filter.get()
    }

    /// False only if the block certainly has no such trace that can be read; true as long as the filter is not in memory.
    pub fn may_contain(&self, id: &TraceId) -> bool {
        !self.is_lost() && self.filter.get().is_none_or(|filter| filter.contains(id))
    }
}

/// All blocks at one moment. Never changes: a query takes one and keeps it.
#[derive(Debug, Default)]
pub struct BlockList {
    version: u64,
    tenants: BTreeMap<Arc<str>, TenantBlocks>,
}

/// Blocks of one tenant.
#[derive(Debug, Default)]
pub(super) struct TenantBlocks {
    /// Newest data first.
    blocks: Vec<Arc<BlockEntry>>,
    /// Those of which it is not known yet which traces they share with others.
    pending: Vec<Arc<BlockEntry>>,
    /// Of each of the others: ids of its traces that may also be in a block that was there when it came.
    known: Vec<Arc<[TraceId]>>,
    /// All of `known`, once somebody asks.
    shared: OnceLock<HashSet<TraceId, RandomState>>,
}

impl BlockList {
    /// The list of these blocks. `shared` says which traces a block shares, if that is known.
    pub(super) fn new(
        version: u64,
        blocks: impl Iterator<Item = Arc<BlockEntry>>,
        shared: impl Fn(BlockId) -> Option<Arc<[TraceId]>>,
    ) -> Self {
        let mut tenants: BTreeMap<Arc<str>, TenantBlocks> = BTreeMap::new();
        for entry in blocks {
            let tenant = tenants.entry(Arc::clone(&entry.summary.tenant)).or_default();
            match shared(entry.id()) {
                Some(ids) if ids.is_empty() => {}
                Some(ids) => tenant.known.push(ids),
                None => tenant.pending.push(Arc::clone(&entry)),
            }
            tenant.blocks.push(entry);
        }
        for tenant in tenants.values_mut() {
            tenant.blocks.sort_unstable_by_key(|entry| (std::cmp::Reverse(entry.summary.end_ns), entry.id()));
        }
        Self { version, tenants }
    }

    /// Version of the manifest that it comes from.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Names of the tenants that have blocks, sorted.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<str>> {
        self.tenants.keys()
    }

    /// Blocks of a tenant, those with the newest data first (by [`BlockSummary::end_ns`]).
    pub fn of(&self, tenant: &str) -> impl Iterator<Item = &Arc<BlockEntry>> {
        self.tenants.get(tenant).into_iter().flat_map(|tenant| &tenant.blocks)
    }

    /// Blocks of all tenants, those of each with the newest data first.
    pub fn blocks(&self) -> impl Iterator<Item = &Arc<BlockEntry>> {
        self.tenants.values().flat_map(|tenant| &tenant.blocks)
    }

    /// Blocks of all tenants.
    pub fn len(&self) -> usize {
        self.tenants.values().map(|tenant| tenant.blocks.len()).sum()
    }

    /// Whether there is no block.
    pub fn is_empty(&self) -> bool {
        self.tenants.is_empty()
    }

    /// Whether the trace, found in one block of the tenant, may be in another one too. False only if it certainly is in
    /// no two.
    pub fn is_shared(&self, tenant: &str, id: &TraceId) -> bool {
        let Some(tenant) = self.tenants.get(tenant) else { return false };
        if tenant.blocks.len() < 2 {
            return false;
        }
        tenant.shared().contains(id) || tenant.pending.iter().any(|entry| entry.may_contain(id))
    }

    /// Traces of the tenant that may be in more than one block, of those blocks of which that is known already.
    pub fn shared(&self, tenant: &str) -> impl Iterator<Item = &TraceId> {
        self.tenants.get(tenant).into_iter().flat_map(TenantBlocks::shared)
    }

    /// Whether a block may have a trace that is in another one too.
    pub fn may_share(&self, entry: &BlockEntry) -> bool {
        let Some(tenant) = self.tenants.get(&entry.summary.tenant).filter(|tenant| tenant.blocks.len() > 1) else {
            return false;
        };
        !tenant.pending.is_empty() || tenant.shared().iter().any(|id| entry.may_contain(id))
    }

    /// Blocks of which it is not known yet which traces they share with others.
    pub(super) fn pending(&self) -> impl Iterator<Item = &Arc<BlockEntry>> {
        self.tenants.values().flat_map(|tenant| &tenant.pending)
    }
}

impl TenantBlocks {
    fn shared(&self) -> &HashSet<TraceId, RandomState> {
        self.shared.get_or_init(|| self.known.iter().flat_map(|ids| ids.iter().copied()).collect())
    }
}
