//! Writing a block.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::Arc;

use fail::fail_point;
use foldhash::fast::RandomState;
use parquet::arrow::ArrowSchemaConverter;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::writer::SerializedFileWriter;

use super::attributes::AttributesFooter;
use super::buffers::{Buffers, Place, Row};
use super::encodings::writer_properties;
use super::schema::{footer, write_schema};
use super::tables::TableBuilder;
use super::{AttributeCounts, BlockError, BlockId, BlockSummary, Columns, FORMAT_VERSION, Filter};
use crate::live::{Batch, Trace, TraceId};
use crate::otlp::SpanRef;
use crate::query::{NestedLink, distinct_spans, number_nested};
use crate::store::{Store, Upload};

/// Spans that [`write_block`] looks at to choose the columns.
const SAMPLED_SPANS: usize = 4_096;

/// Batches whose numbers are remembered where traces come from blocks: each trace brings its own.
const REMEMBERED_BATCHES: usize = 1_024;

/// A block that is to be written.
#[derive(Clone, Debug)]
pub struct NewBlock {
    /// Identity.
    pub id: BlockId,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// How often its traces were compacted.
    pub level: u8,
    /// When the first of its spans was received, nanoseconds since the epoch.
    pub received_first_ns: u64,
    /// When the last of its spans was received, nanoseconds since the epoch.
    pub received_last_ns: u64,
}

/// Writes a block, trace by trace. Holds one row group in memory. Dropped before the end, it leaves nothing behind.
pub struct BlockWriter<'a> {
    store: &'a dyn Store,
    summary: BlockSummary,
    columns: Columns,
    buffers: Buffers,
    tables: TableBuilder,
    ids: Vec<TraceId>,
    file: SerializedFileWriter<Output>,
}

/// What goes to the store is counted and summed up.
struct Output {
    upload: Box<dyn Upload>,
    bytes: u64,
    checksum: u32,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.upload.write(bytes)?;
        self.bytes += count as u64;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.upload.flush()
    }
}

impl<'a> BlockWriter<'a> {
    /// Begins a block; `columns` says which attributes get a column.
    pub fn create(store: &'a dyn Store, new: NewBlock, columns: Columns) -> Result<Self, BlockError> {
        let NewBlock { id, tenant, level, received_first_ns, received_last_ns } = new;
        let summary = BlockSummary {
            id,
            tenant,
            level,
            start_ns: u64::MAX,
            end_ns: 0,
            received_first_ns,
            received_last_ns,
            spans: 0,
            traces: 0,
            bytes: 0,
            filter_bytes: 0,
            services: None,
        };
        let path = summary.data_path();
        let failed = |error| BlockError::of_parquet(&path, error);
        let schema =
            ArrowSchemaConverter::new().schema_root("spans").convert(&write_schema(&columns)).map_err(failed)?;
        let buffers = Buffers::new(&schema, &columns).map_err(failed)?;
        let output = Output { upload: store.upload(&path)?, bytes: 0, checksum: 0 };
        let file = SerializedFileWriter::new(output, schema.root_schema_ptr(), writer_properties()).map_err(failed)?;
        let tables = TableBuilder::new(REMEMBERED_BATCHES);
        Ok(Self { store, summary, buffers, columns, tables, ids: Vec::new(), file })
    }

    /// Says how many traces will come at most, so that their ids take no more memory than they must.
    pub fn expect(&mut self, traces: usize) {
        self.ids.reserve_exact(traces);
    }

    /// Adds a trace, without the spans that came again. Its id must be above those that were added before. A trace without
    /// spans is left out.
    pub fn push(&mut self, trace: &Trace) -> Result<(), BlockError> {
        if let Some(last) = self.ids.last().filter(|last| **last >= trace.id) {
            return Err(BlockError::Order { id: trace.id, last: *last });
        }
        let spans = distinct_spans(trace);
        let starts = spans.iter().map(|(_, span)| span.start_time_unix_nano);
        let ends = spans.iter().map(|(_, span)| span.end_time_unix_nano);
        let Some(trace_start_ns) = starts.clone().min() else { return Ok(()) };
        let trace_end_ns = ends.clone().max().unwrap_or_default();
        let latest = starts.zip(ends).map(|(start, end)| start.max(end)).max().unwrap_or_default();
        let links: Vec<_> = spans.iter().map(|(_, span)| NestedLink::of(span)).collect();
        let nested = number_nested(&links);
        let places = self.places(&spans);
        // Spans that are in no tree come last, and those of one number in the order of arrival.
        let mut order: Vec<_> = nested.iter().map(|nested| nested.left.wrapping_sub(1) as u32).zip(0_usize..).collect();
        order.sort_unstable();
        for (_, index) in order {
            let (Some((_, span)), Some(nested), Some(place)) = (spans.get(index), nested.get(index), places.get(index))
            else {
                continue;
            };
            let wrong = |_| BlockError::SpanId { trace: trace.id, length: span.span_id.len() };
            let span_id = span.span_id.try_into().map_err(wrong)?;
            let (nested, place) = (*nested, *place);
            let service_name = self.tables.service_name(place.numbers.resource);
            let row =
                Row { trace_id: trace.id.0, trace_start_ns, trace_end_ns, span_id, span, nested, service_name, place };
            let mut pushed = self.buffers.push(&row);
            if pushed.is_ok() && self.buffers.is_full() {
                pushed = self.buffers.write(&mut self.file);
            }
            pushed.map_err(|error| BlockError::of_parquet(&self.summary.data_path(), error))?;
        }
        self.ids.push(trace.id);
        self.summary.traces += 1;
        self.summary.spans += spans.len() as u64;
        self.summary.start_ns = self.summary.start_ns.min(trace_start_ns);
        self.summary.end_ns = self.summary.end_ns.max(latest);
        Ok(())
    }

    /// Under what each of these spans was sent. `ResourceSpans` and `ScopeSpans` are numbered from 0; batches under the same
    /// resource, not only an equal one, came in one `ResourceSpans`.
    fn places(&mut self, spans: &[(&Arc<Batch>, SpanRef<'_>)]) -> Vec<Place> {
        let mut resources = HashMap::<_, i32, RandomState>::default();
        let mut places: Vec<Place> = Vec::with_capacity(spans.len());
        let mut before: Option<&Arc<Batch>> = None;
        for (batch, _) in spans {
            let place = match places.last() {
                Some(place) if before.is_some_and(|before| Arc::ptr_eq(before, batch)) => *place,
                last => {
                    let next = resources.len() as i32;
                    let numbers = self.tables.number(batch);
                    // The number stands for the schema URL: resources of two URLs have two.
                    let resource = (Arc::as_ptr(&batch.resource), numbers.resource);
                    Place {
                        numbers,
                        resource_spans: *resources.entry(resource).or_insert(next),
                        scope_spans: last.map_or(0, |last| last.scope_spans + 1),
                    }
                }
            };
            before = Some(batch);
            places.push(place);
        }
        places
    }

    /// Ends the block; returns the ids of its traces too, rising. Both files are on stable storage afterwards, the filter
    /// first.
    pub fn finish(mut self) -> Result<(BlockSummary, Filter, Vec<TraceId>), BlockError> {
        let path = self.summary.data_path();
        if self.summary.traces == 0 {
            self.summary.start_ns = 0;
        }
        self.summary.services = self.tables.services();
        let failed = |error: ParquetError| BlockError::of_parquet(&path, error);
        let failed_io = |error: io::Error| BlockError::of_parquet(&path, error.into());
        let mut file = self.file;
        self.buffers.write(&mut file).map_err(failed)?;
        file.flush().map_err(failed_io)?;
        let counts = self.buffers.attribute_counts();
        let checksum = Checksum { bytes: file.inner().bytes, crc32c: file.inner().checksum };
        let mut entries = vec![
            KeyValue::new(footer::FORMAT.to_owned(), FORMAT_VERSION.to_string()),
            KeyValue::new(footer::SUMMARY.to_owned(), json(&path, &self.summary)?),
            KeyValue::new(footer::ATTRIBUTES.to_owned(), json(&path, &AttributesFooter::new(&counts, &self.columns))?),
            KeyValue::new(footer::CHECKSUM.to_owned(), json(&path, &checksum)?),
        ];
        entries.extend(self.tables.encode().map_err(failed_io)?);
        for entry in entries {
            file.append_key_value_metadata(entry);
        }
        let output = file.into_inner().map_err(failed)?;

        let filter = Filter::of(self.ids.iter().copied());
        let encoded = filter.encode();
        self.summary.filter_bytes = encoded.len() as u64;
        self.store.create(&self.summary.filter_path(), encoded.into())?;
        fail_point!("block::filter_written");
        self.summary.bytes = output.upload.finish()?;
        Ok((self.summary, filter, self.ids))
    }
}

/// Writes a block of these traces, which are sorted by id; chooses the columns by a sample of them.
pub fn write_block(
    store: &dyn Store,
    new: NewBlock,
    traces: &[Arc<Trace>],
) -> Result<(BlockSummary, Filter), BlockError> {
    let spans: usize = traces.iter().map(|trace| trace.spans.len()).sum();
    let (mut counts, mut sampled) = (AttributeCounts::default(), 0);
    // Ids are random, so every n-th trace is as good a sample as any.
    for trace in traces.iter().step_by(spans.div_ceil(SAMPLED_SPANS).max(1)) {
        counts.observe(trace);
        sampled += trace.spans.len() as u64;
    }
    let mut writer = BlockWriter::create(store, new, Columns::choose(&counts, sampled))?;
    // Each batch has spans in many traces, and is in memory as long as these are.
    writer.tables = TableBuilder::new(usize::MAX);
    for trace in traces {
        trace.fetch();
        writer.push(trace)?;
    }
    let (summary, filter, _) = writer.finish()?;
    Ok((summary, filter))
}

/// Covers the file up to the page index.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub(super) struct Checksum {
    pub(super) bytes: u64,
    pub(super) crc32c: u32,
}

fn json(path: &str, value: &impl serde::Serialize) -> Result<String, BlockError> {
    serde_json::to_string(value).map_err(|error| BlockError::damaged(path, error.to_string()))
}
