use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use thiserror::Error;

use crate::blocks::BlocksError;
use crate::catalog::CatalogError;
use crate::config::ByteSize;
use crate::diff::DiffError;
use crate::live::TraceId;
use crate::query::{SearchError, go_duration};
use crate::telemetry::chain;
use crate::tenant::TenantError;

/// Why a request has no answer. The text is the whole body, as Tempo does it, and clients show it to people.
#[derive(Debug, Error)]
pub(super) enum ApiError {
    /// A wrong parameter or query.
    #[error("{0}")]
    BadRequest(String),
    /// No tenant, or an impossible one.
    #[error(transparent)]
    Tenant(#[from] TenantError),
    /// Nothing is at this path.
    #[error("404 page not found")]
    NoSuchPath,
    /// The trace does not exist; the first version of the API says so without words.
    #[error("")]
    NoSuchTrace,
    /// The tag index failed.
    #[error("tag index cannot be read")]
    Catalog(#[from] CatalogError),
    /// The store of blocks failed. Worth another try.
    #[error("blocks cannot be read at the moment")]
    Blocks(#[from] BlocksError),
    /// What is asked for may be in a block that is damaged or lost.
    #[error("not found, but not all blocks can be read")]
    Unreadable,
    /// A trace that is to be compared does not exist.
    #[error("trace {0} is not there")]
    NoTraceToCompare(TraceId),
    /// A trace that is to be compared may have more spans.
    #[error("partial traces cannot be compared: of trace {0} there may be more in blocks that cannot be read")]
    PartialTrace(TraceId),
    /// Two traces were not compared.
    #[error(transparent)]
    Diff(#[from] DiffError),
    /// The store of blocks is not open yet.
    #[error("blocks are not open yet")]
    Starting,
    /// One message cannot hold the answer.
    #[error("answer is larger than 4 MiB: ask for fewer series, with topk() for example")]
    TooLarge,
    /// The answer to a search takes too much memory.
    #[error("answer is larger than {} MiB: ask for fewer traces (limit) or spans (spss)", .max_bytes >> 20)]
    TooMuch {
        /// The limit.
        max_bytes: usize,
    },
    /// The query takes longer than it may.
    #[error("query takes longer than {}: narrow its time range, or ask for less", go_duration(nanos(*.limit)))]
    TooSlow {
        /// The limit.
        limit: Duration,
    },
    /// The query reads more than it may.
    #[error("query reads more than {limit}: narrow its time range, or ask for less")]
    TooMuchRead {
        /// The limit.
        limit: ByteSize,
    },
    /// Others ran for as long as a query may wait.
    #[error("too many queries run at the moment")]
    Busy,
    /// The thread that worked on the request ended before it was done.
    #[error("query was stopped")]
    Stopped,
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

impl From<SearchError> for ApiError {
    fn from(error: SearchError) -> Self {
        match error {
            SearchError::Blocks(error) => Self::Blocks(error),
            SearchError::TooLarge { max_bytes } => Self::TooMuch { max_bytes },
        }
    }
}

impl ApiError {
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::BadRequest(message.into())
    }
}

impl ApiError {
    /// Tells the log what is not the asker's fault.
    pub(super) fn log(&self) {
        match self {
            Self::Catalog(error) => tracing::error!(error = chain(error), "tag index cannot be read"),
            Self::Blocks(error) => tracing::error!(error = chain(error), "blocks cannot be read"),
            _ => {}
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::BadRequest(_) | Self::Tenant(TenantError::Invalid | TenantError::Multiple | TenantError::TooMany) => {
                StatusCode::BAD_REQUEST
            }
            Self::Tenant(TenantError::Missing) => StatusCode::UNAUTHORIZED,
            Self::NoSuchPath | Self::NoTraceToCompare(_) => StatusCode::NOT_FOUND,
            Self::NoSuchTrace => return StatusCode::NOT_FOUND.into_response(),
            Self::TooLarge | Self::TooMuch { .. } | Self::Busy | Self::Diff(DiffError::TooDeep { .. }) => {
                StatusCode::TOO_MANY_REQUESTS
            }
            Self::TooMuchRead { .. } | Self::PartialTrace(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TooSlow { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Blocks(_) | Self::Starting => StatusCode::SERVICE_UNAVAILABLE,
            Self::Catalog(_) | Self::Stopped | Self::Unreadable | Self::Diff(DiffError::Json(_)) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        self.log();
        (status, [(CONTENT_TYPE, "text/plain; charset=utf-8")], self.to_string()).into_response()
    }
}
