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
use crate::promql::History;
use crate::store::create_dir;
use crate::telemetry::{GeneratorMetrics, chain};
use crate::wal::Log;

/// File with what was counted.
const STATE: &str = "state";

/// Folder of the queues.
const QUEUES: &str = "remote-write";

/// A generator at work.
pub(super) struct Metering {
    keeper: Keeper,
    saved: Saved,
    senders: Vec<JoinHandle<()>>,
}

/// The generator, with what was counted before; none if no metrics are made.
pub(super) fn open(
    config: &GeneratorConfig,
    folder: &Path,
    metrics: &GeneratorMetrics,
) -> Result<Option<Arc<Generator>>, ServerError> {
    if config.processors.is_empty() {
        return Ok(None);
    }
    create_dir(folder).map_err(|source| ServerError::Generator { path: folder.to_owned(), source })?;
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let generator =
        Generator::new(config, &hostname, metrics.clone(), now_ns() / 1_000_000).map_err(ServerError::Filter)?;
    let state = folder.join(STATE);
    if let Err(error) = generator.restore(&state) {
        warn!(file = %state.display(), error = %chain(&error), "what was counted cannot be read: counters begin at zero");
    }
    Ok(Some(Arc::new(generator)))
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

/// Where samples are kept for queries.
pub(super) fn history(config: &GeneratorConfig) -> Arc<History> {
    let age_ms = u64::try_from(config.storage.history.as_millis()).unwrap_or(u64::MAX);
    Arc::new(History::new(age_ms, config.storage.history_bytes.as_usize()))
}

impl Metering {
    /// Collects and sends from now on.
    pub(super) fn start(
        config: &Config,
        generator: &Arc<Generator>,
        live: &Arc<LiveSet>,
        (latest, history): (Latest, Arc<History>),
        folder: &Path,
        metrics: &GeneratorMetrics,
    ) -> Result<Self, ServerError> {
        let GeneratorConfig { registry, storage, trace_id_label_name: label, .. } = &config.metrics_generator;
        let queues_folder = folder.join(QUEUES);
        let (mut queues, mut senders) = (Vec::new(), Vec::new());
        for server in &storage.remote_write {
            let max_bytes = storage.remote_write_queue_bytes.0;
            let queue = Queue::open(&queues_folder, server, label, max_bytes, metrics.clone());
            let queue = Arc::new(queue.map_err(ServerError::RemoteWrite)?);
            let tells_tenant = config.multitenancy && storage.remote_write_add_org_id_header;
            senders.push(Sender::new(Arc::clone(&queue), server, tells_tenant).map_err(ServerError::RemoteWrite)?);
            queues.push(queue);
        }
        remove_others(
            &queues_folder,
            &storage.remote_write.iter().map(|server| Queue::folder_name(&server.url)).collect::<Vec<_>>(),
        );
        let keeper = Keeper::start(KeeperConfig {
            generator: Arc::clone(generator),
            live: Arc::clone(live),
            state: folder.join(STATE),
            interval: registry.collection_interval,
            queues,
            latest,
            history,
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
