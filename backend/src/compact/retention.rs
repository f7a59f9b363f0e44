//! Which blocks are deleted: a pure function of the list of blocks. Whole blocks only, oldest first.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::block::BlockSummary;
use crate::config::RetentionConfig;

/// How long blocks are kept. A block is as old as the last of its spans, by the time at which that was received.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ages {
    default_ns: u64,
    tenants: BTreeMap<String, u64>,
}

/// How far a clock may get ahead of one that cannot be set before that is no small correction.
const LEAP_NS: u64 = 3_600_000_000_000;

/// Keeps a clock that is set forward while the backend runs from making everything old at once: after that, time passes no
/// faster than by a clock that cannot be set, until the next start.
#[derive(Clone, Copy, Debug)]
pub struct SteadyTime {
    begun_ns: u64,
}

impl SteadyTime {
    /// What the clock said at the start, nanoseconds since the epoch.
    pub fn new(begun_ns: u64) -> Self {
        Self { begun_ns }
    }

    /// The time by which blocks are old, when the clock says `now_ns` and so much time has passed since the start.
    pub fn limit(self, now_ns: u64, since_start: Duration) -> u64 {
        now_ns.min(self.begun_ns.saturating_add(nanos(since_start)).saturating_add(LEAP_NS))
    }
}

/// Why a block goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reason {
    /// It is older than its tenant's blocks may become.
    Age,
    /// All blocks together are too large, and it is the oldest of them.
    Size,
}

impl Ages {
    /// The same age for all tenants.
    pub fn new(age: Duration) -> Self {
        Self { default_ns: nanos(age), tenants: BTreeMap::new() }
    }

    /// The same with another age for one tenant.
    #[must_use]
    pub fn with_tenant(mut self, tenant: &str, age: Duration) -> Self {
        self.tenants.insert(tenant.to_owned(), nanos(age));
        self
    }

    /// How long blocks of the tenant are kept, nanoseconds.
    pub fn of(&self, tenant: &str) -> u64 {
        self.tenants.get(tenant).copied().unwrap_or(self.default_ns)
    }

    /// When the block is old enough to go, nanoseconds since the epoch.
    pub fn end_ns(&self, block: &BlockSummary) -> u64 {
        block.received_last_ns.saturating_add(self.of(&block.tenant))
    }
}

impl From<&RetentionConfig> for Ages {
    fn from(config: &RetentionConfig) -> Self {
        let tenants = config.tenants.iter().filter_map(|(name, tenant)| Some((name.clone(), nanos(tenant.age?))));
        Self { default_ns: nanos(config.age), tenants: tenants.collect() }
    }
}

/// The blocks that go: those that are too old, then the oldest of all tenants until the others together have at most
/// `max_bytes`. Oldest first.
pub fn expired<'a>(
    blocks: impl IntoIterator<Item = &'a BlockSummary>,
    now_ns: u64,
    ages: &Ages,
    max_bytes: u64,
) -> Vec<(&'a BlockSummary, Reason)> {
    let mut blocks: Vec<_> = blocks.into_iter().collect();
    blocks.sort_unstable_by_key(|block| (block.received_last_ns, block.id));
    let is_old = |block: &BlockSummary| ages.end_ns(block) < now_ns;
    let mut kept_bytes: u64 = blocks.iter().filter(|block| !is_old(block)).map(|block| block.total_bytes()).sum();
    let reason = |block: &BlockSummary| {
        if is_old(block) {
            return Some(Reason::Age);
        }
        (kept_bytes > max_bytes).then(|| {
            kept_bytes -= block.total_bytes();
            Reason::Size
        })
    };
    let mut reason = reason;
    blocks.into_iter().filter_map(|block| Some((block, reason(block)?))).collect()
}

fn nanos(age: Duration) -> u64 {
    u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::fixture::{block, blocks};
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    fn ids(expired: &[(&BlockSummary, Reason)]) -> Vec<(u64, Reason)> {
        expired.iter().map(|(block, reason)| (block.received_last_ns / HOUR, *reason)).collect()
    }

    #[test]
    fn a_clock_that_jumps_ahead_makes_nothing_old() {
        let time = SteadyTime::new(10 * HOUR);
        let limit = |now_hours: u64, passed| time.limit(now_hours * HOUR, Duration::from_hours(passed)) / HOUR;
        assert_eq!([limit(10, 0), limit(12, 2), limit(11, 0), limit(13, 2)], [10, 12, 11, 13]);
        assert_eq!([limit(9_999, 0), limit(9_999, 2)], [11, 13]);
        assert_eq!([limit(1, 0), limit(1, 50)], [1, 1], "nor does one that is set back");
    }

    #[test]
    fn by_age_each_tenant_for_itself() {
        let ages = Ages::new(Duration::from_hours(10)).with_tenant("b", Duration::from_hours(2));
        let blocks: Vec<_> =
            [("a", 1), ("a", 10), ("a", 11), ("b", 17), ("b", 18)].map(|(t, h)| block(t, 0, h * HOUR, 1)).into();
        let expired = expired(&blocks, 20 * HOUR + 1, &ages, u64::MAX);
        assert_eq!(ids(&expired), [(1, Reason::Age), (10, Reason::Age), (17, Reason::Age), (18, Reason::Age)]);
    }

    #[test]
    fn by_size_the_oldest_of_all_tenants() {
        let ages = Ages::new(Duration::from_hours(10));
        let blocks: Vec<_> = [("a", 14), ("b", 13), ("a", 1), ("b", 15)].map(|(t, h)| block(t, 0, h * HOUR, 10)).into();
        let expired = expired(&blocks, 20 * HOUR, &ages, 19);
        // What age takes does not count against the size; 19 bytes have no room for two blocks of 10.
        assert_eq!(ids(&expired), [(1, Reason::Age), (13, Reason::Size), (14, Reason::Size)]);
    }

    #[test]
    fn a_tenant_may_keep_longer_than_the_others() {
        let ages = Ages::new(Duration::from_hours(1)).with_tenant("a", Duration::from_hours(24));
        let blocks: Vec<_> = [("a", 1), ("b", 1), ("b", 19)].map(|(t, h)| block(t, 0, h * HOUR, 10)).into();
        let expired = expired(&blocks, 20 * HOUR, &ages, 100);
        assert_eq!(expired, [(&blocks[1], Reason::Age)]);
    }

    proptest! {
        #[test]
        fn never_younger_before_older_never_too_much_never_too_little(
            blocks in blocks(30),
            now_hours in 0_u64..60,
            age_hours in 1_u64..60,
            max_bytes in 0_u64..3_000,
        ) {
            let ages = Ages::new(Duration::from_hours(age_hours)).with_tenant("b", Duration::from_hours(age_hours / 2));
            let now_ns = now_hours * HOUR;
            let gone = expired(&blocks, now_ns, &ages, max_bytes);
            let is_gone = |block: &BlockSummary| gone.iter().any(|(gone, _)| gone.id == block.id);
            let kept: Vec<_> = blocks.iter().filter(|block| !is_gone(block)).collect();
            let kept_bytes: u64 = kept.iter().map(|block| block.total_bytes()).sum();

            prop_assert!(kept_bytes <= max_bytes);
            prop_assert!(kept.iter().all(|block| ages.end_ns(block) >= now_ns));
            for (block, reason) in &gone {
                let older = |other: &&&BlockSummary| other.received_last_ns < block.received_last_ns;
                match reason {
                    Reason::Age => {
                        prop_assert!(ages.end_ns(block) < now_ns);
                        prop_assert!(!kept.iter().filter(older).any(|kept| kept.tenant == block.tenant));
                    }
                    Reason::Size => prop_assert_eq!(kept.iter().find(older), None),
                }
            }
            // Had the last one stayed, there would be too much.
            if let Some((last, _)) = gone.iter().rfind(|(_, reason)| *reason == Reason::Size) {
                prop_assert!(kept_bytes + last.total_bytes() > max_bytes);
            }
        }

        #[test]
        fn the_order_of_the_list_does_not_matter(blocks in blocks(20), max_bytes in 0_u64..2_000) {
            let ages = Ages::new(Duration::from_hours(20));
            let reversed: Vec<_> = blocks.iter().rev().cloned().collect();
            prop_assert_eq!(
                expired(&blocks, 40 * HOUR, &ages, max_bytes),
                expired(&reversed, 40 * HOUR, &ages, max_bytes)
            );
        }
    }
}
