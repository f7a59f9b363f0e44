//! How requests are sent to one endpoint.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use prost::bytes::Bytes;

use super::{
    EndpointSettings, ExportError, Protocol, Signal, auth::Authorization, causes::with_causes, grpc::Grpc, http::Http,
    response::Answer,
};

/// A client, and what its requests are sent with.
#[derive(Debug)]
pub(crate) struct Transport {
    client: Client,
    headers: HeaderMap,
    authorization: Authorization,
}

#[derive(Debug)]
enum Client {
    Grpc(Box<Grpc>),
    Http(Box<Http>),
}

impl Transport {
    /// Connects with the first request. Must be called on a tokio runtime.
    pub(crate) fn new(settings: &EndpointSettings, signal: Signal) -> Result<Self, ExportError> {
        let EndpointSettings { endpoint, protocol, tls, .. } = settings;
        let client = match protocol {
            Protocol::Grpc => Client::Grpc(Box::new(Grpc::new(settings, signal)?)),
            Protocol::HttpProtobuf => Client::Http(Box::new(Http::new(settings)?)),
        };
        let authorization = Authorization::new(&settings.auth)
            .map_err(|source| ExportError::Auth { endpoint: endpoint.clone(), source })?;
        if tls.as_ref().is_some_and(|tls| tls.insecure_skip_verify) {
            tracing::warn!(endpoint, "any certificate is trusted: whoever is between can read and change what is sent");
        }
        Ok(Self { client, headers: headers(settings)?, authorization })
    }

    /// Sends an encoded request once.
    pub(crate) async fn send(&self, body: Bytes) -> Answer {
        let mut headers = self.headers.clone();
        match self.authorization.header() {
            Ok(None) => {}
            Ok(Some(authorization)) => {
                headers.insert(header::AUTHORIZATION, authorization);
            }
            Err(error) => return Answer::Retry { after: None, reason: with_causes(&error) },
        }
        let answer = match &self.client {
            Client::Grpc(client) => client.send(body, headers).await,
            Client::Http(client) => client.send(body, headers).await,
        };
        match answer {
            // A token that has run out is not the fault of the spans; its file will be another.
            Answer::Unauthorised { reason } if self.authorization.may_change() => Answer::Retry { after: None, reason },
            Answer::Unauthorised { reason } => Answer::Refused { reason },
            answer => answer,
        }
    }
}

/// The headers of the configuration.
fn headers(settings: &EndpointSettings) -> Result<HeaderMap, ExportError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &settings.headers {
        let bad = || ExportError::Header { name: name.clone() };
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        let mut value = HeaderValue::from_str(value.reveal()).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.insert(key, value);
    }
    Ok(headers)
}
