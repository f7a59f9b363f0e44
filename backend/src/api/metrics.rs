//! `/api/metrics/query_range` and `/api/metrics/query`.

use axum::extract::State;
use axum::response::Response;
use http::{HeaderMap, Uri};
use opentelemetry_proto::tonic::common::v1::KeyValue;

use super::ApiState;
use super::error::ApiError;
use super::params::{Params, go_integer};
use super::range::{bounds, step};
use super::search::metrics;
use super::tempopb::{
    Exemplar, InstantSeries, PartialStatus, QueryInstantResponse, QueryRangeResponse, Sample, TimeSeries,
};
use super::work::Work;
use crate::config::QueryConfig;
use crate::query::{
    self, Intervals, Label, MAX_EXEMPLARS, MetricsPlan, MetricsRequest, MetricsResult, Progress, Series, default_step,
    go_duration, query_metrics,
};
use crate::tenant::Tenants;
use crate::traceql::{self, TraceQlError};

/// Longest range, nanoseconds.
const MAX_RANGE_NS: u64 = 24 * 3_600 * 1_000_000_000;

/// Most intervals.
const MAX_INTERVALS: u64 = 10_000;

pub(super) async fn query_range(
    State(state): State<ApiState>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    state.answer(uri, &headers, range).await
}

pub(super) async fn query(State(state): State<ApiState>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    state.answer(uri, &headers, instant).await
}

/// Series over time.
pub(super) fn range(
    state: &ApiState,
    tenants: &Tenants,
    params: &Params,
    work: &Work,
) -> Result<QueryRangeResponse, ApiError> {
    let asked = Asked::of(params, state.now_ns())?;
    let step = step(params)?.unwrap_or_else(|| default_step(asked.start, asked.end));
    let request = asked.request(Some(step), &state.limits)?;
    let result = state.query(tenants, work, |view| query_metrics(view, &request, work.stop()))?;
    let (status, message) = partial(&result);
    let series = result.series.into_iter().map(|series| time_series(series, &request.intervals));
    Ok(QueryRangeResponse {
        series: series.collect(),
        metrics: Some(metrics(Progress::whole(result.inspected))),
        status: status as i32,
        message,
    })
}

/// One value for each series.
pub(super) fn instant(
    state: &ApiState,
    tenants: &Tenants,
    params: &Params,
    work: &Work,
) -> Result<QueryInstantResponse, ApiError> {
    let request = Asked::of(params, state.now_ns())?.request(None, &state.limits)?;
    let result = state.query(tenants, work, |view| query_metrics(view, &request, work.stop()))?;
    let (status, message) = partial(&result);
    let series = result.series.into_iter().filter_map(|series| {
        Some(InstantSeries { value: *series.values.first()?, labels: series.labels.into_iter().map(label).collect() })
    });
    Ok(QueryInstantResponse {
        series: series.collect(),
        metrics: Some(metrics(Progress::whole(result.inspected))),
        status: status as i32,
        message,
    })
}

/// What both kinds have in common.
struct Asked<'p> {
    query: &'p str,
    /// Nanoseconds since the epoch.
    start: u64,
    end: u64,
    exemplars: usize,
    max_series: usize,
}

impl<'p> Asked<'p> {
    fn of(params: &'p Params, now_ns: u64) -> Result<Self, ApiError> {
        let query = params.get("q").or_else(|| params.get("query")).unwrap_or_default();
        let exemplars = count(params, "exemplars")?;
        let max_series = count(params, "maxSeries")?;
        let (start, end) = bounds(params, now_ns)?;
        // 0 means that nobody asked, not that nobody wants any.
        let exemplars = if exemplars == 0 { MAX_EXEMPLARS } else { exemplars.min(MAX_EXEMPLARS) };
        Ok(Self { query, start, end, exemplars, max_series })
    }

    /// Checks and compiles; without a step the whole range is one interval.
    fn request(self, step: Option<u64>, limits: &QueryConfig) -> Result<MetricsRequest, ApiError> {
        let Self { query, start, end, exemplars, max_series } = self;
        if start >= end {
            return Err(ApiError::bad("end must be greater than start"));
        }
        let range = end - start;
        if range > MAX_RANGE_NS {
            return Err(ApiError::bad(format!(
                "metrics query time range exceeds the maximum allowed duration of {}",
                shown(MAX_RANGE_NS)
            )));
        }
        let intervals = match step {
            None => Intervals::instant(start, end),
            Some(step) if step == 0 || range / step > MAX_INTERVALS => {
                return Err(ApiError::bad(format!(
                    "step of {} is too small, minimum step for given range is {}",
                    shown(step),
                    shown(range / MAX_INTERVALS)
                )));
            }
            Some(step) => Intervals::range(start, end, step),
        };
        let max_bytes = limits.max_metrics_bytes.as_usize();
        Ok(MetricsRequest { plan: plan_of(query)?, intervals, exemplars, max_series, max_bytes })
    }
}

/// A number that may be left out.
fn count(params: &Params, name: &str) -> Result<usize, ApiError> {
    let Some(text) = params.get(name) else { return Ok(0) };
    let count = go_integer("Atoi", text).map_err(|error| ApiError::bad(format!("invalid {name}: {error}")))?;
    usize::try_from(count).map_err(|_| ApiError::bad(format!("invalid {name}: must be a non-negative number")))
}

fn plan_of(text: &str) -> Result<MetricsPlan, ApiError> {
    let query = traceql::parse(text).map_err(|error| match error {
        TraceQlError::TooLong { .. } => ApiError::bad(error.to_string()),
        error => ApiError::bad(format!("compiling query: {}", error.shown_in(text))),
    })?;
    let plan = MetricsPlan::new(&query).map_err(|error| ApiError::bad(format!("compiling query: {error}")))?;
    plan.ok_or_else(|| ApiError::bad("not a metrics query"))
}

fn shown(nanos: u64) -> String {
    go_duration(i64::try_from(nanos).unwrap_or(i64::MAX))
}

fn partial(result: &MetricsResult) -> (PartialStatus, String) {
    match &result.partial {
        Some(message) => (PartialStatus::Partial, message.clone()),
        None => (PartialStatus::Complete, String::new()),
    }
}

fn time_series(series: Series, intervals: &Intervals) -> TimeSeries {
    let samples = series.values.iter().enumerate().filter(|(_, value)| !value.is_nan());
    let samples = samples.map(|(index, value)| Sample { timestamp_ms: intervals.timestamp_ms(index), value: *value });
    TimeSeries {
        labels: series.labels.into_iter().map(label).collect(),
        samples: samples.collect(),
        exemplars: series.exemplars.into_iter().map(exemplar).collect(),
    }
}

fn exemplar(exemplar: query::Exemplar) -> Exemplar {
    Exemplar {
        labels: exemplar.labels.into_iter().map(label).collect(),
        value: exemplar.value,
        timestamp_ms: i64::try_from(exemplar.start_ns / 1_000_000).unwrap_or(i64::MAX),
    }
}

fn label((name, value): Label) -> KeyValue {
    KeyValue { key: name, value: Some(value.to_any()), key_strindex: 0 }
}
