//! Spans on standard output, as they are made.

use std::{
    fmt,
    io::{self, Write},
    time::Duration,
};

use coati_common::wellknown::span as names;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    trace::v1::{span::SpanKind, status::StatusCode},
};
use serde_json::{Map, json};

use crate::span::FinishedSpan;

/// How a span is printed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// A line for people.
    Text,
    /// A line with a JSON object.
    Json,
}

/// Prints one line per span.
#[derive(Debug)]
pub struct Printer<W> {
    writer: W,
    format: Format,
}

impl<W: Write> Printer<W> {
    /// Lines go to `writer`.
    pub fn new(writer: W, format: Format) -> Self {
        Self { writer, format }
    }

    /// Prints a span. Whoever reads wants to see it now, so call [`Printer::flush`] after the last one at hand.
    pub fn print(&mut self, finished: &FinishedSpan) -> io::Result<()> {
        match self.format {
            Format::Text => writeln!(self.writer, "{}", Line(finished)),
            Format::Json => writeln!(self.writer, "{}", object(finished)),
        }
    }

    /// Lets the lines out.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// `12:30:01.123 → shop GET /cart/{id} 200 3.2ms (first byte 2.9ms) 4bf9…`
struct Line<'a>(&'a FinishedSpan);

impl fmt::Display for Line<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FinishedSpan { process, span, .. } = self.0;
        let all = &span.attributes[..];
        let milliseconds = span.start_time_unix_nano / 1_000_000;
        let (seconds, millisecond) = (milliseconds / 1000, milliseconds % 1000);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        let arrow = match span.kind() {
            // Towards the service, and away from it.
            SpanKind::Server | SpanKind::Consumer => "→",
            SpanKind::Client | SpanKind::Producer => "←",
            SpanKind::Internal | SpanKind::Unspecified => "·",
        };
        write!(formatter, "{hour:02}:{minute:02}:{second:02}.{millisecond:03} {arrow} {}", process.service_name)?;
        write!(formatter, " {}", text(all, names::HTTP_REQUEST_METHOD).unwrap_or("-"))?;
        let target = text(all, names::HTTP_ROUTE).or_else(|| text(all, names::URL_PATH));
        // A client has no route of its own, but it knows whom it asks.
        let target = target.or_else(|| text(all, names::URL_FULL).map(without_scheme_and_query));
        write!(formatter, " {}", target.unwrap_or("-"))?;
        match attribute(all, names::HTTP_RESPONSE_STATUS_CODE) {
            Some(Value::IntValue(status)) => write!(formatter, " {status}")?,
            _ => write!(formatter, " -")?,
        }
        if span.status.as_ref().is_some_and(|status| status.code() == StatusCode::Error) {
            write!(formatter, " error")?;
        }
        let nanoseconds = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
        write!(formatter, " {:.1?}", Duration::from_nanos(nanoseconds))?;
        if let Some(Value::BoolValue(true)) = attribute(all, names::COATI_SPAN_PARTIAL) {
            write!(formatter, " so far")?;
        }
        if let Some(Value::DoubleValue(first)) = attribute(all, names::COATI_TIME_TO_FIRST_BYTE)
            && let Ok(first) = Duration::try_from_secs_f64(*first)
        {
            write!(formatter, " (first byte {first:.1?})")?;
        }
        write!(formatter, " {}", Hexadecimal(&span.trace_id))
    }
}

/// Every field of the span that has a value, and every attribute of it and of its resource.
fn object(finished: &FinishedSpan) -> serde_json::Value {
    let FinishedSpan { process, span, .. } = finished;
    let attributes = |list: &[KeyValue]| {
        let pairs = list.iter().map(|pair| (pair.key.clone(), pair.value.as_ref().map_or(json!(null), json_value)));
        pairs.collect::<Map<_, _>>()
    };
    let mut object = json!({
        "service": process.service_name,
        "name": span.name,
        "kind": span.kind().as_str_name().trim_start_matches("SPAN_KIND_").to_ascii_lowercase(),
        "trace_id": Hexadecimal(&span.trace_id).to_string(),
        "span_id": Hexadecimal(&span.span_id).to_string(),
        "start_unix_nano": span.start_time_unix_nano,
        "end_unix_nano": span.end_time_unix_nano,
        "attributes": attributes(&span.attributes),
        "resource": attributes(&process.resource.attributes),
    });
    if let Some(object) = object.as_object_mut() {
        if !span.parent_span_id.is_empty() {
            object.insert("parent_span_id".to_owned(), Hexadecimal(&span.parent_span_id).to_string().into());
        }
        if !span.trace_state.is_empty() {
            object.insert("trace_state".to_owned(), span.trace_state.clone().into());
        }
        if let Some(status) = &span.status {
            let code = status.code().as_str_name().trim_start_matches("STATUS_CODE_").to_ascii_lowercase();
            object.insert("status".to_owned(), json!({ "code": code, "message": status.message }));
        }
    }
    object
}

fn json_value(value: &AnyValue) -> serde_json::Value {
    match &value.value {
        Some(Value::StringValue(text)) => json!(text),
        Some(Value::BoolValue(flag)) => json!(flag),
        Some(Value::IntValue(number)) => json!(number),
        Some(Value::DoubleValue(number)) => json!(number),
        Some(Value::ArrayValue(array)) => array.values.iter().map(json_value).collect(),
        // The agent makes no others.
        _ => json!(null),
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a Value> {
    let attribute = attributes.iter().find(|attribute| attribute.key == name)?;
    attribute.value.as_ref()?.value.as_ref()
}

fn text<'a>(attributes: &'a [KeyValue], name: &str) -> Option<&'a str> {
    match attribute(attributes, name)? {
        Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn without_scheme_and_query(url: &str) -> &str {
    let url = url.split_once("://").map_or(url, |(_, rest)| rest);
    url.split('?').next().unwrap_or(url)
}

struct Hexadecimal<'a>(&'a [u8]);

impl fmt::Display for Hexadecimal<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry_proto::tonic::{
        resource::v1::Resource,
        trace::v1::{Span, Status},
    };
    use rstest::rstest;

    use super::*;
    use crate::discover::{Exports, Process};

    fn pair(key: &str, value: Value) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
    }

    fn string(text: &str) -> Value {
        Value::StringValue(text.to_owned())
    }

    fn finished(kind: SpanKind, attributes: Vec<KeyValue>) -> FinishedSpan {
        let resource = Resource { attributes: vec![pair("service.name", string("shop"))], ..Resource::default() };
        let process =
            Process { tgid: 1, service_name: "shop".to_owned(), resource, sampler: None, exports: Exports::default() };
        let span = Span {
            name: "GET /cart/{id}".to_owned(),
            kind: kind.into(),
            trace_id: vec![0x4b; 16],
            span_id: vec![0x0f; 8],
            start_time_unix_nano: 45_001_123_000_000,
            end_time_unix_nano: 45_001_126_200_000,
            attributes,
            ..Span::default()
        };
        FinishedSpan { process: Arc::new(process), span }
    }

    fn whole() -> Vec<KeyValue> {
        vec![
            pair("http.request.method", string("GET")),
            pair("http.route", string("/cart/{id}")),
            pair("url.path", string("/cart/7")),
            pair("http.response.status_code", Value::IntValue(200)),
            pair("coati.http.time_to_first_byte", Value::DoubleValue(0.0029)),
        ]
    }

    fn printed(format: Format, span: &FinishedSpan) -> String {
        let mut printer = Printer::new(Vec::new(), format);
        printer.print(span).unwrap();
        printer.flush().unwrap();
        String::from_utf8(printer.writer).unwrap()
    }

    #[rstest]
    #[case::server(
        finished(SpanKind::Server, whole()),
        "12:30:01.123 → shop GET /cart/{id} 200 3.2ms (first byte 2.9ms) 4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b\n"
    )]
    #[case::not_over(
        finished(SpanKind::Server, [whole(), vec![pair("coati.span.partial", Value::BoolValue(true))]].concat()),
        "12:30:01.123 → shop GET /cart/{id} 200 3.2ms so far (first byte 2.9ms) 4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b\n"
    )]
    #[case::client_without_a_route(
        finished(SpanKind::Client, vec![
            pair("http.request.method", string("POST")),
            pair("url.full", string("http://bank:8080/pay?card=REDACTED")),
            pair("http.response.status_code", Value::IntValue(404)),
        ]),
        "12:30:01.123 ← shop POST bank:8080/pay 404 3.2ms 4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b\n"
    )]
    #[case::nothing_known(
        finished(SpanKind::Unspecified, vec![]),
        "12:30:01.123 · shop - - - 3.2ms 4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b\n"
    )]
    #[case::impossible_time(
        finished(SpanKind::Server, vec![pair("coati.http.time_to_first_byte", Value::DoubleValue(-1.0))]),
        "12:30:01.123 → shop - - - 3.2ms 4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b\n"
    )]
    fn text_lines(#[case] span: FinishedSpan, #[case] expected: &str) {
        assert_eq!(printed(Format::Text, &span), expected);
    }

    #[test]
    fn an_error_is_marked() {
        let mut span = finished(SpanKind::Client, whole());
        span.span.status = Some(Status { code: StatusCode::Error.into(), ..Status::default() });
        assert!(printed(Format::Text, &span).contains(" 200 error 3.2ms "));
    }

    #[test]
    fn json_lines() {
        let mut span = finished(SpanKind::Server, whole());
        span.span.parent_span_id = vec![1; 8];
        span.span.trace_state = "coati=p".to_owned();
        span.span.status = Some(Status { code: StatusCode::Error.into(), message: "no answer".to_owned() });
        let line = printed(Format::Json, &span);
        assert_eq!(line.lines().count(), 1);
        let expected = json!({
            "service": "shop",
            "name": "GET /cart/{id}",
            "kind": "server",
            "trace_id": "4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b4b",
            "span_id": "0f0f0f0f0f0f0f0f",
            "parent_span_id": "0101010101010101",
            "trace_state": "coati=p",
            "start_unix_nano": 45_001_123_000_000_u64,
            "end_unix_nano": 45_001_126_200_000_u64,
            "status": { "code": "error", "message": "no answer" },
            "attributes": {
                "http.request.method": "GET",
                "http.route": "/cart/{id}",
                "url.path": "/cart/7",
                "http.response.status_code": 200,
                "coati.http.time_to_first_byte": 0.0029,
            },
            "resource": { "service.name": "shop" },
        });
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap(), expected);
    }
}
