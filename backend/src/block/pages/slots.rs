//! Finding what was seen before.

/// Smallest table.
const LEAST: usize = 64;

/// A hash table of the numbers of entries that lie elsewhere.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// The hash in the upper half, the number of the entry and 1 in the lower one; 0 if free. A power of two of them, at
    /// most half of them taken.
    slots: Vec<u64>,
    taken: usize,
}

impl Slots {
    /// The entry of this hash of which `is_it` is true.
    #[inline]
    pub(super) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = hash as usize & mask;
        loop {
            let slot = *self.slots.get(at)?;
            let entry = (slot as u32).checked_sub(1)?;
            if (slot >> u32::BITS) as u32 == hash && is_it(entry) {
                return Some(entry);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds an entry that is not there.
    pub(super) fn insert(&mut self, hash: u32, entry: u32) {
        if self.taken * 2 >= self.slots.len() {
            let more = vec![0; (self.slots.len() * 2).max(LEAST)];
            let before = std::mem::replace(&mut self.slots, more);
            before.into_iter().filter(|slot| *slot != 0).for_each(|slot| self.place(slot));
        }
        self.place(u64::from(hash) << u32::BITS | u64::from(entry + 1));
        self.taken += 1;
    }

    fn place(&mut self, new: u64) {
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = (new >> u32::BITS) as usize & mask;
        while let Some(slot) = self.slots.get_mut(at) {
            if *slot == 0 {
                *slot = new;
                return;
            }
            at = (at + 1) & mask;
        }
    }

    pub(super) fn clear(&mut self) {
        self.slots.fill(0);
        self.taken = 0;
    }

    /// Bytes that it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_inserted_is_found_whatever_the_hashes() {
        // All different, all the same, and such that differ above the bits by which they are placed.
        for hash_of in [|n: u32| n.wrapping_mul(0x9e37_79b9), |_| 7, |n| n << 20] {
            let mut slots = Slots::default();
            assert_eq!(slots.find(7, |_| true), None);
            for number in 0..1_000 {
                assert_eq!(slots.find(hash_of(number), |entry| entry == number), None);
                slots.insert(hash_of(number), number);
            }
            for number in 0..1_000 {
                assert_eq!(slots.find(hash_of(number), |entry| entry == number), Some(number));
            }
            slots.clear();
            assert_eq!(slots.find(hash_of(3), |_| true), None);
        }
    }
}
