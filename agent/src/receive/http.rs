//! OTLP over HTTP: `POST /v1/traces`, in protobuf or JSON.

use std::io::Read;

use axum::{
    Extension,
    body::{Body, Bytes},
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use coati_common::otlp_json;
use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER as RETRY_AFTER_HEADER},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message as _;

use super::{RETRY_AFTER, Refusal, TRACES_ONLY, grpc, relay::Relay, sender::Connection};

/// What the routes share.
#[derive(Clone, Debug)]
pub(super) struct Http {
    pub(super) relay: Relay,
    pub(super) max_request_bytes: usize,
}

/// How a body is written, the sender's and the answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Format {
    Protobuf,
    Json,
}

impl Format {
    /// By the media type; parameters such as `charset` do not matter.
    fn of(headers: &HeaderMap) -> Option<Self> {
        let media_type = headers.get(CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim();
        if media_type.eq_ignore_ascii_case("application/x-protobuf") {
            Some(Self::Protobuf)
        } else if media_type.eq_ignore_ascii_case("application/json") {
            Some(Self::Json)
        } else {
            None
        }
    }

    const fn media_type(self) -> &'static str {
        match self {
            Self::Protobuf => "application/x-protobuf",
            Self::Json => "application/json",
        }
    }

    /// A `google.rpc.Status`.
    fn status(self, code: tonic::Code, message: &str) -> Vec<u8> {
        let code = code as i32;
        match self {
            Self::Protobuf => {
                tonic_types::Status { code, message: message.to_owned(), details: Vec::new() }.encode_to_vec()
            }
            Self::Json => serde_json::json!({ "code": code, "message": message }).to_string().into_bytes(),
        }
    }
}

/// `POST /v1/traces`.
pub(super) async fn traces(
    State(http): State<Http>,
    Extension(connection): Extension<Connection>,
    request: Request,
) -> Response {
    let (head, body) = request.into_parts();
    let Some(format) = Format::of(&head.headers) else {
        let message = "unsupported media type, supported: [application/json, application/x-protobuf]";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, message).into_response();
    };
    let encoding = head.headers.get(CONTENT_ENCODING).map_or(&b"identity"[..], HeaderValue::as_bytes);
    let unpack: Unpack = match encoding {
        b"identity" => |body, limit| if body.len() > limit { Err(Refusal::TooLarge { limit }) } else { Ok(body) },
        b"gzip" => |body, limit| read_all(flate2::read::MultiGzDecoder::new(&body[..]), limit),
        b"zstd" => |body, limit| {
            let decoder = zstd::stream::read::Decoder::new(&body[..]);
            read_all(decoder.map_err(|error| Refusal::Malformed(error.to_string()))?, limit)
        },
        _ => {
            let message = "unsupported content encoding, supported: [gzip, zstd, identity]";
            let body = format.status(tonic::Code::InvalidArgument, message);
            return (StatusCode::UNSUPPORTED_MEDIA_TYPE, [(CONTENT_TYPE, format.media_type())], body).into_response();
        }
    };
    match http.export(format, body, unpack, &connection).await {
        Ok(answer) => (StatusCode::OK, [(CONTENT_TYPE, format.media_type())], success(format, answer)).into_response(),
        Err(refusal) => {
            http.relay.refused(&refusal);
            failure(format, &refusal)
        }
    }
}

/// Metrics and logs, and whatever else.
pub(super) async fn others(request: Request) -> Response {
    let is_otlp = matches!(request.uri().path(), "/v1/metrics" | "/v1/logs");
    let message = if is_otlp { TRACES_ONLY } else { "OTLP is received at /v1/traces" };
    match Format::of(request.headers()) {
        Some(format) => {
            let body = format.status(tonic::Code::Unimplemented, message);
            (StatusCode::NOT_FOUND, [(CONTENT_TYPE, format.media_type())], body).into_response()
        }
        None => (StatusCode::NOT_FOUND, message).into_response(),
    }
}

/// Undoes the compression, up to a number of bytes.
type Unpack = fn(Bytes, usize) -> Result<Bytes, Refusal>;

fn read_all(reader: impl Read, limit: usize) -> Result<Bytes, Refusal> {
    let mut bytes = Vec::new();
    // One more than allowed tells what is too much from what is just enough.
    let read = reader.take(limit as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| Refusal::Malformed(error.to_string()))?;
    if bytes.len() > limit { Err(Refusal::TooLarge { limit }) } else { Ok(bytes.into()) }
}

impl Http {
    async fn export(
        &self,
        format: Format,
        body: Body,
        unpack: Unpack,
        connection: &Connection,
    ) -> Result<ExportTraceServiceResponse, Refusal> {
        let limit = self.max_request_bytes;
        let packed = Limited::new(body, limit).collect().await.map_err(|error| {
            if error.is::<LengthLimitError>() {
                Refusal::TooLarge { limit }
            } else {
                Refusal::Malformed(error.to_string())
            }
        })?;
        let body = unpack(packed.to_bytes(), limit)?;
        let request = match format {
            Format::Protobuf => {
                ExportTraceServiceRequest::decode(body).map_err(|error| Refusal::Malformed(error.to_string()))?
            }
            Format::Json => otlp_json::decode(&body).map_err(|error| Refusal::Malformed(error.to_string()))?,
        };
        self.relay.export(request, connection).await
    }
}

fn success(format: Format, answer: ExportTraceServiceResponse) -> Vec<u8> {
    match format {
        Format::Protobuf => answer.encode_to_vec(),
        Format::Json => {
            let partial = answer.partial_success.unwrap_or_default();
            let mut fields = serde_json::Map::new();
            if partial.rejected_spans != 0 {
                // 64-bit numbers are text in protobuf's JSON.
                fields.insert("rejectedSpans".to_owned(), partial.rejected_spans.to_string().into());
                fields.insert("errorMessage".to_owned(), partial.error_message.into());
            }
            serde_json::json!({ "partialSuccess": fields }).to_string().into_bytes()
        }
    }
}

fn failure(format: Format, refusal: &Refusal) -> Response {
    let status = match refusal {
        Refusal::Malformed(_) => StatusCode::BAD_REQUEST,
        Refusal::TooLarge { .. } | Refusal::TooMany { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        Refusal::Full => StatusCode::TOO_MANY_REQUESTS,
        Refusal::TooSlow | Refusal::Ending => StatusCode::SERVICE_UNAVAILABLE,
    };
    let body = format.status(grpc::status(refusal).code(), &refusal.to_string());
    let mut response = (status, [(CONTENT_TYPE, format.media_type())], body).into_response();
    if refusal.is_retryable() {
        response.headers_mut().insert(RETRY_AFTER_HEADER, HeaderValue::from(RETRY_AFTER.as_secs()));
    }
    response
}
