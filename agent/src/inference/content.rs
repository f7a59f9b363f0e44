//! What the start and the end of the two bodies say: models, tokens, and what the server says of its times.

use serde_json::Value as Json;

use super::json::{Scalar, count, last_count, last_number, last_text, scan};
use crate::decode::Bodies;

/// What bodies say. Times are nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    pub(super) request_model: Option<String>,
    pub(super) response_model: Option<String>,
    /// What the request asks for.
    pub(super) asks_stream: Option<bool>,
    pub(super) input_tokens: Option<u64>,
    pub(super) output_tokens: Option<u64>,
    pub(super) finish_reason: Option<String>,
    /// What went wrong, where the answer says so itself: a value of `error.type`.
    pub(super) error: Option<String>,
    pub(super) load_ns: Option<u64>,
    pub(super) prompt_ns: Option<u64>,
    pub(super) generation_ns: Option<u64>,
    /// The server, by what only it says.
    pub(super) provider: Option<&'static str>,
}

/// Where servers say the same, in the order in which they are asked. What only llama.cpp says comes first: it also
/// speaks as OpenAI does. Its `timings` are the very end of its last event; of what stands before them the end of an event before
/// may be all that is known.
const INPUT_TOKENS: [&str; 5] = ["prompt_eval_count", "tokens_evaluated", "prompt_tokens", "prompt_n", "input_tokens"];
const OUTPUT_TOKENS: [&str; 5] =
    ["eval_count", "predicted_n", "tokens_predicted", "completion_tokens", "output_tokens"];
/// Tokens of the prompt that a cache had: of those Anthropic's dialect does not count in `input_tokens`.
const CACHED_TOKENS: [&str; 2] = ["cache_read_input_tokens", "cache_creation_input_tokens"];
const FINISH_REASONS: [&str; 4] = ["done_reason", "stop_type", "finish_reason", "stop_reason"];

impl Facts {
    /// Reads the captured parts of the bodies.
    pub(super) fn read(bodies: &Bodies) -> Self {
        let mut facts = Self::default();
        facts.read_request(&without_chunk_lines(&bodies.request));
        let start = without_chunk_lines(&bodies.response);
        facts.read_start(&start);
        let end = without_chunk_lines(&bodies.response_end);
        facts.read_end(if end.is_empty() { &start } else { &end });
        facts
    }

    fn read_request(&mut self, bytes: &[u8]) {
        scan(document(bytes), |path, scalar| {
            match (path, scalar) {
                ([key], Scalar::Text(text)) if key == "model" => self.request_model = Some(text.into_owned()),
                ([key], Scalar::Bool(value)) if key == "stream" => self.asks_stream = Some(value),
                _ => {}
            }
            self.request_model.is_none() || self.asks_stream.is_none()
        });
    }

    /// The first document of the response, or the first event of its stream.
    fn read_start(&mut self, bytes: &[u8]) {
        scan(document(bytes), |path, scalar| {
            let keys: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
            match (&keys[..], scalar) {
                // The second and the third are Anthropic's, and of OpenAI's Responses.
                (["model"] | ["message" | "response", "model"], Scalar::Text(text)) => {
                    self.response_model.get_or_insert_with(|| text.into_owned());
                }
                // Anthropic tells these at the start and not again.
                (["message", "usage", key], Scalar::Number(number))
                    if *key == "input_tokens" || CACHED_TOKENS.contains(key) =>
                {
                    self.input_tokens = count(number).map(|tokens| tokens + self.input_tokens.unwrap_or(0));
                }
                (["system_fingerprint"], Scalar::Text(text)) if text == "fp_ollama" => self.provider = Some("ollama"),
                _ => {}
            }
            true
        });
    }

    /// The end of the response: the last event of a stream, or the rest of a document.
    fn read_end(&mut self, bytes: &[u8]) {
        let counted = |bytes, keys: [&str; 5]| keys.iter().find_map(|key| last_count(bytes, key));
        self.output_tokens = counted(behind_message_start(bytes), OUTPUT_TOKENS);
        self.input_tokens = self.input_tokens.or_else(|| {
            // What llama.cpp had in its cache it did not go through again.
            if let Some(cached) = last_count(bytes, "cache_n") {
                return Some(last_count(bytes, "prompt_n")? + cached);
            }
            let cached: u64 = CACHED_TOKENS.iter().filter_map(|key| last_count(bytes, key)).sum();
            Some(counted(bytes, INPUT_TOKENS)? + cached)
        });
        self.error = error(bytes);
        self.finish_reason = FINISH_REASONS.iter().find_map(|key| last_text(bytes, key));
        let nanoseconds = |key| last_count(bytes, key);
        let milliseconds = |key| last_number(bytes, key).filter(|it| *it >= 0.0).map(|it| (it * 1e6) as u64);
        self.load_ns = nanoseconds("load_duration");
        self.prompt_ns = nanoseconds("prompt_eval_duration").or_else(|| milliseconds("prompt_ms"));
        self.generation_ns = nanoseconds("eval_duration").or_else(|| milliseconds("predicted_ms"));
        if self.response_model.is_none() {
            self.response_model = last_text(bytes, "model");
        }
        if last_number(bytes, "predicted_ms").is_some() {
            self.provider = Some("llama_cpp");
        }
    }

    /// Something is known that only inference has.
    pub(super) fn is_inference(&self) -> bool {
        self.request_model.is_some()
            || self.response_model.is_some()
            || self.output_tokens.is_some()
            || self.input_tokens.is_some()
    }
}

/// Anthropic's first event says that one token was generated, whatever becomes of the answer.
fn behind_message_start(bytes: &[u8]) -> &[u8] {
    let Some(place) = find(bytes, b"\"message_start\"") else { return bytes };
    let event = bytes.get(place..).unwrap_or_default();
    let end = find(event, b"\n").unwrap_or(event.len());
    event.get(end..).unwrap_or_default()
}

/// Longest name of an error that is taken over.
const ERROR_NAME: usize = 64;
/// What the conventions have for an error without a name.
const UNNAMED_ERROR: &str = "_OTHER";

/// The error in the last event that is one. A stream has begun with status 200 when it comes.
fn error(bytes: &[u8]) -> Option<String> {
    bytes.rsplit(|byte| *byte == b'\n').find_map(|line| {
        find(line, b"\"error\"")?;
        let line = [&b"data:"[..], b"error:"].iter().find_map(|name| line.strip_prefix(*name)).unwrap_or(line);
        let document: Json = serde_json::from_slice(line.trim_ascii()).ok()?;
        // The second is of OpenAI's Responses.
        name_of(document.get("error")).or_else(|| name_of(document.get("response")?.get("error")))
    })
}

/// Texts are not taken for names: they may say anything, and are no label of a metric.
fn name_of(error: Option<&Json>) -> Option<String> {
    let is_name = |name: &&str| {
        let is_part = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        !name.is_empty() && name.len() <= ERROR_NAME && name.bytes().all(is_part)
    };
    match error? {
        Json::String(_) => Some(UNNAMED_ERROR.to_owned()),
        Json::Object(fields) => {
            let named = ["type", "code"].iter().find_map(|key| fields.get(*key)?.as_str().filter(is_name));
            Some(named.unwrap_or(UNNAMED_ERROR).to_owned())
        }
        _ => None,
    }
}

/// From the first document on: events of a stream have a name before it.
pub(super) fn document(bytes: &[u8]) -> &[u8] {
    let start = bytes.iter().position(|byte| *byte == b'{').unwrap_or(bytes.len());
    bytes.get(start..).unwrap_or_default()
}

/// The bytes without the lines of chunked framing (RFC 9112 §7.1). JSON has no line that ends with a carriage return and
/// is a number, so nothing else is taken away.
pub(super) fn without_chunk_lines(bytes: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    let mut is_first = true;
    while !rest.is_empty() {
        let line_end = if is_first { Some(0) } else { find(rest, b"\r\n") };
        let Some(line_end) = line_end else {
            kept.extend_from_slice(rest);
            break;
        };
        let skip = if is_first { 0 } else { 2 };
        let behind = rest.get(line_end + skip..).unwrap_or_default();
        let digits = behind.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let is_chunk_line =
            (1..=16).contains(&digits) && behind.get(digits..).is_some_and(|it| it.starts_with(b"\r\n"));
        kept.extend_from_slice(rest.get(..line_end).unwrap_or_default());
        rest = if is_chunk_line {
            // The next line end may be that of this size's line, or of the data behind it.
            behind.get(digits + 2..).unwrap_or_default()
        } else {
            kept.extend_from_slice(rest.get(line_end..line_end + skip).unwrap_or_default());
            behind
        };
        is_first = false;
    }
    kept
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn read(request: &str, response: &str, end: &str) -> Facts {
        Facts::read(&Bodies {
            request: request.as_bytes().into(),
            response: response.as_bytes().into(),
            response_end: end.as_bytes().into(),
            ..Bodies::default()
        })
    }

    #[test]
    fn an_ollama_stream() {
        let facts = read(
            r#"{"model":"llama3.2","messages":[{"role":"user","content":"why"#,
            "76\r\n{\"model\":\"llama3.2\",\"created_at\":\"2026-01-01T00:00:00Z\",\"message\":{\"content\":\"The\"},\"done\":false}\n\r\n",
            "false}\n\r\n118\r\n{\"model\":\"llama3.2\",\"message\":{\"content\":\"\"},\"done_reason\":\"stop\",\"done\":true,\
             \"total_duration\":4883583458,\"load_duration\":1334875,\"prompt_eval_count\":26,\
             \"prompt_eval_duration\":342546000,\"eval_count\":282,\"eval_duration\":4535599000}\n\r\n0\r\n\r\n",
        );
        let expected = Facts {
            request_model: Some("llama3.2".to_owned()),
            response_model: Some("llama3.2".to_owned()),
            input_tokens: Some(26),
            output_tokens: Some(282),
            finish_reason: Some("stop".to_owned()),
            load_ns: Some(1_334_875),
            prompt_ns: Some(342_546_000),
            generation_ns: Some(4_535_599_000),
            ..Facts::default()
        };
        assert_eq!(facts, expected);
    }

    #[rstest]
    #[case::openai_stream(
        "data: {\"id\":\"1\",\"model\":\"gpt-x-1\",\"choices\":[{\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n",
        "data: {\"choices\":[{\"finish_reason\":\"length\"}],\"usage\":null}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\
         \"total_tokens\":21,\"completion_tokens\":12}}\n\ndata: [DONE]\n\n",
        Some("gpt-x-1"),
        Some(9),
        Some(12),
        Some("length")
    )]
    #[case::openai_without_usage(
        "data: {\"model\":\"gpt-x-1\"}\n\n",
        "data: {\"choices\":[{\"finish_reason\":\"stop\"}]}\n\ndata: [DONE]\n\n",
        Some("gpt-x-1"),
        None,
        None,
        Some("stop")
    )]
    #[case::responses(
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"id\":\"r\",\"model\":\"o-1\"}}\n\n",
        "\"usage\":{\"input_tokens\":5,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":6,\"total_tokens\":11}}}\n\n",
        Some("o-1"),
        Some(5),
        Some(6),
        None
    )]
    #[case::anthropic(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"c-1\",\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n",
        "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"output_tokens\":15}}\n\ndata: {\"type\":\"message_stop\"}\n\n",
        Some("c-1"),
        Some(25),
        Some(15),
        Some("end_turn")
    )]
    #[case::embeddings(
        "{\"object\":\"list\",\"data\":[{\"embedding\":[0.1,",
        "0.2]}],\"model\":\"e-1\",\"usage\":{\"prompt_tokens\":8,\"total_tokens\":8}}",
        Some("e-1"),
        Some(8),
        None,
        None
    )]
    #[case::short(
        "{\"model\":\"m\",\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}",
        "",
        Some("m"),
        Some(1),
        Some(2),
        None
    )]
    #[case::not_inference("<html>", "</html>", None, None, None, None)]
    fn what_servers_say(
        #[case] start: &str,
        #[case] end: &str,
        #[case] model: Option<&str>,
        #[case] input: Option<u64>,
        #[case] output: Option<u64>,
        #[case] reason: Option<&str>,
    ) {
        let facts = read("", start, end);
        assert_eq!((facts.response_model.as_deref(), facts.finish_reason.as_deref()), (model, reason));
        assert_eq!((facts.input_tokens, facts.output_tokens), (input, output));
        assert_eq!(facts.is_inference(), model.is_some());
    }

    #[test]
    fn llama_cpp_tells_its_times() {
        let end = "data: {\"content\":\"\",\"tokens_predicted\":5,\"tokens_evaluated\":11,\"stop_type\":\"eos\",\"timings\":{\"prompt_n\":11,\
                   \"prompt_ms\":12.5,\"predicted_n\":5,\"predicted_ms\":100.25}}\n\n";
        let facts = read("{\"prompt\":\"x\",\"stream\":true}", "data: {\"index\":0,\"content\":\"a\"}\n\n", end);
        assert_eq!((facts.input_tokens, facts.output_tokens, facts.provider), (Some(11), Some(5), Some("llama_cpp")));
        assert_eq!((facts.prompt_ns, facts.generation_ns), (Some(12_500_000), Some(100_250_000)));
        assert_eq!((facts.asks_stream, facts.load_ns), (Some(true), None));
    }

    #[rstest]
    #[case::ollama("{\"model\":\"m\",\"done\":false}\n{\"error\":\"out of memory at 7\"}\n", Some("_OTHER"))]
    #[case::openai(
        "data: {\"error\":{\"message\":\"m\",\"type\":\"server_error\",\"code\":null}}\n\n",
        Some("server_error")
    )]
    #[case::only_a_code(
        "data: {\"error\":{\"message\":\"m\",\"type\":null,\"code\":\"rate_limit\"}}\n\ndata: [DONE]\n\n",
        Some("rate_limit")
    )]
    #[case::a_number("data: {\"error\":{\"message\":\"m\",\"code\":500}}\n\n", Some("_OTHER"))]
    #[case::a_text_for_a_name("data: {\"error\":{\"type\":\"The prompt was: hello\"}}\n\n", Some("_OTHER"))]
    #[case::llama_cpp("error: {\"code\":500,\"error\":{\"type\":\"server_error\"}}\n\n", Some("server_error"))]
    #[case::anthropic(
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"m\"}}\n\n",
        Some("overloaded_error")
    )]
    #[case::responses(
        "data: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\"}}}\n\n",
        Some("server_error")
    )]
    #[case::no_error("data: {\"type\":\"response.completed\",\"response\":{\"error\":null}}\n\n", None)]
    #[case::in_a_text("data: {\"choices\":[{\"delta\":{\"content\":\"{\\\"error\\\":\\\"x\\\"}\"}}]}\n\n", None)]
    #[case::cut("{\"error\":\"x\"}}]}\n", None)]
    fn errors(#[case] end: &str, #[case] expected: Option<&str>) {
        assert_eq!(read("", "", end).error.as_deref(), expected);
    }

    /// As llama.cpp 0.7 answers, which counts as Anthropic does.
    #[rstest]
    #[case::stream(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"m\",\"usage\":{\"cache_read_input_tokens\":58,\
         \"input_tokens\":1,\"output_tokens\":0}}}\n\n",
        "data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"max_tokens\"},\"usage\":{\"output_tokens\":3}}\n\n"
    )]
    #[case::document(
        "{\"model\":\"m\",\"usage\":{\"cache_read_input_tokens\":58,\"input_tokens\":1,\"output_tokens\":3}}",
        ""
    )]
    fn what_a_cache_had_of_a_message_is_a_part_of_it(#[case] start: &str, #[case] end: &str) {
        let facts = read("", start, end);
        assert_eq!((facts.input_tokens, facts.output_tokens), (Some(59), Some(3)));
    }

    /// Each is cut where the connection broke: what was not said is not known.
    #[rstest]
    #[case::anthropic(
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"model\":\"c\",\"usage\":{\"input_tokens\":25,\"output_tokens\":1}}}\n\n\
         event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"H\"}}\n\n",
        Some(25),
        None
    )]
    #[case::vllm_that_counts_as_it_goes(
        "data: {\"model\":\"v\",\"choices\":[{\"delta\":{\"content\":\"a\"}}],\"usage\":{\"prompt_tokens\":4,\"total_tokens\":6,\"completion_tokens\":2}}\n\n\
         data: {\"model\":\"v\",\"cho",
        Some(4),
        Some(2)
    )]
    #[case::ollama(
        "{\"model\":\"m\",\"response\":\"a\",\"done\":false}\n{\"model\":\"m\",\"done\":true,\"eval_count\":1",
        None,
        None
    )]
    fn a_stream_that_is_cut(#[case] body: &str, #[case] input: Option<u64>, #[case] output: Option<u64>) {
        let facts = read("", body, "");
        assert_eq!((facts.input_tokens, facts.output_tokens, facts.finish_reason), (input, output, None));
    }

    /// The last event is so long that its start, and in it the counts, may be missing.
    #[test]
    fn what_llama_cpp_had_in_its_cache_is_a_part_of_the_prompt() {
        let facts = read(
            "",
            "",
            "\"tokens_predicted\":2,\"tokens_evaluated\":7}\n\n\"timings\":{\"cache_n\":5,\"prompt_n\":2,\"predicted_n\":3,\"predicted_ms\":1.5}}\n\n",
        );
        assert_eq!((facts.input_tokens, facts.output_tokens), (Some(7), Some(3)));
    }

    #[rstest]
    #[case::none("{\"a\":1}", "{\"a\":1}")]
    #[case::one("7\r\n{\"a\":1}\r\n0\r\n\r\n", "{\"a\":1}\r\n")]
    #[case::split("3\r\n{\"a\r\n4\r\n\":1}\r\n0\r\n\r\n", "{\"a\":1}\r\n")]
    #[case::cut_in_a_size("{\"a\":1}\r\n1", "{\"a\":1}\r\n1")]
    #[case::words("not\r\nhex\r\n", "not\r\nhex\r\n")]
    fn chunk_lines_are_taken_away(#[case] bytes: &str, #[case] expected: &str) {
        assert_eq!(String::from_utf8(without_chunk_lines(bytes.as_bytes())).unwrap(), expected);
    }

    proptest! {
        /// However a body is cut into chunks, its bytes come back.
        #[test]
        fn bodies_come_back(body in "[a-z{}\":, 0-9\n]{1,200}", sizes in prop::collection::vec(1_usize..40, 1..40)) {
            let (mut framed, mut rest) = (Vec::new(), body.as_bytes());
            for size in sizes.iter().cycle() {
                let (chunk, later) = rest.split_at((*size).min(rest.len()));
                framed.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
                rest = later;
                if rest.is_empty() { break; }
            }
            framed.extend(b"0\r\n\r\n");
            prop_assert_eq!(without_chunk_lines(&framed), [body.as_bytes(), b"\r\n"].concat());
        }

        #[test]
        fn takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let text: Box<[u8]> = bytes.into();
            let _ = Facts::read(&Bodies { request: text.clone(), response: text.clone(), response_end: text, ..Bodies::default() });
        }
    }
}
