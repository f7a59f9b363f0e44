//! Pages of a column chunk, compressed, until the row group is written.

use std::io::Write;

use bytes::Bytes;
use parquet::basic::BoundaryOrder;
use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::column::page::{CompressedPage, Page, PageWriteSpec, PageWriter};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats};
use parquet::file::writer::{SerializedPageWriter, TrackedWrite};
use parquet::schema::types::ColumnDescPtr;

use super::bounds::{Bound, around_zero, statistics};

/// Level of zstd.
const ZSTD_LEVEL: i32 = 1;

/// Compresses pages; shared by all columns.
pub(in crate::block) struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    /// The page that is built: kept for its memory.
    pub(super) page: Vec<u8>,
    compressed: Vec<u8>,
}

impl Compressor {
    pub(in crate::block) fn new() -> Result<Self, ParquetError> {
        Ok(Self { zstd: zstd::bulk::Compressor::new(ZSTD_LEVEL)?, page: Vec::new(), compressed: Vec::new() })
    }

    /// The page that was built as it goes to the file; the next one can be built afterwards.
    fn take(&mut self, is_compressed: bool) -> Result<Bytes, ParquetError> {
        let bytes = if is_compressed {
            self.compressed.clear();
            self.compressed.reserve(zstd::zstd_safe::compress_bound(self.page.len()));
            self.zstd.compress_to_buffer(&self.page, &mut self.compressed)?;
            Bytes::copy_from_slice(&self.compressed)
        } else {
            Bytes::copy_from_slice(&self.page)
        };
        self.page.clear();
        Ok(bytes)
    }
}

/// What is said of a data page.
pub(super) struct DataPage {
    /// Levels, or values if the column is required.
    pub(super) values: usize,
    pub(super) nulls: usize,
    pub(super) rows: usize,
    pub(super) encoding: Encoding,
    pub(super) bounds: Option<(Bound, Bound)>,
}

/// Which extras a column has.
#[derive(Clone, Copy, Debug)]
pub(in crate::block) struct Options {
    pub(in crate::block) is_compressed: bool,
    /// Smallest and largest value of each page and of the chunk.
    pub(in crate::block) has_statistics: bool,
}

/// A column chunk that is built.
pub(super) struct Chunk {
    descriptor: ColumnDescPtr,
    options: Options,
    pages: TrackedWrite<Vec<u8>>,
    offsets: OffsetIndexBuilder,
    /// None without statistics.
    index: Option<ColumnIndexBuilder>,
    bounds: Bounds,
    encodings: Vec<PageEncodingStats>,
    rows: usize,
    values: usize,
    nulls: usize,
    compressed: usize,
    uncompressed: usize,
}

impl Chunk {
    pub(super) fn new(descriptor: ColumnDescPtr, options: Options) -> Self {
        Self {
            index: options.has_statistics.then(|| ColumnIndexBuilder::new(descriptor.physical_type())),
            descriptor,
            options,
            pages: TrackedWrite::new(Vec::new()),
            offsets: OffsetIndexBuilder::new(),
            bounds: Bounds::default(),
            encodings: Vec::new(),
            rows: 0,
            values: 0,
            nulls: 0,
            compressed: 0,
            uncompressed: 0,
        }
    }

    pub(super) fn options(&self) -> Options {
        self.options
    }

    /// Bytes of its pages.
    pub(super) fn bytes(&self) -> usize {
        self.compressed
    }

    /// Adds the page that the compressor holds.
    pub(super) fn add_page(&mut self, page: DataPage, compressor: &mut Compressor) -> Result<(), ParquetError> {
        let uncompressed = compressor.page.len();
        let data = Page::DataPage {
            buf: compressor.take(self.options.is_compressed)?,
            num_values: page.values as u32,
            encoding: page.encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let spec = SerializedPageWriter::new(&mut self.pages).write_page(CompressedPage::new(data, uncompressed))?;
        self.note(&spec, page.encoding);
        self.offsets.append_row_count(page.rows as i64);
        self.offsets.append_offset_and_size(spec.offset as i64, spec.compressed_size as i32);
        self.rows += page.rows;
        self.values += page.values;
        self.nulls += page.nulls;
        let is_null = page.nulls == page.values;
        let bounds = page.bounds.map(around_zero);
        match (&mut self.index, &bounds) {
            (Some(index), Some((least, most))) => index.append(false, least.bytes(), most.bytes(), page.nulls as i64),
            (Some(index), None) if is_null => index.append(true, Vec::new(), Vec::new(), page.nulls as i64),
            // Nothing in the page can be compared.
            _ => self.index = None,
        }
        if let Some((least, most)) = bounds {
            self.bounds.add(least, most);
        }
        Ok(())
    }

    /// Ends the chunk, with the dictionary that the compressor holds if it has this number of values.
    pub(super) fn finish(
        mut self,
        dictionary: Option<usize>,
        compressor: &mut Compressor,
    ) -> Result<(Bytes, ColumnCloseResult), ParquetError> {
        let mut first = TrackedWrite::new(Vec::new());
        if let Some(values) = dictionary {
            let uncompressed = compressor.page.len();
            let page = Page::DictionaryPage {
                buf: compressor.take(self.options.is_compressed)?,
                num_values: values as u32,
                encoding: Encoding::PLAIN,
                is_sorted: false,
            };
            let spec = SerializedPageWriter::new(&mut first).write_page(CompressedPage::new(page, uncompressed))?;
            self.note(&spec, Encoding::PLAIN);
            // It stands before the pages that were noted before it.
            self.encodings.rotate_right(1);
        }
        compressor.page.clear();
        let before = first.bytes_written();
        first.flush()?;
        let mut bytes = first.into_inner()?;
        bytes.append(&mut self.pages.into_inner()?);
        let encodings = self.encodings.iter().map(|stats| stats.encoding).chain([Encoding::RLE]).collect();
        let codec = if self.options.is_compressed {
            Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?)
        } else {
            Compression::UNCOMPRESSED
        };
        let mut metadata = ColumnChunkMetaData::builder(self.descriptor)
            .set_compression(codec)
            .set_encodings(encodings)
            .set_page_encoding_stats(self.encodings)
            .set_total_compressed_size(self.compressed as i64)
            .set_total_uncompressed_size(self.uncompressed as i64)
            .set_num_values(self.values as i64)
            .set_data_page_offset(before as i64)
            .set_dictionary_page_offset(dictionary.map(|_| 0));
        let order = self.bounds.order();
        let bounds = self.bounds.chunk.filter(|_| self.options.has_statistics);
        if let Some(statistics) = bounds.and_then(|(least, most)| statistics(least, most, self.nulls as u64)) {
            metadata = metadata.set_statistics(statistics);
        }
        let column_index = self.index.map(|mut index| {
            index.set_boundary_order(order);
            index.build()
        });
        let mut offset_index = self.offsets.build();
        offset_index.page_locations.iter_mut().for_each(|page| page.offset += before as i64);
        let close = ColumnCloseResult {
            bytes_written: self.compressed as u64,
            rows_written: self.rows as u64,
            metadata: metadata.build()?,
            bloom_filter: None,
            column_index: column_index.transpose()?,
            offset_index: Some(offset_index),
        };
        Ok((bytes.into(), close))
    }

    fn note(&mut self, page: &PageWriteSpec, encoding: Encoding) {
        self.compressed += page.compressed_size;
        self.uncompressed += page.uncompressed_size;
        match self.encodings.last_mut() {
            Some(last) if last.page_type == page.page_type && last.encoding == encoding => last.count += 1,
            _ => self.encodings.push(PageEncodingStats { page_type: page.page_type, encoding, count: 1 }),
        }
    }
}

/// Smallest and largest values of the pages so far.
#[derive(Default)]
struct Bounds {
    chunk: Option<(Bound, Bound)>,
    last: Option<(Bound, Bound)>,
    falls: bool,
    rises: bool,
}

impl Bounds {
    fn add(&mut self, least: Bound, most: Bound) {
        if let Some((last_least, last_most)) = &self.last {
            self.falls |= least < *last_least || most < *last_most;
            self.rises |= least > *last_least || most > *last_most;
        }
        self.chunk = Some(match self.chunk.take() {
            Some((chunk_least, chunk_most)) => (
                if least < chunk_least { least.clone() } else { chunk_least },
                if most > chunk_most { most.clone() } else { chunk_most },
            ),
            None => (least.clone(), most.clone()),
        });
        self.last = Some((least, most));
    }

    fn order(&self) -> BoundaryOrder {
        match (self.falls, self.rises) {
            (false, _) => BoundaryOrder::ASCENDING,
            (true, false) => BoundaryOrder::DESCENDING,
            (true, true) => BoundaryOrder::UNORDERED,
        }
    }
}
