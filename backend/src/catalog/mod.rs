//! The catalog: what can be computed again from the log, kept at hand.
//!
//! Never the only copy of anything: deleting it costs a rebuild and nothing else.

mod blocks;
mod index;
mod known;
mod memory;
mod noted;
mod of_block;
mod opening;
mod store;
mod tag;
mod values;
mod watermark;

pub use blocks::{BlockCatalog, SeenList};
pub use index::{IndexLimits, TagIndex, Unknown};
pub use memory::MemoryCatalog;
pub use of_block::BlockTags;
pub use opening::SledCatalog;
pub use tag::{Hours, Scope, Seen, TagValue};
pub use watermark::Watermark;

/// Tag index and log checkpoint. Calls may block on disk: keep them off the threads that serve connections.
pub trait Catalog: Send + Sync {
    /// Remembers tags and when they were seen; what is known already gets its hours widened.
    fn put(&self, tenant: &str, seen: &[Seen]) -> Result<(), CatalogError>;

    /// Remembers tags as [`Self::put`] does, without the disk: who reads finds them, and they are written with the next
    /// checkpoint at the latest. False, and nothing is done, if that cannot be: then they must be put.
    fn note(&self, _tenant: &str, _seen: &[Seen]) -> bool {
        false
    }

    /// Names of the tags of a scope, sorted, at most `limit`; with `within`, only those seen in these hours.
    fn tag_names(
        &self,
        tenant: &str,
        scope: Scope,
        within: Option<Hours>,
        limit: usize,
    ) -> Result<Vec<String>, CatalogError>;

    /// Values of a tag, sorted by type and value, at most `limit`; with `within`, only those seen in these hours.
    ///
    /// Values longer than 1 KiB, and those beyond the limit of values a tag, are not indexed.
    fn tag_values(
        &self,
        tenant: &str,
        scope: Scope,
        name: &str,
        within: Option<Hours>,
        limit: usize,
    ) -> Result<Vec<TagValue>, CatalogError>;

    /// Every entry of all tenants, in no particular order.
    fn for_each(&self, visit: &mut dyn FnMut(&str, Seen)) -> Result<(), CatalogError>;

    /// Removes what was last seen before an hour since the epoch; returns how many entries that were.
    fn prune(&self, before: u32) -> Result<u64, CatalogError>;

    /// Sequence number of the log up to which every frame is in the catalog.
    fn checkpoint(&self) -> Result<Option<u64>, CatalogError>;

    /// Stores the checkpoint; everything put before must be found wherever the checkpoint is found.
    fn set_checkpoint(&self, sequence: u64) -> Result<(), CatalogError>;

    /// Grows whenever something that was put may be lost: then everything must be put again.
    fn losses(&self) -> u64 {
        0
    }
}

/// Why the catalog did not answer.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The store failed, and could not be opened again yet.
    #[error("tag index is closed after a failure")]
    Closed,
    /// The store failed.
    #[error("tag index cannot be read or written")]
    Store(#[source] sled::Error),
    /// An entry is not in the format of this version.
    #[error("tag index has a malformed entry in tree {tree}: {entry:02x?}")]
    Malformed {
        /// Tree of the entry.
        tree: &'static str,
        /// Key of the entry, or its value.
        entry: Vec<u8>,
    },
}
