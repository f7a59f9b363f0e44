//! Blocks that are read.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

use super::*;
use crate::block::{NewBlock, write_block};
use crate::live::{Trace, group_message};
use crate::query::fixture;
use crate::store::Store;
use crate::store::memory::{Fault, Operation};

const TENANT: &str = "single-tenant";

/// A trace with one span, which bears the name.
fn one(number: u128, name: &str) -> Arc<Trace> {
    let span = fixture::span(trace(number), 1, 0, name, 0, 5);
    let resource_spans = vec![fixture::service("shop", &[], "library", vec![span])];
    Arc::new(group_message(&ExportTraceServiceRequest { resource_spans }).remove(0))
}

/// Writes a block, as received at a time, and what to commit of it.
fn write(store: &MemoryStore, number: u128, received_ns: u64, traces: &[(u128, &str)]) -> Added {
    let new = NewBlock {
        id: block(number),
        tenant: TENANT.into(),
        level: 0,
        received_first_ns: received_ns,
        received_last_ns: received_ns,
    };
    let mut traces: Vec<Arc<Trace>> = traces.iter().map(|(number, name)| one(*number, name)).collect();
    traces.sort_unstable_by_key(|trace| trace.id);
    let (summary, filter) = write_block(store, new, &traces).unwrap();
    Added { summary, filter, ids: traces.iter().map(|trace| trace.id).collect() }
}

fn commit(blocks: &Blocks, add: Vec<Added>) {
    blocks.commit(Change { add, ..Change::default() }).unwrap();
}

fn names(found: &Found) -> Vec<&str> {
    found.traces.iter().flat_map(|trace| &trace.spans).map(|span| span.view().name.as_str()).collect()
}

fn find(blocks: &Blocks, number: u128) -> Found {
    blocks.find(&blocks.snapshot(), TENANT, &trace(number)).unwrap()
}

/// Two blocks, of which the second was received first; trace 2 is in both.
fn two(store: &MemoryStore) -> Blocks {
    let blocks = open(store, 1);
    let first = write(store, 1, START + 9, &[(1, "a"), (2, "late")]);
    let second = write(store, 2, START, &[(2, "early"), (3, "c")]);
    commit(&blocks, vec![first, second]);
    blocks
}

#[test]
fn every_fragment_is_found_the_oldest_first() {
    let store = new_store();
    for blocks in [two(&store), open(&store, 1)] {
        assert_eq!(names(&find(&blocks, 1)), ["a"]);
        assert_eq!(names(&find(&blocks, 2)), ["early", "late"]);
        assert_eq!(find(&blocks, 4), Found::default());
        assert_eq!(blocks.find(&blocks.snapshot(), "b", &trace(1)).unwrap(), Found::default());
    }
}

/// Counts the calls for what lies under `blocks/`.
fn counted(store: &MemoryStore) -> Arc<AtomicUsize> {
    let calls = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&calls);
    store.set_faults(move |_, path| {
        if path.starts_with("blocks/") {
            counting.fetch_add(1, Ordering::Relaxed);
        }
        None
    });
    calls
}

#[test]
fn blocks_that_have_not_the_trace_are_not_read() {
    let store = new_store();
    let blocks = open(&store, 1);
    let many = (0..50).map(|number| write(&store, number, START, &[(number, "x")])).collect();
    commit(&blocks, many);
    let calls = counted(&store);
    assert_eq!(find(&blocks, 1_000), Found::default());
    assert_eq!(calls.swap(0, Ordering::Relaxed), 0);
    assert_eq!(names(&find(&blocks, 7)), ["x"]);
    let first = calls.swap(0, Ordering::Relaxed);
    assert_eq!(names(&find(&blocks, 7)), ["x"]);
    let second = calls.swap(0, Ordering::Relaxed);
    assert!(0 < second && second < first, "{first} calls, and {second} with the block open");
}

#[test]
fn open_blocks_take_bounded_memory() {
    let store = new_store();
    let catalog = Arc::new(MemoryCatalog::default());
    let blocks = open(&store, 1);
    commit(&blocks, (0..20).map(|number| write(&store, number, START, &[(number, "x")])).collect());
    let one = {
        let list = blocks.snapshot();
        blocks.open_block(list.blocks().next().unwrap()).unwrap().memory()
    };
    let config = BlocksConfig { footer_bytes: one * 3 + one / 2, ..config() };
    let blocks = Blocks::open(Arc::new(store.clone()), writer(1), catalog, config, BlocksMetrics::default()).unwrap();
    blocks.warm(&AtomicBool::new(false));
    (0..20).for_each(|number| assert_eq!(names(&find(&blocks, number)), ["x"]));
    let held = blocks.metrics.footer_bytes.get() as usize;
    assert!((one * 2..=config.footer_bytes).contains(&held), "{held} bytes, one takes {one}");
    // The last ones are open still, the first is not.
    let calls = counted(&store);
    find(&blocks, 19);
    let open = calls.swap(0, Ordering::Relaxed);
    find(&blocks, 0);
    assert!(calls.swap(0, Ordering::Relaxed) > open);
}

#[test]
fn filters_take_bounded_memory() {
    let store = new_store();
    let blocks = open(&store, 1);
    let several = |number: u128| [(number, "x"), (number + 100, "x"), (number + 1, "x")];
    commit(&blocks, (0..20).map(|number| write(&store, number, START, &several(number))).collect());
    let one = blocks.snapshot().blocks().next().unwrap().loaded_filter().unwrap().bytes();
    assert_eq!(blocks.metrics.filter_bytes.get() as usize, one * 20);
    let config = BlocksConfig { filter_bytes: one * 3 + one / 2, ..config() };
    let catalog = Arc::new(MemoryCatalog::default());
    let blocks = Blocks::open(Arc::new(store.clone()), writer(1), catalog, config, BlocksMetrics::default()).unwrap();
    blocks.warm(&AtomicBool::new(false));
    assert!(blocks.is_warm());
    assert_eq!(blocks.metrics.filter_bytes.get() as usize, one * 3);
    let list = blocks.snapshot();
    let shared: Vec<u128> = (0..121).filter(|number| list.is_shared(TENANT, &trace(*number))).collect();
    assert_eq!(shared, (1..20).collect::<Vec<_>>());
    // What has no room is asked in its file, without being read whole.
    let bytes = Arc::new(AtomicUsize::new(0));
    let whole = Arc::clone(&bytes);
    store.set_faults(move |operation, path| {
        whole.fetch_add(usize::from(operation == Operation::Get && path.ends_with(".filter")), Ordering::Relaxed);
        None
    });
    for number in 0..20 {
        assert_eq!(names(&find(&blocks, number + 100)), ["x"]);
        assert_eq!(blocks.candidates(&list, TENANT, &trace(number + 1_000)).len(), 0);
    }
    assert_eq!(bytes.load(Ordering::Relaxed), 0);
    // Room that becomes free is used.
    drop(list);
    let remove = {
        let list = blocks.snapshot();
        list.blocks().filter(|entry| entry.loaded_filter().is_some()).map(|entry| entry.id()).collect()
    };
    blocks.commit(Change { remove, ..Change::default() }).unwrap();
    assert_eq!(blocks.metrics.filter_bytes.get(), 0);
    commit(&blocks, vec![write(&store, 50, START, &several(50))]);
    assert_eq!(blocks.metrics.filter_bytes.get() as usize, one);
}

#[test]
fn warming_finds_out_what_the_catalog_does_not_know() {
    let store = new_store();
    two(&store);
    let catalog = Arc::default();
    let blocks = open_with(&store, 1, &catalog).unwrap();
    assert!(blocks.snapshot().is_shared(TENANT, &trace(1)), "as long as nothing is known");
    blocks.warm(&AtomicBool::new(true));
    assert_eq!(blocks.snapshot().pending().count(), 2, "it was stopped");
    blocks.warm(&AtomicBool::new(false));
    let list = blocks.snapshot();
    assert_eq!(list.pending().count(), 0);
    assert_eq!((1..4).filter(|number| list.is_shared(TENANT, &trace(*number))).collect::<Vec<_>>(), [2]);
    // The next start knows it from the catalog.
    assert_eq!(open_with(&store, 1, &catalog).unwrap().snapshot().pending().count(), 0);
}

#[test]
fn blocks_of_other_writers_are_held_against_all() {
    let store = new_store();
    let blocks = two(&store);
    let other = open(&store, 2);
    commit(&other, vec![write(&store, 3, START, &[(1, "again"), (9, "x")])]);
    assert!(blocks.refresh().unwrap());
    let list = blocks.snapshot();
    assert!(list.is_shared(TENANT, &trace(3)), "the filter is not there yet");
    assert!(!blocks.is_warm());
    assert_eq!(names(&find(&blocks, 1)).len(), 2);
    blocks.warm(&AtomicBool::new(false));
    assert!(blocks.is_warm());
    let list = blocks.snapshot();
    assert!(list.is_shared(TENANT, &trace(1)) && list.is_shared(TENANT, &trace(2)));
    assert!(!list.is_shared(TENANT, &trace(3)) && !list.is_shared(TENANT, &trace(9)));
}

#[test]
fn a_filter_that_is_lost_or_damaged_is_made_anew() {
    let store = new_store();
    two(&store);
    let [missing, damaged] = [1, 2].map(|number| summary(number).filter_path());
    store.delete(&missing).unwrap();
    store.overwrite(&damaged, "no filter");
    let blocks = open(&store, 1);
    blocks.warm(&AtomicBool::new(false));
    assert_eq!(names(&find(&blocks, 2)), ["early", "late"]);
    let list = blocks.snapshot();
    assert!(list.blocks().all(|entry| !entry.may_contain(&trace(77))));
    assert_eq!(blocks.metrics.rebuilt_filters.get(), 2);
}

#[test]
fn a_damaged_or_lost_block_is_passed_over_and_counted() {
    let store = new_store();
    let blocks = two(&store);
    store.overwrite(&summary(1).data_path(), "no block");
    let found = find(&blocks, 2);
    assert_eq!((names(&found), &*found.skipped), (vec!["early"], &[block(1)][..]));
    store.delete(&summary(2).data_path()).unwrap();
    let found = find(&blocks, 2);
    assert_eq!((names(&found), &*found.skipped), (vec![], &[block(2), block(1)][..]));
    assert_eq!(blocks.metrics.unreadable.get(), 3);
    assert_eq!(blocks.logged.lock().unwrap().len(), 2);
}

#[test]
fn a_store_that_fails_makes_the_query_fail() {
    let store = new_store();
    let blocks = two(&store);
    store.set_faults(|operation, path| (operation == Operation::GetRanges).then(|| Fault::unavailable(path)));
    let error = blocks.find(&blocks.snapshot(), TENANT, &trace(2)).unwrap_err();
    assert!(matches!(error, BlocksError::Block { .. }), "{error}");
    assert_eq!(blocks.metrics.unreadable.get(), 0);
}

#[test]
fn a_query_on_an_old_list_begins_again() {
    let store = new_store();
    let blocks = two(&store);
    // Another process has merged the blocks, and deleted them.
    let other = open(&store, 2);
    let merged = write(&store, 3, START, &[(1, "a"), (2, "merged"), (3, "c")]);
    other.commit(Change { add: vec![merged], remove: vec![block(1), block(2)], checkpoint: None }).unwrap();
    pass(&store, MINUTE);
    assert_eq!(other.sweep(now(), Sweep::Shared).unwrap().blocks, 2);
    let lists = Mutex::new(Vec::new());
    let is_gone = |error: &BlocksError| matches!(error, BlocksError::Gone { .. });
    let found = blocks.with_list(is_gone, |list| {
        lists.lock().unwrap().push(list.version());
        blocks.find(list, TENANT, &trace(2))
    });
    assert_eq!(names(&found.unwrap()), ["merged"]);
    assert_eq!(lists.into_inner().unwrap(), [2, 3]);
    assert_eq!(blocks.metrics.unreadable.get(), 0);
}

#[test]
fn the_list_is_made_anew_from_the_blocks() {
    let store = new_store();
    let blocks = two(&store);
    let before: Vec<BlockSummary> = blocks.snapshot().blocks().map(|entry| (*entry.summary).clone()).collect();
    store.overwrite("blocks/single-tenant/00000000000000000000000000000009.parquet", "no block");
    let moved = store.get(&summary(1).data_path()).unwrap();
    store.overwrite("blocks/b/00000000000000000000000000000001.parquet", moved);
    for version in [1, 2] {
        store.delete(&Manifest::path(version)).unwrap();
    }
    open_with(&store, 1, &Arc::default()).unwrap_err();
    let shared: Arc<dyn Store> = Arc::new(store.clone());
    let rebuilt = rebuild(&shared, writer(1), now()).unwrap();
    assert_eq!((rebuilt.version, rebuilt.blocks.len(), rebuilt.unreadable.len()), (1, 2, 2));
    let again = open(&store, 1);
    let after: Vec<BlockSummary> = again.snapshot().blocks().map(|entry| (*entry.summary).clone()).collect();
    assert_eq!(after, before);
    // And behind manifests that are there but cannot be read.
    store.overwrite(&Manifest::path(1), "damaged");
    assert_eq!(rebuild(&shared, writer(1), now()).unwrap().version, 2);
    assert_eq!(listed(&open(&store, 1)), ids(&[1, 2]));
}

/// Deletes both files of a block; what they were.
fn lose(store: &MemoryStore, number: u128) -> [(String, bytes::Bytes); 2] {
    [summary(number).data_path(), summary(number).filter_path()].map(|path| {
        let content = store.get(&path).unwrap();
        store.delete(&path).unwrap();
        (path, content)
    })
}

#[test]
fn what_is_lost_counts_as_lost_until_the_next_start() {
    let (store, catalog) = (new_store(), Arc::default());
    two(&store);
    let files = lose(&store, 1);
    let blocks = open_with(&store, 1, &catalog).unwrap();
    let gone = blocks.snapshot().blocks().find(|entry| entry.id() == block(1)).cloned().unwrap();
    assert!(!gone.is_lost() && gone.may_contain(&trace(3)));
    blocks.warm(&AtomicBool::new(false));
    assert!(gone.is_lost() && !gone.may_contain(&trace(2)) && blocks.is_warm());
    assert_eq!(blocks.metrics.lost.get(), 1);
    assert!(!blocks.snapshot().is_shared(TENANT, &trace(3)));
    // A block that comes now is held against the others only.
    commit(&blocks, vec![write(&store, 3, START, &[(1, "again"), (3, "c"), (9, "x")])]);
    let list = blocks.snapshot();
    assert_eq!(list.pending().count(), 0);
    let shared: Vec<u128> = (1..10).filter(|number| list.is_shared(TENANT, &trace(*number))).collect();
    assert_eq!(shared, [3]);
    // Answers say that it is missing, whichever trace is looked for.
    for number in [1, 2, 77] {
        assert_eq!(find(&blocks, number).skipped, [block(1)]);
    }
    // It comes back; until the next start it is not looked at, because trace 1 would be in two places unnoticed.
    for (path, content) in files {
        store.overwrite(&path, content);
    }
    blocks.warm(&AtomicBool::new(false));
    assert_eq!((names(&find(&blocks, 1)), find(&blocks, 1).skipped), (vec!["again"], vec![block(1)]));
    let blocks = open_with(&store, 1, &catalog).unwrap();
    assert_eq!(blocks.snapshot().pending().count(), 3, "nothing was remembered");
    blocks.warm(&AtomicBool::new(false));
    let list = blocks.snapshot();
    let shared: Vec<u128> = (1..10).filter(|number| list.is_shared(TENANT, &trace(*number))).collect();
    assert_eq!(shared, [1, 2, 3]);
    assert_eq!((names(&find(&blocks, 1)).len(), find(&blocks, 1).skipped), (2, vec![]));
}

#[test]
fn what_another_process_removed_is_not_lost() {
    let store = new_store();
    two(&store);
    let blocks = open(&store, 1);
    let removed = blocks.snapshot().blocks().find(|entry| entry.id() == block(1)).cloned().unwrap();
    open(&store, 2).commit(remove(&[1])).unwrap();
    lose(&store, 1);
    blocks.warm(&AtomicBool::new(false));
    assert!(!removed.is_lost());
    assert_eq!((listed(&blocks), blocks.metrics.lost.get()), (ids(&[2]), 0));
}

#[test]
fn a_store_that_fails_loses_nothing() {
    let store = new_store();
    two(&store);
    lose(&store, 1);
    let blocks = open(&store, 1);
    store.set_faults(|_, path| path.ends_with(".parquet").then(|| Fault::unavailable(path)));
    blocks.warm(&AtomicBool::new(false));
    store.set_faults(|_, path| path.starts_with("manifest/").then(|| Fault::unavailable(path)));
    blocks.warm(&AtomicBool::new(false));
    assert_eq!(blocks.metrics.lost.get(), 0, "the list could not be looked at");
    store.clear_faults();
    blocks.warm(&AtomicBool::new(false));
    assert_eq!(blocks.metrics.lost.get(), 1);
}
