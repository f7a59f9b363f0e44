//! Estimates of the memory that decoded OTLP values hold.
//!
//! They count what the values own on the heap, by the capacity of vectors, plus the allocator's share; so a bound on the
//! sum of estimates is a bound on real memory, but for what the allocator keeps.

use std::mem::size_of;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};

/// What an allocator adds to each allocation: header and rounding.
const ALLOCATION: usize = 16;

/// Bytes that a span owns besides itself.
pub(super) fn span(span: &Span) -> usize {
    heap(span.trace_id.capacity())
        + heap(span.span_id.capacity())
        + heap(span.parent_span_id.capacity())
        + heap(span.trace_state.capacity())
        + heap(span.name.capacity())
        + list(&span.attributes, key_value)
        + list(&span.events, event)
        + list(&span.links, link)
        + span.status.as_ref().map_or(0, |status| heap(status.message.capacity()))
}

/// Bytes of a list and of what its elements own; `owned` says how much one owns besides itself.
pub(super) fn list<T>(elements: &Vec<T>, owned: impl Fn(&T) -> usize) -> usize {
    heap(elements.capacity() * size_of::<T>()) + elements.iter().map(owned).sum::<usize>()
}

/// Bytes of a resource, itself included.
pub(super) fn resource(resource: &Resource) -> usize {
    size_of::<Resource>() + list(&resource.attributes, key_value) + list(&resource.entity_refs, entity_ref)
}

/// Bytes of a scope, itself included.
pub(super) fn scope(scope: &InstrumentationScope) -> usize {
    size_of::<InstrumentationScope>()
        + heap(scope.name.capacity())
        + heap(scope.version.capacity())
        + list(&scope.attributes, key_value)
}

fn event(event: &Event) -> usize {
    heap(event.name.capacity()) + list(&event.attributes, key_value)
}

fn link(link: &Link) -> usize {
    heap(link.trace_id.capacity())
        + heap(link.span_id.capacity())
        + heap(link.trace_state.capacity())
        + list(&link.attributes, key_value)
}

fn entity_ref(entity: &EntityRef) -> usize {
    let text = |text: &String| heap(text.capacity());
    text(&entity.schema_url) + text(&entity.r#type) + list(&entity.id_keys, text) + list(&entity.description_keys, text)
}

fn key_value(attribute: &KeyValue) -> usize {
    heap(attribute.key.capacity()) + attribute.value.as_ref().map_or(0, value)
}

fn value(value: &AnyValue) -> usize {
    match &value.value {
        Some(Value::StringValue(text)) => heap(text.capacity()),
        Some(Value::BytesValue(bytes)) => heap(bytes.capacity()),
        Some(Value::ArrayValue(array)) => list(&array.values, self::value),
        Some(Value::KvlistValue(pairs)) => list(&pairs.values, key_value),
        Some(Value::BoolValue(_) | Value::IntValue(_) | Value::DoubleValue(_) | Value::StringValueStrindex(_))
        | None => 0,
    }
}

fn heap(capacity: usize) -> usize {
    if capacity == 0 { 0 } else { capacity + ALLOCATION }
}
