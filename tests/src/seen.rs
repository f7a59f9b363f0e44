//! Spans as a test looks at them.

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::backend::Backend;

/// A span as `/api/traces/{id}` tells of it in JSON; ids in hexadecimal.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Trace id.
    pub trace_id: String,
    /// Span id.
    pub span_id: String,
    /// Parent's span id, empty for a root.
    pub parent_span_id: String,
    /// `SPAN_KIND_…`.
    pub kind: String,
    /// Name.
    pub name: String,
    /// `STATUS_CODE_…`, empty if unset.
    pub status: String,
    /// Start, Unix time in nanoseconds.
    pub start_ns: u64,
    /// Nanoseconds from start to end.
    pub duration_ns: u64,
    /// Attributes of the span, as texts.
    pub attributes: BTreeMap<String, String>,
    /// Names of its events.
    pub events: Vec<String>,
    /// Attributes of its resource, as texts.
    pub resource: BTreeMap<String, String>,
}

impl Seen {
    /// An attribute of the span, empty if it has none.
    pub fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }

    /// `service.name`.
    pub fn service(&self) -> &str {
        self.resource.get("service.name").map_or("", String::as_str)
    }

    /// `process.pid`.
    pub fn pid(&self) -> Option<u32> {
        self.resource.get("process.pid")?.parse().ok()
    }

    /// Path of the request, of server and client spans alike.
    pub fn path(&self) -> &str {
        let url = self.attribute("url.full");
        let path = url.split_once("://").and_then(|(_, rest)| rest.get(rest.find('/')?..)).unwrap_or_default();
        let path = if url.is_empty() { self.attribute("url.path") } else { path };
        path.split('?').next().unwrap_or_default()
    }
}

/// All spans of the traces that have a span which matches a TraceQL query.
pub fn spans_of(backend: &Backend, query: &str) -> Result<Vec<Seen>> {
    let found = backend.search(query, "&limit=10000&spss=1")?;
    let traces = list(found.get("traces")).iter().filter_map(|trace| trace.get("traceID")?.as_str());
    let mut spans = Vec::new();
    for trace in traces {
        let answer = backend.get(&format!("/api/traces/{trace}"))?;
        ensure!(answer.status == 200, "trace {trace}: status {}", answer.status);
        for batch in list(answer.json()?.get("batches")) {
            let resource = attributes(batch.get("resource").and_then(|resource| resource.get("attributes")));
            for span in list(batch.get("scopeSpans")).iter().flat_map(|scope| list(scope.get("spans"))) {
                spans.push(seen(span, &resource)?);
            }
        }
    }
    Ok(spans)
}

fn seen(span: &Value, resource: &BTreeMap<String, String>) -> Result<Seen> {
    let time = |key: &str| text(span.get(key)).parse::<u64>().with_context(|| format!("{key}: {span}"));
    let status = span.get("status").and_then(|status| status.get("code"));
    Ok(Seen {
        trace_id: id(span.get("traceId"))?,
        span_id: id(span.get("spanId"))?,
        parent_span_id: id(span.get("parentSpanId"))?,
        kind: text(span.get("kind")),
        name: text(span.get("name")),
        status: text(status),
        start_ns: time("startTimeUnixNano")?,
        duration_ns: time("endTimeUnixNano")?
            .checked_sub(time("startTimeUnixNano")?)
            .context("ends before it starts")?,
        attributes: attributes(span.get("attributes")),
        events: list(span.get("events")).iter().map(|event| text(event.get("name"))).collect(),
        resource: resource.clone(),
    })
}

fn attributes(of: Option<&Value>) -> BTreeMap<String, String> {
    let pair = |pair: &Value| {
        let (_, value) = pair.get("value")?.as_object()?.iter().next()?;
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some((text(pair.get("key")), value))
    };
    list(of).iter().filter_map(pair).collect()
}

fn list(value: Option<&Value>) -> &[Value] {
    value.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn text(value: Option<&Value>) -> String {
    value.and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn id(value: Option<&Value>) -> Result<String> {
    from_base64(&text(value))
}

/// Bytes in padded standard base64, as hexadecimal digits.
pub fn from_base64(text: &str) -> Result<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    ensure!(text.len().is_multiple_of(4), "{text:?} is not padded base64");
    let (mut bits, mut held, mut hex) = (0_u32, 0, String::new());
    for digit in text.trim_end_matches('=').bytes() {
        let number = ALPHABET.iter().position(|&letter| letter == digit).context("not base64")?;
        bits = bits << 6 | number as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            let _ = write!(hex, "{:02x}", bits >> held & 0xff);
        }
    }
    Ok(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_becomes_hexadecimal() {
        for (text, hex) in [("", ""), ("AA==", "00"), ("/+8=", "ffef"), ("Zm9v", "666f6f"), ("Zm9vYg==", "666f6f62")] {
            assert_eq!(from_base64(text).unwrap(), hex);
        }
        assert!(from_base64("Zm9").is_err());
        assert!(from_base64("Zm9!").is_err());
    }

    #[test]
    fn the_path_of_a_client_span_is_in_its_url() {
        let with = |key: &str, value: &str| Seen {
            trace_id: String::new(),
            span_id: String::new(),
            parent_span_id: String::new(),
            kind: String::new(),
            name: String::new(),
            status: String::new(),
            start_ns: 0,
            duration_ns: 0,
            attributes: BTreeMap::from([(key.to_owned(), value.to_owned())]),
            events: Vec::new(),
            resource: BTreeMap::new(),
        };
        assert_eq!(with("url.full", "http://127.0.0.1:80/a/b?c=d").path(), "/a/b");
        assert_eq!(with("url.path", "/a/b").path(), "/a/b");
    }
}
