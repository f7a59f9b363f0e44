//! Label sets and what was counted of each.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{
    histogram::{Exemplar, Histogram},
    labels::{self, Labelled, Labels},
    names::Kind,
    point::{Point, Shape, Value},
    service::{Known, Service},
    settings::MetricsSettings,
};

/// When a request was, and which it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct At {
    /// Its end, by the clock of the records.
    pub(super) now_ns: u64,
    /// Its begin, nanoseconds since the epoch.
    pub(super) begin_unix_ns: u64,
    /// For its duration, if it may stand for others.
    pub(super) exemplar: Option<Exemplar>,
}

/// The requests of one label set.
#[derive(Clone, Debug)]
struct Series {
    kind: Kind,
    /// `None` if it is of the node.
    service: Option<Arc<Service>>,
    labels: Arc<Labels>,
    /// As many as its kind has metrics.
    cells: Vec<Cell>,
    since_unix_ns: u64,
    seen_ns: u64,
}

#[derive(Clone, Debug)]
enum Cell {
    Counter(f64),
    Histogram(Histogram),
}

/// Series by what tells them apart.
#[derive(Debug, Default)]
pub(super) struct Store {
    series: HashMap<Box<[u8]>, Series, foldhash::fast::RandomState>,
    overflow: HashMap<Kind, Series>,
    /// The identity of a label set in the making; kept for its memory.
    identity: Vec<u8>,
}

impl Store {
    /// Counts a request: `values` are of the metrics of its kind, in their order, those that are not known left out. False if
    /// there was no room for its label set.
    pub(super) fn add(
        &mut self,
        kind: Kind,
        service: &Known,
        labelled: &impl Labelled,
        values: &[Option<f64>],
        at: &At,
        settings: &MetricsSettings,
    ) -> bool {
        let Self { series, overflow, identity } = self;
        let labelled = &settings.labels.of(kind, labelled);
        labels::identify(identity, kind, service.id, labelled);
        if let Some(known) = series.get_mut(identity.as_slice()) {
            known.observe(values, at);
            return true;
        }
        if series.len() >= settings.max_series {
            let new = || Series::new(kind, None, Labels::overflow(), at.begin_unix_ns, settings);
            overflow.entry(kind).or_insert_with(new).observe(values, at);
            return false;
        }
        // What is of the node has no number.
        let service = (service.id != 0).then(|| Arc::clone(&service.service));
        let mut new = Series::new(kind, service, Labels::of(labelled), at.begin_unix_ns, settings);
        new.observe(values, at);
        series.insert(identity.as_slice().into(), new);
        true
    }

    /// Forgets those of which nothing was seen for as long as this.
    pub(super) fn expire(&mut self, longest: Duration, now_ns: u64) {
        self.series.retain(|_, series| Duration::from_nanos(now_ns.saturating_sub(series.seen_ns)) < longest);
    }

    /// Adds what was counted. Of what was never seen there is nothing.
    pub(super) fn points(&self, node: &Arc<Service>, points: &mut Vec<Point>) {
        for series in self.series.values().chain(self.overflow.values()) {
            for (metric, cell) in series.kind.metrics().iter().zip(&series.cells) {
                let value = match cell {
                    Cell::Counter(count) => Value::Counter(*count),
                    Cell::Histogram(histogram) if histogram.count() > 0 => Value::Histogram(histogram.clone()),
                    Cell::Histogram(_) => continue,
                };
                points.push(Point {
                    metric: *metric,
                    service: Arc::clone(series.service.as_ref().unwrap_or(node)),
                    labels: Arc::clone(&series.labels),
                    since_unix_ns: series.since_unix_ns,
                    value,
                });
            }
        }
    }
}

impl Series {
    fn new(
        kind: Kind,
        service: Option<Arc<Service>>,
        labels: Labels,
        since_unix_ns: u64,
        settings: &MetricsSettings,
    ) -> Self {
        let cells = kind.metrics().iter().enumerate().map(|(place, metric)| match metric.shape {
            Shape::Histogram => {
                Cell::Histogram(Histogram::new(kind.bounds(place, &settings.buckets), settings.aggregation))
            }
            Shape::Counter | Shape::Gauge => Cell::Counter(0.0),
        });
        Self { kind, service, labels: Arc::new(labels), cells: cells.collect(), since_unix_ns, seen_ns: 0 }
    }

    fn observe(&mut self, values: &[Option<f64>], at: &At) {
        self.seen_ns = at.now_ns;
        // The first one is the duration, where there is one.
        let exemplars = [at.exemplar].into_iter().chain(std::iter::repeat(None));
        for ((cell, value), exemplar) in self.cells.iter_mut().zip(values).zip(exemplars) {
            match (cell, value) {
                (Cell::Counter(count), Some(value)) => *count += value,
                (Cell::Histogram(histogram), Some(value)) => histogram.observe(*value, exemplar),
                (_, None) => {}
            }
        }
    }
}
