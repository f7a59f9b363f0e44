//! Whether a request is what prost would decode, found out without decoding it.

use opentelemetry_proto::tonic::common::v1 as common;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1 as trace;
use prost::Message;

use super::field::{any, attribute};
use super::span::SpanRef;
use super::value::Text;
use super::wire::{Fields, Wire};

/// Levels of messages that prost reads below the outermost one.
const MAX_DEPTH: u32 = 100;

/// Level of the attributes of a resource; those of scopes and spans are one below, those of events and links two.
const RESOURCE_ATTRIBUTE_DEPTH: u32 = 3;

/// A request that is none, or one that cannot be read in place: written in a way that is allowed but that no encoder
/// uses, such as a message field in two parts. prost tells which.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Odd;

/// A request that can be read in place.
#[derive(Clone, Debug)]
pub struct Checked<'a> {
    /// One for each `ResourceSpans`.
    pub resource_spans: Vec<ResourceSpansRef<'a>>,
    /// Bytes of all its messages in memory, were it decoded.
    pub decoded_bytes: usize,
}

/// A `ResourceSpans`.
#[derive(Clone, Debug)]
pub struct ResourceSpansRef<'a> {
    /// Its resource.
    pub resource: Resource,
    /// Its schema URL.
    pub schema_url: Text<'a>,
    /// One for each `ScopeSpans`.
    pub scope_spans: Vec<ScopeSpansRef<'a>>,
}

/// A `ScopeSpans`.
#[derive(Clone, Debug)]
pub struct ScopeSpansRef<'a> {
    /// Its scope.
    pub scope: common::InstrumentationScope,
    /// Its schema URL.
    pub schema_url: Text<'a>,
    /// Its spans.
    pub spans: Vec<SpanRef<'a>>,
}

/// Walks an `ExportTraceServiceRequest` once. What this lets pass prost decodes, to the same values as the views show.
pub fn check(request: &[u8]) -> Result<Checked<'_>, Odd> {
    let mut check = Check { decoded_bytes: 0 };
    let mut resource_spans = Vec::new();
    check.message(request, |check, number, field| {
        if let (1, Wire::Bytes(message)) = (number, field) {
            resource_spans.push(check.resource_spans(message)?);
            return Ok(());
        }
        unknown(number > 1)
    })?;
    Ok(Checked { resource_spans, decoded_bytes: check.decoded_bytes })
}

struct Check {
    decoded_bytes: usize,
}

impl Check {
    /// Shows the fields of a message.
    #[inline]
    fn message<'a>(
        &mut self,
        message: &'a [u8],
        mut field: impl FnMut(&mut Self, u32, Wire<'a>) -> Result<(), Odd>,
    ) -> Result<(), Odd> {
        let mut fields = Fields::of(message);
        for (number, wire) in fields.by_ref() {
            field(self, number, wire)?;
        }
        if fields.is_whole() { Ok(()) } else { Err(Odd) }
    }

    fn resource_spans<'a>(&mut self, message: &'a [u8]) -> Result<ResourceSpansRef<'a>, Odd> {
        self.decoded_bytes += size_of::<trace::ResourceSpans>();
        let mut resource = None;
        let mut schema_url = Text::default();
        let mut scope_spans = Vec::new();
        self.message(message, |check, number, field| {
            match (number, field) {
                (1, Wire::Bytes(message)) if resource.is_none() => resource = Some(check.resource(message)?),
                (2, Wire::Bytes(message)) => scope_spans.push(check.scope_spans(message)?),
                (3, Wire::Bytes(url)) => schema_url = text(url)?,
                _ => return unknown(number > 3),
            }
            Ok(())
        })?;
        Ok(ResourceSpansRef { resource: resource.unwrap_or_default(), schema_url, scope_spans })
    }

    fn scope_spans<'a>(&mut self, message: &'a [u8]) -> Result<ScopeSpansRef<'a>, Odd> {
        self.decoded_bytes += size_of::<trace::ScopeSpans>();
        let mut scope = None;
        let mut schema_url = Text::default();
        let mut spans = Vec::new();
        self.message(message, |check, number, field| {
            match (number, field) {
                (1, Wire::Bytes(message)) if scope.is_none() => scope = Some(check.scope(message)?),
                (2, Wire::Bytes(message)) => spans.push(check.span(message)?),
                (3, Wire::Bytes(url)) => schema_url = text(url)?,
                _ => return unknown(number > 3),
            }
            Ok(())
        })?;
        Ok(ScopeSpansRef { scope: scope.unwrap_or_default(), schema_url, spans })
    }

    /// One for many spans: decoded at once.
    fn resource(&mut self, message: &[u8]) -> Result<Resource, Odd> {
        self.message(message, |check, number, field| match (number, field) {
            (1, Wire::Bytes(attribute)) => check.attribute(attribute, RESOURCE_ATTRIBUTE_DEPTH),
            (2, Wire::Varint(_)) => Ok(()),
            (3, Wire::Bytes(entity)) => check.entity(entity),
            _ => unknown(number > 3),
        })?;
        Resource::decode(message).map_err(|_| Odd)
    }

    fn entity(&mut self, message: &[u8]) -> Result<(), Odd> {
        self.decoded_bytes += size_of::<common::EntityRef>();
        self.message(message, |check, number, field| match (number, field) {
            (1..=4, Wire::Bytes(_)) => {
                check.decoded_bytes += if number > 2 { size_of::<String>() } else { 0 };
                Ok(())
            }
            _ => unknown(number > 4),
        })
    }

    /// One for many spans: decoded at once.
    fn scope(&mut self, message: &[u8]) -> Result<common::InstrumentationScope, Odd> {
        self.message(message, |check, number, field| match (number, field) {
            (1 | 2, Wire::Bytes(_)) | (4, Wire::Varint(_)) => Ok(()),
            (3, Wire::Bytes(attribute)) => check.attribute(attribute, RESOURCE_ATTRIBUTE_DEPTH + 1),
            _ => unknown(number > 4),
        })?;
        common::InstrumentationScope::decode(message).map_err(|_| Odd)
    }

    fn span<'a>(&mut self, message: &'a [u8]) -> Result<SpanRef<'a>, Odd> {
        self.decoded_bytes += size_of::<trace::Span>();
        let mut has_status = false;
        SpanRef::read(message, |number, field| match (number, field) {
            (1 | 2 | 4, Wire::Bytes(_))
            | (6 | 10 | 12 | 14, Wire::Varint(_))
            | (7 | 8, Wire::Fixed64(_))
            | (16, Wire::Fixed32(_)) => Ok(()),
            (3 | 5, Wire::Bytes(bytes)) => text(bytes).map(drop),
            (9, Wire::Bytes(attribute)) => self.attribute(attribute, RESOURCE_ATTRIBUTE_DEPTH + 1),
            (11, Wire::Bytes(event)) => self.event(event),
            (13, Wire::Bytes(link)) => self.link(link),
            (15, Wire::Bytes(status)) if !std::mem::replace(&mut has_status, true) => self.status(status),
            _ => unknown(number > 16),
        })
    }

    fn event(&mut self, message: &[u8]) -> Result<(), Odd> {
        self.decoded_bytes += size_of::<trace::span::Event>();
        self.message(message, |check, number, field| match (number, field) {
            (1, Wire::Fixed64(_)) | (4, Wire::Varint(_)) => Ok(()),
            (2, Wire::Bytes(name)) => text(name).map(drop),
            (3, Wire::Bytes(attribute)) => check.attribute(attribute, RESOURCE_ATTRIBUTE_DEPTH + 2),
            _ => unknown(number > 4),
        })
    }

    fn link(&mut self, message: &[u8]) -> Result<(), Odd> {
        self.decoded_bytes += size_of::<trace::span::Link>();
        self.message(message, |check, number, field| match (number, field) {
            (1 | 2, Wire::Bytes(_)) | (5, Wire::Varint(_)) | (6, Wire::Fixed32(_)) => Ok(()),
            (3, Wire::Bytes(state)) => text(state).map(drop),
            (4, Wire::Bytes(attribute)) => check.attribute(attribute, RESOURCE_ATTRIBUTE_DEPTH + 2),
            _ => unknown(number > 6),
        })
    }

    fn status(&mut self, message: &[u8]) -> Result<(), Odd> {
        self.message(message, |_, number, field| match (number, field) {
            (2, Wire::Bytes(message)) => text(message).map(drop),
            (3, Wire::Varint(_)) => Ok(()),
            _ => unknown(number == 1 || number > 3),
        })
    }

    /// A `KeyValue` at this depth.
    #[inline]
    fn attribute(&mut self, message: &[u8], depth: u32) -> Result<(), Odd> {
        bounded(depth)?;
        self.decoded_bytes += size_of::<common::KeyValue>();
        // A value is one level deeper.
        if depth < MAX_DEPTH && is_short_text(message) { Ok(()) } else { self.any_attribute(message, depth) }
    }

    fn any_attribute(&mut self, message: &[u8], depth: u32) -> Result<(), Odd> {
        let mut has_value = false;
        self.message(message, |check, number, field| match (number, field) {
            (1, Wire::Bytes(key)) => text(key).map(drop),
            (2, Wire::Bytes(value)) if !std::mem::replace(&mut has_value, true) => check.value(value, depth + 1),
            (3, Wire::Varint(_)) => Ok(()),
            _ => unknown(number > 3),
        })
    }

    /// An `AnyValue` at this depth.
    fn value(&mut self, message: &[u8], depth: u32) -> Result<(), Odd> {
        bounded(depth)?;
        let mut has_value = false;
        self.message(message, |check, number, field| {
            // Of two the last one counts, or they are merged.
            if number <= 8 && std::mem::replace(&mut has_value, true) {
                return Err(Odd);
            }
            match (number, field) {
                (1, Wire::Bytes(string)) => text(string).map(drop),
                (2 | 3 | 8, Wire::Varint(_)) | (4, Wire::Fixed64(_)) | (7, Wire::Bytes(_)) => Ok(()),
                (5, Wire::Bytes(array)) => check.array(array, depth + 1),
                (6, Wire::Bytes(pairs)) => check.pairs(pairs, depth + 1),
                _ => unknown(number > 8),
            }
        })
    }

    fn array(&mut self, message: &[u8], depth: u32) -> Result<(), Odd> {
        bounded(depth)?;
        self.message(message, |check, number, field| match (number, field) {
            (1, Wire::Bytes(element)) => {
                check.decoded_bytes += size_of::<common::AnyValue>();
                check.value(element, depth + 1)
            }
            _ => unknown(number > 1),
        })
    }

    fn pairs(&mut self, message: &[u8], depth: u32) -> Result<(), Odd> {
        bounded(depth)?;
        self.message(message, |check, number, field| match (number, field) {
            (1, Wire::Bytes(pair)) => check.attribute(pair, depth + 1),
            _ => unknown(number > 1),
        })
    }
}

/// Whether this is a `KeyValue` as most are: key and text, both short, and nothing but ASCII, as its numbers and lengths are too.
#[inline]
fn is_short_text(message: &[u8]) -> bool {
    let mut fields = Fields::of(message);
    let (Some(_), Some(value)) = (fields.short(attribute::KEY), fields.short(attribute::VALUE)) else { return false };
    let mut value = Fields::of(value);
    value.short(any::STRING).is_some() && value.is_whole() && fields.is_whole() && message.is_ascii()
}

fn bounded(depth: u32) -> Result<(), Odd> {
    if depth > MAX_DEPTH { Err(Odd) } else { Ok(()) }
}

/// Fields of numbers that OTLP does not have are passed over, as prost does; a known one of another type is an error.
fn unknown(is_unknown: bool) -> Result<(), Odd> {
    if is_unknown { Ok(()) } else { Err(Odd) }
}

#[inline]
fn text(bytes: &[u8]) -> Result<Text<'_>, Odd> {
    // Most texts are ASCII, which is told in larger steps.
    if bytes.is_ascii() || std::str::from_utf8(bytes).is_ok() { Ok(Text(bytes)) } else { Err(Odd) }
}
