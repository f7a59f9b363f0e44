//! The first of many traces in some order, and which of them nothing can displace any more.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Order, OrderBy, TraceMatch};
use crate::live::TraceId;
use crate::query::scan::TraceFacts;

/// Place of a trace in the answer: by the order that was asked for, then newest first, then by id.
type Place = (u64, Reverse<u64>, TraceId);

/// The first traces seen so far.
#[derive(Debug)]
pub(super) struct Ranked {
    order: Order,
    most: usize,
    /// Not yet taken.
    traces: BTreeMap<Place, TraceMatch>,
    taken: usize,
    bytes: usize,
}

impl Ranked {
    /// At most so many.
    pub(super) fn new(order: Order, most: usize) -> Self {
        Self { order, most, traces: BTreeMap::new(), taken: 0, bytes: 0 }
    }

    /// Memory of these traces, taken ones included, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a trace may be among them, as far as its facts tell.
    pub(super) fn may_have_room_for(&self, trace: &TraceFacts) -> bool {
        let rank = match self.order.by {
            OrderBy::Start => self.rank(trace.start_ns),
            OrderBy::Duration => self.rank(trace.duration_ns()),
            // Not known yet.
            OrderBy::Matched => return self.most > 0,
        };
        self.has_room_for((rank, Reverse(trace.start_ns), trace.id))
    }

    /// Whether some trace that starts at this time, or before it, may be among them.
    pub(super) fn may_have_room_since(&self, start_ns: u64) -> bool {
        if self.order != Order::default() {
            return self.most > 0;
        }
        self.has_room_for((self.rank(start_ns), Reverse(start_ns), TraceId([0; 16])))
    }

    /// How many more may come before one of them is displaced.
    pub(super) fn room(&self) -> usize {
        self.most.saturating_sub(self.taken + self.traces.len())
    }

    fn has_room_for(&self, place: Place) -> bool {
        if self.room() > 0 {
            return true;
        }
        self.traces.last_key_value().is_some_and(|(last, _)| place < *last)
    }

    fn rank(&self, value: u64) -> u64 {
        if self.order.ascending { value } else { u64::MAX - value }
    }

    pub(super) fn insert(&mut self, found: TraceMatch) {
        let rank = self.rank(match self.order.by {
            OrderBy::Start => found.start_ns,
            OrderBy::Duration => found.duration_ns,
            OrderBy::Matched => found.spansets.iter().map(|set| u64::from(set.matched)).sum(),
        });
        let place = (rank, Reverse(found.start_ns), found.id);
        if self.has_room_for(place) {
            self.bytes += found.bytes();
            self.traces.insert(place, found);
            if self.taken + self.traces.len() > self.most
                && let Some((_, last)) = self.traces.pop_last()
            {
                self.bytes -= last.bytes();
            }
        }
    }

    /// Adds what another tenant has of a trace that was inserted. One that had no room starts no later with it; in other
    /// orders than that of starts what is new of it may have room.
    pub(super) fn join(&mut self, found: TraceMatch, spans_per_spanset: usize) {
        let place = self.traces.keys().find(|(_, _, id)| *id == found.id).copied();
        match place.and_then(|place| self.traces.remove(&place)) {
            Some(mut known) => {
                self.bytes -= known.bytes();
                known.join(found, spans_per_spanset);
                self.insert(known);
            }
            None if self.order == Order::default() => {}
            None => self.insert(found),
        }
    }

    /// Those that stay where they are if everything else starts at this time or before; all, if nothing else comes.
    pub(super) fn take_final(&mut self, rest_starts_by: Option<u64>) -> Vec<TraceMatch> {
        let mut taken = Vec::new();
        let newest_first = self.order == Order::default();
        while let Some(first) = self.traces.first_entry()
            && rest_starts_by.is_none_or(|rest| newest_first && first.get().start_ns > rest)
        {
            taken.push(first.remove());
        }
        self.taken += taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn found(start_ns: u64, duration_ns: u64, id: u8) -> TraceMatch {
        let id = TraceId([id; 16]);
        TraceMatch { id, root: None, start_ns, duration_ns, spansets: Vec::new(), services: BTreeMap::new() }
    }

    proptest! {
        /// Parts of falling starts, each in any order within; what is taken on the way is what is right in the end.
        #[test]
        fn keeps_the_first(
            traces in prop::collection::vec((0_u64..30, 0_u64..5), 0..40),
            most in 0_usize..10,
            parts in 1_u64..5,
            by in select(vec![OrderBy::Start, OrderBy::Duration]),
            ascending in any::<bool>(),
        ) {
            let mut all: Vec<_> = traces.iter().zip(0..).map(|((start, duration), id)| (*start, *duration, id)).collect();
            let mut ranked = Ranked::new(Order { by, ascending }, most);
            let mut taken = Vec::new();
            for part in (0..parts).rev() {
                let length = 30_u64.div_ceil(parts);
                for (start, duration, id) in all.iter().filter(|(start, ..)| start / length == part) {
                    let trace = found(*start, *duration, *id);
                    let end_ns = start + duration;
                    let facts = TraceFacts { id: trace.id, start_ns: *start, end_ns, root: None };
                    if ranked.may_have_room_since(*start) && ranked.may_have_room_for(&facts) {
                        ranked.insert(trace);
                    }
                }
                let rest = (part > 0).then(|| part * length - 1);
                taken.extend(ranked.take_final(rest));
            }
            all.sort_by_key(|(start, duration, id)| {
                let value = if by == OrderBy::Start { *start } else { *duration };
                (if ascending { value } else { u64::MAX - value }, Reverse(*start), *id)
            });
            all.truncate(most);
            prop_assert_eq!(ranked.bytes(), taken.iter().map(TraceMatch::bytes).sum::<usize>());
            let taken: Vec<_> = taken.iter().map(|found| (found.start_ns, found.duration_ns, found.id.0[0])).collect();
            prop_assert_eq!(taken, all);
        }
    }
}
