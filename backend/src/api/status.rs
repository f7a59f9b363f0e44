//! What the program says of itself.

use std::fmt::Write;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;

use super::ApiState;
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

pub(super) async fn build_info() -> Json<serde_json::Value> {
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
