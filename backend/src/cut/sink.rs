//! Where cut traces go.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::warn;

use crate::block::{BlockError, BlockId, NewBlock, data_path, filter_path, write_block};
use crate::blocks::{Added, Blocks, BlocksError, Change};
use crate::live::TenantCut;
use crate::telemetry::chain;

/// Stores what was cut.
pub trait BlockSink: Send + Sync {
    /// Writes the traces to blocks, one for each tenant, and commits all of them at once together with the checkpoint:
    /// the number in the log below which every request is in committed blocks. Once this has returned without an error
    /// every reader finds the blocks. Blocks the caller.
    ///
    /// Soon after `abandoned` is set it gives up, and nothing is committed.
    fn store(&self, tenants: &[TenantCut], checkpoint: u64, abandoned: &AtomicBool) -> Result<(), CutError>;
}

/// Why traces did not get into blocks. They are still in memory and in the log.
#[derive(Debug, thiserror::Error)]
pub enum CutError {
    /// The backend stops and waits no longer.
    #[error("given up: the backend stops")]
    Abandoned,
    /// A block could not be written.
    #[error("cannot write a block of tenant {tenant}")]
    Write {
        /// Whose it is.
        tenant: Arc<str>,
        /// Why.
        #[source]
        source: BlockError,
    },
    /// The blocks were written, but not made known.
    #[error("cannot commit blocks")]
    Commit(#[source] BlocksError),
}

/// A store with its list of blocks.
pub struct Registry {
    blocks: Arc<Blocks>,
    /// Nanoseconds since the epoch.
    clock: fn() -> u64,
}

impl Registry {
    /// `clock` gives nanoseconds since the epoch.
    pub fn new(blocks: Arc<Blocks>, clock: fn() -> u64) -> Self {
        Self { blocks, clock }
    }

    fn write(&self, cut: &TenantCut, id: BlockId) -> Result<Added, BlockError> {
        let TenantCut { tenant, traces, received_first_ns, received_last_ns } = cut;
        let new = NewBlock {
            id,
            tenant: Arc::clone(tenant),
            level: 0,
            received_first_ns: *received_first_ns,
            // Or the clock has been set since, and the block would go at once as old.
            received_last_ns: id.created_ns().max(*received_last_ns),
        };
        let (summary, filter) = write_block(self.blocks.store().as_ref(), new, traces)?;
        Ok(Added { summary, filter, ids: traces.iter().map(|trace| trace.id).collect() })
    }

    /// Deletes the files of blocks that were not committed. What stays is deleted later as nobody's.
    fn discard(&self, made: &[(Arc<str>, BlockId)]) {
        for (tenant, id) in made {
            for path in [data_path(tenant, *id), filter_path(tenant, *id)] {
                if let Err(error) = self.blocks.store().delete(&path) {
                    warn!(error = %chain(&error), "file of a block that was not committed stays for a while");
                }
            }
        }
    }
}

impl BlockSink for Registry {
    fn store(&self, tenants: &[TenantCut], checkpoint: u64, abandoned: &AtomicBool) -> Result<(), CutError> {
        let check = || if abandoned.load(Ordering::Relaxed) { Err(CutError::Abandoned) } else { Ok(()) };
        let mut made = Vec::new();
        let mut add = Vec::new();
        let written = tenants.iter().try_for_each(|cut| {
            check()?;
            let id = BlockId::new((self.clock)(), random());
            made.push((Arc::clone(&cut.tenant), id));
            let failed = |source| CutError::Write { tenant: Arc::clone(&cut.tenant), source };
            add.push(self.write(cut, id).map_err(failed)?);
            Ok(())
        });
        let committed = written.and_then(|()| check()).and_then(|()| {
            let change = Change { add, remove: Vec::new(), checkpoint: Some(checkpoint) };
            self.blocks.commit(change).map_err(CutError::Commit)
        });
        match &committed {
            // Files of blocks that may have been committed must stay.
            Err(CutError::Commit(error)) if !error.nothing_done() => {}
            Err(_) => self.discard(&made),
            Ok(()) => {}
        }
        committed
    }
}

/// The hasher's key is 128 bits of the operating system's chance.
fn random() -> u128 {
    let hasher = RandomState::new();
    let [high, low] = [0_u8, 1].map(|half| u128::from(hasher.hash_one(half)));
    (high << 64) | low
}
