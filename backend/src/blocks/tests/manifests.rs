//! One writer, and a store on which not all goes well.

use rstest::rstest;

use super::super::log::LOOK_NS;
use super::*;
use crate::store::Store;
use crate::store::memory::{Fault, Operation};

/// Paths of all objects.
fn objects(store: &MemoryStore, prefix: &str) -> Vec<String> {
    store.list(prefix).unwrap().into_iter().map(|object| object.path).collect()
}

#[test]
fn an_empty_store_gets_an_empty_list() {
    let store = new_store();
    let blocks = open(&store, 1);
    assert_eq!((blocks.snapshot().version(), blocks.snapshot().len(), blocks.checkpoint()), (1, 0, 0));
    assert_eq!(objects(&store, "manifest/"), [Manifest::path(1)]);
    // Whoever comes next finds it.
    assert_eq!(open(&store, 2).snapshot().version(), 1);
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let store = new_store();
    let blocks = open(&store, 1);
    blocks.commit(Change { checkpoint: Some(40), ..add(&[1, 2]) }).unwrap();
    blocks.commit(Change { remove: vec![block(1), block(2)], ..add(&[3]) }).unwrap();
    for (blocks, checkpoint) in [(&blocks, 40), (&open(&store, 1), 40), (&open(&store, 2), 0)] {
        assert_eq!((listed(blocks), blocks.snapshot().version()), (ids(&[3]), 3));
        assert_eq!(blocks.checkpoint(), checkpoint);
        let list = blocks.snapshot();
        let entry = list.blocks().next().unwrap();
        assert_eq!(*entry.summary, summary(3));
    }
}

#[test]
fn checkpoints_never_go_back() {
    let store = new_store();
    let blocks = open(&store, 1);
    for (checkpoint, known) in [(Some(5), 5), (None, 5), (Some(3), 5), (Some(6), 6)] {
        blocks.commit(Change { checkpoint, ..Change::default() }).unwrap();
        assert_eq!(blocks.checkpoint(), known);
    }
}

#[test]
fn reading_begins_at_the_newest_snapshot() {
    let store = new_store();
    let blocks = open(&store, 1);
    for number in 0..200 {
        blocks.commit(add(&[number])).unwrap();
        if number % 3 == 0 {
            blocks.commit(remove(&[number])).unwrap();
        }
    }
    let newest = blocks.snapshot().version();
    let with_snapshot =
        |version: &u64| store.get(&Manifest::path(*version)).unwrap().windows(10).any(|text| text == b"\"snapshot\"");
    let snapshots: Vec<u64> = (1..=newest).filter(with_snapshot).collect();
    assert_eq!(snapshots, [1, 65, 129, 193, 257]);
    assert_eq!(listed(&open(&store, 1)), listed(&blocks));
    // Nobody needs what is before.
    (1..257).for_each(|version| store.delete(&Manifest::path(version)).unwrap());
    assert_eq!(listed(&open(&store, 1)), listed(&blocks));
    assert_eq!(load(&store).unwrap().unwrap().version(), newest);
}

#[test]
fn the_first_commit_after_a_start_spares_the_next_start_the_reading() {
    let store = new_store();
    let blocks = open(&store, 1);
    (0..20).for_each(|number| blocks.commit(add(&[number])).unwrap());
    let blocks = open(&store, 1);
    blocks.commit(add(&[20])).unwrap();
    (1..22).for_each(|version| store.delete(&Manifest::path(version)).unwrap());
    assert_eq!(listed(&open(&store, 1)), ids(&(0..21).collect::<Vec<_>>()));
}

#[test]
fn blocks_without_a_manifest_are_no_empty_list() {
    let store = new_store();
    assert!(load(&store).unwrap().is_none());
    store.overwrite(&summary(1).data_path(), "block");
    let error = open_with(&store, 1, &Arc::default()).unwrap_err();
    insta::assert_snapshot!(error, @"the store has 1 files of blocks but no manifest: docs/format/manifest.md says what can be done");
    assert_eq!(objects(&store, "manifest/"), Vec::<String>::new());
}

#[rstest]
#[case::missing(|store: &MemoryStore| store.delete(&Manifest::path(3)).unwrap(), "manifest/00000000000000000003.json is missing: docs/format/manifest.md says what can be done")]
#[case::all_but_the_newest_missing(|store: &MemoryStore| (1..4).for_each(|version| store.delete(&Manifest::path(version)).unwrap()), "manifest/00000000000000000003.json is missing: docs/format/manifest.md says what can be done")]
#[case::damaged(|store: &MemoryStore| store.overwrite(&Manifest::path(2), "{}"), "manifest/00000000000000000002.json cannot be read: docs/format/manifest.md says what can be done: its checksum is wrong or missing")]
#[case::another_in_its_place(|store: &MemoryStore| store.overwrite(&Manifest::path(3), store.get(&Manifest::path(2)).unwrap()), "manifest/00000000000000000003.json cannot be read: docs/format/manifest.md says what can be done: it says that it is version 2")]
fn no_block_is_ever_dropped_in_silence(#[case] damage: fn(&MemoryStore), #[case] expected: &str) {
    let store = new_store();
    let blocks = open(&store, 1);
    (0..3).for_each(|number| blocks.commit(add(&[number])).unwrap());
    damage(&store);
    let error = open_with(&store, 1, &Arc::default()).unwrap_err();
    assert_eq!(crate::telemetry::chain(&error), expected);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let store = new_store();
    let blocks = open(&store, 1);
    blocks.commit(add(&[1])).unwrap();
    blocks.commit(add(&[2])).unwrap();
    let again = Manifest { version: 3, ..Manifest::decode(&store.get(&Manifest::path(2)).unwrap()).unwrap() };
    store.overwrite(&Manifest::path(3), again.encode().unwrap());
    let error = open_with(&store, 1, &Arc::default()).unwrap_err();
    assert!(matches!(error, BlocksError::Manifest { source: ManifestError::Added { .. }, .. }), "{error}");
    let first = Manifest { version: 1, ..again };
    store.overwrite(&Manifest::path(1), first.encode().unwrap());
    for version in [2, 3] {
        store.delete(&Manifest::path(version)).unwrap();
    }
    let error = open_with(&store, 1, &Arc::default()).unwrap_err();
    assert!(matches!(error, BlocksError::Manifest { source: ManifestError::NoSnapshot, .. }), "{error}");
}

#[rstest]
#[case::not_there(remove(&[9]), 9)]
#[case::there_already(add(&[1]), 1)]
#[case::twice_removed(remove(&[1, 1]), 1)]
#[case::twice_added(add(&[5, 5]), 5)]
fn a_change_that_makes_no_sense_is_a_conflict(#[case] change: Change, #[case] expected: u128) {
    let store = new_store();
    let blocks = open(&store, 1);
    blocks.commit(add(&[1])).unwrap();
    let error = blocks.commit(change).unwrap_err();
    assert!(matches!(error, BlocksError::Conflict { block: found } if found == block(expected)), "{error}");
    assert!(error.nothing_done());
    assert_eq!((listed(&blocks), blocks.snapshot().version()), (ids(&[1]), 2));
}

/// Lets the first `times` calls that create a manifest end with a fault.
fn create_fails(store: &MemoryStore, times: usize, fault: fn(&str) -> Fault) {
    let left = std::sync::atomic::AtomicUsize::new(times);
    store.set_faults(move |operation, path| {
        let is_commit = operation == Operation::Create && path.starts_with("manifest/");
        let less = |left: usize| left.checked_sub(1);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        (is_commit && left.fetch_update(relaxed, relaxed, less).is_ok()).then(|| fault(path))
    });
}

fn full(path: &str) -> StoreError {
    StoreError::Full { path: path.to_owned(), source: "a test".into() }
}

#[rstest]
#[case::lost_answer(1, |_: &str| Fault::AnswerLost)]
#[case::refused_but_done(1, |path: &str| Fault::DoneBut(full(path)))]
#[case::denied_but_done(1, |path: &str| Fault::DoneBut(StoreError::Denied { path: path.to_owned(), source: "a test".into() }))]
#[case::not_reached(1, Fault::unavailable)]
#[case::not_reached_for_a_while(5, Fault::unavailable)]
fn a_commit_survives_trouble(#[case] times: usize, #[case] fault: fn(&str) -> Fault) {
    let store = new_store();
    let blocks = open(&store, 1);
    create_fails(&store, times, fault);
    blocks.commit(add(&[1])).unwrap();
    store.clear_faults();
    for blocks in [&blocks, &open(&store, 1)] {
        assert_eq!((listed(blocks), blocks.snapshot().version()), (ids(&[1]), 2));
    }
}

#[test]
fn a_store_that_stays_away_leaves_it_open() {
    let store = new_store();
    let blocks = open(&store, 1);
    create_fails(&store, usize::MAX, Fault::unavailable);
    let error = blocks.commit(add(&[1])).unwrap_err();
    assert!(matches!(error, BlocksError::Unsure { version: 2, .. }), "{error}");
    assert!(!error.nothing_done());
    assert_eq!(SLEPT.get(), Duration::from_millis(100 + 200 + 400 + 800 + 1_600));
    assert_eq!(listed(&blocks), []);
    store.clear_faults();
    blocks.commit(add(&[2])).unwrap();
    assert_eq!(listed(&blocks), ids(&[2]));
}

#[test]
fn a_commit_whose_answer_never_came_is_found_later() {
    let store = new_store();
    let blocks = open(&store, 1);
    store.set_faults(|operation, path| match operation {
        Operation::Create => Some(Fault::AnswerLost),
        Operation::Get if path.starts_with("manifest/") => Some(Fault::unavailable(path)),
        _ => None,
    });
    let error = blocks.commit(Change { checkpoint: Some(7), ..add(&[1]) }).unwrap_err();
    assert!(matches!(error, BlocksError::Unsure { .. }), "{error}");
    store.clear_faults();
    assert!(blocks.refresh().unwrap());
    assert_eq!((listed(&blocks), blocks.checkpoint()), (ids(&[1]), 7));
}

#[test]
fn a_full_store_commits_nothing() {
    let store = new_store();
    let blocks = open(&store, 1);
    create_fails(&store, 1, Fault::full);
    let error = blocks.commit(add(&[1])).unwrap_err();
    assert!(matches!(error, BlocksError::Store(_)), "{error}");
    assert!(error.nothing_done());
    blocks.commit(add(&[1])).unwrap();
    assert_eq!(listed(&blocks), ids(&[1]));
}

#[test]
fn full_after_a_lost_answer_leaves_it_open() {
    let store = new_store();
    let blocks = open(&store, 1);
    let first = std::sync::atomic::AtomicBool::new(true);
    store.set_faults(move |operation, path| match operation {
        Operation::Create if first.swap(false, std::sync::atomic::Ordering::Relaxed) => Some(Fault::unavailable(path)),
        Operation::Create => Some(Fault::full(path)),
        _ => None,
    });
    let error = blocks.commit(add(&[1])).unwrap_err();
    assert!(matches!(error, BlocksError::Unsure { .. }), "{error}");
}

#[rstest]
#[case::done(|path: &str| Fault::DoneBut(full(path)), true)]
#[case::not_done(Fault::full, false)]
fn a_refusal_that_cannot_be_checked_leaves_it_open(#[case] fault: fn(&str) -> Fault, #[case] done: bool) {
    let store = new_store();
    let blocks = open(&store, 1);
    store.set_faults(move |operation, path| match operation {
        Operation::Create => Some(fault(path)),
        Operation::Get => Some(Fault::unavailable(path)),
        _ => None,
    });
    let error = blocks.commit(add(&[1])).unwrap_err();
    assert!(matches!(error, BlocksError::Unsure { .. }) && !error.nothing_done(), "{error}");
    store.clear_faults();
    assert_eq!(blocks.refresh().unwrap(), done);
}

#[test]
fn a_block_that_waited_too_long_is_not_committed() {
    let store = new_store();
    let blocks = open(&store, 1);
    pass(&store, HOUR + SECOND);
    let error = blocks.commit(add(&[1])).unwrap_err();
    assert!(matches!(error, BlocksError::Stale { .. }) && error.nothing_done(), "{error}");
}

#[test]
fn a_writer_that_slept_finds_the_newest_list() {
    let store = new_store();
    let (sleeper, busy) = (open(&store, 1), open(&store, 2));
    sleeper.commit(add(&[1_000])).unwrap();
    (0..200).for_each(|number| busy.commit(add(&[number])).unwrap());
    pass(&store, 2 * HOUR);
    // What the sleeper would ask for next is gone.
    assert_eq!(busy.sweep(now(), Sweep::Shared).unwrap().manifests, 128);
    store.get(&Manifest::path(3)).unwrap_err();
    NOW.set(START + LOOK_NS + 1);
    sleeper.commit(add(&[2_000])).unwrap();
    busy.refresh().unwrap();
    for blocks in [&sleeper, &busy, &open(&store, 3)] {
        assert_eq!(blocks.snapshot().len(), 202);
    }
}

#[test]
fn a_commit_into_the_past_does_not_count() {
    let store = new_store();
    let (sleeper, busy) = (open(&store, 1), open(&store, 2));
    (0..200).for_each(|number| busy.commit(add(&[number])).unwrap());
    let kept = store.clone();
    store.set_faults(move |operation, _| {
        if operation == Operation::Create {
            // It sleeps between looking and creating, and meanwhile the next version is swept.
            NOW.set(START + 3 * HOUR);
            (1..129).for_each(|version| kept.delete(&Manifest::path(version)).unwrap());
        }
        None
    });
    let error = sleeper.commit(add(&[1_000])).unwrap_err();
    assert!(matches!(error, BlocksError::Conflict { .. }), "{error}");
    store.clear_faults();
    assert_eq!(sleeper.snapshot().len(), 200);
    assert_eq!(open(&store, 3).snapshot().len(), 200);
}

#[test]
fn a_store_that_was_set_back_is_an_error() {
    let store = new_store();
    let blocks = open(&store, 1);
    (0..3).for_each(|number| blocks.commit(add(&[number])).unwrap());
    (2..5).for_each(|version| store.delete(&Manifest::path(version)).unwrap());
    pass(&store, LOOK_NS);
    let error = blocks.refresh().unwrap_err();
    assert!(matches!(error, BlocksError::Gap { .. }), "{error}");
    assert_eq!(listed(&blocks), ids(&[0, 1, 2]));
}
