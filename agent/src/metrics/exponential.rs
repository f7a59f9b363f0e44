//! Histograms whose buckets find their place by themselves: OTLP's exponential ones, which Prometheus keeps as native ones.
//!
//! At scale `s` bucket `i` has the values in `(b^i, b^(i+1)]` with `b = 2^(2^-s)`. A histogram begins with the finest buckets
//! and halves their number whenever it has more than [`MAX_BUCKETS`].

/// Buckets at most, as in OpenTelemetry's SDKs.
const MAX_BUCKETS: usize = 160;
/// Where a histogram begins. Finer buckets tell apart what a clock does not.
const MAX_SCALE: i32 = 20;
/// At this scale all numbers that there are lie in fewer than [`MAX_BUCKETS`] buckets.
const MIN_SCALE: i32 = -10;

/// Counts of positive numbers, and of zeros.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Exponential {
    pub(crate) scale: i32,
    pub(crate) zeros: u64,
    /// Place of the first bucket.
    pub(crate) offset: i32,
    pub(crate) counts: Vec<u64>,
}

impl Default for Exponential {
    fn default() -> Self {
        Self { scale: MAX_SCALE, zeros: 0, offset: 0, counts: Vec::new() }
    }
}

impl Exponential {
    /// Counts a value; one that is negative or no number is none that is measured here, and counts as zero.
    pub(super) fn observe(&mut self, value: f64) {
        if !value.is_normal() || value < 0.0 {
            self.zeros += 1;
            return;
        }
        let mut index = index(value, self.scale);
        let (first, last) = if self.counts.is_empty() { (index, index) } else { self.ends() };
        let shift = shift(first.min(index), last.max(index));
        if shift > 0 {
            self.coarsen(shift);
            index >>= shift;
        }
        if self.counts.is_empty() {
            self.offset = index;
        }
        let before = usize::try_from(self.offset - index).unwrap_or(0);
        self.counts.splice(0..0, std::iter::repeat_n(0, before));
        self.offset = self.offset.min(index);
        let place = usize::try_from(index - self.offset).unwrap_or(0);
        if place >= self.counts.len() {
            self.counts.resize(place + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
    }

    /// What was counted since `earlier`, an earlier state of this histogram.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let mut earlier = earlier.clone();
        earlier.coarsen((earlier.scale - self.scale).max(0).unsigned_abs());
        let mut new = self.clone();
        new.zeros = new.zeros.saturating_sub(earlier.zeros);
        for (count, index) in earlier.counts.iter().zip(earlier.offset..) {
            let place = usize::try_from(index - new.offset).ok();
            if let Some(newer) = place.and_then(|place| new.counts.get_mut(place)) {
                *newer = newer.saturating_sub(*count);
            }
        }
        new
    }

    /// Places of the first and the last bucket.
    fn ends(&self) -> (i32, i32) {
        (self.offset, self.offset + i32::try_from(self.counts.len()).unwrap_or(i32::MAX) - 1)
    }

    /// Makes one bucket of 2^`shift` ones.
    pub(super) fn coarsen(&mut self, shift: u32) {
        if shift == 0 {
            return;
        }
        let offset = self.offset >> shift;
        let mut counts = Vec::new();
        for (count, index) in self.counts.iter().zip(self.offset..) {
            let place = usize::try_from((index >> shift) - offset).unwrap_or(0);
            if place >= counts.len() {
                counts.resize(place + 1, 0);
            }
            if let Some(sum) = counts.get_mut(place) {
                *sum += count;
            }
        }
        self.scale -= shift.cast_signed();
        (self.offset, self.counts) = (offset, counts);
    }
}

/// By how many powers of two buckets must grow so that those from `first` to `last` are few enough.
fn shift(mut first: i32, mut last: i32) -> u32 {
    let mut shift = 0;
    let most = (MAX_SCALE - MIN_SCALE).unsigned_abs();
    while (i64::from(last) - i64::from(first)).unsigned_abs() >= MAX_BUCKETS as u64 && shift < most {
        first >>= 1;
        last >>= 1;
        shift += 1;
    }
    shift
}

/// The bucket of a positive, normal number.
fn index(value: f64, scale: i32) -> i32 {
    const EXPONENT_BIAS: i32 = 1023;
    const FRACTION: u64 = (1 << 52) - 1;
    let bits = value.to_bits();
    let exponent = ((bits >> 52) & 0x7ff) as i32 - EXPONENT_BIAS;
    // A power of two ends its bucket, and rounding must not put it into the next.
    let is_power = bits & FRACTION == 0;
    if scale <= 0 {
        return (exponent - i32::from(is_power)) >> -scale;
    }
    if is_power {
        return (exponent << scale) - 1;
    }
    let per_octave = f64::from(1 << scale);
    ((value.log2() * per_octave).ceil() as i32 - 1)
        // Nor may it put a number next to a power of two on the other side of that.
        .clamp(exponent << scale, ((exponent + 1) << scale) - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::one_ends_a_bucket(1.0, 0, -1)]
    #[case::above_one(1.5, 0, 0)]
    #[case::two_ends_a_bucket(2.0, 0, 0)]
    #[case::just_above_two(2.000_000_000_000_000_4, 20, 1 << 20)]
    #[case::just_below_two(1.999_999_999_999_999_8, 20, (1 << 20) - 1)]
    #[case::coarse(1024.0, -1, 4)]
    #[case::coarse_and_above(1025.0, -1, 5)]
    #[case::small(0.25, 3, -17)]
    #[case::smallest(f64::MIN_POSITIVE, -10, -1)]
    #[case::largest(f64::MAX, -10, 0)]
    fn buckets_end_where_the_data_model_says(#[case] value: f64, #[case] scale: i32, #[case] expected: i32) {
        assert_eq!(index(value, scale), expected);
    }

    fn of(values: &[f64]) -> Exponential {
        let mut histogram = Exponential::default();
        for value in values {
            histogram.observe(*value);
        }
        histogram
    }

    #[test]
    fn what_is_no_positive_number_counts_as_zero() {
        let histogram = of(&[0.0, -1.0, f64::NAN, f64::INFINITY, f64::MIN_POSITIVE / 2.0, 1.0]);
        assert_eq!((histogram.zeros, &histogram.counts[..]), (5, &[1][..]));
    }

    proptest! {
        /// Every value is counted once, in a bucket that it is in, and there are never too many buckets.
        #[test]
        fn counts_every_value_where_it_is(values in proptest::collection::vec(1e-9..1e9_f64, 1..200)) {
            let histogram = of(&values);
            prop_assert!(histogram.counts.len() <= MAX_BUCKETS);
            prop_assert!((MIN_SCALE..=MAX_SCALE).contains(&histogram.scale));
            let base = 2_f64.powf(2_f64.powi(-histogram.scale));
            let mut left = values.clone();
            for (count, index) in histogram.counts.iter().zip(histogram.offset..) {
                let (above, to) = (base.powi(index), base.powi(index + 1));
                // Powers are not exact either.
                let slack = 1e-6 * (to - above);
                let inside = left.iter().filter(|it| **it > above + slack && **it < to - slack).count() as u64;
                let around = left.iter().filter(|it| **it > above - slack && **it < to + slack).count() as u64;
                prop_assert!(inside <= *count && *count <= around, "{} {} {} {}", index, inside, count, around);
                left.retain(|it| *it > to - slack);
            }
            prop_assert_eq!(histogram.counts.iter().sum::<u64>(), values.len() as u64);
        }

        /// Two parts make the whole.
        #[test]
        fn what_is_new_and_what_was_are_all(
            old in proptest::collection::vec(1e-6..1e6_f64, 0..100),
            new in proptest::collection::vec(1e-6..1e6_f64, 0..100),
        ) {
            let earlier = of(&old);
            let mut all = earlier.clone();
            for value in &new {
                all.observe(*value);
            }
            let difference = all.since(&earlier);
            prop_assert_eq!(difference.counts.iter().sum::<u64>(), new.len() as u64);
            let mut only_new = of(&new);
            only_new.coarsen((only_new.scale - difference.scale).unsigned_abs());
            let filled = |it: &Exponential| {
                it.counts.iter().zip(it.offset..).filter(|(count, _)| **count > 0).map(|(count, index)| (index, *count)).collect::<Vec<_>>()
            };
            prop_assert_eq!(filled(&difference), filled(&only_new));
        }
    }
}
