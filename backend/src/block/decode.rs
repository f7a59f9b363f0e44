//! From rows back to traces.

mod columns;

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::types::{BinaryType, Int32Type, UInt32Type, UInt64Type, Utf8Type};
use arrow_array::{Array, BooleanArray, FixedSizeBinaryArray, Float64Array, Int64Array, PrimitiveArray, RecordBatch};
use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::AnyValue;
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;

use self::columns::{Fields, Lists, Values, optional};
use super::attributes::{AttributeType, Promoted};
use super::schema::{ORDER_OF_LIST, attribute, column, event, link, promoted_column};
use super::tables::Tables;
use crate::live::{Batch, Trace, TraceId};
use crate::otlp::{MessageWriter, SpanRef, field};

/// What is wrong with rows; the caller knows in which object.
pub(super) type Wrong = String;

/// A row as a span, and what is needed to put it into its trace.
#[derive(Debug)]
pub(super) struct DecodedRow {
    pub(super) trace_id: TraceId,
    nested_left: i32,
    nested_parent: i32,
    /// The parent's id stands in the parent's row.
    needs_parent: bool,
    resource: i32,
    scope: i32,
    resource_spans: i32,
    scope_spans: i32,
    span_id: [u8; 8],
    /// An encoded `Span`, without the parent's id where that stands elsewhere.
    span: MessageWriter,
}

/// The rows of a record batch that has all columns.
pub(super) fn decode_rows(batch: &RecordBatch, promoted: &[Promoted]) -> Result<Vec<DecodedRow>, Wrong> {
    let columns = RowColumns::new(batch, promoted)?;
    (0..batch.num_rows()).map(|row| columns.row(row)).collect()
}

/// The trace of these rows, which are all that the block has of it.
pub(super) fn assemble(id: TraceId, mut rows: Vec<DecodedRow>, tables: &Tables) -> Result<Trace, Wrong> {
    find_parents(&mut rows)?;
    // Batches are numbered as they came; within one, rows stay in the order of the tree.
    rows.sort_by_key(|row| row.scope_spans);
    let mut resources: HashMap<i32, (i32, Arc<Resource>)> = HashMap::new();
    let mut trace = Trace::empty(id);
    let mut rows = rows.into_iter().peekable();
    while let Some(first) = rows.next() {
        let DecodedRow { resource, scope, resource_spans, scope_spans, .. } = first;
        let entry = |number| usize::try_from(number).ok();
        let Some(entry_of_resource) = entry(resource).and_then(|number| tables.resources.get(number)) else {
            return Err(format!("trace {id} has resource {resource}, which is not there"));
        };
        let Some(entry_of_scope) = entry(scope).and_then(|number| tables.scopes.get(number)) else {
            return Err(format!("trace {id} has scope {scope}, which is not there"));
        };
        let is_new = !resources.contains_key(&resource_spans);
        // One allocation for each ResourceSpans: that is how they are told apart.
        let (known, shared) =
            resources.entry(resource_spans).or_insert_with(|| (resource, Arc::new(entry_of_resource.resource.clone())));
        if *known != resource {
            return Err(format!("trace {id} has one ResourceSpans under two resources"));
        }
        let batch = Arc::new(Batch {
            resource: Arc::clone(shared),
            resource_schema_url: Arc::clone(&entry_of_resource.schema_url),
            scope: Arc::clone(&entry_of_scope.scope),
            scope_schema_url: Arc::clone(&entry_of_scope.schema_url),
        });
        trace.bytes += batch.memory(is_new);
        push(&mut trace, &batch, first.span);
        while let Some(next) = rows.next_if(|next| next.scope_spans == scope_spans) {
            if (next.resource, next.scope, next.resource_spans) != (resource, scope, resource_spans) {
                return Err(format!("trace {id} has one ScopeSpans under two resources or scopes"));
            }
            push(&mut trace, &batch, next.span);
        }
    }
    Ok(trace)
}

fn push(trace: &mut Trace, batch: &Arc<Batch>, span: MessageWriter) {
    let bytes = Bytes::from(span.into_bytes());
    trace.push(batch, bytes.clone(), &SpanRef::parse(&bytes));
}

/// Sets the ids of parents that stand only in the parents' own rows.
fn find_parents(rows: &mut [DecodedRow]) -> Result<(), Wrong> {
    // Rows come in the order of `nested_left`, those that have none last.
    let in_trees = rows.iter().take_while(|row| row.nested_left > 0).count();
    let (trees, _) = rows.split_at(in_trees);
    if !trees.is_sorted_by_key(|row| row.nested_left) {
        return Err("rows of a trace are not in the order of nested_left".to_owned());
    }
    for index in 0..rows.len() {
        let Some(row) = rows.get(index).filter(|row| row.needs_parent && row.nested_parent != -1) else { continue };
        let parent = rows.get(..in_trees).and_then(|trees| {
            let found = trees.binary_search_by_key(&row.nested_parent, |row| row.nested_left).ok()?;
            trees.get(found).map(|parent| parent.span_id)
        });
        let Some(parent) = parent else {
            return Err(format!("trace {} has no span numbered {}", row.trace_id, row.nested_parent));
        };
        if let Some(row) = rows.get_mut(index) {
            row.span.bytes(field::PARENT_SPAN_ID, &parent);
        }
    }
    Ok(())
}

/// Columns of a record batch.
struct RowColumns<'a> {
    trace_id: &'a FixedSizeBinaryArray,
    span_id: &'a FixedSizeBinaryArray,
    parent_span_id: Values<'a, BinaryType>,
    nested_left: &'a PrimitiveArray<Int32Type>,
    nested_parent: &'a PrimitiveArray<Int32Type>,
    trace_start: &'a PrimitiveArray<UInt64Type>,
    start_offset: &'a PrimitiveArray<UInt64Type>,
    duration: &'a Int64Array,
    name: Values<'a, Utf8Type>,
    kind: &'a PrimitiveArray<Int32Type>,
    status_code: &'a PrimitiveArray<Int32Type>,
    status_message: Values<'a, Utf8Type>,
    trace_state: Values<'a, Utf8Type>,
    flags: &'a PrimitiveArray<UInt32Type>,
    dropped_attributes_count: &'a PrimitiveArray<UInt32Type>,
    dropped_events_count: &'a PrimitiveArray<UInt32Type>,
    dropped_links_count: &'a PrimitiveArray<UInt32Type>,
    resource: &'a PrimitiveArray<Int32Type>,
    scope: &'a PrimitiveArray<Int32Type>,
    resource_spans: &'a PrimitiveArray<Int32Type>,
    scope_spans: &'a PrimitiveArray<Int32Type>,
    attribute_order: Values<'a, BinaryType>,
    promoted: Vec<(&'a str, PromotedValues<'a>)>,
    attributes: Lists<'a, Attributes<'a>>,
    events: Lists<'a, Events<'a>>,
    links: Lists<'a, Links<'a>>,
}

impl<'a> RowColumns<'a> {
    fn new(batch: &'a RecordBatch, promoted: &'a [Promoted]) -> Result<Self, Wrong> {
        let fields = Fields { names: batch.schema_ref().fields(), arrays: batch.columns() };
        let promoted = promoted.iter().map(|promoted| {
            let name = promoted_column(&promoted.key);
            let values = match promoted.of {
                AttributeType::String => PromotedValues::String(fields.values(&name)?),
                AttributeType::Int => PromotedValues::Int(fields.primitive(&name)?),
                AttributeType::Double => PromotedValues::Double(fields.typed(&name)?),
                AttributeType::Bool => PromotedValues::Bool(fields.typed(&name)?),
                AttributeType::Other => return Err(format!("column {name} has no type")),
            };
            Ok((&*promoted.key, values))
        });
        Ok(Self {
            trace_id: fields.ids(column::TRACE_ID, 16)?,
            span_id: fields.ids(column::SPAN_ID, 8)?,
            parent_span_id: fields.values(column::PARENT_SPAN_ID)?,
            nested_left: fields.primitive(column::NESTED_LEFT)?,
            nested_parent: fields.primitive(column::NESTED_PARENT)?,
            trace_start: fields.primitive(column::TRACE_START)?,
            start_offset: fields.primitive(column::START_OFFSET)?,
            duration: fields.primitive(column::DURATION)?,
            name: fields.values(column::NAME)?,
            kind: fields.primitive(column::KIND)?,
            status_code: fields.primitive(column::STATUS_CODE)?,
            status_message: fields.values(column::STATUS_MESSAGE)?,
            trace_state: fields.values(column::TRACE_STATE)?,
            flags: fields.primitive(column::FLAGS)?,
            dropped_attributes_count: fields.primitive(column::DROPPED_ATTRIBUTES_COUNT)?,
            dropped_events_count: fields.primitive(column::DROPPED_EVENTS_COUNT)?,
            dropped_links_count: fields.primitive(column::DROPPED_LINKS_COUNT)?,
            resource: fields.primitive(column::RESOURCE)?,
            scope: fields.primitive(column::SCOPE)?,
            resource_spans: fields.primitive(column::RESOURCE_SPANS)?,
            scope_spans: fields.primitive(column::SCOPE_SPANS)?,
            attribute_order: fields.values(column::ATTRIBUTE_ORDER)?,
            promoted: promoted.collect::<Result<_, Wrong>>()?,
            attributes: fields.lists(column::ATTRIBUTES, Attributes::new)?,
            events: fields.lists(column::EVENTS, Events::new)?,
            links: fields.lists(column::LINKS, Links::new)?,
        })
    }

    fn row(&self, row: usize) -> Result<DecodedRow, Wrong> {
        let trace_id = TraceId::try_from(self.trace_id.value(row)).map_err(|error| error.to_string())?;
        let span_id = self.span_id.value(row).try_into().map_err(|_| "a span id is not 8 bytes long".to_owned())?;
        let parent = self.parent_span_id.get(row)?;
        let scope_spans = self.scope_spans.value(row);
        Ok(DecodedRow {
            trace_id,
            nested_left: self.nested_left.value(row),
            nested_parent: self.nested_parent.value(row),
            needs_parent: parent.is_none(),
            resource: self.resource.value(row),
            scope: self.scope.value(row),
            resource_spans: optional(self.resource_spans, row).unwrap_or(scope_spans),
            scope_spans,
            span_id,
            span: self.span(row, trace_id, span_id, parent)?,
        })
    }

    fn span(
        &self,
        row: usize,
        trace_id: TraceId,
        span_id: [u8; 8],
        parent: Option<&[u8]>,
    ) -> Result<MessageWriter, Wrong> {
        let start = self.trace_start.value(row).wrapping_add(self.start_offset.value(row));
        let mut span = MessageWriter::default();
        span.bytes(field::TRACE_ID, &trace_id.0);
        span.bytes(field::SPAN_ID, &span_id);
        span.text(field::TRACE_STATE, self.trace_state.get(row)?);
        span.text(field::NAME, self.name.get(row)?);
        span.number(field::KIND, self.kind.value(row));
        span.fixed64(field::START, start);
        span.fixed64(field::END, start.wrapping_add(self.duration.value(row) as u64));
        self.span_attributes(row, &mut span)?;
        span.count(field::DROPPED_ATTRIBUTES_COUNT, optional(self.dropped_attributes_count, row));
        for event in self.events.of(row)? {
            span.message(field::EVENTS, |message| self.events.elements.event(event, start, message))?;
        }
        span.count(field::DROPPED_EVENTS_COUNT, optional(self.dropped_events_count, row));
        for link in self.links.of(row)? {
            span.message(field::LINKS, |message| self.links.elements.link(link, message))?;
        }
        span.count(field::DROPPED_LINKS_COUNT, optional(self.dropped_links_count, row));
        if let Some(code) = optional(self.status_code, row) {
            let message = self.status_message.get(row)?;
            span.message(field::STATUS, |status| {
                status.text(field::status::MESSAGE, message);
                status.number(field::status::CODE, code);
                Ok::<_, Wrong>(())
            })?;
        }
        if let Some(flags) = optional(self.flags, row) {
            span.fixed32(field::FLAGS, flags);
        }
        if let Some(parent) = parent.filter(|parent| !parent.is_empty()) {
            span.bytes(field::PARENT_SPAN_ID, parent);
        }
        Ok(span)
    }

    fn span_attributes(&self, row: usize, span: &mut MessageWriter) -> Result<(), Wrong> {
        let mut in_list = self.attributes.of(row)?;
        let in_order = |index, span: &mut MessageWriter| {
            span.message(field::ATTRIBUTES, |message| self.attributes.elements.attribute(index, message))
        };
        let Some(order) = self.attribute_order.get(row)? else {
            for (key, values) in &self.promoted {
                values.write(row, key, span)?;
            }
            return in_list.try_for_each(|index| in_order(index, span));
        };
        for place in order {
            let found = match *place {
                ORDER_OF_LIST => in_list.next().map(|index| in_order(index, span)).transpose()?.is_some(),
                number => match self.promoted.get(usize::from(number)) {
                    Some((key, values)) => values.write(row, key, span)?,
                    None => false,
                },
            };
            if !found {
                return Err("attribute_order names an attribute that is not there".to_owned());
            }
        }
        if !in_list.is_empty() {
            return Err("attribute_order leaves attributes out".to_owned());
        }
        Ok(())
    }
}

enum PromotedValues<'a> {
    String(Values<'a, Utf8Type>),
    Int(&'a Int64Array),
    Double(&'a Float64Array),
    Bool(&'a BooleanArray),
}

impl PromotedValues<'_> {
    /// Writes the attribute of a row, if it is there; returns whether it is.
    fn write(&self, row: usize, key: &str, span: &mut MessageWriter) -> Result<bool, Wrong> {
        let value = match self {
            Self::String(values) => values.get(row)?.map(Scalar::String),
            Self::Int(values) => optional(values, row).map(Scalar::Int),
            Self::Double(values) => optional(values, row).map(Scalar::Double),
            Self::Bool(values) => values.is_valid(row).then(|| Scalar::Bool(values.value(row))),
        };
        let Some(value) = value else { return Ok(false) };
        span.message(field::ATTRIBUTES, |attribute| {
            attribute.text(field::attribute::KEY, Some(key));
            value.write(attribute)
        })?;
        Ok(true)
    }
}

/// A value that has a column for its type.
#[derive(Clone, Copy)]
enum Scalar<'a> {
    String(&'a str),
    Int(i64),
    Double(f64),
    Bool(bool),
}

impl Scalar<'_> {
    /// Writes the value of an attribute.
    fn write(self, attribute: &mut MessageWriter) -> Result<(), Wrong> {
        attribute.message(field::attribute::VALUE, |any| {
            match self {
                Self::String(text) => any.bytes(field::any::STRING, text.as_bytes()),
                Self::Int(int) => any.varint(field::any::INT, int as u64),
                Self::Double(double) => any.fixed64(field::any::DOUBLE, double.to_bits()),
                Self::Bool(truth) => any.varint(field::any::BOOL, truth.into()),
            }
            Ok(())
        })
    }
}

/// Attributes in lists.
struct Attributes<'a> {
    key: Values<'a, Utf8Type>,
    string: Values<'a, Utf8Type>,
    int: &'a Int64Array,
    double: &'a Float64Array,
    bool: &'a BooleanArray,
    other: Values<'a, BinaryType>,
}

impl<'a> Attributes<'a> {
    fn new(fields: Fields<'a>) -> Result<Self, Wrong> {
        Ok(Self {
            key: fields.values(attribute::KEY)?,
            string: fields.values(attribute::STRING)?,
            int: fields.primitive(attribute::INT)?,
            double: fields.typed(attribute::DOUBLE)?,
            bool: fields.typed(attribute::BOOL)?,
            other: fields.values(attribute::OTHER)?,
        })
    }

    /// Writes an attribute.
    fn attribute(&self, index: usize, message: &mut MessageWriter) -> Result<(), Wrong> {
        let key = self.key.get(index)?.unwrap_or_default();
        message.text(field::attribute::KEY, Some(key));
        if let Some(text) = self.string.get(index)? {
            Scalar::String(text).write(message)
        } else if let Some(int) = optional(self.int, index) {
            Scalar::Int(int).write(message)
        } else if let Some(double) = optional(self.double, index) {
            Scalar::Double(double).write(message)
        } else if self.bool.is_valid(index) {
            Scalar::Bool(self.bool.value(index)).write(message)
        } else if let Some(other) = self.other.get(index)? {
            AnyValue::decode(other).map_err(|error| format!("attribute {key:?}: {error}"))?;
            message.bytes(field::attribute::VALUE, other);
            Ok(())
        } else {
            Ok(())
        }
    }
}

struct Events<'a> {
    time_offset: &'a Int64Array,
    name: Values<'a, Utf8Type>,
    dropped_attributes_count: &'a PrimitiveArray<UInt32Type>,
    attributes: Lists<'a, Attributes<'a>>,
}

impl<'a> Events<'a> {
    fn new(fields: Fields<'a>) -> Result<Self, Wrong> {
        Ok(Self {
            time_offset: fields.primitive(event::TIME_OFFSET)?,
            name: fields.values(event::NAME)?,
            dropped_attributes_count: fields.primitive(event::DROPPED_ATTRIBUTES_COUNT)?,
            attributes: fields.lists(event::ATTRIBUTES, Attributes::new)?,
        })
    }

    /// Writes an event.
    fn event(&self, index: usize, span_start_ns: u64, message: &mut MessageWriter) -> Result<(), Wrong> {
        message.fixed64(field::event::TIME, span_start_ns.wrapping_add(self.time_offset.value(index) as u64));
        message.text(field::event::NAME, self.name.get(index)?);
        self.attributes.write(index, field::event::ATTRIBUTES, message)?;
        let dropped = optional(self.dropped_attributes_count, index);
        message.count(field::event::DROPPED_ATTRIBUTES_COUNT, dropped);
        Ok(())
    }
}

struct Links<'a> {
    trace_id: Values<'a, BinaryType>,
    span_id: Values<'a, BinaryType>,
    trace_state: Values<'a, Utf8Type>,
    flags: &'a PrimitiveArray<UInt32Type>,
    dropped_attributes_count: &'a PrimitiveArray<UInt32Type>,
    attributes: Lists<'a, Attributes<'a>>,
}

impl<'a> Links<'a> {
    fn new(fields: Fields<'a>) -> Result<Self, Wrong> {
        Ok(Self {
            trace_id: fields.values(link::TRACE_ID)?,
            span_id: fields.values(link::SPAN_ID)?,
            trace_state: fields.values(link::TRACE_STATE)?,
            flags: fields.primitive(link::FLAGS)?,
            dropped_attributes_count: fields.primitive(link::DROPPED_ATTRIBUTES_COUNT)?,
            attributes: fields.lists(link::ATTRIBUTES, Attributes::new)?,
        })
    }

    /// Writes a link.
    fn link(&self, index: usize, message: &mut MessageWriter) -> Result<(), Wrong> {
        message.bytes(field::link::TRACE_ID, self.trace_id.get(index)?.unwrap_or_default());
        message.bytes(field::link::SPAN_ID, self.span_id.get(index)?.unwrap_or_default());
        message.text(field::link::TRACE_STATE, self.trace_state.get(index)?);
        self.attributes.write(index, field::link::ATTRIBUTES, message)?;
        let dropped = optional(self.dropped_attributes_count, index);
        message.count(field::link::DROPPED_ATTRIBUTES_COUNT, dropped);
        if let Some(flags) = optional(self.flags, index) {
            message.fixed32(field::link::FLAGS, flags);
        }
        Ok(())
    }
}

impl Lists<'_, Attributes<'_>> {
    /// Writes the attributes of an event or a link.
    fn write(&self, row: usize, number: u32, message: &mut MessageWriter) -> Result<(), Wrong> {
        let mut elements = self.of(row)?;
        elements.try_for_each(|index| message.message(number, |attribute| self.elements.attribute(index, attribute)))
    }
}
