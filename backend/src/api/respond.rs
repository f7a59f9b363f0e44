//! Answers in the form that the client asked for.

use std::io::Write;

use axum::body::Body;
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, VARY};
use http::{HeaderMap, HeaderValue};
use prost::Message;

use super::json::ToJson;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROTOBUF: HeaderValue = HeaderValue::from_static("application/protobuf");
const LLM: HeaderValue = HeaderValue::from_static("application/vnd.grafana.llm+json");
const GZIP: HeaderValue = HeaderValue::from_static("gzip");

/// Shorter answers are sent as they are, in bytes.
const COMPRESSED_FROM: usize = 1024;

/// What a client understands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Format {
    protobuf: bool,
    gzip: bool,
    /// Whether JSON that language models read easily is wanted, where there is one.
    pub(super) llm: bool,
}

impl Format {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        Self {
            protobuf: accepts(headers, &ACCEPT, "application/protobuf"),
            llm: accepts(headers, &ACCEPT, "application/vnd.grafana.llm"),
            gzip: accepts(headers, &ACCEPT_ENCODING, "gzip"),
        }
    }

    /// The same message, for both forms.
    pub(super) fn answer(self, message: &(impl Message + ToJson)) -> Response {
        self.answer_as(message, message)
    }

    /// A message whose JSON has a form of its own. Takes as long as the message is large.
    pub(super) fn answer_as(self, message: &impl Message, json: &impl ToJson) -> Response {
        let (content_type, body) =
            if self.protobuf { (PROTOBUF, message.encode_to_vec()) } else { (JSON, json.to_json().into_bytes()) };
        self.send(content_type, body)
    }

    /// JSON that language models read easily.
    pub(super) fn answer_llm(self, json: &serde_json::Value) -> Response {
        self.send(LLM, json.to_string().into_bytes())
    }

    /// JSON that is written already.
    pub(super) fn answer_json(self, json: Vec<u8>) -> Response {
        self.send(JSON, json)
    }

    fn send(self, content_type: HeaderValue, body: Vec<u8>) -> Response {
        let compressed = if self.gzip && body.len() >= COMPRESSED_FROM { compress(&body) } else { None };
        let encoded = compressed.is_some();
        let mut response = Response::new(Body::from(compressed.unwrap_or(body)));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, content_type);
        headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
        if encoded {
            headers.insert(CONTENT_ENCODING, GZIP);
        }
        response
    }
}

/// Whether a list like `gzip;q=0.5, br` names something and does not exclude it.
fn accepts(headers: &HeaderMap, name: &HeaderName, wanted: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|item| {
        let (item, quality) = item.split_once(';').unwrap_or((item, ""));
        let refused = quality.trim().strip_prefix("q=").and_then(|q| q.parse().ok()).is_some_and(|q: f32| q == 0.0);
        item.trim().eq_ignore_ascii_case(wanted) && !refused
    })
}

/// `None` never happens: memory does not refuse to be written to.
fn compress(body: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 4), Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain("gzip", true)]
    #[case::list("br, gzip", true)]
    #[case::quality("gzip;q=0.5", true)]
    #[case::refused("gzip;q=0, br", false)]
    #[case::other("br", false)]
    #[case::part("gzipped", false)]
    fn knows_what_is_accepted(#[case] header: &str, #[case] accepted: bool) {
        let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_str(header).unwrap())]);
        assert_eq!(accepts(&headers, &ACCEPT_ENCODING, "gzip"), accepted);
    }
}
