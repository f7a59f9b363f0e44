//! Receiving spans: OTLP over gRPC and over HTTP, both ending in [`Ingest`].

mod budget;
mod compression;
mod grpc;
mod http;
mod ingest;
#[cfg(test)]
mod json_tests;
mod prepare;
#[cfg(test)]
mod tests;
mod validate;
mod weight;

use std::time::Duration;

pub use grpc::GrpcReceiver;
pub use http::router;
pub use ingest::{Ingest, IngestConfig, Stages};
pub use prepare::{Format, Prepared, prepare};
pub use validate::{Reason, Rejections, remove_invalid};

use crate::wal::WalError;

/// After this time a sender may try again what was refused for a reason that passes.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a request was refused whole; nothing of it was stored.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The work on it broke off.
    #[error("internal error")]
    Internal,
    /// It is not OTLP in JSON.
    #[error("body is not valid OTLP/JSON: {0}")]
    Json(#[source] serde_json::Error),
    /// Traces in memory have not been written to blocks yet. Passes.
    #[error("too many traces in memory: the limit is {limit} bytes")]
    MemoryFull {
        /// What live traces may take.
        limit: usize,
    },
    /// Too much is being worked on already. Passes.
    #[error("too much data in work: {bytes} bytes would exceed the limit of {limit} bytes")]
    Overloaded {
        /// Size of the request.
        bytes: usize,
        /// What may be in work at once.
        limit: usize,
    },
    /// It did not come to its end.
    #[error("request did not come within {} seconds", limit.as_secs())]
    Stalled {
        /// How long it may take.
        limit: Duration,
    },
    /// It is not OTLP in protobuf.
    #[error("body is not a valid ExportTraceServiceRequest: {0}")]
    Protobuf(#[source] prost::DecodeError),
    /// A value in it is nested in more others than are read.
    #[error("request holds values that are nested too deep")]
    TooDeep,
    /// It would take too much memory: many messages that hold nothing.
    #[error("request of {bytes} bytes would take {decoded} bytes when decoded, more than the limit of {limit} bytes")]
    TooLarge {
        /// Size of the request.
        bytes: usize,
        /// Its messages in memory.
        decoded: usize,
        /// What they may take.
        limit: usize,
    },
    /// The log did not take it. Passes.
    #[error("{0}")]
    Wal(#[source] WalError),
}

impl ExportError {
    /// The gRPC status code.
    fn code(&self) -> tonic::Code {
        match self {
            Self::Internal => tonic::Code::Internal,
            Self::Json(_) | Self::Protobuf(_) | Self::TooDeep => tonic::Code::InvalidArgument,
            Self::MemoryFull { .. } | Self::Overloaded { .. } | Self::TooLarge { .. } => tonic::Code::ResourceExhausted,
            Self::Stalled { .. } => tonic::Code::DeadlineExceeded,
            Self::Wal(_) => tonic::Code::Unavailable,
        }
    }

    /// When to try again, if that can help.
    fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Internal
            | Self::Json(_)
            | Self::Protobuf(_)
            | Self::Stalled { .. }
            | Self::TooDeep
            | Self::TooLarge { .. } => None,
            Self::MemoryFull { .. } | Self::Overloaded { .. } | Self::Wal(_) => Some(RETRY_AFTER),
        }
    }

    /// Value of the `reason` label of refused requests.
    fn reason(&self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::Json(_) | Self::Protobuf(_) | Self::TooDeep => "malformed",
            Self::MemoryFull { .. } => "memory",
            Self::Overloaded { .. } => "overloaded",
            Self::Stalled { .. } => "stalled",
            Self::TooLarge { .. } => "too_large",
            Self::Wal(_) => "log",
        }
    }
}
