//! Random traces and random queries, which have words in common.

use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, Status};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::Plan;
use super::fixture::{EPOCH, array, attributes, int, service, text, trace as trace_of};
use crate::live::{Trace, TraceId};
use crate::traceql;

/// Keys of attributes, of every scope.
const KEYS: [&str; 3] = ["a", "b", "c.d"];

fn any_value() -> impl Strategy<Value = Any> {
    prop_oneof![
        (0_i64..4).prop_map(int),
        select(vec!["x", "y", "xy"]).prop_map(text),
        any::<bool>().prop_map(Any::BoolValue),
        select(vec![0.5, 1.0, 2.5]).prop_map(Any::DoubleValue),
        vec(0_i64..4, 0..3).prop_map(|list| array(&list.into_iter().map(int).collect::<Vec<_>>())),
        vec(0_u8..3, 0..3).prop_map(Any::BytesValue),
    ]
}

/// Some of the keys, each at most once.
fn values() -> impl Strategy<Value = Vec<(&'static str, Any)>> {
    [option::weighted(0.4, any_value()), option::weighted(0.4, any_value()), option::weighted(0.2, any_value())]
        .prop_map(|values| KEYS.into_iter().zip(values).filter_map(|(key, value)| Some((key, value?))).collect())
}

fn event() -> impl Strategy<Value = Event> {
    (select(vec!["exception", "retry"]), 0_u64..40, values()).prop_map(|(name, at, list)| Event {
        name: name.to_owned(),
        time_unix_nano: EPOCH + at * 1_000_000,
        attributes: attributes(&list),
        dropped_attributes_count: 0,
    })
}

fn link() -> impl Strategy<Value = Link> {
    (1_u8..4, values()).prop_map(|(id, list)| Link {
        trace_id: vec![id; 16],
        span_id: vec![id; 8],
        attributes: attributes(&list),
        ..Link::default()
    })
}

fn span() -> impl Strategy<Value = Span> {
    let identity = (1_u8..12, 0_u8..12, select(vec!["GET", "SELECT", "render"]), 0_i32..6);
    let times = (0_u64..40, 0_u64..40);
    let status = option::of((0_i32..3, select(vec!["", "x"])));
    (identity, times, status, values(), vec(event(), 0..3), vec(link(), 0..2)).prop_map(
        |((id, parent, name, kind), (start, length), status, list, events, links)| Span {
            span_id: vec![0, 0, 0, 0, 0, 0, 0, id],
            parent_span_id: if parent == 0 { Vec::new() } else { vec![0, 0, 0, 0, 0, 0, 0, parent] },
            name: name.to_owned(),
            kind,
            start_time_unix_nano: EPOCH + start * 1_000_000,
            end_time_unix_nano: EPOCH + (start + length) * 1_000_000,
            status: status.map(|(code, message)| Status { code, message: message.to_owned() }),
            attributes: attributes(&list),
            events,
            links,
            ..Span::default()
        },
    )
}

/// What one service sends of a trace.
fn resource_spans() -> impl Strategy<Value = ResourceSpans> {
    let library = select(vec!["net/http", "sql"]);
    (select(vec!["cart", "till", "x"]), values(), library, vec(span(), 1..6))
        .prop_map(|(name, more, library, spans)| service(name, &more, library, spans))
}

/// What is sent of one trace, in several parts. Some ids of spans come twice, some parents never.
pub(crate) fn parts(id: TraceId) -> impl Strategy<Value = Vec<ResourceSpans>> {
    vec(resource_spans(), 1..4).prop_map(move |mut parts| {
        for span in parts.iter_mut().flat_map(|part| &mut part.scope_spans).flat_map(|scope| &mut scope.spans) {
            span.trace_id = id.0.to_vec();
        }
        parts
    })
}

/// A trace.
pub(crate) fn trace() -> impl Strategy<Value = Arc<Trace>> {
    parts(TraceId([7; 16])).prop_map(trace_of)
}

fn field() -> impl Strategy<Value = &'static str> {
    select(vec![
        ".a",
        ".b",
        ".c.d",
        "span.a",
        "span.b",
        "span.c.d",
        "resource.a",
        "resource.b",
        "resource.service.name",
        "event.a",
        "link.b",
        "instrumentation.library.kind",
        "parent.a",
        "parent.span.b",
        "parent.resource.service.name",
        "name",
        "duration",
        "status",
        "statusMessage",
        "kind",
        "rootName",
        "rootServiceName",
        "traceDuration",
        "span:id",
        "span:parentID",
        "span:childCount",
        "trace:id",
        "nestedSetLeft",
        "nestedSetParent",
        "event:name",
        "event:timeSinceStart",
        "link:spanID",
        "instrumentation:name",
    ])
}

fn literal() -> impl Strategy<Value = &'static str> {
    select(vec![
        "0",
        "1",
        "2",
        "0.5",
        "-1",
        "10ms",
        "30ms",
        "true",
        "\"x\"",
        "\"xy\"",
        "\"GET\"",
        "\"cart\"",
        "\"3\"",
        "error",
        "server",
        "\"retry\"",
        "\"sql\"",
        "\"\"",
    ])
}

fn condition() -> impl Strategy<Value = String> {
    let op = || select(vec!["=", "!=", "<", "<=", ">", ">="]);
    let leaf = prop_oneof![
        6 => (field(), op(), literal()).prop_map(|(field, op, literal)| format!("{field} {op} {literal}")),
        1 => (field(), select(vec!["x", "x.*|GET", ".*t", "SELECT|sql"]), any::<bool>())
            .prop_map(|(field, pattern, not)| format!("{field} {} \"{pattern}\"", if not { "!~" } else { "=~" })),
        1 => (field(), any::<bool>()).prop_map(|(field, not)| format!("{field} {} nil", if not { "=" } else { "!=" })),
        1 => (field(), op(), field()).prop_map(|(left, op, right)| format!("{left} {op} {right}")),
        1 => (field(), literal()).prop_map(|(field, literal)| format!("{field} * 2 - 1 > {literal}")),
        1 => select(vec!["true", "false", "1 = 1", "span.a", ".b"]).prop_map(str::to_owned),
    ];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left}) && ({right})")),
            (inner.clone(), inner.clone()).prop_map(|(left, right)| format!("({left}) || ({right})")),
            inner.prop_map(|inner| format!("!({inner})")),
        ]
    })
}

fn spansets() -> impl Strategy<Value = String> {
    let op = select(vec![
        "&&", "||", ">>", "<<", ">", "<", "~", "!>>", "!<<", "!>", "!<", "!~", "&>>", "&<<", "&>", "&<", "&~",
    ]);
    let filter =
        prop_oneof![5 => condition().prop_map(|condition| format!("{{ {condition} }}")), 1 => Just("{}".to_owned())];
    filter.prop_recursive(2, 4, 2, move |inner| {
        prop_oneof![
            3 => (inner.clone(), op.clone(), inner.clone()).prop_map(|(left, op, right)| format!("({left} {op} {right})")),
            1 => (inner, stage()).prop_map(|(inner, stage)| format!("({inner} | {stage})")),
        ]
    })
}

fn stage() -> impl Strategy<Value = String> {
    prop_oneof![
        condition().prop_map(|condition| format!("{{ {condition} }}")),
        (0_u8..4).prop_map(|count| format!("count() > {count}")),
        select(vec!["avg(duration) > 10ms", "max(.a) >= 1", "sum(span.b) < 3", "min(duration) < 30ms"])
            .prop_map(str::to_owned),
        field().prop_map(|field| format!("by({field})")),
        Just("coalesce()".to_owned()),
        (field(), field()).prop_map(|(one, other)| format!("select({one}, {other})")),
    ]
}

/// A search that can be planned.
pub(crate) fn query() -> impl Strategy<Value = String> {
    let query =
        (spansets(), vec(stage(), 0..3)).prop_map(|(spansets, stages)| [vec![spansets], stages].concat().join(" | "));
    query.prop_filter("must be valid", |query| traceql::parse(query).is_ok_and(|query| Plan::new(&query).is_ok()))
}
