//! Which spans are kept.
//!
//! The decision is made on the trace id, as OpenTelemetry's SDKs make it, so that all services and nodes that sample at
//! the same ratio keep the same traces. It is made when a span is over: then it is known whether it failed and how long
//! it took. What is kept for that reason alone is one span of its trace, not all of it.

use std::time::Duration;

use crate::stitch::Ids;

/// A part of all, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

impl Ratio {
    /// All.
    pub const ALL: Self = Self(1.0);

    /// `None` unless it is between 0 and 1.
    pub fn new(ratio: f64) -> Option<Self> {
        (0.0..=1.0).contains(&ratio).then_some(Self(ratio))
    }

    /// As a number.
    pub const fn get(self) -> f64 {
        self.0
    }

    /// Whether a trace is in this part: the last 63 bits of its id but one, as a number, are compared with the ratio's
    /// part of all such numbers. Go's SDK does the same, and so do Beyla and the collector's sampler.
    fn has(self, trace_id: [u8; 16]) -> bool {
        const ALL: f64 = (1_u64 << 63) as f64;
        let number = u128::from_be_bytes(trace_id) as u64 >> 1;
        self.0 >= 1.0 || number < (self.0 * ALL) as u64
    }
}

/// A sampler of OpenTelemetry, by its name in `OTEL_TRACES_SAMPLER`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SamplerName {
    /// Keeps all.
    AlwaysOn,
    /// Keeps none.
    AlwaysOff,
    /// Keeps a part of all traces.
    TraceIdRatio,
    /// Does what the sender of `traceparent` decided; without one keeps all.
    ParentBasedAlwaysOn,
    /// The same; without one keeps none.
    ParentBasedAlwaysOff,
    /// The same; without one keeps a part.
    ParentBasedTraceIdRatio,
}

impl SamplerName {
    /// Every name.
    pub const ALL: [Self; 6] = [
        Self::AlwaysOn,
        Self::AlwaysOff,
        Self::TraceIdRatio,
        Self::ParentBasedAlwaysOn,
        Self::ParentBasedAlwaysOff,
        Self::ParentBasedTraceIdRatio,
    ];

    /// The name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AlwaysOn => "always_on",
            Self::AlwaysOff => "always_off",
            Self::TraceIdRatio => "traceidratio",
            Self::ParentBasedAlwaysOn => "parentbased_always_on",
            Self::ParentBasedAlwaysOff => "parentbased_always_off",
            Self::ParentBasedTraceIdRatio => "parentbased_traceidratio",
        }
    }

    /// Whether it keeps a part that can be chosen.
    pub const fn has_ratio(self) -> bool {
        matches!(self, Self::TraceIdRatio | Self::ParentBasedTraceIdRatio)
    }

    /// By its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|sampler| sampler.as_str() == name)
    }
}

/// Decides by the trace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Which one.
    pub name: SamplerName,
    /// Its part, of those that have one.
    pub ratio: Ratio,
}

impl Default for Sampler {
    fn default() -> Self {
        Self { name: SamplerName::TraceIdRatio, ratio: Ratio::ALL }
    }
}

impl Sampler {
    /// Whether it keeps the spans of this trace.
    pub fn keeps(self, ids: &Ids) -> bool {
        use SamplerName::{
            AlwaysOff, AlwaysOn, ParentBasedAlwaysOff, ParentBasedAlwaysOn, ParentBasedTraceIdRatio, TraceIdRatio,
        };
        match self.name {
            ParentBasedAlwaysOn | ParentBasedAlwaysOff | ParentBasedTraceIdRatio if ids.is_continued => {
                ids.flags & 1 != 0
            }
            AlwaysOn | ParentBasedAlwaysOn => true,
            AlwaysOff | ParentBasedAlwaysOff => false,
            TraceIdRatio | ParentBasedTraceIdRatio => self.ratio.has(ids.trace_id),
        }
    }
}

/// Which spans are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingConfig {
    /// By their trace.
    pub sampler: Sampler,
    /// Those of errors, whatever the sampler says.
    pub keep_errors: bool,
    /// Those that took at least so long, whatever the sampler says.
    pub keep_slower_than: Option<Duration>,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self { sampler: Sampler::default(), keep_errors: true, keep_slower_than: None }
    }
}

impl SamplingConfig {
    /// Whether a span is kept: of a process for which a rule names a sampler, by that one.
    pub fn keeps(&self, ids: &Ids, of_process: Option<Sampler>, is_error: bool, duration: Duration) -> bool {
        self.keep_errors && is_error
            || self.keep_slower_than.is_some_and(|limit| duration >= limit)
            || of_process.unwrap_or(self.sampler).keeps(ids)
    }
}

/// Lets so many through a second, and as many at once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RateLimit {
    per_second: f64,
    left: f64,
    at_ns: u64,
}

impl RateLimit {
    /// A limit that nothing has used yet.
    pub fn new(per_second: usize) -> Self {
        Self { per_second: per_second as f64, left: per_second as f64, at_ns: 0 }
    }

    /// Whether one more may pass at this time, nanoseconds of a clock that hardly ever goes back.
    pub fn passes(&mut self, now_ns: u64) -> bool {
        let since = Duration::from_nanos(now_ns.saturating_sub(self.at_ns)).as_secs_f64();
        self.at_ns = self.at_ns.max(now_ns);
        self.left = (self.left + since * self.per_second).min(self.per_second);
        let passes = self.left >= 1.0;
        if passes {
            self.left -= 1.0;
        }
        passes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn ids(low: u64, continued: Option<u8>) -> Ids {
        Ids {
            trace_id: u128::from(low).to_be_bytes(),
            span_id: [1; 8],
            parent_span_id: continued.map(|_| [2; 8]),
            trace_state: "".into(),
            flags: continued.unwrap_or(1),
            is_parent_remote: None,
            is_continued: continued.is_some(),
        }
    }

    fn sampler(name: &str, ratio: f64) -> Sampler {
        Sampler { name: SamplerName::from_name(name).unwrap(), ratio: Ratio::new(ratio).unwrap() }
    }

    const HALF: u64 = 1 << 63;

    #[rstest]
    #[case::on("always_on", 0.0, ids(HALF, None), true)]
    #[case::off("always_off", 1.0, ids(0, None), false)]
    #[case::below("traceidratio", 0.5, ids(HALF - 1, None), true)]
    #[case::at_the_bound("traceidratio", 0.5, ids(HALF, None), false)]
    #[case::all("traceidratio", 1.0, ids(u64::MAX, None), true)]
    #[case::none("traceidratio", 0.0, ids(0, None), false)]
    #[case::ratio_asks_no_parent("traceidratio", 0.5, ids(HALF, Some(1)), false)]
    #[case::parent_said_yes("parentbased_traceidratio", 0.0, ids(HALF, Some(1)), true)]
    #[case::parent_said_no("parentbased_traceidratio", 1.0, ids(0, Some(0)), false)]
    #[case::no_parent("parentbased_traceidratio", 0.5, ids(HALF, None), false)]
    #[case::no_parent_on("parentbased_always_on", 0.0, ids(HALF, None), true)]
    #[case::parent_no_on("parentbased_always_on", 0.0, ids(HALF, Some(2)), false)]
    #[case::no_parent_off("parentbased_always_off", 1.0, ids(0, None), false)]
    #[case::parent_yes_off("parentbased_always_off", 1.0, ids(0, Some(3)), true)]
    fn samplers(#[case] name: &str, #[case] ratio: f64, #[case] ids: Ids, #[case] expected: bool) {
        assert_eq!(sampler(name, ratio).keeps(&ids), expected);
    }

    #[rstest]
    #[case::sampled_out(false, 99, false)]
    #[case::error(true, 1, true)]
    #[case::slow(false, 100, true)]
    fn errors_and_slow_ones_stay(#[case] is_error: bool, #[case] ms: u64, #[case] expected: bool) {
        let config = SamplingConfig {
            sampler: sampler("always_off", 1.0),
            keep_errors: true,
            keep_slower_than: Some(Duration::from_millis(100)),
        };
        assert_eq!(config.keeps(&ids(0, None), None, is_error, Duration::from_millis(ms)), expected);
    }

    #[test]
    fn the_sampler_of_a_rule_wins() {
        let config = SamplingConfig { keep_errors: false, ..SamplingConfig::default() };
        let of_process = Some(sampler("always_off", 1.0));
        assert!(config.keeps(&ids(0, None), None, true, Duration::ZERO));
        assert!(!config.keeps(&ids(0, None), of_process, true, Duration::ZERO));
    }

    #[rstest]
    #[case(-0.1)]
    #[case(1.1)]
    #[case(f64::NAN)]
    #[case(f64::INFINITY)]
    fn no_ratios(#[case] ratio: f64) {
        assert_eq!(Ratio::new(ratio), None);
    }

    const MS: u64 = 1_000_000;

    #[test]
    fn a_rate_is_kept_and_a_burst_allowed() {
        let mut limit = RateLimit::new(10);
        let mut passed = |from_ms: u64, count: u64| (0..count).filter(|_| limit.passes(from_ms * MS)).count();
        assert_eq!(passed(1000, 100), 10);
        assert_eq!(passed(1100, 100), 1);
        assert_eq!(passed(1350, 100), 2, "a half is not lost");
        assert_eq!(passed(1400, 100), 1);
        assert_eq!(passed(1200, 100), 0, "time that goes back gives nothing");
        assert_eq!(passed(60_000, 100), 10);
    }

    proptest! {
        #[test]
        fn a_higher_ratio_keeps_what_a_lower_one_does(low: u64, a in 0.0..=1.0_f64, b in 0.0..=1.0_f64) {
            let (lower, higher) = (a.min(b), a.max(b));
            let ids = ids(low, None);
            if sampler("traceidratio", lower).keeps(&ids) {
                prop_assert!(sampler("traceidratio", higher).keeps(&ids));
            }
        }

        #[test]
        fn no_second_has_more_than_twice_the_rate(times in proptest::collection::vec(0..1_000_000_000_u64, 0..200)) {
            let mut limit = RateLimit::new(20);
            let mut times = times;
            times.sort_unstable();
            prop_assert!(times.into_iter().filter(|time| limit.passes(*time)).count() <= 40);
        }
    }
}
