//! Guarantee: whatever HTTP/1 looks like on the wire, one request is one span; what is not HTTP is none; nothing that
//! a peer does crashes the agent; and what could not be captured is counted.

mod shapes;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::load::{self, Plan};
use coati_tests::process::{self, Running, free_port};
use coati_tests::sample::{Sample, Server};
use coati_tests::seen::{Seen, spans_of};
use coati_tests::tools::{tool, workspace};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// How long a span may take from the end of its exchange until it is found.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// The server that answers in every way.
struct Awkward {
    address: SocketAddr,
    process: Running,
}

impl Awkward {
    fn start(folder: &Path, address: SocketAddr) -> Result<Self> {
        let mut command = Command::new(tool("python/bin/python")?);
        command.arg(workspace().join("tests/sample/awkward.py"));
        command.args([address.ip().to_string(), address.port().to_string()]);
        let mut process = Running::start("awkward", folder, &mut command)?;
        process.wait_for_port(address, Duration::from_secs(10))?;
        Ok(Self { address, process })
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    }

    /// Sends pieces on a new connection, a moment apart; gives all that comes until the server hangs up.
    fn exchange(&self, pieces: &[&[u8]]) -> Result<String> {
        let mut stream = self.connect()?;
        for (number, piece) in pieces.iter().enumerate() {
            if number > 0 {
                thread::sleep(Duration::from_millis(2));
            }
            stream.write_all(piece)?;
        }
        let mut answer = vec![0; 100];
        let count = stream.read(&mut answer)?;
        answer.truncate(count);
        // The server sees that there is no other request, and hangs up too.
        stream.shutdown(Shutdown::Write)?;
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// Backend, server, agent, in the order in which they are not needed any more.
struct Scene {
    agent: Agent,
    server: Awkward,
    backend: Backend,
    folder: TempDir,
}

impl Scene {
    fn start() -> Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))
    }

    fn start_at(address: SocketAddr) -> Result<Self> {
        let folder = process::folder()?;
        let backend = Backend::start(folder.path(), &[])?;
        let server = Awkward::start(folder.path(), address)?;
        let agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
        Ok(Self { agent, server, backend, folder })
    }

    /// TraceQL for the spans of the server, and of this process as its client.
    fn query(&self) -> String {
        format!(
            "{{ (kind = server && resource.process.pid = {}) || (kind = client && resource.process.pid = {} && span.server.port = {}) }}",
            self.server.process.id(),
            std::process::id(),
            self.server.address.port()
        )
    }

    /// Waits for `count` spans, ends the agent, and gives all spans of the server and of this process as its client.
    fn finish(&mut self, count: u64) -> Result<Vec<Seen>> {
        let query = self.query();
        self.backend.wait_for_count(&query, count, ARRIVES_WITHIN)?;
        let status = self.agent.stop()?;
        ensure!(status.code() == Some(0), "the agent ended with {status}:\n{}", self.agent.process.output());
        ensure!(!self.agent.process.output().contains("panicked"), "{}", self.agent.process.output());
        let mut spans = spans_of(&self.backend, &query)?;
        let port = self.server.address.port().to_string();
        spans.retain(|span| match span.kind.as_str() {
            "SPAN_KIND_SERVER" => span.pid() == Some(self.server.process.id()),
            _ => span.pid() == Some(std::process::id()) && span.attribute("server.port") == port,
        });
        Ok(spans)
    }
}

/// The server's span and the client's.
fn sides(spans: &[Seen]) -> Result<(&Seen, &Seen)> {
    let of = |kind: &str| {
        let found: Vec<_> = spans.iter().filter(|span| span.kind == kind).collect();
        ensure!(found.len() == 1, "{} spans of {kind} in {spans:#?}", found.len());
        found.first().copied().context("one span")
    };
    Ok((of("SPAN_KIND_SERVER")?, of("SPAN_KIND_CLIENT")?))
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: awkward\r\n\r\n").into_bytes()
}

/// `nc -N` does this: the end of the stream comes with the request.
#[test]
fn a_client_that_half_closes_with_its_request_is_linked() -> Result<()> {
    let mut scene = Scene::start()?;
    let mut stream = scene.server.connect()?;
    stream.write_all(&get("/half-closed/chunked"))?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer:?}");
    let spans = scene.finish(2)?;
    let (server, client) = sides(&spans)?;
    ensure!(server.parent_span_id == client.span_id && server.trace_id == client.trace_id, "{spans:#?}");
    Ok(())
}

#[test]
fn what_is_not_http_is_no_span_and_what_looked_like_it_is_counted() -> Result<()> {
    let mut scene = Scene::start()?;
    let mut random = vec![0; 5000];
    fastrand::Rng::with_seed(1).fill(&mut random);
    let noise: [&[u8]; 7] = [
        b"",
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03random of a TLS hello\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n\r\n",
        b"GETTING /x HTTP/1.1\r\n\r\n",
        &random,
    ];
    let looks_like_http: [&[u8]; 3] =
        [b"GET /version HTTP/7.3\r\n\r\n", b"GET \xff\xfe\x00 HTTP/1.1\r\n\r\n", b"POST / / / HTTP/1.1\r\n\r\n"];
    for bytes in noise.iter().chain(&looks_like_http) {
        // The server hangs up at the end of it, with an answer or without.
        let mut stream = scene.server.connect()?;
        stream.write_all(bytes)?;
        stream.shutdown(Shutdown::Write)?;
        let _ = stream.read_to_end(&mut Vec::new());
    }
    scene.server.exchange(&[&get("/after/plain")])?;
    scene.backend.wait_for_count(&scene.query(), 2, ARRIVES_WITHIN)?;
    let failures = scene.agent.metric("coati_agent_parse_failures_total", &[])?;
    let spans = scene.finish(2)?;
    let paths: Vec<_> = spans.iter().map(Seen::path).collect();
    ensure!(paths == ["/after/plain", "/after/plain"], "spans of noise: {spans:#?}");
    ensure!(failures >= looks_like_http.len() as f64, "{failures} failures are counted");
    Ok(())
}

#[test]
fn a_process_that_dies_in_the_middle_of_a_request_leaves_a_failed_span() -> Result<()> {
    let mut scene = Scene::start()?;
    let mut stream = scene.server.connect()?;
    stream.write_all(&get("/dies/hang"))?;
    thread::sleep(Duration::from_millis(200));
    scene.server.process.kill()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    ensure!(answer.is_empty(), "an answer of a killed server: {answer:?}");
    drop(stream);
    let spans = scene.finish(2)?;
    let (server, client) = sides(&spans)?;
    for span in [server, client] {
        ensure!(span.attribute("http.response.status_code").is_empty(), "{span:#?}");
        ensure!(
            span.status == "STATUS_CODE_ERROR" && span.attribute("error.type").starts_with("connection_"),
            "{span:#?}"
        );
        ensure!(span.duration_ns >= 150_000_000, "{span:#?}");
    }
    Ok(())
}

#[test]
fn a_client_that_goes_away_in_the_middle_of_an_answer_leaves_spans() -> Result<()> {
    let mut scene = Scene::start()?;
    let mut stream = scene.server.connect()?;
    stream.write_all(&get("/left/endless"))?;
    let mut some = vec![0; 50_000];
    stream.read_exact(&mut some)?;
    drop(stream);
    let spans = scene.finish(2)?;
    let (server, client) = sides(&spans)?;
    for span in [server, client] {
        ensure!(span.attribute("http.response.status_code") == "200", "{span:#?}");
        ensure!(span.attribute("error.type").starts_with("connection_"), "{span:#?}");
    }
    Ok(())
}

#[test]
fn a_connection_that_was_open_before_the_agent_is_seen() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let server = Awkward::start(folder.path(), SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))?;
    let mut stream = server.connect()?;
    let mut ask = |path: &str| -> Result<()> {
        stream.write_all(&get(path))?;
        let mut answer = Vec::new();
        let mut piece = [0; 1000];
        while !answer.ends_with(b"0123456789") || answer.len() < 100 {
            let count = stream.read(&mut piece)?;
            ensure!(count > 0, "closed");
            answer.extend(piece.iter().take(count));
        }
        Ok(())
    };
    ask("/before/plain")?;
    let agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    ask("/after/plain")?;
    ask("/later/plain")?;
    let mut scene = Scene { agent, server, backend, folder };
    let spans = scene.finish(4)?;
    let of = |kind: &str, path: &str| spans.iter().filter(|span| span.kind == kind && span.path() == path).count();
    for kind in ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"] {
        let found = ["/before/plain", "/after/plain", "/later/plain"].map(|path| of(kind, path));
        ensure!(found == [0, 1, 1], "{kind}: {found:?}: {spans:#?}");
    }
    ensure!(scene.folder.path().exists(), "the folder is kept until here");
    Ok(())
}

#[test]
fn ipv6_is_seen_with_its_addresses() -> Result<()> {
    let mut scene = Scene::start_at(SocketAddr::from((Ipv6Addr::LOCALHOST, free_port()?)))?;
    let request = format!("GET /six/plain HTTP/1.1\r\nHost: {}\r\n\r\n", scene.server.address);
    scene.server.exchange(&[request.as_bytes()])?;
    let spans = scene.finish(2)?;
    let (server, client) = sides(&spans)?;
    ensure!(server.attribute("client.address") == "::1", "{server:#?}");
    ensure!(client.attribute("network.peer.address") == "::1", "{client:#?}");
    ensure!(server.parent_span_id == client.span_id && server.trace_id == client.trace_id, "{spans:#?}");
    Ok(())
}

#[test]
fn a_traceparent_is_honoured_and_a_query_is_redacted() -> Result<()> {
    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const PARENT: &str = "00f067aa0ba902b7";
    let mut scene = Scene::start()?;
    let request = format!(
        "GET /traced/plain?token=s3cr3t&page=2 HTTP/1.1\r\nHost: awkward\r\ntraceparent: 00-{TRACE}-{PARENT}-01\r\n\
         Authorization: Bearer s3cr3t\r\nCookie: s3cr3t\r\n\r\n"
    );
    scene.server.exchange(&[request.as_bytes()])?;
    // Not valid, so not honoured.
    let zeros = "GET /untraced/plain HTTP/1.1\r\nHost: awkward\r\ntraceparent: 00-00000000000000000000000000000000-00f067aa0ba902b7-01\r\n\r\n";
    scene.server.exchange(&[zeros.as_bytes()])?;
    let spans = scene.finish(4)?;
    let traced: Vec<_> = spans.iter().filter(|span| span.path() == "/traced/plain").cloned().collect();
    let (server, client) = sides(&traced)?;
    ensure!(server.trace_id == TRACE && client.trace_id == TRACE, "{traced:#?}");
    // The client's span is between the span that the header names and the server's.
    ensure!(client.parent_span_id == PARENT, "the client's parent is not that of the header: {traced:#?}");
    ensure!(server.parent_span_id == client.span_id, "{traced:#?}");
    let everything = format!("{spans:?}");
    ensure!(!everything.contains("s3cr3t"), "a secret is told: {traced:#?}");
    ensure!(server.attribute("url.query").contains("token"), "{server:#?}");
    let untraced: Vec<_> = spans.iter().filter(|span| span.path() == "/untraced/plain").cloned().collect();
    let (server, client) = sides(&untraced)?;
    ensure!(
        server.parent_span_id == client.span_id && server.trace_id.bytes().any(|byte| byte != b'0'),
        "{untraced:#?}"
    );
    Ok(())
}

#[test]
fn agent_and_backend_never_trace_themselves() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;
    let endpoint = format!("http://{}", backend.otlp_http);
    let mut agent = Agent::start(folder.path(), &endpoint, &["--otlp-protocol", "http/protobuf"])?;
    let plan = Plan {
        address: sample.address(Server::Go),
        paths: vec!["/stock/1".to_owned()],
        requests: 200,
        rate: 200.0,
        connections: 2,
        keep_alive: true,
    };
    load::run(&plan)?;
    for _ in 0..20 {
        ensure!(agent.metrics()?.contains("coati_agent"), "no metrics");
        ensure!(backend.get("/api/search?q=%7B%7D")?.status == 200, "no answer");
    }
    let stock = format!("{{ kind = server && resource.service.name = \"{}\" }}", Server::Go.service_name());
    ensure!(backend.wait_for_count(&stock, 200, ARRIVES_WITHIN)? == 200, "the traffic of the test was not captured");
    ensure!(
        agent.metric("coati_agent_export_requests_total", &["outcome=\"accepted\""])? >= 1.0,
        "nothing was exported"
    );
    let (agent_id, backend_id) = (agent.process.id(), backend.process.id());
    agent.stop()?;
    for id in [agent_id, backend_id] {
        let own = backend.count(&format!("{{ resource.process.pid = {id} }}"))?;
        ensure!(own == 0, "{own} spans of process {id} (agent {agent_id}, backend {backend_id})");
    }
    Ok(())
}

/// While the agent is stopped the ring buffer fills: what is lost then is counted, exactly.
#[test]
fn captured_and_counted_losses_are_all_requests_when_the_ring_is_full() -> Result<()> {
    const REQUESTS: usize = 40_000;
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &["--max-live-bytes", "1GiB"])?;
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    let address = sample.address(Server::Go);
    let plan = Plan {
        address,
        paths: vec!["/stock/1".to_owned()],
        requests: REQUESTS,
        rate: 1e9,
        connections: 32,
        keep_alive: true,
    };
    let agent_id = Pid::from_raw(agent.process.id().cast_signed()).context("a process id")?;
    kill_process(agent_id, Signal::STOP)?;
    let flood = thread::spawn(move || load::run(&plan));
    thread::sleep(Duration::from_millis(2500));
    kill_process(agent_id, Signal::CONT)?;
    let outcome = flood.join().map_err(|_| anyhow::anyhow!("the flood's thread panicked"))??;
    ensure!(outcome.statuses.len() == REQUESTS, "{} answers", outcome.statuses.len());

    let lost = |metrics: &str| {
        let sum = |name: &str, labels: &[&str]| coati_tests::agent::sum(metrics, name, labels);
        // Without these a span is there, but knows less.
        let partly = ["ring_full_data", "ring_full_end", "ring_full_process", "payload_unreadable"]
            .map(|cause| sum("coati_agent_losses_total", &[&format!("cause=\"{cause}\"")]));
        let whole = sum("coati_agent_losses_total", &[]) - partly.iter().sum::<f64>();
        (whole + sum("coati_agent_spans_dropped_total", &[])) as u64
    };
    // The client names the port in the `Host` header, so both sides know it.
    let query = format!("{{ span.server.port = {} }}", address.port());
    let all = 2 * REQUESTS as u64;
    let begin = Instant::now();
    while backend.count(&query)? + lost(&agent.metrics()?) < all && begin.elapsed() < Duration::from_secs(20) {
        thread::sleep(Duration::from_millis(200));
    }
    let metrics = agent.metrics()?;
    ensure!(agent.stop()?.code() == Some(0), "the agent did not end well:\n{}", agent.process.output());
    let (captured, lost) = (backend.count(&query)?, lost(&metrics));
    // Whatever else speaks HTTP on the node has its losses in the same counters.
    let seen = coati_tests::agent::sum(&metrics, "coati_agent_exchanges_begun_total", &[]) as u64;
    println!(
        "{captured} spans and {lost} counted losses of {all}, and {} requests of others",
        seen.saturating_sub(all)
    );
    ensure!(lost > 0, "nothing was lost, so nothing was tried");
    ensure!(captured <= all, "{captured} spans of {all}: some are invented");
    ensure!(
        (all..=seen).contains(&(captured + lost)),
        "{captured} spans and {lost} counted losses of {all}\n{metrics}"
    );
    // The agent recovers: what comes now is captured.
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    load::run(&Plan {
        address,
        paths: vec!["/stock/2".to_owned()],
        requests: 100,
        rate: 1000.0,
        connections: 2,
        keep_alive: true,
    })?;
    let again = backend.wait_for_count(&query, captured + 200, ARRIVES_WITHIN)?;
    ensure!(again == captured + 200, "{} of 200 spans after the flood", again - captured);
    agent.stop()?;
    Ok(())
}
