//! Lists that wait to be written: attributes without a column, events, links.

use std::sync::Arc;

use arrow_array::builder::{
    ArrayBuilder, BinaryBuilder, BooleanBuilder, Float64Builder, Int64Builder, StringBuilder, UInt32Builder,
};
use arrow_array::{ArrayRef, Int64Array, ListArray, StructArray};
use arrow_buffer::{OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, Fields};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use prost::Message;

use super::schema::{attribute_fields, element, event_fields, link_fields};

/// A list of attributes in each row.
pub(super) struct AttributeList {
    offsets: Vec<i32>,
    key: StringBuilder,
    string: StringBuilder,
    int: Int64Builder,
    double: Float64Builder,
    bool: BooleanBuilder,
    other: BinaryBuilder,
}

impl Default for AttributeList {
    fn default() -> Self {
        Self {
            offsets: vec![0],
            key: StringBuilder::new(),
            string: StringBuilder::new(),
            int: Int64Builder::new(),
            double: Float64Builder::new(),
            bool: BooleanBuilder::new(),
            other: BinaryBuilder::new(),
        }
    }
}

impl AttributeList {
    pub(super) fn push(&mut self, attribute: &KeyValue) {
        self.key.append_value(&attribute.key);
        let any = attribute.value.as_ref();
        let value = any.and_then(|any| any.value.as_ref());
        let (mut string, mut int, mut double, mut bool, mut other) = (None, None, None, None, None);
        match value {
            Some(Value::StringValue(text)) => string = Some(text),
            Some(Value::IntValue(value)) => int = Some(*value),
            Some(Value::DoubleValue(value)) => double = Some(*value),
            Some(Value::BoolValue(value)) => bool = Some(*value),
            _ => other = any.map(Message::encode_to_vec),
        }
        self.string.append_option(string);
        self.int.append_option(int);
        self.double.append_option(double);
        self.bool.append_option(bool);
        self.other.append_option(other);
    }

    /// Ends the list of a row.
    pub(super) fn close(&mut self) {
        self.offsets.push(self.key.len() as i32);
    }

    pub(super) fn take(&mut self) -> Result<ArrayRef, ArrowError> {
        let arrays = vec![
            ArrayBuilder::finish(&mut self.key),
            ArrayBuilder::finish(&mut self.string),
            ArrayBuilder::finish(&mut self.int),
            ArrayBuilder::finish(&mut self.double),
            ArrayBuilder::finish(&mut self.bool),
            ArrayBuilder::finish(&mut self.other),
        ];
        list(&mut self.offsets, attribute_fields(), arrays)
    }
}

/// The events of each row.
pub(super) struct Events {
    offsets: Vec<i32>,
    time_offset: Vec<i64>,
    name: StringBuilder,
    dropped_attributes_count: UInt32Builder,
    attributes: AttributeList,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            offsets: vec![0],
            time_offset: Vec::new(),
            name: StringBuilder::new(),
            dropped_attributes_count: UInt32Builder::new(),
            attributes: AttributeList::default(),
        }
    }
}

impl Events {
    pub(super) fn push(&mut self, events: &[Event], span_start_ns: u64) -> usize {
        let mut bytes = 0;
        for event in events {
            self.time_offset.push(event.time_unix_nano.wrapping_sub(span_start_ns) as i64);
            self.name.append_value(&event.name);
            self.dropped_attributes_count.append_option(number(event.dropped_attributes_count));
            event.attributes.iter().for_each(|attribute| self.attributes.push(attribute));
            self.attributes.close();
            bytes += 16 + event.name.len() + event.attributes.iter().map(attribute_bytes).sum::<usize>();
        }
        self.offsets.push(self.time_offset.len() as i32);
        bytes
    }

    pub(super) fn take(&mut self) -> Result<ArrayRef, ArrowError> {
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(std::mem::take(&mut self.time_offset))),
            ArrayBuilder::finish(&mut self.name),
            ArrayBuilder::finish(&mut self.dropped_attributes_count),
            self.attributes.take()?,
        ];
        list(&mut self.offsets, event_fields(), arrays)
    }
}

/// The links of each row.
pub(super) struct Links {
    offsets: Vec<i32>,
    trace_id: BinaryBuilder,
    span_id: BinaryBuilder,
    trace_state: StringBuilder,
    flags: UInt32Builder,
    dropped_attributes_count: UInt32Builder,
    attributes: AttributeList,
}

impl Default for Links {
    fn default() -> Self {
        Self {
            offsets: vec![0],
            trace_id: BinaryBuilder::new(),
            span_id: BinaryBuilder::new(),
            trace_state: StringBuilder::new(),
            flags: UInt32Builder::new(),
            dropped_attributes_count: UInt32Builder::new(),
            attributes: AttributeList::default(),
        }
    }
}

impl Links {
    pub(super) fn push(&mut self, links: &[Link]) -> usize {
        let mut bytes = 0;
        for link in links {
            self.trace_id.append_value(&link.trace_id);
            self.span_id.append_value(&link.span_id);
            self.trace_state.append_option(text(&link.trace_state));
            self.flags.append_option(number(link.flags));
            self.dropped_attributes_count.append_option(number(link.dropped_attributes_count));
            link.attributes.iter().for_each(|attribute| self.attributes.push(attribute));
            self.attributes.close();
            bytes += 32 + link.trace_id.len() + link.span_id.len() + link.trace_state.len();
            bytes += link.attributes.iter().map(attribute_bytes).sum::<usize>();
        }
        self.offsets.push(self.trace_id.len() as i32);
        bytes
    }

    pub(super) fn take(&mut self) -> Result<ArrayRef, ArrowError> {
        let arrays = vec![
            ArrayBuilder::finish(&mut self.trace_id),
            ArrayBuilder::finish(&mut self.span_id),
            ArrayBuilder::finish(&mut self.trace_state),
            ArrayBuilder::finish(&mut self.flags),
            ArrayBuilder::finish(&mut self.dropped_attributes_count),
            self.attributes.take()?,
        ];
        list(&mut self.offsets, link_fields(), arrays)
    }
}

/// One list a row; `offsets` says where each ends.
fn list(offsets: &mut Vec<i32>, fields: Fields, arrays: Vec<ArrayRef>) -> Result<ArrayRef, ArrowError> {
    let offsets = OffsetBuffer::new(ScalarBuffer::from(std::mem::replace(offsets, vec![0])));
    let elements = StructArray::try_new(fields.clone(), arrays, None)?;
    Ok(Arc::new(ListArray::try_new(element(fields), offsets, Arc::new(elements), None)?))
}

/// Null for an empty text.
pub(super) fn text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Null for 0.
pub(super) fn number(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}

fn attribute_bytes(attribute: &KeyValue) -> usize {
    32 + attribute.key.len() + value_bytes(attribute)
}

/// Bytes of a value that can be long.
pub(super) fn value_bytes(attribute: &KeyValue) -> usize {
    match attribute.value.as_ref() {
        Some(AnyValue { value: Some(Value::StringValue(text)) }) => text.len(),
        Some(AnyValue { value: Some(Value::IntValue(_) | Value::DoubleValue(_) | Value::BoolValue(_)) }) | None => 0,
        Some(other) => other.encoded_len(),
    }
}
