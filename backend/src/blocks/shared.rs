//! Which traces may be in more than one block.
//!
//! Of each block it is kept which of its traces may also be in one of the blocks that were there when it came, by their
//! filters. Of two blocks that share a trace one came later, or both came at once and each is held against the other: so
//! the trace is among the shared ones of at least one of them. A block that goes makes no set wrong, only larger than it
//! need be. One that is merged from others is held against all that stay.

use std::sync::Arc;

use crate::block::Filter;
use crate::live::TraceId;

/// Ids that are held against all other blocks at once: 4 MiB of them.
const AT_ONCE: usize = 1 << 18;

/// Finds those of the ids of a block that another block may have, in bounded memory.
#[derive(Debug, Default)]
pub(super) struct Sharing {
    /// Rising; each with whether one of the blocks that were asked may have it.
    waiting: Vec<TraceId>,
    found: Vec<bool>,
    shared: Vec<TraceId>,
}

impl Sharing {
    /// Adds an id. True if so many wait that the others are to be asked now.
    pub(super) fn add(&mut self, id: TraceId) -> bool {
        self.waiting.push(id);
        self.waiting.len() >= AT_ONCE
    }

    /// Holds the waiting ids against one other block.
    ///
    /// A filter fits into a cache of the processor, all of them together do not: so it is the outer loop.
    pub(super) fn ask(&mut self, other: &Filter) {
        self.found.resize(self.waiting.len(), false);
        for (id, found) in self.waiting.iter().zip(&mut self.found) {
            *found = *found || other.contains(id);
        }
    }

    /// All others were asked.
    pub(super) fn settle(&mut self) {
        self.found.resize(self.waiting.len(), false);
        let settled = self.waiting.drain(..).zip(self.found.drain(..));
        self.shared.extend(settled.filter_map(|(id, found)| found.then_some(id)));
    }

    /// Those that others may have, in the order in which they came.
    pub(super) fn into_shared(self) -> Arc<[TraceId]> {
        self.shared.into()
    }
}

/// Those of `ids`, in their order, that one of the other blocks may have.
pub(super) fn shared_ids<'a>(ids: &[TraceId], others: impl Iterator<Item = &'a Filter>) -> Arc<[TraceId]> {
    let mut sharing = Sharing { waiting: ids.to_vec(), ..Sharing::default() };
    others.for_each(|filter| sharing.ask(filter));
    sharing.settle();
    sharing.into_shared()
}
