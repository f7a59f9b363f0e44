//! What is new since the last time, for those who do not want to be told what they know.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::point::{Point, Value};

/// What of counts is sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Temporality {
    /// All since the beginning.
    Cumulative,
    /// What is new.
    Delta,
}

/// What of each series was taken.
#[derive(Debug, Default)]
pub(super) struct Deltas {
    taken: HashMap<(&'static str, String), Taken>,
}

#[derive(Debug)]
struct Taken {
    value: Value,
    /// When the series began: one that was forgotten and came back begins anew.
    since_unix_ns: u64,
    /// When it was taken.
    at_unix_ns: u64,
}

impl Deltas {
    /// The same points with what is new; those with nothing new are left out.
    pub(super) fn new_of(&self, points: &[Point]) -> Vec<Point> {
        let new = |point: &Point| {
            let taken = self.taken.get(&key(point)).filter(|taken| taken.since_unix_ns == point.since_unix_ns);
            let (since_unix_ns, value) = match (&point.value, taken) {
                (Value::Gauge(_), _) | (_, None) => (point.since_unix_ns, point.value.clone()),
                (value, Some(taken)) => (taken.at_unix_ns, value.since(&taken.value)?),
            };
            let Point { metric, service, labels, .. } = point;
            let (service, labels) = (Arc::clone(service), Arc::clone(labels));
            Some(Point { metric: *metric, service, labels, since_unix_ns, value })
        };
        points.iter().filter_map(new).collect()
    }

    /// These points, all since the beginning, were taken at this time.
    pub(super) fn took(&mut self, points: &[Point], at_unix_ns: u64) {
        for point in points.iter().filter(|point| !matches!(point.value, Value::Gauge(_))) {
            let Point { value, since_unix_ns, .. } = point.clone();
            self.taken.insert(key(point), Taken { value, since_unix_ns, at_unix_ns });
        }
    }

    /// Forgets the series that are not among these.
    pub(super) fn forget_all_but(&mut self, points: &[Point]) {
        if !self.taken.is_empty() {
            let left: HashSet<_> = points.iter().map(key).collect();
            self.taken.retain(|key, _| left.contains(key));
        }
    }
}

fn key(point: &Point) -> (&'static str, String) {
    (point.metric.otlp, format!("{}\n{}", point.service.text, point.labels.text))
}

impl Value {
    /// `None` if nothing has come.
    fn since(&self, earlier: &Self) -> Option<Self> {
        match (self, earlier) {
            (Self::Counter(now), Self::Counter(before)) => (now > before).then_some(Self::Counter(now - before)),
            (Self::Histogram(now), Self::Histogram(before)) => {
                (now.count() > before.count()).then(|| Self::Histogram(now.since(before)))
            }
            (now, _) => Some(now.clone()),
        }
    }
}
