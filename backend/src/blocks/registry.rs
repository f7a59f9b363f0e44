//! The registry of blocks.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::{error, info, warn};

use super::filters::{FilterRoom, check_not_lost};
use super::find::is_trouble;
use super::footers::Footers;
use super::list::{BlockEntry, BlockList};
use super::log::{Commit, ManifestLog};
use super::shared::shared_ids;
use super::{BlocksError, WriterId};
use crate::block::{Block, BlockId, BlockSummary, Filter};
use crate::catalog::{BlockCatalog, SeenList};
use crate::live::TraceId;
use crate::store::Store;
use crate::telemetry::{BackendLabels, BlocksMetrics, TenantLabels, chain};

/// A block is committed within this time after it was made, or not at all: later its files may have been deleted as
/// nobody's (after twice the time: clocks differ).
pub(super) const COMMIT_WITHIN_NS: u64 = 3_600 * 1_000_000_000;

/// Blocks after which newly found shared ids are told to queries.
const PUBLISH_EVERY: usize = 32;

/// How the registry works.
#[derive(Clone, Copy, Debug)]
pub struct BlocksConfig {
    /// Nanoseconds since the epoch.
    pub clock: fn() -> u64,
    /// Waits between the tries of a commit.
    pub sleep: fn(Duration),
    /// Memory for open blocks.
    pub footer_bytes: usize,
    /// Memory for filters.
    pub filter_bytes: usize,
    /// Files of a removed block stay for so long, for the queries of other processes.
    pub grace: Duration,
}

impl Default for BlocksConfig {
    /// The system's clock, 32 MiB of open blocks, 64 MiB of filters, which is enough for 29 million traces, one minute.
    fn default() -> Self {
        let clock = || {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
        };
        let (footer_bytes, filter_bytes) = (32 << 20, 64 << 20);
        Self { clock, sleep: thread::sleep, footer_bytes, filter_bytes, grace: Duration::from_mins(1) }
    }
}

/// A finished block that is to be added.
#[derive(Clone, Debug)]
pub struct Added {
    /// What is known of it.
    pub summary: BlockSummary,
    /// Its filter.
    pub filter: Filter,
    /// Ids of all its traces, rising.
    pub ids: Vec<TraceId>,
}

/// What a commit changes: all of it at once, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Change {
    /// New blocks, whose files are in the store.
    pub add: Vec<Added>,
    /// Blocks that are to be there no more.
    pub remove: Vec<BlockId>,
    /// Every frame of this writer's log with a lower sequence number is in blocks now.
    pub checkpoint: Option<u64>,
}

/// Which blocks there are: what the manifests say, filters, open blocks, and which traces are in more than one.
///
/// Everything that may wait for the store blocks; [`Self::snapshot`] and [`Self::checkpoint`] do not.
pub struct Blocks {
    pub(super) store: Arc<dyn Store>,
    pub(super) catalog: Arc<dyn BlockCatalog>,
    pub(super) config: BlocksConfig,
    pub(super) metrics: BlocksMetrics,
    writer: WriterId,
    known: Mutex<Known>,
    list: RwLock<Arc<BlockList>>,
    checkpoint: AtomicU64,
    footers: Footers,
    pub(super) filters: Arc<FilterRoom>,
    /// Whether manifests were lost, so that files of blocks may be in no list for that.
    pub(super) went_back: bool,
    /// When a line about a block was last logged.
    pub(super) logged: Mutex<HashMap<BlockId, u64>>,
    /// When the store was last searched for files that are nobody's.
    pub(super) searched_ns: AtomicU64,
}

/// What changes with commits. Locked while one is under way, so that there is one at a time.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) log: ManifestLog,
    entries: BTreeMap<BlockId, Arc<BlockEntry>>,
    /// See [`super::shared`].
    shared: HashMap<BlockId, Arc<[TraceId]>>,
    /// Removed blocks that queries may still read.
    pub(super) leaving: HashMap<BlockId, Weak<BlockEntry>>,
    filters: Arc<FilterRoom>,
}

impl Blocks {
    /// Reads the manifests of a store, and makes the first in an empty one.
    pub fn open(
        store: Arc<dyn Store>,
        writer: WriterId,
        catalog: Arc<dyn BlockCatalog>,
        config: BlocksConfig,
        metrics: BlocksMetrics,
    ) -> Result<Self, BlocksError> {
        let log = ManifestLog::open(Arc::clone(&store), writer, config, metrics.clone())?;
        let went_back = went_back(catalog.as_ref(), &store.to_string(), log.state.version);
        metrics.went_back.set(went_back.into());
        let filters = FilterRoom::new(config.filter_bytes);
        let mut known = Known {
            log,
            entries: BTreeMap::new(),
            shared: HashMap::new(),
            leaving: HashMap::new(),
            filters: Arc::clone(&filters),
        };
        known.follow();
        for block in known.entries.keys() {
            match catalog.shared_ids(*block) {
                Ok(Some(ids)) => _ = known.shared.insert(*block, ids.into()),
                Ok(None) => {}
                // It is found out again.
                Err(error) => {
                    warn!(error = %chain(&error), "catalog has no shared traces of blocks");
                    break;
                }
            }
        }
        let blocks = Self {
            store,
            catalog,
            config,
            metrics,
            writer,
            list: RwLock::default(),
            checkpoint: AtomicU64::new(0),
            footers: Footers::new(config.footer_bytes),
            filters,
            went_back,
            logged: Mutex::default(),
            searched_ns: AtomicU64::new(0),
            known: Mutex::new(known),
        };
        blocks.publish(&blocks.known());
        let list = blocks.snapshot();
        info!(store = %blocks.store, version = list.version(), blocks = list.len(), "blocks listed");
        Ok(blocks)
    }

    /// All blocks as of now.
    pub fn snapshot(&self) -> Arc<BlockList> {
        Arc::clone(&self.list.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Every frame of this writer's log with a lower sequence number is in blocks of [`Self::snapshot`].
    pub fn checkpoint(&self) -> u64 {
        self.checkpoint.load(Ordering::Acquire)
    }

    /// Where the blocks are.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Commits a change; afterwards it is in [`Self::snapshot`].
    ///
    /// Tries again while the store fails, for some seconds. After an error of which [`BlocksError::nothing_done`] is true
    /// the files of the new blocks can be deleted; after another one they must stay, and what was to be committed must be
    /// taken as neither done nor not done. Files that stay for nothing are deleted by [`Self::sweep`].
    pub fn commit(&self, change: Change) -> Result<(), BlocksError> {
        let Change { add, remove, checkpoint } = change;
        let now_ns = (self.config.clock)();
        let is_old = |block: &BlockId| block.created_ns().saturating_add(COMMIT_WITHIN_NS) < now_ns;
        if let Some(block) = add.iter().map(|added| added.summary.id).find(is_old) {
            return Err(BlocksError::Stale { block });
        }
        let summaries: Vec<BlockSummary> = add.iter().map(|added| added.summary.clone()).collect();
        let mut known = self.known();
        let committed = known.log.commit(Commit { add: &summaries, remove: &remove, checkpoint });
        // What others have committed is known now even if this was not.
        known.follow();
        if committed.is_ok() {
            let added = add.into_iter().map(|Added { summary, filter, ids }| {
                known.entries.get(&summary.id).inspect(|entry| _ = entry.filter.offer(filter));
                (summary.id, ids)
            });
            let added: Vec<_> = added.collect();
            for (block, ids) in added {
                let Some((shared, is_whole)) = known.shared_now(block, &ids) else { continue };
                if is_whole {
                    self.remember(block, &shared);
                }
                known.shared.insert(block, shared);
            }
        }
        self.publish_newer(&known);
        committed
    }

    /// Looks for commits of other writers; true if there were any.
    pub fn refresh(&self) -> Result<bool, BlocksError> {
        let mut known = self.known();
        let refreshed = known.log.refresh();
        known.follow();
        self.publish_newer(&known);
        refreshed
    }

    /// A block, open for reading. Those that were used last stay open.
    pub fn open_block(&self, entry: &BlockEntry) -> Result<Block, BlocksError> {
        check_not_lost(entry)?;
        if let Some(block) = self.footers.get(entry.id()) {
            return Ok(block);
        }
        let opened = Block::open(Arc::clone(&self.store), &entry.summary);
        let block = opened.map_err(|source| BlocksError::Block { block: entry.id(), source })?;
        self.footers.put(entry.id(), block.clone(), block.memory());
        self.metrics.footer_bytes.set(self.footers.bytes() as i64);
        Ok(block)
    }

    /// Whether all that [`Self::warm`] loads is in memory. A commit may end this: it brings what others have committed,
    /// and blocks that came while filters were still being loaded.
    pub fn is_warm(&self) -> bool {
        let list = self.snapshot();
        list.blocks().all(|entry| entry.filter.is_known() || entry.is_lost()) && list.pending().next().is_none()
    }

    /// Loads what queries need and finds out what is not known yet: filters, and which traces are in more than one block.
    /// For a thread of its own, whenever [`Self::is_warm`] is false. Ends early when `stop` is set. A block for which it
    /// cannot be done is left for the next time.
    pub fn warm(&self, stop: &AtomicBool) {
        let list = self.snapshot();
        for entry in list.blocks().filter(|entry| !entry.filter.is_known() && !entry.is_lost()) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match self.filter(entry) {
                Ok(_) => {}
                Err(error) if is_trouble(&error) => {
                    warn!(error = %chain(&error), "filters not loaded, tried again later");
                    return;
                }
                Err(error) => {
                    if let Err(error) = self.give_up(entry, &error) {
                        warn!(error = %chain(&error), "list of blocks not read, tried again later");
                        return;
                    }
                }
            }
        }
        let mut found = Vec::new();
        for entry in list.pending() {
            if entry.is_lost() {
                // Nothing of it is ever shown.
                found.push((entry.id(), Arc::default()));
                continue;
            }
            let others = list.of(&entry.summary.tenant).filter(|other| other.id() != entry.id());
            let (missing, others): (Vec<_>, Vec<_>) = others.partition(|other| other.is_lost());
            if !others.iter().all(|other| other.filter.is_known()) {
                continue;
            }
            match self.shared_with(entry, &others, stop) {
                Ok(Some(shared)) => {
                    // What a lost block has is found out when it can be read again.
                    if missing.is_empty() {
                        self.remember(entry.id(), &shared);
                    }
                    found.push((entry.id(), shared));
                }
                Ok(None) => break,
                Err(error) => self.log(entry, &error, "block cannot be read"),
            }
            if found.len() >= PUBLISH_EVERY {
                self.add_shared(found.drain(..));
            }
        }
        self.add_shared(found.into_iter());
    }

    pub(super) fn known(&self) -> MutexGuard<'_, Known> {
        // A panic could only leave something out that is found again with the next commit.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add_shared(&self, found: impl Iterator<Item = (BlockId, Arc<[TraceId]>)>) {
        let mut known = self.known();
        for (block, shared) in found {
            if known.entries.contains_key(&block) {
                known.shared.insert(block, shared);
            }
        }
        self.publish(&known);
    }

    fn remember(&self, block: BlockId, shared: &[TraceId]) {
        if let Err(error) = self.catalog.put_shared_ids(block, shared) {
            warn!(error = %chain(&error), "shared traces of a block not stored: the next start finds them out again");
        }
    }

    fn publish_newer(&self, known: &Known) {
        if known.log.state.version != self.snapshot().version() {
            self.publish(known);
        }
    }

    fn publish(&self, known: &Known) {
        let list = known.list();
        if list.version() != self.snapshot().version() {
            let seen = SeenList { version: list.version(), went_back: self.went_back };
            if let Err(error) = self.catalog.put_seen_list(&self.store.to_string(), seen) {
                warn!(error = %chain(&error), "version of the list of blocks not stored");
            }
            self.show_sizes(&list);
            self.footers.retain(|block| known.entries.contains_key(&block));
        }
        *self.list.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(list);
        // Filters of blocks that nobody reads are gone with the list before.
        self.metrics.filter_bytes.set(self.filters.held_bytes() as i64);
        let checkpoint = known.log.state.checkpoints.get(&self.writer).copied().unwrap_or_default();
        self.checkpoint.store(checkpoint, Ordering::Release);
    }

    fn show_sizes(&self, list: &BlockList) {
        let BlocksMetrics { length, bytes, objects, version, .. } = &self.metrics;
        version.set(list.version() as i64);
        length.clear();
        bytes.clear();
        objects.clear();
        for tenant in list.tenants() {
            let labels = TenantLabels { tenant: tenant.to_string() };
            length.get_or_create(&labels).set(list.of(tenant).count() as i64);
            let labels = BackendLabels { tenant: tenant.to_string(), status: "live".to_owned() };
            let total = |of: fn(&BlockSummary) -> u64| list.of(tenant).map(|entry| of(&entry.summary)).sum::<u64>();
            bytes.get_or_create(&labels).set(total(BlockSummary::total_bytes) as i64);
            objects.get_or_create(&labels).set(total(|summary| summary.traces) as i64);
        }
    }
}

/// Whether the list of a store is older than one that was seen before, now or at an earlier start.
fn went_back(catalog: &dyn BlockCatalog, store: &str, version: u64) -> bool {
    let seen = match catalog.seen_list(store) {
        Ok(seen) => seen.unwrap_or_default(),
        Err(error) => {
            warn!(error = %chain(&error), "catalog does not know which list of blocks was the last");
            SeenList::default()
        }
    };
    let went_back = seen.went_back || version < seen.version;
    if went_back {
        error!(
            store,
            version,
            seen = seen.version,
            "the list of blocks is older than it was: its newest manifests are lost, and blocks with them. No file is \
             deleted as nobody's until the list is made anew: docs/operating.md says how"
        );
    }
    went_back
}

impl Known {
    /// Makes the entries those of the manifests.
    fn follow(&mut self) {
        let Self { log, entries, shared, leaving, filters } = self;
        let blocks = &log.state.blocks;
        for (block, entry) in entries.extract_if(.., |block, _| !blocks.contains_key(block)) {
            shared.remove(&block);
            leaving.insert(block, Arc::downgrade(&entry));
        }
        for (block, summary) in blocks {
            entries.entry(*block).or_insert_with(|| Arc::new(BlockEntry::new(Arc::clone(summary), filters)));
        }
    }

    fn list(&self) -> BlockList {
        let shared = |block| self.shared.get(&block).map(Arc::clone);
        BlockList::new(self.log.state.version, self.entries.values().map(Arc::clone), shared)
    }

    /// Which of its traces a block shares with others, if all their filters are in memory; and whether that will be right
    /// after the next start too, when blocks that are lost may be there again.
    fn shared_now(&self, block: BlockId, ids: &[TraceId]) -> Option<(Arc<[TraceId]>, bool)> {
        let tenant = &self.entries.get(&block)?.summary.tenant;
        let others = self.entries.values().filter(|entry| entry.summary.tenant == *tenant && entry.id() != block);
        let (lost, others): (Vec<_>, Vec<_>) = others.partition(|entry| entry.is_lost());
        let filters: Option<Vec<&Filter>> = others.into_iter().map(|entry| entry.loaded_filter()).collect();
        Some((shared_ids(ids, filters?.into_iter()), lost.is_empty()))
    }

    pub(super) fn has(&self, block: BlockId) -> bool {
        self.entries.contains_key(&block)
    }
}

impl fmt::Debug for Blocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Blocks").field("store", &self.store).field("list", &self.snapshot()).finish_non_exhaustive()
    }
}
