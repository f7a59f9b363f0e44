//! Putting records of several CPUs into the order of time.

use super::record::Record;

/// Holds the newest records back until none that is older can follow, and gives the others in order.
///
/// A record is written a little after what it tells happened: a send is told when the call returns, with the time of
/// its entry. So what happened less than `hold_ns` ago may still be preceded by something.
#[derive(Debug)]
pub(super) struct Order {
    hold_ns: u64,
    held: Vec<Record>,
}

impl Order {
    pub(super) const fn new(hold_ns: u64) -> Self {
        Self { hold_ns, held: Vec::new() }
    }

    pub(super) fn push(&mut self, record: Record) {
        self.held.push(record);
    }

    /// The latest time of what is held; 0 if nothing is. Stands for now while the ring buffer
    /// is not read to its end.
    pub(super) fn newest_ns(&self) -> u64 {
        self.held.iter().map(|record| record.header().time_ns).max().unwrap_or(0)
    }

    /// Appends to `sink`, sorted, what happened long enough before `now_ns`.
    pub(super) fn release(&mut self, now_ns: u64, sink: &mut Vec<Record>) {
        let until = now_ns.saturating_sub(self.hold_ns);
        // Stable: records of one instant stay in the order of the ring.
        self.held.sort_by_key(|record| record.header().time_ns);
        let ready = self.held.partition_point(|record| record.header().time_ns <= until);
        sink.extend(self.held.drain(..ready));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coati_common::event::{Exit, Header};
    use proptest::prelude::*;

    fn at(time_ns: u64) -> Record {
        Record::Exit(Exit { header: Header { time_ns, ..Header::default() }, ..Exit::default() })
    }

    #[test]
    fn what_was_left_unread_finds_its_place() {
        let (mut order, mut sink) = (Order::new(5), Vec::new());
        assert_eq!(order.newest_ns(), 0);
        for time_ns in [10, 30, 20] {
            order.push(at(time_ns));
        }
        order.release(order.newest_ns(), &mut sink);
        // Left in the ring buffer for the next time: written after 30, so not older than 25.
        order.push(at(26));
        order.release(1000, &mut sink);
        assert_eq!(times(&sink), [10, 20, 26, 30]);
    }

    fn times(records: &[Record]) -> Vec<u64> {
        records.iter().map(|record| record.header().time_ns).collect()
    }

    #[test]
    fn the_newest_wait_for_what_may_precede_them() {
        let mut order = Order::new(5);
        let mut sink = Vec::new();
        for time in [12, 10, 14] {
            order.push(at(time));
        }
        order.release(17, &mut sink);
        assert_eq!(times(&sink), [10, 12]);
        order.push(at(13));
        order.release(19, &mut sink);
        assert_eq!(times(&sink), [10, 12, 13, 14]);
    }

    proptest! {
        /// Records that arrive at most `hold` after their time come out complete and in order, however they arrive.
        #[test]
        fn order_holds_across_calls(delays in prop::collection::vec((0_u64..3, 0_u64..=5), 1..100)) {
            let mut arrivals = Vec::new();
            let mut time = 0;
            for (step, delay) in delays {
                time += step;
                arrivals.push((time + delay, time));
            }
            arrivals.sort_unstable();
            let mut order = Order::new(5);
            let mut sink = Vec::new();
            for &(now, time) in &arrivals {
                order.push(at(time));
                // One that arrives at the same instant is still to be pushed.
                order.release(now.saturating_sub(1), &mut sink);
            }
            order.release(u64::MAX, &mut sink);
            let found = times(&sink);
            prop_assert_eq!(found.len(), arrivals.len());
            prop_assert!(found.is_sorted());
        }
    }
}
