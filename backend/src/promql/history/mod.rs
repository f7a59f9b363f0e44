//! Samples of the last hours, in memory: a few bytes for each that differs from the one before, none for the others.

mod disk;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;

pub use disk::{HistoryError, HistoryFolder, check_history};

/// Value of a sample that says that its series has ended.
pub const STALE: f64 = f64::from_bits(0x7ff0_0000_0000_0002);

/// Between names and values. No text has this byte.
const SEPARATOR: u8 = 0xff;

/// Collections whose samples are dropped together.
const WINDOW: u64 = 240;

/// Names and values of labels, `__name__` included.
pub type Labels = BTreeMap<String, String>;

/// Times in milliseconds since the epoch, and values.
pub type Samples = Vec<(i64, f64)>;

/// Series of all tenants.
#[derive(Debug)]
pub struct History {
    /// Age of the oldest sample, milliseconds.
    max_age_ms: u64,
    /// Memory of one tenant's samples and labels, about.
    max_bytes: usize,
    tenants: Mutex<HashMap<String, Tenant, RandomState>>,
}

#[derive(Debug, Default)]
struct Tenant {
    /// Times of the collections that are kept.
    times: VecDeque<i64>,
    /// Number of the first of them.
    first: u64,
    /// By encoded labels.
    series: HashMap<Box<[u8]>, Series, RandomState>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Series {
    /// Oldest first.
    windows: VecDeque<Window>,
    /// Where it counts from zero: the number of the collection, and a time before it.
    begins: VecDeque<(u64, i64)>,
}

/// Samples of a series that follow each other, within one window of collections.
#[derive(Debug)]
struct Window {
    /// Numbers of the collections of the first sample and of the last.
    begin: u64,
    end: u64,
    first: f64,
    last: f64,
    /// Number of the collection of the last change.
    changed: u64,
    /// For each change, how many collections after the one before it came, and the value.
    changes: Vec<u8>,
}

/// A collection that is being added.
#[derive(Debug)]
pub struct Adding<'a> {
    tenants: MutexGuard<'a, HashMap<String, Tenant, RandomState>>,
    tenant: String,
    number: u64,
    key: Vec<u8>,
}

impl History {
    /// Nothing yet.
    pub fn new(max_age_ms: u64, max_bytes: usize) -> Self {
        Self { max_age_ms, max_bytes, tenants: Mutex::default() }
    }

    /// Begins a collection of a tenant. Times rise.
    pub fn add(&self, tenant: &str, time_ms: u64) -> Adding<'_> {
        let mut tenants = self.tenants();
        let held = tenants.entry(tenant.to_owned()).or_default();
        let time = i64::try_from(time_ms).unwrap_or(i64::MAX);
        held.times.push_back(time);
        held.forget_before(i64::try_from(time_ms.saturating_sub(self.max_age_ms)).unwrap_or(i64::MAX));
        while held.bytes > self.max_bytes && held.times.len() as u64 > WINDOW {
            held.forget(WINDOW);
        }
        let number = held.first + held.times.len() as u64 - 1;
        Adding { tenants, tenant: tenant.to_owned(), number, key: Vec::new() }
    }

    /// Series with samples in a time, ends included, whose labels pass; sorted by labels.
    pub fn select(
        &self,
        tenant: &str,
        from: i64,
        to: i64,
        mut passes: impl FnMut(&Labels) -> bool,
    ) -> Vec<(Labels, Samples)> {
        let tenants = self.tenants();
        let Some(held) = tenants.get(tenant) else { return Vec::new() };
        let mut found = Vec::new();
        for (key, series) in &held.series {
            let labels = labels_of(key);
            if passes(&labels) {
                let samples = held.samples(series, from, to);
                if !samples.is_empty() {
                    found.push((labels, samples));
                }
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    fn tenants(&self) -> MutexGuard<'_, HashMap<String, Tenant, RandomState>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Adding<'_> {
    /// Adds a sample; `labels` are sorted. If it has a time of a beginning, there is a sample of 0 then, before it.
    pub fn sample(&mut self, labels: &[(&str, &str)], value: f64, begin_ms: Option<u64>) {
        self.key.clear();
        for text in labels.iter().flat_map(|(name, value)| [name, value]) {
            self.key.extend_from_slice(text.as_bytes());
            self.key.push(SEPARATOR);
        }
        let Some(held) = self.tenants.get_mut(&self.tenant) else { return };
        if let Some(series) = held.series.get_mut(self.key.as_slice()) {
            held.bytes += series.add(self.number, value, begin_ms);
            return;
        }
        let mut series = Series::default();
        held.bytes += series.add(self.number, value, begin_ms) + self.key.len() + SERIES_BYTES;
        held.series.insert(self.key.as_slice().into(), series);
    }
}

/// Memory of a series without samples, and of a window without changes.
const SERIES_BYTES: usize = 96;
const WINDOW_BYTES: usize = size_of::<Window>();

impl Tenant {
    /// Drops the collections before a time.
    fn forget_before(&mut self, oldest: i64) {
        while self.times.front().is_some_and(|time| *time < oldest) {
            self.forget(1);
        }
    }

    /// Drops the oldest collections.
    fn forget(&mut self, count: u64) {
        for _ in 0..count {
            self.times.pop_front();
        }
        self.first += count;
        if self.first % WINDOW >= count {
            return;
        }
        let Self { first, series, bytes, .. } = self;
        series.retain(|key, series| {
            while let Some(window) = series.windows.pop_front_if(|window| window.end < *first) {
                *bytes = bytes.saturating_sub(WINDOW_BYTES + window.changes.len());
            }
            while series.begins.pop_front_if(|(number, _)| *number < *first).is_some() {}
            if series.windows.is_empty() {
                *bytes = bytes.saturating_sub(key.len() + SERIES_BYTES);
            }
            !series.windows.is_empty()
        });
    }

    fn samples(&self, series: &Series, from: i64, to: i64) -> Samples {
        let begin = self.first + self.times.partition_point(|time| *time < from) as u64;
        let end = self.first + self.times.partition_point(|time| *time <= to) as u64;
        let mut samples = Vec::new();
        for window in &series.windows {
            let zero = series.begins.iter().find(|(number, _)| *number == window.begin && *number >= self.first);
            let zero = zero.map(|(_, time)| *time);
            samples.extend(zero.filter(|time| (from..=to).contains(time)).map(|time| (time, 0.0)));
            if window.end >= begin && window.begin < end {
                window.samples(|number, value| {
                    if (begin..end).contains(&number)
                        && let Some(time) = self.times.get((number - self.first) as usize)
                    {
                        samples.push((*time, value));
                    }
                });
            }
        }
        samples
    }
}

impl Series {
    /// Returns the memory that this takes.
    fn add(&mut self, number: u64, value: f64, begin_ms: Option<u64>) -> usize {
        self.begins.extend(begin_ms.map(|time| (number, i64::try_from(time).unwrap_or(i64::MAX))));
        let follows = |window: &&mut Window| window.end + 1 == number && window.begin / WINDOW == number / WINDOW;
        if let Some(window) = self.windows.back_mut().filter(follows).filter(|_| begin_ms.is_none()) {
            return window.add(number, value);
        }
        self.windows.push_back(Window::new(number, value));
        WINDOW_BYTES
    }
}

impl Window {
    fn new(number: u64, value: f64) -> Self {
        Self { begin: number, end: number, first: value, last: value, changed: number, changes: Vec::new() }
    }

    fn add(&mut self, number: u64, value: f64) -> usize {
        self.end = number;
        if value.to_bits() == self.last.to_bits() {
            return 0;
        }
        let before = self.changes.len();
        // The lowest bit says how the value is written.
        let gap = (number - self.changed) << 1;
        if let Some(step) = small_step(self.last, value) {
            write(gap, &mut self.changes);
            write(step, &mut self.changes);
        } else {
            write(gap | 1, &mut self.changes);
            self.changes.extend(value.to_le_bytes());
        }
        (self.last, self.changed) = (value, number);
        self.changes.len() - before
    }

    fn samples(&self, mut show: impl FnMut(u64, f64)) {
        let (mut number, mut value, mut rest) = (self.begin, self.first, self.changes.as_slice());
        let mut changed = self.begin;
        loop {
            let next = read(&mut rest).and_then(|gap| {
                let at = changed + (gap >> 1);
                let value = if gap & 1 == 1 {
                    let (bytes, after) = rest.split_first_chunk()?;
                    rest = after;
                    f64::from_le_bytes(*bytes)
                } else {
                    value + read(&mut rest)? as f64
                };
                Some((at, value))
            });
            let until = next.map_or(self.end + 1, |(at, _)| at);
            (number..until).for_each(|number| show(number, value));
            let Some((at, new)) = next else { return };
            (number, changed, value) = (at, at, new);
        }
    }
}

/// From one whole number to a higher one.
fn small_step(from: f64, to: f64) -> Option<u64> {
    const WHOLE: f64 = (1_u64 << 53) as f64;
    let whole = from.fract() == 0.0 && to.fract() == 0.0 && from >= 0.0 && to > from && to < WHOLE;
    whole.then_some((to - from) as u64)
}

fn write(mut value: u64, bytes: &mut Vec<u8>) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn read(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if *first < 0x80 {
            return Some(value);
        }
    }
    None
}

fn labels_of(key: &[u8]) -> Labels {
    let mut texts = key.split(|byte| *byte == SEPARATOR).map(|text| String::from_utf8_lossy(text).into_owned());
    let mut labels = Labels::new();
    while let (Some(name), Some(value)) = (texts.next().filter(|name| !name.is_empty()), texts.next()) {
        labels.insert(name, value);
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: [(&str, &str); 2] = [("__name__", "a"), ("x", "é")];

    fn all(history: &History) -> Vec<(Labels, Samples)> {
        history.select("t", i64::MIN, i64::MAX, |_| true)
    }

    proptest! {
        /// What was added is there, as far back as it is kept; values that are none make gaps.
        #[test]
        fn samples_come_back(
            values in prop::collection::vec(prop::option::of(prop_oneof![
                (0..20_u32).prop_map(f64::from), any::<f64>(), Just(1e15), Just(-3.0)
            ]), 1..700),
            kept in 10..900_u64,
        ) {
            let history = History::new(kept * 10, usize::MAX);
            let mut expected = Vec::new();
            for (number, value) in (1..).zip(&values) {
                let mut adding = history.add("t", 10 * number);
                adding.sample(&[("__name__", "steady")], 1.0, None);
                if let Some(value) = value {
                    adding.sample(&A, *value, None);
                    expected.push((10 * number as i64, value.to_bits()));
                }
            }
            let oldest = 10 * values.len() as i64 - 10 * kept as i64;
            expected.retain(|(time, _)| *time >= oldest);
            let found = all(&history);
            let found = found.iter().find(|(labels, _)| labels["__name__"] == "a");
            let found: Vec<_> = found.iter().flat_map(|(_, samples)| samples).map(|(time, value)| (*time, value.to_bits())).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_time_has_both_its_ends() {
        let history = History::new(u64::MAX, usize::MAX);
        (1..=9).for_each(|number| history.add("t", number).sample(&A, number as f64, (number == 4).then_some(3)));
        let found = history.select("t", 3, 5, |labels| labels["x"] == "é");
        assert_eq!(found[0].1, [(3, 3.0), (3, 0.0), (4, 4.0), (5, 5.0)]);
        assert_eq!(history.select("t", 3, 5, |labels| labels["x"] == "e"), []);
        assert_eq!(history.select("other", 3, 5, |_| true), []);
    }

    #[test]
    fn memory_is_bounded_by_forgetting_the_oldest() {
        let history = History::new(u64::MAX, 20_000);
        for number in 1..=10_000_u64 {
            let mut adding = history.add("t", number);
            // A new one every hundred collections, which then ends.
            let name = format!("s{}", number / 100);
            adding.sample(&[("__name__", &name)], number as f64 / 3.0, None);
        }
        let bytes = history.tenants()["t"].bytes;
        assert!(bytes <= 20_000 + 240 * 10, "{bytes}");
        let found = all(&history);
        assert!(found.iter().any(|(labels, _)| labels["__name__"] == "s100"), "the newest is there");
        assert!(!found.iter().any(|(labels, _)| labels["__name__"] == "s1"), "the oldest is not");
    }
}
