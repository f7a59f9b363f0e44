//! Guarantees of the cutter: what was acknowledged is in memory or in a block at every moment, and after a crash the log
//! has what is in no block.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use proptest::prelude::*;

use super::*;
use crate::catalog::Watermark;
use crate::live::{Limits, LiveSet, TenantCut, Trace, TraceSpan, group_message};
use crate::telemetry::LiveMetrics;

const POLICY: CutPolicy = CutPolicy {
    idle: Duration::from_nanos(5),
    max_age: Duration::from_nanos(30),
    block_bytes: 1,
    max_wait: Duration::from_nanos(10),
    memory_bytes: usize::MAX,
};

/// Keeps what it gets in memory.
#[derive(Default)]
struct Blocks {
    /// Number of the request that brought each span, in committed blocks.
    committed: Mutex<Vec<u64>>,
    checkpoint: Mutex<u64>,
    /// How many more stores fail.
    failures: AtomicU32,
    /// Whether a failing store has committed before it fails.
    lost_answer: AtomicBool,
}

impl BlockSink for Blocks {
    fn store(&self, tenants: &[TenantCut], checkpoint: u64, abandoned: &AtomicBool) -> Result<(), CutError> {
        if abandoned.load(Ordering::Relaxed) {
            return Err(CutError::Abandoned);
        }
        let fails =
            self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !fails || self.lost_answer.load(Ordering::Relaxed) {
            let traces = tenants.iter().flat_map(|cut| &cut.traces);
            self.committed.lock().unwrap().extend(traces.flat_map(|trace| numbers(trace)));
            let mut held = self.checkpoint.lock().unwrap();
            *held = checkpoint.max(*held);
        }
        if fails { Err(CutError::Abandoned) } else { Ok(()) }
    }
}

fn numbers(trace: &Trace) -> Vec<u64> {
    trace.spans.iter().map(TraceSpan::decode).map(|span| u64::from(span.flags)).collect()
}

struct Stage {
    config: CutterConfig,
    blocks: Arc<Blocks>,
}

impl Stage {
    fn new() -> Self {
        let blocks = Arc::new(Blocks::default());
        let config = CutterConfig {
            policy: POLICY,
            live: Arc::new(LiveSet::new(Limits { total_bytes: usize::MAX, trace_bytes: usize::MAX })),
            applied: Arc::new(Watermark::new(1)),
            sink: Arc::clone(&blocks) as Arc<dyn BlockSink>,
            metrics: LiveMetrics::default(),
            clock: || u64::MAX,
        };
        Self { config, blocks }
    }

    fn insert(&self, trace: u8, sequence: u64, received_ns: u64) {
        let span = Span { trace_id: vec![trace; 16], span_id: vec![1; 8], flags: sequence as u32, ..Span::default() };
        let scope = ScopeSpans { spans: vec![span], ..ScopeSpans::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        let batches = group_message(&ExportTraceServiceRequest { resource_spans: vec![resource] });
        self.config.live.insert("t", batches, received_ns, sequence);
    }

    fn in_memory(&self) -> Vec<u64> {
        self.config.live.snapshot("t").iter().flat_map(|trace| numbers(trace)).collect()
    }

    fn in_blocks(&self) -> Vec<u64> {
        self.blocks.committed.lock().unwrap().clone()
    }

    fn checkpoint(&self) -> u64 {
        *self.blocks.checkpoint.lock().unwrap()
    }

    fn cut(&self, now_ns: u64) -> Result<bool, CutError> {
        self.config.cut_what_is_due(now_ns, &AtomicBool::new(false))
    }
}

#[test]
fn the_checkpoint_stays_below_what_is_still_live() {
    let stage = Stage::new();
    for (trace, sequence, received_ns) in [(1, 1, 100), (2, 2, 100), (1, 3, 100), (2, 4, 108)] {
        stage.insert(trace, sequence, received_ns);
        stage.config.applied.finish(sequence);
    }
    stage.cut(110).unwrap();
    assert_eq!((stage.in_blocks(), stage.checkpoint()), (vec![1, 3], 2));
    stage.cut(120).unwrap();
    assert_eq!((stage.in_blocks(), stage.checkpoint()), (vec![1, 3, 2, 4], 5));
    assert!(stage.in_memory().is_empty());
}

#[test]
fn the_checkpoint_stays_below_what_is_in_the_log_and_not_in_memory_yet() {
    let stage = Stage::new();
    for sequence in [1, 3] {
        stage.insert(1, sequence, 100);
        stage.config.applied.finish(sequence);
    }
    stage.cut(110).unwrap();
    assert_eq!((stage.in_blocks(), stage.checkpoint()), (vec![1, 3], 2));
}

#[test]
fn what_fails_is_live_again_and_counted() {
    let stage = Stage::new();
    stage.insert(1, 1, 100);
    stage.blocks.failures.store(1, Ordering::Relaxed);
    stage.cut(110).unwrap_err();
    assert_eq!((stage.in_memory(), stage.in_blocks()), (vec![1], vec![]));
    stage.cut(110).unwrap();
    assert_eq!((stage.in_memory(), stage.in_blocks()), (vec![], vec![1]));
    let metrics = &stage.config.metrics;
    let counts = (metrics.blocks_cut.get(), metrics.blocks_completed.get(), metrics.failed_completions.get());
    assert_eq!(counts, (2, 1, 1));
}

#[test]
fn nothing_due_is_no_block() {
    let stage = Stage::new();
    stage.cut(110).unwrap();
    stage.insert(1, 1, 108);
    stage.cut(110).unwrap();
    assert_eq!(stage.config.metrics.blocks_cut.get(), 0);
}

#[test]
fn the_last_cut_takes_everything() {
    let Stage { config, blocks } = Stage::new();
    let live = Arc::clone(&config.live);
    let stage = Stage { config, blocks: Arc::clone(&blocks) };
    stage.insert(1, 1, u64::MAX);
    stage.config.applied.finish(1);
    let cutter = Cutter::start(stage.config).unwrap();
    assert_eq!(cutter.stop(Duration::from_mins(1)), Stopped::AllInBlocks);
    assert_eq!((live.stats().traces, blocks.committed.lock().unwrap().clone()), (0, vec![1]));
}

#[test]
fn a_last_cut_that_fails_leaves_the_rest_to_the_log() {
    let stage = Stage::new();
    stage.blocks.failures.store(u32::MAX, Ordering::Relaxed);
    let live = Arc::clone(&stage.config.live);
    stage.insert(1, 1, u64::MAX);
    let cutter = Cutter::start(stage.config).unwrap();
    assert_eq!(cutter.stop(Duration::from_mins(1)), Stopped::RestInLog);
    assert_eq!(live.stats().traces, 1);
}

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A request is in the log and in memory; the flag says whether its number is told now or later.
    Request(u8, bool),
    TellTheRest,
    Cut,
    Failure {
        lost_answer: bool,
    },
    Time(u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0_u8..6, any::<bool>()).prop_map(|(trace, told)| Step::Request(trace, told)),
        1 => Just(Step::TellTheRest),
        3 => Just(Step::Cut),
        1 => any::<bool>().prop_map(|lost_answer| Step::Failure { lost_answer }),
        4 => (0_u64..20).prop_map(Step::Time),
    ]
}

proptest! {
    #[test]
    fn blocks_and_memory_have_everything_and_so_have_blocks_and_log(
        history in prop::collection::vec(any_step(), 1..100),
    ) {
        let stage = Stage::new();
        let (mut logged, mut untold, mut now_ns) = (0, Vec::new(), 1_000);
        for step in history {
            match step {
                Step::Request(trace, told) => {
                    logged += 1;
                    stage.insert(trace, logged, now_ns);
                    if told { stage.config.applied.finish(logged) } else { untold.push(logged) }
                }
                Step::TellTheRest => untold.drain(..).for_each(|sequence| stage.config.applied.finish(sequence)),
                Step::Cut => _ = stage.cut(now_ns),
                Step::Failure { lost_answer } => {
                    stage.blocks.lost_answer.store(lost_answer, Ordering::Relaxed);
                    stage.blocks.failures.store(1, Ordering::Relaxed);
                }
                Step::Time(passed) => now_ns += passed,
            }
            let all: BTreeSet<u64> = (1..=logged).collect();
            let (memory, blocks) = (stage.in_memory(), stage.in_blocks());
            // A block whose commit was not heard of may hold again what is in memory; readers drop what is the same.
            prop_assert_eq!(memory.iter().chain(&blocks).copied().collect::<BTreeSet<_>>(), all.clone());
            // After a crash memory is empty, and the log is read from the checkpoint on.
            let found: BTreeSet<u64> = blocks.into_iter().chain(stage.checkpoint()..=logged).filter(|n| *n > 0).collect();
            prop_assert_eq!(found, all);
        }
    }
}
