//! Tells the metrics what is asked, how long it took and how it ended.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

use super::ApiState;
use crate::telemetry::{QueryLabels, RequestLabels, route_label};
use crate::tenant::Tenants;

/// Methods that are told apart in the metrics.
const METHODS: [&str; 7] = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"];

/// How long each request took; of HTTP also which query it was.
pub(super) async fn requests(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let pattern = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str);
    let route = route_label(pattern);
    let query =
        operation(pattern).and_then(|op| Some(Query::begin(&state, op, &state.tenants(request.headers()).ok()?)));
    // Any word passes for a method: a label for each would let a client fill the memory.
    let method =
        Some(request.method().as_str()).filter(|method| METHODS.contains(method)).unwrap_or("other").to_owned();
    let response = next.run(request).await;
    if let Some(query) = query {
        query.complete();
    }
    let labels = RequestLabels { method, route, status_code: response.status().as_str().to_owned() };
    state.metrics.request_duration.get_or_create(&labels).observe(started.elapsed().as_secs_f64());
    response
}

/// What Tempo calls a query at this path.
fn operation(pattern: &str) -> Option<&'static str> {
    match pattern {
        "/api/traces/{id}" | "/api/v2/traces/{id}" | "/api/v2/traces/diff" => Some("traces"),
        "/api/search" => Some("search"),
        "/api/metrics/query_range" | "/api/metrics/query" => Some("metrics"),
        _ if pattern.starts_with("/api/search/tag") || pattern.starts_with("/api/v2/search/tag") => Some("metadata"),
        _ => None,
    }
}

/// A query at work, which is counted when it ends.
pub(super) struct Query {
    state: ApiState,
    labels: Vec<QueryLabels>,
}

impl Query {
    /// One for each tenant of which there are traces: any word passes for a tenant.
    pub(super) fn begin(state: &ApiState, op: &'static str, tenants: &Tenants) -> Self {
        let known = tenants.iter().filter(|tenant| state.has_traces_of(tenant));
        let labels = known.map(|tenant| QueryLabels { tenant: tenant.to_owned(), op, result: "canceled" }).collect();
        Self { state: state.clone(), labels }
    }

    /// It is answered, well or not.
    pub(super) fn complete(mut self) {
        self.labels.iter_mut().for_each(|labels| labels.result = "completed");
    }
}

impl Drop for Query {
    fn drop(&mut self) {
        for labels in &self.labels {
            self.state.metrics.queries.get_or_create(labels).inc();
        }
    }
}

impl ApiState {
    fn has_traces_of(&self, tenant: &str) -> bool {
        let blocks = self.blocks.as_ref().and_then(|blocks| blocks.get());
        blocks.is_some_and(|blocks| blocks.snapshot().of(tenant).next().is_some())
            || self.live.tenants().iter().any(|live| **live == *tenant)
    }
}
