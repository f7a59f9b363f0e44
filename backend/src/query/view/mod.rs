//! What one query sees: the traces of a tenant, wherever they lie, or of several, one after the other.
//!
//! A trace lies in memory, in a block, or, if spans came late, in several places. One that lies in one place is looked at
//! there. Of any other one the parts are brought together first, so that the answer is that of the whole trace, once.

mod helpers;
mod scanning;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::scan::{Scan, Visitor};
use super::search::Progress;
use crate::block::BlockId;
use crate::blocks::{BlockList, Blocks, BlocksError};
use crate::live::{LiveSet, Trace, TraceId};
use crate::tenant::Tenants;

/// The traces of a tenant at one moment.
pub struct View {
    tenant: Arc<str>,
    /// Those that started last first, then by id.
    live: Vec<Arc<Trace>>,
    stored: Option<Stored>,
    /// What is looked at after it: the traces of other tenants.
    others: Vec<View>,
    /// A scan that has looked at so many bytes ends before its next part.
    max_bytes: u64,
    read_too_much: AtomicBool,
}

/// Traces in blocks.
struct Stored {
    blocks: Arc<Blocks>,
    list: Arc<BlockList>,
    /// Live traces that may have spans in blocks.
    also_live: HashMap<TraceId, Arc<Trace>>,
}

/// A trace that was looked for by its id.
#[derive(Clone, Debug, Default)]
pub struct FoundTrace {
    /// All that is known of it; none if nothing is.
    pub trace: Option<Arc<Trace>>,
    /// Blocks that may have more of it but cannot be read.
    pub skipped: usize,
}

impl FoundTrace {
    /// What another place has of the same trace.
    pub fn add(&mut self, other: Self) {
        self.skipped += other.skipped;
        self.trace = match (self.trace.take(), other.trace) {
            (Some(trace), Some(other)) => {
                let mut whole = Arc::unwrap_or_clone(trace);
                whole.extend(Arc::unwrap_or_clone(other));
                Some(Arc::new(whole))
            }
            (trace, other) => trace.or(other),
        };
    }
}

impl View {
    /// The present traces, in memory and in blocks.
    pub fn new(live: &LiveSet, blocks: &Arc<Blocks>, tenant: &str) -> Self {
        // In this order: a trace leaves memory when its block is in the list.
        let live = live.snapshot(tenant);
        let list = blocks.snapshot();
        let also_live = also_live(&live, blocks, &list, tenant);
        let stored = Some(Stored { blocks: Arc::clone(blocks), list, also_live });
        Self { tenant: tenant.into(), stored, ..Self::of_live(live) }
    }

    /// The present traces of several tenants. A trace that more than one has is judged in each of them.
    pub fn of_tenants(live: &LiveSet, blocks: &Arc<Blocks>, tenants: &Tenants) -> Self {
        let (first, others) = tenants.split();
        let others = others.iter().map(|tenant| Self::new(live, blocks, tenant)).collect();
        Self { others, ..Self::new(live, blocks, first) }
    }

    /// Traces in memory only, as [`LiveSet::snapshot`] gives them.
    pub fn of_live(live: Vec<Arc<Trace>>) -> Self {
        let (stored, others) = (None, Vec::new());
        Self { tenant: "".into(), live, stored, others, max_bytes: u64::MAX, read_too_much: AtomicBool::new(false) }
    }

    /// Lets scans end early, before the next part of the work, when they have looked at more bytes than this.
    #[must_use]
    pub fn reading_at_most(self, max_bytes: u64) -> Self {
        Self { max_bytes, ..self }
    }

    /// Whether these are traces of several tenants.
    pub(super) fn is_of_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// Whether a scan ended early because of [`Self::reading_at_most`].
    pub fn read_too_much(&self) -> bool {
        self.read_too_much.load(Ordering::Relaxed)
    }

    /// All that is known of one trace.
    pub fn find(
        live: &LiveSet,
        blocks: Option<&Blocks>,
        tenant: &str,
        id: &TraceId,
    ) -> Result<FoundTrace, BlocksError> {
        // In the order of [`Self::new`]. Spans with a provisional id may be in the trace of their caller.
        let trace = live.trace(tenant, id);
        let home = trace.as_ref().map_or_else(|| live.home(tenant, id), |trace| trace.id);
        let id = &home;
        match blocks {
            Some(blocks) => {
                let (trace, skipped) = find(blocks, &blocks.snapshot(), tenant, id, trace)?;
                Ok(FoundTrace { trace, skipped: skipped.len() })
            }
            None => Ok(FoundTrace { trace, skipped: 0 }),
        }
    }

    /// Shows the traces that `scan` asks for. Ends early, with what was done until then, when the visitor wants no more or
    /// soon after `cancelled` is set.
    ///
    /// Blocks that are damaged are left out, and counted in the result; fails if the store does.
    pub(super) fn scan<V: Visitor>(
        &self,
        scan: &Scan<'_>,
        visitor: &mut V,
        cancelled: &AtomicBool,
    ) -> Result<Progress, BlocksError> {
        let mut progress = Progress::default();
        for (place, view) in std::iter::once(self).chain(&self.others).enumerate() {
            let is_last = place == self.others.len();
            progress = view.scan_own(scan, visitor, cancelled, (progress, is_last), self)?;
        }
        Ok(progress)
    }
}

/// Looks for a trace; `live` is what is in memory of it. Tells also which blocks may have more of it but cannot be read.
fn find(
    blocks: &Blocks,
    list: &BlockList,
    tenant: &str,
    id: &TraceId,
    live: Option<Arc<Trace>>,
) -> Result<(Option<Arc<Trace>>, Vec<BlockId>), BlocksError> {
    let found = blocks.find(list, tenant, id)?;
    let skipped = found.skipped;
    if found.traces.is_empty() {
        return Ok((live, skipped));
    }
    let mut whole = Trace::empty(*id);
    found.traces.into_iter().for_each(|fragment| whole.extend(fragment));
    if let Some(live) = live {
        whole.extend(Arc::unwrap_or_clone(live));
    }
    Ok((Some(Arc::new(whole)), skipped))
}

/// The live traces that may have spans in blocks.
fn also_live(live: &[Arc<Trace>], blocks: &Blocks, list: &BlockList, tenant: &str) -> HashMap<TraceId, Arc<Trace>> {
    let mut also = HashMap::new();
    // One filter fits into a cache of the processor, all of them do not.
    for entry in list.of(tenant).filter(|entry| !entry.is_lost()) {
        // Without its filter a block may have any trace.
        let filter = blocks.filter(entry).ok();
        let may_have = |trace: &&Arc<Trace>| filter.as_ref().is_none_or(|filter| filter.contains(&trace.id));
        also.extend(live.iter().filter(may_have).map(|trace| (trace.id, Arc::clone(trace))));
    }
    also
}
