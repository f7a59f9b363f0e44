//! What is shown and sent: values, and what they are of.

use std::sync::Arc;

use super::{histogram::Histogram, labels::Labels, service::Service};

/// A metric: its names, and what it is of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Metric {
    /// In OTLP; empty if it is not sent.
    pub(crate) otlp: &'static str,
    /// The family on `/metrics`: with the unit, and without `_total`.
    pub(crate) prometheus: &'static str,
    pub(crate) help: &'static str,
    pub(crate) unit: Unit,
    pub(crate) shape: Shape,
    /// What is shown of the service on `/metrics`.
    pub(crate) prefix: Prefix,
}

/// What is measured.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unit {
    None,
    Bytes,
    Ratio,
    Seconds,
    /// As OTLP calls it; on `/metrics` it has none.
    Other(&'static str),
}

/// How it is counted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Shape {
    Counter,
    Gauge,
    Histogram,
}

/// What of a service is shown on `/metrics`, in front of the labels that are a metric's own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Prefix {
    /// Nothing: the labels say it.
    None,
    /// Its labels.
    Service,
    /// Those, and what metrics of spans have besides.
    Span,
}

/// One value of one series.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    pub(crate) metric: Metric,
    pub(crate) service: Arc<Service>,
    pub(crate) labels: Arc<Labels>,
    /// From when on it was counted, nanoseconds since the epoch.
    pub(crate) since_unix_ns: u64,
    pub(crate) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// What only grows.
    Counter(f64),
    Gauge(f64),
    Histogram(Histogram),
}

impl Unit {
    /// What OTLP calls it.
    pub(crate) const fn otlp(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Bytes => "By",
            Self::Ratio => "1",
            Self::Seconds => "s",
            Self::Other(unit) => unit,
        }
    }

    /// What `OpenMetrics` calls it.
    pub(crate) const fn open_metrics(self) -> &'static str {
        match self {
            Self::None | Self::Other(_) => "",
            Self::Bytes => "bytes",
            Self::Ratio => "ratio",
            Self::Seconds => "seconds",
        }
    }
}

impl Shape {
    /// What `/metrics` calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Point {
    /// What is shown of the service.
    pub(crate) fn prefix(&self) -> &str {
        match self.metric.prefix {
            Prefix::None => "",
            Prefix::Service => &self.service.text,
            Prefix::Span => &self.service.span_text,
        }
    }
}
