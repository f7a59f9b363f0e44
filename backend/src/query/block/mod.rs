//! Queries over one block: of its columns only those are read that a query looks at, of its rows only those that can matter.
//!
//! ```text
//! footer: can it match at all? ─► columns of the conditions: which rows, so which traces? ─► the other columns of these
//! ```
//!
//! A trace that may have spans elsewhere too is not judged here: its id is handed out, so that somebody looks at it whole.

mod columns;
mod dictionaries;
mod lists;
mod mask;
mod rows;
mod span;
mod tags;
mod texts;
mod traces;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_buffer::BooleanBuffer;
use parquet::arrow::arrow_reader::RowSelection;

pub(crate) use self::tags::{FullTags, TagReader};

use self::columns::Columns;
use self::rows::{Rows, Tables};
use self::span::BlockSpan;
use super::prefilter::{Condition, Leaf};
use super::scan::{RangeOf, Scan, Visitor, Wanted, is_of_span};
use super::search::Inspected;
use crate::block::schema::column;
use crate::block::{Block, BlockError};
use crate::live::TraceId;

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 16_384;

/// Conditions that are told apart. All beyond share one bit: a span that fulfils one of them counts for all.
const MAX_CONDITIONS: usize = 64;

/// A block at work.
pub(super) struct BlockScan<'s> {
    block: &'s Block,
    tables: Tables<'s>,
    scan: &'s Scan<'s>,
    /// Whether a trace may have spans elsewhere; none if no trace of the block has.
    elsewhere: Option<&'s dyn Fn(&TraceId) -> bool>,
    cancelled: &'s AtomicBool,
    inspected: Inspected,
    /// Traces with spans elsewhere that can match.
    pub(super) scattered: Vec<Scattered>,
}

/// A trace with spans in several places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scattered {
    pub(super) id: TraceId,
    /// The whole trace starts then or earlier, nanoseconds since the epoch.
    pub(super) starts_by: u64,
}

impl<'s> BlockScan<'s> {
    pub(super) fn new(
        block: &'s Block,
        scan: &'s Scan<'s>,
        elsewhere: Option<&'s dyn Fn(&TraceId) -> bool>,
        cancelled: &'s AtomicBool,
    ) -> Result<Self, BlockError> {
        let tables = Tables { resources: block.resources()?, scopes: block.scopes()? };
        let (inspected, scattered) = (Inspected::default(), Vec::new());
        Ok(Self { block, tables, scan, elsewhere, cancelled, inspected, scattered })
    }

    /// Shows what can match. Returns whether the visitor wants more.
    pub(super) fn run(&mut self, visitor: &mut impl Visitor) -> Result<bool, BlockError> {
        let (block, tables) = (self.block, self.tables);
        let bytes = Cell::new(0);
        let is_possible = |leaf: &Leaf| {
            let mut read = 0;
            // What cannot be read is read again where it matters.
            let may_hold = mask::is_possible(leaf, block, tables)
                && dictionaries::may_hold(leaf, block, tables, &mut read).unwrap_or(true);
            bytes.set(bytes.get() + read);
            may_hold
        };
        let is_admitted = self.scan.filter.admits_some(self.elsewhere.is_some(), &is_possible);
        self.inspected.bytes += bytes.get();
        if !is_admitted {
            return Ok(true);
        }
        let summary = self.block.summary();
        self.inspected.traces += u32::try_from(summary.traces).unwrap_or(u32::MAX);
        self.inspected.spans += summary.spans;
        if self.scan.whole { self.show_traces(visitor) } else { self.show_spans(visitor) }
    }

    /// What was looked at.
    pub(super) fn inspected(&self) -> Inspected {
        self.inspected
    }

    fn admits(&self, fulfilled: u64) -> bool {
        self.scan.filter.admits(&|number| fulfilled & bit(number) != 0)
    }

    fn admits_part(&self, fulfilled: u64) -> bool {
        self.scan.filter.admits_part(&|number| fulfilled & bit(number) != 0)
    }

    fn is_elsewhere(&self, id: &TraceId) -> bool {
        self.elsewhere.is_some_and(|elsewhere| elsewhere(id))
    }

    /// Number of row groups, and the rows of each.
    fn row_groups(&self) -> impl Iterator<Item = (usize, usize)> + use<'s> {
        let groups = self.block.parquet().row_groups().iter();
        groups.map(|group| usize::try_from(group.num_rows()).unwrap_or_default()).enumerate()
    }

    /// Reads some rows of a row group; all, if there is no selection. `count` is how many they are.
    fn read(
        &mut self,
        group: usize,
        columns: &Columns,
        selection: Option<RowSelection>,
        batch_rows: usize,
        visit: &mut dyn FnMut(&mut Self, Rows<'s>) -> Result<bool, BlockError>,
    ) -> Result<bool, BlockError> {
        let mask = columns.mask(self.block);
        let ranges = self.block.byte_ranges(group, &mask, selection.as_ref());
        self.inspected.bytes += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        for batch in self.block.rows(group, mask, selection, batch_rows)? {
            let rows = Rows::of(&batch?, columns, self.tables);
            if !rows.fit_tables() {
                return Err(BlockError::damaged(
                    self.block.path(),
                    "a row has a resource or a scope that is in no table",
                ));
            }
            if self.cancelled.load(Ordering::Relaxed) || !visit(self, rows)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Columns of the conditions that can be checked on rows.
    fn condition_columns(&self) -> Columns {
        let mut wanted = Wanted::default();
        self.scan.filter.conditions.iter().for_each(|condition| add_fields(condition, &mut wanted));
        Columns::of(self.block, &wanted)
    }

    /// The conditions that each row fulfils, a bit each.
    fn fulfilled(&self, rows: &Rows<'_>) -> Vec<u64> {
        let mut fulfilled = vec![0; rows.len];
        for (number, condition) in self.scan.filter.conditions.iter().enumerate() {
            let mut mask = vec![true; rows.len];
            mask::narrow(condition, rows, &mut mask);
            fulfilled.iter_mut().zip(mask).filter(|(_, holds)| *holds).for_each(|(bits, _)| *bits |= bit(number));
        }
        fulfilled
    }

    // Spans alone.

    /// For plans that look at single spans: which trace they belong to does not matter.
    fn show_spans(&mut self, visitor: &mut impl Visitor) -> Result<bool, BlockError> {
        let mut condition_columns = self.condition_columns();
        let summary = self.block.summary();
        let range = self.scan.range;
        let is_cut = summary.start_ns < range.start_ns || summary.end_ns > range.end_ns;
        if self.elsewhere.is_some() {
            condition_columns.add_name(column::TRACE_ID);
        }
        let range_of_spans = self.scan.range_of == RangeOf::Spans;
        if is_cut {
            let names = match self.scan.range_of {
                RangeOf::Spans => [column::TRACE_START, column::START_OFFSET],
                RangeOf::Traces => [column::TRACE_START, column::TRACE_END],
            };
            for name in names {
                condition_columns.add_name(name);
            }
        }
        let mut columns = Columns::of(self.block, &self.scan.wanted);
        columns.remove_promoted(|key| visitor.knows(key) && !self.scan.wanted.mentions(key));
        if range_of_spans {
            columns.add_name(column::TRACE_START);
            columns.add_name(column::START_OFFSET);
        }
        let picks_later = !self.scan.late.fields.is_empty();
        let mut group_first = 0;
        for (group, count) in self.row_groups() {
            let group_rows = group_first..group_first + count;
            group_first += count;
            let mut selection = None;
            let mut places: Vec<usize> = Vec::new();
            if !condition_columns.is_empty() {
                let mut selected = Vec::with_capacity(count);
                let goes_on = self.read(group, &condition_columns, None, BATCH_ROWS, &mut |scan, rows| {
                    scan.select(&rows, is_cut, &mut selected);
                    Ok(true)
                })?;
                if !goes_on {
                    return Ok(false);
                }
                match selected.iter().filter(|wanted| **wanted).count() {
                    0 => continue,
                    some if some == count => {}
                    _ => {
                        if picks_later {
                            let wanted = group_rows.clone().zip(&selected).filter(|(_, wanted)| **wanted);
                            places = wanted.map(|(place, _)| place).collect();
                        }
                        selection = Some(RowSelection::from_boolean_buffer(BooleanBuffer::from(selected)));
                    }
                }
            }
            let is_part = selection.is_some();
            let mut shown = 0;
            let goes_on = self.read(group, &columns, selection, BATCH_ROWS, &mut |_, rows| {
                let place = |row: usize| {
                    let number = shown + row;
                    if is_part { places.get(number).copied() } else { Some(group_rows.start + number) }
                };
                let span = |row: usize| {
                    let place = if picks_later { place(row) } else { None };
                    BlockSpan { rows: &rows, row, trace: None, place }
                };
                let spans: Vec<_> = (0..rows.len).map(span).collect();
                shown += rows.len;
                Ok(visitor.spans(&spans))
            })?;
            if !goes_on {
                return Ok(false);
            }
        }
        if picks_later { self.show_late(visitor) } else { Ok(true) }
    }

    /// Shows the late fields of the spans that the visitor has picked.
    fn show_late(&mut self, visitor: &mut impl Visitor) -> Result<bool, BlockError> {
        let picked = visitor.late_rows();
        let columns = Columns::of(self.block, &self.scan.late);
        let mut group_first = 0;
        for (group, count) in self.row_groups() {
            let group_rows = group_first..group_first + count;
            group_first += count;
            let mut places = picked.range(group_rows.clone()).copied();
            let ranges = places.clone().map(|place| place - group_rows.start..place - group_rows.start + 1);
            let selection = RowSelection::from_consecutive_ranges(ranges, count);
            if !selection.selects_any() {
                continue;
            }
            let goes_on = self.read(group, &columns, Some(selection), BATCH_ROWS, &mut |_, rows| {
                for (row, place) in (0..rows.len).zip(places.by_ref()) {
                    visitor.late(place, &BlockSpan { rows: &rows, row, trace: None, place: None });
                }
                Ok(true)
            })?;
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Which rows are shown.
    fn select(&mut self, rows: &Rows<'_>, is_cut: bool, selected: &mut Vec<bool>) {
        let range = self.scan.range;
        let mut last: Option<(TraceId, bool)> = None;
        for (row, fulfilled) in self.fulfilled(rows).into_iter().enumerate() {
            let in_range = !is_cut
                || match self.scan.range_of {
                    RangeOf::Spans => (range.start_ns..=range.end_ns).contains(&rows.start_ns(row)),
                    RangeOf::Traces => range.overlaps(rows.trace_start_ns(row), rows.trace_end_ns(row)),
                };
            let mut wanted = in_range && self.admits(fulfilled);
            if self.elsewhere.is_some() {
                let id = rows.trace_id(row);
                let is_elsewhere = match last {
                    Some((last, is_elsewhere)) if last == id => is_elsewhere,
                    _ => self.is_elsewhere(&id),
                };
                last = Some((id, is_elsewhere));
                if is_elsewhere {
                    wanted = false;
                    if self.scattered.last().is_none_or(|last| last.id != id) && self.admits_part(fulfilled) {
                        // Its start was perhaps not read. Who looks at single spans does not care.
                        self.scattered.push(Scattered { id, starts_by: u64::MAX });
                    }
                }
            }
            selected.push(wanted);
        }
    }
}

fn bit(number: usize) -> u64 {
    1 << number.min(MAX_CONDITIONS - 1)
}

fn add_fields(condition: &Condition, wanted: &mut Wanted) {
    match condition {
        Condition::All(list) | Condition::Any(list) => list.iter().for_each(|item| add_fields(item, wanted)),
        Condition::Leaf(leaf) if is_of_span(&leaf.field) => wanted.add(&leaf.field),
        Condition::Leaf(_) | Condition::Unknown => {}
    }
}
