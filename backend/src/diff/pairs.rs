//! Which span of one trace is which of the other.

use std::collections::BTreeMap;

use super::side::{Identity, Node, Side};
use super::value::{differs, near};

/// How far apart two durations may be, of the longer one, and still count as the same: one pair of traces does not tell
/// what is slower from what happened to be slower.
const DURATION: f64 = 0.25;

/// The same beside that, for short spans, nanoseconds.
const DURATION_NS: f64 = 1e6;

/// Most spans among which a partner is looked for: of thousands of the same operation any will do.
const LOOK_AT: usize = 256;

/// The spans of two traces, in pairs.
#[derive(Debug, Default)]
pub(super) struct Pairs {
    /// Of each span of the second trace the one of the first.
    pub(super) of_compare: Vec<Option<usize>>,
    /// Of each span of the first trace whether it has a partner.
    pub(super) has_partner: Vec<bool>,
    /// Operations that come several times in the same place, so that which is which is a guess.
    pub(super) ambiguous: usize,
}

/// Spans of the same operation, below the same operation, in both traces.
#[derive(Debug, Default)]
struct Same {
    base: Vec<usize>,
    compare: Vec<usize>,
}

/// Whether two spans may be a pair.
type May = fn(&Node<'_>, &Node<'_>) -> bool;

/// From what is most alike to what is just the same operation.
const RULES: [May; 3] = [is_like, |base, compare| base.status == compare.status, |_, _| true];

impl Pairs {
    /// Only spans of the same operation are paired: first those below the same operation, then those that are left.
    pub(super) fn of(base: &Side<'_>, compare: &Side<'_>) -> Self {
        let mut pairs = Self {
            of_compare: vec![None; compare.spans.len()],
            has_partner: vec![false; base.spans.len()],
            ambiguous: 0,
        };
        // Sorted, so that the same traces give the same pairs.
        let mut operations: BTreeMap<Identity<'_>, BTreeMap<Option<Identity<'_>>, Same>> = BTreeMap::new();
        for (index, node) in base.spans.iter().enumerate() {
            operations.entry(node.identity).or_default().entry(node.parent).or_default().base.push(index);
        }
        for (index, node) in compare.spans.iter().enumerate() {
            operations.entry(node.identity).or_default().entry(node.parent).or_default().compare.push(index);
        }
        for by_parent in operations.into_values() {
            let mut left = Same::default();
            let mut is_ambiguous = false;
            for mut same in by_parent.into_values() {
                is_ambiguous |= same.is_ambiguous();
                pairs.join(&mut same, base, compare);
                left.base.append(&mut same.base);
                left.compare.append(&mut same.compare);
            }
            is_ambiguous |= left.is_ambiguous();
            pairs.ambiguous += usize::from(is_ambiguous);
            pairs.join(&mut left, base, compare);
        }
        pairs
    }

    /// Joins as many as there are on both sides; the others stay.
    fn join(&mut self, same: &mut Same, base: &Side<'_>, compare: &Side<'_>) {
        for may in RULES {
            let Same { base: ours, compare: theirs } = &mut *same;
            theirs.retain(|index| {
                let Some(node) = compare.spans.get(*index) else { return false };
                let fits = |index: &usize| base.spans.get(*index).is_some_and(|base| may(base, node));
                let Some(place) = ours.iter().take(LOOK_AT).position(fits) else { return true };
                let partner = ours.remove(place);
                if let Some(slot) = self.of_compare.get_mut(*index) {
                    *slot = Some(partner);
                }
                if let Some(slot) = self.has_partner.get_mut(partner) {
                    *slot = true;
                }
                false
            });
        }
    }
}

impl Same {
    fn is_ambiguous(&self) -> bool {
        let Self { base, compare } = self;
        !base.is_empty() && !compare.is_empty() && (base.len() > 1 || compare.len() > 1)
    }
}

/// Whether nothing of it differs that is worth a word.
fn is_like(base: &Node<'_>, compare: &Node<'_>) -> bool {
    base.status == compare.status
        && !duration_differs(base.duration_ns, compare.duration_ns)
        && base.attributes.len() == compare.attributes.len()
        && base
            .attributes
            .iter()
            .all(|(key, before)| compare.attributes.get(key).is_some_and(|after| !differs(key, *before, *after)))
}

pub(super) fn duration_differs(before: Option<u64>, after: Option<u64>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => !near(before as f64, after as f64, DURATION, DURATION_NS),
        (before, after) => before != after,
    }
}
