//! Finding what was seen before.

/// Smallest table.
const LEAST: usize = 64;

/// A hash table of entries that lie elsewhere, numbered from 0 as they come. Small: it is looked up at random, and for many
/// columns in turn, so what matters is how much of it stays in the processor's caches.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// The number of the entry and 1 in as many low bits as tell the place of a slot, the hash in those above; 0 if free. A
    /// power of two of them, at most half of them taken.
    slots: Vec<u32>,
    taken: u32,
}

impl Slots {
    /// The entry of this hash of which `is_it` is true.
    #[inline]
    pub(super) fn find(&self, hash: u32, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.mask();
        let mut at = hash & mask;
        loop {
            let slot = *self.slots.get(at as usize)?;
            let entry = (slot & mask).checked_sub(1)?;
            if (slot ^ hash) & !mask == 0 && is_it(entry) {
                return Some(entry);
            }
            at = (at + 1) & mask;
        }
    }

    /// Adds the next entry, which is not there; `hash_of` gives the hash of those before.
    pub(super) fn insert(&mut self, hash: u32, hash_of: impl Fn(u32) -> u32) {
        if self.taken as usize * 2 >= self.slots.len() {
            self.slots = vec![0; (self.slots.len() * 2).max(LEAST)];
            (0..self.taken).for_each(|entry| self.place(hash_of(entry), entry));
        }
        self.place(hash, self.taken);
        self.taken += 1;
    }

    fn place(&mut self, hash: u32, entry: u32) {
        let mask = self.mask();
        let mut at = hash & mask;
        while let Some(slot) = self.slots.get_mut(at as usize) {
            if *slot == 0 {
                *slot = hash & !mask | (entry + 1);
                return;
            }
            at = (at + 1) & mask;
        }
    }

    /// The bits that tell the place of a slot.
    fn mask(&self) -> u32 {
        (self.slots.len() as u32).wrapping_sub(1)
    }

    pub(super) fn clear(&mut self) {
        self.slots.fill(0);
        self.taken = 0;
    }

    /// Bytes that it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        self.slots.len() * size_of::<u32>()
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
                slots.insert(hash_of(number), hash_of);
            }
            for number in 0..1_000 {
                assert_eq!(slots.find(hash_of(number), |entry| entry == number), Some(number));
            }
            slots.clear();
            assert_eq!(slots.find(hash_of(3), |_| true), None);
        }
    }
}
