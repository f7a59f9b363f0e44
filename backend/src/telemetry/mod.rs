//! What the backend says of itself.
//!
//! Metrics that Tempo has too bear Tempo's names, so that its dashboards and alerts work; the others begin with
//! `coati_backend_`.

mod metrics;
mod ready;

pub use metrics::{
    CONTENT_TYPE, CatalogMetrics, DiscardedLabels, LiveMetrics, Metrics, ReceiveMetrics, RefusedLabels, RequestLabels,
    TenantLabels, WalMetrics,
};
pub use ready::Readiness;
