//! Blocks become one: their traces are read side by side in the order of their ids, and written.
//!
//! Of a trace that is in several blocks the spans come in the order in which they were received, those of the block with
//! the oldest first. A span that is there again is dropped: same trace, span id, kind and start, *and* everything else the
//! same but for the order of attributes (see [`crate::query::distinct_spans`], by which queries go too). Spans that have
//! only the former in common stay both. Some senders give one id to many spans: all of these were acknowledged, which of them
//! is meant cannot be told here, and a query must not answer differently because blocks were merged. Of what an agent sent
//! before its end and marked as such only the last version stays (ADR 0027), as queries see no other.
//!
//! Traces whose callers are found in another one become part of it (see [`super::late`]).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fail::fail_point;

use super::late::Late;
use super::{CompactError, Job};
use crate::block::{
    AttributeCounts, Block, BlockError, BlockId, BlockSummary, BlockWriter, Columns, NewBlock, TraceIter, data_path,
};
use crate::blocks::Added;
use crate::live::{Trace, TraceId};
use crate::store::Store;

/// A block made of others, not committed yet.
#[derive(Debug)]
pub struct Merged {
    /// The block.
    pub block: Added,
    /// Traces that were in more than one block.
    pub combined: u64,
    /// Spans that had come again, and were dropped.
    pub deduped: u64,
    /// Traces that went to that of their caller on another node.
    pub united: u64,
}

/// Makes the block of a job and puts its files into the store. Holds the bytes of some thousand rows of each input, a row group of the
/// output, the ids of its traces and the spans of those that are united with others in memory. Stops soon after `stop` is set.
pub fn merge(store: &Arc<dyn Store>, job: &Job<'_>, id: BlockId, stop: &AtomicBool) -> Result<Merged, CompactError> {
    let mut summaries = job.inputs.clone();
    summaries.sort_unstable_by_key(|input| (input.received_first_ns, input.id));
    let mut counts = AttributeCounts::default();
    let mut blocks = Vec::with_capacity(summaries.len());
    for summary in &summaries {
        let block = Block::open(Arc::clone(store), summary);
        // A changed byte may go unnoticed where it is decoded, and the new block would have a checksum that is right.
        let block = block.and_then(|block| block.verify_checksum().map(|()| block));
        let block = block.map_err(|source| CompactError::Input { block: summary.id, source })?;
        counts.merge(block.attribute_counts());
        blocks.push(block);
    }
    let mut late = Late::of(&blocks).map_err(|(index, source)| {
        let block = summaries.get(index).map_or(id, |summary| summary.id);
        CompactError::Input { block, source }
    })?;
    let united = late.len();
    let inputs = summaries.iter().zip(&blocks);
    let inputs = inputs.map(|(summary, block)| Input { summary, traces: block.traces_in_parts(), spans: 0 });
    let spans_before: u64 = summaries.iter().map(|input| input.spans).sum();
    let new = NewBlock {
        id,
        tenant: Arc::clone(job.tenant),
        level: job.level,
        received_first_ns: summaries.iter().map(|input| input.received_first_ns).min().unwrap_or_default(),
        received_last_ns: summaries.iter().map(|input| input.received_last_ns).max().unwrap_or_default(),
    };
    let failed = |source| CompactError::Output { block: id, source };
    let mut writer =
        BlockWriter::create(store.as_ref(), new, Columns::choose(&counts, spans_before)).map_err(failed)?;
    let traces_before: u64 = summaries.iter().map(|input| input.traces).sum();
    writer.expect(usize::try_from(traces_before).unwrap_or_default());
    let mut combined = 0;
    let mut heads = Heads::of(inputs.collect())?;
    while let Some((mut trace, next)) = heads.next()? {
        if stop.load(Ordering::Relaxed) {
            return Err(CompactError::Stopped);
        }
        fail_point!("compact::merging");
        if late.moves(&trace.id) {
            continue;
        }
        combined += u64::from(!next.is_empty());
        for later in next.into_iter().chain(late.take(&trace.id)) {
            trace.extend(later);
        }
        writer.push(&trace).map_err(failed)?;
    }
    if !late.is_empty() {
        // Their inputs are to be removed, too.
        return Err(failed(BlockError::Damaged {
            path: data_path(job.tenant, id),
            what: "callers are gone".to_owned(),
        }));
    }
    let (summary, filter, ids) = writer.finish().map_err(failed)?;
    let deduped = spans_before.saturating_sub(summary.spans);
    Ok(Merged { block: Added { summary, filter, ids }, combined, deduped, united })
}

struct Input<'a> {
    summary: &'a BlockSummary,
    traces: TraceIter,
    /// That were read so far.
    spans: u64,
}

impl Input<'_> {
    /// The trace after `last`.
    fn next(&mut self, last: Option<TraceId>) -> Result<Option<Trace>, CompactError> {
        let Self { summary, traces, spans } = self;
        let failed = |source| CompactError::Input { block: summary.id, source };
        let damaged = |what: String| failed(BlockError::Damaged { path: summary.data_path(), what });
        let Some(trace) = traces.next().transpose().map_err(failed)? else {
            // The input is to be removed: nothing of it may be lost unseen.
            let expected = summary.spans;
            return if *spans == expected { Ok(None) } else { Err(damaged(format!("{spans} spans of {expected}"))) };
        };
        *spans += trace.spans.len() as u64;
        match last {
            Some(last) if trace.id <= last => Err(damaged(format!("trace {} comes after trace {last}", trace.id))),
            _ => Ok(Some(trace)),
        }
    }
}

/// The next trace of each input.
struct Heads<'a> {
    inputs: Vec<(Input<'a>, Option<Trace>)>,
    /// Ids of these traces; of equal ones, that of the first input first.
    order: BinaryHeap<Reverse<(TraceId, usize)>>,
}

impl<'a> Heads<'a> {
    fn of(inputs: Vec<Input<'a>>) -> Result<Self, CompactError> {
        let mut order = BinaryHeap::with_capacity(inputs.len());
        let mut heads = Vec::with_capacity(inputs.len());
        for (index, mut input) in inputs.into_iter().enumerate() {
            let head = input.next(None)?;
            order.extend(head.iter().map(|trace| Reverse((trace.id, index))));
            heads.push((input, head));
        }
        Ok(Self { inputs: heads, order })
    }

    /// The trace with the lowest id: what the first input has of it, and what others have.
    fn next(&mut self) -> Result<Option<(Trace, Vec<Trace>)>, CompactError> {
        let Some(first) = self.pop()? else { return Ok(None) };
        let mut later = Vec::new();
        while self.order.peek().is_some_and(|Reverse((id, _))| *id == first.id) {
            later.extend(self.pop()?);
        }
        Ok(Some((first, later)))
    }

    fn pop(&mut self) -> Result<Option<Trace>, CompactError> {
        let Some(Reverse((id, index))) = self.order.pop() else { return Ok(None) };
        let Some((input, head)) = self.inputs.get_mut(index) else { return Ok(None) };
        let next = input.next(Some(id))?;
        self.order.extend(next.iter().map(|trace| Reverse((trace.id, index))));
        Ok(std::mem::replace(head, next))
    }
}
