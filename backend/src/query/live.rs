//! Spans of the live set, as queries see them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::ControlFlow;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use super::distinct::distinct_spans;
use super::nested::{Link, NestedSet, number};
use super::span::SpanView;
use super::value::Value;
use crate::live::{Batch, Trace};
use crate::otlp::{AttributeRef, SpanRef};
use crate::traceql::{Intrinsic, Kind, Scope, Status};

/// A span with all that it was sent under.
#[derive(Clone, Copy, Debug)]
pub struct LiveSpan<'a> {
    trace: &'a Trace,
    batch: &'a Batch,
    span: SpanRef<'a>,
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
    pub fn span(&self) -> SpanRef<'a> {
        self.span
    }

    /// Shows the attributes of a scope until it is told to stop. [`Scope::Any`] has none.
    fn each<B>(&self, scope: Scope, mut visit: impl FnMut(Attribute<'a>) -> ControlFlow<B>) -> Option<B> {
        let (batch, span) = (self.batch, self.span);
        let mut shared = |attributes: &'a [KeyValue]| attributes.iter().map(Attribute::Shared).try_for_each(&mut visit);
        let flow = match scope {
            Scope::Any => return None,
            Scope::Resource => shared(&batch.resource.attributes),
            Scope::Instrumentation => shared(&batch.scope.attributes),
            Scope::Span => span.attributes().map(Attribute::Own).try_for_each(visit),
            Scope::Event => span.events().flat_map(|event| event.attributes()).map(Attribute::Own).try_for_each(visit),
            Scope::Link => span.links().flat_map(|link| link.attributes()).map(Attribute::Own).try_for_each(visit),
        };
        flow.break_value()
    }

    fn first(&self, scope: Scope, name: &str) -> Value<'a> {
        let found = self.each(scope, |attribute| {
            if attribute.is(name) { ControlFlow::Break(attribute.value()) } else { ControlFlow::Continue(()) }
        });
        found.unwrap_or(Value::Nil)
    }

    fn many(&self, scope: Scope, name: &str) -> Value<'a> {
        let mut values = Vec::new();
        _ = self.each(scope, |attribute| {
            if attribute.is(name) {
                match attribute.value() {
                    Value::List(elements) => values.extend(elements),
                    Value::Nil => {}
                    value => values.push(value),
                }
            }
            ControlFlow::<()>::Continue(())
        });
        Value::of_many(values)
    }
}

/// An attribute of a span itself, or of what many share.
enum Attribute<'a> {
    Own(AttributeRef<'a>),
    Shared(&'a KeyValue),
}

impl<'a> Attribute<'a> {
    fn is(&self, name: &str) -> bool {
        match self {
            Self::Own(attribute) => attribute.key == *name,
            Self::Shared(attribute) => attribute.key == name,
        }
    }

    fn key(&self) -> &'a str {
        match self {
            Self::Own(attribute) => attribute.key.as_str(),
            Self::Shared(attribute) => &attribute.key,
        }
    }

    fn value(&self) -> Value<'a> {
        match self {
            Self::Own(attribute) => Value::of_encoded(attribute.value),
            Self::Shared(attribute) => Value::of(attribute.value.as_ref()),
        }
    }
}

/// Until its caller is known the top of a provisional trace is a root.
fn link<'a>(LiveSpan { span, .. }: &LiveSpan<'a>) -> Link<'a> {
    let link = Link::of(span);
    if span.is_top() { Link { parent: &[], ..link } } else { link }
}

/// Numbers the spans, and counts their children.
fn place(spans: &mut [LiveSpan<'_>]) {
    let links: Vec<_> = spans.iter().map(link).collect();
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
            Scope::Span | Scope::Resource | Scope::Instrumentation => self.first(scope, name),
            Scope::Any | Scope::Event | Scope::Link => self.many(scope, name),
        }
    }

    fn each_attribute(&self, scope: Scope, visit: &mut dyn FnMut(&str, Value<'_>)) {
        _ = self.each(scope, |attribute| {
            visit(attribute.key(), attribute.value());
            ControlFlow::<()>::Continue(())
        });
    }

    fn intrinsic(&self, intrinsic: Intrinsic) -> Value<'_> {
        let (span, trace) = (self.span, self.trace);
        let borrowed = |text| Value::String(Cow::Borrowed(text));
        let events = || span.events();
        let links = || span.links();
        match intrinsic {
            Intrinsic::Duration => duration(self.duration_ns()),
            Intrinsic::Name => borrowed(span.name.as_str()),
            Intrinsic::Status => Value::Status(status_of(span.status.map_or(0, |status| status.code))),
            Intrinsic::StatusMessage => borrowed(span.status.unwrap_or_default().message.as_str()),
            Intrinsic::Kind => Value::Kind(kind_of(span.kind)),
            Intrinsic::Parent => Value::Nil,
            Intrinsic::ChildCount => Value::Int(self.children),
            Intrinsic::SpanId => Value::text(hex(span.span_id)),
            Intrinsic::ParentId => Value::text(hex(span.parent_span_id)),
            Intrinsic::NestedSetLeft => Value::Int(self.nested.left.into()),
            Intrinsic::NestedSetRight => Value::Int(self.nested.right.into()),
            Intrinsic::NestedSetParent => Value::Int(self.nested.parent.into()),
            Intrinsic::TraceId => Value::text(trace.id.to_string()),
            Intrinsic::TraceDuration => duration(trace.end_ns.saturating_sub(trace.start_ns)),
            Intrinsic::RootName => trace.root.as_ref().map_or(Value::Nil, |root| borrowed(&root.span_name)),
            Intrinsic::RootService => trace.root.as_ref().map_or(Value::Nil, |root| borrowed(&root.service_name)),
            Intrinsic::EventName => Value::of_many(events().map(|event| borrowed(event.name.as_str())).collect()),
            Intrinsic::EventTimeSinceStart => {
                let since = |time: u64| duration(time.saturating_sub(span.start_time_unix_nano));
                Value::of_many(events().map(|event| since(event.time_unix_nano)).collect())
            }
            Intrinsic::LinkTraceId => Value::of_many(links().map(|link| Value::text(hex(link.trace_id))).collect()),
            Intrinsic::LinkSpanId => Value::of_many(links().map(|link| Value::text(hex(link.span_id))).collect()),
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

fn duration(nanos: u64) -> Value<'static> {
    Value::Duration(i64::try_from(nanos).unwrap_or(i64::MAX))
}

/// Outcome by its number in OTLP.
pub(crate) fn status_of(code: i32) -> Status {
    match StatusCode::try_from(code) {
        Ok(StatusCode::Error) => Status::Error,
        Ok(StatusCode::Ok) => Status::Ok,
        Ok(StatusCode::Unset) | Err(_) => Status::Unset,
    }
}

/// Side by its number in OTLP.
pub(crate) fn kind_of(number: i32) -> Kind {
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
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    let digit = |value: u8| DIGITS.get(usize::from(value & 15)).copied().unwrap_or_default();
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.push(digit(byte >> 4));
        text.push(digit(*byte));
    }
    text
}
