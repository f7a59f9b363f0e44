//! What makes a span one of an error.

use std::borrow::Cow;

use opentelemetry_proto::tonic::trace::v1::{Status, status::StatusCode};

use super::grpc;
use crate::decode::{Exchange, Failure, Role};

/// What makes a span one of an error.
#[derive(Clone, Copy, Debug)]
pub(super) enum Error {
    /// The status code says so.
    Status(u16),
    /// The status of gRPC does.
    Grpc(u32),
    /// There was no whole answer.
    Failure(Failure),
}

impl Error {
    pub(super) fn of(exchange: &Exchange) -> Option<Self> {
        let status = exchange.response.as_ref().map(|response| response.status);
        let limit = match exchange.origin.role {
            Role::Server => 500,
            // The server refused what the client asked for: its caller has failed.
            Role::Client => 400,
        };
        let grpc = exchange.grpc.and_then(|call| call.status);
        match (status, exchange.failure) {
            _ if grpc.is_some_and(|status| grpc::is_error(status, exchange.origin.role)) => grpc.map(Self::Grpc),
            (Some(status), _) if status >= limit => Some(Self::Status(status)),
            (_, failure) => failure.map(Self::Failure),
        }
    }

    pub(super) fn text(self) -> Cow<'static, str> {
        match self {
            Self::Status(status) => status.to_string().into(),
            Self::Grpc(status) => grpc::status_name(status).map_or_else(|| status.to_string().into(), Cow::Borrowed),
            Self::Failure(failure) => failure.as_str().into(),
        }
    }

    pub(super) fn status(self) -> Status {
        let message = match self {
            // The code says all there is to say.
            Self::Status(_) | Self::Grpc(_) => "",
            Self::Failure(Failure::ConnectionClosed) => "connection closed before the response was complete",
            Self::Failure(Failure::ConnectionReset) => "connection reset before the response was complete",
            Self::Failure(Failure::StreamReset) => "stream reset before the response was complete",
            Self::Failure(Failure::StreamRefused) => "stream refused: the server went away",
        };
        Status { message: message.to_owned(), code: StatusCode::Error.into() }
    }
}
