//! What the demo prints, from the answers of the Tempo API.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write;

use serde_json::Value;

use crate::table::columns;

/// A span as a search answers it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    trace: String,
    service: String,
    name: String,
    kind: String,
    status: Option<i64>,
    duration_ns: u64,
}

/// The spans of a search's answer.
pub(super) fn seen(answer: &Value) -> Vec<Seen> {
    let mut all = Vec::new();
    for trace in list(answer, "traces") {
        for set in list(trace, "spanSets") {
            all.extend(list(set, "spans").map(|span| Seen {
                trace: text(trace, "traceID"),
                service: attribute(span, "service.name").unwrap_or_default(),
                name: text(span, "name"),
                kind: attribute(span, "kind").unwrap_or_default(),
                status: attribute(span, "http.response.status_code").and_then(|code| code.parse().ok()),
                duration_ns: text(span, "durationNanos").parse().unwrap_or_default(),
            }));
        }
    }
    all
}

/// The table of services: one row for each kind of request that a service answers or makes.
pub(super) fn services(spans: &[Seen]) -> String {
    let mut groups: BTreeMap<(&str, &str, &str), Vec<&Seen>> = BTreeMap::new();
    for span in spans {
        groups.entry((&span.service, &span.kind, &span.name)).or_default().push(span);
    }
    let rows: Vec<_> = groups
        .into_iter()
        .map(|((service, kind, name), spans)| {
            let mut durations: Vec<_> = spans.iter().map(|span| span.duration_ns).collect();
            durations.sort_unstable();
            // A phase of a request has no status.
            let is_failed = |span: &&&Seen| span.kind != "internal" && span.status.is_none_or(|code| code >= 500);
            let failed = spans.iter().filter(is_failed).count();
            let quantile = |q: f64| {
                let rank = (durations.len() as f64 * q).ceil() as usize;
                milliseconds(durations.get(rank.saturating_sub(1)).copied().unwrap_or_default())
            };
            vec![
                format!("{service}  {kind}  {name}"),
                spans.len().to_string(),
                failed.to_string(),
                quantile(0.5),
                quantile(0.99),
            ]
        })
        .collect();
    format!("\nin the last minute\n{}", columns(&["service, kind, request", "requests", "failed", "p50", "p99"], &rows))
}

/// The trace that crosses most services; the latest of them, since an answer begins with the newest.
pub(super) fn widest(spans: &[Seen]) -> Option<String> {
    let mut services: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    for span in spans {
        services.entry(&span.trace).or_default().insert(&span.service);
    }
    let most = services.values().map(BTreeSet::len).max()?;
    let wide = |span: &&Seen| services.get(span.trace.as_str()).is_some_and(|names| names.len() == most);
    spans.iter().find(wide).map(|span| span.trace.clone())
}

/// One whole trace as a tree, from the answer of `/api/v2/traces/{id}`.
pub(super) fn tree(id: &str, answer: &Value) -> String {
    struct Node {
        parent: String,
        start: u64,
        line: String,
    }
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    for resource in answer.pointer("/trace/resourceSpans").and_then(Value::as_array).into_iter().flatten() {
        let service =
            resource.get("resource").and_then(|resource| attribute(resource, "service.name")).unwrap_or_default();
        for span in list(resource, "scopeSpans").flat_map(|scope| list(scope, "spans")) {
            let time = |key| text(span, key).parse::<u64>().unwrap_or_default();
            let (start, end) = (time("startTimeUnixNano"), time("endTimeUnixNano"));
            let kind = text(span, "kind").trim_start_matches("SPAN_KIND_").to_lowercase();
            let status = attribute(span, "http.response.status_code");
            let status = status.unwrap_or_else(|| if kind == "internal" { "phase" } else { "no answer" }.to_owned());
            let line = format!(
                "{service} · {kind} · {} · {status} · {}",
                text(span, "name"),
                milliseconds(end.saturating_sub(start))
            );
            nodes.insert(text(span, "spanId"), Node { parent: text(span, "parentSpanId"), start, line });
        }
    }
    let mut children: BTreeMap<&str, Vec<(u64, &str)>> = BTreeMap::new();
    for (span, node) in &nodes {
        // A parent that is not here (another node, a client that traces itself) makes a root of its child.
        let parent = if nodes.contains_key(&node.parent) { node.parent.as_str() } else { "" };
        children.entry(parent).or_default().push((node.start, span));
    }
    for siblings in children.values_mut() {
        siblings.sort_unstable();
    }
    let mut page = format!("\ntrace {id}, {} spans\n", nodes.len());
    // Each with what stands before its line, and before the lines below it.
    let mut open: Vec<(&str, String, String)> = Vec::new();
    open.extend(children.get("").into_iter().flatten().rev().map(|&(_, span)| (span, String::new(), String::new())));
    while let Some((span, before, below)) = open.pop() {
        let line = nodes.get(span).map_or("", |node| node.line.as_str());
        let _ = writeln!(page, "{before}{line}");
        let nested = children.get(span).into_iter().flatten().rev().enumerate();
        open.extend(nested.map(|(place, &(_, child))| {
            let (branch, trunk) = if place == 0 { ("└─ ", "   ") } else { ("├─ ", "│  ") };
            (child, format!("{below}{branch}"), format!("{below}{trunk}"))
        }));
    }
    page
}

/// The attributes of the first span of a kind that has the attribute `having`.
pub(super) fn attributes(answer: &Value, kind: &str, having: &str) -> Vec<(String, String)> {
    let resources = answer.pointer("/trace/resourceSpans").and_then(Value::as_array).into_iter().flatten();
    let mut spans = resources.flat_map(|resource| list(resource, "scopeSpans")).flat_map(|scope| list(scope, "spans"));
    let is_wanted = |span: &&Value| text(span, "kind") == kind && attribute(span, having).is_some();
    let Some(span) = spans.find(is_wanted) else { return Vec::new() };
    let keys = list(span, "attributes").map(|pair| text(pair, "key"));
    keys.filter_map(|key| Some((key.clone(), attribute(span, &key)?))).collect()
}

fn milliseconds(nanoseconds: u64) -> String {
    format!("{:.1} ms", nanoseconds as f64 / 1e6)
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// An attribute of a span or a resource, as text.
fn attribute(holder: &Value, key: &str) -> Option<String> {
    let found =
        list(holder, "attributes").find(|attribute| attribute.get("key").and_then(Value::as_str) == Some(key))?;
    let value = found.get("value")?.as_object()?.values().next()?;
    Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn prints_a_trace_as_a_tree() {
        let span = |id: &str, parent: &str, kind: &str, start: u64, end: u64| {
            json!({"spanId": id, "parentSpanId": parent, "name": "GET /a", "kind": format!("SPAN_KIND_{kind}"),
                "startTimeUnixNano": start.to_string(), "endTimeUnixNano": end.to_string(),
                "attributes": [{"key": "http.response.status_code", "value": {"intValue": "200"}}]})
        };
        let service = |name: &str, spans: Value| json!({"resource": {"attributes": [{"key": "service.name", "value": {"stringValue": name}}]}, "scopeSpans": [{"spans": spans}]});
        let answer = json!({"trace": {"resourceSpans": [
            service("go", json!([span("c", "b", "SERVER", 3_000_000, 4_000_000)])),
            service("nginx", json!([span("b", "a", "CLIENT", 2_000_000, 5_000_000), span("a", "elsewhere", "SERVER", 1_000_000, 6_500_000)])),
        ]}});
        assert_eq!(
            tree("12", &answer),
            "\ntrace 12, 3 spans\nnginx · server · GET /a · 200 · 5.5 ms\n└─ nginx · client · GET /a · 200 · 3.0 ms\n   └─ go · server · GET /a · 200 · 1.0 ms\n"
        );
    }

    #[test]
    fn the_widest_trace_is_the_newest_of_those_with_most_services() {
        let seen = |trace: &str, service: &str| Seen {
            trace: trace.to_owned(),
            service: service.to_owned(),
            name: String::new(),
            kind: String::new(),
            status: None,
            duration_ns: 0,
        };
        let spans = [seen("3", "a"), seen("2", "a"), seen("2", "b"), seen("1", "a"), seen("1", "b")];
        assert_eq!(widest(&spans).as_deref(), Some("2"));
        assert_eq!(widest(&[]), None);
    }
}
