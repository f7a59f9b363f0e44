//! Objects in an S3 bucket: AWS, Ceph RGW, MinIO and what else speaks the protocol and creates objects conditionally.
//!
//! Every call is tried again after a failure that may pass, with pauses that grow, and ends within [`Limits::total`] (a read
//! of many mebibytes: each 8 MiB of it).
//!
//! The answer to a creation can get lost, and the next try then finds the object there. So each creation marks its object
//! (user metadata `creation`) with a number of its own, and looks at the mark of an object that is in its way:
//! [`StoreError::AlreadyExists`] always means that somebody else created it. [`StoreError::Unavailable`] means that the
//! object may be there, or may still appear: read it back to know.

mod bucket;
mod client;
mod credentials;
mod error;
mod io;
mod ranges;
#[cfg(test)]
mod tests;
mod upload;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use self::bucket::Bucket;
use self::io::Io;
use self::upload::S3Upload;
use super::path::{check, check_prefix};
use super::{Object, OpenError, SettingError, Store, StoreError, Upload};
use crate::config::S3Config;

/// Most that one request reads or writes.
const PIECE_BYTES: u64 = 8 << 20;

/// How long a store is waited for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// One request, with its answer.
    pub attempt: Duration,
    /// A call, with all its tries.
    pub total: Duration,
    /// Before the second try; doubled before each further one.
    pub pause: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { attempt: Duration::from_secs(20), total: Duration::from_mins(1), pause: Duration::from_millis(100) }
    }
}

/// At start somebody waits for the message.
const AT_START: Limits =
    Limits { attempt: Duration::from_secs(5), total: Duration::from_secs(10), pause: Duration::from_millis(200) };

/// Whether the settings of a bucket can be used, as far as that shows without asking the store.
pub fn check_s3(config: &S3Config, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), SettingError> {
    client::Settings::new(config, variable)?.client(AT_START).map(drop)
}

/// A bucket, or the part of it below a prefix. Clones share its connections.
#[derive(Clone)]
pub struct S3Store {
    bucket: Arc<Bucket>,
    io: Arc<Io>,
}

impl S3Store {
    /// Connects to a bucket and lists some of it. `variable` gives environment variables: what the settings leave open comes
    /// from those that AWS's own programs read.
    pub fn open(
        config: &S3Config,
        limits: Limits,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, OpenError> {
        let settings = client::Settings::new(config, variable)?;
        let bucket = |limits| -> Result<_, OpenError> {
            let (prefix, place) = (settings.prefix.clone(), settings.place());
            Ok(Arc::new(Bucket { client: settings.client(limits)?, limits, prefix, place }))
        };
        let io = Io::start().map_err(OpenError::Thread)?;
        io.run("", bucket(AT_START)?.probe()).map_err(|error| {
            let (problem, source) = match error {
                StoreError::Denied { source, .. } => ("access refused", source),
                error @ StoreError::Unavailable { .. } => ("no answer", error.into()),
                error => ("no listing", error.into()),
            };
            OpenError::Unusable {
                place: settings.place(),
                credentials: settings.credentials.to_string(),
                problem,
                source,
            }
        })?;
        Ok(Self { bucket: bucket(limits)?, io })
    }

    fn bucket(&self) -> Arc<Bucket> {
        Arc::clone(&self.bucket)
    }
}

impl Store for S3Store {
    fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        check(path)?;
        self.io.run(path, self.bucket().get(path.to_owned()))
    }

    fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        check(path)?;
        self.io.run(path, self.bucket().get_ranges(path.to_owned(), ranges.to_vec()))
    }

    fn size(&self, path: &str) -> Result<u64, StoreError> {
        check(path)?;
        self.io.run(path, self.bucket().size(path.to_owned()))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, StoreError> {
        check_prefix(prefix)?;
        self.io.run(prefix, self.bucket().list(prefix.to_owned()))
    }

    fn create(&self, path: &str, content: Bytes) -> Result<(), StoreError> {
        check(path)?;
        self.io.run(path, self.bucket().create(path.to_owned(), content))
    }

    fn upload(&self, path: &str) -> Result<Box<dyn Upload>, StoreError> {
        check(path)?;
        Ok(Box::new(S3Upload::new(self.clone(), path)))
    }

    fn delete(&self, path: &str) -> Result<(), StoreError> {
        check(path)?;
        self.io.run(path, self.bucket().delete(path.to_owned()))
    }
}

impl fmt::Debug for S3Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Store").field(&self.bucket.place).finish()
    }
}

impl fmt::Display for S3Store {
    /// Bucket, prefix and endpoint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bucket.place)
    }
}
