//! Attributes of spans that wait to be written: columns of the promoted ones, the list of the others, and the order.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use parquet::errors::ParquetError;

use super::attributes::{AttributeCounts, AttributeType, Columns};
use super::encodings::Leaves;
use super::lists::{AttributeList, Value};
use super::pages::{Bools, Column, Dictionary, Leaf, Numbers, Split, Texts};
use super::schema::ORDER_OF_LIST;

/// The attributes of each row.
pub(super) struct SpanAttributes {
    order: Column<Dictionary<Texts>>,
    promoted: Vec<PromotedColumn>,
    list: AttributeList,
    by_key: HashMap<Box<str>, usize, RandomState>,
    /// What came after each column, and first in a span, when it was there last: keys come in few orders.
    successors: Vec<Option<usize>>,
    /// Rows so far, of all row groups.
    rows: u64,
    /// Row of the row group that gets attributes.
    row: usize,
    order_of_row: Order,
    /// Number and 1 of the column of the attribute before; 0 without one.
    before: usize,
    in_list: AttributeCounts,
}

struct PromotedColumn {
    key: Box<str>,
    values: PromotedValues,
    /// The row, from 1, that had the key last.
    seen: u64,
    count: u64,
}

enum PromotedValues {
    String(Column<Dictionary<Texts>>),
    Int(Column<Dictionary<Numbers<i64>>>),
    Double(Column<Split<f64>>),
    Bool(Column<Bools>),
}

impl PromotedValues {
    fn new(of: AttributeType, leaves: &mut Leaves<'_>) -> Result<Self, ParquetError> {
        Ok(match of {
            AttributeType::Int => Self::Int(leaves.column()?),
            AttributeType::Double => Self::Double(leaves.column()?),
            AttributeType::Bool => Self::Bool(leaves.column()?),
            AttributeType::String | AttributeType::Other => Self::String(leaves.column()?),
        })
    }

    fn of(&self) -> AttributeType {
        match self {
            Self::String(_) => AttributeType::String,
            Self::Int(_) => AttributeType::Int,
            Self::Double(_) => AttributeType::Double,
            Self::Bool(_) => AttributeType::Bool,
        }
    }

    /// Sets the value of a row; false if it is of another type.
    #[inline]
    fn set(&mut self, row: usize, value: Value<'_>) -> bool {
        match (self, value) {
            (Self::String(column), Value::String(text)) => column.set(row, text.as_bytes()),
            (Self::Int(column), Value::Int(int)) => column.set(row, int),
            (Self::Double(column), Value::Double(double)) => column.set(row, double),
            (Self::Bool(column), Value::Bool(truth)) => column.set(row, truth),
            _ => return false,
        }
        true
    }

    fn leaf(&mut self) -> &mut dyn Leaf {
        match self {
            Self::String(column) => column,
            Self::Int(column) => column,
            Self::Double(column) => column,
            Self::Bool(column) => column,
        }
    }
}

impl SpanAttributes {
    pub(super) fn new(columns: &Columns, leaves: &mut Leaves<'_>) -> Result<Self, ParquetError> {
        let order = leaves.column()?;
        let promoted = columns.promoted().iter().map(|promoted| {
            let values = PromotedValues::new(promoted.of, leaves)?;
            Ok(PromotedColumn { key: promoted.key.clone(), values, seen: 0, count: 0 })
        });
        let promoted = promoted.collect::<Result<_, ParquetError>>()?;
        let keys = columns.promoted().iter().enumerate();
        Ok(Self {
            order,
            promoted,
            list: AttributeList::new(1, leaves)?,
            by_key: keys.map(|(number, promoted)| (promoted.key.clone(), number)).collect(),
            successors: vec![None; columns.promoted().len() + 1],
            rows: 0,
            row: 0,
            order_of_row: Order::default(),
            before: 0,
            in_list: AttributeCounts::default(),
        })
    }

    /// Begins a row of the row group.
    pub(super) fn begin(&mut self, row: usize) {
        self.rows += 1;
        (self.row, self.before) = (row, 0);
        self.order_of_row.clear();
        self.list.begin(row, 0);
    }

    /// Adds an attribute to the row; returns how many bytes of its key are written.
    #[inline]
    pub(super) fn push(&mut self, key: &str, value: Value<'_>) -> usize {
        let number = self.column_of(key);
        if let Some(number) = number {
            self.before = number + 1;
            // Only the first of a key goes into the column, so that the first one in a span is always found there first.
            if let Some(column) = self.promoted.get_mut(number)
                && std::mem::replace(&mut column.seen, self.rows) != self.rows
                && column.values.set(self.row, value)
            {
                column.count += 1;
                self.order_of_row.push(number as u8);
                return 0;
            }
        }
        self.order_of_row.push(ORDER_OF_LIST);
        self.in_list.add(key, AttributeType::of_value(value), 1);
        self.list.push(key, value);
        key.len()
    }

    /// Ends the row.
    pub(super) fn end(&mut self) {
        if let Some(order) = self.order_of_row.bytes() {
            self.order.set(self.row, order);
        }
    }

    /// The column of a key.
    #[inline]
    fn column_of(&mut self, key: &str) -> Option<usize> {
        let successor = self.successors.get_mut(self.before)?;
        if let Some(number) = *successor
            && self.promoted.get(number).is_some_and(|column| *column.key == *key)
        {
            return Some(number);
        }
        let number = self.by_key.get(key).copied();
        *successor = number.or(*successor);
        number
    }

    /// How many rows so far, of all row groups, have an attribute.
    pub(super) fn counts(&self) -> AttributeCounts {
        // These first: of the keys in lists some may be left out, of these none.
        let mut counts = AttributeCounts::default();
        for column in &self.promoted {
            counts.add(&column.key, column.values.of(), column.count);
        }
        counts.merge(&self.in_list);
        counts
    }

    /// Its columns, in the order of the schema.
    pub(super) fn leaves(&mut self) -> impl Iterator<Item = &mut dyn Leaf> {
        let order: [&mut dyn Leaf; 1] = [&mut self.order];
        let promoted = self.promoted.iter_mut().map(|column| column.values.leaf());
        order.into_iter().chain(promoted).chain(self.list.leaves())
    }
}

/// In which order a span had its attributes.
#[derive(Default)]
struct Order {
    bytes: Vec<u8>,
    /// What may not come next in the usual order: all places below this one.
    least: u8,
    is_other: bool,
}

impl Order {
    fn clear(&mut self) {
        self.bytes.clear();
        (self.least, self.is_other) = (0, false);
    }

    #[inline]
    fn push(&mut self, place: u8) {
        // 255, the list, is above all columns: columns in their order, then the list, never fall.
        self.is_other |= place < self.least;
        self.least = place.saturating_add(1);
        self.bytes.push(place);
    }

    /// None if it is the usual one.
    fn bytes(&self) -> Option<&[u8]> {
        self.is_other.then_some(&self.bytes)
    }
}
