//! OTLP by HTTP with protobuf.

use std::{
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Collected, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use prost::bytes::Bytes;

use super::{
    ExportError, Settings,
    grpc::with_causes,
    response::{self, Answer},
};

/// Bytes of an answer that are read; an OTLP answer is a count and a sentence.
const MAX_ANSWER: usize = 64 << 10;

/// A client of an OTLP HTTP endpoint.
#[derive(Debug)]
pub(super) struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    uri: Uri,
    headers: HeaderMap,
    compresses: bool,
    timeout: Duration,
}

impl Http {
    /// Connects with the first request.
    pub(super) fn new(settings: &Settings) -> Result<Self, ExportError> {
        let uri: Uri = settings.endpoint.parse().map_err(|error: http::uri::InvalidUri| ExportError::Endpoint {
            endpoint: settings.endpoint.clone(),
            reason: error.to_string(),
        })?;
        check_scheme(&uri, &settings.endpoint)?;
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(settings.timeout));
        let client = Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        let compresses = settings.compresses(uri.host());
        Ok(Self { client, headers: headers(settings, compresses)?, uri, compresses, timeout: settings.timeout })
    }

    /// Sends an encoded request.
    pub(super) async fn send(&self, body: Bytes) -> Answer {
        let body = match self.compresses.then(|| gzip(&body)).transpose() {
            Ok(compressed) => compressed.unwrap_or(body),
            Err(error) => return Answer::Refused { reason: format!("it cannot be compressed: {error}") },
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        match tokio::time::timeout(self.timeout, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Answer::Retry { after: None, reason: format!("no answer within {:?}", self.timeout) },
        }
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Answer {
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => return Answer::Retry { after: None, reason: with_causes(&error) },
        };
        let (head, body) = response.into_parts();
        // What is too long or breaks off is no answer that can be read, but its status counts.
        let body = Limited::new(body, MAX_ANSWER).collect().await.map(Collected::to_bytes).unwrap_or_default();
        response::of_http(head.status, &head.headers, &body, SystemTime::now())
    }
}

/// Only plain connections so far.
pub(super) fn check_scheme(uri: &Uri, endpoint: &str) -> Result<(), ExportError> {
    let bad = |reason: &str| Err(ExportError::Endpoint { endpoint: endpoint.to_owned(), reason: reason.to_owned() });
    match uri.scheme_str() {
        Some("http") if uri.host().is_some() => Ok(()),
        Some("https") => bad("TLS is not built in; use http, or a collector on this node that speaks TLS"),
        _ => bad("it must begin with `http://` and name a host"),
    }
}

fn headers(settings: &Settings, compresses: bool) -> Result<HeaderMap, ExportError> {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static(concat!("coati-agent/", env!("CARGO_PKG_VERSION"))));
    if compresses {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    for (name, value) in &settings.headers {
        let bad = || ExportError::Header { name: name.clone() };
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        headers.insert(name, HeaderValue::from_str(value).map_err(|_| bad())?);
    }
    Ok(headers)
}

fn gzip(body: &[u8]) -> io::Result<Bytes> {
    // Spans repeat each other: the fastest level saves nearly as much as the default one, for a third of the time.
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 8), Compression::fast());
    encoder.write_all(body)?;
    encoder.finish().map(Bytes::from)
}
