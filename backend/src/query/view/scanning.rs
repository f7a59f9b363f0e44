//! A scan of a view: memory part by part, then blocks, several at a time where threads are free.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use coati_common::wellknown::resource::SERVICE_NAME;

use super::helpers::Helpers;
use super::{Stored, View, find};
use crate::block::{BlockId, BlockSummary};
use crate::blocks::{BlockEntry, BlocksError};
use crate::live::{Trace, TraceId};
use crate::query::block::{BlockScan, Scattered};
use crate::query::live::LiveSpan;
use crate::query::prefilter::Leaf;
use crate::query::scan::{RangeOf, Scan, TimeRange, TraceFacts, Visitor};
use crate::query::search::{Inspected, Progress};
use crate::query::value::Value;
use crate::traceql::{Attribute, Field, Scope};

/// Traces in memory that are looked at before progress is told.
const TRACES_PER_PART: usize = 4_096;

impl View {
    /// The same for the traces of one tenant, after those of others; `whole` is the view that is asked.
    pub(super) fn scan_own<V: Visitor>(
        &self,
        scan: &Scan<'_>,
        visitor: &mut V,
        cancelled: &AtomicBool,
        (before, is_last): (Progress, bool),
        whole: &Self,
    ) -> Result<Progress, BlocksError> {
        let blocks: Vec<_> = self.stored.iter().flat_map(|stored| stored.list.of(&self.tenant)).collect();
        let in_range = |entry: &&Arc<BlockEntry>| scan.range.overlaps(entry.summary.start_ns, entry.summary.end_ns);
        let in_range: Vec<_> = blocks.iter().copied().filter(in_range).collect();
        let parts = self.live.chunks(TRACES_PER_PART);
        let total = u32::try_from((parts.len() + in_range.len()).max(1)).unwrap_or(u32::MAX);
        let total = before.total.saturating_add(total);
        let mut scanning = Scanning {
            view: self,
            whole,
            is_last,
            skipped_before: before.skipped,
            scan,
            visitor,
            cancelled,
            progress: Progress { total, ..before },
            seen: HashSet::new(),
            skipped: HashSet::new(),
        };
        if scan.whole || scan.range_of == RangeOf::Traces {
            // Traces of the range may have spans in them, whenever those were.
            scanning.skip(blocks.iter().filter(|entry| entry.is_lost()).map(|entry| entry.id()));
        }
        // Before everything else: nobody knows when these start.
        if in_range.len() < blocks.len() && (scan.whole || scan.range_of == RangeOf::Traces) {
            let straddling = self.straddling(scan.range);
            if !scanning.scattered(straddling)? {
                return Ok(scanning.end());
            }
        }
        // What comes after a part starts when the next part does, or when the next block ends, at the latest.
        let mut parts = parts.peekable();
        let newest_block = in_range.first().map(|entry| entry.summary.end_ns);
        while let Some(part) = parts.next() {
            let next = parts.peek().and_then(|part| part.first()).map(|trace| trace.start_ns);
            if !scanning.live(part)? || !scanning.part_done(next.max(newest_block)) {
                return Ok(scanning.end());
            }
        }
        scanning.blocks(&in_range)?;
        Ok(scanning.end())
    }

    /// Traces with spans in blocks of the range and outside it: the range may cut what matches away from what is in it.
    fn straddling(&self, range: TimeRange) -> Vec<Scattered> {
        let Some(stored) = &self.stored else { return Vec::new() };
        let live = stored.also_live.keys().map(|id| (*id, true));
        let shared = stored.list.shared(&self.tenant).map(|id| (*id, false));
        let ids: Vec<(TraceId, bool)> = live.chain(shared).collect();
        let mut inside: Vec<bool> = ids.iter().map(|(_, is_live)| *is_live).collect();
        let (mut before, mut after) = (vec![false; ids.len()], vec![false; ids.len()]);
        for entry in stored.list.of(&self.tenant).filter(|entry| !entry.is_lost()) {
            // Without its filter a block may have any trace.
            let filter = stored.blocks.filter(entry).ok();
            let found = if entry.summary.end_ns < range.start_ns {
                &mut before
            } else if entry.summary.start_ns > range.end_ns {
                &mut after
            } else {
                &mut inside
            };
            for ((id, _), found) in ids.iter().zip(found) {
                *found = *found || filter.as_ref().is_none_or(|filter| filter.contains(id));
            }
        }
        let sides = before.into_iter().zip(after);
        let straddles = |inside: bool, before: bool, after: bool| inside && (before || after) || before && after;
        let ids = ids.into_iter().zip(inside).zip(sides);
        ids.filter(|((_, inside), (before, after))| straddles(*inside, *before, *after))
            .map(|(((id, _), _), _)| Scattered { id, starts_by: u64::MAX })
            .collect()
    }
}

/// Whether a condition can hold on a span of a block of which only the summary is known.
fn is_possible(leaf: &Leaf, summary: &BlockSummary) -> bool {
    match (&leaf.field, &summary.services) {
        (Field::Attribute(Attribute { scope: Scope::Resource, name, .. }), Some(services)) if name == SERVICE_NAME => {
            services.iter().any(|service| leaf.accepts(&Value::text_of(service))) || leaf.accepts(&Value::Nil)
        }
        _ => true,
    }
}

/// What came of the look at a block.
#[derive(Debug, Default)]
struct Look {
    /// Whether the visitor wants more.
    goes_on: bool,
    inspected: Inspected,
    /// Traces that are to be brought together.
    scattered: Vec<Scattered>,
    failed: Option<BlocksError>,
}

impl Stored {
    /// Shows the rows of a block that matter.
    fn look<V: Visitor>(
        &self,
        tenant: &str,
        scan: &Scan<'_>,
        entry: &BlockEntry,
        visitor: &mut V,
        cancelled: &AtomicBool,
    ) -> Look {
        if cancelled.load(Ordering::Relaxed) || !visitor.wants_since(entry.summary.end_ns) {
            return Look::default();
        }
        let is_in_another = |id: &TraceId| self.blocks.is_in_another(&self.list, tenant, id, entry.id());
        let is_elsewhere =
            |id: &TraceId| self.also_live.contains_key(id) || self.list.is_shared(tenant, id) && is_in_another(id);
        let any_elsewhere = self.list.may_share(entry) || self.also_live.keys().any(|id| entry.may_contain(id));
        if !scan.filter.admits_some(any_elsewhere, &|leaf| is_possible(leaf, &entry.summary)) {
            return Look { goes_on: true, ..Look::default() };
        }
        let elsewhere: Option<&dyn Fn(&TraceId) -> bool> = if any_elsewhere { Some(&is_elsewhere) } else { None };
        let failed = |error| Look { failed: Some(error), ..Look::default() };
        let block = match self.blocks.open_block(entry) {
            Ok(block) => block,
            Err(error) => return failed(error),
        };
        let of_block = |source| BlocksError::Block { block: entry.id(), source };
        let mut block_scan = match BlockScan::new(&block, scan, elsewhere, cancelled) {
            Ok(scan) => scan,
            Err(error) => return failed(of_block(error)),
        };
        let done = block_scan.run(visitor);
        visitor.block_done();
        let (inspected, scattered) = (block_scan.inspected(), std::mem::take(&mut block_scan.scattered));
        match done {
            Ok(goes_on) => Look { goes_on, inspected, scattered, failed: None },
            Err(error) => Look { goes_on: true, inspected, scattered, failed: Some(of_block(error)) },
        }
    }
}

/// A scan at work.
struct Scanning<'s, V> {
    view: &'s View,
    /// The view that is asked, of which this is a part.
    whole: &'s View,
    /// Whether no other part comes after this one.
    is_last: bool,
    /// Blocks that were passed over in parts before.
    skipped_before: usize,
    scan: &'s Scan<'s>,
    visitor: &'s mut V,
    cancelled: &'s AtomicBool,
    progress: Progress,
    /// Traces in several places that were looked at.
    seen: HashSet<TraceId>,
    /// Blocks that cannot be read; many traces may miss something of the same.
    skipped: HashSet<BlockId>,
}

impl<V: Visitor> Scanning<'_, V> {
    /// Looks at traces in memory. Returns whether others are to be looked at.
    fn live(&mut self, traces: &[Arc<Trace>]) -> Result<bool, BlocksError> {
        let also = self.view.stored.as_ref().map(|stored| &stored.also_live).filter(|also| !also.is_empty());
        for trace in traces {
            if self.cancelled.load(Ordering::Relaxed) {
                return Ok(false);
            }
            if !self.visitor.wants_since(trace.start_ns) {
                return Ok(true);
            }
            if also.is_some_and(|also| also.contains_key(&trace.id)) {
                let spans = LiveSpan::of_trace(trace, self.scan.nested);
                if self.scan.filter.admits_part_of(&spans)
                    && !self.scattered(vec![Scattered { id: trace.id, starts_by: trace.start_ns }])?
                {
                    return Ok(false);
                }
            } else if !self.whole(trace) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks at a whole trace.
    fn whole(&mut self, trace: &Trace) -> bool {
        let facts = TraceFacts::of(trace);
        if !self.visitor.wants(&facts) {
            return true;
        }
        self.progress.inspected.count(trace);
        self.visitor.trace(&facts, &LiveSpan::of_trace(trace, self.scan.nested))
    }

    /// Brings traces together that lie in several places, and looks at those that were not looked at before.
    fn scattered(&mut self, mut traces: Vec<Scattered>) -> Result<bool, BlocksError> {
        let Some(stored) = &self.view.stored else { return Ok(true) };
        if self.scan.newest_first {
            traces.sort_unstable_by_key(|trace| (Reverse(trace.starts_by), trace.id));
        }
        for Scattered { id, starts_by } in traces {
            if self.cancelled.load(Ordering::Relaxed) {
                return Ok(false);
            }
            // Others may have come before it meanwhile.
            if !self.visitor.wants_since(starts_by) || !self.seen.insert(id) {
                continue;
            }
            let live = stored.also_live.get(&id).cloned();
            let (trace, skipped) = find(&stored.blocks, &stored.list, &self.view.tenant, &id, live)?;
            self.skip(skipped);
            if let Some(trace) = trace
                && !self.whole(&trace)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Looks at blocks, several at a time if the visitor does not mind their order and threads are free.
    fn blocks(&mut self, mut entries: &[&Arc<BlockEntry>]) -> Result<(), BlocksError> {
        while !entries.is_empty() {
            let most = if self.visitor.part().is_some() { entries.len() - 1 } else { 0 };
            let helpers = Helpers::take(most);
            let (now, later) = entries.split_at((1 + helpers.count()).min(entries.len()));
            let looks = self.look_at(now);
            drop(helpers);
            entries = later;
            for (place, (entry, look)) in now.iter().zip(looks).enumerate() {
                let next = now.get(place + 1).or(later.first()).map(|entry| entry.summary.end_ns);
                if !self.settle(entry, look)? || !self.part_done(next) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Looks at some blocks, each on a thread; the visitor has seen all of them afterwards.
    fn look_at(&mut self, entries: &[&Arc<BlockEntry>]) -> Vec<Look> {
        let Some(stored) = &self.view.stored else { return Vec::new() };
        let (tenant, scan, cancelled) = (&*self.view.tenant, self.scan, self.cancelled);
        let Some((first, others)) = entries.split_first() else { return Vec::new() };
        let mut parts: Vec<V::Part> = others.iter().filter_map(|_| self.visitor.part()).collect();
        let visitor = &mut *self.visitor;
        let looks = thread::scope(|scope| {
            let helping: Vec<_> = others
                .iter()
                .zip(&mut parts)
                .map(|(entry, part)| scope.spawn(move || stored.look(tenant, scan, entry, part, cancelled)))
                .collect();
            let mut looks = vec![stored.look(tenant, scan, first, visitor, cancelled)];
            // A panic here is one of the query, as it would be without threads.
            looks.extend(helping.into_iter().map(|helper| helper.join().unwrap_or_else(|panic| resume_unwind(panic))));
            looks
        });
        for part in parts {
            self.visitor.join(part);
        }
        looks
    }

    /// Does what is left to do of a block. Returns whether others are to be looked at.
    fn settle(&mut self, entry: &BlockEntry, look: Look) -> Result<bool, BlocksError> {
        let Some(stored) = &self.view.stored else { return Ok(true) };
        let Look { goes_on, inspected, scattered, failed } = look;
        self.progress.inspected.add(inspected);
        let goes_on = match failed {
            Some(error) => self.pass_over(stored, entry, error)?,
            None => goes_on,
        };
        Ok(goes_on && self.scattered(scattered)?)
    }

    fn pass_over(&mut self, stored: &Stored, entry: &BlockEntry, error: BlocksError) -> Result<bool, BlocksError> {
        stored.blocks.pass_over(entry, error)?;
        self.skip([entry.id()]);
        Ok(true)
    }

    fn skip(&mut self, blocks: impl IntoIterator<Item = BlockId>) {
        self.skipped.extend(blocks);
        self.progress.skipped = self.skipped_before + self.skipped.len();
    }

    fn part_done(&mut self, rest_starts_by: Option<u64>) -> bool {
        self.progress.done = (self.progress.done + 1).min(self.progress.total);
        if (rest_starts_by.is_some() || !self.is_last) && self.progress.inspected.bytes > self.whole.max_bytes {
            self.whole.read_too_much.store(true, Ordering::Relaxed);
            return false;
        }
        // The end is told by [`Self::end`].
        rest_starts_by.is_none() || self.visitor.part_done(self.progress, self.rest(rest_starts_by))
    }

    fn end(self) -> Progress {
        let progress = Progress { done: self.progress.total, ..self.progress };
        self.visitor.part_done(progress, self.rest(None));
        progress
    }

    /// By when what comes later starts: in another part, at any time.
    fn rest(&self, of_part: Option<u64>) -> Option<u64> {
        if self.is_last { of_part } else { Some(u64::MAX) }
    }
}
