//! Which event of a stream is the first with a token: some servers send others before they have one.

use super::{
    content::document,
    json::{Scalar, scan},
};

/// Events of Anthropic's messages and of OpenAI's Responses, by their type, that say what is about to come.
const ANNOUNCEMENTS: [&str; 8] = [
    "message_start",
    "content_block_start",
    "ping",
    "response.created",
    "response.queued",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
];

/// Where the first event that may have a token begins in the start of a response's body, chunk framing included. `None` if there
/// is none in it, which is so too where an event that has none is not there to its end.
pub(super) fn place(body: &[u8]) -> Option<usize> {
    let mut place = 0;
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let is_whole = line.ends_with(b"\n");
        let text = line.trim_ascii();
        if let Some(event) = text.strip_prefix(b"data:").or_else(|| text.starts_with(b"{").then_some(text))
            && !is_announcement(event)
        {
            return is_whole.then_some(place);
        }
        place += line.len();
    }
    None
}

/// Whether it is known that the event has no token.
fn is_announcement(event: &[u8]) -> bool {
    let (mut announces, mut is_chat, mut has_token) = (false, false, false);
    scan(document(event), |path, scalar| {
        let keys: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        let text = if let Scalar::Text(text) = &scalar { text.as_ref() } else { "" };
        match &keys[..] {
            ["type"] => announces = ANNOUNCEMENTS.contains(&text),
            ["object"] => is_chat = text == "chat.completion.chunk",
            ["choices", "delta", "role"] => {}
            ["choices", "delta" | "text" | "finish_reason", ..] => has_token |= !text.is_empty(),
            _ => {}
        }
        true
    });
    announces || is_chat && !has_token
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const OLLAMA: &str = "{\"model\":\"m\",\"message\":{\"role\":\"assistant\",\"content\":\"The\"},\"done\":false}\n";
    const ROLE: &str = "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\
                        \"content\":\"\"},\"finish_reason\":null}]}\n\n";
    const CONTENT: &str =
        "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"delta\":{\"content\":\"A\"}}]}\n\n";
    const CALL: &str = "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"delta\":{\"tool_calls\":[{\"function\":\
                        {\"name\":\"f\"}}]}}]}\n\n";
    const STOP: &str =
        "data: {\"object\":\"chat.completion.chunk\",\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"content\":[]}}\n\n\
                         event: ping\ndata: {\"type\": \"ping\"}\n\n";
    const DELTA: &str =
        "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"Hi\"}}\n\n";
    const CREATED: &str =
        "event: response.created\ndata: {\"type\":\"response.created\",\"response\":{\"model\":\"m\"}}\n\n";

    #[rstest]
    #[case::ollama("", OLLAMA)]
    #[case::chat(ROLE, CONTENT)]
    #[case::chat_without_a_role("", CONTENT)]
    #[case::a_tool(ROLE, CALL)]
    #[case::nothing_at_all(ROLE, STOP)]
    #[case::llama_cpp("", "data: {\"index\":0,\"content\":\"a\",\"stop\":false}\n\n")]
    #[case::anthropic(START, DELTA)]
    #[case::responses(CREATED, "event: x\ndata: {\"type\":\"response.output_text.delta\",\"delta\":\"a\"}\n\n")]
    #[case::comments(": OPENROUTER PROCESSING\n\n", CONTENT)]
    fn events_without_a_token_are_passed_over(#[case] before: &str, #[case] first: &str) {
        let data = first.find("data:").unwrap_or(0);
        assert_eq!(place([before, first, CONTENT].concat().as_bytes()), Some(before.len() + data));
        // As chunks, each event one.
        let chunk =
            |text: &str| if text.is_empty() { String::new() } else { format!("{:x}\r\n{text}\r\n", text.len()) };
        let (before, body) = (chunk(before), chunk(first));
        let data = body.find("data:").or_else(|| body.find('{')).unwrap();
        assert_eq!(place([&before, &body].map(String::as_str).concat().as_bytes()), Some(before.len() + data));
    }

    #[test]
    fn a_cut_leaves_it_unknown() {
        let whole = [ROLE, CONTENT].concat();
        for end in 0..whole.len() {
            let expected = (end >= whole.len() - 1).then_some(ROLE.len());
            assert_eq!(place(&whole.as_bytes()[..end]), expected, "{end} bytes");
        }
    }

    proptest! {
        #[test]
        fn takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(place(&bytes).is_none_or(|place| place < bytes.len()));
        }
    }
}
