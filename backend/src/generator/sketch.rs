//! How many different things there were lately, in little memory: few of them exactly, and many about, by `HyperLogLog`
//! over a window that moves.

use std::collections::BTreeSet;

/// Bits of a hash that choose a register: 1,024 of them, for a standard error of 3.25 %.
const INDEX_BITS: u32 = 10;
const REGISTERS: usize = 1 << INDEX_BITS;

/// So many different hashes are kept as they are.
const FEW: usize = 64;

/// Parts of a window, one of them beside those that make up its time: nothing is forgotten before its time is over.
const PARTS: usize = 4;

/// Counts different hashes.
#[derive(Clone, Debug)]
struct Sketch {
    /// All of them, while they are few.
    few: Option<BTreeSet<u64>>,
    /// Of the hashes that begin with its number: the most zeros before the first one, and one.
    registers: Box<[u8]>,
}

impl Sketch {
    fn new() -> Self {
        Self { few: Some(BTreeSet::new()), registers: vec![0; REGISTERS].into() }
    }

    fn insert(&mut self, hash: u64) {
        self.few = self.few.take().filter(|few| few.len() < FEW || few.contains(&hash));
        if let Some(few) = &mut self.few {
            few.insert(hash);
        }
        let index = (hash >> (u64::BITS - INDEX_BITS)) as usize;
        // The bit below the last one that counts ends the zeros.
        let zeros = (hash << INDEX_BITS | 1 << (INDEX_BITS - 1)).leading_zeros();
        if let Some(register) = self.registers.get_mut(index) {
            *register = (*register).max(zeros as u8 + 1);
        }
    }

    fn merge(&mut self, other: &Self) {
        self.few = self.few.take().zip(other.few.as_ref()).map(|(few, others)| &few | others);
        for (register, other) in self.registers.iter_mut().zip(&other.registers) {
            *register = (*register).max(*other);
        }
    }

    fn estimate(&self) -> u64 {
        if let Some(few) = &self.few {
            return few.len() as u64;
        }
        let registers = REGISTERS as f64;
        let sum: f64 = self.registers.iter().map(|zeros| f64::from(-i32::from(*zeros)).exp2()).sum();
        let empty: usize = self.registers.iter().map(|zeros| usize::from(*zeros == 0)).sum();
        let estimate = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        // Few things are better counted by how many registers they left empty.
        let few = empty > 0 && estimate <= 2.5 * registers;
        let estimate = if few { registers * (registers / empty as f64).ln() } else { estimate };
        estimate.round() as u64
    }
}

/// Counts different hashes of the last while.
#[derive(Clone, Debug)]
pub(super) struct Window {
    /// The newest is the last.
    parts: Vec<Sketch>,
    /// How long each is the newest, milliseconds.
    part_ms: u64,
    /// Since when the newest is, milliseconds since the epoch.
    begun_ms: u64,
}

impl Window {
    /// One that forgets after `window_ms` at the earliest.
    pub(super) fn new(window_ms: u64, now_ms: u64) -> Self {
        let part_ms = window_ms.div_ceil(PARTS as u64 - 1).max(1);
        Self { parts: vec![Sketch::new()], part_ms, begun_ms: now_ms }
    }

    pub(super) fn insert(&mut self, hash: u64, now_ms: u64) {
        self.advance(now_ms);
        if let Some(newest) = self.parts.last_mut() {
            newest.insert(hash);
        }
    }

    /// How many different ones there are, with these.
    pub(super) fn estimate(&mut self, also: impl Iterator<Item = u64>, now_ms: u64) -> u64 {
        self.advance(now_ms);
        let mut all = Sketch::new();
        self.parts.iter().for_each(|part| all.merge(part));
        also.for_each(|hash| all.insert(hash));
        all.estimate()
    }

    /// Whether all is forgotten.
    pub(super) fn is_empty(&mut self, now_ms: u64) -> bool {
        self.advance(now_ms);
        self.parts.iter().all(|part| part.registers.iter().all(|register| *register == 0))
    }

    /// Forgets what is too old.
    fn advance(&mut self, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.begun_ms) / self.part_ms;
        if passed == 0 {
            return;
        }
        self.begun_ms += passed * self.part_ms;
        let fresh = usize::try_from(passed).unwrap_or(PARTS).min(PARTS);
        self.parts.extend(std::iter::repeat_with(Sketch::new).take(fresh));
        self.parts.drain(..self.parts.len().saturating_sub(PARTS));
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use foldhash::quality::FixedState;
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn hash(number: u64) -> u64 {
        FixedState::default().hash_one(number)
    }

    #[rstest]
    #[case::none(0, 0.0)]
    #[case::one(1, 0.0)]
    #[case::few(10, 0.0)]
    #[case::as_many_as_are_kept(64, 0.0)]
    #[case::one_more(65, 0.1)]
    #[case::more(500, 0.1)]
    #[case::where_the_way_of_counting_changes(2_600, 0.1)]
    #[case::many(100_000, 0.1)]
    fn different_ones_are_counted_about(#[case] count: u64, #[case] tolerance: f64) {
        let mut window = Window::new(1_000, 0);
        for number in 0..count {
            // Whatever comes again counts once.
            window.insert(hash(number), 0);
            window.insert(hash(number / 2), 0);
        }
        let estimate = window.estimate(std::iter::empty(), 0) as f64;
        assert!((estimate - count as f64).abs() <= tolerance * count as f64, "{estimate}");
    }

    #[test]
    fn few_that_share_a_register_are_told_apart() {
        let mut window = Window::new(1_000, 0);
        for hash in [1, 2, 3, 2] {
            window.insert(hash, 0);
        }
        assert_eq!(window.estimate([3, 4].into_iter(), 0), 4);
    }

    #[test]
    fn what_is_old_is_forgotten_and_not_before_its_time() {
        let mut window = Window::new(900, 0);
        let mut at = |number: u64, now_ms| {
            window.insert(hash(number), now_ms);
            window.estimate(std::iter::empty(), now_ms)
        };
        // Parts of 300 ms: the first one is dropped when a fifth begins.
        assert_eq!([at(1, 299), at(2, 300), at(3, 1_199)], [1, 2, 3]);
        assert_eq!([at(3, 1_200), at(3, 1_500)], [2, 1]);
        assert_eq!(at(4, 1_000_000), 1);
        assert!(window.parts.len() <= PARTS);
        assert_eq!([1_000_900, 1_001_200].map(|now_ms| window.is_empty(now_ms)), [false, true]);
    }

    #[test]
    fn others_are_counted_with_it_and_not_kept() {
        let mut window = Window::new(900, 0);
        window.insert(hash(1), 0);
        assert_eq!(window.estimate([1, 2, 3].map(hash).into_iter(), 0), 3);
        assert_eq!(window.estimate(std::iter::empty(), 0), 1);
    }

    proptest! {
        #[test]
        fn no_time_and_no_hash_breaks_it(hashes in prop::collection::vec((any::<u64>(), any::<u64>()), 0..50), window_ms: u64) {
            let mut window = Window::new(window_ms, 5);
            for (hash, now_ms) in hashes {
                window.insert(hash, now_ms);
                let estimate = window.estimate(std::iter::once(hash), now_ms);
                prop_assert!((1..=60).contains(&estimate), "{}", estimate);
            }
        }
    }
}
