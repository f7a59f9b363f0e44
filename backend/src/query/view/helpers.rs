//! Threads that help queries.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// Threads that help a query now, of all queries: with as many cores as there are, one less.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

/// The right to let some threads help; given back when dropped.
#[derive(Debug)]
pub(super) struct Helpers(usize);

impl Helpers {
    /// As many as are free, `most` at most.
    pub(super) fn take(most: usize) -> Self {
        let all = thread::available_parallelism().map_or(1, NonZero::get) - 1;
        let mut taken = 0;
        let take = |at_work: usize| {
            taken = most.min(all.saturating_sub(at_work));
            Some(at_work + taken)
        };
        // What is given back meanwhile is for the next one.
        let _before = AT_WORK.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        Self(taken)
    }

    pub(super) fn count(&self) -> usize {
        self.0
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(self.0, Ordering::Relaxed);
    }
}
