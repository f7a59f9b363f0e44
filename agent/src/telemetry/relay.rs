//! What came of the spans that SDKs have sent.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::CauseLabel;

/// Counters of the receiver.
#[derive(Clone, Debug, Default)]
pub struct RelayMetrics {
    /// Spans that were taken.
    pub spans: Counter,
    /// Spans that were left out, as nobody could store them.
    pub rejected: Counter,
    refused: Family<CauseLabel, Counter>,
}

impl RelayMetrics {
    /// Requests that were refused for this cause.
    pub fn refused(&self, cause: &'static str) -> Counter {
        self.refused.get_or_create_owned(&CauseLabel { cause })
    }

    /// Adds the metrics to what `/metrics` shows.
    pub(super) fn register(&self, agent: &mut Registry) {
        let Self { spans, rejected, refused } = self.clone();
        agent.register("relay_spans", "Spans of SDKs that were taken to be relayed", spans);
        agent.register("relay_rejected_spans", "Spans of SDKs that were left out: their ids are none", rejected);
        agent.register("relay_refused_requests", "Requests of SDKs that were not taken, by cause", refused);
    }
}
