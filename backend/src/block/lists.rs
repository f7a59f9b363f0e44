//! Lists that wait to be written: attributes without a column, events, links.

use parquet::errors::ParquetError;

use super::encodings::Leaves;
use super::pages::{Bools, Column, Dictionary, Leaf, Numbers, Split, Texts};
use crate::otlp::{EventRef, LinkRef, Text, ValueRef};

/// Value of an attribute.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value<'a> {
    String(Text<'a>),
    Int(i64),
    Double(f64),
    Bool(bool),
    /// An encoded `AnyValue`.
    Other(&'a [u8]),
    /// None at all.
    Nothing,
}

impl<'a> Value<'a> {
    #[inline]
    pub(super) fn of(value: Option<ValueRef<'a>>) -> Self {
        match value {
            Some(ValueRef::String(text)) => Self::String(text),
            Some(ValueRef::Int(int)) => Self::Int(int),
            Some(ValueRef::Double(double)) => Self::Double(double),
            Some(ValueRef::Bool(truth)) => Self::Bool(truth),
            Some(ValueRef::Array(encoded) | ValueRef::Other(encoded)) => Self::Other(encoded.as_bytes()),
            Some(ValueRef::Empty) => Self::Other(&[]),
            None => Self::Nothing,
        }
    }
}

/// A list of attributes, in each row or in each element of another list.
pub(super) struct AttributeList {
    /// 1 for a list in a row, 2 for a list in a list.
    depth: u32,
    /// Row of the row group that the list is in.
    row: usize,
    /// Which list goes on with the next attribute: 0 if it is the first of the row.
    repetition: u32,
    is_empty: bool,
    key: Column<Dictionary<Texts>>,
    string: Column<Dictionary<Texts>>,
    int: Column<Dictionary<Numbers<i64>>>,
    double: Column<Split<f64>>,
    bool: Column<Bools>,
    other: Column<Dictionary<Texts>>,
}

impl AttributeList {
    pub(super) fn new(depth: u32, leaves: &mut Leaves<'_>) -> Result<Self, ParquetError> {
        Ok(Self {
            depth,
            row: 0,
            repetition: 0,
            is_empty: true,
            key: leaves.column()?,
            string: leaves.column()?,
            int: leaves.column()?,
            double: leaves.column()?,
            bool: leaves.column()?,
            other: leaves.column()?,
        })
    }

    /// Begins the list of a row, or of an element of another list, of which `repetition` is 0 if it is the first of its row.
    #[inline]
    pub(super) fn begin(&mut self, row: usize, repetition: u32) {
        (self.row, self.repetition, self.is_empty) = (row, repetition, true);
    }

    /// Adds an attribute to the list.
    pub(super) fn push(&mut self, key: Text<'_>, value: Value<'_>) {
        let (row, repetition) = (self.row, std::mem::replace(&mut self.repetition, self.depth));
        self.is_empty = false;
        let (absent, present) = (self.depth, self.depth + 1);
        let at = |is_there: bool| if is_there { present } else { absent };
        let (mut string, mut int, mut double, mut bool, mut other) = (None, None, None, None, None);
        match value {
            Value::String(text) => string = Some(text.as_bytes()),
            Value::Int(value) => int = Some(value),
            Value::Double(value) => double = Some(value),
            Value::Bool(value) => bool = Some(value),
            Value::Other(bytes) => other = Some(bytes),
            Value::Nothing => {}
        }
        self.key.element(row, repetition, absent, Some(key.as_bytes()));
        self.string.element(row, repetition, at(string.is_some()), string);
        self.int.element(row, repetition, at(int.is_some()), int);
        self.double.element(row, repetition, at(double.is_some()), double);
        self.bool.element(row, repetition, at(bool.is_some()), bool);
        self.other.element(row, repetition, at(other.is_some()), other);
    }

    /// Ends the list of an element of another list.
    pub(super) fn end(&mut self) {
        if !self.is_empty {
            return;
        }
        let (row, repetition) = (self.row, self.repetition);
        let definition = self.depth - 1;
        self.key.element(row, repetition, definition, None);
        self.string.element(row, repetition, definition, None);
        self.int.element(row, repetition, definition, None);
        self.double.element(row, repetition, definition, None);
        self.bool.element(row, repetition, definition, None);
        self.other.element(row, repetition, definition, None);
    }

    /// Its columns, in the order of the schema.
    pub(super) fn leaves(&mut self) -> [&mut dyn Leaf; 6] {
        [&mut self.key, &mut self.string, &mut self.int, &mut self.double, &mut self.bool, &mut self.other]
    }
}

/// The events of each row.
pub(super) struct Events {
    time_offset: Column<Dictionary<Numbers<i64>>>,
    name: Column<Dictionary<Texts>>,
    dropped_attributes_count: Column<Dictionary<Numbers<u32>>>,
    attributes: AttributeList,
}

impl Events {
    pub(super) fn new(leaves: &mut Leaves<'_>) -> Result<Self, ParquetError> {
        Ok(Self {
            time_offset: leaves.column()?,
            name: leaves.column()?,
            dropped_attributes_count: leaves.column()?,
            attributes: AttributeList::new(2, leaves)?,
        })
    }

    /// Adds the event of this number to a row, so many nanoseconds (modulo 2^64) after the start of the span; the list of
    /// its attributes comes back, and must be ended.
    pub(super) fn push(
        &mut self,
        row: usize,
        number: usize,
        time_offset: i64,
        event: &EventRef<'_>,
    ) -> &mut AttributeList {
        let repetition = u32::from(number > 0);
        let dropped = not_0(event.dropped_attributes_count);
        self.time_offset.element(row, repetition, 1, Some(time_offset));
        self.name.element(row, repetition, 1, Some(event.name.as_bytes()));
        self.dropped_attributes_count.element(row, repetition, 1 + u32::from(dropped.is_some()), dropped);
        self.attributes.begin(row, repetition);
        &mut self.attributes
    }

    /// Its columns, in the order of the schema.
    pub(super) fn leaves(&mut self) -> impl Iterator<Item = &mut dyn Leaf> {
        let own: [&mut dyn Leaf; 3] = [&mut self.time_offset, &mut self.name, &mut self.dropped_attributes_count];
        own.into_iter().chain(self.attributes.leaves())
    }
}

/// The links of each row.
pub(super) struct Links {
    trace_id: Column<Dictionary<Texts>>,
    span_id: Column<Dictionary<Texts>>,
    trace_state: Column<Dictionary<Texts>>,
    flags: Column<Dictionary<Numbers<u32>>>,
    dropped_attributes_count: Column<Dictionary<Numbers<u32>>>,
    attributes: AttributeList,
}

impl Links {
    pub(super) fn new(leaves: &mut Leaves<'_>) -> Result<Self, ParquetError> {
        Ok(Self {
            trace_id: leaves.column()?,
            span_id: leaves.column()?,
            trace_state: leaves.column()?,
            flags: leaves.column()?,
            dropped_attributes_count: leaves.column()?,
            attributes: AttributeList::new(2, leaves)?,
        })
    }

    /// Adds the link of this number to a row; the list of its attributes comes back, and must be ended.
    pub(super) fn push(&mut self, row: usize, number: usize, link: &LinkRef<'_>) -> &mut AttributeList {
        let repetition = u32::from(number > 0);
        let at = |is_there: bool| 1 + u32::from(is_there);
        let (state, flags, dropped) = (text(link.trace_state), not_0(link.flags), not_0(link.dropped_attributes_count));
        self.trace_id.element(row, repetition, 1, Some(link.trace_id));
        self.span_id.element(row, repetition, 1, Some(link.span_id));
        self.trace_state.element(row, repetition, at(state.is_some()), state);
        self.flags.element(row, repetition, at(flags.is_some()), flags);
        self.dropped_attributes_count.element(row, repetition, at(dropped.is_some()), dropped);
        self.attributes.begin(row, repetition);
        &mut self.attributes
    }

    /// Its columns, in the order of the schema.
    pub(super) fn leaves(&mut self) -> impl Iterator<Item = &mut dyn Leaf> {
        let own: [&mut dyn Leaf; 5] = [
            &mut self.trace_id,
            &mut self.span_id,
            &mut self.trace_state,
            &mut self.flags,
            &mut self.dropped_attributes_count,
        ];
        own.into_iter().chain(self.attributes.leaves())
    }
}

/// None for an empty text.
pub(super) fn text(text: Text<'_>) -> Option<&[u8]> {
    (!text.is_empty()).then_some(text.as_bytes())
}

/// None for 0.
pub(super) fn not_0(number: u32) -> Option<u32> {
    (number != 0).then_some(number)
}
