//! Counts of values by bucket.

use super::{
    exponential::Exponential,
    settings::{Aggregation, Bounds},
};

/// Bounds of durations, seconds: those of Beyla, so that its dashboards find their `le`.
pub(super) const SECONDS: &[f64] =
    &[0.0, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
/// Bounds of sizes, bytes: Beyla's too.
pub(super) const BYTES: &[f64] = &[0.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0];

/// A request that stands for those in its bucket.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exemplar {
    pub(crate) trace_id: [u8; 16],
    pub(crate) span_id: [u8; 8],
    pub(crate) value: f64,
    pub(crate) unix_ns: u64,
}

/// How many values were in which bucket.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    pub(crate) bounds: Bounds,
    /// One more than there are bounds; not cumulative.
    pub(crate) counts: Box<[u64]>,
    pub(crate) sum: f64,
    /// The newest of each bucket; empty until there is one.
    pub(crate) exemplars: Vec<Option<Exemplar>>,
    /// The same values in buckets that find their place by themselves, if those are sent.
    pub(crate) exponential: Option<Box<Exponential>>,
}

impl Histogram {
    pub(super) fn new(bounds: Bounds, aggregation: Aggregation) -> Self {
        Self {
            counts: vec![0; bounds.0.len() + 1].into(),
            bounds,
            sum: 0.0,
            exemplars: Vec::new(),
            exponential: (aggregation == Aggregation::Exponential).then(Box::default),
        }
    }

    pub(super) fn observe(&mut self, value: f64, exemplar: Option<Exemplar>) {
        let bucket = self.bounds.0.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.sum += value;
        if let Some(exponential) = &mut self.exponential {
            exponential.observe(value);
        }
        if let Some(exemplar) = exemplar {
            self.exemplars.resize(self.counts.len(), None);
            if let Some(place) = self.exemplars.get_mut(bucket) {
                *place = Some(exemplar);
            }
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What was counted since `earlier`, an earlier state of this histogram.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, before)| now.saturating_sub(*before));
        let exponential = match (&self.exponential, &earlier.exponential) {
            (Some(now), Some(before)) => Some(Box::new(now.since(before))),
            (now, _) => now.clone(),
        };
        let is_new = |exemplar: &Option<Exemplar>| !earlier.exemplars.contains(exemplar);
        Self {
            bounds: self.bounds.clone(),
            counts: counts.collect(),
            sum: self.sum - earlier.sum,
            exemplars: self.exemplars.iter().copied().filter(is_new).collect(),
            exponential,
        }
    }
}
