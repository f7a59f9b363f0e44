//! The kernel stamps records with `CLOCK_MONOTONIC`; spans have Unix times.

/// What `CLOCK_MONOTONIC` reads at the start of 1970, so to say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Clock {
    /// Nanoseconds from Unix time 0 to the monotonic clock's 0.
    offset_ns: i128,
}

impl Clock {
    /// A clock from two readings at the same moment, nanoseconds.
    pub const fn new(monotonic_ns: u64, unix_ns: u64) -> Self {
        Self { offset_ns: unix_ns as i128 - monotonic_ns as i128 }
    }

    /// Unix time of a monotonic time, nanoseconds.
    pub fn unix_ns(self, monotonic_ns: u64) -> u64 {
        let unix_ns = i128::from(monotonic_ns) + self.offset_ns;
        u64::try_from(unix_ns.max(0)).unwrap_or(u64::MAX)
    }

    /// Monotonic time of a Unix time, nanoseconds; 0 if that was before the clock's 0.
    pub fn monotonic_ns(self, unix_ns: u64) -> u64 {
        let monotonic_ns = i128::from(unix_ns) - self.offset_ns;
        u64::try_from(monotonic_ns.max(0)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::later(150, 1_050)]
    #[case::same(100, 1_000)]
    #[case::earlier(40, 940)]
    fn keeps_distances(#[case] monotonic_ns: u64, #[case] unix_ns: u64) {
        assert_eq!(Clock::new(100, 1_000).unix_ns(monotonic_ns), unix_ns);
        assert_eq!(Clock::new(100, 1_000).monotonic_ns(unix_ns), monotonic_ns);
    }

    #[test]
    fn does_not_wrap() {
        assert_eq!(Clock::new(1_000, 0).unix_ns(999), 0);
        assert_eq!(Clock::new(0, u64::MAX).unix_ns(1), u64::MAX);
        assert_eq!(Clock::new(0, 1_000).monotonic_ns(999), 0);
    }
}
