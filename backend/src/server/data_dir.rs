//! The data directory, held by one backend at a time.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use super::ServerError;
use crate::store::create_dir;

/// An open data directory; the lock is released when this goes, or the process.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Makes the directory if need be, and locks it.
    pub(super) fn open(path: &Path) -> Result<Self, ServerError> {
        let unusable = |source| ServerError::DataDir { path: path.to_owned(), source };
        create_dir(path).map_err(unusable)?;
        let options = File::options().create(true).truncate(false).write(true).clone();
        let lock = options.open(path.join("LOCK")).map_err(unusable)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => ServerError::DataDirInUse { path: path.to_owned() },
            TryLockError::Error(source) => unusable(source),
        })?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// Where the log is.
    pub(super) fn wal(&self) -> PathBuf {
        self.path.join("wal")
    }

    /// The directory itself.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where blocks are, if they are not in a bucket.
    pub(super) fn store(&self) -> PathBuf {
        self.path.join("store")
    }

    /// Where metrics that are made of spans are.
    pub(super) fn generator(&self) -> PathBuf {
        self.path.join("generator")
    }

    /// Where the catalog is.
    pub(super) fn catalog(&self) -> PathBuf {
        self.path.join("catalog")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_never_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let second = DataDir::open(&path).unwrap_err();
        assert!(matches!(second, ServerError::DataDirInUse { .. }), "{second}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[test]
    fn a_file_in_its_place_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = DataDir::open(file.path()).unwrap_err();
        assert!(matches!(error, ServerError::DataDir { .. }), "{error}");
    }
}
