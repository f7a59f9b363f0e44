//! What is known of a block without opening it.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::BlockId;

/// Most names of services that a summary lists.
pub const MAX_SERVICES: usize = 256;

/// What is known of a block without opening it: stands in the manifest that commits the block.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct BlockSummary {
    /// Identity.
    pub id: BlockId,
    /// Whose it is.
    pub tenant: Arc<str>,
    /// How often it was compacted: 0 for a block that was cut from the live set.
    pub level: u8,
    /// Earliest start of a span, nanoseconds since the epoch.
    pub start_ns: u64,
    /// Latest end of a span (or start, where a span ends before it starts), nanoseconds since the epoch.
    pub end_ns: u64,
    /// When the first of its spans was received, nanoseconds since the epoch.
    pub received_first_ns: u64,
    /// When the last of its spans was received; not before they were first written to a block. Retention and compaction windows go by this: clocks of senders may be wrong.
    pub received_last_ns: u64,
    /// Rows.
    pub spans: u64,
    /// Distinct trace ids.
    pub traces: u64,
    /// Size of the Parquet file.
    pub bytes: u64,
    /// Size of the trace id filter's file.
    pub filter_bytes: u64,
    /// `service.name` of all resources, sorted; none if there are more than 256.
    pub services: Option<Vec<String>>,
}

impl BlockSummary {
    /// Where the Parquet file lies in the store. Names of tenants are safe in paths.
    pub fn data_path(&self) -> String {
        data_path(&self.tenant, self.id)
    }

    /// Where the trace id filter lies in the store.
    pub fn filter_path(&self) -> String {
        filter_path(&self.tenant, self.id)
    }

    /// Size of all its files.
    pub fn total_bytes(&self) -> u64 {
        self.bytes + self.filter_bytes
    }
}

/// Where the Parquet file of a block lies in the store.
pub fn data_path(tenant: &str, id: BlockId) -> String {
    format!("blocks/{tenant}/{id}.parquet")
}

/// Where the trace id filter of a block lies in the store.
pub fn filter_path(tenant: &str, id: BlockId) -> String {
    format!("blocks/{tenant}/{id}.filter")
}
