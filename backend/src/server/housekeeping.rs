//! What is done every few seconds.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tracing::{error, info, warn};

use super::{blocking, now_ns, replay};
use crate::blocks::{Blocks, BlocksError, Sweep};
use crate::catalog::{BlockTags, Catalog, Hours, TagIndex, Watermark};
use crate::generator::Saved;
use crate::live::{LiveSet, Trace};
use crate::telemetry::chain;
use crate::wal::Wal;

/// Time between looks at the log.
const TICK: Duration = Duration::from_secs(1);

/// Time between looks at the catalog and the store.
const LONG_TICK: Duration = Duration::from_secs(10);

/// Bytes that are taken and let go at each long tick.
const LET_GO: usize = 1 << 20;

/// All that housekeeping looks after.
#[derive(Clone)]
pub(super) struct House {
    pub(super) wal: Arc<Wal>,
    pub(super) live: Arc<LiveSet>,
    pub(super) blocks: Arc<Blocks>,
    pub(super) tags: Arc<TagIndex>,
    pub(super) applied: Arc<Watermark>,
    pub(super) indexed: Arc<Watermark>,
    /// What of the log is counted in metrics, if any are made.
    pub(super) counted: Option<Saved>,
    pub(super) age: Duration,
    pub(super) stopping: Arc<AtomicBool>,
    /// Losses of the catalog that were made good; locked while it is being built.
    pub(super) rebuilt: Arc<Mutex<u64>>,
}

impl House {
    /// Releases the log, and does what may take long beside that. For ever.
    pub(super) async fn keep(self) {
        tokio::join!(self.release(), self.clone().keep_store());
    }

    /// Releases the log. Nothing may hold this up: a log that is full takes no spans.
    async fn release(&self) {
        loop {
            self.release_log();
            tokio::time::sleep(TICK).await;
        }
    }

    /// Lets the log go up to where everything is in blocks and counted in metrics.
    pub(super) fn release_log(&self) {
        let counted = self.counted.as_ref().map_or(u64::MAX, Saved::below);
        self.wal.release(self.blocks.checkpoint().min(counted), now_ns());
    }

    /// Stores the checkpoint of the catalog, forgets old tags, looks for the commits of others, deletes the files of blocks
    /// that are no more, and loads filters that are missing.
    async fn keep_store(self) {
        let mut pruned_hour = 0;
        // What the start has found is loaded first.
        let mut cold = true;
        loop {
            if cold {
                let house = self.clone();
                run("loading filters", move || house.blocks.warm(&house.stopping)).await;
            }
            tokio::time::sleep(LONG_TICK).await;
            let oldest_hour = self.oldest_hour();
            let prune = std::mem::replace(&mut pruned_hour, oldest_hour) != oldest_hour;
            let house = self.clone();
            let losses = run("housekeeping", move || house.tidy(prune)).await.unwrap_or_default();
            if losses {
                let house = self.clone();
                tokio::task::spawn_blocking(move || house.rebuild_catalog());
            }
            // Others have committed, or not all was loaded the last time.
            cold = !self.blocks.is_warm();
        }
    }

    /// True if the catalog works and lacks something.
    fn tidy(&self, prune: bool) -> bool {
        // The allocator gives back to the system what has been free for a second, but only when a page of its own becomes
        // free: where nothing happens any more it would keep what the last merge took.
        drop(black_box(Vec::<u8>::with_capacity(LET_GO)));
        let catalog = self.tags.store();
        store_checkpoint(catalog.as_ref(), &self.indexed);
        if prune && let Err(error) = self.tags.prune(self.oldest_hour()) {
            warn!(error = %chain(&error), "old tags not removed");
        }
        if let Err(error) = self.blocks.sweep(now_ns(), Sweep::Shared) {
            warn!(error = %chain(&error), "store not swept");
        }
        if let Err(error) = self.blocks.refresh() {
            warn!(error = %chain(&error), "commits of others not read");
        }
        let made_good = self.rebuilt.try_lock().map_or(u64::MAX, |losses| *losses);
        // Nothing in it is complete then; and only one that can be written can be built.
        made_good < catalog.losses() && catalog.set_checkpoint(0).is_ok()
    }

    fn oldest_hour(&self) -> u32 {
        let age_ns = u64::try_from(self.age.as_nanos()).unwrap_or(u64::MAX);
        Hours::of_nanos(now_ns().saturating_sub(age_ns)).first
    }

    /// Tells the catalog of everything that is in memory and in blocks, after it was lost. Blocks.
    pub(super) fn rebuild_catalog(&self) {
        let Ok(mut rebuilt) = self.rebuilt.try_lock() else { return };
        let losses = self.tags.store().losses();
        self.tags.forget();
        self.indexed.reset();
        let below = self.applied.below();
        info!("catalog is being built from memory and blocks");
        match self.index_all() {
            Ok(true) => {
                *rebuilt = losses;
                self.indexed.finish_below(below);
                info!("catalog is built");
            }
            Ok(false) => warn!("catalog is incomplete"),
            Err(error) => error!(error = %chain(&error), "catalog is incomplete"),
        }
    }

    /// False if something could not be told, or it was stopped before the end.
    fn index_all(&self) -> Result<bool, BlocksError> {
        // Memory first: what leaves it meanwhile is in the list of blocks that is taken afterwards.
        for tenant in self.live.tenants() {
            if !self.live.snapshot(&tenant).iter().all(|trace| self.index(&tenant, trace)) {
                return Ok(false);
            }
        }
        let list = self.blocks.snapshot();
        for tenant in list.tenants() {
            let mut tags = BlockTags::new(&self.tags, tenant);
            for entry in list.of(tenant) {
                let failed = |source| BlocksError::Block { block: entry.id(), source };
                let block = self.blocks.open_block(entry);
                match block.and_then(|block| tags.add(&block, &self.stopping).map_err(failed)) {
                    Ok(true) => {}
                    Ok(false) => return Ok(false),
                    Err(error) => self.blocks.pass_over(entry, error)?,
                }
            }
        }
        Ok(true)
    }

    fn index(&self, tenant: &str, trace: &Trace) -> bool {
        !self.stopping.load(Ordering::Relaxed) && replay::observe(&self.tags, tenant, [trace])
    }
}

/// Stores up to where the log is in the catalog; nothing while it is being built.
pub(super) fn store_checkpoint(catalog: &dyn Catalog, indexed: &Watermark) {
    let Some(indexed) = indexed.below().checked_sub(1) else { return };
    if let Err(error) = catalog.set_checkpoint(indexed) {
        warn!(error = %chain(&error), "checkpoint not stored: the next start indexes more");
    }
}

async fn run<T: Send + 'static>(what: &'static str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    blocking(what, work).await.inspect_err(|error| error!(error = %chain(error), "housekeeping broke off")).ok()
}
