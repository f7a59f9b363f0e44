//! What the agent itself costs.

use std::time::Instant;

use procfs::{WithCurrentSystemInfo, process::Process};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Memory and processor time of this process, read when they are asked for.
#[derive(Debug)]
pub(super) struct ProcessMetrics {
    started: Instant,
}

/// One reading.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    /// Bytes of memory that are resident.
    pub(super) resident_bytes: u64,
    /// Seconds of processor time, user and system.
    pub(super) cpu_seconds: f64,
}

impl ProcessMetrics {
    /// Metrics of this process, which began at `started`.
    pub(super) fn new(started: Instant) -> Self {
        Self { started }
    }
}

/// Reads `/proc/self/stat`; `None` where there is no `/proc`.
pub(super) fn read() -> Option<Reading> {
    let stat = Process::myself().ok()?.stat().ok()?;
    let ticks = stat.utime + stat.stime;
    Some(Reading {
        resident_bytes: stat.rss_bytes().get(),
        cpu_seconds: ticks as f64 / procfs::ticks_per_second() as f64,
    })
}

impl Collector for ProcessMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let uptime = ConstGauge::new(self.started.elapsed().as_secs_f64());
        let name = "coati_agent_uptime_seconds";
        uptime.encode(encoder.encode_descriptor(name, "Time since the start", None, MetricType::Gauge)?)?;
        let Some(reading) = read() else { return Ok(()) };
        // The names that every Prometheus client library uses, so that existing dashboards know them.
        let cpu = ConstCounter::new(reading.cpu_seconds);
        let name = "process_cpu_seconds";
        cpu.encode(encoder.encode_descriptor(name, "Processor time, user and system", None, MetricType::Counter)?)?;
        let resident = ConstGauge::new(reading.resident_bytes as i64);
        let name = "process_resident_memory_bytes";
        resident.encode(encoder.encode_descriptor(name, "Resident memory", None, MetricType::Gauge)?)
    }
}
