//! OTLP over gRPC.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::{Buf, Bytes};
use http_body_util::BodyExt as _;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::SERVICE_NAME;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prost::Message;
use tonic::body::Body;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::{BoxFuture, Service};
use tonic::metadata::MetadataValue;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};

use super::ExportError;
use super::budget::{Metered, ReadError, Share};
use super::ingest::Ingest;
use super::prepare::Format;
use crate::access::Door;
use crate::telemetry::{RequestLabels, route_label};
use crate::tenant::{TENANT_HEADER, Tenancy, TenantError};

const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// `opentelemetry.proto.collector.trace.v1.TraceService`.
///
/// Not the generated server: that one hands the decoded message over, and the log keeps the sender's own bytes.
#[derive(Clone)]
pub struct GrpcReceiver {
    door: Option<Arc<Door>>,
    ingest: Arc<Ingest>,
    tenancy: Tenancy,
    durations: Family<RequestLabels, Histogram>,
}

impl GrpcReceiver {
    /// The service; `durations` is told how long each call took.
    pub fn new(ingest: Arc<Ingest>, tenancy: Tenancy, durations: Family<RequestLabels, Histogram>) -> Self {
        Self { door: None, ingest, tenancy, durations }
    }

    /// Asks at this door who may call.
    #[must_use]
    pub fn behind(self, door: Arc<Door>) -> Self {
        Self { door: Some(door), ..self }
    }

    async fn call(self, request: http::Request<Body>) -> http::Response<Body> {
        let started = Instant::now();
        let share = self.ingest.budget().share();
        let mut grpc = Grpc::new(RawRequest { share: share.clone() })
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd)
            .max_decoding_message_size(self.ingest.max_request_bytes());
        let export = Export { ingest: Arc::clone(&self.ingest), tenancy: self.tenancy, share: share.clone() };
        let (ingest, limit) = (Arc::clone(&self.ingest), self.ingest.read_timeout());
        let request = request.map(|body| {
            Metered::new(body, share, limit).map_err(move |error| match error {
                ReadError::Export(error) => {
                    ingest.refused(error.reason());
                    status(&error)
                }
                ReadError::Transport(error) => Status::from_error(error),
            })
        });
        let response = too_large_is_exhausted(grpc.unary(export, request).await, &self.ingest);
        let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
        let labels =
            RequestLabels { method: "gRPC".to_owned(), route: route_label(METHOD), status_code: format!("{code:?}") };
        self.durations.get_or_create(&labels).observe(started.elapsed().as_secs_f64());
        response
    }
}

impl NamedService for GrpcReceiver {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for GrpcReceiver {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let receiver = self.clone();
        Box::pin(async move {
            let (mut head, body) = request.into_parts();
            if let Some(door) = &receiver.door {
                let peer = head.extensions.get().copied();
                if let Err(response) = door.check(&mut head, peer) {
                    return Ok(response.map(Body::new));
                }
            }
            let request = http::Request::from_parts(head, body);
            if request.uri().path() != METHOD {
                return Ok(Status::unimplemented("unknown method").into_http());
            }
            Ok(receiver.call(request).await)
        })
    }
}

/// tonic refuses a message that is too large with `OUT_OF_RANGE`; OTLP senders expect `RESOURCE_EXHAUSTED`. Nothing else
/// here answers `OUT_OF_RANGE`.
fn too_large_is_exhausted(response: http::Response<Body>, ingest: &Ingest) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange => {
            ingest.refused("too_large");
            Status::resource_exhausted(status.message()).into_http()
        }
        _ => response,
    }
}

struct Export {
    ingest: Arc<Ingest>,
    tenancy: Tenancy,
    share: Share,
}

impl UnaryService<Bytes> for Export {
    type Response = ExportTraceServiceResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let header = request.metadata().get(TENANT_HEADER).map(MetadataValue::as_bytes);
        let tenant = self.tenancy.tenant(header);
        let (ingest, share) = (Arc::clone(&self.ingest), self.share.clone());
        Box::pin(async move {
            let tenant = tenant.map_err(|error| {
                ingest.refused("tenant");
                tenant_status(error)
            })?;
            let exported = ingest.export_read(tenant, request.into_inner(), Format::Protobuf, share).await;
            exported.map(Response::new).map_err(|error| status(&error))
        })
    }
}

fn tenant_status(error: TenantError) -> Status {
    match error {
        TenantError::Missing => Status::unauthenticated(error.to_string()),
        TenantError::Invalid | TenantError::Multiple | TenantError::TooMany => {
            Status::invalid_argument(error.to_string())
        }
    }
}

/// Without `RetryInfo` senders take `RESOURCE_EXHAUSTED` for final.
fn status(error: &ExportError) -> Status {
    match error.retry_after() {
        None => Status::new(error.code(), error.to_string()),
        Some(delay) => {
            let details = ErrorDetails::with_retry_info(Some(delay));
            Status::with_error_details(error.code(), error.to_string(), details)
        }
    }
}

/// Requests as the bytes that they are, responses as messages.
#[derive(Clone, Debug)]
struct RawRequest {
    share: Share,
}

impl Codec for RawRequest {
    type Encode = ExportTraceServiceResponse;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        self.clone()
    }

    fn decoder(&mut self) -> Self {
        self.clone()
    }
}

impl Decoder for RawRequest {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, source: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        // The message was packed, and is kept until the sender ends the call.
        self.share.grow_to(source.remaining()).map_err(|error| status(&error))?;
        Ok(Some(source.copy_to_bytes(source.remaining())))
    }
}

impl Encoder for RawRequest {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn encode(&mut self, response: Self::Item, target: &mut EncodeBuf<'_>) -> Result<(), Status> {
        response.encode(target).map_err(|error| Status::internal(error.to_string()))
    }
}
