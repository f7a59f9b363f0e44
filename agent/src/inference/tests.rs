//! Whole exchanges, from the kernel's records on.

use opentelemetry_proto::tonic::resource::v1::Resource;
use rstest::rstest;

use super::*;
use crate::{
    decode::{
        Event, Exchange,
        testing::{MS, Wire},
    },
    discover::{Exports, Process},
};

fn process(name: &str) -> Process {
    Process {
        tgid: 1,
        service_name: name.to_owned(),
        resource: Resource::default(),
        sampler: None,
        exports: Exports::default(),
    }
}

/// The exchanges of a wire, as the decoder makes them.
fn exchanges(wire: &Wire) -> Vec<Exchange> {
    let mut decoder = crate::decode::Decoder::new(crate::decode::DecodeConfig::default());
    let mut found = Vec::new();
    for record in wire.records.clone() {
        decoder.record(record, &mut |event| {
            if let Event::Ended(exchange) = event {
                found.push(exchange.clone());
            }
        });
    }
    decoder.finish(&mut |event| {
        if let Event::Ended(exchange) = event {
            found.push(exchange.clone());
        }
    });
    found
}

fn inference(wire: &Wire) -> Inference {
    let exchanges = exchanges(wire);
    let [exchange] = &exchanges[..] else { panic!("{exchanges:?}") };
    Inference::of(exchange, &process("ollama"), InferenceConfig::default()).unwrap()
}

/// A request that is counted in every metric, and one that failed.
pub(crate) fn counted() -> [Inference; 2] {
    let well = Inference {
        kind: Kind { operation: Operation::Chat, dialect: Dialect::Ollama },
        facts: Facts {
            request_model: Some("m".to_owned()),
            input_tokens: Some(1),
            output_tokens: Some(1),
            ..Facts::default()
        },
        provider: "ollama",
        is_stream: true,
        duration_ns: 1,
        error: None,
        error_in_answer: None,
        first_chunk_ns: Some(1),
        first_token_ns: Some(1),
        per_token_ns: Some(1.0),
        phases: Vec::new(),
        messages: None,
    };
    [well.clone(), Inference { error: Some("500".to_owned()), ..well }]
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

const LAST: &str = "{\"model\":\"m\",\"done\":true,\"done_reason\":\"stop\",\"load_duration\":2000000,\"prompt_eval_count\":7,\
                    \"prompt_eval_duration\":1000000,\"eval_count\":5,\"eval_duration\":4000000}\n";

fn ollama(split_body: bool) -> Wire {
    let mut wire = Wire::server(1);
    let body = r#"{"model":"m","prompt":"why is the sky blue"}"#;
    let head = format!("POST /api/generate HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    if split_body {
        wire.request(head.as_bytes()).request(body.as_bytes());
    } else {
        wire.request(&[head.as_bytes(), body.as_bytes()].concat());
    }
    wire.wait(9 * MS)
        .response(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..5 {
        wire.wait(9 * MS).response(&chunk("{\"model\":\"m\",\"response\":\"a\",\"done\":false}\n"));
    }
    wire.response(&chunk(LAST)).response(b"0\r\n\r\n");
    wire
}

#[rstest]
#[case::in_one_call(false)]
#[case::body_in_a_call_of_its_own(true)]
fn a_stream_is_measured_from_its_records(#[case] split_body: bool) {
    let inference = inference(&ollama(split_body));
    let facts = &inference.facts;
    assert_eq!(
        (facts.request_model.as_deref(), facts.input_tokens, facts.output_tokens),
        (Some("m"), Some(7), Some(5))
    );
    // The head comes 10 ms behind the request's last call, the first token 10 ms later.
    let head_ms = if split_body { 11 } else { 10 };
    assert_eq!(inference.first_token_ns, Some((head_ms + 10) * MS));
    // From the first token: four more, the last line and the end.
    let per_token_ns = inference.per_token_ns.unwrap();
    assert!((per_token_ns - (42 * MS) as f64 / 4.0).abs() < 1.0, "{per_token_ns}");
    let names: Vec<_> =
        inference.phases.iter().map(|phase| (phase.name, (phase.end_ns - phase.start_ns) / MS)).collect();
    assert_eq!(names, [("queue", head_ms + 7), ("load", 2), ("prompt", 1), ("generation", 42)]);
}

#[test]
fn the_span_says_what_is_known() {
    let wire = ollama(false);
    let mut span = Span::default();
    inference(&wire).describe(&mut span);
    let found: Vec<String> = span
        .attributes
        .iter()
        .map(|pair| format!("{} {:?}", pair.key, pair.value.as_ref().unwrap().value.as_ref().unwrap()))
        .collect();
    insta::assert_snapshot!(found.join("\n"), @r#"
    gen_ai.operation.name StringValue("text_completion")
    gen_ai.provider.name StringValue("ollama")
    gen_ai.request.model StringValue("m")
    gen_ai.response.model StringValue("m")
    gen_ai.request.stream BoolValue(true)
    gen_ai.usage.input_tokens IntValue(7)
    gen_ai.usage.output_tokens IntValue(5)
    gen_ai.response.finish_reasons ArrayValue(ArrayValue { values: [AnyValue { value: Some(StringValue("stop")) }] })
    gen_ai.response.time_to_first_chunk DoubleValue(0.02)
    coati.inference.time_to_first_token DoubleValue(0.02)
    coati.inference.load.duration DoubleValue(0.002)
    coati.inference.prompt.duration DoubleValue(0.001)
    coati.inference.generation.duration DoubleValue(0.004)
    coati.inference.time_per_output_token DoubleValue(0.0105)
    coati.inference.tokens_per_second DoubleValue(1250.0)
    coati.inference.cold_load BoolValue(false)
    "#);
    assert!(!format!("{span:?}").contains("sky"), "prompts stay out of spans");
}

/// The counts stand at the end, long after the last record, or in one large answer.
#[test]
fn the_end_of_what_no_record_carries_is_read() {
    let mut wire = Wire::server(1);
    let head = b"POST /api/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n{\"model\":\"m\"}";
    wire.request(head);
    wire.response(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    for _ in 0..1000 {
        wire.response(&chunk("{\"model\":\"m\",\"response\":\"a\",\"done\":false}\n"));
    }
    wire.response(&chunk(LAST)).response(b"0\r\n\r\n").close();
    assert!(wire.records.len() < 140, "{} records", wire.records.len());
    assert_eq!(inference(&wire).facts.output_tokens, Some(5));

    let mut wire = Wire::client(1);
    wire.request(head);
    let body = format!("{{\"model\":\"m\",\"response\":\"{}\",{}", "x".repeat(20_000), LAST.split_once(',').unwrap().1);
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    wire.response(&answer.as_bytes()[..9000]).response(&answer.as_bytes()[9000..]);
    let inference = inference(&wire);
    assert_eq!((inference.facts.input_tokens, inference.facts.output_tokens), (Some(7), Some(5)));
}

/// However few bytes a call sends, and whatever frames them: the end is told when it is there.
#[rstest]
#[case::chunked("transfer-encoding: chunked", true)]
#[case::until_the_connection_is_closed("connection: close", false)]
fn a_stream_that_comes_byte_by_byte_is_counted(#[case] header: &str, #[case] is_chunked: bool) {
    let lines = ["{\"model\":\"m\",\"response\":\"a\",\"done\":false}\n", LAST];
    let body: Vec<u8> = if is_chunked {
        lines.iter().flat_map(|line| chunk(line)).chain(*b"0\r\n\r\n").collect()
    } else {
        lines.concat().into_bytes()
    };
    for mut wire in [Wire::server(1), Wire::client(1)] {
        wire.request(b"POST /api/generate HTTP/1.1\r\nhost: x\r\ncontent-length: 13\r\n\r\n{\"model\":\"m\"}");
        wire.response(format!("HTTP/1.1 200 OK\r\n{header}\r\n\r\n").as_bytes());
        for byte in &body {
            wire.response(&[*byte]);
        }
        wire.eof().close();
        let inference = inference(&wire);
        assert_eq!((inference.facts.input_tokens, inference.facts.output_tokens), (Some(7), Some(5)));
        assert_eq!((inference.first_chunk_ns, inference.error), (Some(2 * MS), None));
    }
}

/// The role comes when the request is taken, the first token when there is one.
#[test]
fn an_event_without_a_token_is_not_the_first_token() {
    let mut wire = Wire::server(1);
    let body = "{\"model\":\"m\",\"stream\":true}";
    let length = body.len();
    wire.request(
        format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes(),
    );
    wire.response(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n");
    let event = |delta: &str| {
        chunk(&format!(
            "data: {{\"object\":\"chat.completion.chunk\",\"model\":\"m\",\"choices\":[{{\"delta\":{delta}}}]}}\n\n"
        ))
    };
    wire.response(&event("{\"role\":\"assistant\",\"content\":\"\"}"));
    wire.wait(30 * MS).response(&event("{\"content\":\"a\"}")).wait(9 * MS).response(&event("{\"content\":\"b\"}"));
    wire.response(&chunk("data: {\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n")).response(b"0\r\n\r\n");
    let inference = inference(&wire);
    assert_eq!((inference.first_chunk_ns, inference.first_token_ns), (Some(2 * MS), Some(33 * MS)));
    // From the token to the one behind it, the counts and the end.
    assert_eq!(inference.per_token_ns, Some((12 * MS) as f64));
    assert_eq!(inference.phases[0], Phase { name: "time to first token", start_ns: 11 * MS, end_ns: 44 * MS });
}

#[rstest]
#[case::in_the_stream(
    "200 OK",
    "data: {\"error\":{\"message\":\"a secret\",\"type\":\"overloaded\"}}\n\n",
    Some("overloaded"),
    true
)]
#[case::instead_of_it("500 X", "{\"error\":{\"message\":\"a secret\",\"type\":\"overloaded\"}}", Some("500"), false)]
#[case::none("200 OK", "data: {\"choices\":[]}\n\n", None, false)]
fn an_error_in_the_answer_is_told(
    #[case] status: &str,
    #[case] last: &str,
    #[case] expected: Option<&str>,
    #[case] changes_the_span: bool,
) {
    let mut wire = Wire::server(1);
    wire.request(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 27\r\n\r\n{\"model\":\"m\",\"stream\":true}",
    );
    wire.response(format!("HTTP/1.1 {status}\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes());
    wire.response(&chunk(last)).response(b"0\r\n\r\n");
    let inference = inference(&wire);
    assert_eq!(inference.error.as_deref(), expected);
    let mut span = Span::default();
    inference.describe(&mut span);
    assert_eq!(span.status.is_some_and(|status| status.code == StatusCode::Error as i32), changes_the_span);
    assert_eq!(span.attributes.iter().any(|pair| pair.key == ERROR_TYPE), changes_the_span);
    assert!(!format!("{:?}", span.attributes).contains("secret"));
}

#[rstest]
#[case::other_path("/api/tags", "{\"model\":\"m\"}", false)]
#[case::same_path_of_another_service("/api/chat", "{\"text\":\"hi\"}", false)]
#[case::immich("/predict", "--boundary", true)]
fn a_path_alone_does_not_make_it_inference(#[case] path: &str, #[case] body: &str, #[case] expected: bool) {
    let mut wire = Wire::server(1);
    let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    wire.request(head.as_bytes()).response(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    let exchanges = exchanges(&wire);
    assert_eq!(Inference::of(&exchanges[0], &process("x"), InferenceConfig::default()).is_some(), expected);
}

#[rstest]
#[case::whole(Some(20), Some(2), Some(3), &[("queue", 0, 15), ("load", 15, 17), ("prompt", 17, 20), ("generation", 20, 100)])]
#[case::longer_than_there_was_time(Some(4), Some(50), Some(60), &[("prompt", 0, 4), ("generation", 4, 100)])]
#[case::no_stream(None, Some(1), Some(2), &[("queue", 0, 37), ("load", 37, 38), ("prompt", 38, 40), ("generation", 40, 100)])]
#[case::nothing_said(Some(20), None, None, &[("time to first token", 0, 20), ("generation", 20, 100)])]
fn phases_lie_one_after_the_other(
    #[case] first: Option<u64>,
    #[case] load_ns: Option<u64>,
    #[case] prompt_ns: Option<u64>,
    #[case] expected: &[(&str, u64, u64)],
) {
    let facts = Facts { load_ns, prompt_ns, generation_ns: Some(60), ..Facts::default() };
    let found: Vec<_> =
        phases(&facts, 0, first, 100).iter().map(|phase| (phase.name, phase.start_ns, phase.end_ns)).collect();
    assert_eq!(found, expected);
}

#[rstest]
#[case::openai(Dialect::OpenAi, "shop", "openai")]
#[case::vllm(Dialect::OpenAi, "vllm", "vllm")]
#[case::llama_server(Dialect::OpenAi, "llama-server", "llama_cpp")]
#[case::messages_of_ollama(Dialect::Anthropic, "ollama", "ollama")]
#[case::messages(Dialect::Anthropic, "shop", "anthropic")]
#[case::ollama(Dialect::Ollama, "shop", "ollama")]
fn who_serves(#[case] dialect: Dialect, #[case] service: &str, #[case] expected: &str) {
    let exchanges = exchanges(&ollama(false));
    let kind = Kind { operation: Operation::Chat, dialect };
    assert_eq!(provider(kind, &Facts::default(), &exchanges[0], &process(service)), expected);
}
