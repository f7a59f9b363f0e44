//! Where the blocks lie that are looked at.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ToolError;
use crate::block::{Block, BlockId, BlockSummary, Filter};
use crate::blocks::{self, State};
use crate::config::{Config, StorageBackend};
use crate::store::{self, LocalStore, Store};

/// A store.
pub(super) struct Place {
    pub(super) store: Arc<dyn Store>,
}

impl Place {
    /// The store in `directory`, or else the one of the configuration.
    pub(super) fn open(directory: Option<&Path>, config: &Config) -> Result<Self, ToolError> {
        if directory.is_none() && config.storage.backend == StorageBackend::S3 {
            return Ok(Self { store: store::open(&config.storage, &config.data_dir)? });
        }
        let path = local(directory, config)?;
        Ok(Self { store: Arc::new(LocalStore::open_existing(&path)?) })
    }

    /// The same, if nobody else has it open. Of a bucket this cannot be told.
    pub(super) fn open_alone(directory: Option<&Path>, config: &Config) -> Result<Self, ToolError> {
        if directory.is_some() || config.storage.backend == StorageBackend::Local {
            let path = local(directory, config)?;
            if LocalStore::is_in_use(&path)? {
                return Err(ToolError::InUse { path });
            }
        }
        Self::open(directory, config)
    }

    /// The list of blocks as it is now.
    pub(super) fn state(&self) -> Result<State, ToolError> {
        blocks::load(self.store.as_ref())?.ok_or_else(|| ToolError::NoStore { place: self.to_string() })
    }

    /// A block of the list.
    pub(super) fn summary(&self, id: BlockId) -> Result<Arc<BlockSummary>, ToolError> {
        let found = self.state()?.blocks().find(|block| block.id == id).map(Arc::clone);
        found.ok_or_else(|| ToolError::NoBlock { place: self.to_string(), id })
    }

    pub(super) fn block(&self, summary: &BlockSummary) -> Result<Block, ToolError> {
        Ok(Block::open(Arc::clone(&self.store), summary)?)
    }

    pub(super) fn filter(&self, summary: &BlockSummary) -> Result<Filter, ToolError> {
        let path = summary.filter_path();
        Ok(Filter::decode(&path, &self.store.get(&path)?)?)
    }
}

/// The directory of a local store.
fn local(directory: Option<&Path>, config: &Config) -> Result<PathBuf, ToolError> {
    let path = directory.map_or_else(|| config.data_dir.join("store"), Path::to_path_buf);
    if path.is_dir() { Ok(path) } else { Err(ToolError::NoDirectory { path }) }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}
