//! Collects at every interval: to disk, to who fetches, to the queues of who is sent to.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::{error, warn};

use super::Generator;
use super::export::Queue;
use super::http::Latest;
use super::state;
use super::tenant::Whose;
use crate::live::{LiveSet, TraceId};
use crate::promql::{History, HistoryFolder};

/// Time between two writings of samples to disk: what a crash takes of them at most.
const HISTORY_INTERVAL_NS: u64 = 60_000_000_000;

/// Who collects what.
#[derive(Debug)]
pub struct KeeperConfig {
    /// What is collected.
    pub generator: Arc<Generator>,
    /// Knows where spans of provisional traces are.
    pub live: Arc<LiveSet>,
    /// File that what was counted is written to.
    pub state: PathBuf,
    /// Time between two collections, at most.
    pub interval: Duration,
    /// Those who are sent to.
    pub queues: Vec<Arc<Queue>>,
    /// Shown to those who fetch.
    pub latest: Latest,
    /// Shown to those who query,
    pub history: Arc<History>,
    /// and where it is on disk.
    pub folder: Option<HistoryFolder>,
    /// Nanoseconds since the epoch.
    pub clock: fn() -> u64,
}

/// A thread that collects. Ended by [`Self::stop`].
#[derive(Debug)]
pub struct Keeper {
    thread: JoinHandle<()>,
    stop: Sender<()>,
    saved: Saved,
}

/// Which requests of the log need not be read again to know what was counted.
#[derive(Clone, Debug, Default)]
pub struct Saved(Arc<AtomicU64>);

impl Saved {
    /// All with lower numbers.
    pub fn below(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Keeper {
    /// Collects at once, and then whenever it is a tenant's time, and at every interval.
    pub fn start(config: KeeperConfig) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let saved = Saved::default();
        let mut worker = Worker { history_saved_ns: (config.clock)(), config, saved: saved.clone() };
        // Before the first span is counted: what a crash leaves in the log is then known to be new.
        worker.collect(Whose::All);
        let work = move || {
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(worker.wait()) {
                worker.collect(Whose::Due);
            }
            worker.collect(Whose::All);
            worker.save_history();
        };
        let thread = thread::Builder::new().name("generator".to_owned()).spawn(work)?;
        Ok(Self { thread, stop, saved })
    }

    /// What of the log is on disk here.
    pub fn saved(&self) -> Saved {
        self.saved.clone()
    }

    /// Collects for the last time. Blocks.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            error!("the generator's thread panicked");
        }
    }
}

struct Worker {
    config: KeeperConfig,
    saved: Saved,
    /// When samples were last written.
    history_saved_ns: u64,
}

impl Worker {
    /// Until it is some tenant's time.
    fn wait(&self) -> Duration {
        let KeeperConfig { generator, interval, clock, .. } = &self.config;
        generator.next_collection(clock() / 1_000_000).map_or(*interval, |next| next.min(*interval))
    }

    fn collect(&mut self, whose: Whose) {
        self.collect_once(whose);
        let now_ns = (self.config.clock)();
        if now_ns.saturating_sub(self.history_saved_ns) >= HISTORY_INTERVAL_NS {
            self.history_saved_ns = now_ns;
            self.save_history();
        }
    }

    fn save_history(&mut self) {
        let KeeperConfig { generator, history, folder, .. } = &mut self.config;
        let Some(folder) = folder else { return };
        if let Err(error) = folder.save(history) {
            generator.metrics.failed_collections.inc();
            warn!(error = %crate::telemetry::chain(&error), "samples are not on disk: a restart forgets them");
        }
    }

    fn collect_once(&self, whose: Whose) {
        let KeeperConfig { generator, live, state, queues, latest, history, clock, .. } = &self.config;
        let mut collected = generator.collect_of(whose, clock() / 1_000_000);
        collected.move_exemplars(|tenant, trace_id| live.home(tenant, &TraceId(trace_id)).0);
        let collected = Arc::new(collected);
        // First what was counted, then the queues: after a crash in between, a few samples are missing. The other way
        // round a series could begin at zero a second time.
        match state::save(state, &collected) {
            Ok(()) => self.saved.0.store(collected.applied.below, Ordering::Relaxed),
            Err(error) => {
                // The log must not grow because of this.
                self.saved.0.store(u64::MAX, Ordering::Relaxed);
                generator.metrics.failed_collections.inc();
                warn!(file = %state.display(), %error, "what was counted is not on disk: after a crash it is counted from less");
            }
        }
        for queue in queues {
            if let Err(error) = queue.push(&collected) {
                generator.metrics.failed_collections.inc();
                warn!(url = queue.url(), error = %crate::telemetry::chain(&error), "samples are not queued");
            }
        }
        collected.remember(history);
        latest.set(&collected);
    }
}
