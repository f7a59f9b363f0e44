//! Finished spans on their way to an OTLP endpoint.
//!
//! ```text
//! SpanQueue: encode ──bounded──► Exporter: batch ──► send, and again after a pause while the endpoint is away
//! ```
//!
//! The queue never blocks who fills it: while the endpoint is away it keeps the oldest spans and counts the newer ones
//! as dropped. One request is under way at a time, so spans arrive in the order in which they were finished.

mod backoff;
mod batch;
mod grpc;
mod http;
pub(crate) mod queue;
mod response;
mod worker;

use std::{collections::BTreeMap, time::Duration};

pub use queue::SpanQueue;
pub use worker::Exporter;

use crate::telemetry::Telemetry;

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
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// For gRPC the address of the server, for HTTP the whole URL, path included.
    pub endpoint: String,
    /// How OTLP is spoken.
    pub protocol: Protocol,
    /// Whether requests are compressed.
    pub compression: Compression,
    /// Headers that every request has, by name.
    pub headers: BTreeMap<String, String>,
    /// How long one request may take.
    pub timeout: Duration,
    /// Spans that wait at most.
    pub queue_spans: usize,
    /// Spans of one request at most.
    pub batch_spans: usize,
    /// Bytes of the spans of one request, before compression; the last span may go over it.
    pub batch_bytes: usize,
    /// How long the first span of a request waits for others.
    pub batch_delay: Duration,
}

impl Settings {
    /// Whether requests go out compressed.
    fn compresses(&self, host: Option<&str>) -> bool {
        match self.compression {
            Compression::Auto => !host.is_some_and(is_this_node),
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
    random: impl FnMut() -> f64 + Send + 'static,
) -> Result<(SpanQueue, Exporter), ExportError> {
    let transport = match settings.protocol {
        Protocol::Grpc => worker::Transport::Grpc(Box::new(grpc::Grpc::new(settings)?)),
        Protocol::HttpProtobuf => worker::Transport::Http(Box::new(http::Http::new(settings)?)),
    };
    let (queue, spans) = queue::bounded(settings.queue_spans, settings.batch_spans, telemetry.clone());
    let limits =
        batch::Limits { spans: settings.batch_spans, bytes: settings.batch_bytes, delay: settings.batch_delay };
    Ok((queue, Exporter::new(spans, limits, transport, backoff::Backoff::new(random), telemetry.clone())))
}

fn is_this_node(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
