//! An open-loop client: every request has a time at which it is meant to be sent, and latency counts from that time,
//! so that a slow server cannot hide by slowing its client down.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What to send.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Server.
    pub address: SocketAddr,
    /// Paths, taken in turn.
    pub paths: Vec<String>,
    /// Requests in all.
    pub requests: usize,
    /// Requests per second in all.
    pub rate: f64,
    /// Connections at once, among which they are shared out.
    pub connections: usize,
    /// Whether connections stay open; else there is a new one for each request.
    pub keep_alive: bool,
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Status codes, one for each request that was answered.
    pub statuses: Vec<u16>,
    /// Nanoseconds from the intended time to the last byte, sorted.
    pub latencies: Vec<u64>,
    /// Wall-clock time of the whole run.
    pub elapsed: Duration,
}

impl Outcome {
    /// The `q`-quantile of the latencies in microseconds (nearest rank).
    pub fn latency_us(&self, q: f64) -> f64 {
        let rank = ((self.latencies.len() as f64 * q).ceil() as usize).clamp(1, self.latencies.len().max(1)) - 1;
        self.latencies.get(rank).map_or(f64::NAN, |&ns| ns as f64 / 1000.0)
    }
}

/// Sends what the plan says; fails if any request is not answered.
pub fn run(plan: &Plan) -> Result<Outcome> {
    if plan.paths.is_empty() || plan.connections == 0 {
        bail!("a plan needs a path and a connection: {plan:?}");
    }
    let start = Instant::now() + Duration::from_millis(50);
    let workers: Vec<_> = (0..plan.connections)
        .map(|worker| {
            let plan = plan.clone();
            thread::spawn(move || connection(&plan, worker, start))
        })
        .collect();
    let mut outcome = Outcome::default();
    for worker in workers {
        let part = worker.join().map_err(|_| anyhow::anyhow!("a connection's thread panicked"))??;
        outcome.statuses.extend(part.statuses);
        outcome.latencies.extend(part.latencies);
    }
    outcome.elapsed = start.elapsed();
    outcome.latencies.sort_unstable();
    Ok(outcome)
}

fn connection(plan: &Plan, worker: usize, start: Instant) -> Result<Outcome> {
    let mut stream = connect(plan)?;
    let mut outcome = Outcome::default();
    let mut buffer = Vec::with_capacity(16 << 10);
    for number in (worker..plan.requests).step_by(plan.connections) {
        let due = start + Duration::from_secs_f64(number as f64 / plan.rate);
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if !plan.keep_alive && number != worker {
            stream = connect(plan)?;
        }
        let path = plan.paths.get(number % plan.paths.len()).map_or("/", String::as_str);
        let close = if plan.keep_alive { "" } else { "Connection: close\r\n" };
        let request = format!("GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: coati-load\r\n{close}\r\n", plan.address);
        stream.write_all(request.as_bytes()).with_context(|| format!("request {number} {path}"))?;
        outcome.statuses.push(answer(&mut stream, &mut buffer).with_context(|| format!("answer {number} {path}"))?);
        outcome.latencies.push(due.elapsed().as_nanos() as u64);
    }
    Ok(outcome)
}

fn connect(plan: &Plan) -> Result<TcpStream> {
    let stream = TcpStream::connect(plan.address).with_context(|| plan.address.to_string())?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

/// Reads one whole answer: by content length or chunks.
fn answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<u16> {
    buffer.clear();
    loop {
        let mut headers = [httparse::EMPTY_HEADER; 32];
        let mut response = httparse::Response::new(&mut headers);
        if let httparse::Status::Complete(head) = response.parse(buffer)? {
            let status = response.code.context("no status")?;
            let header = |name: &str| {
                response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
            };
            let body = buffer.get(head..).unwrap_or_default();
            let whole = if matches!(status, 204 | 304) {
                true
            } else if let Some(length) = header("content-length") {
                body.len() >= std::str::from_utf8(length)?.trim().parse::<usize>()?
            } else if header("transfer-encoding").is_some() {
                body.ends_with(b"0\r\n\r\n")
            } else {
                bail!("an answer without a length: {:?}", response.headers);
            };
            if whole {
                return Ok(status);
            }
        }
        let mut piece = [0; 16 << 10];
        match stream.read(&mut piece) {
            Ok(0) => bail!("connection closed in the middle of an answer"),
            Ok(count) => buffer.extend_from_slice(piece.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
