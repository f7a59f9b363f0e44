//! Guarantee: what servers of models document of their streams is understood, however their bytes are cut into calls: one by
//! one, in pieces of any size, or event by event; chunked, or until the connection is closed; to the end, or not.
//!
//! A server in this process writes the streams with known pauses; the client has a clock of its own, and counts the tokens
//! that it reads.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::process;
use coati_tests::seen::{Seen, spans_of};
use serde_json::{Value, json};

/// How far the agent's times may be from the client's, seconds; in one of ten the client itself may be late.
const AGREES: f64 = 0.002;
const DELAYED: f64 = 0.05;
/// Before the response's head, before its first event, and before each further one.
const PAUSES_MS: [u64; 3] = [10, 8, 2];
const TOKENS: usize = 7;
const PROMPT: usize = 26;

/// How the bytes of a response are cut into calls.
#[derive(Clone, Copy, Debug)]
enum Split {
    Bytes,
    Random,
    Events,
}

/// How a stream ends.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Ends {
    #[default]
    Chunked,
    /// With the connection, as it does for a client of HTTP/1.0.
    Closed,
    /// Too early.
    Cut,
}

/// A documented stream, and what is to be known of it.
#[derive(Clone, Debug, Default)]
struct Stream {
    path: &'static str,
    operation: &'static str,
    provider: &'static str,
    events: Vec<String>,
    /// Events before the first token.
    silent: usize,
    ends: Ends,
    /// Of prompt and answer, where the server tells.
    tokens: [Option<usize>; 2],
    reason: &'static str,
    error: &'static str,
}

fn line(document: &Value) -> String {
    format!("{document}\n")
}

fn data(document: &Value) -> String {
    format!("data: {document}\n\n")
}

/// An event whose name is the document's type.
fn named(document: &Value) -> String {
    format!("event: {}\ndata: {document}\n\n", document.get("type").and_then(Value::as_str).unwrap_or_default())
}

fn ollama(path: &'static str, model: &str) -> Stream {
    let is_chat = path == "/api/chat";
    let part = |text: &str| {
        let (key, answer) = if is_chat {
            ("message", json!({"role": "assistant", "content": text}))
        } else {
            ("response", json!(text))
        };
        json!({"model": model, "created_at": "2026-08-04T08:52:19.385406455-07:00", (key): answer, "done": false})
    };
    let mut events: Vec<String> = (0..TOKENS).map(|number| line(&part(&format!(" t{number}")))).collect();
    let mut last = part("");
    let end = json!({
        "done": true, "done_reason": "stop", "context": [1, 2, 3], "total_duration": 4_883_583_458_u64,
        "load_duration": 1_334_875, "prompt_eval_count": PROMPT, "prompt_eval_duration": 3_425_460,
        "eval_count": TOKENS, "eval_duration": 12_355_990
    });
    if let (Some(last), Value::Object(mut end)) = (last.as_object_mut(), end) {
        last.append(&mut end);
    }
    events.push(line(&last));
    let operation = if is_chat { "chat" } else { "text_completion" };
    let tokens = [Some(PROMPT), Some(TOKENS)];
    Stream { path, operation, provider: "ollama", events, tokens, reason: "stop", ..Stream::default() }
}

fn openai(path: &'static str, model: &str, counts: bool) -> Stream {
    let is_chat = path == "/v1/chat/completions";
    let object = if is_chat { "chat.completion.chunk" } else { "text_completion" };
    let chunk = |choices: Value, usage: Value| {
        data(&json!({"id": "c-1", "object": object, "created": 1, "model": model, "choices": choices, "usage": usage}))
    };
    let choice = |text: Option<String>, reason: Option<&str>| {
        let content = text.map_or_else(|| json!({}), |text| json!({"content": text}));
        let content = if is_chat { content } else { content.get("content").cloned().unwrap_or_else(|| json!("")) };
        json!([{"index": 0, (if is_chat { "delta" } else { "text" }): content, "finish_reason": reason}])
    };
    let mut events = Vec::new();
    if is_chat {
        let role = json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": null}]);
        events.push(chunk(role, Value::Null));
    }
    events.extend((0..TOKENS).map(|number| chunk(choice(Some(format!(" t{number}")), None), Value::Null)));
    events.push(chunk(choice(None, Some("length")), Value::Null));
    if counts {
        let usage = json!({"prompt_tokens": PROMPT, "completion_tokens": TOKENS, "total_tokens": PROMPT + TOKENS});
        events.push(chunk(json!([]), usage));
    }
    events.push("data: [DONE]\n\n".to_owned());
    let tokens = if counts { [Some(PROMPT), Some(TOKENS)] } else { [None; 2] };
    let operation = if is_chat { "chat" } else { "text_completion" };
    let silent = usize::from(is_chat);
    Stream { path, operation, provider: "openai", events, silent, tokens, reason: "length", ..Stream::default() }
}

fn responses(model: &str) -> Stream {
    let response = |status: &str, usage: Value| json!({"id": "r-1", "object": "response", "status": status, "error": null, "model": model, "usage": usage});
    let mut events = vec![
        named(&json!({"type": "response.created", "response": response("in_progress", Value::Null)})),
        named(&json!({"type": "response.output_item.added", "item": {"type": "message", "content": []}})),
    ];
    let silent = events.len();
    let delta = |number| json!({"type": "response.output_text.delta", "delta": format!(" t{number}")});
    events.extend((0..TOKENS).map(|number| named(&delta(number))));
    let usage = json!({
        "input_tokens": PROMPT, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": TOKENS, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": PROMPT + TOKENS
    });
    events.push(named(&json!({"type": "response.completed", "response": response("completed", usage)})));
    let tokens = [Some(PROMPT), Some(TOKENS)];
    Stream { path: "/v1/responses", operation: "chat", provider: "openai", events, silent, tokens, ..Stream::default() }
}

fn anthropic(model: &str) -> Stream {
    let usage = json!({"input_tokens": PROMPT, "output_tokens": 1});
    let message =
        json!({"id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [], "usage": usage});
    let mut events = vec![
        named(&json!({"type": "message_start", "message": message})),
        named(&json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}})),
        named(&json!({"type": "ping"})),
    ];
    let silent = events.len();
    let delta = |number| json!({"type": "text_delta", "text": format!(" t{number}")});
    events.extend(
        (0..TOKENS).map(|number| named(&json!({"type": "content_block_delta", "index": 0, "delta": delta(number)}))),
    );
    events.push(named(&json!({"type": "content_block_stop", "index": 0})));
    let end = json!({"stop_reason": "end_turn", "stop_sequence": null});
    events.push(named(&json!({"type": "message_delta", "delta": end, "usage": {"output_tokens": TOKENS}})));
    events.push(named(&json!({"type": "message_stop"})));
    Stream {
        path: "/v1/messages",
        operation: "chat",
        provider: "anthropic",
        events,
        silent,
        tokens: [Some(PROMPT), Some(TOKENS)],
        reason: "end_turn",
        ..Stream::default()
    }
}

fn llama_cpp(model: &str) -> Stream {
    let part = |number| json!({"index": 0, "content": format!(" t{number}"), "tokens": [number], "stop": false});
    let mut events: Vec<String> = (0..TOKENS).map(|number| data(&part(number))).collect();
    events.push(data(&json!({
        "index": 0, "content": "", "stop": true, "model": model, "stop_type": "eos", "tokens_predicted": TOKENS,
        "tokens_evaluated": PROMPT, "timings": {
            "cache_n": 4, "prompt_n": PROMPT - 4, "prompt_ms": 5.25, "predicted_n": TOKENS, "predicted_ms": 12.5
        }
    })));
    let tokens = [Some(PROMPT), Some(TOKENS)];
    Stream {
        path: "/completion",
        operation: "text_completion",
        provider: "llama_cpp",
        events,
        tokens,
        reason: "eos",
        ..Stream::default()
    }
}

impl Stream {
    /// It ends with an event that says what went wrong.
    fn fails(mut self, event: String, error: &'static str) -> Self {
        self.events.truncate(self.silent + 3);
        self.events.push(event);
        (self.error, self.reason) = (error, "");
        // Anthropic has told of the prompt by then.
        let [prompt, _] = self.tokens;
        self.tokens = [prompt.filter(|_| self.provider == "anthropic"), None];
        self
    }

    fn ends(mut self, ends: Ends) -> Self {
        self.ends = ends;
        if ends == Ends::Cut {
            if let Some(last) = self.events.last_mut() {
                last.truncate(last.len() / 3);
            }
            (self.error, self.reason, self.tokens) = ("connection_closed", "", [None; 2]);
        }
        self
    }

    /// Head and events on the wire.
    fn framed(&self) -> (String, Vec<Vec<u8>>) {
        let kind = if self.provider == "ollama" { "application/x-ndjson" } else { "text/event-stream" };
        let framing = if self.ends == Ends::Closed { "connection: close" } else { "transfer-encoding: chunked" };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\n{framing}\r\n\r\n");
        let framed = |(number, event): (usize, &String)| match self.ends {
            Ends::Closed => event.clone().into_bytes(),
            // Of this chunk there was to be more.
            Ends::Cut if number + 1 == self.events.len() => format!("{:x}\r\n{event}", event.len() + 40).into_bytes(),
            Ends::Cut | Ends::Chunked => format!("{:x}\r\n{event}\r\n", event.len()).into_bytes(),
        };
        let mut events: Vec<Vec<u8>> = self.events.iter().enumerate().map(framed).collect();
        if self.ends == Ends::Chunked {
            events.push(b"0\r\n\r\n".to_vec());
        }
        (head, events)
    }
}

fn all(model: &str) -> Vec<Stream> {
    let overloaded = json!({"type": "error", "error": {"type": "overloaded_error", "message": "a secret"}});
    let out_of_memory = json!({"error": "a secret of this length"});
    let server_error = json!({"error": {"message": "a secret", "type": "server_error", "code": null}});
    vec![
        ollama("/api/generate", model),
        ollama("/api/generate", model).ends(Ends::Closed),
        ollama("/api/generate", model).ends(Ends::Cut),
        ollama("/api/chat", model),
        ollama("/api/chat", model).fails(line(&out_of_memory), "_OTHER"),
        openai("/v1/chat/completions", model, true),
        openai("/v1/chat/completions", model, true).ends(Ends::Closed),
        openai("/v1/chat/completions", model, false),
        openai("/v1/chat/completions", model, true).fails(data(&server_error), "server_error"),
        openai("/v1/completions", model, true),
        responses(model),
        anthropic(model),
        anthropic(model).fails(named(&overloaded), "overloaded_error"),
        llama_cpp(model),
        llama_cpp(model).ends(Ends::Closed),
    ]
}

/// Answers one request with a stream.
fn serve(listener: &TcpListener, stream: &Stream, split: Split, random: &mut fastrand::Rng) -> Result<()> {
    let (mut connection, _) = listener.accept()?;
    connection.set_nodelay(true)?;
    let (mut request, mut part) = (Vec::new(), [0; 4096]);
    while !request.ends_with(b"}") {
        let count = connection.read(&mut part)?;
        ensure!(count > 0, "the client has gone");
        request.extend_from_slice(part.get(..count).context("a read fits its buffer")?);
    }
    let (head, events) = stream.framed();
    let [before_head, before_first, before_each] = PAUSES_MS.map(Duration::from_millis);
    thread::sleep(before_head);
    connection.write_all(head.as_bytes())?;
    for (number, event) in events.iter().enumerate() {
        thread::sleep(if number == 0 { before_first } else { before_each });
        let mut rest = event.as_slice();
        while !rest.is_empty() {
            let size = match split {
                Split::Bytes => 1,
                Split::Random => random.usize(1..60),
                Split::Events => rest.len(),
            };
            let (piece, later) = rest.split_at(size.min(rest.len()));
            connection.write_all(piece)?;
            rest = later;
        }
    }
    connection.shutdown(Shutdown::Both)?;
    Ok(())
}

/// What the client saw, seconds from its first byte on.
#[derive(Debug)]
struct Measured {
    body: Vec<u8>,
    /// How much of the body was there, and when.
    reads: Vec<(usize, f64)>,
}

impl Measured {
    /// When the byte at `place` of the body came.
    fn at(&self, place: usize) -> Result<f64> {
        let read = self.reads.iter().find(|(length, _)| *length > place);
        read.map(|(_, seconds)| *seconds).context("it did not come")
    }

    fn tokens(&self) -> usize {
        self.body.windows(3).filter(|window| window == b"\" t").count()
    }
}

fn ask(address: SocketAddr, path: &str, model: &str) -> Result<Measured> {
    let mut stream = TcpStream::connect(address)?;
    let body = format!("{{\"model\":\"{model}\",\"prompt\":\"secret\",\"stream\":true}}");
    let length = body.len();
    let request = format!("POST {path} HTTP/1.1\r\nhost: models\r\ncontent-length: {length}\r\n\r\n{body}");
    let begin = Instant::now();
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut part, mut reads) = (Vec::new(), vec![0; 64 << 10], Vec::new());
    let mut head = None;
    loop {
        // A stream that is cut may end with a reset.
        let count = stream.read(&mut part).unwrap_or(0);
        if count == 0 {
            break;
        }
        answer.extend_from_slice(part.get(..count).context("a read fits its buffer")?);
        head = head.or_else(|| Some(answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4));
        if let Some(head) = head {
            reads.push((answer.len() - head, begin.elapsed().as_secs_f64()));
        }
    }
    Ok(Measured { body: answer.split_off(head.context("no head")?), reads })
}

#[test]
fn documented_streams_are_understood_however_they_are_cut() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut asked = Vec::new();
    for split in [Split::Events, Split::Bytes, Split::Random] {
        for number in 0..all("").len() {
            let model = format!("m-{number}-{split:?}");
            let stream = all(&model).swap_remove(number);
            let measured = thread::scope(|scope| -> Result<Measured> {
                let server = scope.spawn(|| serve(&listener, &stream, split, &mut random));
                let measured = ask(address, stream.path, &model);
                server.join().map_err(|_| anyhow::anyhow!("the server has panicked"))??;
                measured
            })?;
            asked.push((model, stream, split, measured));
        }
    }
    let query = "{ kind = server && span.gen_ai.request.model =~ \"m-.*\" }";
    backend.wait_for_count(query, asked.len() as u64, Duration::from_secs(15))?;
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());

    let (mut broken, mut differences) = (Vec::new(), Vec::new());
    for (model, stream, split, measured) in &asked {
        let spans = spans_of(&backend, &format!("{{ span.gen_ai.request.model = \"{model}\" }}"))?;
        for kind in ["SPAN_KIND_SERVER", "SPAN_KIND_CLIENT"] {
            let of_kind: Vec<&Seen> = spans.iter().filter(|span| span.kind == kind).collect();
            let checked = match &of_kind[..] {
                [span] => check(span, model, stream, *split, measured, &mut differences),
                _ => Err(anyhow::anyhow!("{} spans", of_kind.len())),
            };
            if let Err(error) = checked {
                broken.push(format!("{model} {kind} {} {:?}: {error:#}\n{of_kind:?}", stream.path, stream.ends));
            }
        }
    }
    ensure!(broken.is_empty(), "{} are wrong:\n{}", broken.len(), broken.join("\n"));
    differences.sort_by(f64::total_cmp);
    let most = differences.get(differences.len() * 9 / 10).copied().unwrap_or(f64::MAX);
    println!(
        "{} times differ by {most} s at most in nine of ten, {:?} s at most",
        differences.len(),
        differences.last()
    );
    ensure!(most < AGREES, "times differ: {differences:?}");
    Ok(())
}

fn check(
    span: &Seen,
    model: &str,
    stream: &Stream,
    split: Split,
    measured: &Measured,
    differences: &mut Vec<f64>,
) -> Result<()> {
    let is = |key: &str, expected: &str| -> Result<()> {
        let found = span.attribute(key);
        ensure!(found == expected, "{key} is {found:?}, not {expected:?}");
        Ok(())
    };
    let text = |count: Option<usize>| count.map(|count| count.to_string()).unwrap_or_default();
    is("gen_ai.operation.name", stream.operation)?;
    is("gen_ai.provider.name", stream.provider)?;
    is("gen_ai.request.stream", "true")?;
    let [input, output] = stream.tokens;
    // What only the first event says may be lost where each call has one byte: the agent is told of the first few calls, and of the end.
    let at_start = |key: &str, expected: &str| -> Result<()> {
        let may_be_lost = matches!(split, Split::Bytes) && matches!(stream.path, "/v1/messages" | "/v1/responses");
        if may_be_lost && span.attribute(key).is_empty() { Ok(()) } else { is(key, expected) }
    };
    at_start("gen_ai.usage.input_tokens", &text(input))?;
    is("gen_ai.usage.output_tokens", &text(output))?;
    is("error.type", stream.error)?;
    at_start("gen_ai.response.model", model)?;
    if let Some(tokens) = output {
        ensure!(measured.tokens() == tokens, "the client has read {} tokens", measured.tokens());
    }
    ensure!(span.attribute("gen_ai.response.finish_reasons").contains(stream.reason), "why it ended");
    ensure!((span.status == "STATUS_CODE_ERROR") != stream.error.is_empty(), "status {}", span.status);
    ensure!(!format!("{span:?}").contains("secret"), "a prompt or an error's text in a span");

    // Of what is written byte by byte only the first few are looked at.
    let silent = if matches!(split, Split::Events) { stream.silent } else { 0 };
    let first_event = stream.framed().1.iter().take(silent).map(Vec::len).sum();
    for (key, place) in [
        ("gen_ai.response.time_to_first_chunk", Some(0)),
        ("coati.inference.time_to_first_token", Some(first_event).filter(|_| silent == stream.silent)),
    ] {
        let Some(place) = place else { continue };
        let (found, expected): (f64, f64) =
            (span.attribute(key).parse().with_context(|| key.to_owned())?, measured.at(place)?);
        ensure!((found - expected).abs() < DELAYED, "{key}: {found} s, not {expected}");
        differences.push((found - expected).abs());
    }
    Ok(())
}
