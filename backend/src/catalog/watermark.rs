//! Up to where the log is in the catalog.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Requests finish in another order than they got their numbers in; the checkpoint may only cover what is complete.
#[derive(Debug)]
pub struct Watermark(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Every number below is finished.
    next: u64,
    /// Finished numbers above `next`.
    finished: BTreeSet<u64>,
}

impl Watermark {
    /// Begins with every number below `next` finished.
    pub fn new(next: u64) -> Self {
        Self(Mutex::new(State { next, finished: BTreeSet::new() }))
    }

    /// Says that a number is finished.
    pub fn finish(&self, sequence: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.finished.insert(sequence);
        state.advance();
    }

    /// Says that every number below `next` is finished.
    pub fn finish_below(&self, next: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.finished = state.finished.split_off(&next);
        state.next = state.next.max(next);
        state.advance();
    }

    /// The highest number up to which all are finished.
    pub fn finished(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next.saturating_sub(1)
    }
}

impl State {
    fn advance(&mut self) {
        while let Some(lowest) = self.finished.first().copied()
            && lowest <= self.next
        {
            self.finished.remove(&lowest);
            self.next = self.next.max(lowest + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_gap_holds_the_mark_back() {
        let mark = Watermark::new(5);
        assert_eq!(mark.finished(), 4);
        mark.finish(6);
        mark.finish(7);
        assert_eq!(mark.finished(), 4);
        mark.finish(5);
        assert_eq!(mark.finished(), 7);
    }

    #[test]
    fn a_range_is_finished_at_once() {
        let mark = Watermark::new(5);
        mark.finish(8);
        mark.finish(10);
        mark.finish_below(8);
        assert_eq!(mark.finished(), 8);
        mark.finish_below(3);
        assert_eq!(mark.finished(), 8);
    }

    proptest! {
        #[test]
        fn any_order_ends_at_the_last_number(order in Just((10_u64..60).collect::<Vec<_>>()).prop_shuffle()) {
            let mark = Watermark::new(10);
            for (index, sequence) in order.iter().enumerate() {
                mark.finish(*sequence);
                let done = &order[..=index];
                let lowest_missing = (10..60).find(|number| !done.contains(number)).unwrap_or(60);
                prop_assert_eq!(mark.finished(), lowest_missing - 1);
            }
        }
    }
}
