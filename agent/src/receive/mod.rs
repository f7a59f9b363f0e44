//! OTLP from SDKs on this node, on its way through the agent.
//!
//! ```text
//! SDK ── gRPC, HTTP ──► server: bounded ──► relay: check, add what the SDK did not say ──► the export's queue
//!                                             ▲ sender: whose connection it is
//!                                             ▲ gpus: what the devices did that the sender uses
//! ```
//!
//! Traces only: what Coati stores. A request is acknowledged when all its spans are in the export's queue; what that is
//! worth is said in docs/operating.md. When there is no room, or nobody to send to, the SDK is told to try again.

mod enrich;
mod gpus;
mod grpc;
mod http;
mod relay;
mod sender;
mod server;
#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, time::Duration};

pub use gpus::Gpus;
pub use sender::Senders;
pub use server::Receiver;

/// Where OTLP is received.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ReceiveSettings {
    /// Each speaks gRPC and HTTP.
    pub listen: Vec<SocketAddr>,
    /// Bytes of one request at most, unpacked.
    pub max_request_bytes: usize,
    /// Whether what the SDK did not say of its process is added.
    pub enrich: bool,
}

/// The receiver does not listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for OTLP")]
pub struct ReceiveError {
    /// The address of the configuration.
    pub address: SocketAddr,
    /// Why not.
    #[source]
    pub source: io::Error,
}

/// After this time a sender may try again what was refused for a reason that passes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// What is said to who sends something else.
const TRACES_ONLY: &str =
    "coati-agent relays traces only: send metrics to Prometheus and logs to Loki, or to a collector";

/// Why a request was refused whole; nothing of it was kept.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
enum Refusal {
    /// It is not OTLP.
    #[error("body is not valid OTLP: {0}")]
    Malformed(String),
    /// The body is larger than allowed.
    #[error("request exceeds the limit of {limit} bytes")]
    TooLarge {
        /// Bytes.
        limit: usize,
    },
    /// It can never fit.
    #[error("request has {spans} spans, and no more than {limit} fit into the queue")]
    TooMany {
        /// Of the request.
        spans: usize,
        /// Of the queue.
        limit: usize,
    },
    /// There is no room now.
    #[error("the export queue is full: try again")]
    Full,
    /// It took too long to come, or to be dealt with.
    #[error("the request took too long: try again")]
    TooSlow,
    /// The agent is about to end.
    #[error("the agent is about to end: try again")]
    Ending,
}

impl Refusal {
    /// Whether the same request may be taken later.
    const fn is_retryable(&self) -> bool {
        matches!(self, Self::Full | Self::TooSlow | Self::Ending)
    }

    /// The label `cause` on `/metrics`.
    const fn cause(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::TooLarge { .. } | Self::TooMany { .. } => "too_large",
            Self::Full => "queue_full",
            Self::TooSlow => "timeout",
            Self::Ending => "shutdown",
        }
    }
}
