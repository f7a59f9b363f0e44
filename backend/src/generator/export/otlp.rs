//! OTLP's metrics: counters as cumulative sums, histograms with their bounds or, of native ones, exponential.
//!
//! Names are those of remote write, and have no units: servers that put units behind names would make others of them.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, TE};
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, DataPointFlags, Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge,
    Histogram as OtlpHistogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum,
    exemplar,
};
use prost::Message;

use super::connection::{Connection, Settings, retry_after, shown};
use super::queue::Queued;
use super::send::Outcome;
use super::{ExportError, Format, Request, SERIES};
use crate::config::{OtlpConfig, OtlpProtocol};
use crate::generator::collected::{Collected, SeriesSnapshot, SeriesState, TenantSnapshot};
use crate::generator::family::{Shape, help_of};
use crate::generator::histogram::{Histogram, Native, ZERO_THRESHOLD};
use crate::telemetry::chain;
use crate::tenant::TENANT_HEADER;

/// The path of the method.
const GRPC_PATH: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
const HTTP_PATH: &str = "/v1/metrics";

/// Codes of gRPC with which a request may be sent again: cancelled, deadline exceeded, resource exhausted, aborted, out of
/// range, unavailable, data loss.
const TEMPORARY: [u32; 7] = [1, 4, 8, 10, 11, 14, 15];

/// What is different for each server.
#[derive(Clone, Debug)]
pub(super) struct Encoding {
    exemplars: bool,
    native: bool,
}

/// Metrics that become a request.
#[derive(Debug, Default)]
struct Batch {
    metrics: Vec<Metric>,
    points: usize,
    requests: Vec<Request>,
}

/// Times of a series, nanoseconds since the epoch.
#[derive(Clone, Copy, Debug)]
struct Times {
    /// When it was zero; 0 if that is not known.
    start: u64,
    /// A time soon after that, if this is the first sample.
    begin: Option<u64>,
    now: u64,
}

impl Encoding {
    pub(super) const fn new(config: &OtlpConfig) -> Self {
        Self { exemplars: config.send_exemplars, native: config.send_native_histograms }
    }

    /// The requests for what was counted of a tenant.
    pub(super) fn requests(&self, collected: &Collected, tenant: &TenantSnapshot) -> Vec<Request> {
        let external: Vec<_> =
            tenant.external_labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let mut batch = Batch::default();
        for family in &tenant.families {
            let shape = &*family.shape;
            for (place, name) in shape.counters.iter().enumerate() {
                for snapshot in &family.series {
                    let value = snapshot.series.counters.get(place).copied().unwrap_or_default();
                    let times = Times::of((collected, tenant), snapshot, shape.info);
                    batch.number(
                        name,
                        shape.info,
                        &attributes(shape, snapshot, &external),
                        value,
                        snapshot.state,
                        times,
                    );
                }
            }
            for (place, name) in shape.histograms.iter().enumerate() {
                for snapshot in &family.series {
                    let Some(histogram) = snapshot.series.histograms.get(place).and_then(Option::as_deref) else {
                        continue;
                    };
                    let times = Times::of((collected, tenant), snapshot, false);
                    let attributes = attributes(shape, snapshot, &external);
                    let exemplars = if self.exemplars { exemplars(histogram, times.now) } else { Vec::new() };
                    // One name cannot stand for both.
                    match histogram.native.as_deref().filter(|_| self.native) {
                        Some(native) => {
                            batch.exponential(
                                name,
                                &attributes,
                                (native, histogram.sum),
                                &exemplars,
                                snapshot.state,
                                times,
                            );
                        }
                        None => batch.classic(name, &attributes, (shape, histogram), &exemplars, snapshot.state, times),
                    }
                }
            }
        }
        batch.finish();
        batch.requests
    }
}

impl Times {
    fn of((collected, tenant): (&Collected, &TenantSnapshot), snapshot: &SeriesSnapshot, info: bool) -> Self {
        let nanos = |millis: u64| millis.saturating_mul(1_000_000);
        let begin = tenant.previous_ms + 1;
        let begins = snapshot.state == SeriesState::New && !info && begin < collected.time_ms;
        Self {
            start: if info { 0 } else { nanos(snapshot.series.created_ms) },
            begin: begins.then(|| nanos(begin)),
            now: nanos(collected.time_ms),
        }
    }

    /// The times of its data points, and whether nothing was counted then.
    fn points(self) -> impl Iterator<Item = (u64, bool)> {
        self.begin.map(|begin| (begin, true)).into_iter().chain([(self.now, false)])
    }
}

/// Says of a series that has ended that it has.
const fn flags(state: SeriesState) -> u32 {
    match state {
        SeriesState::Gone => DataPointFlags::NoRecordedValueMask as u32,
        SeriesState::New | SeriesState::Steady => 0,
    }
}

fn attributes(shape: &Shape, snapshot: &SeriesSnapshot, external: &[(&str, &str)]) -> Vec<KeyValue> {
    let mut labels = shape.labels_of(&snapshot.key, external);
    labels.sort_unstable();
    let text = |text: &str| Some(AnyValue { value: Some(Value::StringValue(text.to_owned())) });
    let attribute =
        |(key, value): (&str, &str)| KeyValue { key: key.to_owned(), value: text(value), ..KeyValue::default() };
    labels.into_iter().map(attribute).collect()
}

fn exemplars(histogram: &Histogram, time_unix_nano: u64) -> Vec<Exemplar> {
    let exemplars = histogram.exemplars.iter().map(|(_, exemplar)| Exemplar {
        time_unix_nano,
        trace_id: exemplar.trace_id.to_vec(),
        value: Some(exemplar::Value::AsDouble(exemplar.value)),
        ..Exemplar::default()
    });
    exemplars.collect()
}

impl Batch {
    fn number(&mut self, name: &str, info: bool, labels: &[KeyValue], value: f64, state: SeriesState, times: Times) {
        for (time, empty) in times.points() {
            let point = NumberDataPoint {
                attributes: labels.to_vec(),
                start_time_unix_nano: times.start,
                time_unix_nano: time,
                flags: flags(state),
                value: (state != SeriesState::Gone).then_some(Number::AsDouble(if empty { 0.0 } else { value })),
                ..NumberDataPoint::default()
            };
            match self.metric(name, || if info { gauge() } else { counter() }) {
                Some(Data::Sum(sum)) => sum.data_points.push(point),
                Some(Data::Gauge(gauge)) => gauge.data_points.push(point),
                _ => {}
            }
        }
    }

    fn classic(
        &mut self,
        name: &str,
        attributes: &[KeyValue],
        (shape, histogram): (&Shape, &Histogram),
        exemplars: &[Exemplar],
        state: SeriesState,
        times: Times,
    ) {
        for (time, empty) in times.points() {
            let count = |count: &f64| if empty { 0 } else { count.round() as u64 };
            let bucket_counts: Vec<u64> = histogram.counts.iter().map(count).collect();
            let mut point = HistogramDataPoint {
                attributes: attributes.to_vec(),
                start_time_unix_nano: times.start,
                time_unix_nano: time,
                flags: flags(state),
                ..HistogramDataPoint::default()
            };
            if state != SeriesState::Gone {
                point.count = bucket_counts.iter().sum();
                point.sum = Some(if empty { 0.0 } else { histogram.sum });
                point.explicit_bounds.clone_from(&shape.bounds);
                point.bucket_counts = bucket_counts;
                point.exemplars = if empty { Vec::new() } else { exemplars.to_vec() };
            }
            let data = || {
                let aggregation_temporality = AggregationTemporality::Cumulative.into();
                Data::Histogram(OtlpHistogram { data_points: Vec::new(), aggregation_temporality })
            };
            if let Some(Data::Histogram(histogram)) = self.metric(name, data) {
                histogram.data_points.push(point);
            }
        }
    }

    fn exponential(
        &mut self,
        name: &str,
        attributes: &[KeyValue],
        (native, sum): (&Native, f64),
        exemplars: &[Exemplar],
        state: SeriesState,
        times: Times,
    ) {
        for (time, empty) in times.points() {
            let mut point = ExponentialHistogramDataPoint {
                attributes: attributes.to_vec(),
                start_time_unix_nano: times.start,
                time_unix_nano: time,
                flags: flags(state),
                ..ExponentialHistogramDataPoint::default()
            };
            if state != SeriesState::Gone {
                point.scale = native.schema;
                point.zero_threshold = ZERO_THRESHOLD;
                point.sum = Some(if empty { 0.0 } else { sum });
            }
            if state != SeriesState::Gone && !empty {
                point.zero_count = native.zero.round() as u64;
                let buckets = buckets(native);
                point.count = point.zero_count + buckets.bucket_counts.iter().sum::<u64>();
                point.positive = Some(buckets);
                point.exemplars = exemplars.to_vec();
            }
            let data = || {
                let aggregation_temporality = AggregationTemporality::Cumulative.into();
                Data::ExponentialHistogram(ExponentialHistogram { data_points: Vec::new(), aggregation_temporality })
            };
            if let Some(Data::ExponentialHistogram(histogram)) = self.metric(name, data) {
                histogram.data_points.push(point);
            }
        }
    }

    /// Where to put the next data point of a metric.
    fn metric(&mut self, name: &str, data: impl FnOnce() -> Data) -> Option<&mut Data> {
        if self.points == SERIES {
            self.finish();
        }
        self.points += 1;
        if self.metrics.last().is_none_or(|metric| metric.name != name) {
            let (name, description) = (name.to_owned(), help_of(name).to_owned());
            self.metrics.push(Metric { name, description, data: Some(data()), ..Metric::default() });
        }
        self.metrics.last_mut().and_then(|metric| metric.data.as_mut())
    }

    fn finish(&mut self) {
        let samples = std::mem::take(&mut self.points) as u32;
        if samples == 0 {
            return;
        }
        let scope = InstrumentationScope {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let metrics = std::mem::take(&mut self.metrics);
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
        let resource_metrics = vec![ResourceMetrics { scope_metrics, ..ResourceMetrics::default() }];
        let message = ExportMetricsServiceRequest { resource_metrics }.encode_to_vec();
        // It fails only beyond four gigabytes.
        if let Ok(body) = snap::raw::Encoder::new().compress_vec(&message) {
            self.requests.push(Request { samples, format: Format::Otlp, body });
        }
    }
}

fn counter() -> Data {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    Data::Sum(Sum { data_points: Vec::new(), aggregation_temporality, is_monotonic: true })
}

fn gauge() -> Data {
    Data::Gauge(Gauge { data_points: Vec::new() })
}

/// A bucket of OTLP is called by its lower bound, one of Prometheus by its upper bound.
fn buckets(native: &Native) -> Buckets {
    let (Some((first, _)), Some((last, _))) = (native.positive.first_key_value(), native.positive.last_key_value())
    else {
        return Buckets::default();
    };
    let count = |index: i32| native.positive.get(&index).map_or(0, |count| count.round() as u64);
    Buckets { offset: first - 1, bucket_counts: (*first..=*last).map(count).collect() }
}

/// A server that takes OTLP.
#[derive(Debug)]
pub(super) struct Server {
    connection: Connection,
    protocol: OtlpProtocol,
    tells_tenant: bool,
}

impl Server {
    pub(super) fn new(config: &OtlpConfig, tells_tenant: bool) -> Result<Self, ExportError> {
        let OtlpConfig { endpoint, protocol, .. } = config;
        let is_grpc = *protocol == OtlpProtocol::Grpc;
        let path = if is_grpc { GRPC_PATH } else { HTTP_PATH };
        let base = endpoint.trim_end_matches('/');
        let url = if base.ends_with(path) { base.to_owned() } else { format!("{base}{path}") };
        let connection = Connection::new(&Settings {
            key: "endpoint",
            url: &url,
            headers: &config.headers,
            basic_auth: config.basic_auth.as_ref(),
            tls: &config.tls_config,
            timeout: config.remote_timeout,
            http2: is_grpc,
        })?;
        Ok(Self { connection, protocol: *protocol, tells_tenant })
    }

    pub(super) async fn send(&self, queued: &Queued) -> Outcome {
        let refused = |why: String| Outcome::Refused { why, samples: queued.samples };
        if queued.format != Format::Otlp {
            return refused("queued for another server".to_owned());
        }
        let message = match snap::raw::Decoder::new().decompress_vec(&queued.body) {
            Ok(message) => message,
            Err(error) => return refused(error.to_string()),
        };
        match self.protocol {
            OtlpProtocol::Grpc => self.send_grpc(queued, &message).await,
            OtlpProtocol::Http => self.send_http(queued, &message).await,
        }
    }

    async fn send_http(&self, queued: &Queued, message: &[u8]) -> Outcome {
        let mut body = GzEncoder::new(Vec::new(), Compression::fast());
        // Writing to memory does not fail.
        let Ok(body) = body.write_all(message).and_then(|()| body.finish()) else {
            return Outcome::Refused { why: "cannot be compressed".to_owned(), samples: queued.samples };
        };
        let request = self.request(queued, body, "application/x-protobuf").header(CONTENT_ENCODING, "gzip");
        let response = match request.send().await {
            Ok(response) => response,
            Err(error) => return Outcome::Later { why: chain(&error.without_url()), after: None },
        };
        let (status, after) = (response.status(), retry_after(&response));
        if status.is_success() {
            return accepted(queued, response.bytes().await.unwrap_or_default());
        }
        let why = format!("{status}: {}", shown(response).await);
        let temporary = [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ];
        if temporary.contains(&status) {
            return Outcome::Later { why, after };
        }
        Outcome::Refused { why, samples: queued.samples }
    }

    async fn send_grpc(&self, queued: &Queued, message: &[u8]) -> Outcome {
        // Not compressed, and its length.
        let mut body = vec![0];
        body.extend((message.len() as u32).to_be_bytes());
        body.extend(message);
        let request = self.request(queued, body, "application/grpc").header(TE, "trailers");
        let response = match request.send().await {
            Ok(response) => http::Response::from(response),
            Err(error) => return Outcome::Later { why: chain(&error.without_url()), after: None },
        };
        let (head, body) = response.into_parts();
        let body = match body.collect().await {
            Ok(body) => body,
            Err(error) => return Outcome::Later { why: chain(&error), after: None },
        };
        let status = body.trailers().and_then(grpc_status).or_else(|| grpc_status(&head.headers));
        match status {
            Some((0, _)) => {
                let mut message = body.to_bytes();
                // Behind what the message is told with: whether it is compressed, and its length.
                let _prefix = message.split_to(message.len().min(5));
                accepted(queued, message)
            }
            Some((code, text)) if !TEMPORARY.contains(&code) => {
                Outcome::Refused { why: format!("gRPC status {code}: {text}"), samples: queued.samples }
            }
            Some((code, text)) => Outcome::Later { why: format!("gRPC status {code}: {text}"), after: None },
            // A proxy answered.
            None => Outcome::Later { why: format!("{}, no status of gRPC", head.status), after: None },
        }
    }

    fn request(&self, queued: &Queued, body: Vec<u8>, content_type: &str) -> reqwest::RequestBuilder {
        let request = self.connection.post(body).header(CONTENT_TYPE, content_type);
        if self.tells_tenant { request.header(TENANT_HEADER, &queued.tenant) } else { request }
    }
}

/// What a server that answered well has not taken.
fn accepted(queued: &Queued, answer: Bytes) -> Outcome {
    let partial = ExportMetricsServiceResponse::decode(answer).ok().and_then(|answer| answer.partial_success);
    match partial.filter(|partial| partial.rejected_data_points > 0) {
        None => Outcome::Taken,
        Some(partial) => Outcome::Refused {
            why: partial.error_message,
            samples: u32::try_from(partial.rejected_data_points).unwrap_or(u32::MAX).min(queued.samples),
        },
    }
}

fn grpc_status(headers: &HeaderMap) -> Option<(u32, String)> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let code = text("grpc-status")?.parse().ok()?;
    Some((code, text("grpc-message").unwrap_or_default().to_owned()))
}
