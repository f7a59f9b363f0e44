//! Summaries of blocks for tests.

use proptest::prelude::*;

use crate::block::{BlockId, BlockSummary};

/// A block; its id says how many were made before.
pub(super) fn block(tenant: &str, level: u8, received_last_ns: u64, bytes: u64) -> BlockSummary {
    use std::sync::atomic::{AtomicU64, Ordering};
    static MADE: AtomicU64 = AtomicU64::new(0);
    BlockSummary {
        id: BlockId::new(received_last_ns, MADE.fetch_add(1, Ordering::Relaxed).into()),
        tenant: tenant.into(),
        level,
        start_ns: received_last_ns,
        end_ns: received_last_ns,
        received_first_ns: received_last_ns,
        received_last_ns,
        spans: bytes,
        traces: 1,
        bytes,
        filter_bytes: 0,
        services: None,
    }
}

/// Up to `count` blocks of two tenants within two days, with at most 120 bytes each.
pub(super) fn blocks(count: usize) -> impl Strategy<Value = Vec<BlockSummary>> {
    let minute = 0_u64..2 * 24 * 60;
    let one = (prop::bool::ANY, 0_u8..4, minute, 1_u64..120).prop_map(|(tenant, level, minute, bytes)| {
        block(if tenant { "a" } else { "b" }, level, minute * 60_000_000_000, bytes)
    });
    prop::collection::vec(one, 0..count)
}
