//! Which attributes of spans have a column of their own.

use std::cmp::Reverse;
use std::collections::HashMap;

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use super::lists::Value as Written;
use crate::live::Trace;
use crate::otlp::AttributeRef;

/// Most columns that attributes get in one block.
pub const MAX_PROMOTED: usize = 64;

/// Most keys that are counted; see [`AttributeCounts::is_complete`].
const MAX_KEYS: usize = 2_000;

/// Longest key that gets a column, bytes.
const MAX_KEY_BYTES: usize = 256;

/// Type of an attribute's value.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttributeType {
    /// `stringValue`.
    String,
    /// `intValue`.
    Int,
    /// `doubleValue`.
    Double,
    /// `boolValue`.
    Bool,
    /// Array, map, bytes, or none. Never has a column.
    Other,
}

impl AttributeType {
    const ALL: [Self; 5] = [Self::String, Self::Int, Self::Double, Self::Bool, Self::Other];

    /// Type of a value.
    pub(super) fn of(value: Written<'_>) -> Self {
        match value {
            Written::String(_) => Self::String,
            Written::Int(_) => Self::Int,
            Written::Double(_) => Self::Double,
            Written::Bool(_) => Self::Bool,
            Written::Other(_) | Written::Nothing => Self::Other,
        }
    }
}

/// How many spans have an attribute, by key and type. A key that comes more than once in a span counts each time.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct AttributeCounts {
    by_key: HashMap<Box<str>, [u64; AttributeType::ALL.len()], RandomState>,
    incomplete: bool,
}

impl AttributeCounts {
    /// Counts the attributes of all spans of a trace.
    pub fn observe(&mut self, trace: &Trace) {
        for AttributeRef { key, value } in trace.spans.iter().flat_map(|span| span.view().attributes()) {
            self.add(key.as_str(), AttributeType::of(Written::of(value)), 1);
        }
    }

    /// Adds what was counted elsewhere.
    pub fn merge(&mut self, other: &Self) {
        self.incomplete |= other.incomplete;
        for (key, counts) in &other.by_key {
            for (of, count) in AttributeType::ALL.into_iter().zip(counts) {
                self.add(key, of, *count);
            }
        }
    }

    /// Whether any span may have an attribute of this key.
    pub fn may_have(&self, key: &str) -> bool {
        self.incomplete || self.by_key.contains_key(key)
    }

    /// Whether any span may have an attribute of this key with a value of another type.
    pub fn has_others(&self, key: &str, of: AttributeType) -> bool {
        // A key that was not counted with one type may have been counted with another one.
        self.incomplete || AttributeType::ALL.into_iter().any(|other| other != of && self.count(key, other) > 0)
    }

    /// False if there were more keys than are counted.
    pub fn is_complete(&self) -> bool {
        !self.incomplete
    }

    /// Keys, types and counts, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, AttributeType, u64)> {
        let mut keys: Vec<_> = self.by_key.iter().map(|(key, counts)| (&**key, counts)).collect();
        keys.sort_unstable();
        keys.into_iter().flat_map(|(key, counts)| {
            let counts = AttributeType::ALL.into_iter().zip(*counts).filter(|(_, count)| *count > 0);
            counts.map(move |(of, count)| (key, of, count))
        })
    }

    fn count(&self, key: &str, of: AttributeType) -> u64 {
        self.by_key.get(key).and_then(|counts| counts.get(of as usize)).copied().unwrap_or_default()
    }

    pub(super) fn add(&mut self, key: &str, of: AttributeType, count: u64) {
        if count == 0 {
            return;
        }
        if let Some(counts) = self.by_key.get_mut(key) {
            if let Some(known) = counts.get_mut(of as usize) {
                *known += count;
            }
        } else if self.by_key.len() < MAX_KEYS {
            let mut counts = [0; AttributeType::ALL.len()];
            if let Some(first) = counts.get_mut(of as usize) {
                *first = count;
            }
            self.by_key.insert(key.into(), counts);
        } else {
            self.incomplete = true;
        }
    }
}

/// An attribute that has a column.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Promoted {
    /// Its key.
    pub key: Box<str>,
    /// The type of its column; values of other types are in the list of attributes.
    pub of: AttributeType,
}

/// The attributes that have a column, the most frequent first.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Columns(Vec<Promoted>);

impl Columns {
    /// Those that at least one of 100 rows has, at most [`MAX_PROMOTED`]; of each key the most frequent type.
    ///
    /// `counts` is what was counted on `rows` spans.
    pub fn choose(counts: &AttributeCounts, rows: u64) -> Self {
        let mut chosen: Vec<(u64, Promoted)> = Vec::new();
        for (key, of, count) in counts.iter() {
            if of == AttributeType::Other || count * 100 < rows || key.len() > MAX_KEY_BYTES {
                continue;
            }
            match chosen.last_mut() {
                Some((known, promoted)) if *promoted.key == *key => {
                    if count > *known {
                        (*known, promoted.of) = (count, of);
                    }
                }
                _ => chosen.push((count, Promoted { key: key.into(), of })),
            }
        }
        // Stable: keys of one frequency stay in their order.
        chosen.sort_by_key(|(count, _)| Reverse(*count));
        Self(chosen.into_iter().take(MAX_PROMOTED).map(|(_, promoted)| promoted).collect())
    }

    /// The attributes, in the order of their columns.
    pub fn promoted(&self) -> &[Promoted] {
        &self.0
    }
}

/// What the footer says of attributes.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct AttributesFooter {
    /// Whether all keys are listed.
    complete: bool,
    attributes: Vec<AttributeEntry>,
}

#[derive(Debug, Deserialize, Serialize)]
struct AttributeEntry {
    key: String,
    #[serde(rename = "type")]
    of: AttributeType,
    spans: u64,
    /// Number of its column among the promoted ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
}

impl AttributesFooter {
    pub(super) fn new(counts: &AttributeCounts, columns: &Columns) -> Self {
        let entry = |(key, of, spans): (&str, AttributeType, u64)| AttributeEntry {
            key: key.to_owned(),
            of,
            spans,
            column: columns.0.iter().position(|promoted| *promoted.key == *key && promoted.of == of),
        };
        // A column may be empty: where a key comes twice in a span, only the first value can be in it.
        let empty = columns.0.iter().filter(|promoted| counts.count(&promoted.key, promoted.of) == 0);
        let empty = empty.map(|promoted| (&*promoted.key, promoted.of, 0));
        Self { complete: counts.is_complete(), attributes: counts.iter().chain(empty).map(entry).collect() }
    }

    /// What was counted, and the attributes that have a column; none if the columns are not numbered from 0 on.
    pub(super) fn read(self) -> Option<(AttributeCounts, Columns)> {
        let mut counts = AttributeCounts { incomplete: !self.complete, ..AttributeCounts::default() };
        let mut columns = Vec::new();
        for AttributeEntry { key, of, spans, column } in self.attributes {
            counts.add(&key, of, spans);
            columns.extend(column.map(|column| (column, Promoted { key: key.into(), of })));
        }
        columns.sort_unstable_by_key(|(column, _)| *column);
        let numbered = columns.iter().enumerate().all(|(index, (column, _))| index == *column);
        let columns: Vec<_> = columns.into_iter().map(|(_, promoted)| promoted).collect();
        (numbered && columns.len() <= MAX_PROMOTED).then_some((counts, Columns(columns)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(entries: &[(&str, AttributeType, u64)]) -> AttributeCounts {
        let mut counts = AttributeCounts::default();
        for (key, of, count) in entries {
            counts.add(key, *of, *count);
        }
        counts
    }

    fn chosen(counts: &AttributeCounts, rows: u64) -> Vec<(String, AttributeType)> {
        Columns::choose(counts, rows).0.into_iter().map(|p| (p.key.into(), p.of)).collect()
    }

    #[test]
    fn frequent_attributes_get_columns() {
        use AttributeType::{Bool, Int, Other, String};
        let counts = counts(&[
            ("rare", String, 9),
            ("just", Bool, 10),
            ("port", String, 100),
            ("port", Int, 400),
            ("route", String, 900),
            ("list", Other, 900),
        ]);
        let expected = [("route", String), ("port", Int), ("just", Bool)];
        assert_eq!(chosen(&counts, 1_000), expected.map(|(key, of)| (key.to_owned(), of)));
    }

    #[test]
    fn there_are_at_most_64_columns() {
        let mut counts = AttributeCounts::default();
        (0..100).for_each(|number| counts.add(&format!("key-{number:02}"), AttributeType::Int, 100 + number));
        let chosen = chosen(&counts, 100);
        assert_eq!(chosen.len(), MAX_PROMOTED);
        assert_eq!(chosen[0].0, "key-99");
    }

    #[test]
    fn keys_without_end_are_not_counted_without_end() {
        let mut counts = AttributeCounts::default();
        (0..3_000).for_each(|number| counts.add(&format!("key-{number}"), AttributeType::Int, 1));
        assert_eq!(counts.iter().count(), MAX_KEYS);
        assert!(!counts.is_complete() && counts.may_have("anything"));
        assert!(counts.has_others("key-0", AttributeType::Int), "its other type may be the one that was left out");
        let mut merged = AttributeCounts::default();
        merged.merge(&counts);
        assert_eq!(merged, counts);
    }

    #[test]
    fn the_footer_says_the_same() {
        let counts =
            counts(&[("a", AttributeType::Int, 5), ("b", AttributeType::Bool, 7), ("c", AttributeType::Other, 1)]);
        let columns = Columns::choose(&counts, 10);
        let json = serde_json::to_string(&AttributesFooter::new(&counts, &columns)).unwrap();
        insta::assert_snapshot!(json, @r#"{"complete":true,"attributes":[{"key":"a","type":"int","spans":5,"column":1},{"key":"b","type":"bool","spans":7,"column":0},{"key":"c","type":"other","spans":1}]}"#);
        let footer: AttributesFooter = serde_json::from_str(&json).unwrap();
        assert_eq!(footer.read(), Some((counts, columns)));
    }
}
