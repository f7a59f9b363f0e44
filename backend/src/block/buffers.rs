//! The row group that is filled, column by column.

use std::io::Write;

use parquet::errors::ParquetError;
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::SchemaDescriptor;

use super::attributes::{AttributeCounts, Columns};
use super::encodings::Leaves;
use super::lists::{AttributeList, Events, Links, Value, not_0, text};
use super::pages::{Column, Compressor, Dictionary, Ids, Leaf, Numbers, Plain, Split, Texts};
use super::promoted::SpanAttributes;
use super::tables::Numbers as TableNumbers;
use crate::otlp::{Attributes, SpanRef};
use crate::query::NestedSet;

/// Most rows of a row group.
const ROW_GROUP_ROWS: usize = 131_072;

/// A row group ends when it takes so much memory, however few its rows are.
const ROW_GROUP_BYTES: usize = 48 << 20;

/// A row group ends when so many bytes of text were in it, however small they have become: readers take them as they were.
const ROW_GROUP_TEXT_BYTES: usize = 256 << 20;

/// Most rows of a page: what a reader of one trace decodes of each column.
const PAGE_ROWS: usize = 8_192;

/// Bytes of text after which columns are asked whether their pages are full.
const CHECK_BYTES: usize = 256 << 10;

/// A span with what its columns say besides.
pub(super) struct Row<'a> {
    pub(super) trace_id: [u8; 16],
    pub(super) trace_start_ns: u64,
    pub(super) trace_end_ns: u64,
    pub(super) span_id: [u8; 8],
    pub(super) span: &'a SpanRef<'a>,
    pub(super) nested: NestedSet,
    pub(super) service_name: Option<&'a str>,
    pub(super) place: Place,
}

/// Under what a span was sent.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) numbers: TableNumbers,
    pub(super) resource_spans: i32,
    pub(super) scope_spans: i32,
}

/// The row group that is filled. Column by column, in the order of `write_schema`.
pub(super) struct Buffers {
    compressor: Compressor,
    /// Rows of the row group.
    rows: usize,
    /// Bytes of text in the row group, about.
    text_bytes: usize,
    /// As many as there were when columns were asked last.
    checked_bytes: usize,
    is_full: bool,
    trace_id: Column<Ids<16>>,
    span_id: Column<Ids<8>>,
    parent_span_id: Column<Dictionary<Texts>>,
    nested_left: Column<Split<i32>>,
    nested_right: Column<Split<i32>>,
    nested_parent: Column<Split<i32>>,
    trace_start: Column<Plain<u64>>,
    trace_end: Column<Plain<u64>>,
    start_offset: Column<Split<u64>>,
    duration: Column<Split<i64>>,
    name: Column<Dictionary<Texts>>,
    kind: Column<Dictionary<Numbers<i32>>>,
    status_code: Column<Dictionary<Numbers<i32>>>,
    status_message: Column<Dictionary<Texts>>,
    trace_state: Column<Dictionary<Texts>>,
    flags: Column<Dictionary<Numbers<u32>>>,
    dropped_attributes_count: Column<Dictionary<Numbers<u32>>>,
    dropped_events_count: Column<Dictionary<Numbers<u32>>>,
    dropped_links_count: Column<Dictionary<Numbers<u32>>>,
    service_name: Column<Dictionary<Texts>>,
    resource: Column<Dictionary<Numbers<i32>>>,
    scope: Column<Dictionary<Numbers<i32>>>,
    resource_spans: Column<Dictionary<Numbers<i32>>>,
    scope_spans: Column<Dictionary<Numbers<i32>>>,
    span_attributes: SpanAttributes,
    events: Events,
    links: Links,
}

impl Buffers {
    /// No rows, of a schema that `write_schema` made of these columns.
    pub(super) fn new(schema: &SchemaDescriptor, columns: &Columns) -> Result<Self, ParquetError> {
        let mut leaves = Leaves::of(schema);
        Ok(Self {
            compressor: Compressor::new()?,
            rows: 0,
            text_bytes: 0,
            checked_bytes: 0,
            is_full: false,
            trace_id: leaves.column()?,
            span_id: leaves.column()?,
            parent_span_id: leaves.column()?,
            nested_left: leaves.column()?,
            nested_right: leaves.column()?,
            nested_parent: leaves.column()?,
            trace_start: leaves.column()?,
            trace_end: leaves.column()?,
            start_offset: leaves.column()?,
            duration: leaves.column()?,
            name: leaves.column()?,
            kind: leaves.column()?,
            status_code: leaves.column()?,
            status_message: leaves.column()?,
            trace_state: leaves.column()?,
            flags: leaves.column()?,
            dropped_attributes_count: leaves.column()?,
            dropped_events_count: leaves.column()?,
            dropped_links_count: leaves.column()?,
            service_name: leaves.column()?,
            resource: leaves.column()?,
            scope: leaves.column()?,
            resource_spans: leaves.column()?,
            scope_spans: leaves.column()?,
            span_attributes: SpanAttributes::new(columns, &mut leaves)?,
            events: Events::new(&mut leaves)?,
            links: Links::new(&mut leaves)?,
        })
    }

    /// Whether the row group should be written.
    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// How many rows so far, written ones included, have an attribute.
    pub(super) fn attribute_counts(&self) -> AttributeCounts {
        self.span_attributes.counts()
    }

    /// Adds a row; ends the pages that are full with it.
    pub(super) fn push(&mut self, row: &Row<'_>) -> Result<(), ParquetError> {
        let (span, place) = (row.span, &row.place);
        let at = self.rows;
        self.trace_id.push(row.trace_id);
        self.span_id.push(row.span_id);
        let NestedSet { left, right, parent } = row.nested;
        // The parent's id stands in the parent's own row, if that is known.
        let is_known = parent > 0 || (parent == -1 && span.parent_span_id.is_empty());
        if !is_known {
            self.parent_span_id.set(at, span.parent_span_id);
        }
        self.nested_left.push(left);
        self.nested_right.push(right);
        self.nested_parent.push(parent);
        self.trace_start.push(row.trace_start_ns);
        self.trace_end.push(row.trace_end_ns);
        self.start_offset.push(span.start_time_unix_nano.wrapping_sub(row.trace_start_ns));
        self.duration.push(span.end_time_unix_nano.wrapping_sub(span.start_time_unix_nano) as i64);
        self.name.push(span.name.as_bytes());
        self.kind.push(span.kind);
        let message = span.status.unwrap_or_default().message;
        set(&mut self.status_code, at, span.status.map(|status| status.code));
        set(&mut self.status_message, at, text(message));
        set(&mut self.trace_state, at, text(span.trace_state));
        set(&mut self.flags, at, not_0(span.flags));
        set(&mut self.dropped_attributes_count, at, not_0(span.dropped_attributes_count));
        set(&mut self.dropped_events_count, at, not_0(span.dropped_events_count));
        set(&mut self.dropped_links_count, at, not_0(span.dropped_links_count));
        set(&mut self.service_name, at, row.service_name.map(str::as_bytes));
        self.resource.push(place.numbers.resource);
        self.scope.push(place.numbers.scope);
        if place.resource_spans != place.scope_spans {
            self.resource_spans.set(at, place.resource_spans);
        }
        self.scope_spans.push(place.scope_spans);
        self.text_bytes += span.as_bytes().len();
        self.span_attributes.begin(at);
        for attribute in span.attributes() {
            self.span_attributes.push(attribute.key, Value::of(attribute.value));
        }
        self.span_attributes.end();
        for (number, event) in span.events().enumerate() {
            let time_offset = event.time_unix_nano.wrapping_sub(span.start_time_unix_nano) as i64;
            extend(self.events.push(at, number, time_offset, &event), event.attributes());
        }
        for (number, link) in span.links().enumerate() {
            extend(self.links.push(at, number, &link), link.attributes());
        }
        self.rows += 1;
        self.end_pages()
    }

    /// Ends the pages that are full.
    fn end_pages(&mut self) -> Result<(), ParquetError> {
        let all = self.rows.is_multiple_of(PAGE_ROWS);
        if !all && self.text_bytes - self.checked_bytes < CHECK_BYTES {
            return Ok(());
        }
        self.checked_bytes = self.text_bytes;
        let (rows, mut bytes) = (self.rows, 0);
        let (compressor, leaves) = self.leaves();
        for leaf in leaves {
            if all || leaf.is_full() {
                leaf.end_page(rows, compressor)?;
            }
            bytes += leaf.bytes();
        }
        self.is_full = rows >= ROW_GROUP_ROWS || bytes >= ROW_GROUP_BYTES || self.text_bytes >= ROW_GROUP_TEXT_BYTES;
        Ok(())
    }

    /// Writes the rows as a row group, if there are any; none are left afterwards.
    pub(super) fn write(&mut self, file: &mut SerializedFileWriter<impl Write + Send>) -> Result<(), ParquetError> {
        let rows = std::mem::take(&mut self.rows);
        if rows == 0 {
            return Ok(());
        }
        (self.text_bytes, self.checked_bytes, self.is_full) = (0, 0, false);
        let mut group = file.next_row_group()?;
        let (compressor, leaves) = self.leaves();
        for leaf in leaves {
            let (bytes, closed) = leaf.end_chunk(rows, compressor)?;
            group.append_column(&bytes, closed)?;
        }
        group.close()?;
        Ok(())
    }

    /// All columns, in the order of the schema, and what they need to end pages.
    fn leaves(&mut self) -> (&mut Compressor, impl Iterator<Item = &mut dyn Leaf>) {
        let before: [&mut dyn Leaf; 24] = [
            &mut self.trace_id,
            &mut self.span_id,
            &mut self.parent_span_id,
            &mut self.nested_left,
            &mut self.nested_right,
            &mut self.nested_parent,
            &mut self.trace_start,
            &mut self.trace_end,
            &mut self.start_offset,
            &mut self.duration,
            &mut self.name,
            &mut self.kind,
            &mut self.status_code,
            &mut self.status_message,
            &mut self.trace_state,
            &mut self.flags,
            &mut self.dropped_attributes_count,
            &mut self.dropped_events_count,
            &mut self.dropped_links_count,
            &mut self.service_name,
            &mut self.resource,
            &mut self.scope,
            &mut self.resource_spans,
            &mut self.scope_spans,
        ];
        let lists = self.span_attributes.leaves().chain(self.events.leaves()).chain(self.links.leaves());
        (&mut self.compressor, before.into_iter().chain(lists))
    }
}

/// Sets the value of a row if there is one.
#[inline]
fn set<V: super::pages::Values>(column: &mut Column<V>, row: usize, value: Option<V::Item<'_>>) {
    if let Some(value) = value {
        column.set(row, value);
    }
}

/// Fills the list of an event or a link.
fn extend(list: &mut AttributeList, attributes: Attributes<'_>) {
    attributes.for_each(|attribute| list.push(attribute.key, Value::of(attribute.value)));
    list.end();
}
