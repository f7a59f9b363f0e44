//! Blocks that are damaged, stores that fail, and others that commit meanwhile: nothing is lost, and what can go on does.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::store::StoreError;
use crate::store::memory::Operation;

#[rstest]
#[case::damaged(Some(b"not a block".as_slice()))]
#[case::missing(None)]
fn a_block_that_cannot_be_read_is_left_out_and_stays(#[case] content: Option<&'static [u8]>) {
    let store = MemoryStore::new();
    let (blocks, [_, broken, _]) = three(&store);
    match content {
        Some(content) => store.overwrite(&broken.data_path(), content),
        None => store.delete(&broken.data_path()).unwrap(),
    }
    let mut compactor = compactor();
    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::SetAside(vec![broken.id]));
    assert!(matches!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Compacted(_)));
    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Idle);
    let list = blocks.snapshot();
    assert_eq!(list.len(), 2);
    assert!(list.blocks().any(|entry| entry.id() == broken.id));
    assert_eq!(compactor.metrics().errors.get(), 1);
}

#[test]
fn a_changed_byte_is_not_merged_into_a_block_with_a_right_checksum() {
    let store = MemoryStore::new();
    let (blocks, [_, broken, _]) = three(&store);
    let mut bytes = store.get(&broken.data_path()).unwrap().to_vec();
    // The id of its span, which nothing else depends upon.
    let span_id = [0, 0, 0, 0, 0, 0, 0, 1];
    let at = bytes.windows(8).position(|window| window == span_id).unwrap();
    bytes[at] = 9;
    store.overwrite(&broken.data_path(), bytes);
    let block = Block::open(Arc::clone(blocks.store()), &broken).unwrap();
    assert!(block.traces().all(|trace| trace.is_ok()), "decoding sees nothing");
    let mut compactor = compactor();
    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::SetAside(vec![broken.id]));
    assert!(blocks.snapshot().blocks().any(|entry| entry.id() == broken.id));
}

#[test]
fn a_block_with_fewer_spans_than_its_summary_says_is_not_thrown_away() {
    let store = MemoryStore::new();
    let (blocks, [first, second, _]) = three(&store);
    let short = BlockSummary { spans: first.spans + 1, ..first.clone() };
    let job = Job { tenant: &first.tenant, level: 1, inputs: vec![&short, &second] };
    let error = merge(blocks.store(), &job, BlockId::random(NOW), &GO_ON).unwrap_err();
    let text = crate::telemetry::chain(&error);
    assert!(text.ends_with(&format!("{}.parquet is damaged: 4 spans of 5", first.id)), "{text}");
}

#[test]
fn blocks_that_cannot_be_merged_hold_up_no_others() {
    let store = MemoryStore::new();
    let (blocks, inputs) = three(&store);
    let later = [5, 6].map(|minute| add(&blocks, EPOCH + minute * MINUTE, &[trace_of(minute as u8, &[1])]));
    // An error that no second try helps against.
    store.set_faults(|operation, path| match operation {
        Operation::Create if path.ends_with(".filter") => {
            Some(Fault::Refused(StoreError::AlreadyExists { path: path.to_owned() }))
        }
        _ => None,
    });
    let mut compactor = compactor();
    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::SetAside(inputs.map(|input| input.id).into()));
    store.clear_faults();
    assert!(matches!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Compacted(_)));
    assert!(later.iter().all(|input| blocks.snapshot().blocks().all(|entry| entry.id() != input.id)));
    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Idle);
    assert_eq!(blocks.snapshot().len(), 4);
}

#[test]
fn a_store_that_fails_is_tried_again() {
    let store = MemoryStore::new();
    let (blocks, _) = three(&store);
    let mut compactor = compactor();
    store.set_faults(|operation, path| (operation == Operation::GetRanges).then(|| Fault::unavailable(path)));
    assert!(matches!(run_once(&mut compactor, &blocks), Err(CompactError::Input { .. })));
    store.set_faults(|operation, path| (operation == Operation::Finish).then(|| Fault::full(path)));
    assert!(matches!(run_once(&mut compactor, &blocks), Err(CompactError::Output { .. })));
    assert_eq!(files(&store), 6);
    store.clear_faults();
    assert!(matches!(run_once(&mut compactor, &blocks), Ok(Outcome::Compacted(_))));
    assert_eq!(compactor.metrics().errors.get(), 2);
}

#[test]
fn a_block_that_another_took_away_meanwhile_does_not_come_back() {
    let store = MemoryStore::new();
    let (blocks, [first, ..]) = three(&store);
    let other = registry(&store);
    let is_done = AtomicBool::new(false);
    store.set_faults(move |operation, path| {
        if operation == Operation::Finish && path.ends_with(".parquet") && !is_done.swap(true, Ordering::Relaxed) {
            other.commit(Change { remove: vec![first.id], ..Change::default() }).unwrap();
        }
        None
    });
    let mut compactor = compactor();
    assert_eq!(run_once(&mut compactor, &blocks).unwrap(), Outcome::Conflict);
    assert_eq!(files(&store), 6);
    assert!(matches!(run_once(&mut compactor, &blocks), Ok(Outcome::Compacted(_))));
    let mut expected = all_spans();
    expected.retain(|(trace, span), _| *trace != id(1) && (*trace, *span) != (id(2), 1));
    assert_eq!(spans(&blocks), expected);
}

#[test]
fn a_commit_of_which_nothing_is_known_keeps_the_files() {
    let store = MemoryStore::new();
    let (blocks, _) = three(&store);
    let before = store.list("manifest/").unwrap().len();
    store.set_faults(|operation, path| match operation {
        Operation::Create if path.starts_with("manifest/") => Some(Fault::AnswerLost),
        Operation::Get if path.starts_with("manifest/") => Some(Fault::unavailable(path)),
        _ => None,
    });
    assert!(matches!(run_once(&mut compactor(), &blocks), Err(CompactError::Commit(_))));
    store.clear_faults();
    assert_eq!(store.list("manifest/").unwrap().len(), before + 1);
    assert_eq!(spans(&registry(&store)), all_spans());
}

#[test]
fn told_to_stop_it_leaves_nothing_behind() {
    let store = MemoryStore::new();
    let (blocks, _) = three(&store);
    let outcome = compactor().run_once(&blocks, u64::MAX, &AtomicBool::new(true)).unwrap();
    assert_eq!((outcome, files(&store)), (Outcome::Stopped, 6));
}

/// Every call of the store, in turn, is the last: it is done or not, and no other is done after it.
#[test]
fn a_store_that_goes_away_at_any_call_leaves_the_old_or_the_new_state() {
    let (mut old, mut new) = (0, 0);
    for last in 0.. {
        let mut is_over = true;
        for is_done in [false, true] {
            let store = MemoryStore::new();
            let (blocks, _) = three(&store);
            let calls = Arc::new(AtomicUsize::new(0));
            store.set_faults({
                let calls = Arc::clone(&calls);
                move |_, path| match calls.fetch_add(1, Ordering::Relaxed) {
                    call if call < last => None,
                    call if call == last && is_done => Some(Fault::AnswerLost),
                    _ => Some(Fault::unavailable(path)),
                }
            });
            let outcome = run_once(&mut compactor(), &blocks);
            is_over &= calls.load(Ordering::Relaxed) <= last;
            drop(blocks);
            store.clear_faults();

            let blocks = registry(&store);
            let found = spans(&blocks);
            assert!(found.keys().eq(all_spans().keys()), "call {last}: {outcome:?}");
            match blocks.snapshot().len() {
                3 => old += 1,
                1 => new += 1,
                other => panic!("call {last}: {other} blocks"),
            }
            if outcome.is_ok() {
                assert_eq!(found, all_spans(), "call {last}");
            }
            blocks.sweep(u64::MAX / 2, Sweep::Alone).unwrap();
            assert_eq!(files(&store), 2 * blocks.snapshot().len(), "call {last}");
        }
        if is_over {
            break;
        }
    }
    assert!(old > 10 && new > 1, "{old} times the old state, {new} times the new one");
}

#[test]
fn after_errors_it_waits_longer_each_time() {
    let store = MemoryStore::new();
    let (blocks, _) = three(&store);
    store.set_faults(|_, path| Some(Fault::unavailable(path)));
    let stop = AtomicBool::new(false);
    let mut waits = Vec::new();
    compactor().run(
        &blocks,
        || u64::MAX,
        &stop,
        |time| {
            waits.push(time.as_secs());
            match waits.len() {
                8 => store.clear_faults(),
                9 => stop.store(true, Ordering::Relaxed),
                _ => {}
            }
        },
    );
    assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300, 1]);
    assert_eq!(blocks.snapshot().len(), 1);
}
