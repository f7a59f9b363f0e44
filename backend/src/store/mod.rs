//! Where blocks and manifests lie: a local directory or a bucket.

use std::fmt;
use std::io;
use std::ops::Range;

use bytes::Bytes;

/// Objects by path, immutable once created. `/` separates the parts of a path.
///
/// Calls block until the answer is there: never call them on a thread that serves connections.
pub trait Store: fmt::Debug + fmt::Display + Send + Sync {
    /// A whole object.
    fn get(&self, path: &str) -> Result<Bytes, StoreError>;

    /// Parts of an object, in the order of `ranges`; near ones may be fetched together.
    fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError>;

    /// Size of an object, bytes.
    fn size(&self, path: &str) -> Result<u64, StoreError>;

    /// All objects whose path begins with `prefix`, which ends with `/`; in the order of their paths.
    fn list(&self, prefix: &str) -> Result<Vec<Object>, StoreError>;

    /// Creates an object if there is none of this path. It is whole and on stable storage when this returns; other readers
    /// see all of it or nothing.
    fn create(&self, path: &str, content: Bytes) -> Result<(), StoreError>;

    /// Creates an object of unknown size piece by piece. Nothing is there before [`Upload::finish`]; a dropped upload leaves
    /// nothing behind that is seen. The path must be one that nobody else creates.
    fn upload(&self, path: &str) -> Result<Box<dyn Upload>, StoreError>;

    /// Deletes an object; one that is not there is fine.
    fn delete(&self, path: &str) -> Result<(), StoreError>;
}

/// An object in writing.
pub trait Upload: io::Write + Send {
    /// Makes the object visible once it is on stable storage; returns its size.
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
