//! Values of one tag in an entry of the store; `docs/format/catalog.md` says how they are written.

use std::collections::BTreeMap;

use super::store::{encode_hours, parse_hours};
use super::{Hours, TagValue};

/// Values with the hours in which they were seen, in their order.
pub(super) type Values = BTreeMap<TagValue, Hours>;

/// Bytes of an entry after which another one is begun.
const ENTRY_BYTES: usize = 32 << 10;

/// Adds a value to an entry.
pub(super) fn push(entry: &mut Vec<u8>, value: &TagValue, hours: Hours) {
    entry.extend_from_slice(&encode_hours(hours));
    let mut put = |kind: u8, bytes: &[u8]| {
        entry.push(kind);
        // Longer ones are not indexed.
        entry.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
        entry.extend_from_slice(bytes);
    };
    match value {
        TagValue::String(text) => put(b's', text.as_bytes()),
        TagValue::Int(number) => put(b'i', &number.to_be_bytes()),
        TagValue::Float(number) => put(b'f', &number.to_be_bytes()),
        TagValue::Bool(truth) => put(b'b', &[u8::from(*truth)]),
    }
}

/// Adds the values of an entry to others; none if it is malformed.
pub(super) fn merge_into(values: &mut Values, mut entry: &[u8]) -> Option<()> {
    while !entry.is_empty() {
        let (hours, rest) = entry.split_at_checked(8)?;
        let (kind, rest) = rest.split_first()?;
        let (length, rest) = rest.split_first_chunk()?;
        let (bytes, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        let hours = parse_hours(hours)?;
        let known = values.entry(parse(*kind, bytes)?).or_insert(hours);
        *known = known.union(hours);
        entry = rest;
    }
    Some(())
}

/// As few entries as there can be.
pub(super) fn encode(values: &Values) -> Vec<Vec<u8>> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for (value, hours) in values {
        if entries.last().is_none_or(|entry| entry.len() >= ENTRY_BYTES) {
            entries.push(Vec::new());
        }
        if let Some(entry) = entries.last_mut() {
            push(entry, value, *hours);
        }
    }
    entries
}

fn parse(kind: u8, bytes: &[u8]) -> Option<TagValue> {
    match kind {
        b's' => Some(TagValue::String(std::str::from_utf8(bytes).ok()?.to_owned())),
        b'i' => Some(TagValue::Int(i64::from_be_bytes(bytes.try_into().ok()?))),
        b'f' => Some(TagValue::Float(f64::from_be_bytes(bytes.try_into().ok()?))),
        b'b' => match bytes {
            [0] => Some(TagValue::Bool(false)),
            [1] => Some(TagValue::Bool(true)),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_value() -> impl Strategy<Value = TagValue> {
        prop_oneof![
            "\\PC{0,20}".prop_map(TagValue::String),
            any::<i64>().prop_map(TagValue::Int),
            any::<f64>().prop_map(TagValue::Float),
            any::<bool>().prop_map(TagValue::Bool),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(values in prop::collection::btree_map(any_value(), (any::<u32>(), any::<u32>()), 0..50)) {
            let values: Values = values.into_iter().map(|(value, (first, last))| (value, Hours { first, last })).collect();
            let mut read = Values::new();
            for entry in encode(&values) {
                merge_into(&mut read, &entry).unwrap();
            }
            prop_assert_eq!(read, values);
        }

        #[test]
        fn every_prefix_is_read_or_refused(values in prop::collection::vec(any_value(), 1..5)) {
            let hours = Hours { first: 1, last: 2 };
            let (mut entry, mut ends) = (Vec::new(), vec![0]);
            for value in &values {
                push(&mut entry, value, hours);
                ends.push(entry.len());
            }
            for length in 0..=entry.len() {
                let read = merge_into(&mut Values::new(), &entry[..length]);
                prop_assert_eq!(read.is_some(), ends.contains(&length));
            }
        }
    }

    #[test]
    fn many_values_are_several_entries() {
        let values: Values = (0..10_000).map(|number| (TagValue::Int(number), Hours { first: 1, last: 2 })).collect();
        let entries = encode(&values);
        assert!(entries.len() > 1 && entries.iter().all(|entry| entry.len() < ENTRY_BYTES + 100));
    }
}
