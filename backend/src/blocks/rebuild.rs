//! The list made anew from the blocks, when manifests are lost.

use std::collections::HashMap;
use std::sync::Arc;

use super::log::versions;
use super::manifest::{FORMAT_VERSION, Manifest, Snapshot};
use super::writer::random_commit;
use super::{BlocksError, WriterId};
use crate::block::{Block, BlockError, BlockSummary, filter_path};
use crate::store::Store;

/// What [`survey`] has found.
#[derive(Debug, Default)]
pub struct Survey {
    /// The blocks that can be read.
    pub blocks: Vec<Arc<BlockSummary>>,
    /// Files that cannot be read as blocks, and why.
    pub unreadable: Vec<(String, BlockError)>,
}

/// What [`rebuild`] has done.
#[derive(Debug)]
pub struct Rebuilt {
    /// Version of the new manifest.
    pub version: u64,
    /// The blocks that are in it.
    pub blocks: Vec<Arc<BlockSummary>>,
    /// Files that cannot be read as blocks, and why. They are left where they are, but the next search for files that
    /// are nobody's deletes them: move them away to keep them.
    pub unreadable: Vec<(String, BlockError)>,
}

/// Looks for everything in a store that is a block, whatever manifests say: opens each of them, and reads no row.
pub fn survey(store: &Arc<dyn Store>) -> Result<Survey, BlocksError> {
    let files = store.list("blocks/").map_err(BlocksError::Store)?;
    let sizes: HashMap<&str, u64> = files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
    let mut found = Survey::default();
    for file in files.iter().filter(|file| file.path.ends_with(".parquet")) {
        match Block::open_path(Arc::clone(store), &file.path) {
            Ok(block) if block.summary().data_path() == file.path => {
                let filter = filter_path(&block.summary().tenant, block.summary().id);
                let filter_bytes = sizes.get(filter.as_str()).copied().unwrap_or_default();
                let summary = BlockSummary { bytes: file.bytes, filter_bytes, ..block.summary().clone() };
                found.blocks.push(Arc::new(summary));
            }
            Ok(block) => {
                let what = format!("it says that it is {}", block.summary().data_path());
                found.unreadable.push((file.path.clone(), BlockError::Damaged { path: file.path.clone(), what }));
            }
            // A store that fails must not make blocks vanish.
            Err(BlockError::Store(error)) => return Err(BlocksError::Store(error)),
            Err(error) => found.unreadable.push((file.path.clone(), error)),
        }
    }
    Ok(found)
}

/// Makes the list of blocks anew from the blocks of a store, as a snapshot behind the newest manifest, whatever the
/// manifests before it say. Checkpoints begin again.
///
/// No backend may use the store meanwhile.
pub fn rebuild(store: &Arc<dyn Store>, writer: WriterId, now_ns: u64) -> Result<Rebuilt, BlocksError> {
    let Survey { blocks, unreadable } = survey(store)?;
    let version = versions(store.as_ref())?.last().map_or(1, |newest| newest + 1);
    let manifest = Manifest {
        format: FORMAT_VERSION,
        version,
        commit: random_commit(),
        writer,
        created_ns: now_ns,
        add: Vec::new(),
        remove: Vec::new(),
        checkpoint: None,
        snapshot: Some(Snapshot { blocks: blocks.clone(), ..Snapshot::default() }),
    };
    let path = Manifest::path(version);
    let content = manifest.encode().map_err(|source| BlocksError::Manifest { path: path.clone(), source })?;
    store.create(&path, content.into()).map_err(BlocksError::Store)?;
    Ok(Rebuilt { version, blocks, unreadable })
}
