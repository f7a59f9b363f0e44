//! Carries out what is planned, one thing at a time.

use std::collections::HashMap;
use std::io;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use fail::fail_point;
use tracing::{debug, error, info, warn};

use super::{Ages, CompactError, Job, Merged, Policy, Reason, SteadyTime, expired, merge, plan};
use crate::block::{BlockError, BlockId, BlockSummary, data_path, filter_path};
use crate::blocks::{BlockList, Blocks, BlocksError, Change};
use crate::config::{CompactionConfig, RetentionConfig};
use crate::store::StoreError;
use crate::telemetry::{CompactionMetrics, LevelLabels, TenantLabels, chain};

/// How long nothing is planned when nothing was due.
const IDLE: Duration = Duration::from_secs(1);

/// How long nothing is done after an error; doubles with each that follows.
const BACKOFF: Duration = Duration::from_secs(5);
const LONGEST_BACKOFF: Duration = Duration::from_mins(5);

/// How long a block that cannot be read is left out of the plans.
const SET_ASIDE: Duration = Duration::from_hours(1);

/// A block is at most such a part of all blocks: room for one more, which is needed while it is made, is to be had, and
/// the oldest of the data can go without much of what is younger.
const PARTS: u64 = 32;

/// Lower than that of the threads that receive and answer: 10 of 19.
const NICENESS: i32 = 10;

/// What [`Compactor::run_once`] has done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Nothing was due.
    Idle,
    /// So many old blocks are in the list no more.
    Deleted(usize),
    /// This block is in the place of others.
    Compacted(BlockId),
    /// Somebody else has changed the list meanwhile; nothing was done.
    Conflict,
    /// These blocks cannot be read, or not be merged; they stay where they are, and out of the next plans.
    SetAside(Vec<BlockId>),
    /// It was told to stop; nothing was done.
    Stopped,
}

/// Merges blocks and deletes old ones.
#[derive(Debug)]
pub struct Compactor {
    /// None if blocks are not to be merged here.
    max_block_bytes: Option<u64>,
    ages: Ages,
    metrics: CompactionMetrics,
    clock: fn() -> u64,
    steady: SteadyTime,
    begun: Instant,
    /// Blocks that cannot be read, and until when they are left out.
    set_aside: HashMap<BlockId, u64>,
}

impl Compactor {
    /// `clock` tells the time in nanoseconds since the epoch.
    pub fn new(
        compaction: &CompactionConfig,
        retention: &RetentionConfig,
        metrics: CompactionMetrics,
        clock: fn() -> u64,
    ) -> Self {
        let max_block_bytes = compaction.enabled.then_some(compaction.max_block_bytes.0);
        let (steady, begun) = (SteadyTime::new(clock()), Instant::now());
        Self { max_block_bytes, ages: Ages::from(retention), metrics, clock, steady, begun, set_aside: HashMap::new() }
    }

    /// What it counts.
    pub fn metrics(&self) -> &CompactionMetrics {
        &self.metrics
    }

    /// Does the next thing that is due: deletes what is old, else merges the blocks of one job. All blocks together are
    /// to have at most `max_bytes`.
    pub fn run_once(&mut self, blocks: &Blocks, max_bytes: u64, stop: &AtomicBool) -> Result<Outcome, CompactError> {
        let (list, now_ns) = (blocks.snapshot(), (self.clock)());
        if let Some(outcome) = self.delete_expired(blocks, &list, now_ns, max_bytes)? {
            return Ok(outcome);
        }
        let Some(max_block_bytes) = self.max_block_bytes else { return Ok(Outcome::Idle) };
        self.set_aside.retain(|_, until_ns| *until_ns > now_ns);
        let summaries = list.blocks().map(|entry| &*entry.summary);
        let planned = summaries.filter(|summary| !self.set_aside.contains_key(&summary.id));
        let policy = Policy { max_block_bytes: max_block_bytes.min(max_bytes / PARTS), ages: self.ages.clone() };
        let jobs = plan(planned, now_ns, &policy);
        self.show(&list, &jobs);
        let Some(job) = jobs.first() else { return Ok(Outcome::Idle) };
        match self.compact(blocks, job, stop) {
            Err(CompactError::Stopped) => Ok(Outcome::Stopped),
            Err(CompactError::Commit(BlocksError::Conflict { .. })) => Ok(Outcome::Conflict),
            Err(CompactError::Input { block, source }) if !is_trouble(&source) => {
                blocks.refresh().map_err(CompactError::Commit)?;
                if blocks.snapshot().of(job.tenant).all(|entry| entry.id() != block) {
                    return Ok(Outcome::Conflict);
                }
                error!(%block, tenant = %job.tenant, error = %chain(&source), "not compacted: block cannot be read");
                Ok(self.set_aside(vec![block], now_ns))
            }
            Err(CompactError::Output { source, .. }) if !is_trouble(&source) => {
                let inputs: Vec<BlockId> = job.inputs.iter().map(|input| input.id).collect();
                error!(?inputs, tenant = %job.tenant, error = %chain(&source), "not compacted: blocks cannot be merged");
                Ok(self.set_aside(inputs, now_ns))
            }
            Err(error) => {
                self.metrics.errors.inc();
                Err(error)
            }
            Ok(block) => Ok(Outcome::Compacted(block)),
        }
    }

    /// Works until `stop` is set; `wait` waits for so long, or until it is.
    pub fn run(
        mut self,
        blocks: &Blocks,
        max_bytes: impl Fn() -> u64,
        stop: &AtomicBool,
        mut wait: impl FnMut(Duration),
    ) {
        let mut backoff = BACKOFF;
        while !stop.load(Ordering::Relaxed) {
            match self.run_once(blocks, max_bytes(), stop) {
                Ok(Outcome::Idle | Outcome::Stopped) => wait(IDLE),
                Ok(_) => {}
                Err(error) => {
                    warn!(error = %chain(&error), seconds = backoff.as_secs(), "compaction is tried again later");
                    wait(backoff);
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                    continue;
                }
            }
            backoff = BACKOFF;
        }
    }

    fn set_aside(&mut self, blocks: Vec<BlockId>, now_ns: u64) -> Outcome {
        self.metrics.errors.inc();
        let until_ns = now_ns.saturating_add(u64::try_from(SET_ASIDE.as_nanos()).unwrap_or(u64::MAX));
        self.set_aside.extend(blocks.iter().map(|block| (*block, until_ns)));
        Outcome::SetAside(blocks)
    }

    fn delete_expired(
        &self,
        blocks: &Blocks,
        list: &BlockList,
        now_ns: u64,
        max_bytes: u64,
    ) -> Result<Option<Outcome>, CompactError> {
        let steady_ns = self.steady.limit(now_ns, self.begun.elapsed());
        let expired = expired(list.blocks().map(|entry| &*entry.summary), steady_ns, &self.ages, max_bytes);
        if expired.is_empty() {
            return Ok(None);
        }
        let begun = Instant::now();
        let remove: Vec<BlockId> = expired.iter().map(|(block, _)| block.id).collect();
        let count = remove.len();
        match blocks.commit(Change { remove, ..Change::default() }) {
            Ok(()) => {}
            Err(BlocksError::Conflict { .. }) => return Ok(Some(Outcome::Conflict)),
            Err(error) => {
                self.metrics.retention_errors.inc();
                return Err(CompactError::Commit(error));
            }
        }
        self.metrics.retention_marked.inc_by(count as u64);
        self.metrics.retention_seconds.observe(begun.elapsed().as_secs_f64());
        for because in [Reason::Age, Reason::Size] {
            let gone = || expired.iter().filter(|(_, reason)| *reason == because).map(|(block, _)| *block);
            if gone().next().is_some() {
                let bytes: u64 = gone().map(BlockSummary::total_bytes).sum();
                info!(blocks = gone().count(), bytes, ?because, "old blocks deleted");
            }
        }
        Ok(Some(Outcome::Deleted(count)))
    }

    fn compact(&self, blocks: &Blocks, job: &Job<'_>, stop: &AtomicBool) -> Result<BlockId, CompactError> {
        let begun = Instant::now();
        let id = BlockId::random((self.clock)());
        let merged = merge_apart(blocks, job, id, stop).inspect_err(|_| discard(blocks, job, id))?;
        let Merged { block, combined, deduped, united } = merged;
        let (bytes, traces, spans) = (block.summary.bytes, block.summary.traces, block.summary.spans);
        let remove = job.inputs.iter().map(|input| input.id).collect();
        fail_point!("compact::before_commit");
        blocks.commit(Change { add: vec![block], remove, checkpoint: None }).map_err(|error| {
            // Whether others see the block is not always known; then its files stay.
            if error.nothing_done() {
                discard(blocks, job, id);
            }
            CompactError::Commit(error)
        })?;
        fail_point!("compact::after_commit");
        let level = LevelLabels { level: job.level };
        let count = |family: &super::ByLevel, by: u64| _ = family.get_or_create(&level).inc_by(by);
        count(&self.metrics.blocks, job.inputs.len() as u64);
        count(&self.metrics.bytes_written, bytes);
        count(&self.metrics.objects_written, traces);
        count(&self.metrics.objects_combined, combined);
        self.metrics.spans_deduped.inc_by(deduped);
        self.metrics.united.inc_by(united);
        let (inputs, level, seconds) = (job.inputs.len(), job.level, begun.elapsed().as_secs_f64());
        info!(block = %id, tenant = %job.tenant, level, inputs, spans, bytes, deduped, united, seconds, "blocks compacted");
        Ok(id)
    }

    fn show(&self, list: &BlockList, jobs: &[Job<'_>]) {
        self.metrics.outstanding_blocks.clear();
        for tenant in list.tenants() {
            let due: usize = jobs.iter().filter(|job| job.tenant == tenant).map(|job| job.inputs.len()).sum();
            let labels = TenantLabels { tenant: tenant.to_string() };
            self.metrics.outstanding_blocks.get_or_create(&labels).set(due as i64);
        }
    }
}

/// A compactor at work on a thread of its own.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    wake: Sender<()>,
    thread: JoinHandle<()>,
}

impl Running {
    /// Starts a compactor. `max_bytes` says how much all blocks together may have, each time before something is done.
    pub fn start(
        compactor: Compactor,
        blocks: Arc<Blocks>,
        max_bytes: impl Fn() -> u64 + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (wake, woken) = channel();
        let work = {
            let stop = Arc::clone(&stop);
            move || {
                // On Linux of this thread alone, and of those that it starts.
                if let Err(error) = rustix::process::nice(NICENESS) {
                    debug!(%error, "compaction runs with the priority of all");
                }
                compactor.run(&blocks, max_bytes, &stop, |time| match woken.recv_timeout(time) {
                    Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => stop.store(true, Ordering::Relaxed),
                });
            }
        };
        let thread = Builder::new().name("compactor".to_owned()).spawn(work)?;
        Ok(Self { stop, wake, thread })
    }

    /// Stops it; what it was making is given up. Blocks until it has ended.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.wake);
        if self.thread.join().is_err() {
            error!("compaction panicked");
        }
    }
}

/// Merges on a thread that ends with the merge: the allocator keeps for a thread what it has freed, and the compactor's
/// may have nothing to do for long.
fn merge_apart(blocks: &Blocks, job: &Job<'_>, id: BlockId, stop: &AtomicBool) -> Result<Merged, CompactError> {
    thread::scope(|scope| {
        let merging = Builder::new().name("merge".to_owned());
        let merging =
            merging.spawn_scoped(scope, || merge(blocks.store(), job, id, stop)).map_err(CompactError::Thread)?;
        merging.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Deletes the files of a block that was not committed. What stays is deleted later as nobody's.
fn discard(blocks: &Blocks, job: &Job<'_>, id: BlockId) {
    for path in [data_path(job.tenant, id), filter_path(job.tenant, id)] {
        if let Err(error) = blocks.store().delete(&path) {
            debug!(error = %chain(&error), "file of a block that was given up stays for now");
        }
    }
}

/// Whether the trouble is with the store, and not with the block.
fn is_trouble(error: &BlockError) -> bool {
    let BlockError::Store(error) = error else { return false };
    matches!(error, StoreError::Denied { .. } | StoreError::Full { .. } | StoreError::Unavailable { .. })
}
