//! What the backend says of itself.
//!
//! Metrics that Tempo has too bear Tempo's names, so that its dashboards and alerts work; the others begin with
//! `coati_backend_`.

mod access;
mod blocks;
mod compaction;
mod generator;
mod metrics;
#[cfg(test)]
mod page;
mod ready;
mod requests;
mod store;

pub use access::{AccessLabels, AccessMetrics};
pub use blocks::{BackendLabels, BlocksMetrics};
pub use coati_common::error::chain;
pub use compaction::{CompactionMetrics, LevelLabels};
pub use generator::{
    EdgeLabels, EndpointLabels, GeneratorMetrics, LabelLabels, LimitedMetrics, LossLabels, ProcessorLabels,
    ReasonLabels,
};
pub use metrics::{
    CONTENT_TYPE, CatalogMetrics, DiscardedLabels, LiveMetrics, Metrics, ReceiveMetrics, ReceiverLabels, RefusedLabels,
    TenantLabels, WalMetrics,
};
pub use ready::Readiness;
pub use requests::{QueryLabels, RequestLabels, route_label};
pub use store::{BackendRequestLabels, OperationLabels, StoreLabels, StoreMetrics};
