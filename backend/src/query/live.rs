//! Spans of the live set, as queries see them.

use std::borrow::Cow;
use std::collections::HashMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use super::distinct::distinct_spans;
use super::nested::{Link, NestedSet, number};
use super::span::SpanView;
use super::value::Value;
use crate::live::{Batch, Trace};
use crate::traceql::{Intrinsic, Kind, Scope, Status};

/// A span with all that it was sent under.
#[derive(Clone, Copy, Debug)]
pub struct LiveSpan<'a> {
    trace: &'a Trace,
    batch: &'a Batch,
    span: &'a Span,
    nested: NestedSet,
    children: i64,
}

impl<'a> LiveSpan<'a> {
    /// All spans of a trace, in the order of arrival. `nested` says whether their places in the tree are needed.
    pub fn of_trace(trace: &'a Trace, nested: bool) -> Vec<Self> {
        let nowhere = NestedSet::default();
        let spans = distinct_spans(trace).into_iter();
        let spans = spans.map(|(batch, span)| LiveSpan { trace, batch, span, nested: nowhere, children: 0 });
        let mut spans: Vec<_> = spans.collect();
        if nested {
            place(&mut spans);
        }
        spans
    }

    /// The span as it was sent.
    pub fn span(&self) -> &'a Span {
        self.span
    }

    /// Attributes of a scope. [`Scope::Any`] has none.
    pub fn attributes(&self, scope: Scope) -> Box<dyn Iterator<Item = &'a KeyValue> + 'a> {
        let (batch, span) = (self.batch, self.span);
        match scope {
            Scope::Any => Box::new(std::iter::empty()),
            Scope::Span => Box::new(span.attributes.iter()),
            Scope::Resource => Box::new(batch.resource.attributes.iter()),
            Scope::Instrumentation => Box::new(batch.scope.attributes.iter()),
            Scope::Event => Box::new(span.events.iter().flat_map(|event| &event.attributes)),
            Scope::Link => Box::new(span.links.iter().flat_map(|link| &link.attributes)),
        }
    }

    fn many(&self, scope: Scope, name: &str) -> Value<'a> {
        let values =
            self.attributes(scope).filter(|kv| kv.key == name).flat_map(|kv| match Value::of(kv.value.as_ref()) {
                Value::List(values) => values,
                Value::Nil => Vec::new(),
                value => vec![value],
            });
        Value::of_many(values.collect())
    }
}

/// Numbers the spans, and counts their children.
fn place(spans: &mut [LiveSpan<'_>]) {
    let links: Vec<_> = spans.iter().map(|span| Link::of(span.span)).collect();
    let numbers = number(&links);
    let mut children = HashMap::new();
    for number in &numbers {
        *children.entry(number.parent).or_insert(0) += 1;
    }
    for (span, number) in spans.iter_mut().zip(numbers) {
        span.nested = number;
        span.children = if number.left > 0 { children.get(&number.left).copied().unwrap_or_default() } else { 0 };
    }
}

impl SpanView for LiveSpan<'_> {
    fn attribute(&self, scope: Scope, name: &str) -> Value<'_> {
        match scope {
            Scope::Span => attribute(&self.span.attributes, name),
            Scope::Resource => attribute(&self.batch.resource.attributes, name),
            Scope::Instrumentation => attribute(&self.batch.scope.attributes, name),
            Scope::Any | Scope::Event | Scope::Link => self.many(scope, name),
        }
    }

    fn each_attribute(&self, scope: Scope, visit: &mut dyn FnMut(&str, Value<'_>)) {
        self.attributes(scope).for_each(|kv| visit(&kv.key, Value::of(kv.value.as_ref())));
    }

    fn intrinsic(&self, intrinsic: Intrinsic) -> Value<'_> {
        let (span, trace) = (self.span, self.trace);
        let borrowed = |text| Value::String(Cow::Borrowed(text));
        let events = || span.events.iter();
        let links = || span.links.iter();
        match intrinsic {
            Intrinsic::Duration => duration(self.duration_ns()),
            Intrinsic::Name => borrowed(&span.name),
            Intrinsic::Status => Value::Status(status_of(span.status.as_ref().map_or(0, |status| status.code))),
            Intrinsic::StatusMessage => borrowed(span.status.as_ref().map_or("", |status| &status.message)),
            Intrinsic::Kind => Value::Kind(kind_of(span.kind)),
            Intrinsic::Parent => Value::Nil,
            Intrinsic::ChildCount => Value::Int(self.children),
            Intrinsic::SpanId => Value::text(hex(&span.span_id)),
            Intrinsic::ParentId => Value::text(hex(&span.parent_span_id)),
            Intrinsic::NestedSetLeft => Value::Int(self.nested.left.into()),
            Intrinsic::NestedSetRight => Value::Int(self.nested.right.into()),
            Intrinsic::NestedSetParent => Value::Int(self.nested.parent.into()),
            Intrinsic::TraceId => Value::text(trace.id.to_string()),
            Intrinsic::TraceDuration => duration(trace.end_ns.saturating_sub(trace.start_ns)),
            Intrinsic::RootName => trace.root.as_ref().map_or(Value::Nil, |root| borrowed(&root.span_name)),
            Intrinsic::RootService => trace.root.as_ref().map_or(Value::Nil, |root| borrowed(&root.service_name)),
            Intrinsic::EventName => Value::of_many(events().map(|event| borrowed(&event.name)).collect()),
            Intrinsic::EventTimeSinceStart => {
                let since = |time: u64| duration(time.saturating_sub(span.start_time_unix_nano));
                Value::of_many(events().map(|event| since(event.time_unix_nano)).collect())
            }
            Intrinsic::LinkTraceId => Value::of_many(links().map(|link| Value::text(hex(&link.trace_id))).collect()),
            Intrinsic::LinkSpanId => Value::of_many(links().map(|link| Value::text(hex(&link.span_id))).collect()),
            Intrinsic::InstrumentationName => borrowed(&self.batch.scope.name),
            Intrinsic::InstrumentationVersion => borrowed(&self.batch.scope.version),
        }
    }

    fn nested(&self) -> NestedSet {
        self.nested
    }

    fn start_ns(&self) -> u64 {
        self.span.start_time_unix_nano
    }

    fn duration_ns(&self) -> u64 {
        self.span.end_time_unix_nano.saturating_sub(self.span.start_time_unix_nano)
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], name: &str) -> Value<'a> {
    attributes.iter().find(|kv| kv.key == name).map_or(Value::Nil, |kv| Value::of(kv.value.as_ref()))
}

fn duration(nanos: u64) -> Value<'static> {
    Value::Duration(i64::try_from(nanos).unwrap_or(i64::MAX))
}

/// Outcome by its number in OTLP.
pub(super) fn status_of(code: i32) -> Status {
    match StatusCode::try_from(code) {
        Ok(StatusCode::Error) => Status::Error,
        Ok(StatusCode::Ok) => Status::Ok,
        Ok(StatusCode::Unset) | Err(_) => Status::Unset,
    }
}

/// Side by its number in OTLP.
pub(super) fn kind_of(number: i32) -> Kind {
    match SpanKind::try_from(number) {
        Ok(SpanKind::Unspecified) | Err(_) => Kind::Unspecified,
        Ok(SpanKind::Internal) => Kind::Internal,
        Ok(SpanKind::Server) => Kind::Server,
        Ok(SpanKind::Client) => Kind::Client,
        Ok(SpanKind::Producer) => Kind::Producer,
        Ok(SpanKind::Consumer) => Kind::Consumer,
    }
}

/// Two digits a byte.
pub(super) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |value: u8| DIGITS.get(usize::from(value & 15)).copied().unwrap_or_default();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(*byte)]).collect()
}
