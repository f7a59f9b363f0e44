//! Programs that others wrote, as clients and servers, and what the decoder makes of their connections.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use coati_agent::capture::Record;
use coati_agent::decode::{DecodeConfig, DecodeCounters, Decoder, Event, Exchange, Role};

use crate::watch::Watch;

/// How long software of others may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What was decoded of the connections of one server.
#[derive(Default)]
pub(crate) struct Decoded {
    pub(crate) exchanges: Vec<Exchange>,
    pub(crate) counters: DecodeCounters,
}

impl Decoded {
    pub(crate) fn of(records: &[Record], port: u16) -> Self {
        let mut decoder = Decoder::new(DecodeConfig::default());
        let mut exchanges = Vec::new();
        let mut emit = |event: Event<'_>| {
            if let Event::Ended(exchange) = event {
                let server =
                    if exchange.origin.role == Role::Server { exchange.origin.local } else { exchange.origin.remote };
                if server.port() == port {
                    exchanges.push(exchange.clone());
                }
            }
        };
        let mut records = records.to_vec();
        records.sort_by_key(|record| record.header().time_ns);
        for record in records {
            decoder.record(record, &mut emit);
        }
        let counters = *decoder.counters();
        Self { exchanges, counters }
    }

    /// The exchanges of one end: `METHOD path status request body → response body`, sorted.
    pub(crate) fn lines(&self, role: Role) -> Vec<String> {
        let line = |it: &Exchange| {
            format!(
                "{} {} {:?} {:?}→{:?}{}{}{}",
                it.request.method_text(),
                it.request.path().unwrap_or("?"),
                it.response.as_ref().map(|head| head.status).unwrap_or_default(),
                it.request_body_bytes.unwrap_or(u64::MAX),
                it.response_body_bytes.unwrap_or(u64::MAX),
                it.grpc.map(|grpc| format!(" grpc {:?}", grpc.status)).unwrap_or_default(),
                it.failure.map(|failure| format!(" {}", failure.as_str())).unwrap_or_default(),
                it.incomplete.map(|what| format!(" incomplete {}", what.as_str())).unwrap_or_default(),
            )
        };
        let mut lines: Vec<_> = self.exchanges.iter().filter(|it| it.origin.role == role).map(line).collect();
        lines.sort();
        lines
    }

    /// Both ends name each stream in the same way.
    pub(crate) fn assert_paired(&self) {
        let keys = |role| {
            let of_role = self.exchanges.iter().filter(move |it| it.origin.role == role);
            let mut keys: Vec<_> = of_role
                .map(|it| {
                    let key = it.origin.key.expect("the positions are known");
                    (key, it.request.path().unwrap_or_default().to_owned())
                })
                .collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(Role::Client), keys(Role::Server));
    }
}

/// Waits until `count` exchanges of each end of the server at `port` are there.
pub(crate) fn wait(watch: &mut Watch, port: u16, count: usize) -> Decoded {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let _ = watch.now(port);
        let decoded = Decoded::of(watch.records(), port);
        let has = |role| decoded.exchanges.iter().filter(|it| it.origin.role == role).count() >= count;
        if has(Role::Client) && has(Role::Server) {
            return decoded;
        }
        assert!(
            Instant::now() < deadline,
            "client {:#?}, server {:#?}, {:?}",
            decoded.lines(Role::Client),
            decoded.lines(Role::Server),
            decoded.counters
        );
        thread::sleep(Duration::from_millis(20));
    }
}

/// A program of others, that is ended with the test.
pub(crate) struct Running(Child);

impl Running {
    pub(crate) const fn new(child: Child) -> Self {
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server and waits until it listens; its port.
pub(crate) fn start(program: &str, arguments: impl Fn(u16) -> Vec<String>) -> (Running, u16) {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let mut command = Command::new(program);
    command.args(arguments(port)).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    let server = Running(command.spawn().unwrap());
    let deadline = Instant::now() + PATIENCE;
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(Instant::now() < deadline, "{program} does not listen");
        thread::sleep(Duration::from_millis(20));
    }
    (server, port)
}

pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Whether all of `programs` are installed, and a line if not.
pub(crate) fn has(programs: &[&str], covers: &str) -> bool {
    let missing: Vec<_> = programs.iter().filter(|program| !Path::new(program).exists()).collect();
    if !missing.is_empty() {
        println!("SKIPPED: {missing:?} not installed (`cargo xtask setup`); not covered: {covers}");
    }
    missing.is_empty()
}
