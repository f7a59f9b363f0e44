//! Attributes and their values.

use opentelemetry_proto::tonic::common::v1::AnyValue;
use prost::Message;

use super::field;
use super::wire::{Fields, Wire};

/// A text that was checked to be UTF-8. Many are only copied or compared; as a `str` it is looked at once more.
#[derive(Clone, Copy, Default, Eq, Hash, PartialEq)]
pub struct Text<'a>(pub(super) &'a [u8]);

impl<'a> Text<'a> {
    /// A text that is known to be one.
    pub(crate) const fn of_checked(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The text.
    pub fn as_str(self) -> &'a str {
        std::str::from_utf8(self.0).unwrap_or_default()
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.as_str(), f)
    }
}

impl PartialEq<str> for Text<'_> {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

/// A `KeyValue`.
#[derive(Clone, Copy, Debug)]
pub struct AttributeRef<'a> {
    /// Its key.
    pub key: Text<'a>,
    /// Its value; none if it was sent without.
    pub value: Option<ValueRef<'a>>,
}

impl<'a> AttributeRef<'a> {
    /// Reads an encoded `KeyValue` that was checked.
    #[inline]
    pub fn parse(message: &'a [u8]) -> Self {
        let (key, value) = Self::parts(message);
        Self { key, value: value.map(ValueRef::parse) }
    }

    /// Its key, and its value as it was sent.
    #[inline]
    fn parts(message: &'a [u8]) -> (Text<'a>, Option<&'a [u8]>) {
        let mut fields = Fields::of(message);
        let mut key = fields.short(field::attribute::KEY).map(Text).unwrap_or_default();
        let mut value = fields.short(field::attribute::VALUE);
        for read in fields {
            match read {
                (field::attribute::KEY, Wire::Bytes(text)) => key = Text(text),
                (field::attribute::VALUE, Wire::Bytes(any)) => value = Some(any),
                _ => {}
            }
        }
        (key, value)
    }
}

/// An `AnyValue`.
#[derive(Clone, Copy, Debug)]
pub enum ValueRef<'a> {
    /// Sent with nothing in it.
    Empty,
    /// `stringValue`.
    String(Text<'a>),
    /// `boolValue`.
    Bool(bool),
    /// `intValue`.
    Int(i64),
    /// `doubleValue`.
    Double(f64),
    /// `arrayValue`.
    Array(Encoded<'a>),
    /// Any other: bytes, a map.
    Other(Encoded<'a>),
}

/// An `AnyValue` as it was sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Encoded<'a>(&'a [u8]);

impl<'a> ValueRef<'a> {
    /// The value of an encoded `AnyValue`.
    #[inline]
    pub fn parse(message: &'a [u8]) -> Self {
        let mut fields = Fields::of(message);
        let mut value = fields.short(field::any::STRING).map_or(Self::Empty, |text| Self::String(Text(text)));
        for read in fields {
            value = match read {
                (field::any::STRING, Wire::Bytes(text)) => Self::String(Text(text)),
                (field::any::BOOL, Wire::Varint(truth)) => Self::Bool(truth != 0),
                (field::any::INT, Wire::Varint(int)) => Self::Int(int as i64),
                (field::any::DOUBLE, Wire::Fixed64(bits)) => Self::Double(f64::from_bits(bits)),
                (field::any::ARRAY, Wire::Bytes(_)) => Self::Array(Encoded(message)),
                (field::any::PAIRS | field::any::BYTES, Wire::Bytes(_)) | (field::any::INDEX, Wire::Varint(_)) => {
                    Self::Other(Encoded(message))
                }
                _ => continue,
            };
        }
        value
    }
}

impl<'a> Encoded<'a> {
    /// The encoded `AnyValue`.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// The message.
    pub fn decode(self) -> AnyValue {
        // It was checked.
        AnyValue::decode(self.0).unwrap_or_default()
    }

    /// The elements of an array; none of what is no array.
    pub fn elements(self) -> impl Iterator<Item = ValueRef<'a>> {
        let arrays = Fields::of(self.0).filter_map(|read| match read {
            (field::any::ARRAY, Wire::Bytes(array)) => Some(array),
            _ => None,
        });
        arrays.flat_map(Fields::of).filter_map(|read| match read {
            (field::ELEMENT, Wire::Bytes(element)) => Some(ValueRef::parse(element)),
            _ => None,
        })
    }
}

/// The attributes of a message, in their order.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    fields: Fields<'a>,
    /// Number of the field that holds them.
    number: u32,
}

impl<'a> Attributes<'a> {
    pub(super) const fn of(message: &'a [u8], number: u32) -> Self {
        Self { fields: Fields::of(message), number }
    }

    /// Those whose keys are wanted. The values of others are not read.
    pub fn of_keys(self, is_wanted: impl Fn(Text<'a>) -> bool) -> impl Iterator<Item = AttributeRef<'a>> {
        self.encoded().filter_map(move |attribute| {
            let (key, value) = AttributeRef::parts(attribute);
            is_wanted(key).then(|| AttributeRef { key, value: value.map(ValueRef::parse) })
        })
    }

    /// The encoded `KeyValue`s.
    pub fn encoded(self) -> impl Iterator<Item = &'a [u8]> {
        let mut attributes = self;
        std::iter::from_fn(move || attributes.next_encoded())
    }

    #[inline]
    fn next_encoded(&mut self) -> Option<&'a [u8]> {
        loop {
            // Nearly all are short, and stand together.
            if let Some(attribute) = self.fields.short(self.number) {
                return Some(attribute);
            }
            match self.fields.next()? {
                (found, Wire::Bytes(attribute)) if found == self.number => return Some(attribute),
                _ => {}
            }
        }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = AttributeRef<'a>;

    #[inline]
    fn next(&mut self) -> Option<AttributeRef<'a>> {
        self.next_encoded().map(AttributeRef::parse)
    }
}
