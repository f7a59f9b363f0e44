//! A column: values with levels, which say where there are none and where lists begin.

use bytes::Bytes;
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::schema::types::ColumnDescPtr;

use super::chunk::{Chunk, Compressor, DataPage, Options};
use super::runs::{Runs, width};
use super::values::{PAGE_BYTES, Values};

/// A column of a row group, whatever its values are.
pub(in crate::block) trait Leaf {
    /// Ends the page before this row of the row group.
    fn end_page(&mut self, row: usize, compressor: &mut Compressor) -> Result<(), ParquetError>;

    /// Ends the column chunk, which has so many rows: its bytes and what is to be said of them. The next one is empty.
    fn end_chunk(
        &mut self,
        rows: usize,
        compressor: &mut Compressor,
    ) -> Result<(Bytes, ColumnCloseResult), ParquetError>;

    /// Whether a page should end before it has all its rows.
    fn is_full(&self) -> bool;

    /// Bytes that it takes in memory.
    fn bytes(&self) -> usize;
}

/// A column. Rows without a value need no call: they are filled up when the next value or the end of the page comes.
pub(in crate::block) struct Column<V> {
    descriptor: ColumnDescPtr,
    values: V,
    /// Only if the column is in a list.
    repetition: Runs,
    /// Only if there can be nothing.
    definition: Runs,
    /// Rows of the row group that have levels.
    rows: usize,
    /// The row at which the page begins.
    page_begin: usize,
    chunk: Chunk,
}

impl<V: Values + Default> Column<V> {
    pub(in crate::block) fn new(descriptor: ColumnDescPtr, options: Options) -> Self {
        Self {
            values: V::default(),
            repetition: Runs::default(),
            definition: Runs::default(),
            rows: 0,
            page_begin: 0,
            chunk: Chunk::new(ColumnDescPtr::clone(&descriptor), options),
            descriptor,
        }
    }
}

impl<V: Values> Column<V> {
    /// The value of the next row, of a column in which every row has one.
    #[inline]
    pub(in crate::block) fn push(&mut self, value: V::Item<'_>) {
        self.values.push(value);
        self.rows += 1;
    }

    /// The value of a row of the row group, of a column in which not every row has one.
    #[inline]
    pub(in crate::block) fn set(&mut self, row: usize, value: V::Item<'_>) {
        self.fill(row);
        self.definition.push(1, 1);
        self.values.push(value);
        self.rows = row + 1;
    }

    /// An element of a list in a row of the row group. `repetition` is 0 for the first one of a row, else the depth of the
    /// list that goes on; `definition` is the depth of what is there.
    #[inline]
    pub(in crate::block) fn element(
        &mut self,
        row: usize,
        repetition: u32,
        definition: u32,
        value: Option<V::Item<'_>>,
    ) {
        if repetition == 0 {
            self.fill(row);
            self.rows = row + 1;
        }
        self.repetition.push(repetition, 1);
        self.definition.push(definition, 1);
        if let Some(value) = value {
            self.values.push(value);
        }
    }

    /// Nothing in all rows before this one that have no levels yet.
    #[inline]
    fn fill(&mut self, row: usize) {
        if row > self.rows {
            let missing = row - self.rows;
            self.definition.push(0, missing as u32);
            if self.descriptor.max_rep_level() > 0 {
                self.repetition.push(0, missing as u32);
            }
            self.rows = row;
        }
    }
}

impl<V: Values> Leaf for Column<V> {
    fn end_page(&mut self, row: usize, compressor: &mut Compressor) -> Result<(), ParquetError> {
        self.fill(row);
        if self.rows == self.page_begin {
            return Ok(());
        }
        let levels = if self.descriptor.max_def_level() > 0 { self.definition.count() } else { self.values.len() };
        let page = &mut compressor.page;
        for (levels, most) in [
            (&mut self.repetition, self.descriptor.max_rep_level()),
            (&mut self.definition, self.descriptor.max_def_level()),
        ] {
            if most > 0 {
                let begin = page.len();
                page.extend_from_slice(&[0; 4]);
                levels.encode(width(most.unsigned_abs().into()), page);
                let length = (page.len() - begin - 4) as u32;
                if let Some(place) = page.get_mut(begin..begin + 4) {
                    place.copy_from_slice(&length.to_le_bytes());
                }
            }
            levels.clear();
        }
        let page = DataPage {
            values: levels,
            nulls: levels - self.values.len(),
            rows: self.rows - self.page_begin,
            bounds: if self.chunk.options().has_statistics { self.values.bounds() } else { None },
            encoding: self.values.take_page(page),
        };
        self.page_begin = self.rows;
        self.chunk.add_page(page, compressor)
    }

    fn end_chunk(
        &mut self,
        rows: usize,
        compressor: &mut Compressor,
    ) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
        self.end_page(rows, compressor)?;
        (self.rows, self.page_begin) = (0, 0);
        let dictionary = self.values.take_dictionary(&mut compressor.page);
        let next = Chunk::new(ColumnDescPtr::clone(&self.descriptor), self.chunk.options());
        std::mem::replace(&mut self.chunk, next).finish(dictionary, compressor)
    }

    fn is_full(&self) -> bool {
        self.values.is_full() || self.repetition.bytes() + self.definition.bytes() >= PAGE_BYTES
    }

    fn bytes(&self) -> usize {
        self.chunk.bytes() + self.values.bytes() + self.repetition.bytes() + self.definition.bytes()
    }
}
