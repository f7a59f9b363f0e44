//! Finished spans on their way to OTLP endpoints.
//!
//! ```text
//! SpanQueue: encode ──bounded──► Exporter: batch ──┬► Outlet: backlog ──► send, and again after a pause
//!                                                  └► Outlet …  └► disk, while the endpoint is away
//! ```
//!
//! The queue never blocks who fills it. Each endpoint has an outlet with a backlog of its own, so that one that is away
//! does not stop the others. One request at a time is under way to an endpoint: requests arrive in the order in which
//! they were made. ADR 0018 says when they are written to disk, and what a crash can cost.

mod auth;
mod backlog;
mod backoff;
mod batch;
mod causes;
mod connect;
pub(crate) mod disk;
mod encode;
mod grpc;
mod http;
mod outlet;
pub(crate) mod queue;
pub(crate) mod relay;
mod response;
mod tls;
mod transport;
mod watched;
mod worker;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use prost::bytes::Bytes;

pub use auth::{Auth, AuthError};
pub use connect::Proxies;
pub use disk::{Fsync, QueueError, QueueSettings};
pub use queue::SpanQueue;
pub use relay::{RelayError, RelayQueue, Relayed, RelayedSpan, Room};
pub use tls::{TlsError, TlsSettings};
pub use worker::Exporter;

pub(crate) use response::Answer;
pub(crate) use transport::Transport;

use crate::{secret::Secret, telemetry::Telemetry};

/// What can go wrong before the first span is sent.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The endpoint is no URL that can be sent to.
    #[error("cannot export to `{endpoint}`: {reason}")]
    Endpoint {
        /// The endpoint of the configuration.
        endpoint: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A header cannot be sent.
    #[error("cannot send the header `{name}`: its name or its value has characters that are not allowed")]
    Header {
        /// Name of the header; its value may be a secret.
        name: String,
    },
    /// TLS cannot be spoken as it is configured.
    #[error("cannot export to `{endpoint}`")]
    Tls {
        /// The endpoint of the configuration.
        endpoint: String,
        /// What is wrong.
        #[source]
        source: TlsError,
    },
    /// The token or the password is not there.
    #[error("cannot export to `{endpoint}`")]
    Auth {
        /// The endpoint of the configuration.
        endpoint: String,
        /// What is wrong.
        #[source]
        source: AuthError,
    },
    /// Two endpoints would share a queue.
    #[error("there are two endpoints with the name `{name}`: give them different ones")]
    SameName {
        /// The name.
        name: String,
    },
    /// Nothing can wait on disk.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// An encoded request: encoded once, however often and to however many endpoints it is sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Encoded {
    /// Its place in the order of an endpoint's requests; 0 until it has one.
    pub(crate) sequence: u64,
    /// How many spans are in it.
    pub(crate) spans: u64,
    /// An `ExportTraceServiceRequest`.
    pub(crate) body: Bytes,
}

/// What is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
}

impl Signal {
    /// The path that OTLP HTTP has for it.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }

    /// The method of gRPC.
    const fn method(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
        }
    }
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// gRPC.
    Grpc,
    /// HTTP with protobuf.
    HttpProtobuf,
}

/// Whether requests are compressed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Compression {
    /// By gzip unless the endpoint is on this node: there compressing costs time and saves nothing.
    Auto,
    /// By gzip.
    Gzip,
    /// Not at all.
    None,
}

/// Where and how spans are sent.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Every one gets everything.
    pub endpoints: Vec<EndpointSettings>,
    /// Where requests wait while their endpoint is away; absent, in memory.
    pub queue: Option<QueueSettings>,
    /// Spans that wait in memory at most, for each endpoint.
    pub queue_spans: usize,
    /// Spans of one request at most.
    pub batch_spans: usize,
    /// Bytes of the spans of one request, before compression; the last span may go over it.
    pub batch_bytes: usize,
    /// How long the first span of a request waits for others.
    pub batch_delay: Duration,
}

/// One destination.
#[derive(Clone, Debug)]
pub struct EndpointSettings {
    /// What it is called in logs, on `/metrics` and on disk.
    pub name: String,
    /// For gRPC the address of the server, for HTTP the whole URL, path included.
    pub endpoint: String,
    /// How OTLP is spoken.
    pub protocol: Protocol,
    /// Whether requests are compressed.
    pub compression: Compression,
    /// Headers that every request has, by name.
    pub headers: BTreeMap<String, Secret>,
    /// How long one request may take.
    pub timeout: Duration,
    /// For `https`: whom to trust and who we are. Absent for `http`; for `https` the defaults then.
    pub tls: Option<TlsSettings>,
    /// Who sends.
    pub auth: Auth,
    /// Ways out of the network.
    pub proxies: Proxies,
}

impl EndpointSettings {
    /// Whether it is on this node, at one of these addresses.
    pub(crate) fn is_one_of(&self, addresses: &[SocketAddr]) -> bool {
        let uri: Option<::http::Uri> = self.endpoint.parse().ok();
        let Some((host, port)) = uri.as_ref().and_then(|uri| Some((uri.host()?, uri.port_u16()?))) else {
            return false;
        };
        let address: Option<IpAddr> = host.trim_start_matches('[').trim_end_matches(']').parse().ok();
        addresses.iter().any(|listening| {
            let is_here = listening.ip().is_unspecified() || listening.ip().is_loopback();
            listening.port() == port && (Some(listening.ip()) == address || is_here && is_this_node(host))
        })
    }

    /// Whether requests go out compressed.
    fn compresses(&self) -> bool {
        match self.compression {
            Compression::Auto => {
                let uri: Option<::http::Uri> = self.endpoint.parse().ok();
                !uri.as_ref().and_then(|uri| uri.host()).is_some_and(is_this_node)
            }
            Compression::Gzip => true,
            Compression::None => false,
        }
    }
}

/// The two ends of the export: what spans are put into, and what takes them away.
///
/// Must be called on a tokio runtime. `random` gives numbers in 0..1 for the pauses before a request is repeated.
pub fn exporter(
    settings: &Settings,
    telemetry: &Telemetry,
    random: impl FnMut() -> f64 + Clone + Send + 'static,
) -> Result<(SpanQueue, Exporter), ExportError> {
    let mut outlets: Vec<outlet::Outlet> = Vec::with_capacity(settings.endpoints.len());
    for endpoint in &settings.endpoints {
        if outlets.iter().any(|outlet| outlet.name() == endpoint.name) {
            return Err(ExportError::SameName { name: endpoint.name.clone() });
        }
        let transport = Transport::new(endpoint, Signal::Traces)?;
        let disk = settings.queue.as_ref().map(|queue| backlog::Unopened::new(queue, &endpoint.name)).transpose()?;
        let backoff = backoff::Backoff::new(random.clone());
        outlets.push(outlet::Outlet::new(endpoint, transport, backoff, settings.queue_spans as u64, disk, telemetry));
    }
    let endpoints = outlets.len() as u64;
    let (queue, spans) = queue::bounded(settings.queue_spans, settings.batch_spans, endpoints, telemetry.clone());
    let limits =
        batch::Limits { spans: settings.batch_spans, bytes: settings.batch_bytes, delay: settings.batch_delay };
    Ok((queue, Exporter::new(spans, limits, outlets, telemetry.clone())))
}

fn is_this_node(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod outage_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tls_tests;
