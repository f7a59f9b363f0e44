//! What language models can read about TraceQL and the configuration.

use serde_json::{Value, json};

/// Address, title and text. The names after the last slash are those that the tool `docs-traceql` takes.
const DOCS: [(&str, &str, &str); 7] = [
    ("docs://traceql/basic", "TraceQL: filters, attributes, intrinsics, operators", include_str!("docs/basic.md")),
    ("docs://traceql/aggregates", "TraceQL: counts, averages and groups", include_str!("docs/aggregates.md")),
    ("docs://traceql/structural", "TraceQL: how spans stand to each other", include_str!("docs/structural.md")),
    ("docs://traceql/metrics", "TraceQL: numbers over time", include_str!("docs/metrics.md")),
    ("docs://traceql/query", "TraceQL: searches", include_str!("docs/basic.md")),
    ("docs://config/overview", "Configuration, in short", include_str!("docs/config.md")),
    ("docs://config/reference", "Configuration: every key", include_str!("../../../../deploy/backend.yaml")),
];

/// As `resources/list` tells them.
pub(super) fn list() -> Vec<Value> {
    let resource =
        |(uri, name, _): (&str, &str, &str)| json!({ "uri": uri, "name": name, "mimeType": "text/markdown" });
    DOCS.into_iter().map(resource).collect()
}

/// The text at an address.
pub(super) fn read(uri: &str) -> Option<&'static str> {
    DOCS.into_iter().find(|(known, ..)| *known == uri).map(|(.., text)| text)
}
