//! Columns of lists: attributes without a column of their own, events, links.

use std::ops::Range;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, Int64Type};
use arrow_array::{Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, StructArray};
use opentelemetry_proto::tonic::common::v1::AnyValue;
use prost::Message;

use super::texts::{Binaries, Texts};
use crate::block::schema::{attribute, event, link};
use crate::query::value::Value;

/// Lists of attributes, one for each row.
#[derive(Debug)]
pub(super) struct AttributeLists {
    list: ListArray,
    keys: Texts,
    strings: Option<Texts>,
    ints: Option<Int64Array>,
    doubles: Option<Float64Array>,
    bools: Option<BooleanArray>,
    /// Decoded, because values are shown as references. Empty if no row has such a value.
    others: Vec<Option<AnyValue>>,
}

impl AttributeLists {
    /// None if the column is something else.
    pub(super) fn of(array: &ArrayRef) -> Option<Self> {
        let (list, elements) = list_of(array)?;
        let column = |name| elements.column_by_name(name);
        let others = match column(attribute::OTHER) {
            Some(others) if others.null_count() < others.len() => {
                let bytes = Binaries::of(others)?;
                (0..others.len()).map(|row| AnyValue::decode(bytes.get(row)?).ok()).collect()
            }
            _ => Vec::new(),
        };
        Some(Self {
            keys: Texts::of(column(attribute::KEY)?)?,
            strings: column(attribute::STRING).and_then(Texts::of),
            ints: column(attribute::INT).and_then(|array| array.as_primitive_opt::<Int64Type>().cloned()),
            doubles: column(attribute::DOUBLE).and_then(|array| array.as_primitive_opt::<Float64Type>().cloned()),
            bools: column(attribute::BOOL).and_then(|array| array.as_boolean_opt().cloned()),
            others,
            list,
        })
    }

    /// Keys and values of a row, in the order in which they were sent.
    pub(super) fn of_row(&self, row: usize) -> impl Iterator<Item = (&str, Value<'_>)> {
        elements(&self.list, row).map(|element| (self.keys.get(element).unwrap_or_default(), self.value(element)))
    }

    /// The first value of a key in a row.
    pub(super) fn get(&self, row: usize, name: &str) -> Option<Value<'_>> {
        let element = elements(&self.list, row).find(|element| self.keys.get(*element) == Some(name))?;
        Some(self.value(element))
    }

    fn value(&self, element: usize) -> Value<'_> {
        if let Some(text) = self.strings.as_ref().and_then(|array| array.get(element)) {
            return Value::text_of(text);
        }
        if let Some(array) = self.ints.as_ref().filter(|array| element < array.len() && array.is_valid(element)) {
            return Value::Int(array.value(element));
        }
        if let Some(array) = self.doubles.as_ref().filter(|array| element < array.len() && array.is_valid(element)) {
            return Value::Float(array.value(element));
        }
        if let Some(array) = self.bools.as_ref().filter(|array| element < array.len() && array.is_valid(element)) {
            return Value::Bool(array.value(element));
        }
        Value::of(self.others.get(element).and_then(Option::as_ref))
    }
}

/// Lists of events.
#[derive(Debug)]
pub(super) struct Events {
    list: ListArray,
    time_offsets: Option<Int64Array>,
    names: Option<Texts>,
    attributes: Option<AttributeLists>,
}

impl Events {
    /// None if the column is something else.
    pub(super) fn of(array: &ArrayRef) -> Option<Self> {
        let (list, elements) = list_of(array)?;
        let column = |name| elements.column_by_name(name);
        Some(Self {
            time_offsets: column(event::TIME_OFFSET).and_then(|array| array.as_primitive_opt::<Int64Type>().cloned()),
            names: column(event::NAME).and_then(Texts::of),
            attributes: column(event::ATTRIBUTES).and_then(AttributeLists::of),
            list,
        })
    }

    /// Names of the events of a row.
    pub(super) fn names(&self, row: usize) -> impl Iterator<Item = &str> {
        let name = |element| self.names.as_ref().and_then(|names| names.get(element)).unwrap_or_default();
        elements(&self.list, row).map(name)
    }

    /// When the events of a row were, nanoseconds after the start of the span, modulo 2^64.
    pub(super) fn time_offsets(&self, row: usize) -> impl Iterator<Item = i64> {
        let offset =
            |element| self.time_offsets.as_ref().filter(|array| element < array.len()).map(|a| a.value(element));
        elements(&self.list, row).map(move |element| offset(element).unwrap_or_default())
    }

    /// Attributes of the events of a row.
    pub(super) fn attributes(&self, row: usize) -> impl Iterator<Item = (&str, Value<'_>)> {
        let lists = self.attributes.iter();
        lists.flat_map(move |lists| elements(&self.list, row).flat_map(move |element| lists.of_row(element)))
    }
}

/// Lists of links.
#[derive(Debug)]
pub(super) struct Links {
    list: ListArray,
    trace_ids: Option<Binaries>,
    span_ids: Option<Binaries>,
    attributes: Option<AttributeLists>,
}

impl Links {
    /// None if the column is something else.
    pub(super) fn of(array: &ArrayRef) -> Option<Self> {
        let (list, elements) = list_of(array)?;
        let column = |name| elements.column_by_name(name);
        Some(Self {
            trace_ids: column(link::TRACE_ID).and_then(Binaries::of),
            span_ids: column(link::SPAN_ID).and_then(Binaries::of),
            attributes: column(link::ATTRIBUTES).and_then(AttributeLists::of),
            list,
        })
    }

    pub(super) fn trace_ids(&self, row: usize) -> impl Iterator<Item = &[u8]> {
        let id = |element| self.trace_ids.as_ref().and_then(|ids| ids.get(element)).unwrap_or_default();
        elements(&self.list, row).map(id)
    }

    pub(super) fn span_ids(&self, row: usize) -> impl Iterator<Item = &[u8]> {
        let id = |element| self.span_ids.as_ref().and_then(|ids| ids.get(element)).unwrap_or_default();
        elements(&self.list, row).map(id)
    }

    /// Attributes of the links of a row.
    pub(super) fn attributes(&self, row: usize) -> impl Iterator<Item = (&str, Value<'_>)> {
        let lists = self.attributes.iter();
        lists.flat_map(move |lists| elements(&self.list, row).flat_map(move |element| lists.of_row(element)))
    }
}

fn list_of(array: &ArrayRef) -> Option<(ListArray, StructArray)> {
    let list: &ListArray = array.as_list_opt::<i32>()?;
    Some((list.clone(), list.values().as_struct_opt()?.clone()))
}

/// Places of a row's elements.
fn elements(list: &ListArray, row: usize) -> Range<usize> {
    let place = |index: usize| list.value_offsets().get(index).map_or(0, |offset| *offset as usize);
    place(row)..place(row + 1)
}
