//! Nested-set numbers: where a span stands in the tree of its trace.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};

use foldhash::fast::RandomState;

use crate::otlp::SpanRef;

/// A walk through the tree enters and leaves every span; `left` and `right` number these steps from 1.
///
/// One span is below another if its numbers lie between the other's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct NestedSet {
    /// Step that enters it; 0 if it is in no tree, which happens only when parents form a circle.
    pub left: i32,
    /// Step that leaves it.
    pub right: i32,
    /// `left` of its parent; -1 if it has none, 0 if the parent never came.
    pub parent: i32,
}

/// What the numbering has to know of a span.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link<'a> {
    pub(super) id: &'a [u8],
    pub(super) parent: &'a [u8],
    pub(super) start_ns: u64,
}

impl<'a> Link<'a> {
    pub(crate) fn of(span: &SpanRef<'a>) -> Self {
        Self { id: span.span_id, parent: span.parent_span_id, start_ns: span.start_time_unix_nano }
    }
}

/// Numbers the spans of one trace; the result is in their order. Children are entered by their start.
pub(crate) fn number(spans: &[Link<'_>]) -> Vec<NestedSet> {
    let mut by_id: HashMap<Id<'_>, (u64, usize), RandomState> = HashMap::default();
    by_id.reserve(spans.len());
    for (index, span) in spans.iter().enumerate() {
        // If an id comes twice, its children go to the one that starts first: in which order they came is not known for ever.
        let first = by_id.entry(Id(span.id)).or_insert((span.start_ns, index));
        *first = (span.start_ns, index).min(*first);
    }
    // What a span stands under: another one, by index, or one of these.
    let (no_parent, lost_parent) = (spans.len(), spans.len() + 1);
    let mut below: Vec<(usize, u64, usize)> = Vec::with_capacity(spans.len());
    for (index, span) in spans.iter().enumerate() {
        let parent = by_id.get(&Id(span.parent)).map(|(_, parent)| *parent).filter(|parent| *parent != index);
        let is_root = span.parent.iter().all(|byte| *byte == 0);
        let above = if is_root { no_parent } else { parent.unwrap_or(lost_parent) };
        below.push((above, span.start_ns, index));
    }
    below.sort_unstable();
    // Where the spans under each begin in `below`.
    let mut begins = vec![0; spans.len() + 3];
    for (above, ..) in &below {
        if let Some(end) = begins.get_mut(above + 1) {
            *end += 1;
        }
    }
    let mut total = 0;
    for begin in &mut begins {
        total += *begin;
        *begin = total;
    }
    let under = |above: usize| {
        let range = begins.get(above).zip(begins.get(above + 1)).and_then(|(begin, end)| below.get(*begin..*end));
        range.unwrap_or_default().iter().map(|(_, _, index)| *index)
    };

    let mut numbers = vec![NestedSet::default(); spans.len()];
    let mut step = 0;
    let tops = under(no_parent).map(|index| (index, -1)).chain(under(lost_parent).map(|index| (index, 0)));
    // Entered or left next; not recursive, a trace can be as deep as it is long.
    let mut stack = Vec::new();
    for (top, parent) in tops {
        stack.push((top, parent, false));
        while let Some((index, parent, left)) = stack.pop() {
            step += 1;
            let Some(number) = numbers.get_mut(index) else { continue };
            if left {
                number.right = step;
                continue;
            }
            number.left = step;
            number.parent = parent;
            stack.push((index, parent, true));
            stack.extend(under(index).rev().map(|child| (child, step, false)));
        }
    }
    numbers
}

/// An id that is hashed and compared as one number if it has as many bytes as it should.
#[derive(Clone, Copy)]
struct Id<'a>(&'a [u8]);

impl Id<'_> {
    fn number(&self) -> Option<u64> {
        self.0.as_array().map(|id| u64::from_ne_bytes(*id))
    }
}

impl PartialEq for Id<'_> {
    fn eq(&self, other: &Self) -> bool {
        match (self.number(), other.number()) {
            (Some(number), Some(other)) => number == other,
            _ => self.0 == other.0,
        }
    }
}

impl Eq for Id<'_> {}

impl Hash for Id<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.number() {
            Some(number) => number.hash(state),
            None => self.0.hash(state),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number_of(spans: &[(u8, u8, u64)]) -> Vec<(i32, i32, i32)> {
        let ids: Vec<_> = spans.iter().map(|(id, parent, start)| ([*id], [*parent], *start)).collect();
        let links: Vec<_> = ids.iter().map(|(id, parent, start_ns)| Link { id, parent, start_ns: *start_ns }).collect();
        number(&links).into_iter().map(|n| (n.left, n.right, n.parent)).collect()
    }

    #[test]
    fn a_tree_is_walked_in_order_of_start() {
        // 1 ─┬─ 2 ── 4
        //    └─ 3, which starts before 2
        let numbers = number_of(&[(2, 1, 20), (1, 0, 0), (3, 1, 10), (4, 2, 30)]);
        assert_eq!(numbers, [(4, 7, 1), (1, 8, -1), (2, 3, 1), (5, 6, 4)]);
    }

    #[test]
    fn spans_whose_parent_never_came_are_numbered_after_the_roots() {
        let numbers = number_of(&[(5, 9, 0), (6, 5, 1), (1, 0, 2)]);
        assert_eq!(numbers, [(3, 6, 0), (4, 5, 3), (1, 2, -1)]);
    }

    #[test]
    fn circles_are_in_no_tree() {
        let numbers = number_of(&[(1, 2, 0), (2, 1, 0), (3, 3, 0)]);
        assert_eq!(numbers, [(0, 0, 0), (0, 0, 0), (1, 2, 0)]);
    }

    #[test]
    fn children_of_an_id_that_came_twice_go_to_the_one_that_starts_first() {
        let numbers = number_of(&[(1, 0, 1), (1, 0, 0), (2, 1, 2)]);
        assert_eq!(numbers, [(5, 6, -1), (1, 4, -1), (2, 3, 1)]);
    }

    proptest! {
        #[test]
        fn numbers_nest_like_parents(parents in prop::collection::vec(0u8..20, 1..20)) {
            // Span i has id i + 1; a parent of 0 is none.
            let spans: Vec<_> = parents.iter().enumerate().map(|(i, p)| (i as u8 + 1, *p, i as u64)).collect();
            let numbers = number_of(&spans);
            for (index, (_, parent, _)) in spans.iter().enumerate() {
                let (left, right, up) = numbers[index];
                prop_assert!(left == 0 || left < right);
                let parent_index = usize::from(*parent).wrapping_sub(1);
                if let Some((parent_left, parent_right, _)) = numbers.get(parent_index).filter(|_| parent_index != index)
                    && left > 0
                {
                    prop_assert_eq!(up, *parent_left);
                    prop_assert!(*parent_left < left && right < *parent_right);
                }
            }
            let mut steps: Vec<_> = numbers.iter().filter(|n| n.0 > 0).flat_map(|n| [n.0, n.1]).collect();
            steps.sort_unstable();
            prop_assert_eq!(steps.clone(), (1..=steps.len() as i32).collect::<Vec<_>>());
        }
    }
}
