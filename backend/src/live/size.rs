//! Estimates of the memory that resources and scopes hold.
//!
//! They count what the values own on the heap, by the capacity of vectors, plus the allocator's share; so a bound on the
//! sum of estimates is a bound on real memory, but for what the allocator keeps.

use std::mem::size_of;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, EntityRef, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

/// What an allocator adds to each allocation: header and rounding.
const ALLOCATION: usize = 16;

/// Bytes of a list and of what its elements own; `owned` says how much one owns besides itself.
fn list<T>(elements: &Vec<T>, owned: impl Fn(&T) -> usize) -> usize {
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
