//! Histograms: classic ones with given bounds, and Prometheus' native ones, whose bounds are powers of a base.

use std::collections::BTreeMap;

use crate::config::HistogramKind;

/// The coarsest and the finest schemas that Prometheus reads: the base of buckets is two to the power of two to the power of
/// minus this.
const LAST_SCHEMA: i32 = -4;
const FINEST_SCHEMA: i32 = 8;

/// How native buckets begin, and how many there may be; when there are more, two become one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct NativeBuckets {
    pub(super) schema: i32,
    pub(super) max: usize,
}

impl NativeBuckets {
    /// With the largest factor between two bounds that is no larger than this, as Prometheus' clients have it.
    pub(super) fn new(factor: f64, max: usize) -> Self {
        let schema = -(factor.log2().log2().floor().clamp(-8.0, 4.0) as i32);
        Self { schema: schema.clamp(LAST_SCHEMA, FINEST_SCHEMA), max }
    }
}

/// Values up to this are counted as zero: two to the power of -128, Prometheus' default.
pub(super) const ZERO_THRESHOLD: f64 = 2.938_735_877_055_719e-39;

/// A trace that a value comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Exemplar {
    pub(super) trace_id: [u8; 16],
    pub(super) value: f64,
}

/// What was observed.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Histogram {
    /// How many values are in each bucket, not added up; the last one has no upper bound.
    pub(super) counts: Vec<f64>,
    pub(super) sum: f64,
    pub(super) native: Option<Box<Native>>,
    /// By bucket, the first since they were last taken. At most one for each.
    pub(super) exemplars: Vec<(u8, Exemplar)>,
    /// Bit for each bucket that has an exemplar.
    pub(super) has_exemplar: u64,
}

/// A native histogram.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Native {
    pub(super) schema: i32,
    pub(super) zero: f64,
    pub(super) positive: BTreeMap<i32, f64>,
}

impl Histogram {
    pub(super) fn new(bounds: &[f64], kind: HistogramKind, buckets: NativeBuckets) -> Self {
        let native = || Box::new(Native { schema: buckets.schema, zero: 0.0, positive: BTreeMap::new() });
        Self {
            counts: vec![0.0; bounds.len() + 1],
            native: (kind != HistogramKind::Classic).then(native),
            ..Self::default()
        }
    }

    /// Counts a value `times` times. There are at most `max_native` native buckets.
    pub(super) fn observe(&mut self, bounds: &[f64], max_native: usize, value: f64, times: f64, trace_id: &[u8; 16]) {
        let bucket = bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += times;
        }
        self.sum += value * times;
        let bit = 1 << (bucket & 63);
        if self.has_exemplar & bit == 0 {
            self.has_exemplar |= bit;
            self.exemplars.push((bucket as u8, Exemplar { trace_id: *trace_id, value }));
        }
        if let Some(native) = &mut self.native {
            native.observe(value, times, max_native);
        }
    }

    pub(super) fn count(&self) -> f64 {
        self.counts.iter().sum()
    }

    /// After they were copied.
    pub(super) fn forget_exemplars(&mut self) {
        self.exemplars.clear();
        self.has_exemplar = 0;
    }
}

impl Native {
    fn observe(&mut self, value: f64, times: f64, max: usize) {
        if value <= ZERO_THRESHOLD {
            self.zero += times;
            return;
        }
        *self.positive.entry(index(value, self.schema)).or_default() += times;
        while self.positive.len() > max && self.schema > LAST_SCHEMA {
            self.schema -= 1;
            let finer = std::mem::take(&mut self.positive);
            for (index, count) in finer {
                // Two neighbours make one, whose upper bound is that of the upper one.
                *self.positive.entry((index + 1).div_euclid(2)).or_default() += count;
            }
        }
    }
}

/// Number of the bucket whose upper bound, base to the power of the number, is the first that is not below the value.
fn index(value: f64, schema: i32) -> i32 {
    let index = (value.log2() * f64::from(schema).exp2()).ceil() as i32;
    // The logarithm is rounded: a value on a bound belongs below it.
    if value <= bound(index - 1, schema) {
        index - 1
    } else if value > bound(index, schema) {
        index + 1
    } else {
        index
    }
}

fn bound(index: i32, schema: i32) -> f64 {
    (f64::from(index) * f64::from(-schema).exp2()).exp2()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::float_cmp, reason = "sums of whole numbers are exact")]

    use super::*;
    use proptest::prelude::*;
    use rstest::rstest;

    const BOUNDS: [f64; 3] = [0.1, 0.2, 0.4];
    const MAX: usize = 100;

    fn histogram(kind: HistogramKind) -> Histogram {
        Histogram::new(&BOUNDS, kind, NativeBuckets::new(1.1, MAX))
    }

    #[rstest]
    #[case::tempos(1.1, 3)]
    #[case::double(2.0, 0)]
    #[case::nearly(1.99, 1)]
    #[case::coarse(1e9, -4)]
    #[case::finest(1.000_001, 8)]
    fn the_factor_chooses_the_base(#[case] factor: f64, #[case] schema: i32) {
        assert_eq!(NativeBuckets::new(factor, MAX).schema, schema);
        if (LAST_SCHEMA + 1..FINEST_SCHEMA).contains(&schema) {
            let base = |schema: i32| bound(1, schema);
            assert!(base(schema) <= factor && base(schema - 1) > factor);
        }
    }

    #[rstest]
    #[case::below_all(0.05, 0)]
    #[case::on_a_bound(0.1, 0)]
    #[case::between(0.15, 1)]
    #[case::on_the_last(0.4, 2)]
    #[case::above_all(7.0, 3)]
    fn a_value_is_in_the_first_bucket_whose_bound_is_not_below_it(#[case] value: f64, #[case] bucket: usize) {
        let mut histogram = histogram(HistogramKind::Classic);
        histogram.observe(&BOUNDS, MAX, value, 2.0, &[1; 16]);
        let mut expected = vec![0.0; 4];
        expected[bucket] = 2.0;
        assert_eq!((histogram.counts.clone(), histogram.sum), (expected, 2.0 * value));
        assert_eq!(histogram.exemplars, [(bucket as u8, Exemplar { trace_id: [1; 16], value })]);
    }

    #[test]
    fn a_bucket_keeps_the_first_exemplar_until_they_are_forgotten() {
        let mut histogram = histogram(HistogramKind::Classic);
        for trace in 1..4 {
            histogram.observe(&BOUNDS, MAX, 0.15, 1.0, &[trace; 16]);
        }
        assert_eq!(histogram.exemplars.len(), 1);
        assert_eq!(histogram.exemplars[0].1.trace_id, [1; 16]);
        histogram.forget_exemplars();
        histogram.observe(&BOUNDS, MAX, 0.15, 1.0, &[4; 16]);
        assert_eq!(histogram.exemplars[0].1.trace_id, [4; 16]);
        assert_eq!(histogram.count(), 4.0);
    }

    proptest! {
        #[test]
        fn a_native_bucket_holds_what_is_between_its_bounds(exponent in -60.0_f64..60.0, schema in -4..=8_i32) {
            let value = exponent.exp2();
            let index = index(value, schema);
            prop_assert!(value <= bound(index, schema) && value > bound(index - 1, schema));
        }

        #[test]
        fn native_buckets_stay_few_and_lose_nothing(exponents in prop::collection::vec(-40.0_f64..40.0, 1..600)) {
            let mut histogram = histogram(HistogramKind::Both);
            for exponent in &exponents {
                histogram.observe(&BOUNDS, MAX, exponent.exp2(), 1.0, &[1; 16]);
            }
            let native = histogram.native.unwrap();
            prop_assert!(native.positive.len() <= MAX);
            prop_assert_eq!(native.positive.values().sum::<f64>(), exponents.len() as f64);
            for exponent in exponents {
                prop_assert!(native.positive.contains_key(&index(exponent.exp2(), native.schema)));
            }
        }
    }
}
