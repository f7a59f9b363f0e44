//! What tells where the body of a message ends (RFC 9112 §6).

/// What a head says about the length of its message's body.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Framing {
    /// `Content-Length`.
    pub content_length: Option<u64>,
    /// The last transfer coding is `chunked`.
    pub chunked: bool,
    /// `Content-Length` or `Transfer-Encoding` make no sense: where the body ends cannot be known.
    pub contradictory: bool,
}

impl Framing {
    pub(super) fn content_length(&mut self, value: &[u8]) {
        // A list of equal numbers is one number (RFC 9112 §6.3); this also covers a repeated header.
        for item in value.split(|byte| *byte == b',') {
            let length = std::str::from_utf8(item.trim_ascii()).ok().and_then(parse_digits);
            match (length, self.content_length) {
                (None, _) => self.contradictory = true,
                (Some(new), Some(old)) if new != old => self.contradictory = true,
                (Some(new), _) => self.content_length = Some(new),
            }
        }
    }

    pub(super) fn transfer_encoding(&mut self, value: &[u8]) {
        let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
        self.chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
        self.contradictory |= !self.chunked;
    }
}

/// `str::parse` would also take a sign.
fn parse_digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}
