//! `/api/overrides`: what a tenant sets itself.

use std::sync::Arc;

use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use http::header::{ALLOW, CONTENT_TYPE, ETAG, HeaderName, IF_MATCH};
use http::{HeaderMap, HeaderValue, Method, StatusCode};

use super::ApiState;
use super::error::ApiError;
use super::params::Params;
use crate::overrides::{MAX_BYTES, Overrides, OverridesError, Said};
use crate::telemetry::chain;
use crate::tenant::TENANT_HEADER;

const TEXT: (HeaderName, HeaderValue) = (CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));

/// What is done where it may block.
type Job = Box<dyn FnOnce() -> Result<Response, OverridesError> + Send>;

/// Reads, replaces, changes or forgets what the tenant of the request has set.
pub(super) async fn call(State(state): State<ApiState>, request: Request) -> Result<Response, ApiError> {
    let overrides = state.overrides.clone().filter(|overrides| overrides.has_api()).ok_or(ApiError::NoSuchPath)?;
    let (head, body) = request.into_parts();
    let tenant = state.tenancy.tenant(head.headers.get(TENANT_HEADER).map(HeaderValue::as_bytes))?;
    let job: Job = match head.method {
        Method::GET | Method::HEAD => {
            let all = match Params::of(&head.uri)?.get("scope") {
                None | Some("api") => false,
                Some("merged") => true,
                Some(other) => return Err(ApiError::bad(format!("invalid scope: {other}, expecting api or merged"))),
            };
            Box::new(move || Ok(shown(&if all { overrides.merged(&tenant)? } else { overrides.get(&tenant)? })))
        }
        Method::POST | Method::PATCH | Method::DELETE => {
            let expected = version(&head.headers);
            if expected.is_none() && head.method != Method::PATCH {
                let why = "must specify If-Match header";
                return Ok((StatusCode::PRECONDITION_REQUIRED, [TEXT], why).into_response());
            }
            // One more than is read: the reader says what is too long.
            let Ok(body) = to_bytes(body, MAX_BYTES + 1).await else {
                let why = OverridesError::Limits(crate::overrides::LimitsError::TooLong);
                return Ok((StatusCode::PAYLOAD_TOO_LARGE, [TEXT], why.to_string()).into_response());
            };
            changing(overrides, head.method, tenant, expected, body)
        }
        _ => {
            let allowed = (ALLOW, HeaderValue::from_static("GET, POST, PATCH, DELETE"));
            return Ok((StatusCode::METHOD_NOT_ALLOWED, [allowed]).into_response());
        }
    };
    let done = tokio::task::spawn_blocking(job).await.map_err(|_| ApiError::Stopped)?;
    Ok(done.unwrap_or_else(|error| refused(&error)))
}

fn changing(overrides: Arc<Overrides>, method: Method, tenant: Arc<str>, expected: Option<u64>, body: Bytes) -> Job {
    match (method, expected) {
        (Method::POST, Some(expected)) => Box::new(move || {
            let version = overrides.set(&tenant, expected, &body)?;
            Ok([(ETAG, HeaderValue::from(version))].into_response())
        }),
        (Method::DELETE, Some(expected)) => Box::new(move || {
            overrides.delete(&tenant, expected)?;
            Ok(StatusCode::OK.into_response())
        }),
        (_, expected) => Box::new(move || Ok(shown(&overrides.patch(&tenant, expected, &body)?))),
    }
}

/// The version that must be there, if one is named. What is no version is one that never is.
fn version(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(IF_MATCH)?.to_str().unwrap_or_default();
    Some(text.trim_matches('"').parse().unwrap_or(u64::MAX))
}

fn shown(said: &Said) -> Response {
    let headers =
        [(CONTENT_TYPE, HeaderValue::from_static("application/json")), (ETAG, HeaderValue::from(said.version))];
    (headers, said.limits.to_string()).into_response()
}

fn refused(error: &OverridesError) -> Response {
    let status = match error {
        OverridesError::NotThere => return StatusCode::NOT_FOUND.into_response(),
        OverridesError::Version => StatusCode::PRECONDITION_FAILED,
        OverridesError::Limits(_) | OverridesError::Setting(_) => StatusCode::BAD_REQUEST,
        OverridesError::Starting => StatusCode::SERVICE_UNAVAILABLE,
        OverridesError::Store(_) => {
            tracing::error!(error = chain(error), "overrides cannot be read or written");
            StatusCode::SERVICE_UNAVAILABLE
        }
        OverridesError::Unreadable { .. } => {
            tracing::error!(error = chain(error), "overrides cannot be read");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    // What is behind an error of the store is for the log.
    let text = if status.is_client_error() { chain(error) } else { error.to_string() };
    (status, [TEXT], text).into_response()
}
