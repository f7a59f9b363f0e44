use std::sync::Arc;

use opentelemetry_proto::tonic::{resource::v1::Resource, trace::v1::Span};
use rstest::rstest;

use super::*;
use crate::{
    discover::{Exports, ProcTree, Process, Selection},
    gpu::{DeviceSample, GpuConfig, History, ProcessSample, history::Relative, tests::info},
};

const MS: u64 = 1_000_000;
/// The process on the device, the one that started it, and one that has nothing to do with either.
const RUNNER: u32 = 30;
const STARTER: u32 = 20;
const OTHER: u32 = 50;

fn history(until_ms: u64) -> History {
    let mut history = History::default();
    for number in 1..=until_ms / 100 {
        history.push(
            &info("GPU-1"),
            DeviceSample {
                time_ns: number * 100 * MS,
                utilization: Some(0.5),
                power: Some(100.0),
                processes: Some(vec![ProcessSample {
                    pid: RUNNER,
                    memory: Some(7),
                    sm: Some(0.5),
                    ..ProcessSample::default()
                }]),
                ..DeviceSample::default()
            },
        );
    }
    history.set_relatives(vec![Relative { pid: RUNNER, ancestors: [STARTER].into(), container: None }]);
    history
}

struct Bench {
    spans: GpuSpans,
    processes: Processes,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new(history: History) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let processes = Processes::new(ProcTree::new(folder.path()), Selection::default());
        Self { spans: GpuSpans::new(Some(Gpu::of(history, &GpuConfig::default()))), processes, folder }
    }

    /// A finished span; true if it passes at once.
    fn take(&mut self, id: u8, parent: u8, tgid: u32, start_ms: u64, end_ms: u64) -> bool {
        let process = Process {
            tgid,
            service_name: String::new(),
            resource: Resource::default(),
            sampler: None,
            exports: Exports::default(),
        };
        let parent_span_id = if parent == 0 { Vec::new() } else { vec![parent; 8] };
        let span = Span { span_id: vec![id; 8], parent_span_id, ..Span::default() };
        let interval = Interval { start_ns: start_ms * MS, end_ns: end_ms * MS };
        let finished =
            Finished { tgid, interval, output_tokens: Some(10), is_served: true, is_model: false, is_counted: false };
        self.spans.take(FinishedSpan { process: Arc::new(process), span }, finished).is_some()
    }

    /// What is let go at a time: the first byte of the span's id, and how many attributes it has.
    fn tick(&mut self, now_ns: u64) -> Vec<(u8, Vec<String>)> {
        assert!(self.folder.path().exists());
        let mut found = Vec::new();
        self.spans.tick(now_ns, Clock::new(0, 0), &mut self.processes, &mut |span| {
            let keys = span.span.attributes.iter().map(|pair| pair.key.clone()).collect();
            found.push((span.span.span_id[0], keys));
        });
        found
    }
}

#[test]
fn a_span_waits_for_the_sample_behind_its_end() {
    let mut bench = Bench::new(history(500));
    assert!(!bench.take(1, 0, RUNNER, 410, 450), "its sample is there, but is joined at the next tick");
    assert!(!bench.take(2, 0, RUNNER, 410, 550));
    assert!(bench.take(3, 0, OTHER, 410, 450));
    let due = bench.tick(550 * MS);
    let [(1, keys)] = &due[..] else { panic!("{due:?}") };
    for key in
        ["hw.id", "hw.gpu.utilization", "hw.gpu.memory.usage", "hw.power", "hw.energy", "coati.gpu.energy.per_token"]
    {
        assert!(keys.iter().any(|found| found == key), "{key} is missing: {keys:?}");
    }
    assert_eq!(bench.tick(840 * MS), [], "300 ms of patience");
    let late = bench.tick(851 * MS);
    assert_eq!((late.len(), late[0].0), (1, 2));
    assert!(!late[0].1.is_empty(), "the newest sample speaks for 250 ms behind it");
}

#[test]
fn a_span_without_a_sample_says_nothing() {
    let mut bench = Bench::new(history(500));
    assert!(!bench.take(1, 0, RUNNER, 5000, 5010));
    assert_eq!(bench.tick(u64::MAX), [(1, Vec::new())]);
}

#[test]
fn whoever_started_the_process_uses_the_device_too() {
    let mut bench = Bench::new(history(500));
    assert!(!bench.take(1, 0, STARTER, 410, 450));
    assert_eq!(bench.tick(500 * MS).len(), 1);
}

/// A gateway asks a server that asks the process on the device: two spans up, and no further.
#[test]
fn what_a_call_used_its_caller_used() {
    let mut bench = Bench::new(history(500));
    assert!(!bench.take(1, 2, RUNNER, 410, 440));
    assert!(!bench.take(2, 3, OTHER, 405, 445), "the client span of the call");
    assert!(!bench.take(3, 4, OTHER, 400, 450), "the request that the call was made for");
    assert!(bench.take(4, 5, OTHER + 1, 400, 455), "who asked for that");
    assert!(bench.take(9, 0, OTHER, 400, 450), "another request of the caller");
    assert_eq!(bench.tick(500 * MS).len(), 3);
}

#[rstest]
#[case::uses_it(RUNNER, false, 1)]
#[case::may_use_it(OTHER, true, 1)]
#[case::does_not(OTHER, false, 0)]
fn samples_are_wanted_while_a_request_runs(#[case] tgid: u32, #[case] may_use: bool, #[case] open: usize) {
    let mut bench = Bench::new(history(500));
    let mut wire = crate::decode::testing::Wire::server(1);
    wire.tgid = tgid;
    wire.request(b"GET / HTTP/1.1\r\n\r\n");
    let mut origin = None;
    let mut decoder = crate::decode::Decoder::new(crate::decode::DecodeConfig::default());
    for record in wire.records.clone() {
        decoder.record(record, &mut |event| {
            if let crate::decode::Event::Began(found, _) = event {
                origin = Some(*found);
            }
        });
    }
    let origin = origin.unwrap();
    bench.spans.began(&origin, may_use);
    assert_eq!(bench.spans.open.len(), open);
    bench.spans.ended(origin.id, None);
    assert!(bench.spans.open.is_empty());
}
