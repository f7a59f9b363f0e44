//! Which traces are cut: pure, of the lives of traces and a time.

use std::time::Duration;

use crate::live::Life;

/// When traces leave memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CutPolicy {
    /// A trace is due when nothing has come of it for this time.
    pub idle: Duration,
    /// A trace is due when its first span came this time ago.
    pub max_age: Duration,
    /// A block is written when the traces that are due hold this many bytes of memory,
    pub block_bytes: usize,
    /// or when one of them has been due for this time.
    pub max_wait: Duration,
    /// Bytes of memory of which live traces should take no more than half.
    pub memory_bytes: usize,
}

/// The traces that a cut takes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cutoff {
    policy: CutPolicy,
    now_ns: u64,
    /// Traces of which nothing has come since are taken although they are not due.
    quiet_since_ns: Option<u64>,
}

impl CutPolicy {
    /// What is to be cut of traces with these lives; none if it can wait.
    pub fn choose(&self, lives: &[Life], now_ns: u64) -> Option<Cutoff> {
        let held: usize = lives.iter().map(|life| life.bytes).sum();
        if held > self.memory_bytes / 2 {
            let quiet_since_ns = self.quietest(lives, held);
            return Some(Cutoff { policy: *self, now_ns, quiet_since_ns });
        }
        let (mut bytes, mut waited) = (0, Duration::ZERO);
        for life in lives {
            if let Some(wait) = self.due_for(life, now_ns) {
                bytes += life.bytes;
                waited = waited.max(wait);
            }
        }
        let cut = bytes > 0 && (bytes >= self.block_bytes || waited >= self.max_wait);
        cut.then_some(Cutoff { policy: *self, now_ns, quiet_since_ns: None })
    }

    /// How long a trace has been due. A clock that was set back makes it due too: better early than never.
    fn due_for(&self, life: &Life, now_ns: u64) -> Option<Duration> {
        let since = |then_ns| Duration::from_nanos(now_ns.abs_diff(then_ns));
        let quiet = since(life.last_received_ns).checked_sub(self.idle);
        let old = since(life.first_received_ns).checked_sub(self.max_age);
        quiet.max(old)
    }

    /// The time such that the traces that were quiet since leave no more than a quarter of the memory taken.
    fn quietest(&self, lives: &[Life], held: usize) -> Option<u64> {
        let mut by_quiet: Vec<_> = lives.iter().map(|life| (life.last_received_ns, life.bytes)).collect();
        by_quiet.sort_unstable();
        let mut left = held;
        let taken = by_quiet.iter().take_while(|(_, bytes)| {
            let more = left > self.memory_bytes / 4;
            left -= bytes;
            more
        });
        taken.last().map(|(last_received_ns, _)| *last_received_ns)
    }
}

impl Cutoff {
    /// Takes everything.
    pub fn of_all(policy: CutPolicy) -> Self {
        Self { policy, now_ns: 0, quiet_since_ns: Some(u64::MAX) }
    }

    /// Whether a trace is taken.
    pub fn takes(&self, life: &Life) -> bool {
        self.quiet_since_ns.is_some_and(|quiet| life.last_received_ns <= quiet)
            || self.policy.due_for(life, self.now_ns).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const POLICY: CutPolicy = CutPolicy {
        idle: Duration::from_secs(5),
        max_age: Duration::from_secs(30),
        block_bytes: 1_000,
        max_wait: Duration::from_secs(10),
        memory_bytes: 10_000,
    };

    fn life(first_s: u64, last_s: u64, bytes: usize) -> Life {
        Life { first_received_ns: first_s * SECOND, last_received_ns: last_s * SECOND, first_sequence: 1, bytes }
    }

    #[rstest]
    #[case::nothing(&[], false)]
    #[case::still_coming(&[(90, 96, 2_000)], false)]
    #[case::just_idle_and_small(&[(90, 95, 999)], false)]
    #[case::just_idle_and_a_block(&[(90, 95, 1_000)], true)]
    #[case::two_fill_a_block(&[(90, 95, 500), (90, 94, 500)], true)]
    #[case::what_is_not_due_does_not_count(&[(90, 95, 500), (96, 96, 500)], false)]
    #[case::has_waited(&[(90, 85, 1)], true)]
    #[case::has_not_waited(&[(90, 86, 1)], false)]
    #[case::old_and_still_coming(&[(70, 100, 1_000)], true)]
    #[case::not_old_yet(&[(71, 100, 1_000)], false)]
    #[case::old_and_has_waited(&[(60, 100, 1)], true)]
    #[case::received_in_the_future(&[(200, 200, 1)], true)]
    #[case::received_a_little_in_the_future(&[(101, 104, 2_000)], false)]
    fn a_block_is_written_when_it_is_full_or_late(#[case] lives: &[(u64, u64, usize)], #[case] expected: bool) {
        let lives: Vec<_> = lives.iter().map(|(first, last, bytes)| life(*first, *last, *bytes)).collect();
        assert_eq!(POLICY.choose(&lives, 100 * SECOND).is_some(), expected);
    }

    #[test]
    fn only_what_is_due_is_taken() {
        let lives = [life(90, 95, 1_000), life(90, 96, 1_000), life(70, 99, 1)];
        let cutoff = POLICY.choose(&lives, 100 * SECOND).unwrap();
        assert_eq!(lives.map(|life| cutoff.takes(&life)), [true, false, true]);
    }

    #[test]
    fn the_quietest_leave_at_once_while_memory_is_short() {
        let lives = [98, 99, 97, 100].map(|last| life(96, last, 1_250));
        assert_eq!(POLICY.choose(&lives, 100 * SECOND), None, "half of the memory");
        let lives = [98, 99, 97, 100].map(|last| life(96, last, 1_251));
        let cutoff = POLICY.choose(&lives, 100 * SECOND).unwrap();
        assert_eq!(lives.map(|life| cutoff.takes(&life)), [true, true, true, false], "a quarter stays at most");
    }

    proptest! {
        #[test]
        fn a_cut_takes_something_and_relieves_memory(
            lives in prop::collection::vec((0_u64..100, 0_u64..100, 1_usize..4_000), 0..20),
            now in 0_u64..200,
        ) {
            let lives: Vec<_> = lives.iter().map(|(a, b, bytes)| life(*a.min(b), *a.max(b), *bytes)).collect();
            let held: usize = lives.iter().map(|life| life.bytes).sum();
            let Some(cutoff) = POLICY.choose(&lives, now * SECOND) else {
                prop_assert!(held <= POLICY.memory_bytes / 2);
                return Ok(());
            };
            let (taken, left): (Vec<Life>, Vec<Life>) = lives.iter().copied().partition(|life| cutoff.takes(life));
            prop_assert!(!taken.is_empty());
            if held > POLICY.memory_bytes / 2 {
                prop_assert!(left.iter().map(|life| life.bytes).sum::<usize>() <= POLICY.memory_bytes / 4);
            }
            prop_assert!(left.iter().all(|life| POLICY.due_for(life, now * SECOND).is_none()));
        }
    }
}
