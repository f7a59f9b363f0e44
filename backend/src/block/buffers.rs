//! Rows that are not written yet, column by column.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, BooleanBuilder, Float64Builder, Int32Builder, Int64Builder, StringBuilder,
    UInt32Builder,
};
use arrow_array::{ArrayRef, FixedSizeBinaryArray, Int32Array, Int64Array, RecordBatch, UInt64Array};
use arrow_buffer::Buffer;
use arrow_schema::{ArrowError, SchemaRef};
use foldhash::fast::RandomState;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;

use super::attributes::{AttributeCounts, AttributeType, Columns};
use super::lists::{AttributeList, Events, Links, number, text, value_bytes};
use super::schema::ORDER_OF_LIST;
use super::tables::Numbers;
use crate::query::NestedSet;

/// A span with what its columns say besides.
pub(super) struct Row<'a> {
    pub(super) trace_id: [u8; 16],
    pub(super) trace_start_ns: u64,
    pub(super) trace_end_ns: u64,
    pub(super) span_id: [u8; 8],
    pub(super) span: &'a Span,
    pub(super) nested: NestedSet,
    pub(super) service_name: Option<&'a str>,
    pub(super) numbers: Numbers,
    pub(super) resource_spans: i32,
    pub(super) scope_spans: i32,
}

/// Rows that are not written yet. Column by column, in the order of `write_schema`.
pub(super) struct Buffers {
    schema: SchemaRef,
    rows: usize,
    bytes: usize,
    trace_id: Vec<u8>,
    span_id: Vec<u8>,
    parent_span_id: BinaryBuilder,
    nested_left: Vec<i32>,
    nested_right: Vec<i32>,
    nested_parent: Vec<i32>,
    trace_start: Vec<u64>,
    trace_end: Vec<u64>,
    start_offset: Vec<u64>,
    duration: Vec<i64>,
    name: StringBuilder,
    kind: Vec<i32>,
    status_code: Int32Builder,
    status_message: StringBuilder,
    trace_state: StringBuilder,
    flags: UInt32Builder,
    dropped_attributes_count: UInt32Builder,
    dropped_events_count: UInt32Builder,
    dropped_links_count: UInt32Builder,
    service_name: StringBuilder,
    resource: Vec<i32>,
    scope: Vec<i32>,
    resource_spans: Int32Builder,
    scope_spans: Vec<i32>,
    span_attributes: SpanAttributes,
    events: Events,
    links: Links,
}

impl Buffers {
    /// No rows, of a schema that `write_schema` made of these columns.
    pub(super) fn new(schema: SchemaRef, columns: &Columns) -> Self {
        Self {
            schema,
            rows: 0,
            bytes: 0,
            trace_id: Vec::new(),
            span_id: Vec::new(),
            parent_span_id: BinaryBuilder::new(),
            nested_left: Vec::new(),
            nested_right: Vec::new(),
            nested_parent: Vec::new(),
            trace_start: Vec::new(),
            trace_end: Vec::new(),
            start_offset: Vec::new(),
            duration: Vec::new(),
            name: StringBuilder::new(),
            kind: Vec::new(),
            status_code: Int32Builder::new(),
            status_message: StringBuilder::new(),
            trace_state: StringBuilder::new(),
            flags: UInt32Builder::new(),
            dropped_attributes_count: UInt32Builder::new(),
            dropped_events_count: UInt32Builder::new(),
            dropped_links_count: UInt32Builder::new(),
            service_name: StringBuilder::new(),
            resource: Vec::new(),
            scope: Vec::new(),
            resource_spans: Int32Builder::new(),
            scope_spans: Vec::new(),
            span_attributes: SpanAttributes::new(columns),
            events: Events::default(),
            links: Links::default(),
        }
    }

    /// Rows that wait.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of their texts, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many rows so far, written ones included, have an attribute.
    pub(super) fn attribute_counts(&self) -> AttributeCounts {
        self.span_attributes.counts()
    }

    pub(super) fn push(&mut self, row: &Row<'_>) {
        let span = row.span;
        self.trace_id.extend_from_slice(&row.trace_id);
        self.span_id.extend_from_slice(&row.span_id);
        let NestedSet { left, right, parent } = row.nested;
        // The parent's id stands in the parent's own row, if that is known.
        let is_known = parent > 0 || (parent == -1 && span.parent_span_id.is_empty());
        self.parent_span_id.append_option((!is_known).then_some(&span.parent_span_id));
        self.nested_left.push(left);
        self.nested_right.push(right);
        self.nested_parent.push(parent);
        self.trace_start.push(row.trace_start_ns);
        self.trace_end.push(row.trace_end_ns);
        self.start_offset.push(span.start_time_unix_nano.wrapping_sub(row.trace_start_ns));
        self.duration.push(span.end_time_unix_nano.wrapping_sub(span.start_time_unix_nano) as i64);
        self.name.append_value(&span.name);
        self.kind.push(span.kind);
        self.status_code.append_option(span.status.as_ref().map(|status| status.code));
        let message = span.status.as_ref().map_or("", |status| &status.message);
        self.status_message.append_option(text(message));
        self.trace_state.append_option(text(&span.trace_state));
        self.flags.append_option(number(span.flags));
        self.dropped_attributes_count.append_option(number(span.dropped_attributes_count));
        self.dropped_events_count.append_option(number(span.dropped_events_count));
        self.dropped_links_count.append_option(number(span.dropped_links_count));
        self.service_name.append_option(row.service_name);
        self.resource.push(row.numbers.resource);
        self.scope.push(row.numbers.scope);
        self.resource_spans.append_option((row.resource_spans != row.scope_spans).then_some(row.resource_spans));
        self.scope_spans.push(row.scope_spans);
        self.bytes += span.name.len() + message.len() + span.trace_state.len();
        self.bytes += self.span_attributes.push(&span.attributes);
        self.bytes += self.events.push(&span.events, span.start_time_unix_nano);
        self.bytes += self.links.push(&span.links);
        self.rows += 1;
    }

    /// The rows as one batch; none wait afterwards.
    pub(super) fn take(&mut self) -> Result<RecordBatch, ArrowError> {
        let i32s = |values: &mut Vec<i32>| -> ArrayRef { Arc::new(Int32Array::from(std::mem::take(values))) };
        let u64s = |values: &mut Vec<u64>| -> ArrayRef { Arc::new(UInt64Array::from(std::mem::take(values))) };
        let mut arrays: Vec<ArrayRef> = vec![
            ids(16, &mut self.trace_id)?,
            ids(8, &mut self.span_id)?,
            ArrayBuilder::finish(&mut self.parent_span_id),
            i32s(&mut self.nested_left),
            i32s(&mut self.nested_right),
            i32s(&mut self.nested_parent),
            u64s(&mut self.trace_start),
            u64s(&mut self.trace_end),
            u64s(&mut self.start_offset),
            Arc::new(Int64Array::from(std::mem::take(&mut self.duration))),
            ArrayBuilder::finish(&mut self.name),
            i32s(&mut self.kind),
            ArrayBuilder::finish(&mut self.status_code),
            ArrayBuilder::finish(&mut self.status_message),
            ArrayBuilder::finish(&mut self.trace_state),
            ArrayBuilder::finish(&mut self.flags),
            ArrayBuilder::finish(&mut self.dropped_attributes_count),
            ArrayBuilder::finish(&mut self.dropped_events_count),
            ArrayBuilder::finish(&mut self.dropped_links_count),
            ArrayBuilder::finish(&mut self.service_name),
            i32s(&mut self.resource),
            i32s(&mut self.scope),
            ArrayBuilder::finish(&mut self.resource_spans),
            i32s(&mut self.scope_spans),
        ];
        self.span_attributes.take(self.rows, &mut arrays)?;
        arrays.push(self.events.take()?);
        arrays.push(self.links.take()?);
        (self.rows, self.bytes) = (0, 0);
        RecordBatch::try_new(Arc::clone(&self.schema), arrays)
    }
}

/// Attributes of spans: columns of the promoted ones, the list of the others, and the order.
struct SpanAttributes {
    promoted: Vec<PromotedColumn>,
    by_key: HashMap<Box<str>, usize, RandomState>,
    /// What came after each column, and first in a span, when it was there last: keys come in few orders.
    successors: Vec<Option<usize>>,
    /// Rows so far, written ones included.
    row: u64,
    /// Rows that wait.
    rows: usize,
    order: BinaryBuilder,
    /// Kept for its memory.
    order_of_row: Order,
    list: AttributeList,
    in_list: AttributeCounts,
}

struct PromotedColumn {
    key: Box<str>,
    values: PromotedValues,
    /// The row, from 1, that had the key last.
    seen: u64,
    count: u64,
}

enum PromotedValues {
    String(StringBuilder),
    Int(Int64Builder),
    Double(Float64Builder),
    Bool(BooleanBuilder),
}

impl PromotedValues {
    fn pad(&mut self, rows: usize) {
        let missing = rows.saturating_sub(self.as_builder().len());
        match self {
            Self::String(values) => values.append_nulls(missing),
            Self::Int(values) => values.append_nulls(missing),
            Self::Double(values) => values.append_nulls(missing),
            Self::Bool(values) => values.append_nulls(missing),
        }
    }

    fn as_builder(&self) -> &dyn ArrayBuilder {
        match self {
            Self::String(values) => values,
            Self::Int(values) => values,
            Self::Double(values) => values,
            Self::Bool(values) => values,
        }
    }

    /// Appends a value for the next row after `rows`; false if it is of another type.
    fn push(&mut self, rows: usize, value: Option<&AnyValue>) -> bool {
        let value = value.and_then(|any| any.value.as_ref());
        match (&mut *self, value) {
            (Self::String(_), Some(Value::StringValue(_)))
            | (Self::Int(_), Some(Value::IntValue(_)))
            | (Self::Double(_), Some(Value::DoubleValue(_)))
            | (Self::Bool(_), Some(Value::BoolValue(_))) => self.pad(rows),
            _ => return false,
        }
        match (self, value) {
            (Self::String(values), Some(Value::StringValue(text))) => values.append_value(text),
            (Self::Int(values), Some(Value::IntValue(int))) => values.append_value(*int),
            (Self::Double(values), Some(Value::DoubleValue(double))) => values.append_value(*double),
            (Self::Bool(values), Some(Value::BoolValue(truth))) => values.append_value(*truth),
            _ => {}
        }
        true
    }

    fn take(&mut self, rows: usize) -> ArrayRef {
        self.pad(rows);
        match self {
            Self::String(values) => ArrayBuilder::finish(values),
            Self::Int(values) => ArrayBuilder::finish(values),
            Self::Double(values) => ArrayBuilder::finish(values),
            Self::Bool(values) => ArrayBuilder::finish(values),
        }
    }
}

impl SpanAttributes {
    fn new(columns: &Columns) -> Self {
        let promoted = columns.promoted().iter().map(|promoted| PromotedColumn {
            key: promoted.key.clone(),
            values: match promoted.of {
                AttributeType::Int => PromotedValues::Int(Int64Builder::new()),
                AttributeType::Double => PromotedValues::Double(Float64Builder::new()),
                AttributeType::Bool => PromotedValues::Bool(BooleanBuilder::new()),
                AttributeType::String | AttributeType::Other => PromotedValues::String(StringBuilder::new()),
            },
            seen: 0,
            count: 0,
        });
        let keys = columns.promoted().iter().enumerate();
        Self {
            promoted: promoted.collect(),
            by_key: keys.map(|(number, promoted)| (promoted.key.clone(), number)).collect(),
            successors: vec![None; columns.promoted().len() + 1],
            row: 0,
            rows: 0,
            order: BinaryBuilder::new(),
            order_of_row: Order::default(),
            list: AttributeList::default(),
            in_list: AttributeCounts::default(),
        }
    }

    /// Returns how many bytes of text that was.
    fn push(&mut self, attributes: &[KeyValue]) -> usize {
        self.row += 1;
        let mut bytes = 0;
        let mut order = std::mem::take(&mut self.order_of_row);
        order.clear();
        let mut before = None;
        for attribute in attributes {
            let number = self.column_of(before, &attribute.key);
            before = number.or(before);
            let column = number.and_then(|number| self.promoted.get_mut(number));
            // Only the first of a key goes into the column, so that the first one in a span is always found there first.
            let is_first = column.is_some_and(|column| {
                let fits = std::mem::replace(&mut column.seen, self.row) != self.row
                    && column.values.push(self.rows, attribute.value.as_ref());
                column.count += u64::from(fits);
                fits
            });
            if let Some(number) = number.filter(|_| is_first) {
                order.push(number as u8);
            } else {
                order.push(ORDER_OF_LIST);
                self.in_list.add(&attribute.key, AttributeType::of_message(attribute.value.as_ref()), 1);
                bytes += attribute.key.len();
                self.list.push(attribute);
            }
            bytes += 8 + value_bytes(attribute);
        }
        self.list.close();
        self.order.append_option(order.bytes());
        self.order_of_row = order;
        self.rows += 1;
        bytes
    }

    /// The column of a key; `before` is that of the attribute before it.
    fn column_of(&mut self, before: Option<usize>, key: &str) -> Option<usize> {
        let successor = self.successors.get_mut(before.map_or(0, |before| before + 1))?;
        if let Some(number) = *successor
            && self.promoted.get(number).is_some_and(|column| *column.key == *key)
        {
            return Some(number);
        }
        let number = self.by_key.get(key).copied();
        *successor = number.or(*successor);
        number
    }

    fn counts(&self) -> AttributeCounts {
        // These first: of the keys in lists some may be left out, of these none.
        let mut counts = AttributeCounts::default();
        for column in &self.promoted {
            let of = match column.values {
                PromotedValues::String(_) => AttributeType::String,
                PromotedValues::Int(_) => AttributeType::Int,
                PromotedValues::Double(_) => AttributeType::Double,
                PromotedValues::Bool(_) => AttributeType::Bool,
            };
            counts.add(&column.key, of, column.count);
        }
        counts.merge(&self.in_list);
        counts
    }

    fn take(&mut self, rows: usize, arrays: &mut Vec<ArrayRef>) -> Result<(), ArrowError> {
        arrays.push(ArrayBuilder::finish(&mut self.order));
        arrays.extend(self.promoted.iter_mut().map(|column| column.values.take(rows)));
        arrays.push(self.list.take()?);
        self.rows = 0;
        Ok(())
    }
}

/// In which order a span had its attributes.
#[derive(Default)]
struct Order {
    bytes: Vec<u8>,
    is_other: bool,
}

impl Order {
    fn clear(&mut self) {
        self.bytes.clear();
        self.is_other = false;
    }

    fn push(&mut self, place: u8) {
        // 255, the list, is above all columns: columns in their order, then the list, never fall.
        self.is_other |=
            self.bytes.last().is_some_and(|last| *last > place || (*last == place && place != ORDER_OF_LIST));
        self.bytes.push(place);
    }

    /// None if it is the usual one.
    fn bytes(&self) -> Option<&[u8]> {
        self.is_other.then_some(&self.bytes)
    }
}

fn ids(length: i32, bytes: &mut Vec<u8>) -> Result<ArrayRef, ArrowError> {
    let bytes = Buffer::from_vec(std::mem::take(bytes));
    Ok(Arc::new(FixedSizeBinaryArray::try_new(length, bytes, None)?))
}
