//! The tools: what each is for, which arguments it takes, and which path of the API answers it.

use axum::body::Body;
use http::header::ACCEPT;
use http::request::Builder;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Map, Value, json};
use tower::ServiceExt;

use super::docs;
use crate::api::params::Params;
use crate::api::range::bounds;
use crate::api::{ApiState, router};
use crate::diff::Format;
use crate::tenant::TENANT_HEADER;

/// Name, what it is for, its arguments: name, whether it must be there, what it is.
type Tool = (&'static str, &'static str, &'static [(&'static str, bool, &'static str)]);

const START: (&str, bool, &str) =
    ("start", false, "Begin of the time range, RFC 3339. By default an hour before the end");
const END: (&str, bool, &str) = ("end", false, "End of the time range, RFC 3339. By default now");

const TOOLS: [Tool; 9] = [
    (
        "traceql-search",
        "Finds traces with a TraceQL query. The newest come first",
        &[("query", true, "TraceQL that asks for spans, such as { status = error }"), START, END],
    ),
    (
        "traceql-metrics-instant",
        "Computes one number for each series of a TraceQL metrics query over a time range",
        &[("query", true, "TraceQL that asks for numbers, such as { status = error } | rate()"), START, END],
    ),
    (
        "traceql-metrics-range",
        "Computes series over time of a TraceQL metrics query",
        &[("query", true, "TraceQL that asks for numbers, such as { status = error } | rate()"), START, END],
    ),
    ("get-trace", "Reads a whole trace", &[("trace_id", true, "Id of the trace, hexadecimal")]),
    (
        "trace-diff",
        "Compares two traces: what changed for their services and, if that is not long, for every span",
        &[
            ("base_trace_id", true, "Id of the trace that is compared with, hexadecimal"),
            ("compare_trace_id", true, "Id of the trace in which something may be different, hexadecimal"),
            ("format", false, "trace-summary-v0-composed (the default), trace-summary-v0-native or trace-patch-v0"),
        ],
    ),
    (
        "get-attribute-names",
        "Lists names of attributes that can stand in TraceQL",
        &[("scope", false, "span, resource, event, link or instrumentation. By default all")],
    ),
    (
        "get-attribute-values",
        "Lists values of an attribute, such as all services by resource.service.name",
        &[
            ("name", true, "Name of the attribute with its scope, such as span.http.request.method"),
            ("filter-query", false, "TraceQL filter that the spans must match, such as { status = error }"),
        ],
    ),
    (
        "docs-traceql",
        "Explains TraceQL. Read it before writing a query",
        &[("name", true, "basic, aggregates, structural or metrics")],
    ),
    (
        "docs-config",
        "Explains the configuration of the backend",
        &[("name", false, "overview (the default) or reference")],
    ),
];

/// As `tools/list` tells them.
pub(super) fn list() -> Vec<Value> {
    let tool = |(name, description, arguments): Tool| {
        let properties: Map<String, Value> = arguments
            .iter()
            .map(|(name, _, about)| ((*name).to_owned(), json!({ "type": "string", "description": about })))
            .collect();
        let required: Vec<_> = arguments.iter().filter(|(_, required, _)| *required).map(|(name, ..)| *name).collect();
        json!({
            "name": name,
            "description": description,
            "inputSchema": { "type": "object", "properties": properties, "required": required },
            "annotations": { "readOnlyHint": true, "destructiveHint": false, "openWorldHint": false },
        })
    };
    TOOLS.into_iter().map(tool).collect()
}

/// What a tool answers, or why it does not; none if there is no such tool.
pub(super) async fn call(
    state: &ApiState,
    headers: &HeaderMap,
    name: &str,
    arguments: &Value,
) -> Option<Result<String, String>> {
    let (_, _, known) = TOOLS.into_iter().find(|(tool, ..)| *tool == name)?;
    let argument = |name: &str| arguments.get(name).and_then(Value::as_str).unwrap_or_default();
    if let Some((missing, ..)) = known.iter().find(|(name, required, _)| *required && argument(name).is_empty()) {
        return Some(Err(format!("the argument {missing} is missing")));
    }
    let path = match name {
        "docs-traceql" => return Some(document("traceql", argument("name"))),
        "docs-config" => {
            let name = Some(argument("name")).filter(|name| !name.is_empty());
            return Some(document("config", name.unwrap_or("overview")));
        }
        "trace-diff" => {
            let format = Some(argument("format")).filter(|format| !format.is_empty());
            let body = json!({
                "base": { "traceId": argument("base_trace_id") },
                "compare": { "traceId": argument("compare_trace_id") },
                "format": format.unwrap_or(Format::Composed.name()),
            });
            let request = Request::post("/api/v2/traces/diff");
            return Some(ask(state, headers, request, Body::from(body.to_string())).await);
        }
        "get-trace" => format!("/api/v2/traces/{}", encoded(argument("trace_id"))),
        "get-attribute-names" => format!("/api/v2/search/tags?scope={}", encoded(argument("scope"))),
        "get-attribute-values" => {
            let (name, query) = (encoded(argument("name")), encoded(argument("filter-query")));
            format!("/api/v2/search/tag/{name}/values?q={query}")
        }
        _ => {
            let range = ["start", "end"].map(|name| (name, argument(name).to_owned()));
            let (start, end) = match bounds(&Params::of_pairs(range), state.now_ns()) {
                Ok(range) => range,
                Err(error) => return Some(Err(error.to_string())),
            };
            let query = encoded(argument("query"));
            match name {
                "traceql-search" => {
                    const SECOND: u64 = 1_000_000_000;
                    format!("/api/search?q={query}&start={}&end={}", start / SECOND, end.div_ceil(SECOND))
                }
                "traceql-metrics-instant" => format!("/api/metrics/query?q={query}&start={start}&end={end}"),
                _ => format!("/api/metrics/query_range?q={query}&start={start}&end={end}"),
            }
        }
    };
    Some(ask(state, headers, Request::get(path), Body::empty()).await)
}

/// Asks the API itself.
async fn ask(state: &ApiState, headers: &HeaderMap, request: Builder, body: Body) -> Result<String, String> {
    let mut request = request.header(ACCEPT, "application/vnd.grafana.llm");
    if let Some(tenant) = headers.get(TENANT_HEADER) {
        request = request.header(TENANT_HEADER, tenant);
    }
    let request = request.body(body).map_err(|error| error.to_string())?;
    let Ok(response) = router(state.clone()).oneshot(request).await;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status == StatusCode::OK { Ok(text) } else { Err(format!("status {}: {text}", status.as_u16())) }
}

fn document(of: &str, name: &str) -> Result<String, String> {
    let found = docs::read(&format!("docs://{of}/{name}"));
    found.map(str::to_owned).ok_or_else(|| format!("there is no documentation called {name:?}"))
}

/// Percent-encoded, for any place in a URL.
fn encoded(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
