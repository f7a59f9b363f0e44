//! `/api/search`.

use axum::extract::State;
use axum::response::Response;
use http::header::HeaderName;
use http::{HeaderMap, Uri};

use super::ApiState;
use super::error::ApiError;
use super::params::Params;
use super::tempopb::{SearchMetrics, SearchResponse, ServiceStats, Span, SpanSet, TraceSearchMetadata};
use super::work::{PARTIAL, Work};
use crate::config::QueryConfig;
use crate::query::{self, Order, OrderBy, Plan, Progress, SearchRequest, SpanMatch, SpansetMatch, TraceMatch, Window};
use crate::tenant::Tenants;
use crate::traceql::{self, TraceQlError};

/// How many traces match, if `total=true` asks for it.
const TOTAL_TRACES: HeaderName = HeaderName::from_static("coati-total-traces");

const DEFAULT_LIMIT: usize = 20;
const MAX_LIMIT: usize = 262_144;
const DEFAULT_SPANS_PER_SPANSET: usize = 3;
const MAX_SPANS_PER_SPANSET: usize = 100;
/// Longest window, seconds.
const MAX_RANGE: u64 = 168 * 3_600;

pub(super) async fn search(State(state): State<ApiState>, uri: Uri, headers: HeaderMap) -> Result<Response, ApiError> {
    let job = |state: &ApiState, tenants: &Tenants, params: &Params, work: &Work| {
        let request = request(params, &state.limits)?;
        let result = state.query(tenants, work, |view| query::search(view, &request, work.stop()))?;
        // The message has no field for these, and clients refuse fields that they do not know.
        if result.skipped > 0 {
            work.note(PARTIAL, &format!("{} blocks cannot be read", result.skipped));
        }
        if let Some(total) = result.total {
            work.note(TOTAL_TRACES, &total.to_string());
        }
        let metrics = metrics(Progress::whole(result.inspected));
        Ok(SearchResponse { traces: result.traces.into_iter().map(trace).collect(), metrics: Some(metrics) })
    };
    state.answer(uri, &headers, job).await
}

/// Reads and checks the parameters, in Tempo's order; then those that Tempo does not have.
pub(super) fn request(params: &Params, limits: &QueryConfig) -> Result<SearchRequest, ApiError> {
    let window = params.window()?;
    let plan = params.get("q").map(plan_of).transpose()?;
    if plan.is_some() && params.get("tags").is_some() {
        return Err(ApiError::bad("invalid request: can't specify tags and q in the same query"));
    }
    let show_spans = plan.is_some();
    let tags = query::expression_of_tags(&params.tags()?);
    let plan = match tags {
        Some(tags) => Some(Plan::of_spansets(tags).map_err(|error| ApiError::bad(format!("invalid tags: {error}")))?),
        None => plan,
    };
    let min_duration_ns = params.duration("minDuration")?;
    let max_duration_ns = params.duration("maxDuration")?;
    if let (Some(min), Some(max)) = (min_duration_ns, max_duration_ns)
        && min > max
    {
        return Err(ApiError::bad("invalid maxDuration: must be greater than minDuration"));
    }
    let limit = params.limit()?.unwrap_or(DEFAULT_LIMIT);
    let spans_per_spanset = params.spans_per_spanset()?.unwrap_or(DEFAULT_SPANS_PER_SPANSET);
    if limit > MAX_LIMIT {
        return Err(ApiError::bad(format!("limit {limit} exceeds max limit {MAX_LIMIT}")));
    }
    if let Window { start: Some(start), end: Some(end) } = window
        && end - start > MAX_RANGE
    {
        return Err(ApiError::bad(format!(
            "range specified by start and end exceeds 168h0m0s. received start={start} end={end}"
        )));
    }
    if spans_per_spanset > MAX_SPANS_PER_SPANSET {
        return Err(ApiError::bad(format!(
            "spans per span set exceeds {MAX_SPANS_PER_SPANSET}. received {spans_per_spanset}"
        )));
    }
    let order = order(params)?;
    if order.by == OrderBy::Matched && !show_spans {
        return Err(ApiError::bad("invalid orderBy: matched needs a query (q)"));
    }
    let offset = params.offset()?;
    if offset.saturating_add(limit) > MAX_LIMIT {
        return Err(ApiError::bad(format!("offset {offset} and limit {limit} exceed max limit {MAX_LIMIT}")));
    }
    Ok(SearchRequest {
        order,
        offset,
        count_all: params.flag("total")?,
        plan,
        show_spans,
        window,
        min_duration_ns,
        max_duration_ns,
        limit,
        spans_per_spanset,
        max_bytes: limits.max_answer_bytes.as_usize(),
    })
}

/// `orderBy` and `order`: the newest, longest, or those with the most matching spans, unless `order=asc`.
fn order(params: &Params) -> Result<Order, ApiError> {
    let by = match params.get("orderBy") {
        None | Some("start") => OrderBy::Start,
        Some("duration") => OrderBy::Duration,
        Some("matched") => OrderBy::Matched,
        Some(other) => {
            return Err(ApiError::bad(format!("invalid orderBy: {other}, expecting start, duration or matched")));
        }
    };
    match params.get("order") {
        None | Some("desc") => Ok(Order { by, ascending: false }),
        Some("asc") => Ok(Order { by, ascending: true }),
        Some(other) => Err(ApiError::bad(format!("invalid order: {other}, expecting asc or desc"))),
    }
}

fn plan_of(text: &str) -> Result<Plan, ApiError> {
    let query = traceql::parse(text).map_err(|error| match error {
        TraceQlError::TooLong { .. } => ApiError::bad(error.to_string()),
        error => ApiError::bad(format!("invalid TraceQL query: {}", error.shown_in(text))),
    })?;
    Plan::new(&query).map_err(|error| ApiError::bad(format!("invalid TraceQL query: {error}")))
}

/// What was looked at.
pub(super) fn metrics(Progress { inspected, done, total, .. }: Progress) -> SearchMetrics {
    SearchMetrics {
        inspected_traces: inspected.traces,
        inspected_bytes: inspected.bytes,
        completed_jobs: done,
        total_jobs: total,
        inspected_spans: inspected.spans,
        ..SearchMetrics::default()
    }
}

pub(super) fn trace(found: TraceMatch) -> TraceSearchMetadata {
    let (root_service_name, root_trace_name) = match found.root {
        Some(root) => (root.service_name.to_string(), root.span_name.to_string()),
        None => ("<root span not yet received>".to_owned(), String::new()),
    };
    let span_sets: Vec<_> = found.spansets.into_iter().map(span_set).collect();
    let stats = found.services.into_iter();
    TraceSearchMetadata {
        trace_id: found.id.to_string().trim_start_matches('0').to_owned(),
        root_service_name,
        root_trace_name,
        start_time_unix_nano: found.start_ns,
        duration_ms: u32::try_from(found.duration_ns / 1_000_000).unwrap_or(u32::MAX),
        span_set: span_sets.first().cloned(),
        span_sets,
        service_stats: stats
            .map(|(name, stats)| (name, ServiceStats { span_count: stats.spans, error_count: stats.errors }))
            .collect(),
    }
}

fn span_set(set: SpansetMatch) -> SpanSet {
    let span = |span: SpanMatch| Span {
        span_id: span.id,
        name: span.name,
        start_time_unix_nano: span.start_ns,
        duration_nanos: span.duration_ns,
        attributes: span.attributes,
    };
    SpanSet { spans: set.spans.into_iter().map(span).collect(), matched: set.matched, attributes: set.attributes }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over HTTP/1.1 a URI ends at 64 KiB; other ways lead here too.
    #[test]
    fn queries_that_are_too_long_are_refused() {
        let error = plan_of(&"{".repeat(131_073)).unwrap_err().to_string();
        assert_eq!(
            error,
            "TraceQL expression exceeds the configured maximum size of 131072 bytes. received 131073 bytes"
        );
    }
}
