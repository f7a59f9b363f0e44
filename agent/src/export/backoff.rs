//! How long to wait before a request is repeated.

use std::{fmt, time::Duration};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);
/// A server may ask for more patience than that; but spans pile up meanwhile.
const LONGEST_ASKED_FOR: Duration = Duration::from_mins(5);

/// Exponential backoff with jitter: 100 ms, doubled up to 5 s, each shortened at random by up to a half, so that the
/// agents of many nodes do not come back at the same moment.
pub(super) struct Backoff {
    failures: u32,
    random: Box<dyn FnMut() -> f64 + Send>,
}

impl fmt::Debug for Backoff {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Backoff").field("failures", &self.failures).finish_non_exhaustive()
    }
}

impl Backoff {
    /// No request has failed yet; `random` gives numbers in 0..1.
    pub(super) fn new(random: impl FnMut() -> f64 + Send + 'static) -> Self {
        Self { failures: 0, random: Box::new(random) }
    }

    /// A request succeeded.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// A request failed: how long to wait. What the server `asked_for` can only make it longer: with 0, or a
    /// date that has passed, the same request would be repeated without end.
    pub(super) fn next(&mut self, asked_for: Option<Duration>) -> Duration {
        let doubled = FIRST.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        let longest = doubled.min(LONGEST);
        let own = longest.mul_f64(1.0 - (self.random)().clamp(0.0, 1.0) / 2.0);
        asked_for.unwrap_or_default().min(LONGEST_ASKED_FOR).max(own)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_up_to_its_longest() {
        let mut backoff = Backoff::new(|| 0.0);
        let pauses: Vec<_> = (0..8).map(|_| backoff.next(None).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        backoff.reset();
        assert_eq!(backoff.next(None).as_millis(), 100);
    }

    #[test]
    fn what_the_server_asks_for_makes_it_longer() {
        let mut backoff = Backoff::new(|| 0.5);
        assert_eq!(backoff.next(Some(Duration::from_secs(7))), Duration::from_secs(7));
        assert_eq!(backoff.next(Some(Duration::ZERO)), Duration::from_millis(150));
        assert_eq!(backoff.next(Some(Duration::from_millis(1))), Duration::from_millis(300));
        assert_eq!(backoff.next(Some(Duration::MAX)), LONGEST_ASKED_FOR);
    }

    proptest! {
        #[test]
        fn stays_between_a_half_and_the_whole(random in 0.0..1.0_f64, failures in 0_u32..100) {
            let mut backoff = Backoff::new(move || random);
            for _ in 0..failures {
                backoff.next(None);
            }
            let pause = backoff.next(None);
            prop_assert!(pause >= FIRST / 2 && pause <= LONGEST);
        }
    }
}
