//! What `store` counts.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Seconds.
const BUCKETS: [f64; 12] = [0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 20.0, 60.0];

/// Labels of a request to the store.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct StoreLabels {
    /// Method of [`crate::store::Store`].
    pub operation: &'static str,
    /// `ok`, or what kind of error came.
    pub outcome: &'static str,
}

/// Label of how long a request took.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct OperationLabels {
    /// Method of [`crate::store::Store`].
    pub operation: &'static str,
}

/// Labels of a request as Tempo has them: what HTTP calls it.
#[derive(Clone, Debug, Eq, Hash, PartialEq, EncodeLabelSet)]
pub struct BackendRequestLabels {
    /// `GET`, `HEAD`, `PUT` or `DELETE`.
    pub operation: &'static str,
    /// The status that says the same.
    pub status_code: u16,
}

/// What `store` counts.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    /// Requests. One that was tried again inside is one.
    pub requests: Family<StoreLabels, Counter>,
    /// How long they took, with what was tried again.
    pub duration: Family<OperationLabels, Histogram, fn() -> Histogram>,
    /// The same under Tempo's name, with its labels.
    pub tempos_duration: Family<BackendRequestLabels, Histogram, fn() -> Histogram>,
}

impl Default for StoreMetrics {
    fn default() -> Self {
        let histogram: fn() -> Histogram = || Histogram::new(BUCKETS);
        Self {
            requests: Family::default(),
            duration: Family::new_with_constructor(histogram),
            tempos_duration: Family::new_with_constructor(histogram),
        }
    }
}

impl StoreMetrics {
    /// Counts a request.
    pub fn count(&self, operation: &'static str, outcome: &'static str, took: Duration) {
        self.requests.get_or_create(&StoreLabels { operation, outcome }).inc();
        self.duration.get_or_create(&OperationLabels { operation }).observe(took.as_secs_f64());
        let labels = in_http(operation, outcome);
        self.tempos_duration.get_or_create(&labels).observe(took.as_secs_f64());
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let Self { requests, duration, tempos_duration } = self.clone();
        registry.register("coati_backend_store_requests", "Requests to the store of blocks", requests);
        let help = "How long requests to the store of blocks took";
        registry.register("coati_backend_store_request_duration_seconds", help, duration);
        let help = "The same, with what HTTP calls the request and its outcome, whatever the store is";
        registry.register("tempodb_backend_request_duration_seconds", help, tempos_duration);
    }
}

/// What a store that is asked over HTTP is asked, and answers.
fn in_http(operation: &'static str, outcome: &'static str) -> BackendRequestLabels {
    let operation = match operation {
        "size" => "HEAD",
        "create" | "upload" => "PUT",
        "delete" => "DELETE",
        _ => "GET",
    };
    let status_code = match (outcome, operation) {
        ("ok", "DELETE") => 204,
        ("ok", _) => 200,
        ("not_found", _) => 404,
        ("already_exists", _) => 412,
        ("full", _) => 507,
        ("denied", _) => 403,
        ("invalid", _) => 400,
        // Begun, and ended by this side.
        ("given_up", _) => 499,
        _ => 503,
    };
    BackendRequestLabels { operation, status_code }
}
