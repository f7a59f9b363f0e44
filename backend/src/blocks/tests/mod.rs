//! Guarantees of the list of blocks, on a store in memory.

mod format;
mod manifests;
mod races;
mod reading;
mod registry;

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::block::{BlockSummary, Filter};
use crate::catalog::MemoryCatalog;
use crate::live::TraceId;
use crate::store::MemoryStore;
use crate::telemetry::BlocksMetrics;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

/// When each test begins.
const START: u64 = 1_000 * HOUR;

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(START) };
    static SLEPT: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

fn now() -> u64 {
    NOW.get()
}

/// Lets time pass, for the writers and for the store.
fn pass(store: &MemoryStore, time_ns: u64) {
    NOW.set(now() + time_ns);
    store.set_now(now());
}

fn config() -> BlocksConfig {
    let sleep = |time| SLEPT.set(SLEPT.get() + time);
    BlocksConfig { clock: now, sleep, footer_bytes: 1 << 20, filter_bytes: 1 << 20, grace: Duration::from_mins(1) }
}

fn new_store() -> MemoryStore {
    let store = MemoryStore::new();
    store.set_now(now());
    store
}

fn writer(number: u8) -> WriterId {
    format!("{number:032x}").parse().unwrap()
}

fn open_with(store: &MemoryStore, number: u8, catalog: &Arc<MemoryCatalog>) -> Result<Blocks, BlocksError> {
    let catalog = Arc::clone(catalog);
    Blocks::open(Arc::new(store.clone()), writer(number), catalog, config(), BlocksMetrics::default())
}

fn open(store: &MemoryStore, number: u8) -> Blocks {
    open_with(store, number, &Arc::default()).unwrap()
}

fn block(number: u128) -> BlockId {
    BlockId::new(START, number)
}

fn summary(number: u128) -> BlockSummary {
    BlockSummary {
        id: block(number),
        tenant: "single-tenant".into(),
        level: 0,
        start_ns: START,
        end_ns: START + number as u64,
        received_first_ns: START,
        received_last_ns: START + 1,
        spans: 20,
        traces: 10,
        bytes: 1_000,
        filter_bytes: 100,
        services: Some(vec!["cart".to_owned(), "shop".to_owned()]),
    }
}

fn trace(number: u128) -> TraceId {
    TraceId(number.wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835).to_be_bytes())
}

/// A block with these traces, of which only the list knows.
fn added(number: u128, traces: &[u128]) -> Added {
    let mut ids: Vec<TraceId> = traces.iter().map(|number| trace(*number)).collect();
    ids.sort_unstable();
    Added { summary: summary(number), filter: Filter::of(ids.iter().copied()), ids }
}

fn add(numbers: &[u128]) -> Change {
    Change { add: numbers.iter().map(|number| added(*number, &[])).collect(), ..Change::default() }
}

fn remove(numbers: &[u128]) -> Change {
    Change { remove: numbers.iter().map(|number| block(*number)).collect(), ..Change::default() }
}

/// Blocks in the list, sorted.
fn listed(blocks: &Blocks) -> Vec<BlockId> {
    let mut listed: Vec<BlockId> = blocks.snapshot().blocks().map(|entry| entry.id()).collect();
    listed.sort_unstable();
    listed
}

fn ids(numbers: &[u128]) -> Vec<BlockId> {
    let mut ids: Vec<BlockId> = numbers.iter().map(|number| block(*number)).collect();
    ids.sort_unstable();
    ids
}
