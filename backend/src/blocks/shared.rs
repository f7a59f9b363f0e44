//! Which traces may be in more than one block.
//!
//! Of each block it is kept which of its traces may also be in one of the blocks that were there when it came, by their
//! filters. Of two blocks that share a trace one came later, or both came at once and each is held against the other: so
//! the trace is among the shared ones of at least one of them. A block that goes makes no set wrong, only larger than it
//! need be. One that is merged from others is held against all that stay.

use std::sync::Arc;

use crate::block::Filter;
use crate::live::TraceId;

/// Those of `ids`, in their order, that one of the other blocks may have.
pub(super) fn shared_ids<'a>(ids: &[TraceId], others: impl Iterator<Item = &'a Filter>) -> Arc<[TraceId]> {
    let mut shared = vec![false; ids.len()];
    // A filter fits into a cache of the processor, all of them together do not: so it is the outer loop.
    for filter in others {
        for (id, shared) in ids.iter().zip(&mut shared) {
            *shared = *shared || filter.contains(id);
        }
    }
    ids.iter().zip(shared).filter_map(|(id, shared)| shared.then_some(*id)).collect()
}
