//! What the program says of itself.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{StatusCode, Uri};
use serde_json::{Map, Value, json};

use super::ApiState;
use super::error::ApiError;
use super::params::Params;
use crate::config::Shown;
use crate::query::go_duration;
use crate::telemetry::CONTENT_TYPE as OPEN_METRICS;

/// The version of Tempo whose API this is. Clients compare it to find out what they may call, so ours would mislead them.
const API_VERSION: &str = "2.10.0";

pub(super) async fn ready(State(state): State<ApiState>) -> (StatusCode, String) {
    match state.readiness.missing() {
        None => (StatusCode::OK, "ready".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}")),
    }
}

/// Whether requests are answered at all; `/ready` says whether they are answered well.
pub(super) async fn healthz() -> &'static str {
    "ok"
}

pub(super) async fn echo() -> &'static str {
    "echo"
}

pub(super) async fn build_info() -> Json<Value> {
    Json(serde_json::json!({
        "version": API_VERSION,
        "revision": option_env!("COATI_REVISION").unwrap_or_default(),
        "branch": option_env!("COATI_BRANCH").unwrap_or_default(),
        "buildUser": concat!("coati-backend ", env!("CARGO_PKG_VERSION")),
        "buildDate": "",
        "goVersion": "",
    }))
}

/// What the program is.
pub(super) async fn version() -> String {
    format!("coati-backend, version {}\nTempo's API, version {API_VERSION}\n", env!("CARGO_PKG_VERSION"))
}

/// What runs. All of it is one service.
pub(super) async fn services(State(state): State<ApiState>) -> String {
    match state.readiness.missing() {
        None => "coati-backend: Running\n".to_owned(),
        Some(why) => format!("coati-backend: Starting ({why})\n"),
    }
}

/// What can be asked.
pub(super) async fn endpoints() -> String {
    super::PATHS.join("\n") + "\n"
}

/// The configuration without secrets: what is in force, with `mode=diff` what is not the default, with `mode=defaults` that.
pub(super) async fn config(State(state): State<ApiState>, uri: Uri) -> Result<String, ApiError> {
    let shown = match Params::of(&uri)?.get("mode") {
        Some("diff") => Shown::Different,
        Some("defaults") => Shown::Defaults,
        _ => Shown::InForce,
    };
    Ok(state.config.given.yaml(shown))
}

/// What is different for some tenants, and in force: what the file says, and what they said themselves.
pub(super) async fn overrides(State(state): State<ApiState>) -> String {
    let retained = state.config.retention.tenants.keys().cloned();
    let tenants = retained.chain(state.overrides.iter().flat_map(|overrides| overrides.tenants()));
    shown_overrides(&state, tenants.collect())
}

/// The same of one tenant. One that nothing is said of has none.
pub(super) async fn overrides_of(State(state): State<ApiState>, Path(tenant): Path<String>) -> String {
    shown_overrides(&state, [tenant].into())
}

fn shown_overrides(state: &ApiState, tenants: BTreeSet<String>) -> String {
    let all = tenants.into_iter().filter_map(|tenant| Some((tenant.clone(), overrides_of_one(state, &tenant)?)));
    let all: Map<String, Value> = all.collect();
    if all.is_empty() {
        return "overrides: {}\n".to_owned();
    }
    serde_saphyr::to_string(&json!({ "overrides": all })).unwrap_or_else(|error| format!("# {error}\n"))
}

/// In Tempo's words.
fn overrides_of_one(state: &ApiState, tenant: &str) -> Option<Value> {
    let mut own = Map::new();
    if let Some(age) = state.config.retention.tenants.get(tenant).and_then(|own| own.age) {
        own.insert("compaction".to_owned(), json!({ "block_retention": go_duration(nanos(age)) }));
    }
    if let Some(generator) = state.overrides.as_ref().and_then(|overrides| overrides.of(tenant)) {
        own.insert("metrics_generator".to_owned(), generator);
    }
    (!own.is_empty()).then_some(Value::Object(own))
}

fn nanos(age: Duration) -> i64 {
    i64::try_from(age.as_nanos()).unwrap_or(i64::MAX)
}

/// What is told to the authors: nothing.
pub(super) async fn usage_stats() -> &'static str {
    "usage-stats: nothing is collected and nothing is sent\n"
}

pub(super) async fn metrics(State(state): State<ApiState>) -> Response {
    match state.metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

pub(super) async fn status(State(state): State<ApiState>) -> String {
    let live = state.live.stats();
    let mut text = format!("coati-backend {}\n", env!("CARGO_PKG_VERSION"));
    let lines = [
        ("ready", state.readiness.is_ready().to_string()),
        ("live traces", live.traces.to_string()),
        ("live trace bytes", live.bytes.to_string()),
        ("traces begun", live.created_traces.to_string()),
    ];
    for (name, value) in lines {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name}: {value}");
    }
    text
}
