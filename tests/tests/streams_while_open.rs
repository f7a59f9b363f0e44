//! Guarantee: a stream is seen in the backend while it runs, and once when it is over, whatever happens to the backend
//! meanwhile.
//!
//! A real server streams tokens for some seconds. Blocks are cut so early that what was sent of its spans lies in several
//! of them, and the backend is killed in between.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::inference::Inference;
use coati_tests::process;
use coati_tests::seen::{Seen, spans_of};

const TOKENS: u32 = 9;

/// Asks for tokens, one every 400 ms; the bytes of the answer.
fn ask(address: SocketAddr) -> Result<usize> {
    let mut stream = TcpStream::connect(address)?;
    let body = "{\"model\":\"slow\",\"prompt\":\"x\"}";
    let head = format!(
        "POST /api/generate HTTP/1.1\r\nhost: models\r\nconnection: close\r\nx-tokens: {TOKENS}\r\nx-gap-us: 400000\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    Ok(stream.read_to_end(&mut Vec::new())?)
}

#[test]
fn a_stream_is_seen_while_it_runs_and_once_when_it_is_over() -> Result<()> {
    let folder = process::folder()?;
    let cuts = ["--cut-idle", "100ms", "--cut-max-age", "200ms", "--cut-max-wait", "100ms"];
    let mut backend = Backend::start(folder.path(), &cuts)?;
    let server = Inference::start(folder.path())?;
    let variables = [("COATI_AGENT_PARTIAL_AFTER", "500ms".to_owned())];
    let endpoint = format!("http://{}", backend.grpc);
    let mut agent = Agent::start_with(folder.path(), &endpoint, &["--print", "text"], &variables)?;

    let address = server.address;
    let begin = Instant::now();
    let client = thread::spawn(move || ask(address));
    let open = "{ span.coati.span.partial = true && span.gen_ai.request.model = \"slow\" }";
    ensure!(
        backend.wait_for_count(open, 2, Duration::from_secs(4))? == 2,
        "nothing is seen:\n{}",
        agent.process.output()
    );
    let first = spans_of(&backend, open)?;
    let seen_after = begin.elapsed();
    backend.process.kill()?;
    backend.restart()?;
    let longer = "{ span.coati.span.partial = true && span.gen_ai.request.model = \"slow\" && duration > 1500ms }";
    ensure!(backend.wait_for_count(longer, 2, Duration::from_secs(4))? == 2, "what came later is not seen");
    ensure!(backend.count(open)? == 2, "both versions are seen");
    ensure!(!client.is_finished(), "it was over already");
    client.join().map_err(|_| anyhow!("the client has panicked"))??;

    let over = format!("{{ span.gen_ai.usage.output_tokens = {TOKENS} && span.coati.span.partial = nil }}");
    ensure!(backend.wait_for_count(&over, 2, Duration::from_secs(5))? == 2, "the end is not seen");
    ensure!(backend.count(open)? == 0, "it seems to be open still");
    ensure!(backend.count("{ span.gen_ai.request.model = \"slow\" }")? == 2, "it is there more than once");
    let metrics = backend
        .get("/api/metrics/query?since=5m&q=%7Bspan.gen_ai.request.model%3D%22slow%22%7D%7Ccount_over_time()")?;
    ensure!(metrics.text().contains("\"value\":2"), "it counts more than once: {}", metrics.text());

    let all = spans_of(&backend, &over)?;
    for kind in ["SPAN_KIND_CLIENT", "SPAN_KIND_SERVER"] {
        let of = |spans: &[Seen]| spans.iter().find(|span| span.kind == kind).cloned();
        let (Some(first), Some(last)) = (of(&first), of(&all)) else {
            return Err(anyhow!("no {kind}: {first:?} {all:?}"));
        };
        ensure!((&first.trace_id, &first.span_id, first.start_ns) == (&last.trace_id, &last.span_id, last.start_ns));
        ensure!(first.attribute("http.response.status_code") == "200", "{first:?}");
        ensure!(first.duration_ns < last.duration_ns && last.duration_ns > 3_000_000_000, "{first:?} {last:?}");
    }
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());
    let printed = agent.process.output();
    ensure!(printed.lines().any(|line| line.contains("/api/generate 200") && line.contains("so far")), "{printed}");
    println!("seen {:.1} s after its begin, {TOKENS} tokens", seen_after.as_secs_f64());
    Ok(())
}
