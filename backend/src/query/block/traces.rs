//! For plans that look at whole traces.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::iter::Peekable;
use std::slice::Iter;

use parquet::arrow::arrow_reader::RowSelection;

use super::columns::Columns;
use super::rows::Rows;
use super::span::{BlockSpan, Family};
use super::{BATCH_ROWS, BlockScan, Scattered};
use crate::block::BlockError;
use crate::block::schema::column;
use crate::live::Root;
use crate::query::scan::{TraceFacts, Visitor, Wanted};
use crate::traceql::{Field, Intrinsic};

/// Traces that are decoded first where only the newest are wanted; then twice as many, and so on.
const FIRST_TRACES: usize = 32;

/// Rows of a trace.
#[derive(Clone, Debug)]
struct Candidate {
    facts: TraceFacts,
    /// Counted over all row groups.
    first: usize,
    rows: usize,
    /// The conditions that some row fulfils, a bit each.
    fulfilled: u64,
}

/// Rows that were read and not shown yet.
#[derive(Default)]
struct Read<'b> {
    batches: VecDeque<Rows<'b>>,
    /// Rows of the first batch that were shown.
    shown: usize,
}

impl<'b> Read<'b> {
    /// The next rows, if so many were read.
    fn next(&self, count: usize) -> Option<Vec<(&Rows<'b>, usize)>> {
        let read: usize = self.batches.iter().map(|rows| rows.len).sum();
        if read < self.shown + count {
            return None;
        }
        let mut places = Vec::with_capacity(count);
        let mut begin = self.shown;
        for rows in &self.batches {
            let end = rows.len.min(begin + count - places.len());
            places.extend((begin..end).map(|row| (rows, row)));
            begin = 0;
        }
        Some(places)
    }

    /// Lets rows go that were shown.
    fn skip(&mut self, count: usize) {
        self.shown += count;
        while let Some(first) = self.batches.front().filter(|first| first.len <= self.shown) {
            self.shown -= first.len;
            self.batches.pop_front();
        }
    }
}

impl<'s> BlockScan<'s> {
    pub(super) fn show_traces(&mut self, visitor: &mut impl Visitor) -> Result<bool, BlockError> {
        let mut condition_columns = self.condition_columns();
        for name in [column::TRACE_ID, column::TRACE_START, column::TRACE_END] {
            condition_columns.add_name(name);
        }
        let mut columns = Columns::of(self.block, &self.scan.wanted);
        let facts = [Intrinsic::RootName, Intrinsic::TraceDuration].map(Field::Intrinsic);
        let nested = self.scan.nested.then_some(Field::Intrinsic(Intrinsic::NestedSetLeft));
        let facts = Wanted { fields: facts.into_iter().chain(nested).collect(), ..Wanted::default() };
        columns.add_all(Columns::of(self.block, &facts));
        // These are known from the look at the conditions.
        columns.remove_names(&[column::TRACE_ID, column::TRACE_START, column::TRACE_END]);
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut open: Option<Candidate> = None;
        let mut first = 0;
        for (group, _) in self.row_groups() {
            let goes_on = self.read(group, &condition_columns, None, BATCH_ROWS, &mut |scan, rows| {
                for (row, fulfilled) in scan.fulfilled(&rows).into_iter().enumerate() {
                    let id = rows.trace_id(row);
                    match &mut open {
                        Some(open) if open.facts.id == id => {
                            open.rows += 1;
                            open.fulfilled |= fulfilled;
                        }
                        _ => {
                            let (start_ns, end_ns) = (rows.trace_start_ns(row), rows.trace_end_ns(row));
                            let facts = TraceFacts { id, start_ns, end_ns, root: None };
                            let next = Candidate { facts, first: first + row, rows: 1, fulfilled };
                            scan.close(open.replace(next), visitor, &mut candidates);
                        }
                    }
                }
                first += rows.len;
                Ok(true)
            })?;
            if !goes_on {
                return Ok(false);
            }
            let waiting: usize = candidates.iter().map(|candidate| candidate.rows).sum();
            if !self.scan.newest_first && waiting >= BATCH_ROWS && !self.show(&columns, &mut candidates, visitor)? {
                return Ok(false);
            }
        }
        self.close(open, visitor, &mut candidates);
        self.show(&columns, &mut candidates, visitor)
    }

    /// Keeps a trace whose rows are all known, if it is wanted.
    fn close(&mut self, trace: Option<Candidate>, visitor: &impl Visitor, candidates: &mut Vec<Candidate>) {
        let Some(trace) = trace else { return };
        if self.is_elsewhere(&trace.facts.id) {
            if self.admits_part(trace.fulfilled) && visitor.wants_since(trace.facts.start_ns) {
                self.scattered.push(Scattered { id: trace.facts.id, starts_by: trace.facts.start_ns });
            }
        } else if self.admits(trace.fulfilled) && visitor.wants(&trace.facts) {
            candidates.push(trace);
        }
    }

    /// Shows the candidates, and leaves none of them.
    fn show(
        &mut self,
        columns: &Columns,
        candidates: &mut Vec<Candidate>,
        visitor: &mut impl Visitor,
    ) -> Result<bool, BlockError> {
        let mut most_traces = usize::MAX;
        if self.scan.newest_first {
            candidates.sort_unstable_by_key(|candidate| (Reverse(candidate.facts.start_ns), candidate.facts.id));
            most_traces = FIRST_TRACES;
        }
        let mut candidates = std::mem::take(candidates).into_iter().peekable();
        while candidates.peek().is_some() {
            // Of those that are shown in any case the newest need not come first: pages are read once for all.
            let most = most_traces.max(visitor.room());
            // Others may have come before it meanwhile.
            let mut part: Vec<_> = candidates.by_ref().filter(|next| visitor.wants(&next.facts)).take(most).collect();
            part.sort_unstable_by_key(|candidate| candidate.first);
            if !self.show_part(columns, &part, visitor)? {
                return Ok(false);
            }
            most_traces = most_traces.saturating_mul(2);
        }
        Ok(true)
    }

    /// Shows traces, which are in the order of their rows.
    fn show_part(
        &mut self,
        columns: &Columns,
        traces: &[Candidate],
        visitor: &mut impl Visitor,
    ) -> Result<bool, BlockError> {
        let mut waiting = traces.iter().peekable();
        let mut read = Read::default();
        let mut group_first = 0;
        for (group, count) in self.row_groups() {
            let group_rows = group_first..group_first + count;
            group_first += count;
            let ranges = traces.iter().filter_map(|trace| {
                let start = trace.first.max(group_rows.start);
                let end = (trace.first + trace.rows).min(group_rows.end);
                (start < end).then(|| start - group_rows.start..end - group_rows.start)
            });
            let selection = RowSelection::from_consecutive_ranges(ranges, count);
            if !selection.selects_any() {
                continue;
            }
            let goes_on = self.read(group, columns, Some(selection), BATCH_ROWS, &mut |scan, rows| {
                read.batches.push_back(rows);
                Ok(scan.show_read(&mut waiting, &mut read, visitor))
            })?;
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Shows those of the waiting traces of which all rows are read.
    fn show_read(
        &self,
        waiting: &mut Peekable<Iter<'_, Candidate>>,
        read: &mut Read<'s>,
        visitor: &mut impl Visitor,
    ) -> bool {
        let counts_children = self.scan.wanted.fields.contains(&Field::Intrinsic(Intrinsic::ChildCount));
        while let Some(Candidate { facts, rows, .. }) = waiting.peek()
            && let Some(places) = read.next(*rows)
        {
            let root = places.first().and_then(|(rows, row)| root_of(rows, *row, facts.start_ns));
            let facts = TraceFacts { root, ..facts.clone() };
            let family = Family::of(&facts, &places, counts_children);
            let span = |(rows, row)| BlockSpan { rows, row, trace: Some(&family), place: None };
            let spans: Vec<_> = places.into_iter().map(span).collect();
            if !visitor.trace(&facts, &spans) {
                return false;
            }
            read.skip(*rows);
            waiting.next();
        }
        true
    }
}

/// The root of a trace that begins with this row: the first one that has no parent is entered first.
fn root_of(rows: &Rows<'_>, row: usize, trace_start_ns: u64) -> Option<Root> {
    (rows.nested_parent(row) == -1).then(|| Root {
        service_name: rows.resource(row).and_then(|entry| entry.service_name()).unwrap_or_default().into(),
        span_name: rows.names.as_ref().and_then(|names| names.get(row)).unwrap_or_default().into(),
        start_ns: rows.start_in(row, trace_start_ns),
    })
}
