//! What `access` counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

/// Labels of who was not let in.
#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
pub struct AccessLabels {
    /// `api`, `otlp_grpc` or `otlp_http`.
    pub listener: &'static str,
    /// `plaintext`, `handshake`, `certificate`, `credentials` or `tenant`.
    pub reason: &'static str,
}

/// What `access` counts.
#[derive(Clone, Debug, Default)]
pub struct AccessMetrics {
    /// Connections and requests that were not let in.
    pub refused: Family<AccessLabels, Counter>,
}

impl AccessMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "Connections and requests that were not let in: no TLS, a failed handshake, no certificate, no credentials, not for the tenant";
        registry.register("coati_backend_access_refused", help, self.refused.clone());
    }
}
