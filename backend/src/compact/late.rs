//! Calls between nodes whose two ends came too far apart to meet in memory.
//!
//! What an agent saw below a caller that did not come in time was stored as a trace called from outside (ADR 0020). Its id
//! still names the caller. When the block that has the caller is merged with it, its spans go to the caller's trace.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::Range;

use coati_common::stitch::caller_of;
use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use crate::block::{Block, BlockError};
use crate::live::{Trace, TraceId};

/// Callers that are looked for in one job at most: some 20 MB. A later job, of a longer time, looks for the others.
const MAX_CALLERS: usize = 1 << 20;
/// Spans that one job moves at most, as they are held in memory until their turn has come.
const MAX_SPANS: u64 = 1 << 16;
/// Traces one below the other that are followed at most.
const MAX_DEPTH: usize = 256;

type SpanId = [u8; 8];

/// Traces that go to others.
#[derive(Debug, Default)]
pub(super) struct Late {
    /// By their ids: where they go.
    homes: HashMap<TraceId, TraceId>,
    /// Their spans, by where they go.
    spans: BTreeMap<TraceId, Vec<Trace>>,
}

impl Late {
    /// Finds and reads them. Reads the ids of traces, if some may have a caller the client spans of agents too, and then no
    /// more than the traces that move.
    pub(super) fn of(blocks: &[Block]) -> Result<Self, (usize, BlockError)> {
        let called = each(blocks, called)?;
        let mut wanted = HashSet::new();
        for (id, _) in called.iter().flatten() {
            if wanted.len() < MAX_CALLERS {
                wanted.extend(caller_of(id.0));
            }
        }
        if wanted.is_empty() {
            return Ok(Self::default());
        }
        // Of a caller that was sent twice the trace with the lower id is taken, in every job.
        let mut callers: HashMap<SpanId, TraceId> = HashMap::new();
        for (index, block) in blocks.iter().enumerate() {
            let read = block.calls(|trace, span| {
                if wanted.contains(&span) {
                    callers.entry(span).and_modify(|known| *known = trace.min(*known)).or_insert(trace);
                }
            });
            read.map_err(|error| (index, error))?;
        }
        let homes = homes(&callers, &sizes(&called));
        let mut spans: BTreeMap<TraceId, Vec<Trace>> = BTreeMap::new();
        for (index, (block, called)) in blocks.iter().zip(&called).enumerate() {
            let rows = called.iter().filter(|(id, _)| homes.contains_key(id)).map(|(_, rows)| rows.clone());
            for trace in block.traces_at(&rows.collect::<Vec<_>>()) {
                let trace = trace.map_err(|error| (index, error))?;
                if let Some(home) = homes.get(&trace.id) {
                    spans.entry(*home).or_default().push(trace.returned_to(*home));
                }
            }
        }
        Ok(Self { homes, spans })
    }

    /// Whether a trace goes to another one.
    pub(super) fn moves(&self, id: &TraceId) -> bool {
        self.homes.contains_key(id)
    }

    /// How many do.
    pub(super) fn len(&self) -> u64 {
        self.homes.len() as u64
    }

    /// Whether all have found their trace.
    pub(super) fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// What comes to a trace.
    pub(super) fn take(&mut self, home: &TraceId) -> Vec<Trace> {
        self.spans.remove(home).unwrap_or_default()
    }
}

fn each<T>(blocks: &[Block], read: impl Fn(&Block) -> Result<T, BlockError>) -> Result<Vec<T>, (usize, BlockError)> {
    blocks.iter().enumerate().map(|(index, block)| read(block).map_err(|error| (index, error))).collect()
}

/// Traces of a block whose ids name a caller, and their rows.
fn called(block: &Block) -> Result<Vec<(TraceId, Range<u64>)>, BlockError> {
    block.trace_ids_if(|id| caller_of(id.0).is_some())
}

/// Spans of each trace, in all blocks.
fn sizes(called: &[Vec<(TraceId, Range<u64>)>]) -> BTreeMap<TraceId, u64> {
    let mut sizes = BTreeMap::new();
    for (id, rows) in called.iter().flatten() {
        *sizes.entry(*id).or_default() += rows.end - rows.start;
    }
    sizes
}

/// Where traces go: to the one at the top of those that their callers are in. As many as may be moved.
fn homes(callers: &HashMap<SpanId, TraceId>, sizes: &BTreeMap<TraceId, u64>) -> HashMap<TraceId, TraceId> {
    let mut above = HashMap::new();
    let mut spans = 0;
    for (id, size) in sizes {
        let caller = caller_of(id.0).and_then(|caller| callers.get(&caller));
        if let Some(caller) = caller.filter(|_| spans + size <= MAX_SPANS) {
            spans += size;
            above.insert(*id, *caller);
        }
    }
    let top = |id: &TraceId| {
        let mut home = above.get(id)?;
        for _ in 0..MAX_DEPTH {
            let Some(next) = above.get(home) else { return Some((*id, *home)) };
            home = next;
        }
        // One that is below itself, as somebody sent it, stays where it is.
        None
    };
    above.keys().filter_map(top).collect()
}
