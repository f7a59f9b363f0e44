//! Traces for tests: small ones by hand, odd ones by chance.

use std::collections::BTreeMap;
use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{
    AnyValue, ArrayValue, EntityRef, InstrumentationScope, KeyValue, KeyValueList,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{Span, Status};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::super::{BlockId, NewBlock};
use crate::live::{Batch, Trace, TraceId};

pub(super) fn new_block() -> NewBlock {
    NewBlock {
        id: BlockId::new(1_795_237_020_000_000_000, 7),
        tenant: "single-tenant".into(),
        level: 0,
        received_first_ns: 1_795_237_020_000_000_000,
        received_last_ns: 1_795_237_025_000_000_000,
    }
}

pub(super) fn trace_id(id: u8) -> TraceId {
    TraceId([id; 16])
}

/// A span of 10 ns; a parent of 0 is none.
pub(super) fn span(trace: u8, id: u8, parent: u8, start_ns: u64) -> Span {
    Span {
        trace_id: trace_id(trace).0.to_vec(),
        span_id: vec![id; 8],
        parent_span_id: if parent == 0 { Vec::new() } else { vec![parent; 8] },
        name: format!("span {id}"),
        start_time_unix_nano: start_ns,
        end_time_unix_nano: start_ns + 10,
        ..Span::default()
    }
}

pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
}

/// Spans with what they are sent under.
pub(super) type Sent = (Arc<Batch>, Vec<Span>);

pub(super) fn batch(service: &str, spans: Vec<Span>) -> Sent {
    let attributes = vec![attribute("service.name", Value::StringValue(service.to_owned()))];
    let batch = Batch {
        resource: Arc::new(Resource { attributes, ..Resource::default() }),
        resource_schema_url: "".into(),
        scope: Arc::default(),
        scope_schema_url: "".into(),
    };
    (Arc::new(batch), spans)
}

/// The trace of these batches; its spans get its id.
pub(super) fn trace(id: u8, batches: Vec<Sent>) -> Arc<Trace> {
    of_batches(trace_id(id), batches)
}

fn of_batches(id: TraceId, batches: Vec<Sent>) -> Arc<Trace> {
    let mut trace = Trace::empty(id);
    for (batch, spans) in batches {
        for span in spans {
            trace.add(&batch, &Span { trace_id: id.0.to_vec(), ..span });
        }
    }
    Arc::new(trace)
}

/// Up to five traces, sorted by id.
pub(super) fn any_traces() -> impl Strategy<Value = Vec<Arc<Trace>>> {
    vec(((any::<u8>(), any::<u8>()), any_batches()), 0..5).prop_map(|traces| {
        let id = |(high, low): (u8, u8)| {
            let mut id = [0; 16];
            (id[0], id[15]) = (high, low);
            TraceId(id)
        };
        let traces: BTreeMap<_, _> = traces.into_iter().map(|(bytes, batches)| (id(bytes), batches)).collect();
        traces.into_iter().map(|(id, batches)| of_batches(id, batches)).collect()
    })
}

fn any_batches() -> impl Strategy<Value = Vec<Sent>> {
    let resources = vec((any_resource(), text()), 1..3);
    let scopes = vec((any_scope(), text()), 1..3);
    let batches = vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), vec(any_span(), 1..6)), 1..5);
    (resources, scopes, batches, any::<bool>()).prop_map(|(resources, scopes, batches, send_again)| {
        let shared: Vec<_> =
            resources.into_iter().map(|(resource, url)| (Arc::new(resource), Arc::from(url))).collect();
        let scopes: Vec<_> = scopes.into_iter().map(|(scope, url)| (Arc::new(scope), Arc::from(url))).collect();
        let batches = batches.into_iter().map(|(resource, scope, spans)| {
            let ((resource, resource_schema_url), (scope, scope_schema_url)) =
                (resource.get(&shared).clone(), scope.get(&scopes).clone());
            (Arc::new(Batch { resource, resource_schema_url, scope, scope_schema_url }), spans)
        });
        let mut batches: Vec<_> = batches.collect();
        if send_again {
            let (batch, spans) = &batches[0];
            batches.push((Arc::new(Batch::clone(batch)), spans.clone()));
        }
        batches
    })
}

fn any_span() -> impl Strategy<Value = Span> {
    let ids = (1_u8..8, 0_u8..9, any::<bool>());
    let times = (any_time(), any_time());
    let numbers = (number(), number(), number(), number());
    let status = option::of((text(), -1..4_i32));
    let lists = (vec(any_attribute(), 0..6), vec(any_event(), 0..3), vec(any_link(), 0..3));
    (ids, times, numbers, status, lists, (text(), text(), -1..7_i32)).prop_map(
        |(ids, times, numbers, status, lists, (name, trace_state, kind))| Span {
            trace_id: Vec::new(),
            span_id: vec![ids.0; 8],
            // 8 stands for a parent that never came.
            parent_span_id: if ids.1 == 0 && ids.2 { Vec::new() } else { vec![ids.1; 8] },
            start_time_unix_nano: times.0,
            end_time_unix_nano: times.1,
            flags: numbers.0,
            dropped_attributes_count: numbers.1,
            dropped_events_count: numbers.2,
            dropped_links_count: numbers.3,
            status: status.map(|(message, code)| Status { message, code }),
            attributes: lists.0,
            events: lists.1,
            links: lists.2,
            name,
            trace_state,
            kind,
        },
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    (any_time(), text(), vec(any_attribute(), 0..3), number()).prop_map(
        |(time_unix_nano, name, attributes, dropped_attributes_count)| Event {
            time_unix_nano,
            name,
            attributes,
            dropped_attributes_count,
        },
    )
}

fn any_link() -> impl Strategy<Value = Link> {
    let id = || prop_oneof![Just(Vec::new()), Just(vec![7; 8]), Just(vec![9; 16]), vec(any::<u8>(), 0..20)];
    (id(), id(), text(), vec(any_attribute(), 0..3), (number(), number())).prop_map(
        |(trace_id, span_id, trace_state, attributes, (dropped_attributes_count, flags))| Link {
            trace_id,
            span_id,
            trace_state,
            attributes,
            dropped_attributes_count,
            flags,
        },
    )
}

fn any_resource() -> impl Strategy<Value = Resource> {
    let entity = (text(), text(), vec(text(), 0..3), vec(text(), 0..3)).prop_map(
        |(schema_url, r#type, id_keys, description_keys)| EntityRef { schema_url, r#type, id_keys, description_keys },
    );
    (vec(any_attribute(), 0..4), number(), vec(entity, 0..2)).prop_map(
        |(attributes, dropped_attributes_count, entity_refs)| Resource {
            attributes,
            dropped_attributes_count,
            entity_refs,
        },
    )
}

fn any_scope() -> impl Strategy<Value = InstrumentationScope> {
    (text(), text(), vec(any_attribute(), 0..3), number()).prop_map(
        |(name, version, attributes, dropped_attributes_count)| InstrumentationScope {
            name,
            version,
            attributes,
            dropped_attributes_count,
        },
    )
}

/// Few keys, so that some come with several types and more than once in a span.
fn any_attribute() -> impl Strategy<Value = KeyValue> {
    let key = prop_oneof![
        4 => prop_oneof!["a", "b", "c.d"],
        1 => Just("service.name".to_owned()),
        1 => Just(String::new()),
        1 => text(),
    ];
    (key, option::weighted(0.9, any_value())).prop_map(|(key, value)| KeyValue { key, value, key_strindex: 0 })
}

fn any_value() -> impl Strategy<Value = AnyValue> {
    let scalar = prop_oneof![
        3 => text().prop_map(Value::StringValue),
        2 => any::<i64>().prop_map(Value::IntValue),
        2 => prop_oneof![any::<u64>().prop_map(f64::from_bits), Just(0.0), Just(-0.0), Just(f64::NAN)].prop_map(Value::DoubleValue),
        1 => any::<bool>().prop_map(Value::BoolValue),
        1 => vec(any::<u8>(), 0..10).prop_map(Value::BytesValue),
    ];
    let scalar = option::weighted(0.9, scalar).prop_map(|value| AnyValue { value });
    scalar.prop_recursive(3, 12, 3, |inner| {
        let pairs =
            (text(), option::of(inner.clone())).prop_map(|(key, value)| KeyValue { key, value, key_strindex: 0 });
        prop_oneof![
            vec(inner, 0..3).prop_map(|values| AnyValue { value: Some(Value::ArrayValue(ArrayValue { values })) }),
            vec(pairs, 0..3).prop_map(|values| AnyValue { value: Some(Value::KvlistValue(KeyValueList { values })) }),
        ]
    })
}

fn any_time() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 1_795_237_020_000_000_000..1_795_237_080_000_000_000_u64,
        1 => any::<u64>(),
        1 => prop_oneof![Just(0), Just(u64::MAX), Just(i64::MAX as u64), Just(i64::MAX as u64 + 1)],
    ]
}

fn number() -> impl Strategy<Value = u32> {
    prop_oneof![3 => Just(0), 1 => any::<u32>()]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![2 => Just(String::new()), 4 => "[a-c]{1,3}", 2 => "\\PC{0,20}", 1 => "\\PC{100,300}"]
}
