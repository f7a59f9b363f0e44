//! Conditions on the rows of a block.

use opentelemetry_proto::tonic::common::v1::KeyValue;

use super::rows::{Rows, Tables};
use super::span::BlockSpan;
use crate::block::Block;
use crate::query::prefilter::{Condition, Leaf};
use crate::query::scan::is_of_span;
use crate::query::span::SpanView;
use crate::query::value::Value;
use crate::traceql::{Attribute, Field, Intrinsic, Scope};

/// Whether the condition can hold on some span of the block, as far as its footer shows it.
pub(super) fn is_possible(leaf: &Leaf, block: &Block, tables: Tables<'_>) -> bool {
    let accepts = |attributes: &[KeyValue], name: &str| {
        let found = attributes.iter().find(|kv| kv.key == name);
        leaf.accepts(&found.map_or(Value::Nil, |kv| Value::of(kv.value.as_ref())))
    };
    let (mut resources, mut scopes) = (tables.resources.iter(), tables.scopes.iter());
    match &leaf.field {
        Field::Attribute(Attribute { scope: Scope::Resource, name, .. }) => {
            resources.any(|entry| accepts(&entry.resource.attributes, name))
        }
        Field::Attribute(Attribute { scope: Scope::Instrumentation, name, .. }) => {
            scopes.any(|entry| accepts(&entry.scope.attributes, name))
        }
        Field::Attribute(Attribute { scope: Scope::Span, name, .. }) => {
            block.attribute_counts().may_have(name) || leaf.accepts(&Value::Nil)
        }
        Field::Intrinsic(Intrinsic::InstrumentationName) => {
            scopes.any(|entry| leaf.accepts(&Value::text_of(&entry.scope.name)))
        }
        Field::Intrinsic(Intrinsic::InstrumentationVersion) => {
            scopes.any(|entry| leaf.accepts(&Value::text_of(&entry.scope.version)))
        }
        _ => true,
    }
}

/// Leaves of `mask` only what fulfils the condition.
pub(super) fn narrow(condition: &Condition, rows: &Rows<'_>, mask: &mut [bool]) {
    match condition {
        Condition::All(list) => list.iter().for_each(|item| narrow(item, rows, mask)),
        Condition::Any(list) => {
            let mut fulfilled = vec![false; mask.len()];
            for item in list {
                // What one of them has found, the others need not look at.
                let mut open: Vec<bool> =
                    mask.iter().zip(&fulfilled).map(|(wanted, found)| *wanted && !found).collect();
                narrow(item, rows, &mut open);
                fulfilled.iter_mut().zip(open).for_each(|(found, now)| *found |= now);
            }
            mask.copy_from_slice(&fulfilled);
        }
        Condition::Leaf(leaf) if is_of_span(&leaf.field) => narrow_leaf(leaf, rows, mask),
        Condition::Leaf(_) | Condition::Unknown => {}
    }
}

fn narrow_leaf(leaf: &Leaf, rows: &Rows<'_>, mask: &mut [bool]) {
    let accepts = |row: usize| leaf.accepts(&BlockSpan { rows, row, trace: None, place: None }.field(&leaf.field));
    if code(&leaf.field, rows, 0).is_none() {
        mask.iter_mut().enumerate().filter(|(_, wanted)| **wanted).for_each(|(row, wanted)| *wanted = accepts(row));
        return;
    }
    // Rows with the same code have the same value: it is looked at once.
    let mut verdicts: Vec<Option<bool>> = Vec::new();
    for (row, wanted) in mask.iter_mut().enumerate().filter(|(_, wanted)| **wanted) {
        let code = code(&leaf.field, rows, row).unwrap_or_default();
        if code >= verdicts.len() {
            verdicts.resize(code + 1, None);
        }
        if let Some(verdict) = verdicts.get_mut(code) {
            *wanted = *verdict.get_or_insert_with(|| accepts(row));
        }
    }
}

/// A small number of a row, the same only for rows on which the field has the same value; none for all rows if there are no
/// such numbers.
#[inline]
pub(super) fn code(field: &Field, rows: &Rows<'_>, row: usize) -> Option<usize> {
    match field {
        Field::Attribute(Attribute { parent: true, .. }) => None,
        Field::Attribute(Attribute { scope: Scope::Resource, .. }) => {
            Some(rows.resource_number(row).map_or(0, |number| number + 1))
        }
        Field::Attribute(Attribute { scope: Scope::Instrumentation, .. })
        | Field::Intrinsic(Intrinsic::InstrumentationName | Intrinsic::InstrumentationVersion) => {
            Some(rows.scope_number(row).map_or(0, |number| number + 1))
        }
        // Numbers that OTLP does not know are all read as the lowest.
        Field::Intrinsic(Intrinsic::Status) => Some(known(rows.status_code(row))),
        Field::Intrinsic(Intrinsic::Kind) => Some(known(rows.kind(row))),
        Field::Intrinsic(Intrinsic::Name) => rows.names.as_ref()?.code(row),
        Field::Intrinsic(Intrinsic::StatusMessage) => rows.status_messages.as_ref()?.code(row),
        Field::Attribute(Attribute { scope: Scope::Span, name, .. }) if rows.attributes.is_none() => {
            rows.promoted.iter().find(|(key, _)| **key == **name)?.1.code(row)
        }
        _ => None,
    }
}

fn known(number: i32) -> usize {
    const UNKNOWN: usize = 15;
    usize::try_from(number).map_or(UNKNOWN, |number| number.min(UNKNOWN))
}
