//! What tenants said, in the store: `docs/format/overrides.md`. Objects are never changed: each change is a new one with the
//! next number, and of two writers only one can create it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tracing::debug;

use super::{OverridesError, Said, limits};
use crate::checked_json::{self, CheckedJsonError};
use crate::store::{Store, StoreError};
use crate::telemetry::chain;

/// Where they lie.
const FOLDER: &str = "overrides/";

/// The only format that is known.
const FORMAT: u32 = 1;

/// Times that an object is looked for which others replace meanwhile.
const TIMES: usize = 5;

/// What a tenant said, or that it says nothing any more.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Stored {
    format: u32,
    /// From 1, the same as in the name.
    pub(super) version: u64,
    tenant: String,
    /// None: what was said is forgotten.
    pub(super) limits: Option<Value>,
}

/// What lies in the store is not what a backend wrote, or one of a later version did.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DecodeError(#[from] Inner);

#[derive(Debug, thiserror::Error)]
enum Inner {
    #[error(transparent)]
    Json(#[from] CheckedJsonError),
    #[error("it says that it is version {version} of {tenant}")]
    Misplaced { version: u64, tenant: String },
}

impl Stored {
    pub(super) fn new(version: u64, tenant: &str, limits: Option<Value>) -> Self {
        Self { format: FORMAT, version, tenant: tenant.to_owned(), limits }
    }

    pub(super) fn said(&self) -> Option<Said> {
        Some(Said { version: self.version, limits: self.limits.clone()? })
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        // What was JSON is JSON.
        checked_json::encode(self).unwrap_or_default()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        Ok(checked_json::decode(bytes, FORMAT).map_err(Inner::from)?)
    }

    /// Writes it, if nobody has written this version.
    pub(super) fn create(&self, store: &dyn Store) -> Result<(), OverridesError> {
        match store.create(&path(&self.tenant, self.version), self.encode().into()) {
            Err(StoreError::AlreadyExists { .. }) => Err(OverridesError::Version),
            created => Ok(created?),
        }
    }
}

/// Reads an object and what comes over HTTP, and forgets it; false if what was read cannot be read again once it is
/// written. For the fuzz target.
pub fn check_stored(bytes: &[u8]) -> bool {
    if let Ok(said) = limits::read(bytes) {
        _ = limits::is_usable(&said);
        let (mut patched, mut joined) = (said.clone(), said.clone());
        limits::merge_patch(&mut patched, said.clone());
        limits::put_over(&mut joined, &said);
    }
    let Ok(stored) = Stored::decode(bytes) else { return true };
    stored.limits.iter().for_each(|limits| _ = limits::is_usable(limits));
    Stored::decode(&stored.encode()).is_ok_and(|again| again.version == stored.version)
}

/// The newest version of each tenant.
pub(super) fn versions(store: &dyn Store) -> Result<BTreeMap<String, u64>, OverridesError> {
    let mut newest = BTreeMap::new();
    for object in store.list(FOLDER)? {
        if let Some((tenant, version)) = place_of(&object.path) {
            let newest: &mut u64 = newest.entry(tenant.to_owned()).or_default();
            *newest = version.max(*newest);
        }
    }
    Ok(newest)
}

/// The newest of a tenant.
pub(super) fn newest(store: &dyn Store, tenant: &str) -> Result<Option<Stored>, OverridesError> {
    let mut gone = None;
    for _ in 0..TIMES {
        let Some(version) = versions_of(store, tenant)?.max() else { return Ok(None) };
        let path = path(tenant, version);
        let bytes = match store.get(&path) {
            // Another backend has replaced it since.
            Err(error @ StoreError::NotFound { .. }) => {
                gone = Some(error);
                continue;
            }
            bytes => bytes?,
        };
        let stored = Stored::decode(&bytes).and_then(|stored| {
            let misplaced = Inner::Misplaced { version: stored.version, tenant: stored.tenant.clone() };
            if (stored.version, stored.tenant.as_str()) == (version, tenant) {
                Ok(stored)
            } else {
                Err(misplaced.into())
            }
        });
        return stored.map(Some).map_err(|source| OverridesError::Unreadable { path, source });
    }
    gone.map_or(Ok(None), |error| Err(error.into()))
}

/// Removes what was replaced. What cannot be removed lies there until the next change.
pub(super) fn remove_below(store: &dyn Store, tenant: &str, version: u64) {
    let removed = versions_of(store, tenant).and_then(|versions| {
        for old in versions.filter(|old| *old < version) {
            store.delete(&path(tenant, old))?;
        }
        Ok(())
    });
    if let Err(error) = removed {
        debug!(tenant, error = %chain(&error), "replaced overrides stay in the store for now");
    }
}

fn versions_of(store: &dyn Store, tenant: &str) -> Result<impl Iterator<Item = u64> + use<>, OverridesError> {
    let objects = store.list(&format!("{FOLDER}{tenant}/"))?;
    Ok(objects.into_iter().filter_map(|object| place_of(&object.path).map(|(_, version)| version)))
}

/// 20 digits, as manifests have them.
fn path(tenant: &str, version: u64) -> String {
    format!("{FOLDER}{tenant}/{version:020}.json")
}

fn place_of(found: &str) -> Option<(&str, u64)> {
    let (tenant, version) = found.strip_prefix(FOLDER)?.strip_suffix(".json")?.split_once('/')?;
    let version = version.parse().ok()?;
    (path(tenant, version) == found).then_some((tenant, version))
}
