//! A trace by its id.

use axum::extract::{Path, State};
use axum::response::Response;
use http::{HeaderMap, HeaderValue, Uri};
use opentelemetry_proto::tonic::trace::v1::TracesData;

use super::ApiState;
use super::error::ApiError;
use super::llm;
use super::params::{Params, trace_id};
use super::part::Part;
use super::prune::Pruning;
use super::render::TraceV1;
use super::respond::Format;
use super::tempopb::{PartialStatus, TraceByIdMetrics, TraceByIdResponse};
use super::work::PARTIAL;
use crate::live::{Trace, TraceId};
use crate::query;
use crate::tenant::Tenants;

/// `/api/traces/{id}`: 404 without a word if there is none.
pub(super) async fn by_id(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let format = Format::of(&headers);
    let (tenants, id) = asked(&state, &id, &uri, &headers)?;
    let answer = state.run(move |state, _| {
        let found = state.find(&tenants, &id)?;
        let skipped = found.skipped;
        let trace = match found.trace {
            Some(trace) => trace,
            // It may well exist.
            None if found.skipped > 0 => return Err(ApiError::Unreadable),
            None => return Err(ApiError::NoSuchTrace),
        };
        let data = traces_data(&trace);
        let mut response = format.answer_as(&data, &TraceV1(&data));
        if skipped > 0 {
            response
                .headers_mut()
                .insert(PARTIAL, HeaderValue::from_static("blocks that may have more cannot be read"));
        }
        Ok(response)
    });
    answer.await?
}

/// `/api/v2/traces/{id}`: an empty trace if there is none; with `q` only the spans that match, and those around
/// them; with `span_pruning` one span for many that are alike.
pub(super) async fn by_id_v2(
    State(state): State<ApiState>,
    Path(id): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let format = Format::of(&headers);
    let (tenants, id) = asked(&state, &id, &uri, &headers)?;
    let params = Params::of(&uri)?;
    let (part, pruning) = (Part::of(&params)?, Pruning::of(&params)?);
    let answer = state.run(move |state, _| {
        let found = state.find(&tenants, &id)?;
        let trace = found.trace.as_deref();
        let metrics = TraceByIdMetrics { inspected_bytes: trace.map_or(0, |trace| trace.bytes as u64) };
        let (status, message) = match found.skipped {
            0 => (PartialStatus::Complete, String::new()),
            skipped => (PartialStatus::Partial, format!("{skipped} blocks that may have more of it cannot be read")),
        };
        let mut data = trace.map(traces_data).unwrap_or_default();
        if let (Some(part), Some(trace)) = (part, &found.trace) {
            part.cut(trace, &mut data)?;
        }
        if let Some(pruning) = pruning {
            pruning.prune(&mut data);
        }
        if format.llm {
            return Ok(format.answer_llm(&llm::trace(&data, metrics)));
        }
        Ok(format.answer(&TraceByIdResponse {
            trace: Some(data),
            metrics: Some(metrics),
            status: status as i32,
            message,
        }))
    });
    answer.await?
}

/// `start` and `end` tell where a trace lies, to save work; it is found without them.
fn asked(state: &ApiState, id: &str, uri: &Uri, headers: &HeaderMap) -> Result<(Tenants, TraceId), ApiError> {
    let tenants = state.tenants(headers)?;
    let id = trace_id(id)?;
    Params::of(uri)?.window()?;
    Ok((tenants, id))
}

/// The trace as OTLP. Every part has all its messages, if empty: clients look into them without asking.
fn traces_data(trace: &Trace) -> TracesData {
    let mut data = query::traces_data(trace);
    let scopes = data.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans);
    for span in scopes.flat_map(|scope| &mut scope.spans) {
        span.status.get_or_insert_default();
    }
    data
}
