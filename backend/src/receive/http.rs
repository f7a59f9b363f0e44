//! OTLP over HTTP: `POST /v1/traces`.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prost::Message;
use tonic::Code;

use super::ExportError;
use super::budget::{Metered, ReadError, Share};
use super::compression::{ContentEncoding, DecompressError, decompress};
use super::ingest::Ingest;
use super::prepare::Format;
use crate::telemetry::{RequestLabels, route_label};
use crate::tenant::{TENANT_HEADER, Tenancy, TenantError};

const PATH: &str = "/v1/traces";

#[derive(Clone)]
struct Receiver {
    ingest: Arc<Ingest>,
    tenancy: Tenancy,
    durations: Family<RequestLabels, Histogram>,
}

/// The routes of the OTLP HTTP port; `durations` is told how long each request took.
pub fn router(ingest: Arc<Ingest>, tenancy: Tenancy, durations: Family<RequestLabels, Histogram>) -> Router {
    Router::new().route(PATH, post(export)).with_state(Receiver { ingest, tenancy, durations })
}

async fn export(State(receiver): State<Receiver>, request: Request) -> Response {
    let started = Instant::now();
    let response = match receiver.export(request).await {
        Ok(response) => response,
        Err(refusal) => {
            receiver.ingest.refused(refusal.reason);
            refusal.into_response()
        }
    };
    let labels = RequestLabels {
        method: "POST".to_owned(),
        route: route_label(PATH),
        status_code: response.status().as_str().to_owned(),
    };
    receiver.durations.get_or_create(&labels).observe(started.elapsed().as_secs_f64());
    response
}

impl Receiver {
    async fn export(&self, request: Request) -> Result<Response, Refusal> {
        let (head, body) = request.into_parts();
        let format = format(&head.headers).ok_or_else(Refusal::media_type)?;
        let refuse =
            |status, code, reason, message: String| Refusal { format: Some(format), status, code, reason, message };
        let encoding = header(&head.headers, &CONTENT_ENCODING);
        let encoding = ContentEncoding::parse(encoding).ok_or_else(|| {
            let name = String::from_utf8_lossy(encoding.unwrap_or_default());
            let message = format!("unsupported content encoding {name:?}, supported: [gzip, zstd, identity]");
            refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, "media_type", message)
        })?;
        let tenant = header(&head.headers, &HeaderName::from_static(TENANT_HEADER));
        let tenant = self.tenancy.tenant(tenant).map_err(|error| {
            let (status, code) = match error {
                TenantError::Missing => (StatusCode::UNAUTHORIZED, Code::Unauthenticated),
                TenantError::Invalid | TenantError::Multiple | TenantError::TooMany => {
                    (StatusCode::BAD_REQUEST, Code::InvalidArgument)
                }
            };
            refuse(status, code, "tenant", error.to_string())
        })?;
        let share = self.ingest.budget().share();
        let body = match self.read(&head.headers, body, encoding, &share).await {
            Ok(body) => body,
            Err(BodyError::Export(error)) => {
                self.ingest.refused(error.reason());
                return Ok(failure(format, &error));
            }
            Err(BodyError::TooLarge(message)) => {
                return Err(refuse(StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, "too_large", message));
            }
            Err(BodyError::Malformed(message)) => {
                return Err(refuse(StatusCode::BAD_REQUEST, Code::InvalidArgument, "malformed", message));
            }
        };
        match self.ingest.export_read(tenant, body, format, share).await {
            Ok(answer) => Ok(success(format, &answer)),
            Err(error) => Ok(failure(format, &error)),
        }
    }

    /// The whole body, decompressed; one that becomes too large, or for which there is no room, is not read to its end.
    async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
        encoding: ContentEncoding,
        share: &Share,
    ) -> Result<Bytes, BodyError> {
        let limit = self.ingest.max_request_bytes();
        let announced = header(headers, &CONTENT_LENGTH).and_then(|length| str::from_utf8(length).ok()?.parse().ok());
        if let Some(length) = announced {
            if length > limit {
                let message = format!("request of {length} bytes exceeds the limit of {limit} bytes");
                return Err(BodyError::TooLarge(message));
            }
            self.ingest.budget().check(length)?;
        }
        let body = Metered::new(body, share.clone(), self.ingest.read_timeout());
        let body = Limited::new(body, limit).collect().await.map_err(|error| match error.downcast() {
            Ok(error) => match *error {
                ReadError::Export(error) => BodyError::Export(error),
                error @ ReadError::Transport(_) => BodyError::Malformed(error.to_string()),
            },
            Err(error) if error.is::<LengthLimitError>() => {
                BodyError::TooLarge(format!("request exceeds the limit of {limit} bytes"))
            }
            Err(error) => BodyError::Malformed(format!("body cannot be read: {error}")),
        })?;
        let body = body.to_bytes();
        if encoding == ContentEncoding::Identity {
            return Ok(body);
        }
        let share = share.clone();
        let decompressed = tokio::task::spawn_blocking(move || {
            // Packed and unpacked bytes are in memory together for a while.
            let packed = body.len();
            decompress(body, encoding, limit, &mut |bytes| share.grow_to(packed + bytes))
        });
        match decompressed.await {
            Ok(Ok(body)) => Ok(body),
            Ok(Err(DecompressError::Refused(error))) => Err(BodyError::Export(error)),
            Ok(Err(error @ DecompressError::TooLarge { .. })) => Err(BodyError::TooLarge(error.to_string())),
            Ok(Err(error @ DecompressError::Malformed(_))) => Err(BodyError::Malformed(error.to_string())),
            Err(error) => Err(BodyError::Malformed(format!("body cannot be decompressed: {error}"))),
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("{0}")]
    TooLarge(String),
    #[error("{0}")]
    Malformed(String),
}

/// A request that did not reach [`Ingest`].
struct Refusal {
    /// `None` if the sender would not understand either.
    format: Option<Format>,
    status: StatusCode,
    code: Code,
    reason: &'static str,
    message: String,
}

impl Refusal {
    /// The text is Tempo's.
    fn media_type() -> Self {
        Self {
            format: None,
            status: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            code: Code::InvalidArgument,
            reason: "media_type",
            message: "415 unsupported media type, supported: [application/json, application/x-protobuf]".to_owned(),
        }
    }

    fn into_response(self) -> Response {
        match self.format {
            None => (self.status, self.message).into_response(),
            Some(format) => (self.status, status_body(format, self.code, self.message)).into_response(),
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    headers.get(name).map(HeaderValue::as_bytes)
}

/// By the media type; parameters such as `charset` do not matter.
fn format(headers: &HeaderMap) -> Option<Format> {
    let content_type = header(headers, &CONTENT_TYPE)?;
    let media_type = content_type.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    if media_type.eq_ignore_ascii_case(b"application/x-protobuf") {
        Some(Format::Protobuf)
    } else if media_type.eq_ignore_ascii_case(b"application/json") {
        Some(Format::Json)
    } else {
        None
    }
}

fn success(format: Format, answer: &ExportTraceServiceResponse) -> Response {
    let body = match format {
        Format::Protobuf => answer.encode_to_vec(),
        Format::Json => {
            let partial = answer.partial_success.clone().unwrap_or_default();
            let mut fields = serde_json::Map::new();
            if partial.rejected_spans != 0 {
                // 64-bit numbers are text in protobuf's JSON.
                fields.insert("rejectedSpans".to_owned(), partial.rejected_spans.to_string().into());
                fields.insert("errorMessage".to_owned(), partial.error_message.into());
            }
            serde_json::json!({ "partialSuccess": fields }).to_string().into_bytes()
        }
    };
    typed(format, body).into_response()
}

fn failure(format: Format, error: &ExportError) -> Response {
    let status = match error.code() {
        Code::ResourceExhausted if error.retry_after().is_none() => StatusCode::PAYLOAD_TOO_LARGE,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let mut response = (status, status_body(format, error.code(), error.to_string())).into_response();
    if let Some(delay) = error.retry_after() {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(delay.as_secs()));
    }
    response
}

type TypedBody = ([(HeaderName, &'static str); 1], Vec<u8>);

/// A `google.rpc.Status` in the sender's format.
fn status_body(format: Format, code: Code, message: String) -> TypedBody {
    let code = code as i32;
    let body = match format {
        Format::Protobuf => tonic_types::Status { code, message, details: Vec::new() }.encode_to_vec(),
        Format::Json => serde_json::json!({ "code": code, "message": message }).to_string().into_bytes(),
    };
    typed(format, body)
}

fn typed(format: Format, body: Vec<u8>) -> TypedBody {
    let content_type = match format {
        Format::Protobuf => "application/x-protobuf",
        Format::Json => "application/json",
    };
    ([(CONTENT_TYPE, content_type)], body)
}
