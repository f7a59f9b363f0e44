//! What the fields of a header block say: of a request, of a response, and in trailers.

use bytes::Bytes;

use super::{
    super::{
        framing::Framing,
        http1::{Field, RequestHead, ResponseHead, text},
        method::{Method, Version},
        target::Target,
    },
    hpack::HeaderField,
};
use crate::inference::recognise;

/// Bytes of a request's fields that are kept.
const TEXT_LIMIT: usize = 16 * 1024;
/// Fields of a block that are kept for who wants to see headers.
const OTHERS: usize = 64;
/// What the content type of gRPC begins with.
const GRPC: &[u8] = b"application/grpc";

/// A header that may be missing, or be there without that its value is known.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
enum Header {
    #[default]
    Missing,
    Unknown,
    Value(Bytes),
}

impl Header {
    fn set(&mut self, value: Option<Bytes>) {
        *self = value.map_or(Self::Unknown, Self::Value);
    }

    fn value(&self) -> Option<&[u8]> {
        match self {
            Self::Value(value) => Some(value),
            Self::Missing | Self::Unknown => None,
        }
    }
}

/// The fields of a block that matter.
#[derive(Debug, Default)]
pub(super) struct Fields {
    method: Header,
    scheme: Header,
    authority: Header,
    path: Header,
    status: Header,
    host: Header,
    user_agent: Header,
    content_type: Header,
    grpc_status: Header,
    traceparent: Vec<Option<Bytes>>,
    tracestate: Vec<Bytes>,
    /// The names and values of those that are none of these.
    others: Vec<(Bytes, Bytes)>,
    /// A name is not known, so it may be any.
    is_incomplete: bool,
}

impl Fields {
    pub(super) fn add(&mut self, field: HeaderField) {
        let HeaderField { name, value } = field;
        let Some(name) = name else {
            self.is_incomplete = true;
            return;
        };
        match &*name {
            b":method" => self.method.set(value),
            b":scheme" => self.scheme.set(value),
            b":authority" => self.authority.set(value),
            b":path" => self.path.set(value),
            b":status" => self.status.set(value),
            b"host" => self.host.set(value),
            b"user-agent" => self.user_agent.set(value),
            b"content-type" => self.content_type.set(value),
            b"grpc-status" => self.grpc_status.set(value),
            b"traceparent" => self.traceparent.push(value),
            b"tracestate" => self.tracestate.extend(value),
            _ => {
                if let Some(value) = value
                    && self.others.len() < OTHERS
                {
                    self.others.push((name, value));
                }
            }
        }
    }

    /// The content is gRPC's, as far as is known.
    pub(super) fn is_grpc(&self) -> bool {
        self.grpc_status != Header::Missing || self.content_type.value().is_some_and(|value| value.starts_with(GRPC))
    }

    /// `grpc-status`.
    pub(super) fn grpc_status(&self) -> Option<u32> {
        number(self.grpc_status.value()?)
    }

    /// An empty line, and one for each header as in HTTP/1.
    fn lines(&self) -> String {
        let own = [("host", &self.host), ("user-agent", &self.user_agent), ("content-type", &self.content_type)];
        let own = own.into_iter().filter_map(|(name, header)| Some((name.as_bytes(), header.value()?)));
        let traceparent = self.traceparent.iter().flatten().map(|value| (&b"traceparent"[..], &value[..]));
        let tracestate = self.tracestate.iter().map(|value| (&b"tracestate"[..], &value[..]));
        let others = self.others.iter().map(|(name, value)| (&name[..], &value[..]));
        let mut lines = String::from("\n");
        for (name, value) in own.chain(traceparent).chain(tracestate).chain(others) {
            // A line's end within a line would make two of it.
            if lines.len() + name.len() + value.len() < TEXT_LIMIT && !name.contains(&b'\n') && !value.contains(&b'\n')
            {
                lines.extend([&*text(name), ":", &*text(value), "\n"]);
            }
        }
        lines
    }

    /// The head of a request, with all its headers if they are wanted; `None` if its method is not known.
    pub(super) fn request(&self, keeps_headers: bool) -> Option<RequestHead> {
        let method = self.method.value()?;
        let mut text = Text::default();
        let method = text.add(method)?;
        let mut add = |header: &Header| header.value().and_then(|value| text.add(value));
        let (scheme, authority, path) = (add(&self.scheme), add(&self.authority), add(&self.path));
        let (host, user_agent) = (add(&self.host), add(&self.user_agent));
        let traceparent = match self.traceparent.as_slice() {
            [Some(value)] => text.add(value),
            _ => None,
        };
        let tracestate = self.tracestate.iter().filter_map(|value| text.add(value)).collect();
        let is_known = |header: &Header| matches!(header, Header::Value(_));
        let method_text = method.text(&text.text).to_owned();
        let target = match path.map(|path| (path, path.text(&text.text))) {
            Some((_, "*")) => Target::Asterisk,
            Some((path, whole)) => {
                let (path, query) = path.split(whole, '?');
                Target::Path { scheme, authority, path: Some(path), query }
            }
            None => match authority {
                Some(authority) if method_text == "CONNECT" => Target::Authority(authority),
                _ => Target::Unknown { authority },
            },
        };
        let cut = self.is_incomplete
            || !is_known(&self.authority) && !is_known(&self.host)
            || matches!(target, Target::Unknown { .. })
            || self.traceparent.contains(&None)
            || text.is_full;
        let headers_from = text.text.len();
        if keeps_headers {
            text.text.push_str(&self.lines());
        }
        let mut head = RequestHead {
            headers_from,
            method: Method::from_text(&method_text),
            method_text: method,
            target,
            host,
            user_agent,
            traceparents: u8::try_from(self.traceparent.len()).unwrap_or(u8::MAX),
            traceparent,
            tracestate,
            version: Some(Version::Http2),
            framing: Framing::default(),
            cut,
            text: text.text.into(),
            model: None,
            is_verbatim: false,
        };
        head.model = recognise(&head);
        Some(head)
    }

    /// The head of a response, with its headers if they are wanted; `None` if its status is not known.
    pub(super) fn response(&self, keeps_headers: bool) -> Option<ResponseHead> {
        let status = self.status.value().filter(|value| value.len() == 3).and_then(number)?;
        let text = keeps_headers.then(|| self.lines().into());
        Some(ResponseHead::http2(u16::try_from(status).ok()?, text))
    }
}

/// The kept fields of a request, one behind the other.
#[derive(Default)]
struct Text {
    text: String,
    /// Something did not fit.
    is_full: bool,
}

impl Text {
    /// Adds a value; where it lies. Bytes that are not UTF-8 become `_`, as in HTTP/1.
    fn add(&mut self, value: &[u8]) -> Option<Field> {
        if self.text.len() + value.len() > TEXT_LIMIT {
            self.is_full = true;
            return None;
        }
        let start = self.text.len();
        self.text.push_str(&text(value));
        Some(Field::at(start, self.text.len()))
    }
}

/// Digits only: `str::parse` would also take a sign.
fn number(value: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(value).ok()?;
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}
