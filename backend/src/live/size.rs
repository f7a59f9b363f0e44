//! Estimates of the memory that decoded OTLP values hold.
//!
//! They count what the values own on the heap plus the allocator's share, so that a bound on the sum of estimates is a
//! bound on real memory (within some ten percent: vectors that grew by doubling are counted by length).

use std::mem::size_of;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};

/// What an allocator adds to each allocation: header and rounding.
const ALLOCATION: usize = 16;

/// Bytes of a span, itself included.
pub(super) fn span(span: &Span) -> usize {
    size_of::<Span>()
        + heap(span.trace_id.len())
        + heap(span.span_id.len())
        + heap(span.parent_span_id.len())
        + heap(span.trace_state.len())
        + heap(span.name.len())
        + attributes(&span.attributes)
        + list(span.events.iter().map(event))
        + list(span.links.iter().map(link))
        + span.status.as_ref().map_or(0, |status| heap(status.message.len()))
}

/// Bytes of a resource, itself included.
pub(super) fn resource(resource: &Resource) -> usize {
    size_of::<Resource>() + attributes(&resource.attributes) + list(resource.entity_refs.iter().map(entity_ref))
}

/// Bytes of a scope, itself included.
pub(super) fn scope(scope: &InstrumentationScope) -> usize {
    size_of::<InstrumentationScope>()
        + heap(scope.name.len())
        + heap(scope.version.len())
        + attributes(&scope.attributes)
}

fn event(event: &Event) -> usize {
    size_of::<Event>() + heap(event.name.len()) + attributes(&event.attributes)
}

fn link(link: &Link) -> usize {
    size_of::<Link>()
        + heap(link.trace_id.len())
        + heap(link.span_id.len())
        + heap(link.trace_state.len())
        + attributes(&link.attributes)
}

fn entity_ref(entity: &EntityRef) -> usize {
    size_of::<EntityRef>()
        + heap(entity.schema_url.len())
        + heap(entity.r#type.len())
        + list(entity.id_keys.iter().chain(&entity.description_keys).map(|key| size_of::<String>() + heap(key.len())))
}

fn attributes(attributes: &[KeyValue]) -> usize {
    list(attributes.iter().map(key_value))
}

fn key_value(attribute: &KeyValue) -> usize {
    size_of::<KeyValue>() + heap(attribute.key.len()) + attribute.value.as_ref().map_or(0, value_heap)
}

/// Bytes that a value owns besides itself.
fn value_heap(value: &AnyValue) -> usize {
    match &value.value {
        Some(Value::StringValue(text)) => heap(text.len()),
        Some(Value::BytesValue(bytes)) => heap(bytes.len()),
        Some(Value::ArrayValue(array)) => {
            list(array.values.iter().map(|value| size_of::<AnyValue>() + value_heap(value)))
        }
        Some(Value::KvlistValue(pairs)) => attributes(&pairs.values),
        Some(Value::BoolValue(_) | Value::IntValue(_) | Value::DoubleValue(_) | Value::StringValueStrindex(_))
        | None => 0,
    }
}

fn heap(len: usize) -> usize {
    if len == 0 { 0 } else { len + ALLOCATION }
}

fn list(items: impl Iterator<Item = usize>) -> usize {
    let bytes: usize = items.sum();
    heap(bytes)
}
