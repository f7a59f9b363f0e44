//! From settings to a store.

use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;

use super::{Limits, LocalStore, S3Store, Source, Store, StoreError};
use crate::config::{StorageBackend, StorageConfig};

/// Why a store cannot be used. One line, which says where it was looked for.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory cannot be used.
    #[error("no store in a directory")]
    Local(#[source] StoreError),
    /// It replaces what is there.
    #[error(
        "{place} replaces objects instead of refusing to create them again (`If-None-Match: *`): \
         backends would destroy each other's work there"
    )]
    NotConditional {
        /// The store.
        place: String,
    },
    /// It cannot be written.
    #[error("{place} cannot be written")]
    ReadOnly {
        /// The store.
        place: String,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// A setting.
    #[error(transparent)]
    Setting(#[from] SettingError),
    /// No thread for it.
    #[error("no thread for the bucket")]
    Thread(#[source] std::io::Error),
    /// The bucket does not answer as it should.
    #[error("bucket {place}, with credentials from {credentials}: {problem}")]
    Unusable {
        /// Bucket and endpoint.
        place: String,
        /// Where the credentials come from.
        credentials: String,
        /// What is wrong.
        problem: &'static str,
        /// What the store said.
        #[source]
        source: Source,
    },
}

impl OpenError {
    /// Whether another try can help: the store cannot be reached, or is full.
    pub fn passes(&self) -> bool {
        match self {
            Self::Local(source) | Self::ReadOnly { source, .. } => source.passes(),
            Self::Unusable { source, .. } => source.downcast_ref().is_some_and(StoreError::passes),
            Self::NotConditional { .. } | Self::Setting(_) | Self::Thread(_) => false,
        }
    }
}

/// A setting that cannot be used, or a file that it names. One line that says which, and what is expected.
#[derive(Debug, thiserror::Error)]
#[error("storage.s3.{key}: {problem}")]
pub struct SettingError {
    /// The key.
    pub key: &'static str,
    /// What is expected, or wrong.
    pub problem: String,
}

/// The store that the settings name; `directory` is that of `backend: local`.
pub fn open(config: &StorageConfig, directory: &Path) -> Result<Arc<dyn Store>, OpenError> {
    Ok(match config.backend {
        StorageBackend::Local => Arc::new(LocalStore::open(directory).map_err(OpenError::Local)?),
        StorageBackend::S3 => Arc::new(S3Store::open(&config.s3, Limits::default(), &|name| std::env::var(name).ok())?),
    })
}

/// Tries whether a store creates objects, and none twice. Old versions of some servers replace them.
pub fn check_writes(store: &dyn Store) -> Result<(), OpenError> {
    let path = format!("probe/{:016x}", RandomState::new().hash_one(()));
    let place = || store.to_string();
    let read_only = |source| OpenError::ReadOnly { place: place(), source };
    store.create(&path, "first".into()).map_err(read_only)?;
    let second = store.create(&path, "second".into());
    store.delete(&path).map_err(read_only)?;
    match second {
        Err(StoreError::AlreadyExists { .. }) => Ok(()),
        Ok(()) => Err(OpenError::NotConditional { place: place() }),
        Err(source) => Err(read_only(source)),
    }
}
