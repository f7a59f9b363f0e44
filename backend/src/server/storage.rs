//! Opens what is behind the blocks: the store, and the list of what is in it.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::warn;

use super::data_dir::DataDir;
use super::{ServerError, blocking, now_ns};
use crate::blocks::{Blocks, BlocksConfig, BlocksError, Sweep, WriterId};
use crate::catalog::SledCatalog;
use crate::config::{StorageBackend, StorageConfig};
use crate::overrides::{Overrides, OverridesError};
use crate::store::{self, MeteredStore, Store};
use crate::telemetry::{Metrics, Readiness, chain};

/// Longest wait for a store that cannot be reached; the first is a second, each is twice the one before.
const MAX_BACKOFF: Duration = Duration::from_secs(30);

/// What part of the size limit is left free: for what is being written before what it replaces is deleted.
const RESERVE_PARTS: u64 = 16;

/// How often it is said at most that the size limit is too small.
const WARN_EVERY: Duration = Duration::from_mins(1);

/// Opens the list of blocks. While the store cannot be reached it tries again, and `/ready` says why.
pub(super) async fn open_blocks(
    config: &StorageConfig,
    data_dir: &DataDir,
    catalog: &Arc<SledCatalog>,
    metrics: &Metrics,
    readiness: &Readiness,
) -> Result<Arc<Blocks>, ServerError> {
    let mut wait = Duration::from_secs(1);
    loop {
        let (root, directory, config) = (data_dir.path().to_owned(), data_dir.store(), config.clone());
        let (catalog, metrics, requests) = (Arc::clone(catalog), metrics.blocks.clone(), metrics.store.clone());
        let opened = blocking("opening the store", move || {
            let store = store::open(&config, &directory).map_err(ServerError::Store)?;
            let store: Arc<dyn Store> = Arc::new(MeteredStore::new(store, requests));
            let sweep = match config.backend {
                // Nobody else has this directory, and nothing has begun: what a crash left goes at once.
                StorageBackend::Local => Sweep::Alone,
                StorageBackend::S3 => {
                    store::check_writes(store.as_ref()).map_err(ServerError::Store)?;
                    Sweep::Shared
                }
            };
            let writer = WriterId::load(&root).map_err(ServerError::Blocks)?;
            let registry = BlocksConfig { clock: now_ns, ..BlocksConfig::default() };
            let blocks = Blocks::open(store, writer, catalog, registry, metrics).map_err(ServerError::Blocks)?;
            if let Err(error) = blocks.sweep(now_ns(), sweep) {
                warn!(error = %chain(&error), "what a crash left in the store stays for now");
            }
            Ok(Arc::new(blocks))
        });
        match opened.await? {
            Err(error) if passes(&error) => {
                let error = chain(&error);
                warn!(error, seconds = wait.as_secs(), "the store cannot be opened, tried again");
                readiness.set_missing(format!("the store cannot be opened: {error}"));
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(MAX_BACKOFF);
            }
            opened => return opened,
        }
    }
}

/// Reads what tenants said of themselves. While the store cannot be reached it tries again: what is counted without them
/// would begin anew.
pub(super) async fn read_overrides(overrides: &Arc<Overrides>, readiness: &Readiness) -> Result<(), ServerError> {
    let mut wait = Duration::from_secs(1);
    loop {
        let reading = Arc::clone(overrides);
        match blocking("reading overrides", move || reading.refresh()).await? {
            Err(OverridesError::Store(error)) if error.passes() => {
                let error = chain(&error);
                warn!(error, seconds = wait.as_secs(), "overrides of tenants cannot be read, tried again");
                readiness.set_missing(format!("overrides of tenants cannot be read: {error}"));
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(MAX_BACKOFF);
            }
            read => return read.map_err(ServerError::Overrides),
        }
    }
}

/// Whether another try can help.
fn passes(error: &ServerError) -> bool {
    match error {
        ServerError::Store(error) => error.passes(),
        ServerError::Blocks(BlocksError::Store(error)) => error.passes(),
        ServerError::Blocks(error) => matches!(error, BlocksError::Unsure { .. } | BlocksError::Busy { .. }),
        _ => false,
    }
}

/// What blocks may have of the size limit beside the log and the catalog, which have `others` bytes.
#[derive(Debug, Default)]
pub(super) struct BlockBudget {
    max_bytes: u64,
    /// When it was last said that the others have too much.
    warned: Cell<Option<Instant>>,
}

impl BlockBudget {
    pub(super) fn new(max_bytes: u64) -> Self {
        Self { max_bytes, warned: Cell::default() }
    }

    /// Never less than half of the limit: the others becoming large must not delete all that is stored at once.
    pub(super) fn of(&self, others: u64) -> u64 {
        let Self { max_bytes, warned } = self;
        let (left, least) = ((max_bytes - max_bytes / RESERVE_PARTS).saturating_sub(others), max_bytes / 2);
        if left < least && warned.get().is_none_or(|warned| warned.elapsed() >= WARN_EVERY) {
            warned.set(Some(Instant::now()));
            warn!(
                max_bytes,
                others, "log and catalog take more of retention.max_bytes than they may, blocks keep half of it"
            );
        }
        left.max(least)
    }
}

/// Bytes of all files below a directory.
pub(super) fn directory_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let bytes = entries.flatten().map(|entry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    });
    bytes.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_have_half_of_the_limit_at_least() {
        let budget = BlockBudget::new(1_600);
        assert_eq!([0, 100, 700, 701, 5_000].map(|others| budget.of(others)), [1_500, 1_400, 800, 800, 800]);
        assert_eq!(BlockBudget::new(0).of(1), 0);
        assert_eq!(BlockBudget::new(u64::MAX).of(u64::MAX), u64::MAX / 2);
    }
}
