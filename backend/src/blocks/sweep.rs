//! Deleting what nobody needs any more.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, Weak};

use fail::fail_point;
use tracing::{info, warn};

use super::log::LOOK_NS;
use super::manifest::{FOLDER, Manifest};
use super::registry::COMMIT_WITHIN_NS;
use super::{Blocks, BlocksError};
use crate::block::{BlockId, data_path, filter_path};
use crate::telemetry::chain;

/// The store is searched for files that are nobody's so often.
pub(crate) const SEARCH_EVERY_NS: u64 = 3_600 * 1_000_000_000;

/// Files of blocks that are in no list are nobody's when they are so old; younger ones may wait for their commit, and what
/// somebody copied in the wrong order may still be put right.
pub(crate) const ORPHAN_NS: u64 = 2 * COMMIT_WITHIN_NS;

/// Manifests before the last two snapshots are deleted when they are so old: far longer than a writer goes without
/// looking for newer ones.
const MANIFEST_NS: u64 = 6 * LOOK_NS;

/// Who else may use the store.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sweep {
    /// Nobody, and this process has not begun to write or to answer: removed blocks go at once. For the start with a
    /// local store, which the lock of the data directory keeps others from.
    Alone,
    /// Others, or other threads.
    Shared,
}

/// What was deleted.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Swept {
    /// Removed blocks.
    pub blocks: u64,
    /// Files that belonged to no block of the list.
    pub orphans: u64,
    /// Old manifests.
    pub manifests: u64,
}

impl Blocks {
    /// Deletes the files of removed blocks that nobody here reads any more, after a time for the readers elsewhere; and
    /// once an hour files that nobody committed, and old manifests. What cannot be deleted is left for the next time.
    pub fn sweep(&self, now_ns: u64, sweep: Sweep) -> Result<Swept, BlocksError> {
        let mut swept = Swept { blocks: self.delete_removed(now_ns, sweep), ..Swept::default() };
        let searched_ns = self.searched_ns.load(Ordering::Relaxed);
        if sweep == Sweep::Alone || now_ns.abs_diff(searched_ns) >= SEARCH_EVERY_NS {
            self.searched_ns.store(now_ns, Ordering::Relaxed);
            if self.went_back {
                warn!(store = %self.store, "manifests are lost: files that no list names stay");
            } else {
                swept.orphans = self.delete_orphans(now_ns)?;
                swept.manifests = self.delete_manifests(now_ns)?;
            }
            let list = self.snapshot();
            let listed: HashSet<BlockId> = list.blocks().map(|entry| entry.id()).collect();
            self.logged.lock().unwrap_or_else(PoisonError::into_inner).retain(|block, _| listed.contains(block));
            if let Err(error) = self.catalog.retain_blocks(&|block| listed.contains(&block)) {
                warn!(error = %chain(&error), "catalog keeps what it knows of removed blocks");
            }
        }
        if swept != Swept::default() {
            let Swept { blocks, orphans, manifests } = swept;
            info!(blocks, orphans, manifests, "store swept");
        }
        Ok(swept)
    }

    fn delete_removed(&self, now_ns: u64, sweep: Sweep) -> u64 {
        let grace_ns = u64::try_from(self.config.grace.as_nanos()).unwrap_or(u64::MAX);
        let known = self.known();
        // A clock that was set back must not keep them for ever.
        let is_due = |seen_ns: u64| sweep == Sweep::Alone || now_ns.abs_diff(seen_ns) >= grace_ns;
        let is_read = |block| known.leaving.get(block).is_some_and(|entry| Weak::strong_count(entry) > 0);
        let due = known.log.state.removed.iter().filter(|(block, removed)| is_due(removed.seen_ns) && !is_read(block));
        let due: Vec<_> = due.map(|(_, removed)| removed.block.clone()).collect();
        drop(known);
        let mut deleted = 0;
        for block in due {
            let paths = [data_path(&block.tenant, block.id), filter_path(&block.tenant, block.id)];
            if paths.iter().all(|path| self.delete(path)) {
                deleted += 1;
                self.metrics.deleted.inc();
                let mut known = self.known();
                known.log.state.removed.remove(&block.id);
                known.leaving.remove(&block.id);
            }
        }
        deleted
    }

    fn delete_orphans(&self, now_ns: u64) -> Result<u64, BlocksError> {
        let files = self.store.list("blocks/").map_err(BlocksError::Store)?;
        // Only now, so that what was committed while the files were listed is known.
        self.refresh()?;
        let known = self.known();
        let is_orphan = |path: &str, modified_ns: u64| {
            let Some((tenant, block)) = block_of(path) else { return false };
            let state = &known.log.state;
            let listed = state.blocks.get(&block).is_some_and(|summary| *summary.tenant == *tenant);
            let is_old = modified_ns.saturating_add(ORPHAN_NS) <= now_ns;
            !listed && !state.removed.contains_key(&block) && is_old
        };
        let orphans: Vec<_> = files.into_iter().filter(|file| is_orphan(&file.path, file.modified_ns)).collect();
        drop(known);
        let deleted = orphans.iter().filter(|file| self.delete(&file.path)).count() as u64;
        self.metrics.orphans.inc_by(deleted);
        Ok(deleted)
    }

    fn delete_manifests(&self, now_ns: u64) -> Result<u64, BlocksError> {
        let oldest = self.known().log.state.snapshot_before;
        let files = self.store.list(FOLDER).map_err(BlocksError::Store)?;
        let is_old = |path: &str| Manifest::version_of(path).is_some_and(|version| version < oldest);
        let old =
            files.iter().filter(|file| is_old(&file.path) && file.modified_ns.saturating_add(MANIFEST_NS) <= now_ns);
        Ok(old.filter(|file| self.delete(&file.path)).count() as u64)
    }

    fn delete(&self, path: &str) -> bool {
        fail_point!("blocks::deleting");
        let deleted = self.store.delete(path);
        if let Err(error) = &deleted {
            warn!(error = %chain(error), "not deleted, tried again later");
        }
        deleted.is_ok()
    }
}

/// Tenant and block of a file of a block.
fn block_of(path: &str) -> Option<(&str, BlockId)> {
    let (tenant, name) = path.strip_prefix("blocks/")?.split_once('/')?;
    let block = name.strip_suffix(".parquet").or_else(|| name.strip_suffix(".filter"))?;
    Some((tenant, block.parse().ok()?))
}
