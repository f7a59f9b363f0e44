//! The generator of metrics, wired: what it goes on from, when it collects, who gets its series.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::{ServerError, now_ns, replay};
use crate::config::{Config, GeneratorConfig};
use crate::generator::{Generator, Keeper, KeeperConfig, Latest, Queue, Saved, Sender};
use crate::live::LiveSet;
use crate::promql::{History, HistoryFolder};
use crate::store::create_dir;
use crate::telemetry::{GeneratorMetrics, chain};
use crate::wal::Log;

/// File with what was counted.
const STATE: &str = "state";

/// Folder of the samples.
const HISTORY: &str = "history";

/// Folder of the queues.
const QUEUES: &str = "remote-write";

/// A generator at work.
pub(super) struct Metering {
    keeper: Keeper,
    saved: Saved,
    senders: Vec<JoinHandle<()>>,
}

/// The generator, which has counted nothing yet; none if no metrics are made, nor can be.
pub(super) fn open(
    config: &Config,
    folder: &Path,
    metrics: &GeneratorMetrics,
) -> Result<Option<Arc<Generator>>, ServerError> {
    if makes_nothing(config) {
        return Ok(None);
    }
    let config = &config.metrics_generator;
    create_dir(folder).map_err(|source| ServerError::Generator { path: folder.to_owned(), source })?;
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let generator =
        Generator::new(config, &hostname, metrics.clone(), now_ns() / 1_000_000).map_err(ServerError::Filter)?;
    Ok(Some(Arc::new(generator)))
}

/// Goes on with what was counted before, once it is known how the spans of each tenant are counted.
pub(super) fn restore(generator: &Generator, folder: &Path) {
    let state = folder.join(STATE);
    let Err(error) = generator.restore(&state) else { return };
    warn!(file = %state.display(), error = %chain(&error), "what was counted cannot be read: counters begin at zero");
    if error.is_of_later_version() {
        let later = state.with_extension("later");
        match fs::rename(&state, &later) {
            Ok(()) => info!(file = %later.display(), "what a later version had counted is here now"),
            Err(error) => warn!(file = %state.display(), %error, "what a later version had counted is written over"),
        }
    }
}

/// Whether no metrics are made of any tenant's spans.
fn makes_nothing(config: &Config) -> bool {
    let generator = &config.metrics_generator;
    let asked = config.overrides.user_configurable_overrides.enabled;
    generator.processors.is_empty() && generator.tenants.is_empty() && !asked
}

/// Counts what is in the log and was not counted when the program ended. Blocks.
pub(super) fn catch_up(log: &Log, generator: &Generator) -> Result<(), ServerError> {
    match generator.counted_below() {
        // Nothing was ever counted here: what is in the log came before there was a generator.
        0 => {}
        from => replay::count(log, generator, from)?,
    }
    // What is damaged does not come any more.
    generator.count_from(log.next_sequence());
    Ok(())
}

/// Where samples are kept for queries, with those of before; and on disk, if there is a generator. Blocks.
pub(super) fn history(config: &Config, folder: &Path) -> (Arc<History>, Option<HistoryFolder>) {
    let storage = &config.metrics_generator.storage;
    let age_ms = u64::try_from(storage.history.as_millis()).unwrap_or(u64::MAX);
    let history = Arc::new(History::new(age_ms, storage.history_bytes.as_usize()));
    if makes_nothing(config) {
        return (history, None);
    }
    let folder = folder.join(HISTORY);
    match HistoryFolder::open(&folder, &history) {
        Ok(opened) => (history, Some(opened)),
        Err(error) => {
            warn!(folder = %folder.display(), error = %chain(&error), "samples of the last hours are not on disk");
            (history, None)
        }
    }
}

impl Metering {
    /// Collects and sends from now on.
    pub(super) fn start(
        config: &Config,
        generator: &Arc<Generator>,
        live: &Arc<LiveSet>,
        (latest, (history, history_folder)): (Latest, (Arc<History>, Option<HistoryFolder>)),
        folder: &Path,
        metrics: &GeneratorMetrics,
    ) -> Result<Self, ServerError> {
        let GeneratorConfig { registry, storage, .. } = &config.metrics_generator;
        let queues_folder = folder.join(QUEUES);
        let (mut queues, mut senders) = (Vec::new(), Vec::new());
        for server in &storage.remote_write {
            let max_bytes = storage.remote_write_queue_bytes.0;
            let queue = Queue::remote_write(&queues_folder, server, max_bytes, metrics.clone());
            let queue = Arc::new(queue.map_err(ServerError::Export)?);
            let tells_tenant = config.multitenancy && storage.remote_write_add_org_id_header;
            let sender = Sender::remote_write(Arc::clone(&queue), server, tells_tenant, generator.headers());
            senders.push(sender.map_err(ServerError::Export)?);
            queues.push(queue);
        }
        for server in &storage.otlp {
            let max_bytes = storage.remote_write_queue_bytes.0;
            let queue = Queue::otlp(&queues_folder, server, max_bytes, metrics.clone()).map_err(ServerError::Export)?;
            let queue = Arc::new(queue);
            let tells_tenant = config.multitenancy && storage.remote_write_add_org_id_header;
            senders.push(Sender::otlp(Arc::clone(&queue), server, tells_tenant).map_err(ServerError::Export)?);
            queues.push(queue);
        }
        let known = storage.remote_write.iter().map(Queue::remote_write_name);
        remove_others(&queues_folder, &known.chain(storage.otlp.iter().map(Queue::otlp_name)).collect::<Vec<_>>());
        let keeper = Keeper::start(KeeperConfig {
            generator: Arc::clone(generator),
            live: Arc::clone(live),
            state: folder.join(STATE),
            interval: registry.collection_interval,
            queues,
            latest,
            history,
            folder: history_folder,
            clock: now_ns,
        });
        let keeper = keeper.map_err(|source| ServerError::Thread { what: "the generator", source })?;
        let senders = senders.into_iter().map(|sender| tokio::spawn(sender.run())).collect();
        Ok(Self { saved: keeper.saved(), keeper, senders })
    }

    /// What of the log is counted and on disk.
    pub(super) fn saved(&self) -> Saved {
        self.saved.clone()
    }

    /// Collects for the last time; what was not sent waits on disk. Blocks.
    pub(super) fn stop(self) {
        self.senders.iter().for_each(JoinHandle::abort);
        self.keeper.stop();
    }
}

/// Removes queues of servers that nobody sends to any more.
fn remove_others(folder: &Path, known: &[String]) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if known.iter().any(|known| name.to_str() == Some(known)) {
            continue;
        }
        match fs::remove_dir_all(entry.path()) {
            Ok(()) => {
                info!(folder = %entry.path().display(), "queue of a server that is not configured any more removed");
            }
            Err(error) => warn!(folder = %entry.path().display(), %error, "old queue stays"),
        }
    }
}
