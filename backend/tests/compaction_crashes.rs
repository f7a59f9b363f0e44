//! The program dies in the middle of a compaction, at each of its steps: what is found afterwards is the old state or the
//! new one, with every span once, and no file of the other.
//!
//! The dying is done by a second process, this test program itself, so that nothing is tidied up on the way.
#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use coati_backend::block::{Block, BlockId, NewBlock, write_block};
use coati_backend::blocks::{Added, Blocks, BlocksConfig, Change, Sweep, WriterId};
use coati_backend::catalog::MemoryCatalog;
use coati_backend::compact::{Compactor, Outcome};
use coati_backend::config::{CompactionConfig, RetentionConfig};
use coati_backend::live::{Batch, Trace, TraceId, TraceSpan};
use coati_backend::store::{LocalStore, Store};
use coati_backend::telemetry::{BlocksMetrics, CompactionMetrics};
use fail::FailScenario;
use opentelemetry_proto::tonic::trace::v1::Span;
use rstest::rstest;

const EPOCH: u64 = 1_767_225_600_000_000_000;
const NOW: u64 = EPOCH + 900_000_000_000;

/// Traces of each of the four blocks: some in one, some in two, and their spans too.
const BLOCKS: [std::ops::Range<u16>; 4] = [0..400, 300..700, 600..1_000, 950..1_300];

fn open(dir: &Path) -> Blocks {
    let config = BlocksConfig { clock: || NOW, grace: Duration::ZERO, ..BlocksConfig::default() };
    let store: Arc<dyn Store> = Arc::new(LocalStore::open(dir).unwrap());
    let catalog = Arc::new(MemoryCatalog::default());
    Blocks::open(store, WriterId::random(), catalog, config, BlocksMetrics::default()).unwrap()
}

fn trace(number: u16) -> Trace {
    let [high, low] = number.to_be_bytes();
    let mut id = [0; 16];
    (id[0], id[1]) = (high, low);
    let span = |number: u8| Span {
        trace_id: id.to_vec(),
        span_id: [number; 8].to_vec(),
        name: format!("work {number}"),
        start_time_unix_nano: EPOCH,
        end_time_unix_nano: EPOCH + 1_000,
        ..Span::default()
    };
    let batch = Batch {
        resource: Arc::default(),
        resource_schema_url: "".into(),
        scope: Arc::default(),
        scope_schema_url: "".into(),
    };
    let (mut trace, batch) = (Trace::empty(TraceId(id)), Arc::new(batch));
    for number in [1, 2] {
        trace.add(&batch, &span(number));
    }
    trace
}

fn fill(dir: &Path) {
    let blocks = open(dir);
    for (numbers, received_ns) in BLOCKS.into_iter().zip(EPOCH..) {
        let traces: Vec<_> = numbers.map(|number| Arc::new(trace(number))).collect();
        let new = NewBlock {
            id: BlockId::random(NOW),
            tenant: "a".into(),
            level: 0,
            received_first_ns: received_ns,
            received_last_ns: received_ns,
        };
        let (summary, filter) = write_block(blocks.store().as_ref(), new, &traces).unwrap();
        let ids = traces.iter().map(|trace| trace.id).collect();
        blocks.commit(Change { add: vec![Added { summary, filter, ids }], ..Change::default() }).unwrap();
    }
}

fn compact(blocks: &Blocks) -> Outcome {
    let (compaction, retention) = (CompactionConfig::default(), RetentionConfig::default());
    let mut compactor = Compactor::new(&compaction, &retention, CompactionMetrics::default(), || NOW);
    compactor.run_once(blocks, u64::MAX, &AtomicBool::new(false)).unwrap()
}

/// What happens to the program at a failpoint: an end without any tidying.
#[test]
#[ignore = "not a test: the second process of the others"]
fn dies() {
    let Some(dir) = std::env::var_os("COMPACTION_CRASHES_DIR") else { return };
    std::panic::set_hook(Box::new(|_| std::process::abort()));
    let scenario = FailScenario::setup();
    let blocks = open(Path::new(&dir));
    assert!(matches!(compact(&blocks), Outcome::Compacted(_)));
    blocks.sweep(NOW, Sweep::Shared).unwrap();
    scenario.teardown();
    println!("the end");
}

/// How often each span is in the blocks of the list; all of them are there.
fn spans(blocks: &Blocks) -> BTreeMap<(TraceId, Vec<u8>), u32> {
    let mut spans: BTreeMap<(TraceId, Vec<u8>), u32> = BTreeMap::new();
    for entry in blocks.snapshot().blocks() {
        for trace in Block::open(Arc::clone(blocks.store()), &entry.summary).unwrap().traces() {
            let trace = trace.unwrap();
            for span in trace.spans.iter().map(TraceSpan::decode) {
                *spans.entry((trace.id, span.span_id.clone())).or_default() += 1;
            }
        }
    }
    assert_eq!(spans.len(), 2 * 1_300);
    spans
}

/// All files below a directory but directories.
fn files(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path.display().to_string());
        }
    }
    files
}

#[rstest]
#[case::before_the_first_trace("compact::merging=panic", false)]
#[case::in_the_middle_of_the_data("compact::merging=700*off->panic", false)]
#[case::between_filter_and_data("block::filter_written=panic", false)]
#[case::before_the_commit("compact::before_commit=panic", false)]
#[case::after_the_commit("compact::after_commit=panic", true)]
#[case::before_the_first_deletion("blocks::deleting=panic", true)]
#[case::between_the_files_of_a_block("blocks::deleting=1*off->panic", true)]
#[case::between_blocks("blocks::deleting=4*off->panic", true)]
#[case::never("", true)]
fn the_old_state_or_the_new_one(#[case] failpoints: &str, #[case] is_new: bool) {
    let dir = tempfile::tempdir().unwrap();
    fill(dir.path());
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "dies", "--ignored", "--nocapture"])
        .env("COMPACTION_CRASHES_DIR", dir.path())
        .env("FAILPOINTS", failpoints)
        .output()
        .unwrap();
    let finished = String::from_utf8_lossy(&child.stdout).contains("the end");
    assert_eq!(finished, failpoints.is_empty(), "{}", String::from_utf8_lossy(&child.stderr));

    let blocks = open(dir.path());
    assert_eq!(blocks.snapshot().len(), if is_new { 1 } else { 4 });
    let found = spans(&blocks);
    assert!(!is_new || found.values().all(|count| *count == 1));
    // What was begun is begun again.
    if !is_new {
        assert!(matches!(compact(&blocks), Outcome::Compacted(_)));
    }
    assert!(spans(&blocks).values().all(|count| *count == 1));
    // Some hours later.
    blocks.sweep(u64::MAX / 2, Sweep::Alone).unwrap();
    let mut left = files(dir.path());
    left.retain(|file| !file.contains("/manifest/"));
    assert_eq!(left.len(), 2, "one block is left: {left:#?}");
}
