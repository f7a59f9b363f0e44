//! An open block.

use std::collections::HashMap;
use std::iter;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder, RowSelection,
};
use parquet::errors::ParquetError;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::page_index::offset_index::OffsetIndexMetaData;
use parquet::file::reader::Length;

use super::attributes::AttributesFooter;
use super::object::ObjectReader;
use super::schema::{column, footer, read_schema};
use super::tables::Tables;
use super::writer::Checksum;
use super::{AttributeCounts, BlockError, BlockSummary, Columns, FORMAT_VERSION, Promoted, ResourceEntry, ScopeEntry};
use crate::store::Store;

/// Bytes that are fetched first, from the end: the whole footer of all but the largest blocks.
const TAIL_BYTES: u64 = 96 << 10;

/// A block that can be read: its footer is parsed, its rows are not. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Block {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    object: ObjectReader,
    metadata: ArrowReaderMetadata,
    summary: BlockSummary,
    counts: AttributeCounts,
    columns: Columns,
    tables: OnceLock<Tables>,
}

impl Block {
    /// Opens a block that is known by its summary.
    pub fn open(store: Arc<dyn Store>, summary: &BlockSummary) -> Result<Self, BlockError> {
        Self::of_object(ObjectReader::new(store, summary.data_path().into(), summary.bytes))
    }

    /// Opens any block.
    pub fn open_path(store: Arc<dyn Store>, path: &str) -> Result<Self, BlockError> {
        let size = store.size(path)?;
        Self::of_object(ObjectReader::new(store, path.into(), size))
    }

    /// Opens a block that is in memory; `path` names it in errors.
    pub fn of_bytes(path: &str, bytes: Bytes) -> Result<Self, BlockError> {
        Self::of_object(ObjectReader::of_bytes(path.into(), bytes))
    }

    fn of_object(object: ObjectReader) -> Result<Self, BlockError> {
        let path = object.path();
        let size = object.len();
        let with_tail = object.prefetch(iter::once(size.saturating_sub(TAIL_BYTES)..size))?;
        let metadata = guarded(path, || {
            let mut reader = ParquetMetaDataReader::new().with_page_index_policy(PageIndexPolicy::Optional);
            reader.try_parse(&with_tail)?;
            reader.finish()
        })?;
        let entries = metadata.file_metadata().key_value_metadata().map(Vec::as_slice).unwrap_or_default();
        let entries: HashMap<&str, &str> =
            entries.iter().filter_map(|entry| Some((entry.key.as_str(), entry.value.as_deref()?))).collect();
        let missing = |key: &str| BlockError::damaged(path, format!("{key} is missing"));
        let entry = |key: &'static str| entries.get(key).copied().ok_or_else(|| missing(key));
        let found = entry(footer::FORMAT)?;
        if found != FORMAT_VERSION.to_string() {
            return Err(BlockError::Version { path: path.to_owned(), found: found.to_owned() });
        }
        let unread =
            |key: &'static str| move |error: serde_json::Error| BlockError::damaged(path, format!("{key}: {error}"));
        let mut summary: BlockSummary =
            serde_json::from_str(entry(footer::SUMMARY)?).map_err(unread(footer::SUMMARY))?;
        summary.bytes = size;
        let attributes: AttributesFooter =
            serde_json::from_str(entry(footer::ATTRIBUTES)?).map_err(unread(footer::ATTRIBUTES))?;
        let (counts, columns) = attributes
            .read()
            .ok_or_else(|| BlockError::damaged(path, format!("{}: wrong numbers of columns", footer::ATTRIBUTES)))?;
        check(path, size, &metadata, &summary)?;
        let metadata = guarded(path, || {
            let schema = Arc::new(read_schema(&metadata)?);
            ArrowReaderMetadata::try_new(Arc::new(metadata), ArrowReaderOptions::new().with_schema(schema))
        })?;
        let names = metadata.schema().fields().iter().map(|field| field.name());
        let promoted = names.filter(|name| name.starts_with(column::PROMOTED_PREFIX)).count();
        if promoted != columns.promoted().len() {
            let what = format!("{}: {} columns, not {promoted}", footer::ATTRIBUTES, columns.promoted().len());
            return Err(BlockError::damaged(path, what));
        }
        Ok(Self { inner: Arc::new(Inner { object, metadata, summary, counts, columns, tables: OnceLock::new() }) })
    }

    /// Where it lies in the store.
    pub fn path(&self) -> &str {
        self.inner.object.path()
    }

    /// What its footer says of it; the sizes are those that were found, 0 for the filter.
    pub fn summary(&self) -> &BlockSummary {
        &self.inner.summary
    }

    /// The parsed footer, with page index, and the types that columns are read as.
    pub fn metadata(&self) -> &ArrowReaderMetadata {
        &self.inner.metadata
    }

    /// The types that columns are read as; names are those of [`super::schema`].
    pub fn schema(&self) -> &SchemaRef {
        self.inner.metadata.schema()
    }

    /// Bytes that the open block takes in memory, about.
    pub fn memory(&self) -> usize {
        let entries = self.parquet().file_metadata().key_value_metadata().map(Vec::as_slice).unwrap_or_default();
        // Tables are compressed in the footer; decoded strings and vectors take about ten times that.
        let tables: usize = entries.iter().map(|entry| entry.value.as_ref().map_or(0, String::len) * 10).sum();
        size_of::<Inner>() + self.parquet().memory_size() + tables
    }

    /// How many spans have an attribute, by key and type.
    pub fn attribute_counts(&self) -> &AttributeCounts {
        &self.inner.counts
    }

    /// Attributes that have a column, in the order of the columns.
    pub fn promoted(&self) -> &[Promoted] {
        self.inner.columns.promoted()
    }

    /// The distinct resources; rows say the index.
    pub fn resources(&self) -> Result<&[ResourceEntry], BlockError> {
        Ok(&self.tables()?.resources)
    }

    /// The distinct scopes; rows say the index.
    pub fn scopes(&self) -> Result<&[ScopeEntry], BlockError> {
        Ok(&self.tables()?.scopes)
    }

    pub(super) fn checksum(&self) -> Result<Checksum, BlockError> {
        let text = self.entry(footer::CHECKSUM)?;
        let unread = |error| BlockError::damaged(self.path(), format!("{}: {error}", footer::CHECKSUM));
        serde_json::from_str(text).map_err(unread)
    }

    fn entry(&self, key: &str) -> Result<&str, BlockError> {
        let entries = self.parquet().file_metadata().key_value_metadata().map(Vec::as_slice).unwrap_or_default();
        let entry = entries.iter().find(|entry| entry.key == key).and_then(|entry| entry.value.as_deref());
        entry.ok_or_else(|| BlockError::damaged(self.path(), format!("{key} is missing")))
    }

    pub(super) fn tables(&self) -> Result<&Tables, BlockError> {
        if let Some(tables) = self.inner.tables.get() {
            return Ok(tables);
        }
        let tables = Tables::decode(self.path(), self.entry(footer::RESOURCES)?, self.entry(footer::SCOPES)?)?;
        Ok(self.inner.tables.get_or_init(|| tables))
    }

    /// The footer without arrow's types.
    pub fn parquet(&self) -> &ParquetMetaData {
        self.inner.metadata.metadata()
    }

    /// The columns of these names, which must be top-level ones.
    pub fn mask<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> ProjectionMask {
        let roots = names.into_iter().filter_map(|name| self.schema().index_of(name).ok());
        ProjectionMask::roots(self.inner.metadata.parquet_schema(), roots)
    }

    /// The object with these byte ranges in memory, fetched with one call of the store; the rest is fetched when it is
    /// asked for. For readers that the caller builds himself with [`Block::metadata`].
    pub fn reader(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<ObjectReader, BlockError> {
        Ok(self.inner.object.prefetch(ranges)?)
    }

    /// Byte ranges of the pages that hold the selected rows of a row group, all rows if there is no selection, in these
    /// columns; with the dictionaries of the columns.
    pub fn byte_ranges(
        &self,
        row_group: usize,
        mask: &ProjectionMask,
        selection: Option<&RowSelection>,
    ) -> Vec<Range<u64>> {
        let Some(chunks) = self.parquet().row_groups().get(row_group).map(RowGroupMetaData::columns) else {
            return Vec::new();
        };
        let pages = self.parquet().offset_index().and_then(|index| index.get(row_group));
        let mut ranges = Vec::new();
        for (number, chunk) in chunks.iter().enumerate().filter(|(number, _)| mask.leaf_included(*number)) {
            let (start, length) = chunk.byte_range();
            let pages = pages.and_then(|columns| columns.get(number)).map(OffsetIndexMetaData::page_locations);
            match (selection, pages) {
                (Some(selection), Some(pages)) if !pages.is_empty() => {
                    let first_page = pages.first().map_or(start, |page| page.offset.unsigned_abs());
                    let selected = selection.scan_ranges(pages);
                    if !selected.is_empty() && first_page > start {
                        ranges.push(start..first_page);
                    }
                    ranges.extend(selected);
                }
                _ => ranges.push(start..start.saturating_add(length)),
            }
        }
        ranges
    }

    /// Rows of a row group in record batches of at most `batch_size` rows; the bytes are fetched here, with one call of
    /// the store.
    pub fn rows(
        &self,
        row_group: usize,
        mask: ProjectionMask,
        selection: Option<RowSelection>,
        batch_size: usize,
    ) -> Result<Rows, BlockError> {
        let object = self.reader(self.byte_ranges(row_group, &mask, selection.as_ref()))?;
        let reader = guarded(self.path(), || {
            let builder = ParquetRecordBatchReaderBuilder::new_with_metadata(object, self.inner.metadata.clone())
                .with_row_groups(vec![row_group])
                .with_projection(mask)
                .with_batch_size(batch_size);
            match selection {
                Some(selection) => builder.with_row_selection(selection).build(),
                None => builder.build(),
            }
        })?;
        Ok(Rows { block: self.clone(), reader: Some(reader) })
    }
}

/// Iterator of [`Block::rows`]. Ends after the first error.
pub struct Rows {
    block: Block,
    reader: Option<ParquetRecordBatchReader>,
}

impl Iterator for Rows {
    type Item = Result<RecordBatch, BlockError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        let batch = guarded(self.block.path(), || Ok(reader.next().transpose()?));
        if batch.is_err() {
            self.reader = None;
        }
        batch.transpose()
    }
}

/// Runs code of the Parquet library. It is made to refuse bad bytes, but on some it panics: that is an error of the block,
/// and must not end the program.
pub(super) fn guarded<T>(path: &str, run: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, BlockError> {
    // What was half done inside is dropped, so nothing broken is seen afterwards.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(result) => result.map_err(|error| BlockError::of_parquet(path, error)),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(BlockError::damaged(path, format!("the Parquet library panics: {message}")))
        }
    }
}

/// What the Parquet library takes on trust.
fn check(path: &str, size: u64, metadata: &ParquetMetaData, summary: &BlockSummary) -> Result<(), BlockError> {
    let damaged = |what: &str| Err(BlockError::damaged(path, what));
    let mut rows = 0_u64;
    for (number, group) in metadata.row_groups().iter().enumerate() {
        rows = rows.saturating_add(u64::try_from(group.num_rows()).unwrap_or(u64::MAX));
        let pages = metadata.offset_index().and_then(|index| index.get(number));
        let Some(pages) = pages.filter(|pages| pages.len() == group.num_columns()) else {
            return damaged("it has no page index");
        };
        for (chunk, pages) in group.columns().iter().zip(pages) {
            let start = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
            if start < 0 || chunk.compressed_size() < 0 {
                return damaged("a column begins before the file does");
            }
            let (start, length) = chunk.byte_range();
            let Some(end) = start.checked_add(length).filter(|end| *end <= size) else {
                return damaged("a column ends after the file does");
            };
            let pages = pages.page_locations();
            let mut at = (start, -1);
            for page in pages {
                let (Ok(offset), Ok(length)) = (u64::try_from(page.offset), u64::try_from(page.compressed_page_size))
                else {
                    return damaged("a page has a negative place");
                };
                if offset < at.0 || page.first_row_index <= at.1 || page.first_row_index >= group.num_rows() {
                    return damaged("pages are not in order");
                }
                let Some(after) = offset.checked_add(length).filter(|after| *after <= end) else {
                    return damaged("a page ends after its column does");
                };
                at = (after, page.first_row_index);
            }
            if pages.first().is_none_or(|first| first.first_row_index != 0) {
                return damaged("the first row is in no page");
            }
        }
    }
    if rows != summary.spans {
        return damaged("it has not as many rows as its summary says");
    }
    Ok(())
}
