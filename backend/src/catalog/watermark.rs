//! Up to where the log is done with.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Most gaps that are remembered. What is finished behind more of them is forgotten, and so counts as not finished.
const MAX_GAPS: usize = 1 << 16;

/// Requests finish in another order than they got their numbers in; a checkpoint may only cover what is complete.
///
/// Memory is bounded however much finishes behind a number that does not.
#[derive(Debug)]
pub struct Watermark(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Every number below is finished.
    next: u64,
    /// Finished numbers above `next`: first of a run → the one behind its last.
    runs: BTreeMap<u64, u64>,
}

impl Watermark {
    /// Begins with every number below `next` finished.
    pub fn new(next: u64) -> Self {
        Self(Mutex::new(State { next, runs: BTreeMap::new() }))
    }

    /// Says that a number is finished.
    pub fn finish(&self, sequence: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).finish(sequence);
    }

    /// Says that every number below `next` is finished.
    pub fn finish_below(&self, next: u64) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.next = state.next.max(next);
        state.advance();
    }

    /// Takes back everything that was said: nothing is finished.
    pub fn reset(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = State { next: 0, runs: BTreeMap::new() };
    }

    /// Every number below this is finished.
    pub fn below(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next
    }
}

impl State {
    fn finish(&mut self, sequence: u64) {
        if sequence < self.next {
            return;
        }
        let before = self.runs.range_mut(..=sequence).next_back().filter(|(_, end)| **end >= sequence);
        let (first, end) = match before {
            Some((_, end)) if *end > sequence => return,
            Some((first, end)) => {
                *end += 1;
                (*first, *end)
            }
            None => {
                self.runs.insert(sequence, sequence + 1);
                (sequence, sequence + 1)
            }
        };
        // The run that begins where this one ends now.
        if let Some(joined) = self.runs.remove(&end) {
            self.runs.insert(first, joined);
        }
        if self.runs.len() > MAX_GAPS {
            self.runs.pop_last();
        }
        self.advance();
    }

    fn advance(&mut self) {
        while let Some(run) = self.runs.first_entry()
            && *run.key() <= self.next
        {
            self.next = self.next.max(run.remove());
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
        assert_eq!(mark.below(), 5);
        mark.finish(6);
        mark.finish(7);
        assert_eq!(mark.below(), 5);
        mark.finish(5);
        assert_eq!(mark.below(), 8);
    }

    #[test]
    fn a_range_is_finished_at_once() {
        let mark = Watermark::new(5);
        mark.finish(8);
        mark.finish(10);
        mark.finish_below(8);
        assert_eq!(mark.below(), 9);
        mark.finish_below(3);
        assert_eq!(mark.below(), 9);
    }

    #[test]
    fn what_finishes_behind_a_gap_takes_no_memory() {
        let mark = Watermark::new(0);
        let runs = |mark: &Watermark| mark.0.lock().unwrap().runs.len();
        (1..1_000_000).for_each(|sequence| mark.finish(sequence));
        assert_eq!(runs(&mark), 1);
        (1_000_000..1_400_000).step_by(2).for_each(|sequence| mark.finish(sequence));
        assert_eq!(runs(&mark), MAX_GAPS);
        mark.finish_below(1_400_000);
        assert_eq!((runs(&mark), mark.below()), (0, 1_400_000));
    }

    proptest! {
        #[test]
        fn any_order_ends_at_the_last_number(order in Just((10_u64..60).collect::<Vec<_>>()).prop_shuffle()) {
            let mark = Watermark::new(10);
            for (index, sequence) in order.iter().enumerate() {
                mark.finish(*sequence);
                mark.finish(*sequence);
                let done = &order[..=index];
                let lowest_missing = (10..60).find(|number| !done.contains(number)).unwrap_or(60);
                prop_assert_eq!(mark.below(), lowest_missing);
            }
        }
    }
}
