//! What is known of blocks and can be found out again by reading them.

use super::store::malformed;
use super::{CatalogError, SledCatalog};
use crate::block::BlockId;
use crate::live::TraceId;

/// Name of the tree.
pub(super) const TREE: &str = "shared";

/// Before the name of a store in the tree `meta`.
const KEY_LIST: &str = "list:";

/// What was known of the list of blocks of a store.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct SeenList {
    /// The newest version that was seen.
    pub version: u64,
    /// Whether a list that was older than that was seen after it: manifests were lost.
    pub went_back: bool,
}

/// Which traces of a block may be in another one too, by block; and what was seen of the list of blocks.
pub trait BlockCatalog: Send + Sync {
    /// The ids that were put for a block.
    fn shared_ids(&self, block: BlockId) -> Result<Option<Vec<TraceId>>, CatalogError>;

    /// Puts the ids of a block.
    fn put_shared_ids(&self, block: BlockId, ids: &[TraceId]) -> Result<(), CatalogError>;

    /// Forgets all blocks but these.
    fn retain_blocks(&self, keep: &dyn Fn(BlockId) -> bool) -> Result<(), CatalogError>;

    /// What was put of the list of a store, which is told by its name.
    fn seen_list(&self, store: &str) -> Result<Option<SeenList>, CatalogError>;

    /// Puts what was seen of the list of a store.
    fn put_seen_list(&self, store: &str, seen: SeenList) -> Result<(), CatalogError>;
}

impl BlockCatalog for SledCatalog {
    fn shared_ids(&self, block: BlockId) -> Result<Option<Vec<TraceId>>, CatalogError> {
        self.with(|trees| {
            let stored = trees.shared.get(block.to_string()).map_err(CatalogError::Store)?;
            let Some(stored) = stored else { return Ok(None) };
            let (ids, rest) = stored.as_chunks();
            if !rest.is_empty() {
                return Err(malformed(TREE, &stored));
            }
            Ok(Some(ids.iter().copied().map(TraceId).collect()))
        })
    }

    fn put_shared_ids(&self, block: BlockId, ids: &[TraceId]) -> Result<(), CatalogError> {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
        self.with(|trees| trees.shared.insert(block.to_string(), &*ids).map(|_| ()).map_err(CatalogError::Store))
    }

    fn retain_blocks(&self, keep: &dyn Fn(BlockId) -> bool) -> Result<(), CatalogError> {
        self.with(|trees| {
            for key in trees.shared.iter().keys() {
                let key = key.map_err(CatalogError::Store)?;
                let block = std::str::from_utf8(&key).ok().and_then(|text| text.parse().ok());
                if !keep(block.ok_or_else(|| malformed(TREE, &key))?) {
                    trees.shared.remove(key).map_err(CatalogError::Store)?;
                }
            }
            Ok(())
        })
    }

    fn seen_list(&self, store: &str) -> Result<Option<SeenList>, CatalogError> {
        self.with(|trees| {
            let stored = trees.meta.get(format!("{KEY_LIST}{store}")).map_err(CatalogError::Store)?;
            let Some(stored) = stored else { return Ok(None) };
            let seen = stored.split_first_chunk().and_then(|(version, rest)| {
                let went_back = matches!(rest, [1]);
                (went_back || matches!(rest, [0]))
                    .then(|| SeenList { version: u64::from_be_bytes(*version), went_back })
            });
            seen.map(Some).ok_or_else(|| malformed("meta", &stored))
        })
    }

    fn put_seen_list(&self, store: &str, seen: SeenList) -> Result<(), CatalogError> {
        let value = [&seen.version.to_be_bytes()[..], &[u8::from(seen.went_back)]].concat();
        self.with(|trees| {
            let put = trees.meta.insert(format!("{KEY_LIST}{store}"), &*value);
            put.map(|_| ()).map_err(CatalogError::Store)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::MemoryCatalog;
    use crate::telemetry::CatalogMetrics;

    fn id(number: u128) -> TraceId {
        TraceId(number.to_be_bytes())
    }

    #[test]
    fn what_was_put_is_there_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let stored = SledCatalog::open(&dir.path().join("catalog"), &CatalogMetrics::default(), Ok).unwrap();
        let memory = MemoryCatalog::default();
        let [first, second, third] = [1, 2, 3].map(|number| BlockId::new(1_000_000, number));
        for catalog in [&stored as &dyn BlockCatalog, &memory] {
            assert_eq!(catalog.shared_ids(first).unwrap(), None);
            catalog.put_shared_ids(first, &[id(1), id(u128::MAX)]).unwrap();
            catalog.put_shared_ids(second, &[]).unwrap();
            catalog.put_shared_ids(second, &[]).unwrap();
            catalog.put_shared_ids(third, &[id(3)]).unwrap();
            catalog.retain_blocks(&|block| block != third).unwrap();
            assert_eq!(catalog.shared_ids(first).unwrap(), Some(vec![id(1), id(u128::MAX)]));
            assert_eq!(catalog.shared_ids(second).unwrap(), Some(vec![]));
            assert_eq!(catalog.shared_ids(third).unwrap(), None);
            assert_eq!(catalog.seen_list("one").unwrap(), None);
            let seen = SeenList { version: 7, went_back: true };
            catalog.put_seen_list("one", SeenList::default()).unwrap();
            catalog.put_seen_list("one", seen).unwrap();
            catalog.put_seen_list("other", SeenList::default()).unwrap();
            assert_eq!(catalog.seen_list("one").unwrap(), Some(seen));
            assert_eq!(catalog.seen_list("other").unwrap(), Some(SeenList::default()));
        }
        let damage = |trees: &super::super::opening::Trees| {
            trees.shared.insert(first.to_string(), b"short").map_err(CatalogError::Store)
        };
        stored.with(damage).unwrap();
        assert!(matches!(stored.shared_ids(first), Err(CatalogError::Malformed { .. })));
    }
}
