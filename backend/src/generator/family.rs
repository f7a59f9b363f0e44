//! Series that have their labels in common, such as `traces_spanmetrics_calls_total` and `…_latency`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::histogram::{Histogram, NativeBuckets};
use super::room::{Refused, Room};
use crate::config::HistogramKind;

/// Between the values of a key. No text has this byte.
pub(super) const SEPARATOR: u8 = 0xff;

/// Key of what has no series of its own because there are too many. No text has this byte either.
pub(super) const OVERFLOW: &[u8] = &[0xfe];

/// Most counters and histograms of a family.
pub(super) const COUNTERS: usize = 2;
pub(super) const HISTOGRAMS: usize = 3;

/// What the series of a family are called.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shape {
    /// Names of the counters.
    pub(super) counters: Vec<Cow<'static, str>>,
    /// Names of the histograms, without `_bucket`.
    pub(super) histograms: &'static [&'static str],
    pub(super) labels: Labels,
    /// Upper bounds of the histograms' buckets, seconds.
    pub(super) bounds: Vec<f64>,
    pub(super) kind: HistogramKind,
    pub(super) native: NativeBuckets,
    /// Whether the counters are gauges that are always 1.
    pub(super) info: bool,
}

/// Where the names of labels are.
#[derive(Clone, Debug, Hash, PartialEq)]
pub(super) enum Labels {
    /// Every key has the values of these, in this order.
    Named(Vec<Box<str>>),
    /// Every key has its own names, each before its value.
    InKey,
}

/// The series of one set of labels.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Series {
    pub(super) counters: [f64; COUNTERS],
    /// None where nothing was observed.
    pub(super) histograms: [Option<Box<Histogram>>; HISTOGRAMS],
    /// When something was last counted, milliseconds since the epoch.
    pub(super) updated_ms: u64,
    /// Whether it was collected.
    pub(super) collected: bool,
    /// When it was zero, milliseconds since the epoch; 0 if that is not known.
    pub(super) created_ms: u64,
}

/// What a metric tells, by the name of the counter, or of the histogram without `_bucket`.
pub(super) fn help_of(name: &str) -> &'static str {
    match name {
        "traces_spanmetrics_calls_total" => "Spans",
        "traces_spanmetrics_size_total" => "Bytes of spans",
        "traces_spanmetrics_latency" => "Time from the start of a span to its end, in seconds",
        "traces_target_info" => "What is known of a resource",
        "traces_host_info" => "Hosts that send spans",
        "traces_service_graph_connection_info" => "Which services call which",
        "traces_service_graph_request_total" => "Requests from service to service",
        "traces_service_graph_request_failed_total" => "Requests from service to service that failed",
        "traces_service_graph_request_server_seconds" => "Time that requests took, as servers saw it",
        "traces_service_graph_request_client_seconds" => "Time that requests took, as clients saw it",
        "traces_service_graph_request_messaging_system_seconds" => "Time that messages were on their way",
        _ => "",
    }
}

/// The series of one shape.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) shape: Arc<Shape>,
    places: HashMap<Arc<[u8]>, usize, RandomState>,
    series: Vec<Series>,
    free: Vec<usize>,
    /// Keys that had no room.
    refused: Refused,
}

impl Labels {
    /// Names and values of a key; none if the names are in it.
    pub(super) fn values<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        let names: &[_] = match self {
            Self::Named(names) if key != OVERFLOW => names,
            _ => &[],
        };
        names.iter().map(|name| &**name).zip(key.split(|byte| *byte == SEPARATOR))
    }
}

impl Shape {
    /// That of a metric that tells nothing but its labels.
    pub(super) fn info(name: Cow<'static, str>, labels: Labels) -> Self {
        Self {
            counters: vec![name],
            histograms: &[],
            labels,
            bounds: Vec::new(),
            kind: HistogramKind::Classic,
            native: NativeBuckets { schema: 0, max: 0 },
            info: true,
        }
    }

    /// Series of one set of labels, as Prometheus counts them.
    pub(super) fn weight(&self) -> u64 {
        let classic = if self.kind == HistogramKind::Native { 0 } else { self.bounds.len() + 3 };
        let native = usize::from(self.kind != HistogramKind::Classic);
        (self.counters.len() + self.histograms.len() * (classic + native)) as u64
    }
}

impl Series {
    /// Counts a value in one of its histograms.
    pub(super) fn observe(&mut self, shape: &Shape, histogram: usize, value: f64, times: f64, trace_id: &[u8; 16]) {
        if let Some(slot) = self.histograms.get_mut(histogram) {
            let made = slot.get_or_insert_with(|| Box::new(Histogram::new(&shape.bounds, shape.kind, shape.native)));
            made.observe(&shape.bounds, shape.native.max, value, times, trace_id);
        }
    }
}

impl Family {
    pub(super) fn new(shape: Shape) -> Self {
        Self {
            shape: Arc::new(shape),
            places: HashMap::default(),
            series: Vec::new(),
            free: Vec::new(),
            refused: Refused::default(),
        }
    }

    /// The series of a key, to count in, and their shape; those of the overflow if there is no room for more.
    pub(super) fn of(&mut self, key: &[u8], now_ms: u64, room: &mut Room) -> Option<(&Shape, &mut Series)> {
        let place = match self.places.get(key) {
            Some(place) => *place,
            None => self.begin(key, now_ms, room),
        };
        let series = self.series.get_mut(place)?;
        series.updated_ms = now_ms;
        Some((&self.shape, series))
    }

    #[cold]
    fn begin(&mut self, key: &[u8], now_ms: u64, room: &mut Room) -> usize {
        let shape = Arc::clone(&self.shape);
        let limited = room.limited_key(&shape.labels, key, now_ms);
        let key = limited.as_deref().unwrap_or(key);
        if let Some(place) = self.places.get(key).filter(|_| limited.is_some()) {
            return *place;
        }
        if room.begin(&shape.labels, key, shape.weight(), now_ms) {
            return self.insert(key.into(), Series::default());
        }
        self.refused.insert(room.entity(&shape.labels, key), room.limits.window_ms, now_ms);
        match self.places.get(OVERFLOW) {
            Some(place) => *place,
            None => self.insert(OVERFLOW.into(), Series::default()),
        }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.places.keys().map(|key| &**key)
    }

    /// Counts all series as there.
    pub(super) fn enter(&self, room: &mut Room) {
        self.places.keys().for_each(|key| room.enter(&self.shape.labels, key, self.shape.weight()));
    }

    /// Series there would be without a limit, about.
    pub(super) fn demand(&mut self, room: &Room, now_ms: u64) -> u64 {
        let Self { shape, places, refused, .. } = self;
        let overflow = u64::from(places.contains_key(OVERFLOW));
        let keys = places.keys().map(|key| room.entity(&shape.labels, key));
        refused.demand(keys, now_ms).saturating_sub(overflow) * shape.weight()
    }

    /// Puts a series in its place that is not there.
    pub(super) fn insert(&mut self, key: Arc<[u8]>, series: Series) -> usize {
        let place = self.free.pop().unwrap_or(self.series.len());
        match self.series.get_mut(place) {
            Some(slot) => *slot = series,
            None => self.series.push(series),
        }
        self.places.insert(key, place);
        place
    }

    /// Series in memory, the overflow's included.
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// Shows all series, in no order.
    pub(super) fn each(&mut self, mut visit: impl FnMut(&Arc<[u8]>, &mut Series)) {
        for (key, place) in &self.places {
            if let Some(series) = self.series.get_mut(*place) {
                visit(key, series);
            }
        }
    }

    /// Takes out those in which nothing was counted since `oldest_ms`.
    pub(super) fn end_stale(&mut self, oldest_ms: u64, room: &mut Room, mut ended: impl FnMut(Arc<[u8]>, Series)) {
        let Self { shape, places, series, free, .. } = self;
        places.retain(|key, place| {
            let Some(slot) = series.get_mut(*place).filter(|series| series.updated_ms < oldest_ms) else { return true };
            ended(Arc::clone(key), std::mem::take(slot));
            free.push(*place);
            room.end(&shape.labels, key, shape.weight());
            false
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::room::{Limits, Tally};
    use super::*;

    fn family() -> Family {
        let labels = Labels::Named(vec!["a".into()]);
        let (kind, bounds) = (HistogramKind::Classic, vec![1.0]);
        let counters = vec!["calls".into()];
        let native = NativeBuckets { schema: 3, max: 100 };
        Family::new(Shape { counters, histograms: &["seconds"], labels, bounds, kind, native, info: false })
    }

    /// The weight of this family is 5: a counter, two buckets, sum and count.
    fn room(max: u64) -> Room {
        Room::new(Limits { series: max, window_ms: 60_000, ..Limits::default() })
    }

    fn count(family: &mut Family, key: &str, now_ms: u64, room: &mut Room) {
        family.of(key.as_bytes(), now_ms, room).unwrap().1.counters[0] += 1.0;
    }

    fn counts(family: &mut Family) -> Vec<(Vec<u8>, f64)> {
        let mut counts = Vec::new();
        family.each(|key, series| counts.push((key.to_vec(), series.counters[0])));
        counts.sort_by(|a, b| a.0.cmp(&b.0));
        counts
    }

    #[test]
    fn what_has_no_room_is_counted_in_the_overflow() {
        let (mut family, mut room) = (family(), room(12));
        for key in ["a", "b", "c", "a", "d", "c"] {
            count(&mut family, key, 1, &mut room);
        }
        assert_eq!(counts(&mut family), [(b"a".to_vec(), 2.0), (b"b".to_vec(), 1.0), (OVERFLOW.to_vec(), 3.0)]);
        assert_eq!(room.series, Tally { active: 10, added: 10, removed: 0, limited: 15 });
        assert_eq!((family.demand(&room, 1), family.demand(&room, 1_000_000)), (4 * 5, 2 * 5));
    }

    #[test]
    fn a_stale_series_makes_room_and_begins_at_zero() {
        let (mut family, mut room) = (family(), room(10));
        count(&mut family, "a", 1, &mut room);
        count(&mut family, "b", 5, &mut room);
        let mut ended = Vec::new();
        family.end_stale(5, &mut room, |key, series| ended.push((key.to_vec(), series.counters[0])));
        assert_eq!(ended, [(b"a".to_vec(), 1.0)]);
        count(&mut family, "c", 6, &mut room);
        count(&mut family, "b", 6, &mut room);
        assert_eq!(counts(&mut family), [(b"b".to_vec(), 2.0), (b"c".to_vec(), 1.0)]);
        assert_eq!((room.series.active, room.series.removed, family.series.len()), (10, 5, 2));
    }

    #[test]
    fn a_value_beyond_the_limit_is_counted_under_its_mark() {
        let (mut family, mut room) = (family(), Room::new(Limits { label_values: 2, ..Limits::default() }));
        for key in ["a", "b", "c", "d", "a"] {
            count(&mut family, key, 1, &mut room);
        }
        let counted: Vec<_> = counts(&mut family).into_iter().map(|(_, count)| count).collect();
        // The mark's begins with an underscore, before all small letters.
        assert_eq!(counted, [2.0, 2.0, 1.0]);
        assert_eq!((room.series.active, family.len()), (15, 3));
    }
}
