//! The catalog without a disk, for tests.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{BlockCatalog, Catalog, CatalogError, Hours, Scope, Seen, SeenList, TagValue};
use crate::block::BlockId;
use crate::live::TraceId;

/// Keeps everything in memory.
#[derive(Debug, Default)]
pub struct MemoryCatalog(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    names: BTreeMap<(String, Scope, String), Hours>,
    values: BTreeMap<(String, Scope, String, TagValue), Hours>,
    checkpoint: Option<u64>,
    shared: BTreeMap<BlockId, Vec<TraceId>>,
    lists: BTreeMap<String, SeenList>,
}

impl MemoryCatalog {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Catalog for MemoryCatalog {
    fn put(&self, tenant: &str, seen: &[Seen]) -> Result<(), CatalogError> {
        let mut state = self.state();
        for Seen { scope, name, value, hours } in seen {
            let known = state.names.entry((tenant.to_owned(), *scope, name.clone())).or_insert(*hours);
            *known = known.union(*hours);
            if let Some(value) = value {
                let key = (tenant.to_owned(), *scope, name.clone(), value.clone());
                let known = state.values.entry(key).or_insert(*hours);
                *known = known.union(*hours);
            }
        }
        Ok(())
    }

    fn tag_names(
        &self,
        tenant: &str,
        scope: Scope,
        within: Option<Hours>,
        limit: usize,
    ) -> Result<Vec<String>, CatalogError> {
        let state = self.state();
        let found = state.names.iter().filter(|((of, at, _), hours)| {
            of == tenant && *at == scope && within.is_none_or(|within| within.intersects(**hours))
        });
        Ok(found.map(|((_, _, name), _)| name.clone()).take(limit).collect())
    }

    fn tag_values(
        &self,
        tenant: &str,
        scope: Scope,
        name: &str,
        within: Option<Hours>,
        limit: usize,
    ) -> Result<Vec<TagValue>, CatalogError> {
        let state = self.state();
        let found = state.values.iter().filter(|((of, at, called, _), hours)| {
            of == tenant && *at == scope && called == name && within.is_none_or(|within| within.intersects(**hours))
        });
        Ok(found.map(|((_, _, _, value), _)| value.clone()).take(limit).collect())
    }

    fn for_each(&self, visit: &mut dyn FnMut(&str, Seen)) -> Result<(), CatalogError> {
        let state = self.state();
        for ((tenant, scope, name), hours) in &state.names {
            visit(tenant, Seen { scope: *scope, name: name.clone(), value: None, hours: *hours });
        }
        for ((tenant, scope, name, value), hours) in &state.values {
            visit(tenant, Seen { scope: *scope, name: name.clone(), value: Some(value.clone()), hours: *hours });
        }
        Ok(())
    }

    fn prune(&self, before: u32) -> Result<u64, CatalogError> {
        let mut state = self.state();
        let held = state.names.len() + state.values.len();
        state.names.retain(|_, hours| hours.last >= before);
        state.values.retain(|_, hours| hours.last >= before);
        Ok((held - state.names.len() - state.values.len()) as u64)
    }

    fn checkpoint(&self) -> Result<Option<u64>, CatalogError> {
        Ok(self.state().checkpoint)
    }

    fn set_checkpoint(&self, sequence: u64) -> Result<(), CatalogError> {
        self.state().checkpoint = Some(sequence);
        Ok(())
    }
}

impl BlockCatalog for MemoryCatalog {
    fn shared_ids(&self, block: BlockId) -> Result<Option<Vec<TraceId>>, CatalogError> {
        Ok(self.state().shared.get(&block).cloned())
    }

    fn put_shared_ids(&self, block: BlockId, ids: &[TraceId]) -> Result<(), CatalogError> {
        self.state().shared.insert(block, ids.to_vec());
        Ok(())
    }

    fn retain_blocks(&self, keep: &dyn Fn(BlockId) -> bool) -> Result<(), CatalogError> {
        self.state().shared.retain(|block, _| keep(*block));
        Ok(())
    }

    fn seen_list(&self, store: &str) -> Result<Option<SeenList>, CatalogError> {
        Ok(self.state().lists.get(store).copied())
    }

    fn put_seen_list(&self, store: &str, seen: SeenList) -> Result<(), CatalogError> {
        self.state().lists.insert(store.to_owned(), seen);
        Ok(())
    }
}
