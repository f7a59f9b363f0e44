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

/// An error and its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors show their cause themselves.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
