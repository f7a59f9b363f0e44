//! The list of blocks: which there are, kept in numbered manifests in the store, and known here without asking.
//!
//! Manifests are laid out as `docs/format/manifest.md` says. [`Blocks`] is the registry, one per process; [`BlockList`]
//! is what a query takes from it and keeps while it works.

mod filters;
mod find;
mod footers;
mod list;
mod log;
pub mod manifest;
mod rebuild;
mod registry;
mod shared;
mod state;
mod sweep;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::path::PathBuf;

pub use filters::FilterRef;
pub use find::Found;
pub use list::{BlockEntry, BlockList};
pub use manifest::{Manifest, ManifestError};
pub use rebuild::{Rebuilt, Survey, rebuild, survey};
pub use registry::{Added, Blocks, BlocksConfig, Change};
pub use state::State;
pub(crate) use sweep::{ORPHAN_NS, SEARCH_EVERY_NS};
pub use sweep::{Sweep, Swept};
pub use writer::{InvalidWriterId, WriterId};

use crate::block::{BlockError, BlockId};
use crate::store::{Store, StoreError};

/// Why the list of blocks cannot be read or changed, or a block cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BlocksError {
    /// A block, or its filter, cannot be read.
    #[error("block {block} cannot be read")]
    Block {
        /// Which.
        block: BlockId,
        /// Why.
        #[source]
        source: BlockError,
    },
    /// The block was removed while it was read: what is asked must be asked again of a newer list.
    #[error("block {block} was removed meanwhile")]
    Gone {
        /// The block.
        block: BlockId,
    },
    /// Others commit all the time; nothing was committed.
    #[error("version {version} of the list of blocks was lost to other writers, as were many before it")]
    Busy {
        /// The last version that was tried.
        version: u64,
    },
    /// What was to be removed is gone, or what was to be added is there; nothing was committed.
    #[error("block {block} is not there any more, or is there already")]
    Conflict {
        /// The block.
        block: BlockId,
    },
    /// A manifest that others build upon is missing.
    #[error("{path} is missing: docs/format/manifest.md says what can be done")]
    Gap {
        /// The manifest.
        path: String,
    },
    /// A manifest cannot be read: damaged, or of another format.
    #[error("{path} cannot be read: docs/format/manifest.md says what can be done")]
    Manifest {
        /// The manifest.
        path: String,
        /// Why.
        #[source]
        source: ManifestError,
    },
    /// There are files of blocks, but nothing says which of them count.
    #[error("the store has {files} files of blocks but no manifest: docs/format/manifest.md says what can be done")]
    NoManifests {
        /// How many.
        files: usize,
    },
    /// A block was made so long ago that its files may have been deleted as nobody's; nothing was committed.
    #[error("block {block} waited too long for its commit")]
    Stale {
        /// The block.
        block: BlockId,
    },
    /// The store does not do what is asked. If it was asked to commit, nothing was committed.
    #[error("the list of blocks cannot be read or changed")]
    Store(#[source] StoreError),
    /// Whether the commit was done is not known. The files of its blocks must stay.
    #[error("version {version} of the list of blocks may or may not have been committed")]
    Unsure {
        /// The version.
        version: u64,
        /// The last error.
        #[source]
        source: Box<BlocksError>,
    },
    /// The file of the writer's identity cannot be read or written.
    #[error("cannot read or write {}", path.display())]
    WriterId {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl BlocksError {
    /// True if a commit that ended so has certainly not been done: files of the blocks that it was to add can go.
    pub fn nothing_done(&self) -> bool {
        !matches!(self, Self::Unsure { .. })
    }
}

/// What the manifests of a store say, without taking part: for tools. `None` if there are none.
pub fn load(store: &dyn Store) -> Result<Option<State>, BlocksError> {
    log::load(store, 0)
}
