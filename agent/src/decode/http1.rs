//! Heads of HTTP/1 messages.
//!
//! The bytes are what the kernel could copy: a head may come in pieces, and it may be cut by the capture limit. A piece
//! is read with `parse`, which says whether more is needed; a head of which no more will come is read with `parse_cut`.
//! Both are as lenient as common servers are: bare line feeds, several spaces and invalid header lines are accepted.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    mem::MaybeUninit,
};

use httparse::{Header, ParserConfig, Request, Response, Status};

use super::{
    framing::Framing,
    method::{Method, Version},
    target::Target,
};
use crate::inference::{Kind, recognise};

/// Longest head that is put together, bytes. The kernel copies far less; this only bounds memory.
pub(super) const HEAD_LIMIT: usize = 16 * 1024;

/// Headers that nearly every head stays below.
const HEADERS: usize = 64;
/// Headers that fit into the bytes that the kernel copies.
const MANY_HEADERS: usize = 512;

/// Why bytes are no head.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum HeadError {
    /// The bytes are not HTTP/1.
    #[error("malformed HTTP head of {len} bytes")]
    Malformed {
        /// Bytes that were looked at.
        len: usize,
        /// What the parser says.
        #[source]
        source: httparse::Error,
    },
    /// Too little was captured to tell method and target, or a status.
    #[error("only {len} bytes of the HTTP head were captured")]
    Unreadable {
        /// Bytes that were captured.
        len: usize,
    },
}

/// A head that can be read from bytes.
pub trait Head: Sized {
    /// The head at the start of `bytes`; `None` while it is incomplete.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, HeadError>;

    /// What can be known of a head of which no more bytes will come.
    fn parse_cut(bytes: &[u8]) -> Result<Self, HeadError>;

    /// Bytes of the head on the wire; at least so many if it is cut.
    fn size(&self) -> usize;

    /// Keeps the headers of the head at the start of `bytes`, which this head was read from. Of a request they are kept
    /// anyway.
    fn keep_headers(&mut self, _bytes: &[u8]) {}
}

/// Names and values of the headers in the lines behind the first one. A value that goes on in the next line is cut there.
pub(super) fn headers(lines: &str) -> impl Iterator<Item = (&str, &str)> {
    lines.split('\n').skip(1).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic());
        is_name.then(|| (name, value.trim()))
    })
}

/// A part of a head, as offsets into its bytes.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Field {
    start: u16,
    end: u16,
}

impl Field {
    /// Where `part`, a piece of `whole`, lies in it.
    pub(super) fn of(whole: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr().addr().saturating_sub(whole.as_ptr().addr());
        // HEAD_LIMIT is below 64 Ki, so this cannot fail; an empty field is harmless.
        Self::at(start, start + part.len())
    }

    /// From byte `start` to before byte `end`.
    pub(super) fn at(start: usize, end: usize) -> Self {
        match (u16::try_from(start), u16::try_from(end)) {
            (Ok(start), Ok(end)) => Self { start, end },
            _ => Self::default(),
        }
    }

    /// Its parts before and behind the first `separator` in `text`, which is its text.
    pub(super) fn split(self, text: &str, separator: char) -> (Self, Option<Self>) {
        let Some((before, behind)) = text.split_once(separator) else { return (self, None) };
        let (start, end) = (usize::from(self.start), usize::from(self.end));
        (Self::at(start, start + before.len()), Some(Self::at(end.saturating_sub(behind.len()), end)))
    }

    pub(super) fn text(self, whole: &str) -> &str {
        whole.get(usize::from(self.start)..usize::from(self.end)).unwrap_or_default()
    }
}

/// Head of a request. Bytes that are not UTF-8 are given as `_`.
#[derive(Clone, Debug)]
pub struct RequestHead {
    pub(super) text: Box<str>,
    /// Where the line before the first header begins.
    pub(super) headers_from: usize,
    pub(super) method_text: Field,
    pub(super) target: Target,
    pub(super) host: Option<Field>,
    pub(super) user_agent: Option<Field>,
    pub(super) traceparent: Option<Field>,
    pub(super) traceparents: u8,
    pub(super) tracestate: Vec<Field>,
    /// Method.
    pub method: Method,
    /// Version; `None` if the request line is cut.
    pub version: Option<Version>,
    /// Length of the body.
    pub framing: Framing,
    /// The end of the head was not captured: headers may be missing, and where the body starts is unknown.
    pub cut: bool,
    /// What it asks of a model, if it may.
    pub model: Option<Kind>,
    /// The text is the bytes as they were sent.
    pub(super) is_verbatim: bool,
}

impl RequestHead {
    /// Whether these bytes begin with the same head, to the last byte: then reading them would give this one again.
    pub(super) fn begins(&self, bytes: &[u8]) -> bool {
        self.is_verbatim && !self.cut && bytes.starts_with(self.text.as_bytes())
    }

    /// The same for the same bytes.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.text.get(self.headers_from..).hash(&mut hasher);
        hasher.finish()
    }

    /// The method as it was sent.
    pub fn method_text(&self) -> &str {
        self.method_text.text(&self.text)
    }

    /// Path of the target, `/` if an absolute target has none; `None` for `*` and for the authority of a `CONNECT`.
    pub fn path(&self) -> Option<&str> {
        match self.target {
            Target::Path { path: Some(path), .. } => Some(path.text(&self.text)),
            Target::Path { path: None, .. } => Some("/"),
            Target::Authority(_) | Target::Asterisk | Target::Unknown { .. } => None,
        }
    }

    /// The target is not known at all (HTTP/2).
    pub const fn is_target_unknown(&self) -> bool {
        matches!(self.target, Target::Unknown { .. })
    }

    /// Query of the target, without the question mark.
    pub fn query(&self) -> Option<&str> {
        match self.target {
            Target::Path { query, .. } => query.map(|query| query.text(&self.text)),
            Target::Authority(_) | Target::Asterisk | Target::Unknown { .. } => None,
        }
    }

    /// Scheme of an absolute target.
    pub fn scheme(&self) -> Option<&str> {
        match self.target {
            Target::Path { scheme, .. } => scheme.map(|scheme| scheme.text(&self.text)),
            Target::Authority(_) | Target::Asterisk | Target::Unknown { .. } => None,
        }
    }

    /// Authority that the request is for: that of the target if it has one (RFC 9112 §3.2.2), else the `Host` header.
    pub fn host(&self) -> Option<&str> {
        let of_target = match self.target {
            Target::Path { authority, .. } | Target::Unknown { authority } => authority,
            Target::Authority(authority) => Some(authority),
            Target::Asterisk => None,
        };
        of_target.or(self.host).map(|host| host.text(&self.text)).filter(|host| !host.is_empty())
    }

    /// Names and values of the headers that were captured. Of HTTP/2 only if the decoder was told to keep them.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        headers(self.text.get(self.headers_from..).unwrap_or_default())
    }

    /// `User-Agent`.
    pub fn user_agent(&self) -> Option<&str> {
        self.user_agent.map(|field| field.text(&self.text))
    }

    /// `traceparent`, unchecked; `None` too if there are several, as which one counts is undefined.
    pub fn traceparent(&self) -> Option<&str> {
        if self.traceparents == 1 { self.traceparent.map(|field| field.text(&self.text)) } else { None }
    }

    /// `tracestate`, unchecked; several headers are joined in their order. Empty if there is none.
    pub fn tracestate(&self) -> String {
        let mut joined = String::new();
        for field in &self.tracestate {
            let value = field.text(&self.text);
            if !joined.is_empty() && !value.is_empty() {
                joined.push(',');
            }
            joined.push_str(value);
        }
        joined
    }

    /// Reads the head, `size` bytes, out of what the parser found in `bytes`.
    fn new(bytes: &[u8], size: usize, request: &Request<'_, '_>) -> Self {
        let method_text = request.method.unwrap_or_default();
        let target = Target::parse(request.path.unwrap_or_default(), method_text, |part| Field::of(bytes, part));
        let bytes_of_head = bytes.get(..size).unwrap_or(bytes);
        let text = text(bytes_of_head);
        let mut head = Self {
            is_verbatim: text.as_bytes() == bytes_of_head,
            text,
            // Empty lines may come first.
            headers_from: usize::from(Field::of(bytes, method_text.as_bytes()).start),
            method_text: Field::of(bytes, method_text.as_bytes()),
            target,
            host: None,
            user_agent: None,
            traceparent: None,
            traceparents: 0,
            tracestate: Vec::new(),
            method: Method::from_text(method_text),
            version: request.version.map(Version::from_minor),
            framing: Framing::default(),
            cut: false,
            model: None,
        };
        for Header { name, value } in request.headers.iter() {
            head.header(name, value, Field::of(bytes, value));
        }
        head.model = recognise(&head);
        head
    }

    /// Takes note of a header. Lengths are compared first: most headers are none of these.
    fn header(&mut self, name: &str, value: &[u8], field: Field) {
        let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
        match name.len() {
            4 if is("host") => {
                self.host.get_or_insert(field);
            }
            10 if is("user-agent") => {
                self.user_agent.get_or_insert(field);
            }
            10 if is("tracestate") => self.tracestate.push(field),
            11 if is("traceparent") => {
                self.traceparent = Some(field);
                self.traceparents = self.traceparents.saturating_add(1);
            }
            14 if is("content-length") => self.framing.content_length(value),
            17 if is("transfer-encoding") => self.framing.transfer_encoding(value),
            _ => {}
        }
    }

    /// A request line whose end was not captured: the method, and as much of the target as there is.
    fn parse_cut_line(bytes: &[u8]) -> Result<Self, HeadError> {
        let unreadable = HeadError::Unreadable { len: bytes.len() };
        let mut words = bytes.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(unreadable) };
        let mut line = Vec::with_capacity(bytes.len() + 16);
        line.extend_from_slice(method);
        line.push(b' ');
        line.extend_from_slice(target);
        line.extend_from_slice(b" HTTP/1.1\r\n\r\n");
        let mut head = Self::parse(&line)?.ok_or(unreadable)?;
        head.version = None;
        head.cut = true;
        Ok(head)
    }
}

impl Head for RequestHead {
    fn parse(bytes: &[u8]) -> Result<Option<Self>, HeadError> {
        let bytes = bytes.get(..HEAD_LIMIT).unwrap_or(bytes);
        let mut outcome = parse_request::<HEADERS>(bytes);
        if matches!(outcome, Err(httparse::Error::TooManyHeaders)) {
            outcome = parse_request::<MANY_HEADERS>(bytes);
        }
        if matches!(outcome, Err(httparse::Error::Token)) && std::str::from_utf8(bytes).is_err() {
            // Servers take any byte in a target, the parser only UTF-8.
            outcome = parse_request::<MANY_HEADERS>(text(bytes).as_bytes());
            if let Ok(Some(head)) = &mut outcome {
                head.is_verbatim = false;
            }
        }
        outcome.map_err(|source| HeadError::Malformed { len: bytes.len(), source })
    }

    fn parse_cut(bytes: &[u8]) -> Result<Self, HeadError> {
        let Some(closed) = close(bytes) else { return Self::parse_cut_line(bytes) };
        let mut head = Self::parse(&closed)?.ok_or(HeadError::Unreadable { len: bytes.len() })?;
        head.cut = true;
        Ok(head)
    }

    fn size(&self) -> usize {
        self.text.len()
    }
}

/// Head of a response.
#[derive(Clone, Debug)]
pub struct ResponseHead {
    size: usize,
    /// The head, if its headers are kept.
    text: Option<Box<str>>,
    /// Status code.
    pub status: u16,
    /// Version.
    pub version: Version,
    /// Length of the body.
    pub framing: Framing,
    /// The end of the head was not captured: headers may be missing, and where the body starts is unknown.
    pub cut: bool,
    /// What a connection becomes with a 101.
    pub upgrade: Option<Upgrade>,
}

/// Protocols that a connection can be switched to and that are followed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Upgrade {
    /// HTTP/2 in clear text.
    H2c,
    /// WebSocket.
    WebSocket,
}

impl Upgrade {
    fn parse(value: &[u8]) -> Option<Self> {
        match value.trim_ascii() {
            value if value.eq_ignore_ascii_case(b"h2c") => Some(Self::H2c),
            value if value.eq_ignore_ascii_case(b"websocket") => Some(Self::WebSocket),
            _ => None,
        }
    }
}

impl ResponseHead {
    /// Of a response by HTTP/2; `text` is an empty line and one for each header, if they are kept.
    pub(super) fn http2(status: u16, text: Option<Box<str>>) -> Self {
        Self { size: 0, text, status, version: Version::Http2, framing: Framing::default(), cut: false, upgrade: None }
    }

    /// Names and values of the headers that were captured, if the decoder was told to keep them.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        headers(self.text.as_deref().unwrap_or_default())
    }

    /// Another response to the same request follows.
    pub const fn is_interim(&self) -> bool {
        self.status >= 100 && self.status < 200 && self.status != 101
    }

    fn new(size: usize, response: &Response<'_, '_>) -> Self {
        let mut head = Self {
            size,
            text: None,
            status: response.code.unwrap_or_default(),
            version: Version::from_minor(response.version.unwrap_or(1)),
            framing: Framing::default(),
            cut: false,
            upgrade: None,
        };
        for Header { name, value } in response.headers.iter() {
            let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
            match name.len() {
                7 if is("upgrade") => head.upgrade = Upgrade::parse(value),
                14 if is("content-length") => head.framing.content_length(value),
                17 if is("transfer-encoding") => head.framing.transfer_encoding(value),
                _ => {}
            }
        }
        head
    }
}

impl Head for ResponseHead {
    fn parse(bytes: &[u8]) -> Result<Option<Self>, HeadError> {
        let bytes = bytes.get(..HEAD_LIMIT).unwrap_or(bytes);
        let mut outcome = parse_response::<HEADERS>(bytes);
        if matches!(outcome, Err(httparse::Error::TooManyHeaders)) {
            outcome = parse_response::<MANY_HEADERS>(bytes);
        }
        outcome.map_err(|source| HeadError::Malformed { len: bytes.len(), source })
    }

    fn parse_cut(bytes: &[u8]) -> Result<Self, HeadError> {
        let closed = match close(bytes) {
            Some(closed) => closed,
            // A status line without its end: the code is known if a complete one is there.
            None => [bytes.trim_ascii_end(), b"\r\n\r\n"].concat(),
        };
        let mut head = Self::parse(&closed)?.ok_or(HeadError::Unreadable { len: bytes.len() })?;
        head.cut = true;
        Ok(head)
    }

    fn size(&self) -> usize {
        self.size
    }

    fn keep_headers(&mut self, bytes: &[u8]) {
        // Of a cut head the last line may be a piece of one.
        let end = if self.cut { bytes.iter().rposition(|byte| *byte == b'\n').unwrap_or(0) } else { self.size };
        self.text = Some(text(bytes.get(..end).unwrap_or(bytes)));
    }
}

fn parse_request<const N: usize>(bytes: &[u8]) -> Result<Option<RequestHead>, httparse::Error> {
    let mut config = ParserConfig::default();
    config.allow_multiple_spaces_in_request_line_delimiters(true).ignore_invalid_headers_in_requests(true);
    let mut headers = [const { MaybeUninit::uninit() }; N];
    let mut request = Request::new(&mut []);
    match config.parse_request_with_uninit_headers(&mut request, bytes, &mut headers)? {
        Status::Partial => Ok(None),
        Status::Complete(size) => Ok(Some(RequestHead::new(bytes, size, &request))),
    }
}

fn parse_response<const N: usize>(bytes: &[u8]) -> Result<Option<ResponseHead>, httparse::Error> {
    let mut config = ParserConfig::default();
    config
        .allow_multiple_spaces_in_response_status_delimiters(true)
        .allow_obsolete_multiline_headers_in_responses(true)
        .allow_spaces_after_header_name_in_responses(true)
        .ignore_invalid_headers_in_responses(true);
    let mut headers = [const { MaybeUninit::uninit() }; N];
    let mut response = Response::new(&mut []);
    match config.parse_response_with_uninit_headers(&mut response, bytes, &mut headers)? {
        Status::Partial => Ok(None),
        Status::Complete(size) => Ok(Some(ResponseHead::new(size, &response))),
    }
}

/// `bytes` as text in which everything stands where it did: what is not UTF-8 becomes `_`, byte by byte.
pub(super) fn text(bytes: &[u8]) -> Box<str> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return text.into();
    }
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| '_'));
    }
    text.into()
}

/// The complete lines of a cut head with the empty line that ends a head; `None` without a complete line.
fn close(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().rposition(|byte| *byte == b'\n')? + 1;
    let mut closed = Vec::with_capacity(end + 2);
    closed.extend_from_slice(bytes.get(..end)?);
    closed.extend_from_slice(b"\r\n");
    Some(closed)
}

#[cfg(test)]
#[path = "http1_tests.rs"]
mod tests;
