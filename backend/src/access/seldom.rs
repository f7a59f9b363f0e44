//! A log that is not flooded from outside.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time between two lines for the same reason.
const PAUSE: Duration = Duration::from_secs(10);

/// Lets one line through in a while, for each reason.
#[derive(Debug, Default)]
pub(super) struct Seldom(Mutex<Vec<Told>>);

#[derive(Debug)]
struct Told {
    reason: &'static str,
    at: Instant,
    untold: u64,
}

impl Seldom {
    /// How many were not told since the last one that was; nothing if this one is not to be told either.
    pub(super) fn next(&self, reason: &'static str, now: Instant) -> Option<u64> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(told) = all.iter_mut().find(|told| told.reason == reason) else {
            all.push(Told { reason, at: now, untold: 0 });
            return Some(0);
        };
        if now.saturating_duration_since(told.at) < PAUSE {
            told.untold += 1;
            return None;
        }
        told.at = now;
        Some(std::mem::take(&mut told.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_in_a_while_for_each_reason() {
        let (seldom, start) = (Seldom::default(), Instant::now());
        assert_eq!(seldom.next("a", start), Some(0));
        assert_eq!(seldom.next("a", start), None);
        assert_eq!(seldom.next("b", start), Some(0));
        assert_eq!(seldom.next("a", start + PAUSE / 2), None);
        assert_eq!(seldom.next("a", start + PAUSE), Some(2));
        assert_eq!(seldom.next("a", start + PAUSE), None);
    }
}
