//! Prompts and answers, for who has switched on that they are recorded: as far as their bytes were captured.
//!
//! Both have the shape of the conventions' `gen_ai.input.messages` and `gen_ai.output.messages`, as JSON text.

use serde_json::{Value as Json, json};

use super::{
    content::{document, without_chunk_lines},
    json::{Scalar, scan},
};
use crate::decode::Bodies;

/// What stands where a part of an answer was not captured.
const GAP: &str = " … ";

/// A prompt and an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Messages {
    /// Role and text of each message of the prompt.
    input: Vec<(String, String)>,
    /// The answer's text.
    output: String,
    /// The prompt goes on behind what is known of it.
    pub(super) is_input_cut: bool,
    /// Of the answer a part is not known.
    pub(super) is_output_cut: bool,
}

impl Messages {
    /// Reads the captured parts of the bodies, whose lengths on the wire are these.
    pub(super) fn read(bodies: &Bodies, request_bytes: Option<u64>, response_bytes: Option<u64>) -> Self {
        let mut messages = Self::default();
        messages.read_input(&without_chunk_lines(&bodies.request));
        let is_whole = |known: &[u8], bytes: Option<u64>| bytes.is_some_and(|bytes| bytes <= known.len() as u64);
        messages.is_input_cut |= !is_whole(&bodies.request, request_bytes);
        let (start, end) = (&bodies.response, &bodies.response_end);
        if is_whole(start, response_bytes) {
            messages.read_output(start);
        } else if is_whole(end, response_bytes) {
            messages.read_output(end);
        } else {
            messages.is_output_cut = true;
            messages.read_output(start);
            // The end begins with as much of the start as there was room for.
            let shared = (0..=start.len().min(end.len())).rev();
            let shared = shared.into_iter().find(|count| end.get(..*count).is_some_and(|it| start.ends_with(it)));
            let known = messages.output.len();
            messages.read_output(end.get(shared.unwrap_or(0)..).unwrap_or_default());
            if known > 0 && messages.output.len() > known {
                messages.output.insert_str(known, GAP);
            }
        }
        messages
    }

    fn read_input(&mut self, bytes: &[u8]) {
        let mut input = Input::default();
        let cut = scan(document(bytes), |path, scalar| {
            if let Scalar::Text(text) = scalar {
                input.take(&path.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), &text);
            }
            true
        });
        // What there is of a role is none.
        if let Some((path, text)) = cut.filter(|(path, _)| path.last().is_some_and(|key| key != "role")) {
            input.take(&path.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), &text);
        }
        self.input = input.messages;
    }

    /// A document, or the events of a stream, each on a line of its own.
    fn read_output(&mut self, bytes: &[u8]) {
        let bytes = without_chunk_lines(bytes);
        for line in bytes.split(|byte| *byte == b'\n') {
            let line = line.strip_prefix(b"data:").unwrap_or(line).trim_ascii();
            if !line.starts_with(b"{") {
                continue;
            }
            let output = &mut self.output;
            let mut take = |path: &[&str], text: &str| {
                if is_answer(path) {
                    output.push_str(text);
                }
            };
            let cut = scan(line, |path, scalar| {
                if let Scalar::Text(text) = scalar {
                    take(&path.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), &text);
                }
                true
            });
            if let Some((path, text)) = cut {
                take(&path.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), &text);
            }
        }
    }

    /// `gen_ai.input.messages`; `None` if nothing is known.
    pub(super) fn input(&self) -> Option<String> {
        let messages = self.input.iter().map(|(role, text)| message(role, text, None)).collect::<Vec<_>>();
        (!messages.is_empty()).then(|| Json::from(messages).to_string())
    }

    /// `gen_ai.output.messages`, with why generation ended; `None` if nothing is known.
    pub(super) fn output(&self, finish_reason: Option<&str>) -> Option<String> {
        let message = || message("assistant", &self.output, Some(finish_reason.unwrap_or("unknown")));
        (!self.output.is_empty()).then(|| Json::from(vec![message()]).to_string())
    }
}

fn message(role: &str, text: &str, finish_reason: Option<&str>) -> Json {
    let mut message = json!({"role": role, "parts": [{"type": "text", "content": text}]});
    if let (Some(reason), Some(fields)) = (finish_reason, message.as_object_mut()) {
        fields.insert("finish_reason".to_owned(), reason.into());
    }
    message
}

/// The messages of a prompt. Roles stand before or behind their texts, in all messages alike.
#[derive(Default)]
struct Input {
    messages: Vec<(String, String)>,
    role: Option<String>,
    is_role_behind: bool,
}

impl Input {
    fn take(&mut self, path: &[&str], text: &str) {
        match path {
            ["prompt" | "input"] => self.messages.push(("user".to_owned(), text.to_owned())),
            ["system" | "instructions"] | ["system", "text"] => {
                self.messages.push(("system".to_owned(), text.to_owned()));
            }
            ["messages" | "input", "role"] => {
                if self.is_role_behind
                    && let Some((role, _)) = self.messages.last_mut()
                {
                    text.clone_into(role);
                } else {
                    self.role = Some(text.to_owned());
                }
            }
            ["messages" | "input", "content"] | ["messages" | "input", "content", "text"] => {
                self.is_role_behind |= self.role.is_none();
                let role = self.role.clone().unwrap_or_else(|| "user".to_owned());
                self.messages.push((role, text.to_owned()));
            }
            _ => {}
        }
    }
}

/// Where the servers of [`super::recognise`] have the text of an answer, or the next piece of it.
fn is_answer(path: &[&str]) -> bool {
    matches!(
        path,
        // ollama's generation, llama.cpp's, the deltas of OpenAI's Responses
        ["response" | "content" | "delta"]
            // ollama's chat
            | ["message", "content"]
            // OpenAI's completions, Anthropic's deltas and messages
            | ["choices" | "delta" | "content", "text"]
            // OpenAI's chat, and its Responses
            | ["choices", "message" | "delta", "content"] | ["output", "content", "text"]
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn bodies(request: &str, response: &str, end: &str) -> Bodies {
        Bodies {
            request: request.as_bytes().into(),
            response: response.as_bytes().into(),
            response_end: end.as_bytes().into(),
            ..Bodies::default()
        }
    }

    /// Bodies that were captured whole.
    fn whole(request: &str, response: &str) -> Messages {
        let lengths = [request, response].map(|it| Some(it.len() as u64));
        Messages::read(&bodies(request, response, response), lengths[0], lengths[1])
    }

    fn user(text: &str) -> Vec<(String, String)> {
        vec![("user".to_owned(), text.to_owned())]
    }

    #[rstest]
    #[case::ollama_chat(r#"{"model":"m","messages":[{"role":"user","content":"hi\n"}]}"#, &[("user", "hi\n")])]
    #[case::ollama_generate(r#"{"model":"m","system":"be kind","prompt":"hi"}"#, &[("system", "be kind"), ("user", "hi")])]
    #[case::several(
        r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}"#,
        &[("system", "s"), ("user", "q"), ("assistant", "a")]
    )]
    #[case::parts(
        r#"{"messages":[{"role":"user","content":[{"type":"text","text":"look"},{"type":"image_url","image_url":{"url":"data:x"}}]}]}"#,
        &[("user", "look")]
    )]
    #[case::role_behind(
        r#"{"messages":[{"content":"s","role":"system"},{"content":"q","role":"user"}]}"#,
        &[("system", "s"), ("user", "q")]
    )]
    #[case::anthropic(r#"{"system":[{"type":"text","text":"s"}],"messages":[{"role":"user","content":"q"}]}"#, &[("system", "s"), ("user", "q")])]
    #[case::responses(r#"{"instructions":"s","input":"q"}"#, &[("system", "s"), ("user", "q")])]
    #[case::embeddings(r#"{"model":"m","input":["a","b"]}"#, &[("user", "a"), ("user", "b")])]
    #[case::nothing(r#"{"model":"m"}"#, &[])]
    fn prompts(#[case] request: &str, #[case] expected: &[(&str, &str)]) {
        let found = whole(request, "");
        let expected: Vec<_> = expected.iter().map(|(role, text)| ((*role).to_owned(), (*text).to_owned())).collect();
        assert_eq!((found.input, found.is_input_cut), (expected, false));
    }

    #[rstest]
    #[case::ollama_chat(r#"{"message":{"role":"assistant","content":"yes"},"done":true}"#)]
    #[case::ollama_stream("8\r\n{\"response\":\"y\"}\n\r\n9\r\n{\"response\":\"es\",\"done\":true}\n\r\n0\r\n\r\n")]
    #[case::openai(r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"yes"}}]}"#)]
    #[case::openai_stream(
        "data: {\"choices\":[{\"delta\":{\"content\":\"y\"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"es\"}}]}\n\ndata: [DONE]\n\n"
    )]
    #[case::completions(r#"{"choices":[{"text":"yes"}]}"#)]
    #[case::llama("data: {\"index\":0,\"content\":\"y\"}\n\ndata: {\"content\":\"es\"}\n\n")]
    #[case::anthropic(r#"{"content":[{"type":"text","text":"yes"}]}"#)]
    #[case::anthropic_stream(
        "event: content_block_delta\ndata: {\"delta\":{\"type\":\"text_delta\",\"text\":\"yes\"}}\n\n"
    )]
    #[case::responses(r#"{"output":[{"content":[{"type":"output_text","text":"yes"}]}]}"#)]
    fn answers(#[case] response: &str) {
        let found = whole("{}", response);
        assert_eq!((found.output.as_str(), found.is_output_cut), ("yes", false));
    }

    /// Of a long prompt and a long answer there is what was captured, and it is said that there was more.
    #[test]
    fn what_is_cut_is_said() {
        let request = r#"{"messages":[{"role":"user","content":"once upon a t\u00"#;
        let start = "data: {\"content\":\"one\"}\n\ndata: {\"content\":\"tw";
        let end = "\"thr\"}\n\ndata: {\"content\":\"last\"}\n\n";
        let captured = bodies(request, start, &format!("ent\":\"tw{end}"));
        let found = Messages::read(&captured, Some(5000), Some(90_000));
        assert_eq!(found.input, user("once upon a t"));
        assert_eq!(found.output, "onetw … last");
        assert!(found.is_input_cut && found.is_output_cut);
        assert_eq!(Messages::read(&captured, None, None), found, "lengths that are not known");
    }

    #[test]
    fn they_have_the_shape_of_the_conventions() {
        let found = whole(r#"{"prompt":"2+2?"}"#, r#"{"response":"4"}"#);
        let input = found.input().unwrap();
        let output = found.output(Some("stop")).unwrap();
        assert_eq!(input, r#"[{"parts":[{"content":"2+2?","type":"text"}],"role":"user"}]"#);
        assert_eq!(output, r#"[{"finish_reason":"stop","parts":[{"content":"4","type":"text"}],"role":"assistant"}]"#);
        let nothing = whole("{}", "{}");
        assert_eq!((nothing.input(), nothing.output(None)), (None, None));
    }

    /// At whatever byte it is cut, what is known is the start of what was said.
    #[test]
    fn takes_every_prefix() {
        let text = "a \"quoted\" wörd, 😀 and\ttab";
        let request =
            json!({"model": "m", "messages": [{"role": "user", "content": text}], "stream": true}).to_string();
        for length in 0..request.len() {
            let prefix: Box<[u8]> = request.as_bytes()[..length].into();
            let captured = Bodies { request: prefix, ..Bodies::default() };
            let found = Messages::read(&captured, Some(request.len() as u64), Some(0));
            assert!(found.is_input_cut);
            match &found.input[..] {
                [] => {}
                [(role, known)] => assert!(role == "user" && text.starts_with(known.as_str()), "{length}: {known}"),
                more => panic!("{more:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), length in 0_u64..600) {
            let part: Box<[u8]> = bytes.into();
            let captured = Bodies { request: part.clone(), response: part.clone(), response_end: part, ..Bodies::default() };
            let _ = Messages::read(&captured, Some(length), Some(length));
        }
    }
}
