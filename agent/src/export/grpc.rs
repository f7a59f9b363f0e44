//! OTLP by gRPC.

use http::uri::PathAndQuery;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::{
    Message as _,
    bytes::{BufMut as _, Bytes},
};
use tonic::{
    Request, Status,
    client::Grpc as Client,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap},
    transport::{Channel, Endpoint},
};

use super::{
    ExportError, Settings,
    response::{self, Answer},
};

const PATH: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// A client of the trace service. The generated one would want a message of its own for each attempt; this one sends
/// the same encoded bytes as often as it takes.
#[derive(Debug)]
pub(super) struct Grpc {
    client: Client<Channel>,
    metadata: MetadataMap,
}

impl Grpc {
    /// Connects with the first request. Must be called on a tokio runtime.
    pub(super) fn new(settings: &Settings) -> Result<Self, ExportError> {
        let bad = |reason: String| ExportError::Endpoint { endpoint: settings.endpoint.clone(), reason };
        let endpoint = Endpoint::from_shared(settings.endpoint.clone())
            .map_err(|error| bad(error.to_string()))?
            .user_agent(concat!("coati-agent/", env!("CARGO_PKG_VERSION")))
            .map_err(|error| bad(error.to_string()))?
            .connect_timeout(settings.timeout)
            .timeout(settings.timeout)
            .tcp_nodelay(true);
        super::http::check_scheme(endpoint.uri(), &settings.endpoint)?;
        let compresses = settings.compresses(endpoint.uri().host());
        let client = Client::new(endpoint.connect_lazy());
        let client = if compresses { client.send_compressed(CompressionEncoding::Gzip) } else { client };
        Ok(Self { client: client.accept_compressed(CompressionEncoding::Gzip), metadata: metadata(settings)? })
    }

    /// Sends an encoded request.
    pub(super) async fn send(&mut self, body: Bytes) -> Answer {
        if let Err(error) = self.client.ready().await {
            return Answer::Retry { after: None, reason: with_causes(&error) };
        }
        let mut request = Request::new(body);
        *request.metadata_mut() = self.metadata.clone();
        match self.client.unary(request, PathAndQuery::from_static(PATH), EncodedTraces).await {
            Ok(response) => response::accepted(response.into_inner()),
            Err(status) => response::of_status(&status),
        }
    }
}

fn metadata(settings: &Settings) -> Result<MetadataMap, ExportError> {
    let mut metadata = MetadataMap::new();
    for (name, value) in &settings.headers {
        let bad = || ExportError::Header { name: name.clone() };
        let key = AsciiMetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| bad())?;
        metadata.insert(key, AsciiMetadataValue::try_from(value).map_err(|_| bad())?);
    }
    Ok(metadata)
}

/// An error with everything that led to it; tonic's own text is "transport error".
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = error.source();
    }
    text
}

/// Requests that are encoded already, answers that are not decoded yet.
#[derive(Clone, Copy, Debug)]
struct EncodedTraces;

impl Codec for EncodedTraces {
    type Encode = Bytes;
    type Decode = ExportTraceServiceResponse;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for EncodedTraces {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(request);
        Ok(())
    }
}

impl Decoder for EncodedTraces {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        // The spans were taken; an answer that cannot be read does not change that.
        Ok(Some(ExportTraceServiceResponse::decode(buffer).unwrap_or_default()))
    }
}
