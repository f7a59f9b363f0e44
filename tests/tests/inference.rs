//! Guarantee: a request to a model says which model, how many tokens, and when the first one came, without an SDK.
//!
//! A real streaming server replays what the servers of models send; the client measures with its own clock and counts
//! the tokens itself.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coati_tests::agent::{Agent, sum};
use coati_tests::backend::Backend;
use coati_tests::inference::{Inference, Llama};
use coati_tests::process;
use coati_tests::seen::{Seen, spans_of};

/// How far the agent's times may be from the client's own, seconds.
const AGREES: f64 = 0.002;
/// A machine with other work delays now and then the client itself, which reads its clock after it has read the bytes: so
/// much is allowed to one in ten.
const DELAYED: f64 = 0.05;

/// What a request asks for.
#[derive(Clone, Copy, Debug)]
struct Asked {
    path: &'static str,
    streams: bool,
    operation: &'static str,
    provider: &'static str,
    /// The model that answers, as far as it is another one than was asked for.
    suffix: &'static str,
    reason: &'static str,
}

const fn asked(
    path: &'static str,
    streams: bool,
    operation: &'static str,
    provider: &'static str,
    suffix: &'static str,
    reason: &'static str,
) -> Asked {
    Asked { path, streams, operation, provider, suffix, reason }
}

const ALL: [Asked; 12] = [
    asked("/api/chat", true, "chat", "ollama", "", "stop"),
    asked("/api/generate", true, "text_completion", "ollama", "", "stop"),
    asked("/api/generate", false, "text_completion", "ollama", "", "length"),
    asked("/v1/chat/completions", true, "chat", "openai", "-0613", "stop"),
    asked("/v1/chat/completions", false, "chat", "openai", "-0613", "length"),
    asked("/v1/completions", true, "text_completion", "openai", "-0613", "stop"),
    asked("/completion", true, "text_completion", "llama_cpp", "", "eos"),
    asked("/completion", false, "text_completion", "llama_cpp", "", "limit"),
    asked("/v1/messages", true, "chat", "anthropic", "-20260101", "end_turn"),
    asked("/v1/messages", false, "chat", "anthropic", "-20260101", "end_turn"),
    asked("/api/embed", false, "embeddings", "ollama", "", ""),
    asked("/v1/embeddings", false, "embeddings", "openai", "-v1", ""),
];

/// What the client saw.
#[derive(Debug)]
struct Measured {
    /// Seconds to the first byte behind the head.
    first: f64,
    /// Seconds to the end.
    whole: f64,
    body: Vec<u8>,
}

/// Sends a request and reads its answer to the end of the connection; the body goes in a call of its own, as many
/// clients send it.
fn ask(address: SocketAddr, path: &str, headers: &str, body: &str) -> Result<Measured> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: models\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let begin = Instant::now();
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let (mut answer, mut part, mut first) = (Vec::new(), vec![0; 64 << 10], None);
    loop {
        let count = stream.read(&mut part)?;
        if count == 0 {
            break;
        }
        answer.extend_from_slice(part.get(..count).context("a read fits its buffer")?);
        if first.is_none() {
            let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
            first = end.filter(|end| answer.len() > end + 4).map(|_| begin.elapsed().as_secs_f64());
        }
    }
    let whole = begin.elapsed().as_secs_f64();
    Ok(Measured { first: first.context("an answer without a body")?, whole, body: answer })
}

#[test]
fn requests_to_models_explain_themselves() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let server = Inference::start(folder.path())?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    // The first requests of a process are slow for reasons of its own.
    ask(server.address, "/api/tags", "", "{}")?;

    let mut measured = Vec::new();
    for (number, asked) in ALL.iter().enumerate() {
        for tokens in [3, 40, 300] {
            let model = format!("model-{number}-{tokens}");
            let headers = format!(
                "x-tokens: {tokens}\r\nx-prompt-tokens: {}\r\nx-load-ms: 20\r\nx-prompt-ms: 30\r\nx-gap-us: 1000\r\n",
                tokens * 7
            );
            let body = format!("{{\"model\":\"{model}\",\"stream\":{},\"prompt\":\"secret\"}}", asked.streams);
            measured.push((asked, model, tokens, ask(server.address, asked.path, &headers, &body)?));
        }
    }
    let query = "{ kind = server && span.gen_ai.request.model != nil }";
    backend.wait_for_count(query, measured.len() as u64, Duration::from_secs(15))?;
    let page = agent.metrics()?;
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());

    let (mut broken, mut differences) = (Vec::new(), Vec::new());
    for (asked, model, tokens, measured) in &measured {
        let spans = spans_of(&backend, &format!("{{ span.gen_ai.request.model = \"{model}\" }}"))?;
        if let Err(error) = check(asked, model, *tokens, measured, &spans, &mut differences) {
            broken.push(format!("{asked:?}, {tokens} tokens: {error:#}"));
        }
    }
    ensure!(broken.is_empty(), "{} of {} are wrong:\n{}", broken.len(), measured.len(), broken.join("\n"));

    differences.sort_by(f64::total_cmp);
    let most = differences.get(differences.len() * 9 / 10).copied().unwrap_or(f64::MAX);
    println!("times differ from the client's by {most} s at most in nine of ten, {:?} s at most", differences.last());
    ensure!(most < AGREES, "times differ: {differences:?}");

    let counted = |name: &str, labels: &[&str]| sum(&page, name, labels);
    let all = measured.len() as f64;
    ensure!((counted("gen_ai_server_request_duration_seconds_count", &[]) - all).abs() < 0.1, "durations:\n{page}");
    let tokens: f64 = measured.iter().map(|(_, _, tokens, _)| f64::from(*tokens) * 7.0).sum();
    let labels = ["gen_ai_token_type=\"input\"", "coati_role=\"client\""];
    ensure!((counted("gen_ai_client_token_usage_sum", &labels) - tokens).abs() < 0.1, "tokens:\n{page}");
    ensure!(counted("gen_ai_server_time_to_first_token_seconds_count", &[]) > 10.0, "first tokens:\n{page}");
    ensure!(counted("gen_ai_server_time_per_output_token_seconds_count", &[]) > 10.0, "per token:\n{page}");
    ensure!(!page.contains("secret"), "a prompt on the page");
    Ok(())
}

fn check(
    asked: &Asked,
    model: &str,
    tokens: u32,
    measured: &Measured,
    spans: &[Seen],
    differences: &mut Vec<f64>,
) -> Result<()> {
    for kind in ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"] {
        let spans: Vec<&Seen> = spans.iter().filter(|span| span.kind == kind).collect();
        let [span] = spans[..] else { anyhow::bail!("{} spans of kind {kind}", spans.len()) };
        let is = |key: &str, expected: &str| -> Result<()> {
            let found = span.attribute(key);
            ensure!(found == expected, "{kind}: {key} is {found:?}, not {expected:?}");
            Ok(())
        };
        let generates = asked.operation != "embeddings";
        is("gen_ai.operation.name", asked.operation)?;
        is("gen_ai.provider.name", asked.provider)?;
        is("gen_ai.request.model", model)?;
        is("gen_ai.response.model", &format!("{model}{}", asked.suffix))?;
        is("gen_ai.usage.input_tokens", &(tokens * 7).to_string())?;
        is("gen_ai.usage.output_tokens", &if generates { tokens.to_string() } else { String::new() })?;
        is("gen_ai.request.stream", if generates { if asked.streams { "true" } else { "false" } } else { "" })?;
        ensure!(span.attribute("gen_ai.response.finish_reasons").contains(asked.reason), "reason");
        ensure!(!format!("{span:?}").contains("secret"), "a prompt in a span");
        if asked.streams {
            let first: f64 = span.attribute("gen_ai.response.time_to_first_chunk").parse()?;
            ensure!((first - measured.first).abs() < DELAYED, "{kind}: first token {first} s, not {}", measured.first);
            differences.push((first - measured.first).abs());
            let per_token: f64 = span.attribute("coati.inference.time_per_output_token").parse()?;
            let expected = (measured.whole - measured.first) / f64::from(tokens - 1);
            ensure!((per_token - expected).abs() < DELAYED, "{kind}: {per_token} s a token, not {expected}");
            differences.push((per_token - expected).abs());
        } else {
            is("gen_ai.response.time_to_first_chunk", "")?;
        }
    }
    if asked.provider == "ollama" && asked.operation != "embeddings" {
        // No phase begins before its request. Node's timers count whole milliseconds: what the server calls 50 of them may have
        // been 49, and loading, which is laid out last, is what there was less.
        for (name, ms, early_ns) in [("load", 20, 1_000_000), ("prompt", 30, 0)] {
            let phase = spans.iter().find(|span| span.name == name).with_context(|| format!("no phase {name}"))?;
            let server = spans.iter().find(|span| span.kind == "SPAN_KIND_SERVER").context("no server")?;
            ensure!(phase.parent_span_id == server.span_id, "{name} is not below its server");
            let expected_ns = ms * 1_000_000;
            let may_be = expected_ns - early_ns - 1..expected_ns + 2;
            ensure!(may_be.contains(&phase.duration_ns), "{name}: {} ns", phase.duration_ns);
        }
        ensure!(spans.iter().any(|span| span.name == "generation"), "no generation");
    }
    Ok(())
}

/// A long stream is measured right, although only its start and its end are ever copied to the agent.
#[test]
fn a_stream_of_a_hundred_thousand_tokens_is_counted() -> Result<()> {
    const TOKENS: usize = 100_000;
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let server = Inference::start(folder.path())?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    for (number, path) in ["/api/chat", "/v1/chat/completions"].iter().enumerate() {
        let headers = format!("x-tokens: {TOKENS}\r\nx-prompt-tokens: 5\r\nx-prompt-ms: 50\r\n");
        let body = format!("{{\"model\":\"long-{number}\",\"stream\":true}}");
        let measured = ask(server.address, path, &headers, &body)?;
        let counted = measured.body.windows(5).filter(|window| window == b"\" t1\"" || window == b"\" t99").count();
        ensure!(counted > 0, "the client saw no tokens");
        let query = format!("{{ kind = server && span.gen_ai.request.model = \"long-{number}\" }}");
        ensure!(backend.wait_for_count(&query, 1, Duration::from_secs(15))? == 1, "no span of {path}");
        thread::sleep(Duration::from_millis(300));
        let spans = spans_of(&backend, &query)?;
        for kind in ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"] {
            let span = spans.iter().find(|span| span.kind == kind).with_context(|| format!("{path}: no {kind}"))?;
            println!("{path} {kind}: {:?}, the client {} s {} s", span.attributes, measured.first, measured.whole);
            ensure!(span.attribute("gen_ai.usage.output_tokens") == TOKENS.to_string(), "{path} {kind}: {span:?}");
            let first: f64 = span.attribute("gen_ai.response.time_to_first_chunk").parse()?;
            ensure!((first - measured.first).abs() < DELAYED, "{kind}: first token {first} s, not {}", measured.first);
            let seconds = span.duration_ns as f64 / 1e9;
            ensure!((seconds - measured.whole).abs() < DELAYED, "{kind}: {seconds} s, not {}", measured.whole);
        }
    }
    let records = agent.metric("coati_agent_records_total", &[])?;
    // A few hundred are theirs; whatever else runs on the machine is among them.
    ensure!(records < TOKENS as f64 / 5.0, "{records} records for two streams");
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());
    Ok(())
}

/// A real server and a real, if tiny, model: the times are those of the client's own clock, the tokens those that the server
/// counts, and of a stream, which it does not count, those that the client has read.
#[test]
fn llama_cpp_explains_itself() -> Result<()> {
    let folder = process::folder()?;
    let Some(server) = Llama::start(folder.path())? else {
        println!("NOT COVERED: llama.cpp's own server; its wheel is for Python 3.11 on x86-64 (`cargo xtask setup`)");
        return Ok(());
    };
    let backend = Backend::start(folder.path(), &[])?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    let mut measured = Vec::new();
    for (number, tokens) in [5_u32, 60, 200, 5, 60].into_iter().enumerate() {
        for (path, prompt, streams) in [
            ("/v1/chat/completions", r#""messages":[{"role":"user","content":"secret"}]"#, true),
            ("/v1/completions", r#""prompt":"secret""#, true),
            ("/v1/completions", r#""prompt":"secret""#, false),
        ] {
            let model = format!("random-{number}-{}-{streams}", path.len());
            let body = format!(r#"{{"model":"{model}",{prompt},"max_tokens":{tokens},"stream":{streams}}}"#);
            let answer = ask(server.address, path, "", &body)?;
            measured.push((model, path, streams, answer));
        }
    }
    let query = "{ kind = server && span.gen_ai.request.model =~ \"random-.*\" }";
    backend.wait_for_count(query, measured.len() as u64, Duration::from_secs(15))?;
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());

    let mut differences = Vec::new();
    for (model, path, streams, measured) in &measured {
        let spans = spans_of(&backend, &format!("{{ span.gen_ai.request.model = \"{model}\" }}"))?;
        for kind in ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"] {
            let span = spans.iter().find(|span| span.kind == kind).with_context(|| format!("{model}: no {kind}"))?;
            check_llama(span, path, *streams, measured, &mut differences).with_context(|| format!("{span:#?}"))?;
        }
    }
    differences.sort_by(f64::total_cmp);
    let most = differences.get(differences.len() * 9 / 10).copied().unwrap_or(f64::MAX);
    println!(
        "llama.cpp: {} times differ by {most} s at most in nine of ten, {:?} s at most",
        differences.len(),
        differences.last()
    );
    ensure!(most < AGREES, "times differ: {differences:?}");
    Ok(())
}

fn check_llama(span: &Seen, path: &str, streams: bool, measured: &Measured, differences: &mut Vec<f64>) -> Result<()> {
    let body = String::from_utf8_lossy(&measured.body);
    ensure!(span.attribute("gen_ai.request.stream") == streams.to_string(), "streams");
    ensure!(!format!("{span:?}").contains("secret"), "a prompt in a span");
    if streams {
        let first: f64 = span.attribute("gen_ai.response.time_to_first_chunk").parse()?;
        ensure!((first - measured.first).abs() < DELAYED, "first token {first} s, not {}", measured.first);
        // The server's begins when the server reads the request: later, if it is at something else.
        if span.kind == "SPAN_KIND_CLIENT" {
            differences.push((first - measured.first).abs());
        }
        ensure!(body.contains("[DONE]"), "a stream to its end");
        let reason = if body.contains("\"finish_reason\": \"stop\"") { "stop" } else { "length" };
        ensure!(span.attribute("gen_ai.response.finish_reasons").contains(reason), "why it ended: {path}");
        return Ok(());
    }
    let usage = |key: &str| -> Result<String> {
        let (_, behind) = body.split_once(&format!("\"{key}\":")).with_context(|| format!("no {key} in {body}"))?;
        Ok(behind.chars().take_while(char::is_ascii_digit).collect())
    };
    for (key, counted) in [("input", "prompt_tokens"), ("output", "completion_tokens")] {
        let (said, counted) = (span.attribute(&format!("gen_ai.usage.{key}_tokens")), usage(counted)?);
        ensure!(said == counted, "{key}: {said:?} tokens, not {counted}");
    }
    Ok(())
}

/// Prompts and answers are recorded where that is switched on, and nothing of inference is said where it is switched off.
#[test]
fn content_is_recorded_only_if_that_is_switched_on() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let server = Inference::start(folder.path())?;
    let body = |model: &str| {
        format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"a secret question"}}],"stream":true}}"#)
    };
    for (model, variables) in [
        ("recorded", vec![("COATI_AGENT_INFERENCE_RECORD_CONTENT", "attributes".to_owned())]),
        ("off", vec![("COATI_AGENT_INFERENCE", "false".to_owned())]),
    ] {
        let endpoint = format!("http://{}", backend.grpc);
        let mut agent = Agent::start_with(folder.path(), &endpoint, &[], &variables)?;
        for tokens in [3, 2000] {
            let headers = format!("x-tokens: {tokens}\r\nx-name: {model}\r\n");
            ask(server.address, "/api/chat", &headers, &body(model))?;
        }
        thread::sleep(Duration::from_millis(500));
        ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());
    }
    let query = "{ kind = server && span.url.path = \"/api/chat\" }";
    backend.wait_for_count(query, 4, Duration::from_secs(15))?;
    let mut spans = spans_of(&backend, query)?;
    spans.retain(|span| span.kind == "SPAN_KIND_SERVER");
    spans.sort_by_key(|span| span.start_ns);
    let [short, long, off @ ..] = &spans[..] else { anyhow::bail!("{} spans", spans.len()) };
    ensure!(off.len() == 2 && off.iter().all(|span| !format!("{span:?}").contains("gen_ai")), "{off:?}");
    for span in [short, long] {
        let input = r#"[{"parts":[{"content":"a secret question","type":"text"}],"role":"user"}]"#;
        ensure!(span.attribute("gen_ai.input.messages") == input, "{span:?}");
        ensure!(span.attribute("coati.inference.input.truncated").is_empty(), "{span:?}");
    }
    let answer = r#"[{"finish_reason":"stop","parts":[{"content":" t0 t1 t2","type":"text"}],"role":"assistant"}]"#;
    ensure!(short.attribute("gen_ai.output.messages") == answer, "{}", short.attribute("gen_ai.output.messages"));
    ensure!(short.attribute("coati.inference.output.truncated").is_empty(), "{short:?}");
    let long_answer = long.attribute("gen_ai.output.messages");
    ensure!(
        long_answer.contains(" t0 t1") && long_answer.contains(" … ") && long_answer.contains(" t1999\""),
        "{long_answer}"
    );
    ensure!(long.attribute("coati.inference.output.truncated") == "true", "{long:?}");
    Ok(())
}
