//! Opening and reopening the store of the catalog.
//!
//! sled 0.34's `flush` is no `fsync`, and a store that was killed may not open again. Both are fine here: nothing in it
//! is the only copy. A store that cannot be opened is moved aside, and built anew. After a write that failed, as on a full
//! disk, sled refuses all work until it is opened again; so that is done while the backend runs.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::thread::sleep;
use std::time::{Duration, Instant};

use sled::{Db, Tree};
use tracing::{error, info, warn};

use super::noted::Noted;
use super::store::malformed;
use super::{CatalogError, blocks};
use crate::telemetry::{CatalogMetrics, chain};

/// Format of keys and values; a store with another one is built anew.
const FORMAT: &[u8] = b"2";

pub(super) const KEY_FORMAT: &[u8] = b"format";

/// sled's default of 1 GiB is more than all the rest of the backend.
const CACHE_BYTES: u64 = 32 << 20;

/// Time between tries to open a store again that fails.
const REOPEN: Duration = Duration::from_secs(5);

/// How long a store that was just closed may still hold its file: sled gives it up when its last thread has ended.
const CLOSING: Duration = Duration::from_secs(2);

/// Time between looks whether it has.
const CLOSING_STEP: Duration = Duration::from_millis(2);

/// Time between lines about it.
const WARN: Duration = Duration::from_mins(1);

/// [`Catalog`](super::Catalog) on a local disk.
#[derive(Debug)]
pub struct SledCatalog {
    dir: PathBuf,
    /// None while it cannot be opened.
    trees: RwLock<Option<Trees>>,
    repair: Mutex<Repair>,
    losses: AtomicU64,
    pub(super) noted: Noted,
    pub(super) reopen_every: Duration,
}

/// What is in the store.
#[derive(Debug)]
pub(super) struct Trees {
    pub(super) db: Db,
    pub(super) names: Tree,
    pub(super) values: Tree,
    pub(super) meta: Tree,
    pub(super) shared: Tree,
}

#[derive(Debug, Default)]
struct Repair {
    tried: Option<Instant>,
    warned: Option<Instant>,
}

impl SledCatalog {
    /// Opens the store in `dir` and gives it to `read`, which is to read whatever the start needs: sled reads most pages
    /// only then, so damage is often found no earlier. If either fails or panics, the store is moved to `<dir>.broken`
    /// (where the one before it is deleted), counted, and begun anew, once.
    ///
    /// On a full disk it is left closed instead, and opened when there is room: until then it fails with
    /// [`CatalogError::Closed`], which `read` must allow for.
    ///
    /// Nobody else may have the store open; the lock of the data directory sees to that.
    pub fn open<T>(
        dir: &Path,
        metrics: &CatalogMetrics,
        read: impl Fn(Self) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let hold = |trees: Option<Trees>| {
            // What is closed has lost everything, as far as anybody knows.
            let losses = AtomicU64::new(trees.is_none().into());
            let (trees, repair) = (RwLock::new(trees), Mutex::default());
            let noted = Noted::new(metrics.failed_writes.clone());
            read(Self { dir: dir.to_owned(), trees, repair, losses, noted, reopen_every: REOPEN })
        };
        let attempt = || hold(Some(open_closed(dir)?));
        // sled panics on some kinds of damage.
        let cause = match catch_unwind(AssertUnwindSafe(attempt)) {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(error)) if is_full(&error) => {
                warn!(error = %chain(&error), "the catalog is closed until there is room on the disk");
                return hold(None);
            }
            Ok(Err(error)) => chain(&error),
            Err(_) => "the store panicked".to_owned(),
        };
        error!(dir = %dir.display(), cause, "catalog moved aside, it is built anew");
        metrics.rebuilds.inc();
        move_aside(dir).map_err(|error| CatalogError::Store(sled::Error::Io(error)))?;
        attempt()
    }

    /// Works on the trees; if the store fails it is opened again, and the work begun anew.
    pub(super) fn with<T>(&self, work: impl Fn(&Trees) -> Result<T, CatalogError>) -> Result<T, CatalogError> {
        let attempt = || {
            let trees = self.trees.read().unwrap_or_else(PoisonError::into_inner);
            trees.as_ref().ok_or(CatalogError::Closed).and_then(&work)
        };
        match attempt() {
            Err(error @ (CatalogError::Store(_) | CatalogError::Closed)) => {
                self.losses.fetch_add(1, Ordering::Relaxed);
                if self.reopen(&error) { attempt() } else { Err(error) }
            }
            outcome => outcome,
        }
    }

    /// How often something may have been lost.
    pub(super) fn count_losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Opens the store again, unless that was tried just now.
    fn reopen(&self, cause: &CatalogError) -> bool {
        let mut repair = self.repair.lock().unwrap_or_else(PoisonError::into_inner);
        if repair.tried.is_some_and(|tried| tried.elapsed() < self.reopen_every) {
            return false;
        }
        if repair.warned.is_none_or(|warned| warned.elapsed() >= WARN) {
            repair.warned = Some(Instant::now());
            warn!(error = %chain(cause), "the catalog fails and is opened again; meanwhile new tags are not completed");
        }
        let mut trees = self.trees.write().unwrap_or_else(PoisonError::into_inner);
        // The store must be closed before: it locks its file.
        *trees = None;
        // sled panics on some kinds of damage.
        *trees = catch_unwind(AssertUnwindSafe(|| open_closed(&self.dir))).ok().and_then(Result::ok);
        repair.tried = Some(Instant::now());
        if trees.is_some() {
            info!("the catalog is open again");
        }
        trees.is_some()
    }

    #[cfg(test)]
    pub(super) fn close(&self) {
        *self.trees.write().unwrap() = None;
    }
}

impl Trees {
    fn open(dir: &Path) -> Result<Self, CatalogError> {
        let config = sled::Config::new().path(dir).cache_capacity(CACHE_BYTES).mode(sled::Mode::HighThroughput);
        let db: Db = config.open().map_err(CatalogError::Store)?;
        let tree = |name: &str| db.open_tree(name).map_err(CatalogError::Store);
        let (names, values) = (tree("names")?, tree("values")?);
        let (meta, shared) = (tree("meta")?, tree(blocks::TREE)?);
        let trees = Self { db, names, values, meta, shared };
        match trees.meta.get(KEY_FORMAT).map_err(CatalogError::Store)? {
            Some(format) if format == FORMAT => {}
            Some(format) => return Err(malformed("meta", &format)),
            None => {
                trees.meta.insert(KEY_FORMAT, FORMAT).map_err(CatalogError::Store)?;
            }
        }
        Ok(trees)
    }
}

/// Opens a store that may have been closed a moment ago.
fn open_closed(dir: &Path) -> Result<Trees, CatalogError> {
    let began = Instant::now();
    loop {
        match Trees::open(dir) {
            Err(error) if is_locked(&error) && began.elapsed() < CLOSING => sleep(CLOSING_STEP),
            opened => return opened,
        }
    }
}

/// sled has no variant for it (`Config::try_lock` of sled 0.34.7, `src/config.rs`).
fn is_locked(error: &CatalogError) -> bool {
    matches!(error, CatalogError::Store(sled::Error::Io(error))
        if error.kind() == io::ErrorKind::Other && error.to_string().starts_with("could not acquire lock"))
}

fn is_full(error: &CatalogError) -> bool {
    matches!(error, CatalogError::Store(sled::Error::Io(error)) if error.kind() == io::ErrorKind::StorageFull)
}

fn move_aside(dir: &Path) -> io::Result<()> {
    let aside = dir.with_extension("broken");
    match fs::remove_dir_all(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    fs::rename(dir, aside)
}
