//! Where blocks and manifests lie: a local directory or a bucket.

mod local;
pub mod memory;
mod metered;
mod open;
mod path;
mod s3;

use std::fmt;
use std::io;
use std::ops::Range;

use bytes::Bytes;

pub use local::LocalStore;
pub(crate) use local::create_dir;
pub use memory::MemoryStore;
pub use metered::MeteredStore;
pub use open::{OpenError, SettingError, check_writes, open};
pub use s3::{Limits, S3Store, check_s3};

/// Objects by path, immutable once created. `/` separates the parts of a path; a part has at most 255 bytes and no control
/// characters, the whole at most 900 bytes. A path of one object is not the beginning of another one's (no `a` beside `a/b`).
///
/// Calls block until the answer is there: never call them on a thread that serves connections.
pub trait Store: fmt::Debug + fmt::Display + Send + Sync {
    /// A whole object.
    fn get(&self, path: &str) -> Result<Bytes, StoreError>;

    /// Parts of an object, in the order of `ranges`; near ones may be fetched together. All must lie within the object.
    fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError>;

    /// Size of an object, bytes.
    fn size(&self, path: &str) -> Result<u64, StoreError>;

    /// All objects whose path begins with `prefix`, which ends with `/` or is empty; in the order of their paths.
    fn list(&self, prefix: &str) -> Result<Vec<Object>, StoreError>;

    /// Creates an object if there is none of this path. It is whole and on stable storage when this returns; other readers
    /// see all of it or nothing. After [`StoreError::Unavailable`] it may be there nevertheless.
    fn create(&self, path: &str, content: Bytes) -> Result<(), StoreError>;

    /// Creates an object of unknown size piece by piece. Nothing is there before [`Upload::finish`]; a dropped upload leaves
    /// nothing behind that is seen. The path must be one that nobody else creates: whether an object that is there is
    /// replaced or [`StoreError::AlreadyExists`] comes back depends on the store.
    fn upload(&self, path: &str) -> Result<Box<dyn Upload>, StoreError>;

    /// Deletes an object; one that is not there is fine.
    fn delete(&self, path: &str) -> Result<(), StoreError>;
}

/// An object in writing.
pub trait Upload: io::Write + Send {
    /// Makes the object visible once it is on stable storage; returns its size, bytes.
    fn finish(self: Box<Self>) -> Result<u64, StoreError>;
}

/// An object in a listing.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Object {
    /// Its path.
    pub path: String,
    /// Bytes.
    pub bytes: u64,
    /// When it was last written, nanoseconds since the epoch, by the store's clock.
    pub modified_ns: u64,
}

/// What is behind an error of a store.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no such object.
    #[error("{path} is not there")]
    NotFound {
        /// The object.
        path: String,
    },
    /// The object is there already.
    #[error("{path} is there already")]
    AlreadyExists {
        /// The object.
        path: String,
    },
    /// No room. Goes away when there is room.
    #[error("no room for {path}")]
    Full {
        /// The object.
        path: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// No object can have this path: a mistake of the caller.
    #[error("{path:?} is no path of an object: {reason}")]
    InvalidPath {
        /// The path.
        path: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The object is shorter than what was asked for: whoever said where to read was wrong.
    #[error("{path} has {size} bytes, asked for {} to {}", range.start, range.end)]
    OutOfRange {
        /// The object.
        path: String,
        /// What was asked for.
        range: Range<u64>,
        /// Bytes that it has.
        size: u64,
    },
    /// The store does not let us: credentials, permissions, no such bucket.
    #[error("{path}: access refused")]
    Denied {
        /// The object.
        path: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// The store cannot be reached, or fails. Whether something was done is not known. Worth another try.
    #[error("{path}: store fails")]
    Unavailable {
        /// The object.
        path: String,
        /// Why.
        #[source]
        source: Source,
    },
}

impl StoreError {
    /// Whether the same can succeed later.
    pub fn passes(&self) -> bool {
        matches!(self, Self::Full { .. } | Self::Unavailable { .. })
    }
}

impl StoreError {
    /// What an error of the file system means for the object at `path`; also what a failed write into an [`Upload`] means.
    pub fn of_io(path: &str, error: io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::Other => match error.downcast::<Self>() {
                Ok(inner) => inner,
                Err(error) => Self::Unavailable { path, source: error.into() },
            },
            io::ErrorKind::NotFound | io::ErrorKind::IsADirectory => Self::NotFound { path },
            io::ErrorKind::AlreadyExists => Self::AlreadyExists { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source: error.into() },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::Denied { path, source: error.into() }
            }
            _ => Self::Unavailable { path, source: error.into() },
        }
    }
}
