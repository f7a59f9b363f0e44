//! A trace by its id, and queries when a block cannot be read.

use std::sync::{Arc, PoisonError};

use tracing::error;

use super::{BlockEntry, BlockList, Blocks, BlocksError};
use crate::block::{BlockError, BlockId};
use crate::live::{Trace, TraceId};
use crate::store::StoreError;
use crate::telemetry::chain;

/// A line about the same block is logged at most so often.
const LOG_EVERY_NS: u64 = 60 * 1_000_000_000;

/// Times that a query begins again with a newer list.
const NEWER_LISTS: u32 = 5;

/// What is in blocks of one trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Found {
    /// Fragments, that of the block with the oldest data (by the time at which it was received) first.
    pub traces: Vec<Trace>,
    /// Blocks that may have more of it but cannot be read.
    pub skipped: Vec<BlockId>,
}

impl Blocks {
    /// Everything in blocks of one trace.
    pub fn find(&self, list: &BlockList, tenant: &str, id: &TraceId) -> Result<Found, BlocksError> {
        let mut found = Found::default();
        for entry in self.candidates(list, tenant, id) {
            match self.fragment(&entry, id) {
                Ok(fragment) => found.traces.extend(fragment),
                Err(error) => {
                    self.pass_over(&entry, error)?;
                    found.skipped.push(entry.id());
                }
            }
        }
        Ok(found)
    }

    /// The blocks that may have a trace, that with the oldest data (by the time at which it was received) first. Those
    /// whose filter cannot be had are among them.
    pub fn candidates(&self, list: &BlockList, tenant: &str, id: &TraceId) -> Vec<Arc<BlockEntry>> {
        let may_have = |entry: &&Arc<BlockEntry>| self.may_have(entry, id).unwrap_or(true);
        let mut blocks: Vec<_> = list.of(tenant).filter(may_have).map(Arc::clone).collect();
        blocks.sort_unstable_by_key(|entry| (entry.summary.received_first_ns, entry.id()));
        blocks
    }

    /// Whether a trace is in another block than this one, which filters alone say of too many; true also if that cannot be
    /// found out.
    pub fn is_in_another(&self, list: &BlockList, tenant: &str, id: &TraceId, than: BlockId) -> bool {
        let others = self.candidates(list, tenant, id);
        let mut others = others.iter().filter(|entry| entry.id() != than);
        others.any(|entry| self.open_block(entry).ok().is_none_or(|block| block.has(id).unwrap_or(true)))
    }

    /// What one block has of a trace.
    pub fn fragment(&self, entry: &BlockEntry, id: &TraceId) -> Result<Option<Trace>, BlocksError> {
        self.open_block(entry)?.trace(id).map_err(|source| BlocksError::Block { block: entry.id(), source })
    }

    /// Whether a query may go on without a block that it could not read. `Ok` if so: the block is damaged or its file is
    /// lost; that is counted and logged, and the answer is not whole. [`BlocksError::Gone`] if the block was removed
    /// meanwhile: see [`Self::with_list`]. Any other error is for the client: the store fails, or refuses access.
    pub fn pass_over(&self, entry: &BlockEntry, error: BlocksError) -> Result<(), BlocksError> {
        let block = entry.id();
        match &error {
            BlocksError::Block { source: BlockError::Store(StoreError::NotFound { .. }), .. } => {
                self.refresh()?;
                if self.snapshot().of(&entry.summary.tenant).all(|listed| listed.id() != block) {
                    return Err(BlocksError::Gone { block });
                }
            }
            BlocksError::Block { .. } if !is_trouble(&error) => {}
            _ => return Err(error),
        }
        self.metrics.unreadable.inc();
        self.log(entry, &error, "answers lack a block that cannot be read");
        Ok(())
    }

    /// Logs what is wrong with a block, unless something was logged of it just now.
    pub(super) fn log(&self, entry: &BlockEntry, error: &BlocksError, what: &'static str) {
        let now_ns = (self.config.clock)();
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        let last_ns = logged.entry(entry.id()).or_default();
        if *last_ns == 0 || now_ns.abs_diff(*last_ns) >= LOG_EVERY_NS {
            *last_ns = now_ns;
            error!(path = entry.summary.data_path(), error = %chain(error), "{what}");
        }
    }

    /// Runs a query on the present list, and again on a newer one if a block of it was removed meanwhile.
    pub fn with_list<T, E>(
        &self,
        is_gone: impl Fn(&E) -> bool,
        mut query: impl FnMut(&Arc<BlockList>) -> Result<T, E>,
    ) -> Result<T, E> {
        for _ in 1..NEWER_LISTS {
            match query(&self.snapshot()) {
                Err(error) if is_gone(&error) => {}
                answer => return answer,
            }
        }
        query(&self.snapshot())
    }
}

/// Whether the trouble is with the store, and not with this block.
pub(super) fn is_trouble(error: &BlocksError) -> bool {
    let BlocksError::Block { source: BlockError::Store(error), .. } = error else { return false };
    matches!(error, StoreError::Denied { .. } | StoreError::Full { .. } | StoreError::Unavailable { .. })
}
