//! Small HTTP requests of tests and the demo.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// Status and body of an answer, whatever the status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Body as it came.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .with_context(|| format!("not JSON (status {}): {}", self.status, self.text()))
    }
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(30)))
        .build()
        .new_agent()
}

/// GET.
pub fn get(url: &str) -> Result<Answer> {
    get_with(url, &[])
}

/// GET with headers.
pub fn get_with(url: &str, headers: &[(&str, &str)]) -> Result<Answer> {
    let request = headers.iter().fold(agent().get(url), |request, (name, value)| request.header(*name, *value));
    read(request.call().with_context(|| format!("GET {url}"))?).with_context(|| format!("GET {url}"))
}

/// POST with a content type.
pub fn post(url: &str, content_type: &str, body: &[u8]) -> Result<Answer> {
    post_with(url, &[("content-type", content_type)], body)
}

/// POST with headers.
pub fn post_with(url: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    let request = headers.iter().fold(agent().post(url), |request, (name, value)| request.header(*name, *value));
    read(request.send(body).with_context(|| format!("POST {url}"))?).with_context(|| format!("POST {url}"))
}

fn read(mut response: ureq::http::Response<ureq::Body>) -> Result<Answer> {
    let status = response.status().as_u16();
    Ok(Answer { status, body: response.body_mut().with_config().limit(256 << 20).read_to_vec()? })
}

/// Percent-encodes a query parameter's value.
pub fn encode(value: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let encode = |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    value.bytes().map(encode).collect()
}
