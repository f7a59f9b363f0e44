//! The agent's own health: counters of every stage, `/metrics`, `/healthz`, `/readyz`, and the same numbers by OTLP.
//!
//! [`Telemetry`] is cheap to clone and every clone counts into the same cells.

mod export;
mod otlp;
mod process;
mod relay;
mod server;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, UNIX_EPOCH},
};

use coati_common::{event::Kind, loss::Loss};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use crate::{gpu::CudaMetrics, metrics::RequestMetrics};
pub(crate) use coati_common::error::chain;
pub use export::{EndpointMetrics, ExportMetrics};
pub use relay::RelayMetrics;
pub use server::Server;

/// What can go wrong with the telemetry of the agent itself.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The address of `/metrics` cannot be listened on.
    #[error("cannot listen on {address} for metrics and health")]
    Listen {
        /// The address of the configuration.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

/// Causes for which an exchange or a part of one is lost: those of the kernel programs, in the order of [`Loss::ALL`],
/// and those of the decoder.
pub const LOSS_CAUSES: [&str; Loss::ALL.len() + 6] = {
    let [a, b, c, d, e, f, g, h, i, j] = Loss::ALL;
    [
        a.name(),
        b.name(),
        c.name(),
        d.name(),
        e.name(),
        f.name(),
        g.name(),
        h.name(),
        i.name(),
        j.name(),
        "record_malformed",
        "request_unreadable",
        "evicted",
        "pipelined",
        "pipelined_unseen",
        "http2_gap",
    ]
};

/// Every kind of record.
pub const RECORD_KINDS: [Kind; 9] =
    [Kind::Begin, Kind::Data, Kind::Tail, Kind::End, Kind::Exec, Kind::Exit, Kind::Http2, Kind::Tls, Kind::Unix];

/// The value of the label `kind`.
const fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Begin => "begin",
        Kind::Data => "data",
        Kind::Tail => "tail",
        Kind::End => "end",
        Kind::Exec => "exec",
        Kind::Exit => "exit",
        Kind::Http2 => "http2",
        Kind::Tls => "tls",
        Kind::Unix => "unix",
    }
}

/// Why a finished span did not reach its destination.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum DropCause {
    /// The queue was full, because the destination is slower than the node or is away.
    QueueFull,
    /// The destination took the request but not this span (`partial_success`).
    Rejected,
    /// The destination refused the whole request for good.
    Refused,
    /// The agent ended before the destination took it.
    Shutdown,
    /// There were more in a second than the configuration allows.
    RateLimit,
    /// It waited on disk and cannot be read any more.
    Damaged,
}

impl DropCause {
    /// Every cause.
    pub const ALL: [Self; 6] =
        [Self::QueueFull, Self::Rejected, Self::Refused, Self::Shutdown, Self::RateLimit, Self::Damaged];

    /// The value of the label `cause`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Rejected => "rejected",
            Self::Refused => "refused",
            Self::Shutdown => "shutdown",
            Self::RateLimit => "rate_limit",
            Self::Damaged => "damaged",
        }
    }
}

/// How a request of the exporter ended.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RequestOutcome {
    /// Taken, in whole or in part.
    Accepted,
    /// To be sent again later.
    Retried,
    /// Refused for good.
    Refused,
}

impl RequestOutcome {
    /// Every outcome.
    pub const ALL: [Self; 3] = [Self::Accepted, Self::Retried, Self::Refused];

    /// The value of the label `outcome`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Retried => "retried",
            Self::Refused => "refused",
        }
    }
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct CauseLabel {
    cause: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct LinkLabel {
    by: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct OutcomeLabel {
    outcome: &'static str,
}

/// The counters of all stages.
#[derive(Clone, Debug)]
pub struct Telemetry {
    records: Family<KindLabel, Counter>,
    losses: Family<CauseLabel, Counter>,
    /// Records that are missing between two that arrived from the same CPU.
    pub sequence_gaps: Counter,
    /// Messages that looked like HTTP and turned out not to be.
    pub parse_failures: Counter,
    anomalies: Family<CauseLabel, Counter>,
    /// Requests that the kernel programs saw begin, told or lost.
    pub exchanges_begun: Counter,
    /// Requests that were seen in the records.
    pub exchanges: Counter,
    /// Requests that are under way.
    pub open_exchanges: Gauge,
    /// Responses that have run for ten seconds and are not over.
    pub open_streams: Gauge,
    /// Exchanges of processes that are not observed or trace themselves, begun before all programs were attached, that
    /// export telemetry, or whose paths are ignored.
    pub ignored_exchanges: Counter,
    links: Family<LinkLabel, Counter>,
    /// Spans made.
    pub spans: Counter,
    /// Spans of requests that were not over.
    pub spans_partial: Counter,
    /// Requests of which no span was made because their traces are not sampled.
    pub spans_sampled_out: Counter,
    /// Spans that the destination has taken.
    pub spans_exported: Counter,
    spans_dropped: Family<CauseLabel, Counter>,
    /// Spans that wait to be sent, those being sent included.
    pub queue_length: Gauge,
    export_requests: Family<OutcomeLabel, Counter>,
    /// Seconds that requests of the exporter took.
    pub export_duration: Histogram,
    /// The same by endpoint.
    pub export: ExportMetrics,
    /// Spans of SDKs.
    pub relay: RelayMetrics,
    /// Processes that are known.
    pub processes: Gauge,
    /// Files of TLS libraries that have probes.
    pub tls_files: Gauge,
    tls_failures: Family<CauseLabel, Counter>,
    /// Files of CUDA's driver library that have probes.
    pub cuda_files: Gauge,
    cuda_failures: Family<CauseLabel, Counter>,
    /// What services call of CUDA.
    pub cuda: CudaMetrics,
    /// Requests of all kinds, those to models among them.
    pub requests: RequestMetrics,
    started: Instant,
    started_unix_ns: u64,
    readiness: Arc<Readiness>,
}

/// What must be true before the agent does its work.
#[derive(Debug, Default)]
struct Readiness {
    attached: AtomicBool,
    exporting: AtomicBool,
}

impl Default for Telemetry {
    fn default() -> Self {
        let telemetry = Self {
            records: Family::default(),
            losses: Family::default(),
            sequence_gaps: Counter::default(),
            parse_failures: Counter::default(),
            anomalies: Family::default(),
            exchanges_begun: Counter::default(),
            exchanges: Counter::default(),
            open_exchanges: Gauge::default(),
            open_streams: Gauge::default(),
            ignored_exchanges: Counter::default(),
            links: Family::default(),
            spans: Counter::default(),
            spans_partial: Counter::default(),
            spans_sampled_out: Counter::default(),
            spans_exported: Counter::default(),
            spans_dropped: Family::default(),
            queue_length: Gauge::default(),
            export_requests: Family::default(),
            export_duration: Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
            ]),
            export: ExportMetrics::default(),
            relay: RelayMetrics::default(),
            processes: Gauge::default(),
            tls_files: Gauge::default(),
            tls_failures: Family::default(),
            cuda_files: Gauge::default(),
            cuda_failures: Family::default(),
            cuda: CudaMetrics::default(),
            requests: RequestMetrics::default(),
            started: Instant::now(),
            started_unix_ns: UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos() as u64,
            readiness: Arc::default(),
        };
        // A series that appears with its first loss is a series on which no alert can be tried out.
        for cause in LOSS_CAUSES {
            telemetry.losses(cause);
        }
        for kind in RECORD_KINDS {
            telemetry.records(kind);
        }
        for cause in DropCause::ALL {
            telemetry.spans_dropped(cause);
        }
        for outcome in RequestOutcome::ALL {
            telemetry.export_requests(outcome);
        }
        telemetry
    }
}

impl Telemetry {
    /// Records of this kind that were read from the ring buffer.
    pub fn records(&self, kind: Kind) -> Counter {
        self.records.get_or_create_owned(&KindLabel { kind: kind_name(kind) })
    }

    /// What was lost for this cause, one of [`LOSS_CAUSES`].
    pub fn losses(&self, cause: &'static str) -> Counter {
        self.losses.get_or_create_owned(&CauseLabel { cause })
    }

    /// What was odd in the records for this cause: of what is missing, what was made of it, and what came too late.
    pub fn anomalies(&self, cause: &'static str) -> Counter {
        self.anomalies.get_or_create_owned(&CauseLabel { cause })
    }

    /// Exchanges that found their place in a trace by this.
    pub fn links(&self, by: &'static str) -> Counter {
        self.links.get_or_create_owned(&LinkLabel { by })
    }

    /// Spans that were dropped for this cause.
    pub fn spans_dropped(&self, cause: DropCause) -> Counter {
        self.spans_dropped.get_or_create_owned(&CauseLabel { cause: cause.name() })
    }

    /// Requests of the exporter that ended so.
    pub fn export_requests(&self, outcome: RequestOutcome) -> Counter {
        self.export_requests.get_or_create_owned(&OutcomeLabel { outcome: outcome.name() })
    }

    /// Files of TLS libraries that got no probes for this cause.
    pub fn tls_failures(&self, cause: &'static str) -> Counter {
        self.tls_failures.get_or_create_owned(&CauseLabel { cause })
    }

    /// Files of CUDA's driver library that got no probes for this cause.
    pub fn cuda_failures(&self, cause: &'static str) -> Counter {
        self.cuda_failures.get_or_create_owned(&CauseLabel { cause })
    }

    /// The kernel programs are attached.
    pub fn set_attached(&self) {
        self.readiness.attached.store(true, Ordering::Release);
    }

    /// The export loop runs.
    pub fn set_exporting(&self, exporting: bool) {
        self.readiness.exporting.store(exporting, Ordering::Release);
    }

    /// What still keeps the agent from its work, `None` if nothing does.
    pub fn not_ready(&self) -> Option<&'static str> {
        let Readiness { attached, exporting } = &*self.readiness;
        if !attached.load(Ordering::Acquire) {
            Some("the kernel programs are not attached yet")
        } else if !exporting.load(Ordering::Acquire) {
            Some("the exporter does not run")
        } else {
            None
        }
    }

    /// The text of `/metrics` is made of this.
    pub fn registry(&self) -> Registry {
        let mut all = Registry::default();
        all.register(
            "coati_build",
            "Version of the agent",
            Info::new(vec![("component", "agent"), ("version", env!("CARGO_PKG_VERSION"))]),
        );
        self.cuda.register(&mut all);
        all.register_collector(Box::new(process::ProcessMetrics::new(self.started)));
        let agent = all.sub_registry_with_prefix("coati_agent");
        agent.register("records", "Records read from the ring buffer", self.records.clone());
        agent.register("losses", "Records, requests or bytes that are lost, by cause", self.losses.clone());
        agent.register("ring_sequence_gaps", "Records missing in the ring buffer", self.sequence_gaps.clone());
        agent.register("parse_failures", "Messages that are not the HTTP they began as", self.parse_failures.clone());
        agent.register("anomalies", "What is odd in the records, by cause", self.anomalies.clone());
        agent.register("exchanges_begun", "Requests that the kernel programs saw begin", self.exchanges_begun.clone());
        agent.register("exchanges", "Requests seen in the records", self.exchanges.clone());
        agent.register("links", "Requests by how they found their place in a trace", self.links.clone());
        let help = "Requests of processes that are not observed, under way when the agent started, that export telemetry, or \
                    whose paths are ignored";
        agent.register("exchanges_ignored", help, self.ignored_exchanges.clone());
        agent.register("exchanges_open", "Requests under way", self.open_exchanges.clone());
        let help = "Responses that have run for ten seconds and are not over";
        agent.register("open_streams", help, self.open_streams.clone());
        agent.register("spans", "Spans made", self.spans.clone());
        let help = "Spans of requests that were not over, sent in addition to their last ones";
        agent.register("spans_partial", help, self.spans_partial.clone());
        let help = "Requests of which no span was made because their traces are not sampled";
        agent.register("spans_sampled_out", help, self.spans_sampled_out.clone());
        agent.register("spans_exported", "Spans that the destination has taken", self.spans_exported.clone());
        agent.register("spans_dropped", "Spans that did not reach the destination", self.spans_dropped.clone());
        agent.register("export_queue_length", "Spans that wait to be sent", self.queue_length.clone());
        agent.register("export_requests", "Requests to the destination, by outcome", self.export_requests.clone());
        agent.register_with_unit(
            "export_duration",
            "Time that requests to the destination took",
            Unit::Seconds,
            self.export_duration.clone(),
        );
        self.export.register(agent);
        self.relay.register(agent);
        self.requests.register(agent);
        agent.register("processes", "Processes that are known", self.processes.clone());
        agent.register("tls_files", "Files of TLS libraries that have probes", self.tls_files.clone());
        agent.register(
            "tls_failures",
            "Files of TLS libraries that got no probes, by cause",
            self.tls_failures.clone(),
        );
        agent.register("cuda_files", "Files of CUDA's driver library that have probes", self.cuda_files.clone());
        agent.register(
            "cuda_failures",
            "Files of CUDA's driver library that got no probes, by cause",
            self.cuda_failures.clone(),
        );
        all
    }
}

/// Sets a counter to a total that somebody else keeps, and which only grows.
pub fn mirror(counter: &Counter, total: u64) {
    counter.inner().store(total, Ordering::Relaxed);
}

#[cfg(test)]
mod page;
#[cfg(test)]
mod tests;
