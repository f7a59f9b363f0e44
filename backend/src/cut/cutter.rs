//! The one thread that cuts.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

use super::policy::{CutPolicy, Cutoff};
use super::sink::{BlockSink, CutError};
use crate::catalog::Watermark;
use crate::live::LiveSet;
use crate::telemetry::{LiveMetrics, chain};

/// Time between looks at the live set, unless it fills.
const TICK: Duration = Duration::from_millis(200);

/// Longest wait after a failure; the first is a second, each is twice the one before.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// All that a cut needs.
pub struct CutterConfig {
    /// When traces leave.
    pub policy: CutPolicy,
    /// Where they leave.
    pub live: Arc<LiveSet>,
    /// Requests of the log that are in the live set.
    pub applied: Arc<Watermark>,
    /// Where they go.
    pub sink: Arc<dyn BlockSink>,
    /// Counts of it.
    pub metrics: LiveMetrics,
    /// Nanoseconds since the epoch.
    pub clock: fn() -> u64,
}

/// Cuts in a thread of its own until it is stopped.
#[derive(Debug)]
pub struct Cutter {
    /// Dropped to end the thread without another cut.
    finish: Sender<()>,
    finished: Receiver<Stopped>,
    abandoned: Arc<AtomicBool>,
    live: Arc<LiveSet>,
    thread: JoinHandle<()>,
}

/// What became of the last cut, that of everything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stopped {
    /// Everything is in blocks.
    AllInBlocks,
    /// What was in memory is in the log only, and read back from there at the next start.
    RestInLog,
}

impl Cutter {
    /// Starts the thread.
    pub fn start(config: CutterConfig) -> io::Result<Self> {
        let (finish, finishing) = channel();
        let (done, finished) = channel();
        let abandoned = Arc::new(AtomicBool::new(false));
        let (flag, live) = (Arc::clone(&abandoned), Arc::clone(&config.live));
        let thread = Builder::new().name("cutter".to_owned()).spawn(move || {
            let stopped = config.run(&finishing, &flag);
            // Nobody waits any more if the time was up.
            let _late = done.send(stopped);
        })?;
        Ok(Self { finish, finished, abandoned, live, thread })
    }

    /// Cuts everything and ends, or gives up after `patience`. Blocks.
    pub fn stop(self, patience: Duration) -> Stopped {
        // A thread that has ended does not hear it.
        let _ended = self.finish.send(());
        self.live.bell().ring();
        let stopped = self.finished.recv_timeout(patience);
        self.abandoned.store(true, Ordering::Relaxed);
        if let Err(RecvTimeoutError::Disconnected) = stopped
            && self.thread.join().is_err()
        {
            error!("the cutter panicked");
        }
        stopped.unwrap_or(Stopped::RestInLog)
    }
}

impl CutterConfig {
    fn run(&self, finishing: &Receiver<()>, abandoned: &AtomicBool) -> Stopped {
        let (mut failures, mut wait) = (0, TICK);
        loop {
            // Memory that fills does not hurry what fails.
            if failures == 0 {
                _ = self.live.bell().wait(wait);
                wait = Duration::ZERO;
            }
            match finishing.recv_timeout(wait) {
                Ok(()) => break,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Stopped::RestInLog,
            }
            match self.cut_what_is_due((self.clock)(), abandoned) {
                // While it was being cut memory may have filled.
                Ok(has_cut) => (failures, wait) = (0, if has_cut { Duration::ZERO } else { TICK }),
                Err(error) => {
                    failures += 1;
                    wait = backoff(failures);
                    warn!(error = %chain(&error), failures, "traces stay in memory and in the log, tried again");
                }
            }
        }
        match self.cut(&Cutoff::of_all(self.policy), abandoned) {
            Ok(()) => Stopped::AllInBlocks,
            Err(error) => {
                info!(error = %chain(&error), "what is in memory is left to the log");
                Stopped::RestInLog
            }
        }
    }

    /// Looks at the live set once; returns whether something was cut.
    pub(super) fn cut_what_is_due(&self, now_ns: u64, abandoned: &AtomicBool) -> Result<bool, CutError> {
        match self.policy.choose(&self.live.lives(), now_ns) {
            Some(cutoff) => self.cut(&cutoff, abandoned).map(|()| true),
            None => Ok(false),
        }
    }

    /// Moves traces to blocks.
    pub(super) fn cut(&self, cutoff: &Cutoff, abandoned: &AtomicBool) -> Result<(), CutError> {
        // The order matters. What the log has below this number is in the live set already; what comes from now on has
        // a higher one, or belongs to a trace whose number is looked up after the cut has begun.
        let applied = self.applied.below();
        let cut = self.live.cut(|life| cutoff.takes(life));
        if cut.tenants().is_empty() {
            return Ok(());
        }
        let checkpoint = self.live.first_sequence().map_or(applied, |first| first.min(applied));
        let started = Instant::now();
        self.metrics.blocks_cut.inc_by(cut.tenants().len() as u64);
        if let Err(error) = self.sink.store(cut.tenants(), checkpoint, abandoned) {
            self.metrics.failed_completions.inc();
            return Err(error);
        }
        let seconds = started.elapsed().as_secs_f64();
        self.metrics.completion_seconds.observe(seconds);
        self.metrics.blocks_completed.inc_by(cut.tenants().len() as u64);
        debug!(
            blocks = cut.tenants().len(),
            traces = cut.trace_count(),
            bytes = cut.bytes(),
            seconds,
            checkpoint,
            "cut"
        );
        cut.commit();
        Ok(())
    }
}

fn backoff(failures: u32) -> Duration {
    Duration::from_secs(1 << (failures - 1).min(8)).min(MAX_BACKOFF)
}
