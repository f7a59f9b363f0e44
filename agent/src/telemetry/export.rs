//! What became of spans, by endpoint.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct EndpointLabel {
    endpoint: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct SpansLabel {
    endpoint: String,
    outcome: &'static str,
}

/// Counters of all endpoints.
#[derive(Clone, Debug, Default)]
pub struct ExportMetrics {
    spans: Family<SpansLabel, Counter>,
    up: Family<EndpointLabel, Gauge>,
    disk_spans: Family<EndpointLabel, Gauge>,
    disk_bytes: Family<EndpointLabel, Gauge>,
    disk_oldest: Family<EndpointLabel, Gauge>,
    damaged: Family<EndpointLabel, Counter>,
}

/// Counters of one of them; every clone counts into the same cells.
#[derive(Clone, Debug)]
pub struct EndpointMetrics {
    /// Spans that it has taken.
    pub exported: Counter,
    /// Spans that it will not get, for any cause.
    pub dropped: Counter,
    /// Ranges of bytes on disk that cannot be read.
    pub damaged: Counter,
    up: Gauge,
    disk_spans: Gauge,
    disk_bytes: Gauge,
    disk_oldest: Gauge,
}

impl ExportMetrics {
    /// The cells of the endpoint with this name.
    pub fn endpoint(&self, name: &str) -> EndpointMetrics {
        let label = EndpointLabel { endpoint: name.to_owned() };
        let spans = |outcome| self.spans.get_or_create_owned(&SpansLabel { endpoint: name.to_owned(), outcome });
        let up = self.up.get_or_create_owned(&label);
        // Until the first answer there is no reason to think otherwise.
        up.set(1);
        EndpointMetrics {
            exported: spans("exported"),
            dropped: spans("dropped"),
            damaged: self.damaged.get_or_create_owned(&label),
            up,
            disk_spans: self.disk_spans.get_or_create_owned(&label),
            disk_bytes: self.disk_bytes.get_or_create_owned(&label),
            disk_oldest: self.disk_oldest.get_or_create_owned(&label),
        }
    }

    /// Adds the metrics to what `/metrics` shows.
    pub fn register(&self, agent: &mut Registry) {
        let Self { spans, up, disk_spans, disk_bytes, disk_oldest, damaged } = self.clone();
        agent.register("endpoint_spans", "Spans that an endpoint has taken, or will not get", spans);
        agent.register("endpoint_up", "Whether an endpoint answered the last request", up);
        agent.register("export_disk_spans", "Spans that wait on disk", disk_spans);
        agent.register("export_disk_bytes", "Bytes of the files in which spans wait", disk_bytes);
        let help = "When the oldest request on disk was queued, seconds since the epoch; 0 if none is there";
        agent.register("export_disk_oldest_timestamp_seconds", help, disk_oldest);
        agent.register("export_disk_damaged", "Parts of files that could not be read and were set aside", damaged);
    }
}

impl EndpointMetrics {
    /// The endpoint answered, or did not.
    pub fn set_up(&self, is_up: bool) {
        self.up.set(i64::from(is_up));
    }

    /// What waits on disk.
    pub fn show_disk(&self, spans: u64, bytes: u64, oldest_ns: Option<u64>) {
        self.disk_spans.set(i64::try_from(spans).unwrap_or(i64::MAX));
        self.disk_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.disk_oldest.set((oldest_ns.unwrap_or(0) / 1_000_000_000) as i64);
    }
}
