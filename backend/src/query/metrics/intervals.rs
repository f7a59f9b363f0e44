//! Into which point of a series a moment falls.

/// A time range, cut into intervals of one length. An interval excludes its start and includes its end, at which its
/// point is drawn; the only interval of an instant query includes both.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Intervals {
    start: u64,
    end: u64,
    step: u64,
    instant: bool,
}

impl Intervals {
    /// From `start` to `end`, nanoseconds since the epoch, in steps of `step` nanoseconds; none of them 0.
    ///
    /// Bounds are moved outwards to multiples of the step, and one interval is put before them, so that what a refreshing
    /// client asks for does not change its values. A step as long as the range asks for one value of exactly that range.
    pub fn range(start: u64, end: u64, step: u64) -> Self {
        let step = step.max(1);
        if end.saturating_sub(start) == step {
            return Self::instant(start, end);
        }
        let aligned = start - start % step;
        let end = end.checked_next_multiple_of(step).unwrap_or(u64::MAX);
        let start = if aligned > step { aligned - step } else { aligned };
        Self { start, end, step, instant: false }
    }

    /// One value for everything from `start` to `end`, nanoseconds since the epoch.
    pub fn instant(start: u64, end: u64) -> Self {
        Self { start, end, step: end.saturating_sub(start).max(1), instant: true }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        if self.instant {
            return 1;
        }
        usize::try_from((self.end.saturating_sub(self.start)) / self.step).unwrap_or(usize::MAX)
    }

    /// The interval of a moment, if it has one.
    pub fn of(&self, time_ns: u64) -> Option<usize> {
        if time_ns > self.end || time_ns < self.start {
            return None;
        }
        if self.instant {
            return Some(0);
        }
        let offset = time_ns.checked_sub(self.start)?.checked_sub(1)?;
        usize::try_from(offset / self.step).ok()
    }

    /// Where the point of an interval is drawn, milliseconds since the epoch.
    pub fn timestamp_ms(&self, index: usize) -> i64 {
        let nanos = if self.instant {
            self.end
        } else {
            let steps = u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1);
            self.start.saturating_add(steps.saturating_mul(self.step))
        };
        i64::try_from(nanos / 1_000_000).unwrap_or(i64::MAX)
    }

    /// Length of an interval.
    pub fn step_seconds(&self) -> f64 {
        self.step as f64 / 1e9
    }

    /// Whether there is one value for the whole range.
    pub fn is_instant(&self) -> bool {
        self.instant
    }

    /// First and last moment, nanoseconds since the epoch.
    pub fn bounds(&self) -> (u64, u64) {
        (self.start, self.end)
    }
}

/// The step for who asks for none, nanoseconds: about 240 points, at a length that people use.
pub fn default_step(start: u64, end: u64) -> u64 {
    const MILLISECOND: u64 = 1_000_000;
    const SECOND: u64 = 1_000 * MILLISECOND;
    let range = end.saturating_sub(start);
    let baseline = range / 240;
    if range < 60 * SECOND {
        return (baseline - baseline % (50 * MILLISECOND)).max(50 * MILLISECOND);
    }
    let units = [3_600 * SECOND, 300 * SECOND, 60 * SECOND, 15 * SECOND, 5 * SECOND, SECOND];
    units.into_iter().find(|unit| *unit < baseline).map_or(SECOND, |unit| baseline - baseline % unit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const S: u64 = 1_000_000_000;

    #[test]
    fn bounds_are_moved_outwards_and_one_interval_is_added() {
        let intervals = Intervals::range(1_005 * S, 1_095 * S, 30 * S);
        assert_eq!(intervals.bounds(), (960 * S, 1_110 * S));
        let points: Vec<_> = (0..intervals.count()).map(|index| intervals.timestamp_ms(index)).collect();
        assert_eq!(points, [990_000, 1_020_000, 1_050_000, 1_080_000, 1_110_000]);
    }

    #[rstest]
    #[case::before(959 * S, None)]
    #[case::start_is_excluded(960 * S, None)]
    #[case::first(960 * S + 1, Some(0))]
    #[case::end_is_included(990 * S, Some(0))]
    #[case::next(990 * S + 1, Some(1))]
    #[case::last(1_110 * S, Some(4))]
    #[case::after(1_110 * S + 1, None)]
    fn a_moment_is_in_the_interval_that_ends_at_or_after_it(#[case] time: u64, #[case] index: Option<usize>) {
        assert_eq!(Intervals::range(1_005 * S, 1_095 * S, 30 * S).of(time), index);
    }

    #[test]
    fn a_step_as_long_as_the_range_is_one_exact_interval() {
        let intervals = Intervals::range(1_005 * S, 1_095 * S, 90 * S);
        assert_eq!(intervals, Intervals::instant(1_005 * S, 1_095 * S));
        assert_eq!((intervals.count(), intervals.timestamp_ms(0)), (1, 1_095_000));
        assert_eq!(intervals.step_seconds().to_bits(), 90f64.to_bits());
        let of = [1_004, 1_005, 1_050, 1_095, 1_096].map(|second| intervals.of(second * S));
        assert_eq!(of, [None, Some(0), Some(0), Some(0), None]);
    }

    #[rstest]
    #[case::seconds(10 * S, 50_000_000)]
    #[case::most_of_a_minute(59 * S, 200_000_000)]
    #[case::minute(60 * S, S)]
    #[case::hour(3_600 * S, 15 * S)]
    #[case::six_hours(6 * 3_600 * S, 60 * S)]
    #[case::day(24 * 3_600 * S, 300 * S)]
    #[case::four_weeks(28 * 24 * 3_600 * S, 2 * 3_600 * S)]
    fn steps_are_round(#[case] range: u64, #[case] step: u64) {
        assert_eq!(default_step(1_700_000_000 * S, 1_700_000_000 * S + range), step);
    }

    proptest! {
        #[test]
        fn every_moment_of_the_range_has_an_interval(
            start in 1u64..u64::MAX / 2, length in 1u64..1_000_000, step in 1u64..1_000_000, at in 0f64..1.0,
        ) {
            let intervals = Intervals::range(start, start + length, step);
            let time = start + (length as f64 * at) as u64;
            let (first, last) = intervals.bounds();
            prop_assert!(first <= start && start + length <= last);
            // A range that starts at the beginning of time has no room for an interval before it.
            if let Some(index) = intervals.of(time) {
                prop_assert!(index < intervals.count());
            } else {
                prop_assert!(time == first);
            }
        }
    }
}
