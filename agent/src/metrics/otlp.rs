//! Points in OTLP.

use coati_common::wellknown::AGENT_SCOPE;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::InstrumentationScope,
    metrics::v1::{
        AggregationTemporality, Exemplar as OtlpExemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge,
        Histogram as OtlpHistogram, HistogramDataPoint, Metric as OtlpMetric, NumberDataPoint, ResourceMetrics,
        ScopeMetrics, Sum, exemplar, exponential_histogram_data_point::Buckets, metric::Data, number_data_point,
    },
    resource::v1::Resource,
};

use super::{
    delta::Temporality,
    exponential::Exponential,
    histogram::Histogram,
    point::{Metric, Point, Value},
    service::Service,
};

/// Points in one request: it stays well below what gRPC servers take by default, 4 MiB.
pub(super) const IN_ONE_REQUEST: usize = 2000;

/// Puts points into the order that [`request`] wants.
pub(super) fn sort(points: &mut [Point]) {
    points.sort_by(|left, right| key(left).cmp(&key(right)));
}

fn key(point: &Point) -> (&str, &str, &str) {
    (&point.service.text, point.metric.otlp, &point.labels.text)
}

/// The request that sends these points: one resource for each service, one metric for each name in it.
pub(super) fn request(points: &[Point], temporality: Temporality, now_unix_ns: u64) -> ExportMetricsServiceRequest {
    let of_services = points.chunk_by(|left, right| left.service.text == right.service.text);
    let resource_metrics = of_services.filter_map(|points| {
        let of_metrics = points.chunk_by(|left, right| left.metric.otlp == right.metric.otlp);
        let metrics = of_metrics.filter_map(|points| metric(points, temporality, now_unix_ns)).collect();
        Some(resource_metrics(&points.first()?.service, metrics))
    });
    ExportMetricsServiceRequest { resource_metrics: resource_metrics.collect() }
}

fn resource_metrics(service: &Service, metrics: Vec<OtlpMetric>) -> ResourceMetrics {
    let scope = InstrumentationScope {
        name: AGENT_SCOPE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    };
    ResourceMetrics {
        resource: Some(Resource { attributes: service.resource.clone(), ..Resource::default() }),
        scope_metrics: vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }],
        ..ResourceMetrics::default()
    }
}

/// The metric that all these points are of.
fn metric(points: &[Point], temporality: Temporality, now_unix_ns: u64) -> Option<OtlpMetric> {
    let Point { metric: Metric { otlp, help, unit, .. }, value, .. } = points.first()?;
    let numbers = || points.iter().filter_map(|point| number(point, now_unix_ns)).collect();
    let aggregation_temporality = match temporality {
        Temporality::Cumulative => AggregationTemporality::Cumulative.into(),
        Temporality::Delta => AggregationTemporality::Delta.into(),
    };
    let data = match value {
        Value::Gauge(_) => Data::Gauge(Gauge { data_points: numbers() }),
        Value::Counter(_) => Data::Sum(Sum { data_points: numbers(), aggregation_temporality, is_monotonic: true }),
        Value::Histogram(Histogram { exponential: None, .. }) => {
            let data_points = points.iter().filter_map(|point| explicit(point, now_unix_ns)).collect();
            Data::Histogram(OtlpHistogram { data_points, aggregation_temporality })
        }
        Value::Histogram(_) => {
            let data_points = points.iter().filter_map(|point| exponential(point, now_unix_ns)).collect();
            Data::ExponentialHistogram(ExponentialHistogram { data_points, aggregation_temporality })
        }
    };
    Some(OtlpMetric {
        name: (*otlp).to_owned(),
        description: (*help).to_owned(),
        unit: unit.otlp().to_owned(),
        data: Some(data),
        ..OtlpMetric::default()
    })
}

fn number(point: &Point, now_unix_ns: u64) -> Option<NumberDataPoint> {
    let (Value::Counter(value) | Value::Gauge(value)) = point.value else { return None };
    let start_time_unix_nano = if matches!(point.value, Value::Counter(_)) { point.since_unix_ns } else { 0 };
    Some(NumberDataPoint {
        attributes: point.labels.attributes.clone(),
        start_time_unix_nano,
        time_unix_nano: now_unix_ns,
        value: Some(number_data_point::Value::AsDouble(value)),
        ..NumberDataPoint::default()
    })
}

fn explicit(point: &Point, now_unix_ns: u64) -> Option<HistogramDataPoint> {
    let Value::Histogram(histogram) = &point.value else { return None };
    Some(HistogramDataPoint {
        attributes: point.labels.attributes.clone(),
        start_time_unix_nano: point.since_unix_ns,
        time_unix_nano: now_unix_ns,
        count: histogram.count(),
        sum: Some(histogram.sum),
        bucket_counts: histogram.counts.to_vec(),
        explicit_bounds: histogram.bounds.0.to_vec(),
        exemplars: exemplars(histogram),
        ..HistogramDataPoint::default()
    })
}

fn exponential(point: &Point, now_unix_ns: u64) -> Option<ExponentialHistogramDataPoint> {
    let Value::Histogram(histogram) = &point.value else { return None };
    let Exponential { scale, zeros, offset, counts } = histogram.exponential.as_deref()?;
    Some(ExponentialHistogramDataPoint {
        attributes: point.labels.attributes.clone(),
        start_time_unix_nano: point.since_unix_ns,
        time_unix_nano: now_unix_ns,
        count: histogram.count(),
        sum: Some(histogram.sum),
        scale: *scale,
        zero_count: *zeros,
        positive: Some(Buckets { offset: *offset, bucket_counts: counts.clone() }),
        exemplars: exemplars(histogram),
        ..ExponentialHistogramDataPoint::default()
    })
}

fn exemplars(histogram: &Histogram) -> Vec<OtlpExemplar> {
    let exemplars = histogram.exemplars.iter().flatten().map(|it| OtlpExemplar {
        time_unix_nano: it.unix_ns,
        span_id: it.span_id.to_vec(),
        trace_id: it.trace_id.to_vec(),
        value: Some(exemplar::Value::AsDouble(it.value)),
        ..OtlpExemplar::default()
    });
    exemplars.collect()
}
