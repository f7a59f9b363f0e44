//! What can be wrong with a block.

use std::io;

use parquet::errors::ParquetError;

use super::FORMAT_VERSION;
use crate::live::TraceId;
use crate::store::StoreError;

/// Why a block cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    /// The object is not what was written: cut off, changed, or no block at all.
    #[error("{path} is damaged: {what}")]
    Damaged {
        /// The object.
        path: String,
        /// What is not as it must be.
        what: String,
    },
    /// The object cannot be read as Parquet, or a block cannot be written as Parquet.
    #[error("{path} cannot be read or written as Parquet")]
    Parquet {
        /// The object.
        path: String,
        /// What the Parquet library says.
        #[source]
        source: ParquetError,
    },
    /// Traces came in another order than that of their ids, or one came twice.
    #[error("trace {id} was written after trace {last}: a block takes traces in the order of their ids, each once")]
    Order {
        /// The trace.
        id: TraceId,
        /// The one before it.
        last: TraceId,
    },
    /// A span cannot be stored: its id is not 8 bytes long.
    #[error("trace {trace}: a span id of {length} bytes, expected 8")]
    SpanId {
        /// The trace.
        trace: TraceId,
        /// Bytes of the id.
        length: usize,
    },
    /// The store does not do what is asked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Written by a version that this one does not know.
    #[error("{path} has block format {found:?}, this program reads format {FORMAT_VERSION}")]
    Version {
        /// The object.
        path: String,
        /// What it says.
        found: String,
    },
}

impl BlockError {
    /// What an error of the Parquet library means, which may have been the store's to begin with.
    pub(super) fn of_parquet(path: &str, error: ParquetError) -> Self {
        let ParquetError::External(source) = error else {
            return Self::Parquet { path: path.to_owned(), source: error };
        };
        match source.downcast::<StoreError>() {
            Ok(error) => Self::Store(*error),
            Err(source) => match source.downcast::<io::Error>() {
                Ok(error) => Self::Store(of_write(path, *error)),
                Err(source) => Self::Parquet { path: path.to_owned(), source: ParquetError::External(source) },
            },
        }
    }

    /// A damaged object.
    pub(crate) fn damaged(path: &str, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }
}

/// What a failed write to an upload means.
fn of_write(path: &str, error: io::Error) -> StoreError {
    let path = path.to_owned();
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path, source: Box::new(error) },
        io::ErrorKind::PermissionDenied => StoreError::Denied { path, source: Box::new(error) },
        _ => match error.downcast::<StoreError>() {
            Ok(error) => error,
            Err(error) => StoreError::Unavailable { path, source: Box::new(error) },
        },
    }
}
