//! What a request costs the capture thread, from the bytes of its records to its encoded span, for `callgrind`:
//!
//! ```text
//! cargo bench -p coati-agent --bench requests --no-run                       # says where the program is
//! valgrind --tool=callgrind --toggle-collect='requests::take' PROGRAM 8000 same   # less what it takes for 4000
//! ```
//!
//! With `same` all requests of a connection have the same head, as under `cargo xtask bench guest`; with `other` each asks for
//! another path and has a `traceparent` of its own. Nothing is sent: spans wait in the queue.

#![expect(clippy::expect_used, reason = "a program to measure with, which nobody runs but by hand")]

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    time::Duration,
};

use coati_agent::{
    capture::{CaptureError, Health, Record, Source},
    decode::{DecodeConfig, Decoder},
    discover::{ProcTree, Processes, Selection},
    ebpf::{Attachment, ProbePoint, UprobeError},
    export::{Auth, Compression, EndpointSettings, Protocol, Proxies, Settings, exporter},
    gpu::GpuSpans,
    pipeline::{Out, Stages},
    span::{Clock, SpanBuilder, SpanConfig},
    stitch::{RandomIds, StitchConfig, Stitcher},
    telemetry::Telemetry,
};
use coati_common::{
    cuda,
    event::{Connection, Kind, begin_flags, direction, role},
    go::Layout,
    python::Interpreter,
};

/// Connections of the server, among which requests are shared out.
const CONNECTIONS: u64 = 8;
/// From one request to the next, nanoseconds.
const EVERY_NS: u64 = 1_000_000;
/// Requests whose records are taken at once, as at 1,000 a second.
const AT_ONCE: usize = 20;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|it| it != "--bench");
    let requests: u64 = arguments.next().and_then(|it| it.parse().ok()).unwrap_or(4000);
    let is_same = arguments.next().is_none_or(|it| it == "same");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = runtime.enter();
    let telemetry = Telemetry::default();
    let (queue, _exporter) = exporter(&settings(), &telemetry, || 0.5).expect("settings that are right");
    let mut stages = Stages::new(
        Decoder::new(DecodeConfig::default()),
        Stitcher::new(StitchConfig::default(), RandomIds::new([1, 2, 3, 4])),
        Processes::new(ProcTree::new("/proc"), Selection::default()),
        SpanBuilder::new(SpanConfig::default(), Clock::new(0, 1_767_225_600_000_000_000)),
        GpuSpans::new(None),
        Out { queue, printer: None, telemetry: telemetry.clone() },
        0,
    );
    let requests: Vec<_> = (0..requests).map(|number| request(number, is_same)).collect();
    let mut records = Vec::new();
    for at_once in requests.chunks(AT_ONCE) {
        take(at_once, &mut records, &mut stages);
    }
    // Every request was counted, and has its span.
    assert_eq!(telemetry.spans.get(), requests.len() as u64);
}

/// What is counted.
#[inline(never)]
fn take(requests: &[[Vec<u8>; 2]], records: &mut Vec<Record>, stages: &mut Stages) {
    for bytes in requests.iter().flatten() {
        records.push(Record::parse(bytes).expect("a record"));
    }
    stages.take(records, &mut Nothing).expect("nothing that fails");
}

/// The records of a request at its server: its head, and the whole answer.
fn request(number: u64, is_same: bool) -> [Vec<u8>; 2] {
    let time_ns = (number + 1) * EVERY_NS;
    let (connection, exchange) = (number % CONNECTIONS + 1, number / CONNECTIONS + 1);
    let own = if is_same { String::new() } else { format!("traceparent: 00-{:032x}-{number:016x}-01\r\n", number + 1) };
    let item = if is_same { 1 } else { number };
    let head = format!("GET /stock/{item} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\nUser-Agent: coati-load\r\n{own}\r\n");
    let second = number * EVERY_NS / 1_000_000_000 % 60;
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nDate: Sun, 29 Nov 2026 00:00:{second:02} GMT\r\n\
         Content-Length: 27\r\n\r\n{{\"item\":1,\"in_stock\":true}}\n"
    );
    let mut begin = Bytes::header(Kind::Begin, number * 2, time_ns);
    begin.u64(connection).u64(0xffff_8880_0000_0000 + connection).u32(exchange as u32);
    begin.u32(std::process::id()).u32(std::process::id()).u32(4_026_531_840);
    begin.u32(1000 + (number / CONNECTIONS * 90) as u32).u32(5000 + (number / CONNECTIONS * 130) as u32);
    begin.address().address().u16(8080).u16(40_000 + connection as u16);
    begin.0.extend([role::SERVER, begin_flags::POSITIONS]);
    begin.u16(head.len() as u16).u64(head.len() as u64).last(&head).served();
    let before = number >= CONNECTIONS;
    let previous = |it: u64| if before { it } else { 0 };
    begin.u64(previous(head.len() as u64)).u64(previous(answer.len() as u64));
    begin.totals(previous(time_ns), before.into());
    begin.0.extend(head.as_bytes());
    let mut data = Bytes::header(Kind::Data, number * 2 + 1, time_ns + EVERY_NS / 10);
    data.u64(connection).u32(exchange as u32).u32(std::process::id()).u32(std::process::id());
    data.u16(answer.len() as u16);
    data.0.extend([direction::RESPONSE, 0]);
    data.u64(answer.len() as u64).last(&answer).served().u64(head.len() as u64).u64(answer.len() as u64);
    data.totals(time_ns, 1);
    data.0.extend(answer.as_bytes());
    [begin.0, data.0]
}

/// A record in the making, field by field.
struct Bytes(Vec<u8>);

impl Bytes {
    fn header(kind: Kind, number: u64, time_ns: u64) -> Self {
        let mut bytes = Self(Vec::with_capacity(1024));
        bytes.u32(kind as u32).u32(0).u64(number).u64(time_ns);
        bytes
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend(value.to_ne_bytes());
        self
    }

    /// 127.0.0.1, as IPv6 has it.
    fn address(&mut self) -> &mut Self {
        self.0.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 127, 0, 0, 1]);
        self
    }

    fn last(&mut self, text: &str) -> &mut Self {
        self.0.extend(text.as_bytes().last_chunk::<8>().expect("more than eight bytes"));
        self
    }

    fn served(&mut self) -> &mut Self {
        self.u64(0).u32(0).u32(0)
    }

    /// What is behind the bytes of both directions.
    fn totals(&mut self, time_ns: u64, chunks: u32) {
        self.u64(time_ns).u64(time_ns).u64(time_ns).u64(0).u32(chunks).u32(0);
    }
}

fn settings() -> Settings {
    let endpoint = EndpointSettings {
        name: "nowhere".to_owned(),
        endpoint: "http://127.0.0.1:1".to_owned(),
        protocol: Protocol::Grpc,
        compression: Compression::None,
        headers: BTreeMap::new(),
        timeout: Duration::from_secs(1),
        tls: None,
        auth: Auth::default(),
        proxies: Proxies::default(),
    };
    Settings {
        endpoints: vec![endpoint],
        queue: None,
        queue_spans: 1 << 20,
        batch_spans: 4096,
        batch_bytes: 1 << 20,
        batch_delay: Duration::from_millis(200),
    }
}

/// A kernel that has nothing more to say.
struct Nothing;

impl Source for Nothing {
    fn drain(&mut self, _: Duration, _: &mut Vec<Record>) -> Result<(), CaptureError> {
        Ok(())
    }

    fn drain_all(&mut self, _: &mut Vec<Record>) -> Result<(), CaptureError> {
        Ok(())
    }

    fn connection(&self, _: u64, _: u64) -> Result<Option<Connection>, CaptureError> {
        Ok(None)
    }

    fn skip(&mut self, _: u32) -> Result<(), CaptureError> {
        Ok(())
    }

    fn unskip(&mut self, _: u32) {}

    fn attach_probes(&mut self, _: &Path, _: &[ProbePoint]) -> Result<Attachment, UprobeError> {
        Ok(Attachment::default())
    }

    fn watch_goroutines(&mut self, _: u32, _: Layout) {}

    fn watch_nginx(&mut self, _: u32, _: u32) {}

    fn watch_node(&mut self, _: u32, _: u32) {}

    fn watch_python(&mut self, _: u32, _: Interpreter) {}

    fn forget_tls(&mut self, _: &HashSet<u32>) -> Result<Vec<Connection>, CaptureError> {
        Ok(Vec::new())
    }

    fn cuda(&self) -> Vec<(u32, cuda::Process)> {
        Vec::new()
    }

    fn forget_cuda(&mut self, _: u32) {}

    fn health(&self) -> Result<Health, CaptureError> {
        Ok(Health::default())
    }
}
