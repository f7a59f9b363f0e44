//! Metrics on their way to an OTLP endpoint: one path for all that there are.
//!
//! Not through OpenTelemetry's SDK: its histograms would count every request a second time, and keep every label set for
//! ever.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prost::{Message as _, bytes::Bytes};
use tokio::{sync::oneshot, time::MissedTickBehavior};

use super::{
    delta::{Deltas, Temporality},
    otlp,
    point::Point,
};
use crate::export::{Answer, EndpointSettings, ExportError, Signal, Transport};

/// Where, how often and how metrics are sent.
#[derive(Clone, Debug)]
pub struct OtlpMetricsSettings {
    /// The endpoint.
    pub endpoint: EndpointSettings,
    /// Time between two exports.
    pub interval: Duration,
    /// What of counts is sent.
    pub temporality: Temporality,
}

/// Something that is measured.
pub(crate) type Source = Box<dyn Fn() -> Vec<Point> + Send>;

/// Sends metrics now and then.
pub(crate) struct MetricsExport {
    transport: Transport,
    settings: OtlpMetricsSettings,
    sources: Vec<Source>,
    deltas: Deltas,
}

impl fmt::Debug for MetricsExport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("MetricsExport").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl MetricsExport {
    /// Connects with the first request. Must be called on a tokio runtime.
    pub(crate) fn new(settings: OtlpMetricsSettings, sources: Vec<Source>) -> Result<Self, ExportError> {
        let transport = Transport::new(&settings.endpoint, Signal::Metrics)?;
        Ok(Self { transport, settings, sources, deltas: Deltas::default() })
    }

    /// Sends every interval, and a last time when `end` comes. What an endpoint did not take is in what is sent next: counts
    /// only grow, and of deltas what was taken is remembered.
    pub(crate) async fn run(mut self, mut end: oneshot::Receiver<()>) {
        let mut ticks = tokio::time::interval(self.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first comes at once, and there is nothing yet.
        ticks.tick().await;
        loop {
            let is_last = tokio::select! {
                _ = ticks.tick() => false,
                _ = &mut end => true,
            };
            self.send(unix_ns()).await;
            if is_last {
                return;
            }
        }
    }

    pub(super) async fn send(&mut self, now_unix_ns: u64) {
        let mut points: Vec<Point> = self.sources.iter().flat_map(|source| source()).collect();
        points.retain(|point| !point.metric.otlp.is_empty());
        otlp::sort(&mut points);
        for points in points.chunks(otlp::IN_ONE_REQUEST) {
            let new = match self.settings.temporality {
                Temporality::Cumulative => None,
                Temporality::Delta => Some(self.deltas.new_of(points)),
            };
            let request = otlp::request(new.as_deref().unwrap_or(points), self.settings.temporality, now_unix_ns);
            let endpoint = &self.settings.endpoint.name;
            match self.transport.send(Bytes::from(request.encode_to_vec())).await {
                Answer::Accepted { rejected: 0, .. } => {}
                Answer::Accepted { rejected, message } => {
                    tracing::warn!(endpoint, rejected, message, "metrics were rejected");
                }
                Answer::Retry { reason, .. } | Answer::Unauthorised { reason } | Answer::Refused { reason } => {
                    tracing::warn!(endpoint, reason, "metrics were not taken");
                    return;
                }
            }
            if new.is_some() {
                self.deltas.took(points, now_unix_ns);
            }
        }
        self.deltas.forget_all_but(&points);
    }
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
