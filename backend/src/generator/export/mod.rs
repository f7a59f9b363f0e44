//! Where series are sent: Prometheus' remote write and OTLP, each server with a queue of requests on disk and a task that
//! sends them in order.

mod connection;
mod headers;
mod message;
mod otlp;
#[cfg(test)]
mod otlp_tests;
mod queue;
mod relabel;
mod remote_write;
#[cfg(test)]
mod remote_write_tests;
mod send;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

use super::collected::{Collected, TenantSnapshot};
pub(super) use headers::tenant_headers;
pub use headers::{HeaderError, TenantHeaders};
pub use queue::{Queue, decode_queued};
pub use relabel::RelabelError;
pub use send::Sender;
pub(super) use send::{check_otlp, check_remote_write};

/// Series of a request.
const SERIES: usize = 2_000;

/// What the body of a request is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// `prometheus.WriteRequest`: of files that a version before 2.0 wrote.
    RemoteWrite1,
    /// `io.prometheus.write.v2.Request`, from which one of version 1.0 is made for servers that do not know it.
    RemoteWrite2,
    /// OTLP's `ExportMetricsServiceRequest`.
    Otlp,
}

/// A request that is ready to be sent.
#[derive(Clone, Debug, PartialEq)]
struct Request {
    samples: u32,
    format: Format,
    /// Compressed with snappy.
    body: Vec<u8>,
}

/// How series become requests to a server.
#[derive(Debug)]
enum Encoding {
    RemoteWrite(remote_write::Encoding),
    Otlp(otlp::Encoding),
}

impl Encoding {
    fn requests(&self, collected: &Collected, tenant: &TenantSnapshot) -> Vec<Request> {
        match self {
            Self::RemoteWrite(encoding) => encoding.requests(collected, tenant),
            Self::Otlp(encoding) => encoding.requests(collected, tenant),
        }
    }
}

/// Why samples cannot be queued or sent.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file of the queue cannot be read or written.
    #[error("{}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file of the queue is not what its checksum says.
    #[error("damaged: {0}")]
    Damaged(&'static str),
    /// A setting cannot be used.
    #[error("{what}")]
    Setting {
        /// Which.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

fn setting(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> ExportError {
    ExportError::Setting { what: what.to_owned(), source: Some(Box::new(error)) }
}
