//! OTLP by gRPC.

use http::{HeaderMap, Uri, uri::PathAndQuery};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::{
    Message as _,
    bytes::{BufMut as _, Bytes},
};
use tonic::{
    Request, Status,
    client::Grpc as Client,
    codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};

use super::{
    EndpointSettings, ExportError, Signal,
    causes::with_causes,
    connect::Connector,
    response::{self, Answer},
};

/// A client of one of OTLP's services. The generated one would want a message of its own for each attempt; this one sends
/// the same encoded bytes as often as it takes.
#[derive(Debug)]
pub(super) struct Grpc {
    client: Client<Channel>,
    method: PathAndQuery,
}

impl Grpc {
    /// Connects with the first request. Must be called on a tokio runtime.
    pub(super) fn new(settings: &EndpointSettings, signal: Signal) -> Result<Self, ExportError> {
        let channel = channel(settings)?;
        let client = Client::new(channel).accept_compressed(CompressionEncoding::Gzip);
        let compresses = settings.compresses();
        let client = if compresses { client.send_compressed(CompressionEncoding::Gzip) } else { client };
        Ok(Self { client, method: PathAndQuery::from_static(signal.method()) })
    }

    /// Sends an encoded request with these headers.
    pub(super) async fn send(&self, body: Bytes, headers: HeaderMap) -> Answer {
        let mut client = self.client.clone();
        if let Err(error) = client.ready().await {
            return Answer::Retry { after: None, reason: with_causes(&error) };
        }
        let mut request = Request::new(body);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        match client.unary(request, self.method.clone(), EncodedRequest).await {
            Ok(response) => response::accepted(response.into_inner()),
            Err(status) => response::of_status(&status),
        }
    }
}

/// A connection that is made when it is needed. Must be called on a tokio runtime.
fn channel(settings: &EndpointSettings) -> Result<Channel, ExportError> {
    let bad = |reason: String| ExportError::Endpoint { endpoint: settings.endpoint.clone(), reason };
    let connector = Connector::new(settings)?;
    let origin: Uri = settings.endpoint.parse().map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
    // The connector knows where to go and whether by TLS; what the library is told is only what requests are to say.
    let plain = settings.endpoint.replacen("https://", "http://", 1);
    let endpoint = Endpoint::from_shared(plain)
        .map_err(|error| bad(error.to_string()))?
        .origin(origin)
        .user_agent(concat!("coati-agent/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| bad(error.to_string()))?
        .timeout(settings.timeout);
    Ok(endpoint.connect_with_connector_lazy(connector))
}

/// Requests that are encoded already, answers that are not decoded yet.
#[derive(Clone, Copy, Debug)]
struct EncodedRequest;

impl Codec for EncodedRequest {
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

impl Encoder for EncodedRequest {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        // Else it grows by twice its size, and copies all again each time.
        buffer.reserve(request.len());
        buffer.put(request);
        Ok(())
    }
}

impl Decoder for EncodedRequest {
    type Item = ExportTraceServiceResponse;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        // Of all signals the answers look alike. They were taken; an answer that cannot be read does not change that.
        Ok(Some(ExportTraceServiceResponse::decode(buffer).unwrap_or_default()))
    }
}
