//! OTLP over gRPC.

use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
    trace_service_server::{TraceService, TraceServiceServer},
};
use tonic::{Request, Response, Status, async_trait, codec::CompressionEncoding};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{RETRY_AFTER, Refusal, relay::Relay, sender::Connection};

/// The service, on a relay.
pub(super) fn service(relay: Relay, max_request_bytes: usize) -> TraceServiceServer<impl TraceService> {
    TraceServiceServer::new(Service(relay))
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Zstd)
        .max_decoding_message_size(max_request_bytes)
}

struct Service(Relay);

#[async_trait]
impl TraceService for Service {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let connection = request.extensions().get::<Connection>().cloned();
        let Some(connection) = connection else { return Err(Status::internal("no connection")) };
        match self.0.export(request.into_inner(), &connection).await {
            Ok(answer) => Ok(Response::new(answer)),
            Err(refusal) => {
                self.0.refused(&refusal);
                Err(status(&refusal))
            }
        }
    }
}

/// Without `RetryInfo` senders take `RESOURCE_EXHAUSTED` for final.
pub(super) fn status(refusal: &Refusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        Refusal::Malformed(_) => Status::invalid_argument(message),
        Refusal::TooLarge { .. } | Refusal::TooMany { .. } => Status::resource_exhausted(message),
        Refusal::Full => {
            let details = ErrorDetails::with_retry_info(Some(RETRY_AFTER));
            Status::with_error_details(tonic::Code::ResourceExhausted, message, details)
        }
        Refusal::TooSlow | Refusal::Ending => Status::unavailable(message),
    }
}
