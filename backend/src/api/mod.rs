//! Tempo's query API: what Grafana and other clients of Tempo call, on port 3200.
//!
//! Query paths accept any method and answer in JSON or, with `Accept: application/protobuf`, in protobuf. Errors are plain
//! text. Nothing of a query runs on the threads that serve connections; one whose client has left stops soon.
//!
//! Tempo's streaming gRPC service is in this router too, on the same port: see [`grpc`].

mod diff;
mod error;
mod grpc;
mod json;
mod llm;
mod mcp;
mod measure;
mod metrics;
mod overrides;
mod params;
mod part;
mod prune;
mod range;
mod render;
mod respond;
mod search;
mod status;
mod tags;
pub mod tempopb;
mod traces;
mod work;

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{any, post};
use tokio::sync::Semaphore;

use crate::blocks::Blocks;
use crate::catalog::Catalog;
use crate::config::{Config, QueryConfig};
use crate::live::LiveSet;
use crate::overrides::Overrides;
use crate::telemetry::{Metrics, Readiness};
use crate::tenant::Tenancy;
use error::ApiError;

/// Most queries that run at a time. Each may take a thread for what blocks.
pub const MAX_QUERIES: usize = 8;

/// What the API reads from.
#[derive(Clone)]
pub struct ApiState {
    /// Traces in memory.
    live: Arc<LiveSet>,
    /// Traces in blocks, once the store is open; none if there is no store.
    blocks: Option<Arc<OnceLock<Arc<Blocks>>>>,
    /// Names and values of tags.
    catalog: Arc<dyn Catalog>,
    tenancy: Tenancy,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    /// One for each query that may run at a time.
    permits: Arc<Semaphore>,
    limits: QueryConfig,
    /// What is shown of it.
    config: Arc<Config>,
    /// What is different for some tenants; none if no metrics are made.
    overrides: Option<Arc<Overrides>>,
    clock: fn() -> SystemTime,
}

impl ApiState {
    /// All that the API needs. As many queries run at a time as there are cores, but at most [`MAX_QUERIES`];
    /// others wait.
    pub fn new(
        live: Arc<LiveSet>,
        catalog: Arc<dyn Catalog>,
        tenancy: Tenancy,
        readiness: Readiness,
        metrics: Arc<Metrics>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let permits = Arc::new(Semaphore::new(cores.min(MAX_QUERIES)));
        let limits = QueryConfig::default();
        let config = Arc::default();
        let clock = SystemTime::now;
        let (blocks, overrides) = (None, None);
        Self { live, blocks, catalog, tenancy, readiness, metrics, permits, limits, config, overrides, clock }
    }

    /// What one query may take.
    #[must_use]
    pub fn with_limits(self, limits: QueryConfig) -> Self {
        Self { limits, ..self }
    }

    /// What one query may take, and what is shown of the rest.
    #[must_use]
    pub fn with_config(self, config: &Config) -> Self {
        Self { limits: config.query.clone(), config: Arc::new(config.clone()), ..self }
    }

    /// Answers from blocks too. Until they are there, queries are refused.
    #[must_use]
    pub fn with_blocks(self, blocks: Arc<OnceLock<Arc<Blocks>>>) -> Self {
        Self { blocks: Some(blocks), ..self }
    }

    /// Shows what is different for some tenants, and lets them set it if that is on.
    #[must_use]
    pub fn with_overrides(self, overrides: Option<Arc<Overrides>>) -> Self {
        Self { overrides, ..self }
    }

    /// Nanoseconds since the epoch.
    fn now_ns(&self) -> u64 {
        let since = (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// What can be asked on port 3200.
const PATHS: [&str; 27] = [
    "/ready",
    "/healthz",
    "/metrics",
    "/status",
    "/status/version",
    "/status/services",
    "/status/endpoints",
    "/status/config",
    "/status/runtime_config",
    "/status/overrides",
    "/status/overrides/{tenant}",
    "/status/usage-stats",
    "/api/echo",
    "/api/status/buildinfo",
    "/api/traces/{id}",
    "/api/v2/traces/{id}",
    "/api/v2/traces/diff",
    "/api/search",
    "/api/metrics/query_range",
    "/api/metrics/query",
    "/api/search/tags",
    "/api/v2/search/tags",
    // A tag may contain a slash, so what is left of `/values` is cut off by hand.
    "/api/search/tag/{*rest}",
    "/api/v2/search/tag/{*rest}",
    "/api/overrides",
    "/api/mcp",
    "/tempopb.StreamingQuerier/{method}",
];

/// The routes of port 3200, which are those of [`PATHS`].
pub fn router(state: ApiState) -> Router {
    Router::new()
        .route("/ready", any(status::ready))
        .route("/healthz", any(status::healthz))
        .route("/metrics", any(status::metrics))
        .route("/status", any(status::status))
        .route("/status/version", any(status::version))
        .route("/status/services", any(status::services))
        .route("/status/endpoints", any(status::endpoints))
        .route("/status/config", any(status::config))
        .route("/status/runtime_config", any(status::overrides))
        .route("/status/overrides", any(status::overrides))
        .route("/status/overrides/{tenant}", any(status::overrides_of))
        .route("/status/usage-stats", any(status::usage_stats))
        .route("/api/echo", any(status::echo))
        .route("/api/status/buildinfo", any(status::build_info))
        .route("/api/traces/{id}", any(traces::by_id))
        .route("/api/v2/traces/{id}", any(traces::by_id_v2))
        .route("/api/v2/traces/diff", post(diff::compare))
        .route("/api/search", any(search::search))
        .route("/api/metrics/query_range", any(metrics::query_range))
        .route("/api/metrics/query", any(metrics::query))
        .route("/api/search/tags", any(tags::names))
        .route("/api/v2/search/tags", any(tags::names_v2))
        // A tag may contain a slash, so what is left of `/values` is cut off by hand.
        .route("/api/search/tag/{*rest}", any(tags::values))
        .route("/api/v2/search/tag/{*rest}", any(tags::values_v2))
        .route("/api/overrides", any(overrides::call))
        .route("/api/mcp", any(mcp::call))
        .route("/tempopb.StreamingQuerier/{method}", any(grpc::call))
        .route_layer(from_fn_with_state(state.clone(), measure::requests))
        .fallback(async || ApiError::NoSuchPath)
        .with_state(state)
}

#[cfg(test)]
mod tests;
