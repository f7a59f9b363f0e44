//! Answers to metrics queries.

use opentelemetry_proto::tonic::common::v1::KeyValue;

use super::SearchMetrics;

/// Series over time. `prom_labels`, which had number 3 in a series, is gone.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueryRangeResponse {
    /// Sorted by labels.
    #[prost(message, repeated, tag = "1")]
    pub series: Vec<TimeSeries>,
    /// Always there.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<SearchMetrics>,
    /// Whether something is missing.
    #[prost(enumeration = "super::PartialStatus", tag = "3")]
    pub status: i32,
    /// Why.
    #[prost(string, tag = "4")]
    pub message: String,
}

/// One series.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TimeSeries {
    /// What tells it from others; values keep their types.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<KeyValue>,
    /// Sorted by time.
    #[prost(message, repeated, tag = "2")]
    pub samples: Vec<Sample>,
    /// Sorted by time.
    #[prost(message, repeated, tag = "4")]
    pub exemplars: Vec<Exemplar>,
}

/// A value of a series.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct Sample {
    /// Value.
    #[prost(double, tag = "1")]
    pub value: f64,
    /// End of its interval, milliseconds since the epoch.
    #[prost(int64, tag = "2")]
    pub timestamp_ms: i64,
}

/// A span that stands for a series.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Exemplar {
    /// `trace:id` and others.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<KeyValue>,
    /// What the series measures on the span.
    #[prost(double, tag = "2")]
    pub value: f64,
    /// Its start, milliseconds since the epoch.
    #[prost(int64, tag = "3")]
    pub timestamp_ms: i64,
}

/// One value for each series. Grafana refuses answers with more fields than these.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueryInstantResponse {
    /// Sorted by labels.
    #[prost(message, repeated, tag = "1")]
    pub series: Vec<InstantSeries>,
    /// Always there.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<SearchMetrics>,
    /// Whether something is missing.
    #[prost(enumeration = "super::PartialStatus", tag = "3")]
    pub status: i32,
    /// Why.
    #[prost(string, tag = "4")]
    pub message: String,
}

/// One series of one value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct InstantSeries {
    /// What tells it from others; values keep their types.
    #[prost(message, repeated, tag = "1")]
    pub labels: Vec<KeyValue>,
    /// Value.
    #[prost(double, tag = "2")]
    pub value: f64,
}
