//! Values of which each different one is written once, as long as they repeat.

use foldhash::fast::RandomState;
use parquet::basic::Encoding;

use super::bounds::{Bound, least_and_most};
use super::runs::{Runs, width};
use super::slots::Slots;
use super::values::{List, PAGE_BYTES, Values};

/// Most bytes of a dictionary: what a reader of one trace decodes besides. A column with a larger one goes on without.
const DICTIONARY_BYTES: usize = 512 << 10;

/// Values with a dictionary. If nearly all of those of the first page differ, the column chunk has none.
#[derive(Debug, Default)]
pub(in crate::block) struct Dictionary<L> {
    distinct: L,
    slots: Slots,
    state: RandomState,
    /// The number of the value that came last.
    last: u32,
    indices: Runs,
    /// Pages of this column chunk that need the dictionary.
    pages: usize,
    /// Values that wait, once there is no dictionary any more.
    without: L,
    is_over: bool,
}

impl<L: List> Dictionary<L> {
    /// The number of a value in the dictionary.
    #[inline]
    fn number(&mut self, value: L::Item<'_>) -> u32 {
        if self.distinct.is(self.last as usize, value) {
            return self.last;
        }
        let hash = Self::hash(&self.state, value);
        if let Some(known) = self.slots.find(hash, |entry| self.distinct.is(entry as usize, value)) {
            return known;
        }
        let new = self.distinct.len() as u32;
        let (distinct, state) = (&self.distinct, &self.state);
        self.slots.insert(hash, |entry| distinct.get(entry as usize).map_or(0, |known| Self::hash(state, known)));
        self.distinct.push(value);
        new
    }

    /// Half of the hash is as good as the whole.
    #[inline]
    fn hash(state: &RandomState, value: L::Item<'_>) -> u32 {
        (L::hash(state, value) >> u32::BITS) as u32
    }

    /// Goes on without a dictionary. Values that wait do so without it.
    fn give_up(&mut self) {
        self.is_over = true;
        for (number, times) in self.indices.iter() {
            let Some(value) = self.distinct.get(number as usize) else { continue };
            (0..times).for_each(|_| self.without.push(value));
        }
        self.indices.clear();
    }
}

impl<L: List> Values for Dictionary<L> {
    type Item<'a> = L::Item<'a>;

    #[inline]
    fn push(&mut self, value: L::Item<'_>) {
        if self.is_over {
            self.without.push(value);
        } else {
            self.last = self.number(value);
            self.indices.push(self.last, 1);
        }
    }

    fn len(&self) -> usize {
        if self.is_over { self.without.len() } else { self.indices.count() }
    }

    fn bytes(&self) -> usize {
        self.distinct.bytes() + self.slots.bytes() + self.indices.bytes() + self.without.bytes()
    }

    fn is_full(&self) -> bool {
        let page = self.indices.bytes() + self.without.bytes();
        page >= PAGE_BYTES || (!self.is_over && self.distinct.bytes() >= DICTIONARY_BYTES)
    }

    fn bounds(&self) -> Option<(Bound, Bound)> {
        let bounds = if self.is_over {
            least_and_most((0..self.without.len()).filter_map(|index| self.without.get(index)))
        } else {
            least_and_most(self.indices.iter().filter_map(|(number, _)| self.distinct.get(number as usize)))
        };
        let (least, most) = bounds?;
        Some((L::bound(least)?, L::bound(most)?))
    }

    fn take_page(&mut self, page: &mut Vec<u8>) -> Encoding {
        let is_first = self.pages == 0 && !self.is_over;
        if is_first && self.distinct.len() * 100 > self.indices.count() * L::DISTINCT_PERCENT {
            self.give_up();
        }
        if self.is_over {
            return self.without.take_page(page);
        }
        let width = width((self.distinct.len() as u32).saturating_sub(1));
        page.push(width as u8);
        self.indices.encode(width, page);
        self.indices.clear();
        self.pages += 1;
        self.is_over = self.distinct.bytes() >= DICTIONARY_BYTES;
        Encoding::RLE_DICTIONARY
    }

    fn take_dictionary(&mut self, page: &mut Vec<u8>) -> Option<usize> {
        let count = self.distinct.len();
        self.distinct.take_plain(page);
        self.slots.clear();
        // Without values too: readers choose by the first row group, and values may come in another one.
        let is_needed = self.pages > 0;
        (self.last, self.pages, self.is_over) = (0, 0, false);
        is_needed.then_some(count)
    }
}
