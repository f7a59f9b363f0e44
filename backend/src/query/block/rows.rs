//! Some rows of a block, decoded as far as a query needs them.

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float64Type, Int32Type, Int64Type, UInt64Type};
use arrow_array::{
    Array, ArrayRef, BooleanArray, FixedSizeBinaryArray, Float64Array, Int32Array, Int64Array, PrimitiveArray,
    RecordBatch, UInt64Array,
};

use super::columns::Columns;
use super::lists::{AttributeLists, Events, Links};
use super::texts::{Binaries, Texts};
use crate::block::schema::column;
use crate::block::{ResourceEntry, ScopeEntry};
use crate::live::TraceId;
use crate::query::value::Value;

/// What rows say the numbers of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables<'b> {
    pub(super) resources: &'b [ResourceEntry],
    pub(super) scopes: &'b [ScopeEntry],
}

/// Rows; columns that were not asked for are none.
#[derive(Debug)]
pub(super) struct Rows<'b> {
    pub(super) tables: Tables<'b>,
    pub(super) len: usize,
    trace_ids: Option<FixedSizeBinaryArray>,
    pub(super) span_ids: Option<FixedSizeBinaryArray>,
    pub(super) parent_span_ids: Option<Binaries>,
    nested_left: Option<Int32Array>,
    nested_right: Option<Int32Array>,
    nested_parent: Option<Int32Array>,
    trace_start: Option<UInt64Array>,
    trace_end: Option<UInt64Array>,
    start_offset: Option<UInt64Array>,
    duration: Option<Int64Array>,
    pub(super) names: Option<Texts>,
    pub(super) kinds: Option<Int32Array>,
    pub(super) status_codes: Option<Int32Array>,
    pub(super) status_messages: Option<Texts>,
    pub(super) resources: Option<Int32Array>,
    pub(super) scopes: Option<Int32Array>,
    /// Attributes with a column of their own.
    pub(super) promoted: Vec<(Box<str>, AttributeColumn)>,
    /// All other attributes.
    pub(super) attributes: Option<AttributeLists>,
    pub(super) events: Option<Events>,
    pub(super) links: Option<Links>,
}

/// An attribute with a column of its own.
#[derive(Clone, Debug)]
pub(super) enum AttributeColumn {
    Text(Texts),
    Int(Int64Array),
    Double(Float64Array),
    Bool(BooleanArray),
}

impl AttributeColumn {
    fn of(array: &ArrayRef) -> Option<Self> {
        if let Some(texts) = Texts::of(array) {
            return Some(Self::Text(texts));
        }
        let int = || array.as_primitive_opt::<Int64Type>().cloned().map(Self::Int);
        let double = || array.as_primitive_opt::<Float64Type>().cloned().map(Self::Double);
        let bool = || array.as_boolean_opt().cloned().map(Self::Bool);
        int().or_else(double).or_else(bool)
    }

    /// As [`Texts::code`].
    #[inline]
    pub(super) fn code(&self, row: usize) -> Option<usize> {
        if let Self::Text(texts) = self { texts.code(row) } else { None }
    }

    /// None for a null.
    pub(super) fn get(&self, row: usize) -> Option<Value<'_>> {
        match self {
            Self::Text(texts) => texts.get(row).map(Value::text_of),
            Self::Int(array) => has(array, row).then(|| Value::Int(array.value(row))),
            Self::Double(array) => has(array, row).then(|| Value::Float(array.value(row))),
            Self::Bool(array) => has(array, row).then(|| Value::Bool(array.value(row))),
        }
    }
}

fn has(array: &impl Array, row: usize) -> bool {
    row < array.len() && array.is_valid(row)
}

fn get<T: ArrowPrimitiveType>(array: Option<&PrimitiveArray<T>>, row: usize) -> Option<T::Native> {
    array.filter(|array| has(*array, row)).map(|array| array.value(row))
}

impl<'b> Rows<'b> {
    /// Rows that were read as `columns` says.
    pub(super) fn of(batch: &RecordBatch, columns: &Columns, tables: Tables<'b>) -> Self {
        let array = |name: &str| batch.column_by_name(name);
        let int = |name: &str| array(name).and_then(|array| array.as_primitive_opt::<Int32Type>().cloned());
        let unsigned = |name: &str| array(name).and_then(|array| array.as_primitive_opt::<UInt64Type>().cloned());
        let ids = |name: &str| array(name).and_then(|array| array.as_fixed_size_binary_opt().cloned());
        let promoted = columns.promoted.iter().filter_map(|(key, name)| {
            let array = batch.column_by_name(name)?;
            Some((key.clone(), AttributeColumn::of(array)?))
        });
        Self {
            tables,
            len: batch.num_rows(),
            trace_ids: ids(column::TRACE_ID),
            span_ids: ids(column::SPAN_ID),
            parent_span_ids: array(column::PARENT_SPAN_ID).and_then(Binaries::of),
            nested_left: int(column::NESTED_LEFT),
            nested_right: int(column::NESTED_RIGHT),
            nested_parent: int(column::NESTED_PARENT),
            trace_start: unsigned(column::TRACE_START),
            trace_end: unsigned(column::TRACE_END),
            start_offset: unsigned(column::START_OFFSET),
            duration: array(column::DURATION).and_then(|array| array.as_primitive_opt::<Int64Type>().cloned()),
            names: array(column::NAME).and_then(Texts::of),
            kinds: int(column::KIND),
            status_codes: int(column::STATUS_CODE),
            status_messages: array(column::STATUS_MESSAGE).and_then(Texts::of),
            resources: int(column::RESOURCE),
            scopes: int(column::SCOPE),
            promoted: promoted.collect(),
            attributes: array(column::ATTRIBUTES).and_then(AttributeLists::of),
            events: array(column::EVENTS).and_then(Events::of),
            links: array(column::LINKS).and_then(Links::of),
        }
    }

    /// Whether the tables have all resources and scopes that the rows say the numbers of.
    pub(super) fn fit_tables(&self) -> bool {
        let fit = |numbers: Option<&Int32Array>, length: usize| {
            let mut numbers = numbers.into_iter().flatten().flatten();
            numbers.all(|number| usize::try_from(number).is_ok_and(|number| number < length))
        };
        fit(self.resources.as_ref(), self.tables.resources.len()) && fit(self.scopes.as_ref(), self.tables.scopes.len())
    }

    /// Whether the span was sent without a parent.
    pub(super) fn is_root(&self, row: usize) -> bool {
        let parent = self.parent_span_ids.as_ref().and_then(|ids| ids.get(row));
        // One that is in the trace is not spelt out.
        parent.map_or(self.nested_parent(row) == -1, |id| id.iter().all(|byte| *byte == 0))
    }

    /// All zero if it was not read.
    pub(super) fn trace_id(&self, row: usize) -> TraceId {
        let ids = self.trace_ids.as_ref().filter(|ids| row < ids.len());
        ids.and_then(|ids| TraceId::try_from(ids.value(row)).ok()).unwrap_or(TraceId([0; 16]))
    }

    pub(super) fn span_id(&self, row: usize) -> &[u8] {
        self.span_ids.as_ref().filter(|ids| row < ids.len()).map_or(&[], |ids| ids.value(row))
    }

    pub(super) fn nested_left(&self, row: usize) -> i32 {
        get(self.nested_left.as_ref(), row).unwrap_or_default()
    }

    pub(super) fn nested_right(&self, row: usize) -> i32 {
        get(self.nested_right.as_ref(), row).unwrap_or_default()
    }

    pub(super) fn nested_parent(&self, row: usize) -> i32 {
        get(self.nested_parent.as_ref(), row).unwrap_or_default()
    }

    /// Of the spans of its trace in this block, nanoseconds since the epoch.
    pub(super) fn trace_start_ns(&self, row: usize) -> u64 {
        get(self.trace_start.as_ref(), row).unwrap_or_default()
    }

    /// Of the spans of its trace in this block, nanoseconds since the epoch.
    pub(super) fn trace_end_ns(&self, row: usize) -> u64 {
        get(self.trace_end.as_ref(), row).unwrap_or_default()
    }

    /// Nanoseconds since the epoch.
    pub(super) fn start_ns(&self, row: usize) -> u64 {
        self.start_in(row, self.trace_start_ns(row))
    }

    /// The same where the start of the trace was not read.
    pub(super) fn start_in(&self, row: usize, trace_start_ns: u64) -> u64 {
        trace_start_ns.wrapping_add(get(self.start_offset.as_ref(), row).unwrap_or_default())
    }

    /// How long a span takes that starts then; 0 for one that ends before it starts.
    pub(super) fn duration_ns(&self, row: usize, start_ns: u64) -> u64 {
        let length = get(self.duration.as_ref(), row).unwrap_or_default();
        start_ns.wrapping_add(length.cast_unsigned()).saturating_sub(start_ns)
    }

    pub(super) fn status_code(&self, row: usize) -> i32 {
        get(self.status_codes.as_ref(), row).unwrap_or_default()
    }

    pub(super) fn kind(&self, row: usize) -> i32 {
        get(self.kinds.as_ref(), row).unwrap_or_default()
    }

    /// Number of the resource.
    pub(super) fn resource_number(&self, row: usize) -> Option<usize> {
        get(self.resources.as_ref(), row).and_then(|number| usize::try_from(number).ok())
    }

    /// Number of the scope.
    pub(super) fn scope_number(&self, row: usize) -> Option<usize> {
        get(self.scopes.as_ref(), row).and_then(|number| usize::try_from(number).ok())
    }

    pub(super) fn resource(&self, row: usize) -> Option<&'b ResourceEntry> {
        self.tables.resources.get(self.resource_number(row)?)
    }

    pub(super) fn scope(&self, row: usize) -> Option<&'b ScopeEntry> {
        self.tables.scopes.get(self.scope_number(row)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::none(&[], true)]
    #[case::all(&[0, 1, 0], true)]
    #[case::above(&[0, 2], false)]
    #[case::far_above(&[i32::MAX], false)]
    #[case::negative(&[1, -1], false)]
    fn numbers_must_be_in_the_table(#[case] numbers: &[i32], #[case] fit: bool) {
        let resources = [ResourceEntry::default(), ResourceEntry::default()];
        let tables = Tables { resources: &resources, scopes: &[] };
        let numbers: ArrayRef = Arc::new(Int32Array::from(numbers.to_vec()));
        let batch = RecordBatch::try_from_iter([(column::RESOURCE, numbers)]).unwrap();
        assert_eq!(Rows::of(&batch, &Columns::default(), tables).fit_tables(), fit);
    }
}
