//! The numbered manifests in the store: reading them all, following them, adding one.

use std::sync::Arc;
use std::time::Duration;

use tracing::warn;

use super::manifest::{FOLDER, FORMAT_VERSION, Manifest, ManifestError, Snapshot};
use super::writer::random_commit;
use super::{BlocksConfig, BlocksError, State, WriterId};
use crate::block::{BlockId, BlockSummary};
use crate::store::{Store, StoreError};
use crate::telemetry::{BlocksMetrics, chain};

/// Manifests after which one says everything again.
const SNAPSHOT_EVERY: u64 = 64;

/// Manifests since the last snapshot that make the first commit after a start write one.
const SNAPSHOT_AT_START: u64 = 16;

/// Tries of a store that fails, for one commit.
const TRIES: u32 = 6;

/// Wait before the second try; doubles with each.
const BACKOFF: Duration = Duration::from_millis(100);

/// Commits of others that one commit may lose a race to.
const RACES: u32 = 100;

/// Manifests are followed by asking for the next one. Whoever has not looked for so long (the machine slept) lists them
/// instead: the next one may have been deleted as old.
pub(super) const LOOK_NS: u64 = 10 * 60 * 1_000_000_000;

/// What a commit changes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Commit<'a> {
    pub(super) add: &'a [BlockSummary],
    pub(super) remove: &'a [BlockId],
    pub(super) checkpoint: Option<u64>,
}

/// The manifests of a store as one of their writers sees them.
#[derive(Debug)]
pub(super) struct ManifestLog {
    store: Arc<dyn Store>,
    writer: WriterId,
    config: BlocksConfig,
    metrics: BlocksMetrics,
    pub(super) state: State,
    /// When `state` was last known to be the newest.
    looked_ns: u64,
    committed: bool,
}

/// How one try to create a manifest ended.
enum Outcome {
    Committed,
    /// Another one has this version.
    Lost(Box<Manifest>),
    /// The store fails, and nothing was created.
    Refused(StoreError),
    /// Whether it was created is not known.
    Unknown(StoreError),
}

impl ManifestLog {
    /// Reads the manifests; makes the first, an empty one, in a store where nothing is.
    pub(super) fn open(
        store: Arc<dyn Store>,
        writer: WriterId,
        config: BlocksConfig,
        metrics: BlocksMetrics,
    ) -> Result<Self, BlocksError> {
        let mut log = Self { store, writer, config, metrics, state: State::default(), looked_ns: 0, committed: false };
        log.state = match load(log.store.as_ref(), log.now_ns())? {
            Some(state) => state,
            None => log.begin()?,
        };
        log.looked_ns = log.now_ns();
        log.follow()?;
        Ok(log)
    }

    /// Looks for manifests that others have made; true if there were any.
    pub(super) fn refresh(&mut self) -> Result<bool, BlocksError> {
        let before = self.state.version;
        self.look_if_stale()?;
        self.follow()?;
        Ok(self.state.version != before)
    }

    /// Adds a manifest behind the newest one, whoever made that.
    pub(super) fn commit(&mut self, change: Commit<'_>) -> Result<(), BlocksError> {
        let commit = random_commit();
        self.look_if_stale()?;
        let (mut races, mut tries) = (0, 0);
        // Whether the version that is being tried may be ours already.
        let mut unknown = false;
        loop {
            let began_ns = self.now_ns();
            let manifest = self.next(change, &commit)?;
            let version = manifest.version;
            let unsure = |source| BlocksError::Unsure { version, source: Box::new(source) };
            match self.create(&manifest).map_err(unsure)? {
                Outcome::Committed => {
                    self.apply(&manifest).map_err(unsure)?;
                    self.committed = true;
                    return self.confirm(began_ns, &change);
                }
                Outcome::Lost(other) => {
                    unknown = false;
                    self.apply(&other)?;
                    // More than one may have come meanwhile.
                    self.follow()?;
                    self.metrics.conflicts.inc();
                    races += 1;
                    if races >= RACES {
                        return Err(BlocksError::Busy { version });
                    }
                }
                Outcome::Refused(error) if !unknown => return Err(BlocksError::Store(error)),
                Outcome::Refused(error) | Outcome::Unknown(error) => {
                    unknown = true;
                    tries += 1;
                    if tries >= TRIES {
                        return Err(unsure(BlocksError::Store(error)));
                    }
                    warn!(version, error = %chain(&error), "commit is tried again");
                    (self.config.sleep)(BACKOFF * 2_u32.pow(tries - 1));
                }
            }
        }
    }

    /// The manifest that would commit a change now.
    fn next(&self, change: Commit<'_>, commit: &str) -> Result<Manifest, BlocksError> {
        let mut manifest = Manifest {
            format: FORMAT_VERSION,
            version: self.state.version + 1,
            commit: commit.to_owned(),
            writer: self.writer,
            created_ns: self.now_ns(),
            add: change.add.to_vec(),
            remove: change.remove.to_vec(),
            checkpoint: change.checkpoint,
            snapshot: None,
        };
        let mut state = self.state.clone();
        state.apply(&manifest, 0).map_err(|error| match error {
            ManifestError::Added { block } | ManifestError::Removed { block } => BlocksError::Conflict { block },
            source => BlocksError::Manifest { path: Manifest::path(manifest.version), source },
        })?;
        let since = manifest.version - self.state.snapshot;
        if since >= SNAPSHOT_EVERY || (!self.committed && since >= SNAPSHOT_AT_START) {
            manifest.snapshot = Some(state.to_snapshot());
        }
        Ok(manifest)
    }

    /// Tries once to create a manifest; whatever goes wrong, looks what became of it.
    fn create(&self, manifest: &Manifest) -> Result<Outcome, BlocksError> {
        let path = Manifest::path(manifest.version);
        let encoded = manifest.encode();
        let content = encoded.map_err(|source| BlocksError::Manifest { path: path.clone(), source })?;
        let error = match self.store.create(&path, content.into()) {
            Ok(()) => return Ok(Outcome::Committed),
            Err(error @ StoreError::InvalidPath { .. }) => return Ok(Outcome::Refused(error)),
            Err(error) => error,
        };
        // It is there, which a try of ours may have done that got no answer; or there was none to this one; or the answer
        // was that of something between here and the store.
        let is_certain = !matches!(error, StoreError::AlreadyExists { .. } | StoreError::Unavailable { .. });
        match read(self.store.as_ref(), manifest.version) {
            Ok(Some(found)) if found.commit == manifest.commit => Ok(Outcome::Committed),
            Ok(Some(found)) => Ok(Outcome::Lost(Box::new(found))),
            Ok(None) if is_certain => Ok(Outcome::Refused(error)),
            Ok(None) => Ok(Outcome::Unknown(error)),
            Err(BlocksError::Store(error)) => Ok(Outcome::Unknown(error)),
            Err(error) => Err(error),
        }
    }

    /// A commit that took very long may have created a version that had been used, snapshotted and deleted meanwhile,
    /// which nobody reads any more: then it counts as not done.
    fn confirm(&mut self, began_ns: u64, change: &Commit<'_>) -> Result<(), BlocksError> {
        let now_ns = self.now_ns();
        if now_ns.abs_diff(began_ns) < LOOK_NS {
            self.looked_ns = now_ns;
            return Ok(());
        }
        let version = self.state.version;
        let unsure = |source| BlocksError::Unsure { version, source: Box::new(source) };
        self.reload(now_ns).map_err(unsure)?;
        let lost_addition = change.add.iter().find(|summary| !self.state.blocks.contains_key(&summary.id));
        let lost_removal = change.remove.iter().find(|block| self.state.blocks.contains_key(block));
        match lost_addition.map(|summary| summary.id).or(lost_removal.copied()) {
            Some(block) => Err(BlocksError::Conflict { block }),
            None => Ok(()),
        }
    }

    /// Makes the first manifest, if nobody else does.
    fn begin(&self) -> Result<State, BlocksError> {
        let blocks = self.store.list("blocks/").map_err(BlocksError::Store)?;
        // Another backend may have begun, and written blocks, since this one looked.
        if let Some(state) = load(self.store.as_ref(), self.now_ns())? {
            return Ok(state);
        }
        if !blocks.is_empty() {
            return Err(BlocksError::NoManifests { files: blocks.len() });
        }
        let first = Manifest {
            format: FORMAT_VERSION,
            version: 1,
            commit: random_commit(),
            writer: self.writer,
            created_ns: self.now_ns(),
            add: Vec::new(),
            remove: Vec::new(),
            checkpoint: None,
            snapshot: Some(Snapshot::default()),
        };
        match self.create(&first)? {
            Outcome::Committed | Outcome::Lost(_) => {}
            Outcome::Refused(error) | Outcome::Unknown(error) => return Err(BlocksError::Store(error)),
        }
        load(self.store.as_ref(), self.now_ns())?.ok_or(BlocksError::NoManifests { files: 0 })
    }

    fn look_if_stale(&mut self) -> Result<(), BlocksError> {
        let now_ns = self.now_ns();
        if now_ns.abs_diff(self.looked_ns) >= LOOK_NS { self.look_again(now_ns) } else { Ok(()) }
    }

    /// Lists the manifests; begins again from the newest snapshot if the next one is not among them.
    fn look_again(&mut self, now_ns: u64) -> Result<(), BlocksError> {
        let versions = versions(self.store.as_ref())?;
        let next = self.state.version + 1;
        match versions.last() {
            Some(newest) if *newest == self.state.version || versions.binary_search(&next).is_ok() => {
                self.looked_ns = now_ns;
                Ok(())
            }
            Some(newest) if *newest > next => self.reload(now_ns),
            // A store that was set back to an older state.
            Some(_) | None => Err(BlocksError::Gap { path: Manifest::path(self.state.version) }),
        }
    }

    fn reload(&mut self, now_ns: u64) -> Result<(), BlocksError> {
        let loaded = load(self.store.as_ref(), now_ns)?;
        self.state = loaded.ok_or_else(|| BlocksError::Gap { path: Manifest::path(self.state.version) })?;
        self.looked_ns = now_ns;
        Ok(())
    }

    fn follow(&mut self) -> Result<(), BlocksError> {
        while let Some(manifest) = read(self.store.as_ref(), self.state.version + 1)? {
            self.apply(&manifest)?;
        }
        self.looked_ns = self.now_ns();
        Ok(())
    }

    fn apply(&mut self, manifest: &Manifest) -> Result<(), BlocksError> {
        let now_ns = self.now_ns();
        let applied = self.state.apply(manifest, now_ns);
        applied.map_err(|source| BlocksError::Manifest { path: Manifest::path(manifest.version), source })
    }

    fn now_ns(&self) -> u64 {
        (self.config.clock)()
    }
}

/// Reads the newest snapshot and all manifests after it; `None` if there is no manifest at all.
pub(super) fn load(store: &dyn Store, now_ns: u64) -> Result<Option<State>, BlocksError> {
    let versions = versions(store)?;
    let Some(newest) = versions.last() else { return Ok(None) };
    let mut later = Vec::new();
    let mut version = *newest;
    let (state, path) = loop {
        let path = Manifest::path(version);
        let manifest = read(store, version)?.ok_or_else(|| BlocksError::Gap { path: path.clone() })?;
        if let Some(snapshot) = manifest.snapshot {
            break (State::of_snapshot(version, snapshot, now_ns), path);
        }
        if version == 1 {
            return Err(BlocksError::Manifest { path, source: ManifestError::NoSnapshot });
        }
        later.push(manifest);
        version -= 1;
    };
    let mut state = state.map_err(|source| BlocksError::Manifest { path, source })?;
    while let Some(manifest) = later.pop() {
        let applied = state.apply(&manifest, now_ns);
        applied.map_err(|source| BlocksError::Manifest { path: Manifest::path(manifest.version), source })?;
    }
    Ok(Some(state))
}

/// Numbers of all manifests, rising.
pub(super) fn versions(store: &dyn Store) -> Result<Vec<u64>, BlocksError> {
    let listed = store.list(FOLDER).map_err(BlocksError::Store)?;
    let mut versions: Vec<u64> = listed.iter().filter_map(|object| Manifest::version_of(&object.path)).collect();
    versions.sort_unstable();
    Ok(versions)
}

/// A manifest, or `None` if there is none of this version.
fn read(store: &dyn Store, version: u64) -> Result<Option<Manifest>, BlocksError> {
    let path = Manifest::path(version);
    let bytes = match store.get(&path) {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(BlocksError::Store(error)),
    };
    let checked = Manifest::decode(&bytes).and_then(|manifest| match manifest.version {
        found if found == version => Ok(manifest),
        found => Err(ManifestError::Version { found }),
    });
    checked.map(Some).map_err(|source| BlocksError::Manifest { path, source })
}
