//! Ruling out a block by the dictionaries of its texts: what no value in them fulfils, no row does.

use arrow_array::Array as _;
use parquet::arrow::arrow_reader::RowSelection;

use super::columns::Columns;
use super::rows::{AttributeColumn, Rows, Tables};
use super::tags::has_dictionary;
use super::texts::Texts;
use crate::block::{Block, BlockError};
use crate::query::prefilter::Leaf;
use crate::query::scan::Wanted;
use crate::query::value::Value;
use crate::traceql::{Attribute, Field, Intrinsic, Scope};

/// Rows that are read for a dictionary: any value among them brings it along, a null does not.
const ROWS: usize = 256;

/// Whether the condition can hold on some row, as far as dictionaries show it. Adds what was read to `bytes`.
pub(super) fn may_hold(leaf: &Leaf, block: &Block, tables: Tables<'_>, bytes: &mut u64) -> Result<bool, BlockError> {
    let is_text = matches!(
        leaf.field,
        Field::Attribute(Attribute { parent: false, scope: Scope::Span, .. }) | Field::Intrinsic(Intrinsic::Name)
    );
    let columns = Columns::of(block, &Wanted::of([&leaf.field]));
    let (Some(column), true) = (columns.only(), is_text && !leaf.accepts(&Value::Nil)) else { return Ok(true) };
    for (group, metadata) in block.parquet().row_groups().iter().enumerate() {
        if !has_dictionary(block, group, column) {
            return Ok(true);
        }
        let count = usize::try_from(metadata.num_rows()).unwrap_or_default();
        let first = RowSelection::from_consecutive_ranges(std::iter::once(0..count.min(ROWS)), count);
        let mask = columns.mask(block);
        let ranges = block.byte_ranges(group, &mask, Some(&first));
        *bytes += ranges.iter().map(|range| range.end - range.start).sum::<u64>();
        let Some(batch) = block.rows(group, mask, Some(first), ROWS)?.next().transpose()? else { return Ok(true) };
        let rows = Rows::of(&batch, &columns, tables);
        let Some(Texts::Dictionary { values, .. }) = texts(&rows) else { return Ok(true) };
        if values.is_empty() || values.iter().flatten().any(|text| leaf.accepts(&Value::text_of(text))) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn texts<'r>(rows: &'r Rows<'_>) -> Option<&'r Texts> {
    match rows.promoted.first() {
        Some((_, AttributeColumn::Text(texts))) => Some(texts),
        Some(_) => None,
        None => rows.names.as_ref(),
    }
}
