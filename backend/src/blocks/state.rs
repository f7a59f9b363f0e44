//! What all commits together say.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::WriterId;
use super::manifest::{Manifest, ManifestError, RemovedBlock, Snapshot};
use crate::block::{BlockId, BlockSummary};

/// The sum of all commits up to a version.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub(super) version: u64,
    /// Version of the newest snapshot.
    pub(super) snapshot: u64,
    /// Version of the snapshot before it, 0 if it is not known.
    pub(super) snapshot_before: u64,
    pub(super) blocks: BTreeMap<BlockId, Arc<BlockSummary>>,
    pub(super) checkpoints: BTreeMap<WriterId, u64>,
    pub(super) removed: BTreeMap<BlockId, Removed>,
}

/// A block whose files wait for deletion.
#[derive(Clone, Debug)]
pub(super) struct Removed {
    pub(super) block: RemovedBlock,
    /// When it was seen here that it is removed: from then on its readers have time. Their clocks may differ from that
    /// of the writer who removed it.
    pub(super) seen_ns: u64,
}

impl State {
    /// Version of the newest manifest in it.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// All blocks, oldest name first.
    pub fn blocks(&self) -> impl Iterator<Item = &Arc<BlockSummary>> {
        self.blocks.values()
    }

    /// Blocks whose files wait for deletion.
    pub fn removed(&self) -> impl Iterator<Item = &RemovedBlock> {
        self.removed.values().map(|removed| &removed.block)
    }

    /// Checkpoints of all writers.
    pub fn checkpoints(&self) -> &BTreeMap<WriterId, u64> {
        &self.checkpoints
    }

    /// What a snapshot says.
    pub(super) fn of_snapshot(version: u64, snapshot: Snapshot, now_ns: u64) -> Result<Self, ManifestError> {
        let Snapshot { blocks, checkpoints, removed } = snapshot;
        let mut state = Self { version, snapshot: version, checkpoints, ..Self::default() };
        for summary in blocks {
            let block = summary.id;
            if state.blocks.insert(block, summary).is_some() {
                return Err(ManifestError::Added { block });
            }
        }
        let removed = removed.into_iter().map(|block| (block.id, Removed { block, seen_ns: now_ns }));
        state.removed = removed.collect();
        Ok(state)
    }

    /// Everything, for a manifest.
    pub(super) fn to_snapshot(&self) -> Snapshot {
        Snapshot {
            blocks: self.blocks.values().map(Arc::clone).collect(),
            checkpoints: self.checkpoints.clone(),
            removed: self.removed.values().map(|removed| removed.block.clone()).collect(),
        }
    }

    /// Adds a commit, the one of the next version. The state is as it was if that fails.
    pub(super) fn apply(&mut self, manifest: &Manifest, now_ns: u64) -> Result<(), ManifestError> {
        let Manifest { format: _, version, commit: _, writer, created_ns, add, remove, checkpoint, snapshot } =
            manifest;
        if *version != self.version + 1 {
            return Err(ManifestError::Version { found: *version });
        }
        let mut blocks = self.blocks.clone();
        let mut removed = Vec::with_capacity(remove.len());
        for block in remove {
            let summary = blocks.remove(block).ok_or(ManifestError::Removed { block: *block })?;
            let tenant = Arc::clone(&summary.tenant);
            removed.push(RemovedBlock { id: *block, tenant, removed_ns: *created_ns });
        }
        for summary in add {
            let block = summary.id;
            if blocks.insert(block, Arc::new(summary.clone())).is_some() {
                return Err(ManifestError::Added { block });
            }
        }
        self.blocks = blocks;
        self.removed.extend(removed.into_iter().map(|block| (block.id, Removed { block, seen_ns: now_ns })));
        if let Some(checkpoint) = checkpoint {
            let known = self.checkpoints.entry(*writer).or_default();
            *known = (*known).max(*checkpoint);
        }
        self.version = *version;
        if snapshot.is_some() {
            self.snapshot_before = std::mem::replace(&mut self.snapshot, *version);
        }
        Ok(())
    }
}
