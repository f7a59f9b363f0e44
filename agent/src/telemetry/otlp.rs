//! The same numbers as on `/metrics`, sent by OTLP.
//!
//! Off unless it is configured: most nodes have something that scrapes.

use std::time::Duration;

use opentelemetry::{
    KeyValue,
    metrics::{Meter, MeterProvider as _},
};
use opentelemetry_otlp::{MetricExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::{
    Resource,
    metrics::{PeriodicReader, SdkMeterProvider},
};
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use crate::export::{self, EndpointSettings};

use super::{DropCause, LOSS_CAUSES, RECORD_KINDS, RequestOutcome, Telemetry, TelemetryError, kind_name, process};

/// Where and how often the agent's own metrics are sent.
#[derive(Clone, Debug)]
pub struct OtlpMetricsSettings {
    /// An OTLP gRPC endpoint.
    pub endpoint: EndpointSettings,
    /// Time between two exports.
    pub interval: Duration,
    /// `host.name` and others that identify this agent.
    pub host_name: Option<String>,
}

/// A running export of metrics.
#[derive(Debug)]
pub struct OtlpMetrics {
    provider: SdkMeterProvider,
}

impl OtlpMetrics {
    /// Begins to export. Must be called on a tokio runtime, which carries the connection.
    pub fn start(settings: &OtlpMetricsSettings, telemetry: &Telemetry) -> Result<Self, TelemetryError> {
        let OtlpMetricsSettings { endpoint, interval, host_name } = settings;
        let exporter = MetricExporter::builder()
            .with_tonic()
            .with_channel(export::channel(endpoint)?)
            .with_interceptor(export::interceptor(endpoint)?)
            .with_timeout(endpoint.timeout)
            .build()
            .map_err(|source| TelemetryError::Exporter { endpoint: endpoint.endpoint.clone(), source })?;
        let mut resource = Resource::builder()
            .with_service_name("coati-agent")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        if let Some(host_name) = host_name {
            resource = resource.with_attribute(KeyValue::new("host.name", host_name.clone()));
        }
        let provider = SdkMeterProvider::builder()
            .with_resource(resource.build())
            .with_reader(PeriodicReader::builder(exporter).with_interval(*interval).build())
            .build();
        observe(&provider.meter("coati-agent"), telemetry);
        Ok(Self { provider })
    }

    /// Sends the last numbers and ends. Blocks for as long as the destination takes, so not on the runtime's only thread.
    pub fn stop(self) -> Result<(), opentelemetry_sdk::error::OTelSdkError> {
        self.provider.shutdown()
    }
}

/// Nothing is counted twice: the instruments read the cells that `/metrics` shows.
fn observe(meter: &Meter, telemetry: &Telemetry) {
    let records = RECORD_KINDS.map(|kind| (Some(("kind", kind_name(kind))), telemetry.records(kind)));
    let losses = LOSS_CAUSES.map(|cause| (Some(("cause", cause)), telemetry.losses(cause)));
    let dropped = DropCause::ALL.map(|cause| (Some(("cause", cause.name())), telemetry.spans_dropped(cause)));
    let requests =
        RequestOutcome::ALL.map(|outcome| (Some(("outcome", outcome.name())), telemetry.export_requests(outcome)));
    counter(meter, "coati.agent.records", "{record}", records);
    counter(meter, "coati.agent.losses", "{record}", losses);
    counter(meter, "coati.agent.ring.sequence_gaps", "{record}", [(None, telemetry.sequence_gaps.clone())]);
    counter(meter, "coati.agent.parse_failures", "{message}", [(None, telemetry.parse_failures.clone())]);
    counter(meter, "coati.agent.exchanges", "{request}", [(None, telemetry.exchanges.clone())]);
    counter(meter, "coati.agent.spans", "{span}", [(None, telemetry.spans.clone())]);
    counter(meter, "coati.agent.spans.exported", "{span}", [(None, telemetry.spans_exported.clone())]);
    counter(meter, "coati.agent.spans.dropped", "{span}", dropped);
    counter(meter, "coati.agent.export.requests", "{request}", requests);
    gauge(meter, "coati.agent.exchanges.open", "{request}", &telemetry.open_exchanges);
    gauge(meter, "coati.agent.export.queue.length", "{span}", &telemetry.queue_length);
    gauge(meter, "coati.agent.processes", "{process}", &telemetry.processes);
    meter
        .i64_observable_gauge("process.memory.usage")
        .with_unit("By")
        .with_callback(|observer| {
            if let Some(reading) = process::read() {
                observer.observe(reading.resident_bytes as i64, &[]);
            }
        })
        .build();
    meter
        .f64_observable_counter("process.cpu.time")
        .with_unit("s")
        .with_callback(|observer| {
            if let Some(reading) = process::read() {
                observer.observe(reading.cpu_seconds, &[]);
            }
        })
        .build();
}

type Cell = (Option<(&'static str, &'static str)>, Counter);

fn counter<const N: usize>(meter: &Meter, name: &'static str, unit: &'static str, cells: [Cell; N]) {
    meter
        .u64_observable_counter(name)
        .with_unit(unit)
        .with_callback(move |observer| {
            for (label, counter) in &cells {
                match label {
                    Some((key, value)) => observer.observe(counter.get(), &[KeyValue::new(*key, *value)]),
                    None => observer.observe(counter.get(), &[]),
                }
            }
        })
        .build();
}

fn gauge(meter: &Meter, name: &'static str, unit: &'static str, cell: &Gauge) {
    let cell = cell.clone();
    meter
        .i64_observable_gauge(name)
        .with_unit(unit)
        .with_callback(move |observer| observer.observe(cell.get(), &[]))
        .build();
}
