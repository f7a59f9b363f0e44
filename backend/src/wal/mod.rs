//! The write-ahead log: what was acknowledged is here, on disk, and survives power loss, until it is in blocks.
//!
//! Plain segment files under `wal/` of the data directory, laid out as `docs/format/wal.md` says. One thread writes;
//! it takes whatever waits, appends it, calls `fdatasync` once and answers all. See [`Wal`] for writing, [`Log`] for
//! what is found at start.

mod disk;
mod format;
mod reader;
mod recovery;
mod segment;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use disk::{Disk, RealDisk, SegmentFile};
pub use format::{Damage, FORMAT_VERSION, Frame, Unpacker};
pub use reader::{Piece, Scan, scan};
pub use recovery::{Log, Segment};
pub use writer::{Entry, Wal, WalConfig};

/// Why the log cannot be opened, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WalError {
    /// The log is as large as it may be: what is in it cannot be written to blocks. Goes away when that works again.
    #[error("the log has {bytes} bytes that are in no block yet, its limit is {limit} bytes")]
    Backlog {
        /// Size of the log.
        bytes: u64,
        /// What it may have.
        limit: u64,
    },
    /// The writer has stopped.
    #[error("the log is closed")]
    Closed,
    /// A frame's content cannot be decompressed although its checksum is right.
    #[error("frame {sequence} of the log cannot be decompressed")]
    Decompress {
        /// Number of the frame.
        sequence: u64,
        /// What the decoder says.
        #[source]
        source: Arc<io::Error>,
    },
    /// No room on the disk: nothing of the request was stored. Goes away when there is room.
    #[error("disk full: the log cannot grow")]
    Full(#[source] Arc<io::Error>),
    /// A file or directory of the log cannot be opened, listed or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// A segment was written by a version that this one does not know.
    #[error("{} has format version {version}, this program reads version {FORMAT_VERSION}", path.display())]
    Version {
        /// The segment.
        path: PathBuf,
        /// What it says.
        version: u16,
    },
    /// The disk refused to write or to sync: nothing of the request counts as stored.
    #[error("the log cannot be written")]
    Write(#[source] Arc<io::Error>),
}

impl WalError {
    /// What a failed write means.
    fn of_write(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(Arc::new(error)),
            _ => Self::Write(Arc::new(error)),
        }
    }
}
