mod processes;
mod self_traced;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use coati_common::{
    event::{Connection, Exit, Header, Kind},
    loss::Loss,
};
use opentelemetry_proto::tonic::trace::v1::{ScopeSpans, span::SpanKind};
use prost::Message as _;
use rstest::rstest;

use super::*;
use crate::{
    capture::{Health, Record},
    decode::testing::{MS, Wire},
    discover::{Exports, Pattern, Rule, Selection, Treatment},
    ebpf::{Attachment, ProbePoint, UprobeError},
    export::{
        self,
        queue::{Next, Spans, Under},
    },
    metrics::MetricsSettings,
    span::{AttributeConfig, FinishedSpan, HeaderConfig, SpanConfig},
    stitch::StitchConfig,
};

/// A kernel that follows a script: what each call of `drain` finds.
#[derive(Default)]
struct Script {
    drains: VecDeque<Vec<Record>>,
    last: Vec<Record>,
    connections: HashMap<u64, Connection>,
    skipped: Vec<u32>,
    /// Processes that the kernel has no room to skip.
    unskippable: Vec<u32>,
    health: Health,
    /// Files that got probes.
    probed: Vec<PathBuf>,
    /// TLS sessions without a known socket, with their processes.
    sessions: Vec<(u32, Connection)>,
    /// Set when the script is over.
    stop: Arc<AtomicBool>,
}

impl Source for Script {
    fn drain(&mut self, _: Duration, sink: &mut Vec<Record>) -> Result<(), CaptureError> {
        match self.drains.pop_front() {
            Some(records) => sink.extend(records),
            None => self.stop.store(true, Ordering::Release),
        }
        Ok(())
    }

    fn drain_all(&mut self, sink: &mut Vec<Record>) -> Result<(), CaptureError> {
        sink.append(&mut self.last);
        Ok(())
    }

    fn connection(&self, socket: u64, connection: u64) -> Result<Option<Connection>, CaptureError> {
        Ok(self.connections.get(&socket).copied().filter(|it| it.connection == connection))
    }

    fn skip(&mut self, tgid: u32) -> Result<(), CaptureError> {
        if self.unskippable.contains(&tgid) {
            return Err(CaptureError::Wait { source: io::ErrorKind::StorageFull.into() });
        }
        self.skipped.push(tgid);
        Ok(())
    }

    fn unskip(&mut self, tgid: u32) {
        self.skipped.retain(|skipped| *skipped != tgid);
    }

    fn attach_probes(&mut self, path: &Path, _: &[ProbePoint]) -> Result<Attachment, UprobeError> {
        self.probed.push(path.to_owned());
        Ok(Attachment::default())
    }

    fn watch_goroutines(&mut self, _: u32, _: coati_common::go::Layout) {}

    fn watch_nginx(&mut self, _: u32, _: u32) {}

    fn watch_node(&mut self, _: u32, _: u32) {}

    fn watch_python(&mut self, _: u32, _: coati_common::python::Interpreter) {}

    fn forget_tls(&mut self, gone: &HashSet<u32>) -> Result<Vec<Connection>, CaptureError> {
        let is_gone = |(tgid, _): &mut (u32, Connection)| gone.contains(tgid);
        Ok(self.sessions.extract_if(.., is_gone).map(|(_, connection)| connection).collect())
    }

    fn cuda(&self) -> Vec<(u32, coati_common::cuda::Process)> {
        Vec::new()
    }

    fn forget_cuda(&mut self, _: u32) {}

    fn health(&self) -> Result<Health, CaptureError> {
        Ok(self.health)
    }
}

/// Processes 100 (a server, `shop`) and 200 (a client, `curl`).
struct Node {
    proc: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let proc = tempfile::tempdir().unwrap();
        for (tgid, executable) in [(100, "/usr/bin/shop"), (200, "/usr/bin/curl")] {
            let directory = proc.path().join(tgid.to_string());
            fs::create_dir(&directory).unwrap();
            std::os::unix::fs::symlink(executable, directory.join("exe")).unwrap();
            fs::write(directory.join("comm"), "comm").unwrap();
        }
        Self { proc }
    }

    fn stages(&self, queue: SpanQueue, telemetry: &Telemetry, selection: Selection) -> Stages {
        Stages::new(
            Decoder::new(DecodeConfig::default()),
            Stitcher::new(StitchConfig::default(), RandomIds::new([1, 2, 3, 4])),
            Processes::new(ProcTree::new(self.proc.path()), selection),
            SpanBuilder::new(SpanConfig::default(), Clock::new(0, 1_000_000_000)),
            GpuSpans::new(None),
            Out { queue, printer: None, telemetry: telemetry.clone() },
            MS,
        )
    }
}

/// One request through both ends of a connection, and a second that is not answered.
fn both_ends() -> (Wire, Wire) {
    let (mut client, mut server) = (Wire::client(1), Wire::server(2));
    client.request(b"GET /cart/7 HTTP/1.1\r\nhost: shop\r\n\r\n");
    server.wait(MS / 2).request(b"GET /cart/7 HTTP/1.1\r\nhost: shop\r\n\r\n");
    server.response(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    client.wait(2 * MS).response(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    (client, server)
}

/// The spans that come out of the queue together.
fn next(received: &mut Spans) -> Vec<FinishedSpan> {
    let Next::Spans(spans) = received.next_if(|_| true) else { return Vec::new() };
    let Under::Process(process) = spans.under else { panic!("relayed spans") };
    let found = ScopeSpans::decode(&spans.fields[..]).unwrap().spans;
    assert_eq!(found.len(), spans.count);
    found.into_iter().map(|span| FinishedSpan { process: Arc::clone(&process), span }).collect()
}

fn spans(mut received: Spans) -> Vec<FinishedSpan> {
    std::iter::from_fn(|| Some(next(&mut received)).filter(|spans| !spans.is_empty())).flatten().collect()
}

/// Runs a script to its end.
fn run_script(script: &mut Script, selection: Selection) -> (Vec<FinishedSpan>, Telemetry) {
    run_reloaded(script, selection, None)
}

/// The same, with another configuration behind the first batch.
fn run_reloaded(script: &mut Script, selection: Selection, reload: Option<Reload>) -> (Vec<FinishedSpan>, Telemetry) {
    let (sender, reloads) = std::sync::mpsc::channel();
    if let Some(reload) = reload {
        sender.send(reload).unwrap();
    }
    let telemetry = Telemetry::default();
    // By the clock of this machine the records are as old as it has been up.
    telemetry.requests.configure(MetricsSettings { expire: Duration::MAX, ..MetricsSettings::default() });
    let (queue, received) = export::queue::bounded(100, 100, 1, telemetry.clone());
    let node = Node::new();
    let mut stages = node.stages(queue, &telemetry, selection);
    let stop = Arc::clone(&script.stop);
    capture(script, &mut stages, &reloads, &stop, |_| {}).unwrap();
    (spans(received), telemetry)
}

/// Of few records the pause is the longest, of more it is such that they come in pieces of a size, and it finds that by itself.
#[rstest]
#[case::few(3, 20.0)]
#[case::as_many_as_are_taken_at_once(12, 20.0)]
#[case::more(40, 6.4)]
#[case::very_many(1000, 2.0)]
fn the_more_records_come_the_shorter_they_gather(#[case] in_a_millisecond: u32, #[case] expected_ms: f64) {
    for mut pause in [GATHER_LEAST, GATHER] {
        for _ in 0..4 {
            let records = (pause * in_a_millisecond).as_millis() as usize;
            pause = next_pause(pause, records);
        }
        assert!((pause.as_secs_f64() * 1e3 - expected_ms).abs() < 0.1, "{pause:?}");
    }
    assert_eq!(next_pause(GATHER_LEAST, 0), GATHER);
    assert_eq!(next_pause(GATHER, usize::MAX), GATHER_LEAST);
}

#[test]
fn two_ends_of_a_request_become_two_spans_of_one_trace() {
    let (client, server) = both_ends();
    let mut script = Script { drains: [Wire::merge(&[&client, &server])].into(), ..Script::default() };
    let (spans, telemetry) = run_script(&mut script, Selection::default());
    let [server, client] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((server.process.service_name.as_str(), server.span.kind()), ("shop", SpanKind::Server));
    assert_eq!((client.process.service_name.as_str(), client.span.kind()), ("curl", SpanKind::Client));
    assert_eq!(server.span.trace_id, client.span.trace_id);
    assert_eq!(server.span.parent_span_id, client.span.span_id);
    assert_eq!(telemetry.spans.get(), 2);
    assert_eq!(telemetry.exchanges.get(), 2);
    assert_eq!(telemetry.records(Kind::Begin).get(), 2);
    assert_eq!(telemetry.links("position").get(), 1);
    assert_eq!(telemetry.processes.get(), 2);
    assert_eq!(telemetry.open_exchanges.get(), 0);
}

#[test]
fn what_the_kernel_still_has_at_the_end_is_taken() {
    let (client, server) = both_ends();
    let mut script = Script { last: Wire::merge(&[&client, &server]), ..Script::default() };
    assert_eq!(run_script(&mut script, Selection::default()).0.len(), 2);
}

#[test]
fn what_began_before_every_program_was_attached_makes_no_span() {
    let mut early = Wire::client(3);
    early.time_ns = 0;
    early.request(b"GET /early HTTP/1.1\r\n\r\n");
    for record in &mut early.records {
        let Record::Begin(begin, _) = record else { panic!("{record:?}") };
        begin.header.time_ns = MS - 1;
    }
    early.wait(20 * MS).close();
    let mut script = Script { drains: [early.records].into(), ..Script::default() };
    assert!(run_script(&mut script, Selection::default()).0.is_empty());
}

#[test]
fn an_open_request_becomes_a_span_at_the_end() {
    let mut server = Wire::server(2);
    server.request(b"GET /slow HTTP/1.1\r\nhost: shop\r\n\r\n");
    let mut script = Script { drains: [server.records].into(), ..Script::default() };
    let (spans, _) = run_script(&mut script, Selection::default());
    // It has been open since the machine was started, so it is shown before.
    let [.., span] = &spans[..] else { panic!("{spans:?}") };
    assert!(span.span.attributes.iter().any(|attribute| attribute.key == "coati.incomplete"), "{span:?}");
}

/// The two ends of a stream while it runs and when it is over: spans of one trace in both, which say when they are not the
/// last ones and differ in nothing by which their last ones are found, whatever the wall clock does and however few pass.
#[test]
fn a_stream_is_sent_while_it_runs_and_when_it_is_over() {
    let (mut client, mut server) = (Wire::client(1), Wire::server(2));
    client.request(b"GET /events HTTP/1.1\r\nhost: shop\r\n\r\n");
    server.wait(MS / 2).request(b"GET /events HTTP/1.1\r\nhost: shop\r\n\r\n");
    server.response(b"HTTP/1.1 200 OK\r\n\r\n");
    client.wait(2 * MS).response(b"HTTP/1.1 200 OK\r\n\r\n");
    let mut script = Script::default();
    let telemetry = Telemetry::default();
    let (queue, received) = export::queue::bounded(100, 100, 1, telemetry.clone());
    let node = Node::new();
    let mut stages = node.stages(queue, &telemetry, Selection::default());
    let attributes = AttributeConfig { include: vec![Pattern::glob("http.*").unwrap()], exclude: vec![] };
    let spans_config = SpanConfig { attributes, max_per_second: Some(2), ..SpanConfig::default() };
    let reload = Reload { selection: Selection::default(), excludes_self_traced: true, spans: spans_config };
    stages.reload(reload, &mut script);
    stages.take(&mut Wire::merge(&[&client, &server]), &mut script).unwrap();
    let clock = |second: u64| Clock::new(0, 1_000_000_000 + second * 17);
    for second in 1..=35 {
        for (wire, socket) in [(&client, 1 << 8), (&server, 2 << 8)] {
            script.connections.insert(socket, wire.state);
        }
        stages.tick(second * 1000 * MS, clock(second), &mut script).unwrap();
    }
    assert_eq!((telemetry.spans.get(), telemetry.spans_partial.get()), (0, 4));
    (client.records, server.records) = (vec![], vec![]);
    client.wait(36_000 * MS).close();
    server.wait(36_000 * MS).close();
    stages.take(&mut Wire::merge(&[&client, &server]), &mut script).unwrap();
    stages.tick(40_000 * MS, clock(40), &mut script).unwrap();
    drop(stages);
    assert_eq!((telemetry.spans.get(), telemetry.spans_partial.get()), (2, 4));
    let spans = spans(received);
    let is_partial =
        |span: &FinishedSpan| span.span.attributes.iter().any(|attribute| attribute.key == "coati.span.partial");
    assert_eq!(spans.iter().map(is_partial).collect::<Vec<_>>(), [true, true, true, true, false, false]);
    for kind in [SpanKind::Client, SpanKind::Server] {
        let mut versions = spans.iter().filter(|span| span.span.kind() == kind).map(|span| &span.span);
        let first = versions.next().unwrap();
        assert_eq!(first.trace_id, spans[0].span.trace_id);
        for later in versions {
            assert_eq!(
                (&later.span_id, &later.trace_id, &later.parent_span_id, later.start_time_unix_nano, &later.name),
                (&first.span_id, &first.trace_id, &first.parent_span_id, first.start_time_unix_nano, &first.name),
            );
            assert!(later.end_time_unix_nano >= first.end_time_unix_nano);
        }
    }
}

#[test]
fn another_configuration_counts_from_the_next_batch_on() {
    let request = |number, path: &str| {
        let mut server = Wire::server(number);
        server.wait(number * 10 * MS).request(format!("GET {path} HTTP/1.1\r\nhost: shop\r\n\r\n").as_bytes());
        server.response(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-a: b\r\n\r\nok");
        server.records
    };
    let mut script = Script { drains: [request(1, "/before"), request(2, "/behind")].into(), ..Script::default() };
    let headers = HeaderConfig { response: vec![Pattern::glob("x-*").unwrap()], ..HeaderConfig::default() };
    let reload = Reload {
        selection: Selection::default(),
        excludes_self_traced: true,
        spans: SpanConfig { headers, ..SpanConfig::default() },
    };
    let rule = Rule { exe_path: Pattern::executable("shop"), ..Rule::default() };
    let selection = Selection { include: vec![], exclude: vec![rule] };
    let (spans, telemetry) = run_reloaded(&mut script, selection, Some(reload));
    let [span] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!(span.span.name, "GET /behind");
    assert!(span.span.attributes.iter().any(|attribute| attribute.key == "http.response.header.x-a"), "{span:?}");
    assert_eq!((script.skipped, telemetry.ignored_exchanges.get()), (vec![], 1));
}

#[rstest]
#[case::gone_again(&[2, 0, 0], 0)]
#[case::there_to_stay(&[2, 2, 3], 2)]
#[case::never(&[0, 0, 0], 0)]
fn a_record_is_missing_only_if_it_stays_missing(#[case] readings: &[u64], #[case] expected: u64) {
    let telemetry = Telemetry::default();
    let (queue, _received) = export::queue::bounded(100, 100, 1, telemetry.clone());
    let mut stages = Node::new().stages(queue, &telemetry, Selection::default());
    let mut script = Script::default();
    script.health.losses[Loss::ConnectionsFull as usize] = 5;
    script.health.begun = 9;
    for (second, unaccounted) in readings.iter().enumerate() {
        script.health.unaccounted = *unaccounted;
        stages.tick((second as u64 + 2) * 1000 * MS, Clock::new(0, 0), &mut script).unwrap();
    }
    assert_eq!(telemetry.sequence_gaps.get(), expected);
    assert_eq!(telemetry.losses("connections_full").get(), 5);
    assert_eq!(telemetry.exchanges_begun.get(), 9);
}

#[test]
fn a_response_that_is_only_counted_ends_when_the_kernel_has_counted_it() {
    let mut server = Wire::server(2);
    server.request(b"GET /big HTTP/1.1\r\n\r\n").response(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n");
    for _ in 0..100 {
        server.response(&[b'x'; 10]);
    }
    let telemetry = Telemetry::default();
    let (queue, mut received) = export::queue::bounded(100, 100, 1, telemetry.clone());
    let mut stages = Node::new().stages(queue, &telemetry, Selection::default());
    let mut script = Script::default();
    stages.take(&mut server.records, &mut script).unwrap();
    assert!(next(&mut received).is_empty(), "the records do not tell the end");
    script.connections.insert(2 << 8, server.state);
    stages.tick(server.time_ns + 1000 * MS, Clock::new(0, 0), &mut script).unwrap();
    let span = next(&mut received).remove(0).span;
    assert_eq!(span.end_time_unix_nano - 1_000_000_000, server.state.totals.response_last_ns);
}
