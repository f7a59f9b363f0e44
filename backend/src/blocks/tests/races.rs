//! Several writers on one store, and faults between them and the store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::thread;

use proptest::prelude::*;

use super::super::manifest::Snapshot;
use super::*;
use crate::store::Store;
use crate::store::memory::{Fault, Operation};

const WRITERS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Adds a block.
    Cut,
    /// Puts a new block in the place of two that the writer knows.
    Compact(usize, usize),
    /// Removes a block that the writer knows.
    Expire(usize),
    Refresh,
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Trouble {
    None,
    Refused,
    AnswerLost,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Cut),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Step::Compact(a, b)),
        1 => any::<usize>().prop_map(Step::Expire),
        1 => Just(Step::Refresh),
        1 => Just(Step::Restart),
    ]
}

fn any_trouble() -> impl Strategy<Value = Trouble> {
    prop_oneof![6 => Just(Trouble::None), 1 => Just(Trouble::Refused), 2 => Just(Trouble::AnswerLost)]
}

/// All that the manifests say, read one by one, and what they say together.
struct History {
    added: Vec<BlockId>,
    removed: Vec<BlockId>,
    blocks: BTreeSet<BlockId>,
    checkpoints: BTreeMap<WriterId, u64>,
}

fn history(store: &MemoryStore) -> History {
    let mut history =
        History { added: Vec::new(), removed: Vec::new(), blocks: BTreeSet::new(), checkpoints: BTreeMap::new() };
    for (object, version) in store.list("manifest/").unwrap().iter().zip(1..) {
        let manifest = Manifest::decode(&store.get(&object.path).unwrap()).unwrap();
        assert_eq!((object.path.clone(), manifest.version), (Manifest::path(version), version));
        for removed in manifest.remove {
            assert!(history.blocks.remove(&removed), "{removed} was removed and was not there");
            history.removed.push(removed);
        }
        for added in manifest.add {
            assert!(history.blocks.insert(added.id), "{} was added and was there", added.id);
            history.added.push(added.id);
        }
        if let Some(checkpoint) = manifest.checkpoint {
            let known = history.checkpoints.entry(manifest.writer).or_default();
            assert!(checkpoint > *known, "a checkpoint went back, or was committed twice");
            *known = checkpoint;
        }
        if let Some(Snapshot { blocks, checkpoints, .. }) = manifest.snapshot {
            assert_eq!(blocks.iter().map(|summary| summary.id).collect::<BTreeSet<_>>(), history.blocks);
            assert_eq!(checkpoints, history.checkpoints);
        }
    }
    history
}

/// What a writer wanted, and whether it was told that it is done; `None` if it was told that this is not known.
struct Wish {
    added: BlockId,
    checkpoint: u64,
    by: WriterId,
    done: Option<bool>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn what_was_committed_counts_once_and_what_was_not_never(
        steps in prop::collection::vec((0..WRITERS, any_step()), 1..120),
        troubles in prop::collection::vec(any_trouble(), 0..60),
    ) {
        let store = new_store();
        let mut writers: Vec<Blocks> = (0..WRITERS).map(|number| open(&store, number as u8)).collect();
        let troubles = Mutex::new(troubles.into_iter());
        store.set_faults(move |operation, path| {
            if !path.starts_with("manifest/") || operation == Operation::List {
                return None;
            }
            match troubles.lock().unwrap().next()? {
                Trouble::None => None,
                Trouble::Refused => Some(Fault::unavailable(path)),
                Trouble::AnswerLost => Some(Fault::AnswerLost),
            }
        });
        let mut wishes: Vec<Wish> = Vec::new();
        for (number, (by, step)) in (1..).zip(steps) {
            let known = listed(&writers[by]);
            let pick = |choice: usize| known.get(choice % known.len().max(1)).copied();
            let remove = match step {
                Step::Cut => vec![],
                Step::Compact(a, b) => pick(a).into_iter().chain(pick(b)).collect::<BTreeSet<_>>().into_iter().collect(),
                Step::Expire(a) => pick(a).into_iter().collect(),
                Step::Refresh => {
                    _ = writers[by].refresh();
                    continue;
                }
                Step::Restart => {
                    if let Ok(opened) = open_with(&store, by as u8, &Arc::default()) {
                        writers[by] = opened;
                    }
                    continue;
                }
            };
            let expire = matches!(step, Step::Expire(_));
            let change = Change {
                add: if expire { vec![] } else { vec![added(number, &[])] },
                remove,
                checkpoint: Some(number as u64),
            };
            let done = match writers[by].commit(change) {
                Ok(()) => Some(true),
                Err(error) if error.nothing_done() => Some(false),
                Err(BlocksError::Unsure { .. }) => None,
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            };
            if done == Some(true) {
                let list = listed(&writers[by]);
                prop_assert!(expire || list.contains(&block(number)), "what was committed is there at once");
            }
            wishes.push(Wish { added: block(number), checkpoint: number as u64, by: writer(by as u8), done });
        }
        store.clear_faults();
        let history = history(&store);
        for Wish { added, checkpoint, by, done } in wishes {
            let times = history.added.iter().filter(|block| **block == added).count();
            match done {
                Some(true) => prop_assert!(history.checkpoints[&by] >= checkpoint),
                Some(false) => prop_assert_eq!(times, 0),
                None => prop_assert!(times <= 1),
            }
        }
        let distinct: BTreeSet<_> = history.removed.iter().collect();
        prop_assert_eq!(distinct.len(), history.removed.len(), "nothing is removed twice");
        let expected: Vec<BlockId> = history.blocks.into_iter().collect();
        writers.push(open(&store, 9));
        for blocks in &writers {
            blocks.refresh().unwrap();
            prop_assert_eq!(&listed(blocks), &expected);
        }
        for (number, blocks) in writers.iter().enumerate().take(WRITERS) {
            let known = history.checkpoints.get(&writer(number as u8)).copied().unwrap_or_default();
            prop_assert_eq!(blocks.checkpoint(), known);
        }
    }
}

#[test]
fn writers_at_the_same_time_lose_nothing() {
    let store = new_store();
    let writers: Vec<_> = (0..4_u8)
        .map(|by| {
            let store = store.clone();
            thread::spawn(move || {
                let blocks = open(&store, by);
                for number in 0..50 {
                    blocks.commit(add(&[u128::from(by) * 1_000 + number])).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
    assert_eq!(history(&store).blocks.len(), 200);
    assert_eq!(open(&store, 9).snapshot().len(), 200);
}

#[test]
fn one_of_two_that_merge_the_same_blocks_wins() {
    let store = new_store();
    let (first, second) = (open(&store, 1), open(&store, 2));
    first.commit(add(&[1, 2])).unwrap();
    second.refresh().unwrap();
    first.commit(Change { remove: vec![block(1), block(2)], ..add(&[3]) }).unwrap();
    let error = second.commit(Change { remove: vec![block(2)], ..add(&[4]) }).unwrap_err();
    assert!(matches!(error, BlocksError::Conflict { block: gone } if gone == block(2)), "{error}");
    assert_eq!(listed(&second), ids(&[3]), "it knows better now");
    assert_eq!(second.metrics.conflicts.get(), 1);
}
