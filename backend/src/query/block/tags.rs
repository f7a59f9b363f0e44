//! Tags of a block, read from its columns: no span is put together for it.
//!
//! A text that has a dictionary is read no further than that. Of the other columns the values are read, each once for some
//! thousand rows.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_array::{Array, StringArray};
use foldhash::fast::RandomState;
use parquet::arrow::arrow_reader::RowSelection;
use parquet::basic::Encoding;
use parquet::file::metadata::RowGroupMetaData;

use super::columns::Columns;
use super::rows::{AttributeColumn, Rows, Tables};
use super::texts::Texts;
use crate::block::schema::column;
use crate::block::{Block, BlockError};
use crate::catalog::Scope;
use crate::query::scan::Wanted;
use crate::query::value::Value;
use crate::traceql::{Attribute, Field, Intrinsic, Scope as QueryScope};

/// Rows that are decoded at once: those of a page.
const BATCH_ROWS: usize = 8_192;

/// Values that are handed over at once.
const VALUES: usize = 1_024;

/// Takes values of a tag; arrays stand for each of their elements, and what has no value says that the tag is there.
/// Returns whether more values of the tag are of use.
pub(crate) type TagVisitor<'v> = dyn FnMut(Scope, &str, &[Value<'_>]) -> bool + 'v;

/// Tags of which no more values are of use: their columns are not read.
pub(crate) type FullTags = HashSet<(Scope, Box<str>)>;

/// Reads the tags of a block.
pub(crate) struct TagReader<'r, 'v> {
    /// Takes them.
    pub(crate) visit: &'r mut TagVisitor<'v>,
    /// Grows.
    pub(crate) full: &'r mut FullTags,
}

/// A column of texts or of an attribute, and the tag that it is.
#[derive(Clone, Debug)]
struct TagColumn {
    scope: Scope,
    tag: Box<str>,
    /// Name of the column.
    name: String,
    /// Key of the attribute, if it is one.
    key: Option<Box<str>>,
}

impl TagReader<'_, '_> {
    /// Reads the tags of a block. False if `stop` was set before the end.
    pub(crate) fn read(&mut self, block: &Block, stop: &AtomicBool) -> Result<bool, BlockError> {
        let tables = Tables { resources: block.resources()?, scopes: block.scopes()? };
        self.tables(tables);
        for group in 0..block.parquet().num_row_groups() {
            if stop.load(Ordering::Relaxed) {
                return Ok(false);
            }
            let columns = self.columns_of(block).into_iter();
            let (whole, mut rest): (Vec<_>, Vec<_>) = columns.partition(|tag| has_dictionary(block, group, &tag.name));
            rest.extend(self.dictionaries(block, group, tables, whole)?);
            let goes_on = self.values(block, group, tables, &rest, stop)?
                && self.roots(block, group, tables, stop)?
                && self.lists(block, group, tables, stop)?;
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn tables(&mut self, tables: Tables<'_>) {
        for entry in tables.resources {
            for kv in &entry.resource.attributes {
                self.give(Scope::Resource, &kv.key, &[Value::of(kv.value.as_ref())]);
            }
        }
        for entry in tables.scopes {
            for kv in &entry.scope.attributes {
                self.give(Scope::Instrumentation, &kv.key, &[Value::of(kv.value.as_ref())]);
            }
            self.give(Scope::Intrinsic, "instrumentation:name", &[Value::text_of(&entry.scope.name)]);
            self.give(Scope::Intrinsic, "instrumentation:version", &[Value::text_of(&entry.scope.version)]);
        }
    }

    /// The columns that are a tag each, and of use.
    fn columns_of(&self, block: &Block) -> Vec<TagColumn> {
        let intrinsic = |tag: &str, name: &str| TagColumn {
            scope: Scope::Intrinsic,
            tag: tag.into(),
            name: name.to_owned(),
            key: None,
        };
        let mut columns = Columns::default();
        block.promoted().iter().for_each(|promoted| columns.add_promoted(&promoted.key));
        let attributes = columns.promoted.into_iter().map(|(key, name)| TagColumn {
            scope: Scope::Span,
            tag: key.clone(),
            name,
            key: Some(key),
        });
        let intrinsics = [intrinsic("name", column::NAME), intrinsic("statusMessage", column::STATUS_MESSAGE)];
        let all = intrinsics.into_iter().chain(attributes);
        all.filter(|of| !self.full.contains(&(of.scope, of.tag.clone()))).collect()
    }

    /// Reads the dictionaries of columns that are nothing else; returns the columns of which none was seen.
    fn dictionaries(
        &mut self,
        block: &Block,
        group: usize,
        tables: Tables<'_>,
        tags: Vec<TagColumn>,
    ) -> Result<Vec<TagColumn>, BlockError> {
        if tags.is_empty() {
            return Ok(tags);
        }
        // One row brings the dictionary along, unless it is a null.
        let columns = columns(&tags);
        let count = block.parquet().row_groups().get(group).map_or(0, |group| group.num_rows() as usize);
        let one = RowSelection::from_consecutive_ranges(std::iter::once(0..1.min(count)), count);
        let Some(batch) = block.rows(group, columns.mask(block), Some(one), 1)?.next().transpose()? else {
            return Ok(tags);
        };
        let rows = Rows::of(&batch, &columns, tables);
        let mut unseen = Vec::new();
        for tag in tags {
            match texts(&rows, &tag) {
                Some(Texts::Dictionary { values, .. }) if !values.is_empty() => self.texts(&tag, values),
                _ => unseen.push(tag),
            }
        }
        Ok(unseen)
    }

    /// Reads the values of columns.
    fn values(
        &mut self,
        block: &Block,
        group: usize,
        tables: Tables<'_>,
        tags: &[TagColumn],
        stop: &AtomicBool,
    ) -> Result<bool, BlockError> {
        // Dictionaries that were seen: a row group has the same for all of its batches, if it has one.
        let mut seen: Vec<Option<StringArray>> = vec![None; tags.len()];
        each_batch(block, group, tables, &columns(tags), stop, &mut |rows| {
            for (tag, seen) in tags.iter().zip(&mut seen) {
                match texts(rows, tag) {
                    Some(Texts::Dictionary { values, .. }) => {
                        if !seen.as_ref().is_some_and(|seen| is_same(seen, values)) {
                            self.texts(tag, values);
                            *seen = Some(values.clone());
                        }
                    }
                    Some(Texts::Plain(values)) => self.texts(tag, values),
                    None => self.numbers(tag, rows),
                }
            }
        })
    }

    /// Hands over the distinct texts of an array.
    fn texts(&mut self, tag: &TagColumn, array: &StringArray) {
        let mut distinct: HashSet<&str, RandomState> = HashSet::default();
        let texts = array.iter().flatten().filter(|text| distinct.insert(text));
        let texts = texts.filter(|text| tag.scope != Scope::Intrinsic || !text.is_empty());
        self.give_all(tag, texts.map(Value::text_of));
    }

    fn numbers(&mut self, tag: &TagColumn, rows: &Rows<'_>) {
        let found = rows.promoted.iter().find(|(key, _)| Some(key) == tag.key.as_ref());
        let Some((_, column)) = found else { return };
        let mut distinct: HashSet<u64, RandomState> = HashSet::default();
        let bits = |value: &Value<'_>| match value {
            Value::Int(int) => int.cast_unsigned(),
            Value::Float(float) => float.to_bits(),
            Value::Bool(truth) => u64::from(*truth),
            _ => 0,
        };
        let values = (0..rows.len).filter_map(|row| column.get(row)).filter(|value| distinct.insert(bits(value)));
        self.give_all(tag, values);
    }

    /// Names and services of roots.
    fn roots(
        &mut self,
        block: &Block,
        group: usize,
        tables: Tables<'_>,
        stop: &AtomicBool,
    ) -> Result<bool, BlockError> {
        let mut columns = Columns::default();
        for name in [column::NAME, column::RESOURCE, column::PARENT_SPAN_ID, column::NESTED_PARENT] {
            columns.add_name(name);
        }
        let mut resources: HashSet<usize, RandomState> = HashSet::default();
        each_batch(block, group, tables, &columns, stop, &mut |rows| {
            let mut names: HashSet<&str, RandomState> = HashSet::default();
            for row in (0..rows.len).filter(|row| rows.is_root(*row)) {
                let name = rows.names.as_ref().and_then(|names| names.get(row));
                names.extend(name.filter(|name| !name.is_empty()));
                resources.extend(rows.resource_number(row));
            }
            let names: Vec<Value<'_>> = names.into_iter().map(Value::text_of).collect();
            self.give(Scope::Intrinsic, "rootName", &names);
        })?;
        let services = resources.into_iter().filter_map(|number| tables.resources.get(number)?.service_name());
        let services = services.filter(|service| !service.is_empty());
        let services: Vec<Value<'_>> = services.map(Value::text_of).collect();
        self.give(Scope::Intrinsic, "rootServiceName", &services);
        Ok(!stop.load(Ordering::Relaxed))
    }

    /// Attributes without a column of their own; events and links.
    fn lists(
        &mut self,
        block: &Block,
        group: usize,
        tables: Tables<'_>,
        stop: &AtomicBool,
    ) -> Result<bool, BlockError> {
        let attribute = |scope| Field::Attribute(Attribute { parent: false, scope, name: String::new() });
        let event_name = Field::Intrinsic(Intrinsic::EventName);
        let fields = [event_name, attribute(QueryScope::Event), attribute(QueryScope::Link)];
        let mut columns = Columns::of(block, &Wanted::of(&fields));
        columns.add_name(column::ATTRIBUTES);
        each_batch(block, group, tables, &columns, stop, &mut |rows| {
            for row in 0..rows.len {
                let of_span = rows.attributes.iter().flat_map(|lists| lists.of_row(row));
                of_span.for_each(|(key, value)| self.give(Scope::Span, key, &[value]));
                let of_events = rows.events.iter().flat_map(|events| events.attributes(row));
                of_events.for_each(|(key, value)| self.give(Scope::Event, key, &[value]));
                let names = rows.events.iter().flat_map(|events| events.names(row));
                names.for_each(|name| self.give(Scope::Intrinsic, "event:name", &[Value::text_of(name)]));
                let of_links = rows.links.iter().flat_map(|links| links.attributes(row));
                of_links.for_each(|(key, value)| self.give(Scope::Link, key, &[value]));
            }
        })
    }

    fn give_all<'a>(&mut self, tag: &TagColumn, mut values: impl Iterator<Item = Value<'a>>) {
        loop {
            let some: Vec<_> = values.by_ref().take(VALUES).collect();
            if some.is_empty() || !(self.visit)(tag.scope, &tag.tag, &some) {
                if !some.is_empty() {
                    self.full.insert((tag.scope, tag.tag.clone()));
                }
                return;
            }
        }
    }

    /// Values of which there are few.
    fn give(&mut self, scope: Scope, name: &str, values: &[Value<'_>]) {
        let is_empty = |value: &Value<'_>| matches!(value, Value::String(text) if text.is_empty());
        // As for spans in memory: an attribute may be empty, a name that is means that there is none.
        if scope != Scope::Intrinsic || !values.iter().any(is_empty) {
            (self.visit)(scope, name, values);
        }
    }
}

/// Whether all values of a column are in a dictionary.
pub(super) fn has_dictionary(block: &Block, group: usize, name: &str) -> bool {
    let chunks = block.parquet().row_groups().get(group).map(RowGroupMetaData::columns).unwrap_or_default();
    let chunk = chunks.iter().find(|chunk| matches!(chunk.column_path().parts(), [root] if root == name));
    chunk.is_some_and(|chunk| {
        let encodings = chunk.page_encoding_stats_mask();
        chunk.dictionary_page_offset().is_some()
            && encodings
                .is_some_and(|of| of.is_only(Encoding::RLE_DICTIONARY) || of.is_only(Encoding::PLAIN_DICTIONARY))
    })
}

fn columns(tags: &[TagColumn]) -> Columns {
    let mut columns = Columns::default();
    for tag in tags {
        match &tag.key {
            Some(key) => columns.add_promoted(key),
            None => columns.add_name(&tag.name),
        }
    }
    columns
}

fn texts<'r>(rows: &'r Rows<'_>, tag: &TagColumn) -> Option<&'r Texts> {
    match &tag.key {
        Some(key) => rows.promoted.iter().find(|(promoted, _)| promoted == key).and_then(|(_, column)| match column {
            AttributeColumn::Text(texts) => Some(texts),
            _ => None,
        }),
        None if tag.name == column::NAME => rows.names.as_ref(),
        None => rows.status_messages.as_ref(),
    }
}

/// Whether both are the same bytes in memory.
fn is_same(one: &StringArray, other: &StringArray) -> bool {
    one.len() == other.len() && one.values().as_ptr() == other.values().as_ptr()
}

fn each_batch<'b>(
    block: &Block,
    group: usize,
    tables: Tables<'b>,
    columns: &Columns,
    stop: &AtomicBool,
    visit: &mut dyn FnMut(&Rows<'b>),
) -> Result<bool, BlockError> {
    if columns.is_empty() {
        return Ok(true);
    }
    for batch in block.rows(group, columns.mask(block), None, BATCH_ROWS)? {
        if stop.load(Ordering::Relaxed) {
            return Ok(false);
        }
        visit(&Rows::of(&batch?, columns, tables));
    }
    Ok(true)
}
