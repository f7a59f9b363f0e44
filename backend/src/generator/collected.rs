//! What was counted up to a moment, and the samples that it makes.

use std::sync::Arc;

use super::edges::{Edge, EdgeKey};
use super::family::{Labels, OVERFLOW, SEPARATOR, Series, Shape, help_of};
use super::histogram::{Exemplar, Native};
use crate::config::HistogramKind;
use crate::promql::{History, STALE};

/// What was counted of all tenants up to a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Collected {
    /// The moment, milliseconds since the epoch.
    pub(super) time_ms: u64,
    /// Which requests of the log are in it.
    pub(super) applied: Applied,
    pub(super) tenants: Vec<Arc<TenantSnapshot>>,
}

/// Numbers of requests in the log.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Applied {
    /// All below this,
    pub(super) below: u64,
    /// and these.
    pub(super) also: std::collections::BTreeSet<u64>,
}

impl Collected {
    /// Gives exemplars the ids of the traces in which their spans are now: `home` says it of a tenant's trace.
    pub(super) fn move_exemplars(&mut self, home: impl Fn(&str, [u8; 16]) -> [u8; 16]) {
        for snapshot in &mut self.tenants {
            let TenantSnapshot { tenant, families, .. } = Arc::make_mut(snapshot);
            let series = families.iter_mut().flat_map(|family| &mut family.series);
            let histograms = series.flat_map(|snapshot| snapshot.series.histograms.iter_mut().flatten());
            for (_, exemplar) in histograms.flat_map(|histogram| &mut histogram.exemplars) {
                exemplar.trace_id = home(tenant, exemplar.trace_id);
            }
        }
    }
}

/// Whether samples are taken of a tenant.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    Now,
    /// It is not its time yet.
    Later,
    /// None are wanted.
    Never,
}

/// What was counted of a tenant.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TenantSnapshot {
    pub(super) tenant: Arc<str>,
    /// Whether this gives samples.
    pub(super) turn: Turn,
    /// The moment of the samples before, milliseconds since the epoch.
    pub(super) previous_ms: u64,
    /// Label of exemplars that holds the trace id.
    pub(super) trace_id_label: Arc<str>,
    /// Names and values.
    pub(super) external_labels: Vec<(String, String)>,
    pub(super) families: Vec<FamilySnapshot>,
    /// Ends of requests that wait for the other, and until when.
    pub(super) edges: Vec<(u64, EdgeKey, Edge)>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct FamilySnapshot {
    pub(super) shape: Arc<Shape>,
    pub(super) series: Vec<SeriesSnapshot>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct SeriesSnapshot {
    pub(super) key: Arc<[u8]>,
    pub(super) series: Series,
    pub(super) state: SeriesState,
}

/// Where a series is in its life.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SeriesState {
    /// It is in no collection before this one.
    New,
    Steady,
    /// It is in none after this one.
    Gone,
}

/// A series of Prometheus at a moment.
#[derive(Clone, Debug)]
pub(super) struct Point<'a> {
    /// Names and values, sorted; the first is `__name__`.
    pub(super) labels: &'a [(&'a str, &'a str)],
    pub(super) value: PointValue<'a>,
    pub(super) exemplar: Option<&'a Exemplar>,
    pub(super) state: SeriesState,
    pub(super) kind: PointKind,
    /// What it tells.
    pub(super) help: &'static str,
    /// When it was zero, milliseconds since the epoch; 0 if that is not known.
    pub(super) created_ms: u64,
}

/// What the numbers of a series are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum PointKind {
    /// It counts from zero.
    Counter,
    /// So do all parts of it.
    Histogram,
    /// It is always 1.
    Info,
}

impl Point<'_> {
    /// When it was zero, if this is the first sample since then; `time_ms` is when that is.
    pub(super) fn begins(&self, tenant: &TenantSnapshot, time_ms: u64) -> Option<u64> {
        // The moment after the samples before, at which there was nothing of it yet.
        let begin = tenant.previous_ms + 1;
        let begins = self.state == SeriesState::New && self.kind != PointKind::Info && begin < time_ms;
        begins.then_some(begin)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum PointValue<'a> {
    Float(f64),
    Native { histogram: &'a Native, sum: f64 },
}

impl Applied {
    /// Most numbers that are remembered behind a gap; a gap before more of them is one that will not close.
    const MAX_ALSO: usize = 1 << 14;

    /// False if it was there.
    pub(super) fn add(&mut self, sequence: u64) -> bool {
        if sequence < self.below || !self.also.insert(sequence) {
            return false;
        }
        if self.also.len() > Self::MAX_ALSO {
            self.below = self.also.first().copied().unwrap_or_default();
        }
        while self.also.first() == Some(&self.below) {
            self.also.pop_first();
            self.below += 1;
        }
        true
    }
}

impl Collected {
    /// The tenants of which there are samples.
    pub(super) fn sampled(&self) -> impl Iterator<Item = &Arc<TenantSnapshot>> {
        self.tenants.iter().filter(|tenant| tenant.turn == Turn::Now)
    }

    /// How many series it has, as Prometheus counts them.
    pub fn series(&self) -> usize {
        let mut series = 0;
        self.tenants.iter().for_each(|tenant| tenant.points(|_| series += 1));
        series
    }
}

impl Collected {
    /// Adds all samples to those that can be queried.
    pub(super) fn remember(&self, history: &History) {
        for tenant in self.sampled() {
            let mut adding = history.add(&tenant.tenant, self.time_ms);
            tenant.points(|point| {
                let PointValue::Float(value) = point.value else { return };
                let value = if point.state == SeriesState::Gone { STALE } else { value };
                adding.sample(point.labels, value, point.begins(tenant, self.time_ms));
            });
        }
    }
}

impl TenantSnapshot {
    /// Shows every series.
    pub(super) fn points(&self, mut visit: impl FnMut(&Point<'_>)) {
        let external: Vec<_> =
            self.external_labels.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        for family in &self.families {
            family.points(&external, &mut visit);
        }
    }
}

impl FamilySnapshot {
    fn points(&self, external: &[(&str, &str)], visit: &mut impl FnMut(&Point<'_>)) {
        let shape = &*self.shape;
        let names: Vec<[String; 3]> = shape
            .histograms
            .iter()
            .map(|name| ["_bucket", "_sum", "_count"].map(|end| format!("{name}{end}")))
            .collect();
        let bounds: Vec<String> = shape.bounds.iter().map(ToString::to_string).chain(["+Inf".to_owned()]).collect();
        for snapshot in &self.series {
            let own = shape.labels_of(&snapshot.key, external);
            let created_ms = snapshot.series.created_ms;
            let mut show = |name: &str, le: Option<&str>, value, exemplar, kind, of: &str| {
                let mut labels = Vec::with_capacity(own.len() + 2);
                labels.extend(own.iter().copied());
                labels.push(("__name__", name));
                labels.extend(le.map(|le| ("le", le)));
                labels.sort_unstable();
                let (state, help) = (snapshot.state, help_of(of));
                visit(&Point { labels: &labels, value, exemplar, state, kind, help, created_ms });
            };
            for (name, value) in shape.counters.iter().zip(snapshot.series.counters) {
                let kind = if shape.info { PointKind::Info } else { PointKind::Counter };
                show(name, None, PointValue::Float(value), None, kind, name);
            }
            let histograms = shape.histograms.iter().zip(&names).zip(&snapshot.series.histograms);
            for ((name, [bucket, sum, count]), histogram) in histograms {
                let Some(histogram) = histogram else { continue };
                if shape.kind != HistogramKind::Native {
                    let mut up_to = 0.0;
                    for (number, (in_bucket, bound)) in histogram.counts.iter().zip(&bounds).enumerate() {
                        up_to += in_bucket;
                        let exemplar = histogram.exemplars.iter().find(|(place, _)| usize::from(*place) == number);
                        let exemplar = exemplar.map(|(_, exemplar)| exemplar);
                        show(bucket, Some(bound), PointValue::Float(up_to), exemplar, PointKind::Histogram, name);
                    }
                    show(sum, None, PointValue::Float(histogram.sum), None, PointKind::Histogram, name);
                    show(count, None, PointValue::Float(histogram.count()), None, PointKind::Histogram, name);
                }
                if let Some(native) = &histogram.native {
                    let exemplar = histogram.exemplars.last().map(|(_, exemplar)| exemplar);
                    let value = PointValue::Native { histogram: native, sum: histogram.sum };
                    show(name, None, value, exemplar, PointKind::Histogram, name);
                }
            }
        }
    }
}

impl Shape {
    /// Labels of a key, without those that are empty: for Prometheus these are not there.
    pub(super) fn labels_of<'a>(&'a self, key: &'a [u8], external: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        let mut labels = Vec::with_capacity(external.len() + 8);
        if key == OVERFLOW {
            labels.push(("metric_overflow", "true"));
        } else {
            let mut texts =
                key.split(|byte| *byte == SEPARATOR).map(|text| std::str::from_utf8(text).unwrap_or_default());
            match &self.labels {
                Labels::Named(names) => labels.extend(names.iter().map(|name| &**name).zip(texts)),
                Labels::InKey => {
                    while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
                        labels.push((name, value));
                    }
                }
            }
        }
        // What a span says goes before what the configuration says of all.
        labels.retain(|(_, value)| !value.is_empty());
        labels.sort_unstable();
        labels.dedup_by(|later, first| later.0 == first.0);
        for (name, value) in external {
            if !labels.iter().any(|(known, _)| known == name) {
                labels.push((name, value));
            }
        }
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_out_of_order_is_known() {
        let mut applied = Applied { below: 3, ..Applied::default() };
        assert_eq!([2, 5, 3, 5, 4, 6].map(|sequence| applied.add(sequence)), [false, true, true, false, true, true]);
        assert_eq!((applied.below, applied.also.len()), (7, 0));
    }

    #[test]
    fn a_gap_that_does_not_close_is_given_up() {
        let mut applied = Applied::default();
        assert!((1..=Applied::MAX_ALSO as u64).all(|sequence| applied.add(sequence)));
        assert_eq!(applied.below, 0);
        assert!(applied.add(Applied::MAX_ALSO as u64 + 1));
        assert_eq!((applied.below, applied.also.len()), (Applied::MAX_ALSO as u64 + 2, 0));
    }
}
