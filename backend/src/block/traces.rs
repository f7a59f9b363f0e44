//! Traces of a block, whole.

use std::collections::VecDeque;
use std::ops::Range;

use arrow_array::RecordBatch;
use arrow_array::cast::AsArray;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::RowSelection;
use parquet::file::page_index::column_index::ColumnIndexMetaData;

use super::decode::{DecodedRow, assemble, decode_rows};
use super::reader::{Rows, guarded};
use super::schema::column;
use super::writer::Checksum;
use super::{Block, BlockError};
use crate::live::{Trace, TraceId};

/// Rows that are decoded at once.
const BATCH_ROWS: usize = 1_024;

/// The same where many blocks are read side by side.
const FEW_ROWS: usize = 256;

/// Rows whose bytes are held there: two pages of a column.
const PART_ROWS: usize = 16_384;

/// Rows of trace ids that are read at once.
const ID_ROWS: usize = 8_192;

impl Block {
    /// Every trace, in the order of ids. Holds the bytes of one row group and a thousand decoded rows besides the trace.
    pub fn traces(&self) -> TraceIter {
        let groups = 0..self.parquet().num_row_groups();
        TraceIter::new(self.clone(), groups.map(|group| (group, None)).collect())
    }

    /// The same for who reads many blocks side by side: holds the bytes of some thousand rows and a few decoded ones. Reads
    /// dictionaries several times for it.
    pub fn traces_in_parts(&self) -> TraceIter {
        let mut parts = VecDeque::new();
        for (group, metadata) in self.parquet().row_groups().iter().enumerate() {
            let length = usize::try_from(metadata.num_rows()).unwrap_or_default();
            for start in (0..length).step_by(PART_ROWS) {
                let rows = start..length.min(start + PART_ROWS);
                let selection = RowSelection::from_consecutive_ranges(std::iter::once(rows), length);
                parts.push_back((group, Some(selection)));
            }
        }
        TraceIter { batch_rows: FEW_ROWS, ..TraceIter::new(self.clone(), parts) }
    }

    /// The traces in these rows, which are counted from 0 over all row groups, in ascending order, whole traces.
    pub fn traces_at(&self, rows: &[Range<u64>]) -> TraceIter {
        let mut parts = VecDeque::new();
        let mut start = 0_u64;
        for (group, metadata) in self.parquet().row_groups().iter().enumerate() {
            let length = u64::try_from(metadata.num_rows()).unwrap_or_default();
            let within = |row: u64| (row.max(start) - start).min(length) as usize;
            let ranges: Vec<_> = rows.iter().map(|rows| within(rows.start)..within(rows.end)).collect();
            let ranges = ranges.into_iter().filter(|range| !range.is_empty());
            let selection = RowSelection::from_consecutive_ranges(ranges, length as usize);
            if selection.selects_any() {
                parts.push_back((group, Some(selection)));
            }
            start += length;
        }
        TraceIter::new(self.clone(), parts)
    }

    /// The spans of a trace in this block. Reads one page of each column, or two where the trace lies in two.
    pub fn trace(&self, id: &TraceId) -> Result<Option<Trace>, BlockError> {
        match self.rows_of(id)? {
            Some(rows) => self.traces_at(&[rows]).next().transpose(),
            None => Ok(None),
        }
    }

    /// Whether a trace has spans in this block. Reads one page of the ids.
    pub fn has(&self, id: &TraceId) -> Result<bool, BlockError> {
        Ok(self.rows_of(id)?.is_some())
    }

    /// Every trace id, in order, with its rows, which are counted from 0 over all row groups. Reads one column.
    pub fn trace_ids(&self) -> Result<Vec<(TraceId, Range<u64>)>, BlockError> {
        self.trace_ids_if(|_| true)
    }

    /// The same of those that are wanted: the others take no memory.
    pub fn trace_ids_if(&self, wanted: impl Fn(&TraceId) -> bool) -> Result<Vec<(TraceId, Range<u64>)>, BlockError> {
        let mut ids: Vec<(TraceId, Range<u64>)> = Vec::new();
        let (mut row, mut last) = (0, None);
        for group in 0..self.parquet().num_row_groups() {
            self.each_id(group, None, |id| {
                match last.replace(id) {
                    Some(last) if last > id => return Err("trace ids are not in order".to_owned()),
                    Some(last) if last == id => {
                        if let Some((_, rows)) = ids.last_mut().filter(|(known, _)| *known == id) {
                            rows.end = row + 1;
                        }
                    }
                    _ if wanted(&id) => ids.push((id, row..row + 1)),
                    _ => {}
                }
                row += 1;
                Ok(())
            })?;
        }
        Ok(ids)
    }

    /// Every trace id, once, in order. Reads one column, some thousand rows at a time.
    pub fn distinct_ids(&self) -> IdIter {
        IdIter {
            block: self.clone(),
            groups: 0..self.parquet().num_row_groups(),
            rows: None,
            read: VecDeque::new(),
            last: None,
        }
    }

    /// Whether the file is what was written: compares the checksum of everything before the footer, decodes every row.
    pub fn verify(&self) -> Result<(), BlockError> {
        self.verify_checksum()?;
        let damaged = |what: &str| BlockError::damaged(self.path(), what);
        let (mut traces, mut spans) = (0_u64, 0_u64);
        let mut last = None;
        for trace in self.traces() {
            let trace = trace?;
            if last.replace(trace.id).is_some_and(|last| last >= trace.id) {
                return Err(damaged("trace ids are not in order"));
            }
            traces += 1;
            spans += trace.spans.len() as u64;
        }
        if (traces, spans) != (self.summary().traces, self.summary().spans) {
            return Err(damaged("it has not as many traces as its summary says"));
        }
        Ok(())
    }

    /// Whether everything before the footer is what was written.
    pub fn verify_checksum(&self) -> Result<(), BlockError> {
        let Checksum { bytes, crc32c } = self.checksum()?;
        let (mut at, mut found) = (0, 0);
        while at < bytes {
            let end = bytes.min(at + (4 << 20));
            let object = self.reader(std::iter::once(at..end))?;
            let part = guarded(self.path(), || {
                parquet::file::reader::ChunkReader::get_bytes(&object, at, (end - at) as usize)
            })?;
            found = crc32c::crc32c_append(found, &part);
            at = end;
        }
        if found != crc32c {
            return Err(BlockError::damaged(self.path(), "its checksum is another"));
        }
        Ok(())
    }

    /// Rows of a trace, counted from 0 over all row groups.
    fn rows_of(&self, id: &TraceId) -> Result<Option<Range<u64>>, BlockError> {
        let mut found: Option<Range<u64>> = None;
        let mut start = 0;
        for (group, metadata) in self.parquet().row_groups().iter().enumerate() {
            let length = u64::try_from(metadata.num_rows()).unwrap_or_default();
            if let Some(pages) = self.pages_with(group, id, length) {
                let mut row = start + pages.start;
                let selection = std::iter::once(pages.start as usize..pages.end as usize);
                let selection = RowSelection::from_consecutive_ranges(selection, length as usize);
                self.each_id(group, Some(selection), |other| {
                    if other == *id {
                        let rows = found.get_or_insert(row..row);
                        rows.end = row + 1;
                    }
                    row += 1;
                    Ok(())
                })?;
            }
            start += length;
        }
        Ok(found)
    }

    /// Rows of the pages in which a trace id may be, counted in the row group.
    fn pages_with(&self, group: usize, id: &TraceId, rows: u64) -> Option<Range<u64>> {
        let leaf = self.schema().index_of(column::TRACE_ID).ok()?;
        let index = self.parquet().column_index().and_then(|index| index.get(group)?.get(leaf));
        let pages = self.parquet().offset_index().and_then(|index| index.get(group)?.get(leaf));
        let (Some(ColumnIndexMetaData::FIXED_LEN_BYTE_ARRAY(index)), Some(pages)) = (index, pages) else {
            return Some(0..rows);
        };
        let pages = pages.page_locations();
        let first_row = |page: usize| pages.get(page).and_then(|page| u64::try_from(page.first_row_index).ok());
        let mut found: Option<Range<u64>> = None;
        for page in 0..pages.len().min(index.num_pages() as usize) {
            let below = index.min_value(page).is_some_and(|min| id.0.as_slice() < min);
            let above = index.max_value(page).is_some_and(|max| id.0.as_slice() > max);
            if !below && !above {
                let start = first_row(page)?;
                let end = first_row(page + 1).unwrap_or(rows).max(start);
                found = Some(found.map_or(start, |found| found.start)..end);
            }
        }
        found.filter(|found| !found.is_empty() && found.end <= rows)
    }

    fn each_id(
        &self,
        group: usize,
        selection: Option<RowSelection>,
        mut visit: impl FnMut(TraceId) -> Result<(), String>,
    ) -> Result<(), BlockError> {
        let damaged = |what: String| BlockError::damaged(self.path(), what);
        for batch in self.rows(group, self.mask([column::TRACE_ID]), selection, ID_ROWS)? {
            ids_of(&batch?).and_then(|ids| ids.into_iter().try_for_each(&mut visit)).map_err(damaged)?;
        }
        Ok(())
    }
}

/// Iterator of [`Block::distinct_ids`]. To be dropped after the first error.
pub struct IdIter {
    block: Block,
    /// Row groups that are still to be read.
    groups: Range<usize>,
    rows: Option<Rows>,
    read: VecDeque<TraceId>,
    last: Option<TraceId>,
}

impl IdIter {
    /// Reads the distinct ids of some more rows; false if there are none.
    fn read_more(&mut self) -> Result<bool, BlockError> {
        let Some(batch) = self.rows.as_mut().and_then(Rows::next) else {
            let Some(group) = self.groups.next() else { return Ok(false) };
            self.rows = Some(self.block.rows(group, self.block.mask([column::TRACE_ID]), None, ID_ROWS)?);
            return Ok(true);
        };
        let damaged = |what: String| BlockError::damaged(self.block.path(), what);
        for id in ids_of(&batch?).map_err(damaged)? {
            match self.last.replace(id) {
                Some(last) if last == id => {}
                Some(last) if last > id => return Err(damaged("trace ids are not in order".to_owned())),
                _ => self.read.push_back(id),
            }
        }
        Ok(true)
    }
}

impl Iterator for IdIter {
    type Item = Result<TraceId, BlockError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(id) = self.read.pop_front() {
                return Some(Ok(id));
            }
            match self.read_more() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

/// The only column of a batch as trace ids.
fn ids_of(batch: &RecordBatch) -> Result<Vec<TraceId>, String> {
    let ids = batch.columns().first().and_then(|array| array.as_fixed_size_binary_opt());
    let ids = ids.ok_or_else(|| "trace ids are of another type".to_owned())?.iter();
    ids.map(|id| TraceId::try_from(id.unwrap_or_default()).map_err(|error| error.to_string())).collect()
}

/// Iterator of [`Block::traces`]. Ends after the first error.
pub struct TraceIter {
    block: Block,
    /// Row groups that are still to be read, and which rows of them.
    parts: VecDeque<(usize, Option<RowSelection>)>,
    rows: Option<Rows>,
    /// Rows that are decoded, and belong to no finished trace.
    decoded: VecDeque<DecodedRow>,
    /// Rows that are decoded at once.
    batch_rows: usize,
    is_over: bool,
}

impl TraceIter {
    fn new(block: Block, parts: VecDeque<(usize, Option<RowSelection>)>) -> Self {
        Self { block, parts, rows: None, decoded: VecDeque::new(), batch_rows: BATCH_ROWS, is_over: false }
    }

    /// Decodes some more rows; false if there are none.
    fn decode_more(&mut self) -> Result<bool, BlockError> {
        loop {
            if let Some(batch) = self.rows.as_mut().and_then(Rows::next) {
                let (batch, promoted) = (batch?, self.block.promoted());
                let rows = guarded(self.block.path(), || Ok(decode_rows(&batch, promoted)))?;
                let rows = rows.map_err(|wrong| BlockError::damaged(self.block.path(), wrong))?;
                self.decoded.extend(rows);
                return Ok(true);
            }
            let Some((group, selection)) = self.parts.pop_front() else { return Ok(false) };
            // Column chunks of the group before are let go first.
            self.rows = None;
            self.rows = Some(self.block.rows(group, ProjectionMask::all(), selection, self.batch_rows)?);
        }
    }

    fn next_trace(&mut self) -> Result<Option<Trace>, BlockError> {
        let mut rows = Vec::new();
        loop {
            let Some(row) = self.decoded.front() else {
                if self.decode_more()? {
                    continue;
                }
                break;
            };
            let first: Option<&DecodedRow> = rows.first();
            if first.is_some_and(|first| first.trace_id != row.trace_id) {
                break;
            }
            rows.extend(self.decoded.pop_front());
        }
        let Some(id) = rows.first().map(|row| row.trace_id) else { return Ok(None) };
        let trace = assemble(id, rows, self.block.tables()?);
        trace.map(Some).map_err(|wrong| BlockError::damaged(self.block.path(), wrong))
    }
}

impl Iterator for TraceIter {
    type Item = Result<Trace, BlockError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let next = self.next_trace().transpose();
        self.is_over = !matches!(next, Some(Ok(_)));
        next
    }
}
