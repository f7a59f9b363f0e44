//! Prometheus' remote write 1.0: requests, a queue of them on disk, and who sends them.

mod encode;
mod queue;
mod send;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;

pub use queue::{Queue, decode_queued};
pub use send::Sender;
pub(super) use send::check;

/// Why samples cannot be queued or sent.
#[derive(Debug, thiserror::Error)]
pub enum RemoteWriteError {
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
