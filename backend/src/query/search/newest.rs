//! The newest of many traces, and which of them nothing can displace any more.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::TraceMatch;
use crate::live::TraceId;

/// The newest traces seen so far: by start, then by id.
#[derive(Debug)]
pub(super) struct Newest {
    most: usize,
    /// Not yet taken.
    traces: BTreeMap<(Reverse<u64>, TraceId), TraceMatch>,
    taken: usize,
    bytes: usize,
}

impl Newest {
    /// At most so many.
    pub(super) fn new(most: usize) -> Self {
        Self { most, traces: BTreeMap::new(), taken: 0, bytes: 0 }
    }

    /// Memory of these traces, taken ones included, about.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether a trace would be among them.
    pub(super) fn has_room_for(&self, start_ns: u64, id: &TraceId) -> bool {
        if self.taken + self.traces.len() < self.most {
            return true;
        }
        self.traces.last_key_value().is_some_and(|(last, _)| (Reverse(start_ns), *id) < *last)
    }

    /// Whether some trace that starts at this time would be among them.
    pub(super) fn has_room_since(&self, start_ns: u64) -> bool {
        self.has_room_for(start_ns, &TraceId([0; 16]))
    }

    pub(super) fn insert(&mut self, found: TraceMatch) {
        if self.has_room_for(found.start_ns, &found.id) {
            self.bytes += found.bytes();
            self.traces.insert((Reverse(found.start_ns), found.id), found);
            if self.taken + self.traces.len() > self.most
                && let Some((_, last)) = self.traces.pop_last()
            {
                self.bytes -= last.bytes();
            }
        }
    }

    /// Those that stay where they are if everything else starts at this time or before; all, if nothing else comes.
    pub(super) fn take_final(&mut self, rest_starts_by: Option<u64>) -> Vec<TraceMatch> {
        let mut taken = Vec::new();
        while let Some(first) = self.traces.first_entry()
            && rest_starts_by.is_none_or(|rest| first.key().0.0 > rest)
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

    use super::*;

    fn found(start_ns: u64, id: u8) -> TraceMatch {
        let id = TraceId([id; 16]);
        TraceMatch { id, root: None, start_ns, duration_ns: 0, spansets: Vec::new(), services: BTreeMap::new() }
    }

    proptest! {
        /// Parts of falling starts, each in any order within; what is taken on the way is what is right in the end.
        #[test]
        fn keeps_the_newest(starts in prop::collection::vec(0_u64..30, 0..40), most in 0_usize..10, parts in 1_u64..5) {
            let mut all: Vec<_> = starts.iter().zip(0..).map(|(start, id)| (Reverse(*start), id)).collect();
            let mut newest = Newest::new(most);
            let mut taken = Vec::new();
            for part in (0..parts).rev() {
                let length = 30_u64.div_ceil(parts);
                for (Reverse(start), id) in all.iter().filter(|(start, _)| start.0 / length == part) {
                    newest.insert(found(*start, *id));
                }
                let rest = (part > 0).then(|| part * length - 1);
                taken.extend(newest.take_final(rest));
            }
            all.sort_unstable();
            all.truncate(most);
            prop_assert_eq!(newest.bytes(), taken.iter().map(TraceMatch::bytes).sum::<usize>());
            let taken: Vec<_> = taken.iter().map(|found| (Reverse(found.start_ns), found.id.0[0])).collect();
            prop_assert_eq!(taken, all);
        }
    }
}
