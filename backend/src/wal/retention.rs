//! Which segments are to be deleted. Whole segments only, oldest first.

use std::time::Duration;

use super::recovery::Segment;

/// Bounds of the log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Retention {
    /// A segment is deleted when its newest frame is older than this.
    pub age: Duration,
    /// Oldest segments are deleted while all segments together are larger than this.
    pub bytes: u64,
}

impl Retention {
    /// How many of `sealed` (oldest first) are to be deleted; `active_bytes` are those of the segment in writing, which
    /// is never deleted.
    pub(super) fn expired(&self, sealed: &[Segment], active_bytes: u64, now_ns: u64) -> usize {
        let age_ns = u64::try_from(self.age.as_nanos()).unwrap_or(u64::MAX);
        let mut bytes = active_bytes + sealed.iter().map(|segment| segment.bytes).sum::<u64>();
        let expired = sealed.iter().take_while(|segment| {
            let delete = bytes > self.bytes || segment.newest_ns.saturating_add(age_ns) < now_ns;
            bytes -= segment.bytes;
            delete
        });
        expired.count()
    }
}
