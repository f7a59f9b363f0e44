//! `POST /api/v2/traces/diff`: two traces compared.

use axum::body::Bytes;
use axum::extract::State;
use axum::response::Response;
use http::HeaderMap;
use opentelemetry_proto::tonic::trace::v1::TracesData;
use serde::Deserialize;

use super::ApiState;
use super::error::ApiError;
use super::params::trace_id;
use super::respond::Format as Answer;
use crate::diff::{Format, diff};
use crate::live::TraceId;
use crate::query;
use crate::tenant::Tenants;

/// `{"base":{"traceId":"…"},"compare":{"traceId":"…"},"format":"trace-patch-v0"}`.
#[derive(Deserialize)]
struct Request {
    base: OneTrace,
    compare: OneTrace,
    #[serde(default)]
    format: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OneTrace {
    #[serde(default)]
    trace_id: String,
    /// Seconds since the epoch: as for a trace by its id, to save work; it is found without them.
    start: Option<i64>,
    end: Option<i64>,
}

/// What makes the trace `compare` of the trace `base`. The media type of the body does not matter.
pub(super) async fn compare(
    State(state): State<ApiState>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let tenants = state.tenants(&headers)?;
    let invalid = |why: String| ApiError::bad(format!("invalid trace diff request: {why}"));
    let request: Request = serde_json::from_slice(&body).map_err(|error| invalid(error.to_string()))?;
    let format = match request.format.as_str() {
        "" => Format::default(),
        name => Format::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let known = Format::ALL.map(Format::name).join(", ");
            invalid(format!("format {name:?} is none of {known}"))
        })?,
    };
    let [base, compare] = [("base", &request.base), ("compare", &request.compare)].map(|(side, of)| {
        if of.trace_id.is_empty() {
            return Err(invalid(format!("{side}.traceId is missing")));
        }
        if of.start.zip(of.end).is_some_and(|(start, end)| start > end) {
            return Err(invalid(format!("{side}.start is after {side}.end")));
        }
        trace_id(&of.trace_id)
    });
    let (base, compare) = (base?, compare?);
    let answer = Answer::of(&headers);
    let done = state.run(move |state, _| {
        let [base, compare] = [base, compare].map(|id| state.whole_trace(&tenants, id));
        Ok(answer.answer_json(diff(&base?, &compare?, format)?))
    });
    done.await?
}

impl ApiState {
    fn whole_trace(&self, tenants: &Tenants, id: TraceId) -> Result<TracesData, ApiError> {
        let found = self.find(tenants, &id)?;
        match found.trace {
            Some(_) if found.skipped > 0 => Err(ApiError::PartialTrace(id)),
            Some(trace) => Ok(query::traces_data(&trace)),
            None if found.skipped > 0 => Err(ApiError::Unreadable),
            None => Err(ApiError::NoTraceToCompare(id)),
        }
    }
}
