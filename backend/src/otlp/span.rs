//! Views of spans and of what is in them.

use coati_common::stitch::caller_of;
use coati_common::wellknown::span::COATI_SPAN_PARTIAL;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;

use super::check::Odd;
use super::field;
use super::value::{Attributes, Text, ValueRef};
use super::wire::{Fields, Wire};

/// A `Span` that was checked. Its fields are read once, when the view is made; lists are read as they are asked for.
#[derive(Clone, Copy, Debug)]
pub struct SpanRef<'a> {
    message: &'a [u8],
    /// From the first attribute on.
    attributes: &'a [u8],
    /// 16 bytes.
    pub trace_id: &'a [u8],
    /// 8 bytes.
    pub span_id: &'a [u8],
    /// 8 bytes; empty or zero if there is none.
    pub parent_span_id: &'a [u8],
    /// W3C trace state.
    pub trace_state: Text<'a>,
    /// Name.
    pub name: Text<'a>,
    /// Number of the `SpanKind`.
    pub kind: i32,
    /// Start, nanoseconds since the epoch.
    pub start_time_unix_nano: u64,
    /// End, nanoseconds since the epoch.
    pub end_time_unix_nano: u64,
    /// W3C trace flags.
    pub flags: u32,
    /// Attributes that the sender left out.
    pub dropped_attributes_count: u32,
    /// Events that the sender left out.
    pub dropped_events_count: u32,
    /// Links that the sender left out.
    pub dropped_links_count: u32,
    /// Outcome, if it was sent.
    pub status: Option<StatusRef<'a>>,
    has_events: bool,
    has_links: bool,
}

/// A `Status`.
#[derive(Clone, Copy, Debug, Default)]
pub struct StatusRef<'a> {
    /// Description of an error.
    pub message: Text<'a>,
    /// Number of the `StatusCode`.
    pub code: i32,
}

impl<'a> SpanRef<'a> {
    /// Reads an encoded `Span` that was checked.
    pub fn parse(message: &'a [u8]) -> Self {
        let mut span = Self::empty(message);
        let begun = span.begin();
        _ = span.fill::<true>(begun, |_, _| Ok(()));
        span
    }

    /// Reads an encoded `Span`; `check` is shown each field but ids.
    pub(super) fn read(
        message: &'a [u8],
        mut check: impl FnMut(u32, Wire<'a>) -> Result<(), Odd>,
    ) -> Result<Self, Odd> {
        let mut span = Self::empty(message);
        let begun = span.begin();
        // Of what was read so far only texts can be wrong.
        check(field::TRACE_STATE, Wire::Bytes(span.trace_state.as_bytes()))?;
        check(field::NAME, Wire::Bytes(span.name.as_bytes()))?;
        span.fill::<false>(begun, check)?;
        Ok(span)
    }

    /// Reads the fields that nearly every sender writes first, in the order of their numbers; gives what comes behind them.
    #[inline]
    fn begin(&mut self) -> Fields<'a> {
        let mut fields = Fields::of(self.message);
        if let Some(id) = fields.short(field::TRACE_ID) {
            self.trace_id = id;
        }
        if let Some(id) = fields.short(field::SPAN_ID) {
            self.span_id = id;
        }
        if let Some(text) = fields.short(field::TRACE_STATE) {
            self.trace_state = Text(text);
        }
        if let Some(id) = fields.short(field::PARENT_SPAN_ID) {
            self.parent_span_id = id;
        }
        if let Some(text) = fields.short(field::NAME) {
            self.name = Text(text);
        }
        fields
    }

    fn empty(message: &'a [u8]) -> Self {
        Self {
            message,
            attributes: &[],
            trace_id: &[],
            span_id: &[],
            parent_span_id: &[],
            trace_state: Text::default(),
            name: Text::default(),
            kind: 0,
            start_time_unix_nano: 0,
            end_time_unix_nano: 0,
            flags: 0,
            dropped_attributes_count: 0,
            dropped_events_count: 0,
            dropped_links_count: 0,
            status: None,
            has_events: false,
            has_links: false,
        }
    }

    /// Of attributes only the first is shown to `check` if `SKIPS` says so.
    #[inline]
    fn fill<const SKIPS: bool>(
        &mut self,
        mut fields: Fields<'a>,
        mut check: impl FnMut(u32, Wire<'a>) -> Result<(), Odd>,
    ) -> Result<(), Odd> {
        let span = self;
        let mut before = fields.rest();
        while let Some((number, value)) = fields.next() {
            check(number, value)?;
            match (number, value) {
                (field::TRACE_ID, Wire::Bytes(id)) => span.trace_id = id,
                (field::SPAN_ID, Wire::Bytes(id)) => span.span_id = id,
                (field::TRACE_STATE, Wire::Bytes(text)) => span.trace_state = Text(text),
                (field::PARENT_SPAN_ID, Wire::Bytes(id)) => span.parent_span_id = id,
                (field::NAME, Wire::Bytes(text)) => span.name = Text(text),
                (field::KIND, Wire::Varint(kind)) => span.kind = kind as i32,
                (field::START, Wire::Fixed64(nanos)) => span.start_time_unix_nano = nanos,
                (field::END, Wire::Fixed64(nanos)) => span.end_time_unix_nano = nanos,
                (field::ATTRIBUTES, Wire::Bytes(_)) if span.attributes.is_empty() => {
                    span.attributes = before;
                    // The others stand behind it, nearly always.
                    while let Some(attribute) = fields.short(field::ATTRIBUTES) {
                        if !SKIPS {
                            check(field::ATTRIBUTES, Wire::Bytes(attribute))?;
                        }
                    }
                }
                (field::DROPPED_ATTRIBUTES_COUNT, Wire::Varint(count)) => span.dropped_attributes_count = count as u32,
                (field::EVENTS, Wire::Bytes(_)) => span.has_events = true,
                (field::DROPPED_EVENTS_COUNT, Wire::Varint(count)) => span.dropped_events_count = count as u32,
                (field::LINKS, Wire::Bytes(_)) => span.has_links = true,
                (field::DROPPED_LINKS_COUNT, Wire::Varint(count)) => span.dropped_links_count = count as u32,
                (field::STATUS, Wire::Bytes(status)) => span.status = Some(StatusRef::parse(status)),
                (field::FLAGS, Wire::Fixed32(flags)) => span.flags = flags,
                _ => {}
            }
            before = fields.rest();
        }
        if fields.is_whole() { Ok(()) } else { Err(Odd) }
    }

    /// Id of an encoded `Span` that was checked, if it is a client's. Reads no further than it must.
    pub fn client_id(message: &[u8]) -> Option<[u8; 8]> {
        let (mut id, mut is_client) = (None, None);
        for read in Fields::of(message) {
            match read {
                (field::SPAN_ID, Wire::Bytes(bytes)) => id = bytes.try_into().ok(),
                (field::KIND, Wire::Varint(kind)) => is_client = Some(kind == SpanKind::Client as u64),
                _ => continue,
            }
            match (id, is_client) {
                (_, Some(false)) => return None,
                (Some(_), Some(true)) => return id,
                _ => {}
            }
        }
        None
    }

    /// The span as it was sent.
    pub const fn as_bytes(&self) -> &'a [u8] {
        self.message
    }

    /// The message.
    pub fn decode(&self) -> Span {
        // It was checked.
        Span::decode(self.message).unwrap_or_default()
    }

    /// Its attributes, in the order in which they were sent.
    pub const fn attributes(&self) -> Attributes<'a> {
        Attributes::of(self.attributes, field::ATTRIBUTES)
    }

    /// Whether it was sent before its end: a later one with the same ids, kind and start replaces it. Goes through its
    /// attributes.
    pub fn is_partial(&self) -> bool {
        let mark = self.attributes().of_keys(|key| key == *COATI_SPAN_PARTIAL).next();
        mark.is_some_and(|mark| matches!(mark.value, Some(ValueRef::Bool(true))))
    }

    /// Its events.
    pub fn events(&self) -> impl Iterator<Item = EventRef<'a>> + use<'a> {
        messages(if self.has_events { self.message } else { &[] }, field::EVENTS).map(EventRef::parse)
    }

    /// Its links.
    pub fn links(&self) -> impl Iterator<Item = LinkRef<'a>> + use<'a> {
        messages(if self.has_links { self.message } else { &[] }, field::LINKS).map(LinkRef::parse)
    }

    /// True for a span without a parent; some senders write a parent of zeros for that.
    pub fn is_root(&self) -> bool {
        self.parent_span_id.iter().all(|byte| *byte == 0)
    }

    /// True for the server's end of a request.
    pub fn is_server(&self) -> bool {
        self.kind == SpanKind::Server as i32
    }

    /// True for a root, and for a span whose parent is in a trace that is not known yet: until it is, or for good, there is
    /// nothing above it.
    pub fn is_top(&self) -> bool {
        let caller = || self.trace_id.try_into().ok().and_then(caller_of);
        self.is_root() || caller().is_some_and(|caller| caller == self.parent_span_id)
    }
}

impl<'a> StatusRef<'a> {
    fn parse(message: &'a [u8]) -> Self {
        let mut status = Self::default();
        for read in Fields::of(message) {
            match read {
                (field::status::MESSAGE, Wire::Bytes(text)) => status.message = Text(text),
                (field::status::CODE, Wire::Varint(code)) => status.code = code as i32,
                _ => {}
            }
        }
        status
    }
}

/// An event.
#[derive(Clone, Copy, Debug)]
pub struct EventRef<'a> {
    message: &'a [u8],
    /// When it happened, nanoseconds since the epoch.
    pub time_unix_nano: u64,
    /// Name.
    pub name: Text<'a>,
    /// Attributes that the sender left out.
    pub dropped_attributes_count: u32,
}

impl<'a> EventRef<'a> {
    fn parse(message: &'a [u8]) -> Self {
        let mut event = Self { message, time_unix_nano: 0, name: Text::default(), dropped_attributes_count: 0 };
        for read in Fields::of(message) {
            match read {
                (field::event::TIME, Wire::Fixed64(nanos)) => event.time_unix_nano = nanos,
                (field::event::NAME, Wire::Bytes(text)) => event.name = Text(text),
                (field::event::DROPPED_ATTRIBUTES_COUNT, Wire::Varint(count)) => {
                    event.dropped_attributes_count = count as u32;
                }
                _ => {}
            }
        }
        event
    }

    /// Its attributes.
    pub const fn attributes(&self) -> Attributes<'a> {
        Attributes::of(self.message, field::event::ATTRIBUTES)
    }
}

/// A link to another span.
#[derive(Clone, Copy, Debug)]
pub struct LinkRef<'a> {
    message: &'a [u8],
    /// As it was sent; 16 bytes if it is right.
    pub trace_id: &'a [u8],
    /// As it was sent; 8 bytes if it is right.
    pub span_id: &'a [u8],
    /// W3C trace state.
    pub trace_state: Text<'a>,
    /// Attributes that the sender left out.
    pub dropped_attributes_count: u32,
    /// W3C trace flags.
    pub flags: u32,
}

impl<'a> LinkRef<'a> {
    fn parse(message: &'a [u8]) -> Self {
        let (trace_id, span_id): (&[u8], &[u8]) = (&[], &[]);
        let trace_state = Text::default();
        let mut link = Self { message, trace_id, span_id, trace_state, dropped_attributes_count: 0, flags: 0 };
        for read in Fields::of(message) {
            match read {
                (field::link::TRACE_ID, Wire::Bytes(id)) => link.trace_id = id,
                (field::link::SPAN_ID, Wire::Bytes(id)) => link.span_id = id,
                (field::link::TRACE_STATE, Wire::Bytes(text)) => link.trace_state = Text(text),
                (field::link::DROPPED_ATTRIBUTES_COUNT, Wire::Varint(count)) => {
                    link.dropped_attributes_count = count as u32;
                }
                (field::link::FLAGS, Wire::Fixed32(flags)) => link.flags = flags,
                _ => {}
            }
        }
        link
    }

    /// Its attributes.
    pub const fn attributes(&self) -> Attributes<'a> {
        Attributes::of(self.message, field::link::ATTRIBUTES)
    }
}

/// The messages in the field of this number.
fn messages(message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    Fields::of(message).filter_map(move |field| match field {
        (found, Wire::Bytes(inner)) if found == number => Some(inner),
        _ => None,
    })
}
