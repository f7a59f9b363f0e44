//! Filters of blocks, so many of them in memory as there is room for.
//!
//! A filter takes 18 bits for each trace of its block. Those that find no room are asked in their files: three fingerprints
//! are read to look for one trace, the whole file where many traces are looked for.

use std::ops::Deref;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tracing::warn;

use super::shared::Sharing;
use super::{BlockEntry, Blocks, BlocksError};
use crate::block::{BlockError, Filter, FilterShape};
use crate::live::TraceId;
use crate::store::StoreError;
use crate::telemetry::chain;

/// Memory for filters. Those that came first stay: every look for a trace asks all of them, so that one would push out the
/// next where those that were used last stay.
#[derive(Debug)]
pub(super) struct FilterRoom {
    limit_bytes: usize,
    held_bytes: AtomicUsize,
}

impl FilterRoom {
    pub(super) fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self { limit_bytes, held_bytes: AtomicUsize::new(0) })
    }

    /// Memory that filters take.
    pub(super) fn held_bytes(&self) -> usize {
        self.held_bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = |held: usize| held.checked_add(bytes).filter(|held| *held <= self.limit_bytes);
        self.held_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }
}

/// What is in memory of the filter of a block.
#[derive(Debug)]
pub(super) struct FilterSlot {
    room: Arc<FilterRoom>,
    held: OnceLock<Filter>,
    /// By which it is asked in its file, which was read whole once and is sound.
    shape: OnceLock<FilterShape>,
}

impl FilterSlot {
    pub(super) fn new(room: Arc<FilterRoom>) -> Self {
        Self { room, held: OnceLock::new(), shape: OnceLock::new() }
    }

    pub(super) fn get(&self) -> Option<&Filter> {
        self.held.get()
    }

    /// Whether it is in memory, or can be asked in its file.
    pub(super) fn is_known(&self) -> bool {
        self.held.get().is_some() || self.shape.get().is_some()
    }

    /// Keeps a filter if there is room.
    pub(super) fn offer(&self, filter: Filter) -> Option<Filter> {
        let bytes = filter.bytes();
        if !self.room.take(bytes) {
            let _known = self.shape.set(filter.shape());
            return Some(filter);
        }
        // Somebody else may have come before.
        self.held.set(filter).inspect_err(|_| _ = self.room.held_bytes.fetch_sub(bytes, Ordering::Relaxed)).err()
    }
}

impl Drop for FilterSlot {
    fn drop(&mut self) {
        if let Some(filter) = self.held.get() {
            self.room.held_bytes.fetch_sub(filter.bytes(), Ordering::Relaxed);
        }
    }
}

/// A filter, which stays in memory or not.
pub enum FilterRef<'e> {
    /// It stays.
    Held(&'e Filter),
    /// It was read for this use.
    Read(Filter),
}

impl Deref for FilterRef<'_> {
    type Target = Filter;

    fn deref(&self) -> &Filter {
        match self {
            Self::Held(filter) => filter,
            Self::Read(filter) => filter,
        }
    }
}

impl Blocks {
    /// Which traces a block may have; read from the store at first, then kept with the entry as long as there is room. A
    /// filter that is lost or damaged is made anew from the block.
    pub fn filter<'e>(&self, entry: &'e BlockEntry) -> Result<FilterRef<'e>, BlocksError> {
        check_not_lost(entry)?;
        if let Some(filter) = entry.filter.get() {
            return Ok(FilterRef::Held(filter));
        }
        let path = entry.summary.filter_path();
        let read = self.store.get(&path).map_err(BlockError::from).and_then(|bytes| Filter::decode(&path, &bytes));
        let filter = match read {
            Ok(filter) => filter,
            Err(BlockError::Store(error)) if !matches!(error, StoreError::NotFound { .. }) => {
                return Err(BlocksError::Block { block: entry.id(), source: error.into() });
            }
            Err(error) => {
                let ids = self.distinct_ids(entry)?;
                warn!(error = %chain(&error), "filter of a block is made anew");
                self.metrics.rebuilt_filters.inc();
                Filter::of(ids.into_iter())
            }
        };
        let rejected = entry.filter.offer(filter);
        self.metrics.filter_bytes.set(self.filters.held_bytes() as i64);
        match (entry.filter.get(), rejected) {
            (Some(filter), _) => Ok(FilterRef::Held(filter)),
            (None, Some(filter)) => Ok(FilterRef::Read(filter)),
            // What is not rejected is there.
            (None, None) => self.filter(entry),
        }
    }

    /// Whether a block may have a trace.
    pub(super) fn may_have(&self, entry: &BlockEntry, id: &TraceId) -> Result<bool, BlocksError> {
        if let (None, Some(shape)) = (entry.filter.get(), entry.filter.shape.get())
            && let Ok(parts) = self.store.get_ranges(&entry.summary.filter_path(), &shape.parts(id))
        {
            return Ok(shape.contains(id, &parts));
        }
        Ok(self.filter(entry)?.contains(id))
    }

    /// What is done with a block whose filter could neither be read nor be made anew: if it is in the list still, it counts
    /// as lost. `error` is why.
    ///
    /// Without this every trace of every later block would have to be looked for by itself, since it may be in this one too.
    pub(super) fn give_up(&self, entry: &BlockEntry, error: &BlocksError) -> Result<(), BlocksError> {
        self.refresh()?;
        if self.known().has(entry.id()) {
            entry.set_lost();
            self.metrics.lost.inc();
            self.log(entry, error, "block and filter cannot be read: the block counts as lost until the next start");
        }
        Ok(())
    }

    /// Which of its traces a block shares with others of its tenant, rising. `None` if `stop` was set.
    pub(super) fn shared_with(
        &self,
        entry: &BlockEntry,
        others: &[&Arc<BlockEntry>],
        stop: &AtomicBool,
    ) -> Result<Option<Arc<[TraceId]>>, BlocksError> {
        let mut sharing = Sharing::default();
        let ask = |sharing: &mut Sharing| {
            for other in others {
                if stop.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                sharing.ask(&*self.filter(other)?);
            }
            sharing.settle();
            Ok(true)
        };
        let mut ids = self.open_block(entry)?.distinct_ids();
        let failed = |source| BlocksError::Block { block: entry.id(), source };
        while let Some(id) = ids.next().transpose().map_err(failed)? {
            if sharing.add(id) && !ask(&mut sharing)? {
                return Ok(None);
            }
        }
        Ok(ask(&mut sharing)?.then(|| sharing.into_shared()))
    }

    fn distinct_ids(&self, entry: &BlockEntry) -> Result<Vec<TraceId>, BlocksError> {
        let ids: Result<Vec<_>, _> = self.open_block(entry)?.distinct_ids().collect();
        ids.map_err(|source| BlocksError::Block { block: entry.id(), source })
    }
}

/// A block that counts as lost stays lost if its file comes back: it is not known which of its traces others have.
pub(super) fn check_not_lost(entry: &BlockEntry) -> Result<(), BlocksError> {
    if !entry.is_lost() {
        return Ok(());
    }
    let what = "it could not be read, and neither could its filter; looked at again at the next start";
    let source = BlockError::damaged(&entry.summary.data_path(), what);
    Err(BlocksError::Block { block: entry.id(), source })
}
