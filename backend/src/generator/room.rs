//! How much may be made of a tenant's spans: series or sets of labels, and values of a label.

use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;

use foldhash::quality::RandomState;

use super::family::{Labels, OVERFLOW, SEPARATOR};
use super::sketch::Window;

/// What stands for a value of a label that has too many: Tempo's.
pub(super) const OVERFLOW_VALUE: &str = "__cardinality_overflow__";

/// How much there may be; 0 is without a limit.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Limits {
    /// Series, as Prometheus counts them.
    pub(super) series: u64,
    /// Sets of labels.
    pub(super) entities: u64,
    /// Different values of each label.
    pub(super) label_values: u64,
    /// How long what was refused is remembered, milliseconds.
    pub(super) window_ms: u64,
}

/// How many there are, and what became of others since that was last told.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Tally {
    pub(super) active: u64,
    /// Those that were begun,
    pub(super) added: u64,
    /// and ended.
    pub(super) removed: u64,
    /// Times that one had no room.
    pub(super) limited: u64,
}

impl Tally {
    /// How many there are; what became of others begins at zero.
    pub(super) fn take(&mut self) -> Self {
        std::mem::replace(self, Self { active: self.active, ..Self::default() })
    }
}

/// What there is of a tenant, and may be.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) limits: Limits,
    pub(super) series: Tally,
    /// Sets of labels, of whatever metrics they are.
    pub(super) entities: Tally,
    /// Hashes of these, and how many families have each.
    known: HashMap<u64, u32, RandomState>,
    /// Those that had no room.
    refused: Refused,
    labels: BTreeMap<Box<str>, Label>,
    hasher: RandomState,
}

/// Values of a label.
#[derive(Debug, Default)]
struct Label {
    /// Hashes of those that there are series of, and of how many.
    values: HashMap<u64, u32, RandomState>,
    /// Times that one was replaced since that was last told.
    limited: u64,
    refused: Refused,
}

/// Hashes of what had no room lately.
#[derive(Debug, Default)]
pub(super) struct Refused(Option<Window>);

/// What is told of a label.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct LabelReport {
    pub(super) name: String,
    /// Values there would be without a limit, about.
    pub(super) demand: u64,
    /// Times that one was replaced.
    pub(super) limited: u64,
}

impl Refused {
    pub(super) fn insert(&mut self, hash: u64, window_ms: u64, now_ms: u64) {
        self.0.get_or_insert_with(|| Window::new(window_ms, now_ms)).insert(hash, now_ms);
    }

    /// How many there would be, about, if these had not been refused.
    pub(super) fn demand(&mut self, known: impl ExactSizeIterator<Item = u64>, now_ms: u64) -> u64 {
        self.0.take_if(|window| window.is_empty(now_ms));
        match &mut self.0 {
            Some(window) => window.estimate(known, now_ms),
            None => known.len() as u64,
        }
    }
}

impl Room {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// One with other limits, in which nothing is yet; what became of others is not forgotten.
    pub(super) fn with_limits(self, limits: Limits) -> Self {
        let [series, entities] = [self.series, self.entities].map(|tally| Tally { active: 0, ..tally });
        let labels = if limits.label_values > 0 { self.labels } else { BTreeMap::new() };
        let labels = labels.into_iter().map(|(name, label)| (name, Label { values: HashMap::default(), ..label }));
        let Self { refused, hasher, .. } = self;
        Self { limits, series, entities, refused, labels: labels.collect(), hasher, known: HashMap::default() }
    }

    /// The hash of a set of labels, the same in every family.
    pub(super) fn entity(&self, labels: &Labels, key: &[u8]) -> u64 {
        self.hasher.hash_one((labels, key))
    }

    /// Whether so many series of a set of labels may begin. They have begun if so.
    pub(super) fn begin(&mut self, labels: &Labels, key: &[u8], weight: u64, now_ms: u64) -> bool {
        let entity = self.entity(labels, key);
        let Limits { series, entities, window_ms, .. } = self.limits;
        let too_many_series = series > 0 && self.series.active + weight > series;
        let too_many_entities = entities > 0 && self.entities.active >= entities && !self.known.contains_key(&entity);
        if too_many_series || too_many_entities {
            self.series.limited += if too_many_series { weight } else { 0 };
            self.entities.limited += u64::from(too_many_entities);
            self.refused.insert(entity, window_ms, now_ms);
            return false;
        }
        let before = self.entities.active;
        self.enter(labels, key, weight);
        self.series.added += weight;
        self.entities.added += self.entities.active - before;
        true
    }

    /// Counts what is there and was there before, whether there is room for it or not.
    pub(super) fn enter(&mut self, labels: &Labels, key: &[u8], weight: u64) {
        if key == OVERFLOW {
            return;
        }
        let families = self.known.entry(self.hasher.hash_one((labels, key))).or_default();
        self.entities.active += u64::from(*families == 0);
        *families += 1;
        self.series.active += weight;
        if self.limits.label_values > 0 {
            for (name, value) in labels.values(key).filter(|(_, value)| is_value(value)) {
                let hash = self.hasher.hash_one(value);
                if let Some(label) = label(&mut self.labels, name) {
                    *label.values.entry(hash).or_default() += 1;
                }
            }
        }
    }

    /// Counts that something ended.
    pub(super) fn end(&mut self, labels: &Labels, key: &[u8], weight: u64) {
        if key == OVERFLOW {
            return;
        }
        let entity = self.entity(labels, key);
        self.series.active = self.series.active.saturating_sub(weight);
        self.series.removed += weight;
        if release(&mut self.known, entity) {
            self.entities.active = self.entities.active.saturating_sub(1);
            self.entities.removed += 1;
        }
        if self.limits.label_values > 0 {
            for (name, value) in labels.values(key).filter(|(_, value)| is_value(value)) {
                if let Some(label) = self.labels.get_mut(name) {
                    release(&mut label.values, self.hasher.hash_one(value));
                }
            }
        }
    }

    /// The key with a mark in place of values of which there are too many; none if it may stay as it is.
    pub(super) fn limited_key(&mut self, labels: &Labels, key: &[u8], now_ms: u64) -> Option<Vec<u8>> {
        let Limits { label_values: max, window_ms, .. } = self.limits;
        if max == 0 {
            return None;
        }
        let (mut limited, mut end) = (None, 0);
        for (name, value) in labels.values(key) {
            let begin = end;
            end += value.len() + 1;
            let label = label(&mut self.labels, name)?;
            let hash = self.hasher.hash_one(value);
            let has_room = !is_value(value) || (label.values.len() as u64) < max || label.values.contains_key(&hash);
            if !has_room {
                label.limited += 1;
                label.refused.insert(hash, window_ms, now_ms);
                limited.get_or_insert_with(|| key.get(..begin).unwrap_or_default().to_vec());
            }
            if let Some(limited) = &mut limited {
                limited.extend_from_slice(if has_room { value } else { OVERFLOW_VALUE.as_bytes() });
                limited.push(SEPARATOR);
            }
        }
        limited
    }

    /// Sets of labels there would be without a limit, about.
    pub(super) fn entity_demand(&mut self, now_ms: u64) -> u64 {
        self.refused.demand(self.known.keys().copied(), now_ms)
    }

    /// What became of each label; counts begin at zero.
    pub(super) fn label_reports(&mut self, now_ms: u64) -> Vec<LabelReport> {
        let reports = self.labels.iter_mut().map(|(name, Label { values, limited, refused })| {
            let demand = refused.demand(values.keys().copied(), now_ms);
            LabelReport { name: name.to_string(), demand, limited: std::mem::take(limited) }
        });
        reports.collect()
    }
}

/// Whether there can be too many of it.
fn is_value(value: &[u8]) -> bool {
    !value.is_empty() && value != OVERFLOW_VALUE.as_bytes()
}

/// A label; none only in theory.
fn label<'a>(labels: &'a mut BTreeMap<Box<str>, Label>, name: &str) -> Option<&'a mut Label> {
    if !labels.contains_key(name) {
        labels.insert(name.into(), Label::default());
    }
    labels.get_mut(name)
}

/// True if it was the last one.
fn release(counts: &mut HashMap<u64, u32, RandomState>, hash: u64) -> bool {
    let Some(count) = counts.get_mut(&hash) else { return false };
    *count -= 1;
    *count == 0 && counts.remove(&hash).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(names: &[&str]) -> Labels {
        Labels::Named(names.iter().map(|name| (*name).into()).collect())
    }

    fn key(values: &[&str]) -> Vec<u8> {
        values.iter().flat_map(|value| [value.as_bytes(), &[SEPARATOR]].concat()).collect()
    }

    fn room(limits: Limits) -> Room {
        Room::new(Limits { window_ms: 900, ..limits })
    }

    #[test]
    fn series_are_limited_by_their_number() {
        let mut room = room(Limits { series: 5, ..Limits::default() });
        let labels = labels(&["a"]);
        let begun = ["1", "2", "3"].map(|value| room.begin(&labels, &key(&[value]), 2, 0));
        assert_eq!(begun, [true, true, false]);
        assert_eq!(room.series, Tally { active: 4, added: 4, removed: 0, limited: 2 });
        assert_eq!((room.entities.limited, room.entity_demand(0)), (0, 3));
        room.end(&labels, &key(&["1"]), 2);
        assert!(room.begin(&labels, &key(&["3"]), 2, 0));
        assert_eq!(room.series.take(), Tally { active: 4, added: 6, removed: 2, limited: 2 });
        assert_eq!(room.series, Tally { active: 4, ..Tally::default() });
    }

    #[test]
    fn sets_of_labels_count_once_in_whatever_families_they_are() {
        let mut room = room(Limits { entities: 2, ..Limits::default() });
        let (one, other) = (labels(&["a", "b"]), labels(&["a", "c"]));
        let begun = [(&one, "1"), (&one, "1"), (&other, "1"), (&one, "2"), (&other, "1")];
        let begun = begun.map(|(labels, value)| room.begin(labels, &key(&[value, "x"]), 100, 0));
        assert_eq!(begun, [true, true, true, false, true]);
        assert_eq!(room.entities, Tally { active: 2, added: 2, removed: 0, limited: 1 });
        assert_eq!((room.series.active, room.series.limited, room.entity_demand(0)), (400, 0, 3));
        // It is there until the last family has ended it.
        room.end(&one, &key(&["1", "x"]), 100);
        assert!(!room.begin(&one, &key(&["2", "x"]), 100, 0));
        room.end(&one, &key(&["1", "x"]), 100);
        assert!(room.begin(&one, &key(&["2", "x"]), 100, 0));
        assert_eq!(room.entities.removed, 1);
        // What was refused is forgotten after a while.
        assert_eq!(room.entity_demand(10_000), 2);
    }

    #[test]
    fn values_that_are_too_many_are_replaced_and_others_stay() {
        let mut room = room(Limits { label_values: 2, ..Limits::default() });
        let labels = labels(&["service", "url"]);
        let mut begin = |values: &[&str], now_ms| {
            let key = key(values);
            let limited = room.limited_key(&labels, &key, now_ms);
            assert!(room.begin(&labels, limited.as_deref().unwrap_or(&key), 1, now_ms));
            limited.map(|key| String::from_utf8_lossy(&key).replace('\u{fffd}', ";"))
        };
        assert_eq!([begin(&["shop", "/1"], 0), begin(&["shop", "/2"], 0), begin(&["cart", ""], 0)], [None, None, None]);
        assert_eq!(begin(&["cart", "/3"], 0).as_deref(), Some("cart;__cardinality_overflow__;"));
        assert_eq!(begin(&["mail", "/1"], 0).as_deref(), Some("__cardinality_overflow__;/1;"));
        assert_eq!(begin(&["x", "/4"], 0).as_deref(), Some("__cardinality_overflow__;__cardinality_overflow__;"));
        // The mark is no value that takes a place.
        assert_eq!(begin(&["shop", OVERFLOW_VALUE], 0), None);
        let report = |name: &str, demand, limited| LabelReport { name: name.to_owned(), demand, limited };
        assert_eq!(room.label_reports(0), [report("service", 4, 2), report("url", 4, 2)]);
        // A value has its place until its last series has ended.
        room.end(&labels, &key(&["shop", "/2"]), 1);
        assert_eq!(room.limited_key(&labels, &key(&["shop", "/5"]), 10_000), None);
        assert_eq!(room.label_reports(10_000), [report("service", 2, 0), report("url", 1, 0)]);
    }

    #[test]
    fn other_limits_hold_from_then_on() {
        let mut before = room(Limits { label_values: 1, series: 3, ..Limits::default() });
        let labels = labels(&["a"]);
        let keys = ["1", "2", "3"].map(|value| key(&[value]));
        assert!(before.begin(&labels, &keys[0], 2, 0) && !before.begin(&labels, &keys[1], 2, 0));
        let mut room = before.with_limits(Limits { label_values: 3, window_ms: 900, ..Limits::default() });
        assert_eq!(room.series, Tally { active: 0, added: 2, removed: 0, limited: 2 });
        room.enter(&labels, &keys[0], 2);
        assert_eq!(room.limited_key(&labels, &keys[1], 0), None);
        assert!(room.begin(&labels, &keys[1], 2, 0));
        assert_eq!((room.series.active, room.entities.active, room.entity_demand(0)), (4, 2, 2));
    }

    proptest! {
        /// However series come and go, what is there is within the limits, and nothing is left when all have gone.
        #[test]
        fn limits_hold(steps in prop::collection::vec((any::<bool>(), 0..6_u8, 0..6_u8), 0..80), max in 1..5_u64) {
            let mut room = room(Limits { entities: 2 * max, label_values: max, ..Limits::default() });
            let labels = labels(&["a", "b"]);
            let mut there = std::collections::BTreeSet::new();
            for (begins, a, b) in steps {
                let key = key(&[&a.to_string(), &b.to_string()]);
                if begins {
                    let key = room.limited_key(&labels, &key, 0).unwrap_or(key);
                    if !there.contains(&key) && room.begin(&labels, &key, 3, 0) {
                        there.insert(key);
                    }
                } else if there.remove(&key) {
                    room.end(&labels, &key, 3);
                }
                prop_assert_eq!(room.entities.active, there.len() as u64);
                prop_assert!(room.entities.active <= 2 * max);
                prop_assert!(room.labels.values().all(|label| label.values.len() as u64 <= max));
            }
            for key in there {
                room.end(&labels, &key, 3);
            }
            prop_assert!(room.known.is_empty() && room.series.active == 0);
            prop_assert!(room.labels.values().all(|label| label.values.is_empty()));
        }
    }
}
