//! The list that queries take, shared traces, and what is deleted.

use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use rstest::rstest;

use super::*;
use crate::block::BlockId;
use crate::catalog::BlockCatalog;
use crate::store::Store;
use crate::store::memory::{Fault, Operation};

const TENANT: &str = "single-tenant";

fn go_on() -> AtomicBool {
    AtomicBool::new(false)
}

/// Puts files there for a block, so that they can be deleted.
fn put_files(store: &MemoryStore, number: u128) {
    store.overwrite(&summary(number).data_path(), "data");
    store.overwrite(&summary(number).filter_path(), Filter::of(std::iter::empty()).encode());
}

fn files(store: &MemoryStore) -> Vec<String> {
    store.list("blocks/").unwrap().into_iter().map(|object| object.path).collect()
}

#[test]
fn the_newest_data_comes_first_and_tenants_are_apart() {
    let store = new_store();
    let blocks = open(&store, 1);
    let mut change = add(&[2, 9, 5, 7]);
    change.add[3].summary.tenant = "a".into();
    blocks.commit(change).unwrap();
    let list = blocks.snapshot();
    let of = |tenant: &str| list.of(tenant).map(|entry| entry.id()).collect::<Vec<_>>();
    assert_eq!(of(TENANT), [block(9), block(5), block(2)]);
    assert_eq!(of("a"), [block(7)]);
    assert_eq!(of("b"), []);
    assert_eq!(list.tenants().map(|tenant| &**tenant).collect::<Vec<_>>(), ["a", TENANT]);
    assert_eq!((list.len(), list.is_empty()), (4, false));
}

#[test]
fn a_list_that_was_taken_does_not_change() {
    let store = new_store();
    let blocks = open(&store, 1);
    blocks.commit(add(&[1])).unwrap();
    let list = blocks.snapshot();
    blocks.commit(Change { remove: vec![block(1)], ..add(&[2]) }).unwrap();
    assert_eq!(list.blocks().map(|entry| entry.id()).collect::<Vec<_>>(), [block(1)]);
    assert_eq!(listed(&blocks), ids(&[2]));
}

#[test]
fn sizes_are_shown() {
    let store = new_store();
    let metrics = crate::telemetry::Metrics::new();
    let catalog = Arc::new(MemoryCatalog::default());
    let blocks = Blocks::open(Arc::new(store), writer(1), catalog, config(), metrics.blocks.clone()).unwrap();
    blocks.commit(add(&[1, 2])).unwrap();
    let text = metrics.encode().unwrap();
    for line in [
        "tempodb_blocklist_length{tenant=\"single-tenant\"} 2",
        "tempodb_backend_bytes_total{tenant=\"single-tenant\",status=\"live\"} 2200",
        "tempodb_backend_objects_total{tenant=\"single-tenant\",status=\"live\"} 20",
        "coati_backend_manifest_version 2",
    ] {
        assert!(text.contains(line), "{line} is not in {text}");
    }
    blocks.commit(remove(&[1, 2])).unwrap();
    assert!(!metrics.encode().unwrap().contains("tempodb_blocklist_length{"));
}

#[test]
fn shared_traces_are_known_at_once() {
    let blocks = open(&new_store(), 1);
    blocks.commit(Change { add: vec![added(1, &[1, 2, 3])], ..Change::default() }).unwrap();
    blocks
        .commit(Change { add: vec![added(2, &[3, 4]), added(3, &[5, 6]), added(4, &[6, 7])], ..Change::default() })
        .unwrap();
    let list = blocks.snapshot();
    let shared: Vec<u128> = (1..8).filter(|number| list.is_shared(TENANT, &trace(*number))).collect();
    assert_eq!(shared, [3, 6]);
    assert!(!list.is_shared("b", &trace(3)));
}

#[test]
fn merging_ends_the_sharing() {
    let blocks = open(&new_store(), 1);
    blocks
        .commit(Change { add: vec![added(1, &[1, 2]), added(2, &[2, 3]), added(3, &[3])], ..Change::default() })
        .unwrap();
    let merged = Change { add: vec![added(4, &[1, 2, 3])], remove: vec![block(1), block(2)], checkpoint: None };
    blocks.commit(merged).unwrap();
    let list = blocks.snapshot();
    assert!(!list.is_shared(TENANT, &trace(1)) && !list.is_shared(TENANT, &trace(2)));
    assert!(list.is_shared(TENANT, &trace(3)), "it is in blocks 3 and 4");
}

#[test]
fn what_is_shared_survives_a_restart_in_the_catalog() {
    let (store, catalog) = (new_store(), Arc::default());
    let blocks = open_with(&store, 1, &catalog).unwrap();
    blocks.commit(Change { add: vec![added(1, &[1, 2]), added(2, &[2, 3])], ..Change::default() }).unwrap();
    let again = open_with(&store, 1, &catalog).unwrap().snapshot();
    assert!(again.is_shared(TENANT, &trace(2)) && !again.is_shared(TENANT, &trace(1)));
    // Without it, and without a filter, any trace may be.
    let without = open(&store, 1).snapshot();
    assert!(without.is_shared(TENANT, &trace(1)));
    // What is gone is forgotten.
    blocks.commit(remove(&[1])).unwrap();
    blocks.sweep(now(), Sweep::Alone).unwrap();
    assert_eq!(catalog.shared_ids(block(1)).unwrap(), None);
    assert!(catalog.shared_ids(block(2)).unwrap().is_some());
}

#[test]
fn the_only_block_shares_nothing() {
    let store = new_store();
    open(&store, 1).commit(add(&[1])).unwrap();
    let list = open(&store, 1).snapshot();
    assert!(!list.is_shared(TENANT, &trace(1)));
}

proptest! {
    /// Whatever is committed by whom: a trace that is in two blocks is told to be shared.
    #[test]
    fn no_shared_trace_is_missed(
        steps in prop::collection::vec((0..2_usize, 0..3_u8, prop::collection::vec(0..30_u128, 0..6)), 1..30),
    ) {
        let store = new_store();
        let catalogs: [Arc<MemoryCatalog>; 2] = Default::default();
        let mut writers: Vec<Blocks> =
            (0..2).map(|by| open_with(&store, by as u8, &catalogs[by]).unwrap()).collect();
        let mut traces: Vec<Vec<u128>> = Vec::new();
        for (by, kind, made_of) in steps {
            let number = traces.len() as u128;
            match kind {
                0 => writers[by] = open_with(&store, by as u8, &catalogs[by]).unwrap(),
                1 => {
                    writers[by].refresh().unwrap();
                    let Some(gone) = listed(&writers[by]).first().copied() else { continue };
                    // The traces of the block that goes are in the new one.
                    let was = (0..number).find(|number| block(*number) == gone).unwrap();
                    let merged = [made_of, traces[was as usize].clone()].concat();
                    let change = Change { add: vec![added(number, &merged)], remove: vec![gone], checkpoint: None };
                    writers[by].commit(change).unwrap();
                    store.overwrite(&summary(number).filter_path(), added(number, &merged).filter.encode());
                    traces.push(merged);
                }
                _ => {
                    let change = Change { add: vec![added(number, &made_of)], ..Change::default() };
                    writers[by].commit(change).unwrap();
                    store.overwrite(&summary(number).filter_path(), added(number, &made_of).filter.encode());
                    traces.push(made_of);
                }
            }
            writers[by].snapshot().blocks().for_each(|entry| _ = writers[by].filter(entry).unwrap());
            for blocks in &writers {
                let list = blocks.snapshot();
                for id in 0..30 {
                    let has = |entry: &Arc<BlockEntry>| (0..).zip(&traces).any(|(number, traces)| block(number) == entry.id() && traces.contains(&id));
                    let times = list.of(TENANT).filter(|entry| has(entry)).count();
                    prop_assert!(times < 2 || list.is_shared(TENANT, &trace(id)), "trace {id} is in {times} blocks");
                }
            }
        }
    }
}

#[test]
fn files_of_removed_blocks_stay_for_those_who_read_them() {
    let store = new_store();
    let blocks = open(&store, 1);
    for number in [1, 2] {
        put_files(&store, number);
    }
    blocks.commit(add(&[1, 2])).unwrap();
    let query = blocks.snapshot();
    blocks.commit(remove(&[1])).unwrap();
    assert_eq!(blocks.sweep(now(), Sweep::Shared).unwrap().blocks, 0, "readers elsewhere have a minute");
    pass(&store, MINUTE);
    assert_eq!(blocks.sweep(now(), Sweep::Shared).unwrap().blocks, 0, "a query here goes on");
    assert_eq!(files(&store).len(), 4);
    drop(query);
    assert_eq!(blocks.sweep(now(), Sweep::Shared).unwrap().blocks, 1);
    assert_eq!(files(&store), [summary(2).filter_path(), summary(2).data_path()]);
    assert_eq!(blocks.sweep(now(), Sweep::Shared).unwrap(), Swept::default());
    assert_eq!(blocks.metrics.deleted.get(), 1);
}

#[test]
fn a_clock_that_was_set_back_keeps_no_files() {
    let store = new_store();
    let blocks = open(&store, 1);
    put_files(&store, 1);
    blocks.commit(add(&[1])).unwrap();
    blocks.commit(remove(&[1])).unwrap();
    assert_eq!(blocks.sweep(now() - MINUTE + 1, Sweep::Shared).unwrap().blocks, 0);
    assert_eq!(blocks.sweep(now() - MINUTE, Sweep::Shared).unwrap().blocks, 1);
}

#[test]
fn what_a_crash_left_of_a_removed_block_is_deleted_after_the_restart() {
    let store = new_store();
    let blocks = open(&store, 1);
    put_files(&store, 1);
    blocks.commit(add(&[1])).unwrap();
    blocks.commit(remove(&[1])).unwrap();
    let blocks = open(&store, 1);
    assert_eq!(blocks.sweep(now(), Sweep::Shared).unwrap().blocks, 0);
    assert_eq!(blocks.sweep(now(), Sweep::Alone).unwrap(), Swept { blocks: 1, orphans: 0, manifests: 0 });
    assert_eq!(files(&store), Vec::<String>::new());
}

#[test]
fn a_removal_that_another_writer_made_is_seen_through() {
    let store = new_store();
    let (first, second) = (open(&store, 1), open(&store, 2));
    put_files(&store, 1);
    first.commit(add(&[1])).unwrap();
    first.commit(remove(&[1])).unwrap();
    pass(&store, HOUR / 2);
    second.refresh().unwrap();
    assert_eq!(second.sweep(now(), Sweep::Shared).unwrap().blocks, 0, "it may still read what it knew until now");
    pass(&store, MINUTE);
    assert_eq!(second.sweep(now(), Sweep::Shared).unwrap().blocks, 1);
}

#[test]
fn what_cannot_be_deleted_is_tried_again() {
    let store = new_store();
    let blocks = open(&store, 1);
    put_files(&store, 1);
    blocks.commit(add(&[1])).unwrap();
    blocks.commit(remove(&[1])).unwrap();
    pass(&store, MINUTE);
    store.set_faults(|operation, path| (operation == Operation::Delete).then(|| Fault::unavailable(path)));
    assert_eq!(blocks.sweep(now(), Sweep::Shared).unwrap().blocks, 0);
    store.clear_faults();
    assert_eq!(blocks.sweep(now(), Sweep::Shared).unwrap().blocks, 1);
}

#[rstest]
#[case::young(HOUR, Sweep::Shared, 0)]
#[case::old(2 * HOUR, Sweep::Shared, 2)]
#[case::young_at_the_start(HOUR, Sweep::Alone, 0)]
#[case::old_at_the_start(2 * HOUR, Sweep::Alone, 2)]
fn files_that_nobody_committed(#[case] age_ns: u64, #[case] sweep: Sweep, #[case] deleted: u64) {
    let store = new_store();
    let blocks = open(&store, 1);
    for number in [1, 2] {
        put_files(&store, number);
    }
    store.overwrite("blocks/single-tenant/notes.txt", "not ours");
    blocks.commit(add(&[1])).unwrap();
    pass(&store, age_ns);
    assert_eq!(blocks.sweep(now(), sweep).unwrap().orphans, deleted);
    assert_eq!(files(&store).len() as u64, 5 - deleted);
    store.get(&summary(1).data_path()).unwrap();
}

#[test]
fn the_store_is_searched_once_an_hour() {
    let store = new_store();
    let blocks = open(&store, 1);
    blocks.sweep(now(), Sweep::Shared).unwrap();
    put_files(&store, 1);
    pass(&store, 3 * HOUR);
    // It is older than two hours only for the search that comes after an hour has passed.
    assert_eq!(blocks.sweep(START + HOUR / 2, Sweep::Shared).unwrap().orphans, 0);
    assert_eq!(blocks.sweep(now(), Sweep::Shared).unwrap().orphans, 2);
}

#[test]
fn what_another_writer_committed_meanwhile_is_no_orphan() {
    let store = new_store();
    let (first, second) = (open(&store, 1), open(&store, 2));
    put_files(&store, 1);
    first.commit(add(&[1])).unwrap();
    pass(&store, 3 * HOUR);
    assert_eq!(second.sweep(now(), Sweep::Shared).unwrap().orphans, 0);
    assert_eq!(files(&store).len(), 2);
}

#[test]
fn filters_are_loaded_once() {
    let store = new_store();
    open(&store, 1).commit(add(&[1])).unwrap();
    store.overwrite(&summary(1).filter_path(), added(1, &[1]).filter.encode());
    let blocks = open(&store, 1);
    let list = blocks.snapshot();
    let entry = list.blocks().next().unwrap();
    assert!(entry.may_contain(&trace(2)), "as long as nothing is known");
    blocks.warm(&go_on());
    store.delete(&summary(1).filter_path()).unwrap();
    assert!(blocks.filter(entry).unwrap().contains(&trace(1)));
    assert!(!entry.may_contain(&trace(2)));
}

/// Commits three blocks with files, and loses the manifests from a version on.
fn manifests_lost(store: &MemoryStore, catalog: &Arc<MemoryCatalog>, from: u64) {
    let blocks = open_with(store, 1, catalog).unwrap();
    for number in [1, 2, 3] {
        put_files(store, number);
        blocks.commit(add(&[number])).unwrap();
    }
    (from..=4).for_each(|version| store.delete(&Manifest::path(version)).unwrap());
    pass(store, 24 * HOUR);
}

#[test]
fn a_list_that_is_older_than_it_was_deletes_nothing() {
    let (store, catalog) = (new_store(), Arc::default());
    manifests_lost(&store, &catalog, 3);
    for version in [2, 3, 4, 5, 6] {
        // Not even when others have committed so much meanwhile that the number is higher than it was.
        let blocks = open_with(&store, 1, &catalog).unwrap();
        assert_eq!((blocks.snapshot().version(), blocks.metrics.went_back.get()), (version, 1));
        assert_eq!(blocks.sweep(now(), Sweep::Alone).unwrap(), Swept::default());
        assert_eq!(files(&store).len(), 6);
        let mut change = add(&[100]);
        change.add[0].summary.id = BlockId::new(now(), u128::from(version));
        blocks.commit(change).unwrap();
    }
    // Without the catalog nothing can tell.
    assert_eq!(open(&store, 1).sweep(now(), Sweep::Alone).unwrap().orphans, 4);
}

#[test]
fn removed_blocks_go_though_manifests_are_lost() {
    let (store, catalog) = (new_store(), Arc::default());
    manifests_lost(&store, &catalog, 3);
    let blocks = open_with(&store, 1, &catalog).unwrap();
    blocks.commit(remove(&[1])).unwrap();
    pass(&store, MINUTE);
    assert_eq!(blocks.sweep(now(), Sweep::Shared).unwrap(), Swept { blocks: 1, ..Swept::default() });
}

#[test]
fn another_store_has_a_list_of_its_own() {
    let (store, catalog) = (new_store(), Arc::default());
    manifests_lost(&store, &catalog, 5);
    let blocks = open_with(&store, 1, &catalog).unwrap();
    assert_eq!((blocks.snapshot().version(), blocks.metrics.went_back.get()), (4, 0));
}
