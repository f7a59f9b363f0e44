//! Values of a page that is filled, without a dictionary.

use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use parquet::basic::Encoding;

use super::bounds::{Bound, least_and_most};

/// What a column holds of the page that is filled.
pub(in crate::block) trait Values {
    /// A value as it is handed over.
    type Item<'a>: Copy + PartialOrd;

    /// Adds a value.
    fn push(&mut self, value: Self::Item<'_>);

    /// Values that wait.
    fn len(&self) -> usize;

    /// Bytes that they take in memory, a dictionary included.
    fn bytes(&self) -> usize;

    /// Whether the page should end before it has all its rows.
    fn is_full(&self) -> bool;

    /// Smallest and largest of the values that wait; none if there is nothing to compare.
    fn bounds(&self) -> Option<(Bound, Bound)>;

    /// Writes the values that wait; none do afterwards.
    fn take_page(&mut self, page: &mut Vec<u8>) -> Encoding;

    /// Ends the column chunk: writes its dictionary, if it has one, and says how many values that has.
    fn take_dictionary(&mut self, _page: &mut Vec<u8>) -> Option<usize> {
        None
    }
}

/// Most bytes of a page's values: what a reader of one trace decodes of a column.
pub(super) const PAGE_BYTES: usize = 1 << 20;

/// Values one after the other, which a dictionary can hold as well as a page.
pub(in crate::block) trait List: Default {
    type Item<'a>: Copy + PartialOrd;
    fn push(&mut self, value: Self::Item<'_>);
    fn len(&self) -> usize;
    fn bytes(&self) -> usize;
    fn get(&self, index: usize) -> Option<Self::Item<'_>>;
    fn is(&self, index: usize, value: Self::Item<'_>) -> bool;
    fn hash(state: &RandomState, value: Self::Item<'_>) -> u64;
    fn bound(value: Self::Item<'_>) -> Option<Bound>;
    /// As a dictionary page has them; none are left afterwards.
    fn take_plain(&mut self, page: &mut Vec<u8>);
    /// As a data page has them; none are left afterwards.
    fn take_page(&mut self, page: &mut Vec<u8>) -> Encoding;
    /// Percentage of distinct values above which a dictionary is not worth it.
    const DISTINCT_PERCENT: usize;
}

/// Texts, or bytes of any length.
#[derive(Debug, Default)]
pub(in crate::block) struct Texts {
    /// Each after its length: as pages have them.
    plain: Vec<u8>,
    /// Where each begins, with its length.
    starts: Vec<u32>,
}

impl Texts {
    #[inline]
    fn at(&self, index: usize) -> Option<&[u8]> {
        let start = *self.starts.get(index)?;
        let (length, rest) = self.plain.get(start as usize..)?.split_first_chunk()?;
        rest.get(..u32::from_le_bytes(*length) as usize)
    }
}

impl List for Texts {
    type Item<'a> = &'a [u8];
    const DISTINCT_PERCENT: usize = 90;

    #[inline]
    fn push(&mut self, value: &[u8]) {
        self.starts.push(self.plain.len() as u32);
        self.plain.extend_from_slice(&(value.len() as u32).to_le_bytes());
        self.plain.extend_from_slice(value);
    }

    fn len(&self) -> usize {
        self.starts.len()
    }

    fn bytes(&self) -> usize {
        self.plain.len() + self.starts.len() * size_of::<u32>()
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        self.at(index)
    }

    #[inline]
    fn is(&self, index: usize, value: &[u8]) -> bool {
        self.at(index) == Some(value)
    }

    #[inline]
    fn hash(state: &RandomState, value: &[u8]) -> u64 {
        let mut hasher = state.build_hasher();
        hasher.write(value);
        hasher.finish()
    }

    fn bound(_: &[u8]) -> Option<Bound> {
        None
    }

    fn take_plain(&mut self, page: &mut Vec<u8>) {
        page.append(&mut self.plain);
        self.starts.clear();
    }

    fn take_page(&mut self, page: &mut Vec<u8>) -> Encoding {
        self.take_plain(page);
        Encoding::PLAIN
    }
}

/// A value that is always as long.
pub(in crate::block) trait Fixed: Copy + Default + PartialOrd {
    /// Its bytes as Parquet has them.
    type Bytes: AsRef<[u8]>;
    fn to_bytes(self) -> Self::Bytes;
    /// The byte of this number.
    fn byte(self, number: u32) -> u8;
    /// For hashes and comparisons: no two values have the same.
    fn bits(self) -> u64;
    fn bound(self) -> Bound;
}

macro_rules! fixed {
    ($($of:ty, $wide:ty, $bound:ident);*) => {$(
        impl Fixed for $of {
            type Bytes = [u8; size_of::<$of>()];

            fn to_bytes(self) -> Self::Bytes {
                self.to_le_bytes()
            }

            #[inline]
            fn byte(self, number: u32) -> u8 {
                (self >> (u8::BITS * number)) as u8
            }

            #[inline]
            fn bits(self) -> u64 {
                <$wide>::from(self) as u64
            }

            fn bound(self) -> Bound {
                Bound::$bound(self.into())
            }
        }
    )*};
}

fixed!(i32, i64, Int32; u32, i64, Int64; i64, i64, Int64; u64, u64, Unsigned64);

impl Fixed for f64 {
    type Bytes = [u8; 8];

    fn to_bytes(self) -> Self::Bytes {
        self.to_le_bytes()
    }

    #[inline]
    fn byte(self, number: u32) -> u8 {
        self.to_bits().byte(number)
    }

    fn bits(self) -> u64 {
        self.to_bits()
    }

    fn bound(self) -> Bound {
        Bound::Double(self)
    }
}

/// Numbers.
#[derive(Debug, Default)]
pub(in crate::block) struct Numbers<T>(Vec<T>);

impl<T: Fixed> List for Numbers<T> {
    type Item<'a> = T;
    const DISTINCT_PERCENT: usize = 60;

    #[inline]
    fn push(&mut self, value: T) {
        self.0.push(value);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self) -> usize {
        self.0.len() * size_of::<T>()
    }

    fn get(&self, index: usize) -> Option<T> {
        self.0.get(index).copied()
    }

    #[inline]
    fn is(&self, index: usize, value: T) -> bool {
        self.0.get(index).is_some_and(|known| known.bits() == value.bits())
    }

    #[inline]
    fn hash(state: &RandomState, value: T) -> u64 {
        state.hash_one(value.bits())
    }

    fn bound(value: T) -> Option<Bound> {
        Some(value.bound())
    }

    fn take_plain(&mut self, page: &mut Vec<u8>) {
        page.reserve(self.bytes());
        self.0.drain(..).for_each(|number| page.extend_from_slice(number.to_bytes().as_ref()));
    }

    fn take_page(&mut self, page: &mut Vec<u8>) -> Encoding {
        // All first bytes, then all second ones: those of like numbers are alike.
        let begin = page.len();
        page.resize(begin + self.bytes(), 0);
        let streams = page.get_mut(begin..).unwrap_or_default().chunks_exact_mut(self.0.len().max(1));
        for (byte, stream) in (0..).zip(streams) {
            stream.iter_mut().zip(&self.0).for_each(|(place, number)| *place = number.byte(byte));
        }
        self.0.clear();
        Encoding::BYTE_STREAM_SPLIT
    }
}

/// Numbers of which each byte has a stream of its own.
pub(in crate::block) type Split<T> = Direct<T, true>;

/// Numbers as they are.
pub(in crate::block) type Plain<T> = Direct<T, false>;

/// Numbers without a dictionary.
#[derive(Debug, Default)]
pub(in crate::block) struct Direct<T, const IS_SPLIT: bool>(Numbers<T>);

impl<T: Fixed, const IS_SPLIT: bool> Values for Direct<T, IS_SPLIT> {
    type Item<'a> = T;

    #[inline]
    fn push(&mut self, value: T) {
        self.0.push(value);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    fn is_full(&self) -> bool {
        self.0.bytes() >= PAGE_BYTES
    }

    fn bounds(&self) -> Option<(Bound, Bound)> {
        let (least, most) = least_and_most(self.0.0.iter().copied())?;
        Some((least.bound(), most.bound()))
    }

    fn take_page(&mut self, page: &mut Vec<u8>) -> Encoding {
        if IS_SPLIT {
            return self.0.take_page(page);
        }
        self.0.take_plain(page);
        Encoding::PLAIN
    }
}

/// Ids of `N` bytes.
#[derive(Debug, Default)]
pub(in crate::block) struct Ids<const N: usize>(Vec<u8>);

impl<const N: usize> Values for Ids<N> {
    type Item<'a> = [u8; N];

    #[inline]
    fn push(&mut self, value: [u8; N]) {
        self.0.extend_from_slice(&value);
    }

    fn len(&self) -> usize {
        self.0.len() / N
    }

    fn bytes(&self) -> usize {
        self.0.len()
    }

    fn is_full(&self) -> bool {
        false
    }

    fn bounds(&self) -> Option<(Bound, Bound)> {
        let ids: &[[u8; N]] = self.0.as_chunks().0;
        let (least, most) = least_and_most(ids.iter())?;
        Some((Bound::Id(least.to_vec()), Bound::Id(most.to_vec())))
    }

    fn take_page(&mut self, page: &mut Vec<u8>) -> Encoding {
        page.append(&mut self.0);
        Encoding::PLAIN
    }
}

/// Truths, a bit each.
#[derive(Debug, Default)]
pub(in crate::block) struct Bools(Vec<bool>);

impl Values for Bools {
    type Item<'a> = bool;

    #[inline]
    fn push(&mut self, value: bool) {
        self.0.push(value);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn bytes(&self) -> usize {
        self.0.len()
    }

    fn is_full(&self) -> bool {
        self.0.len() >= PAGE_BYTES
    }

    fn bounds(&self) -> Option<(Bound, Bound)> {
        None
    }

    fn take_page(&mut self, page: &mut Vec<u8>) -> Encoding {
        let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, bit| byte << 1 | u8::from(*bit));
        page.extend(self.0.chunks(8).map(byte));
        self.0.clear();
        Encoding::PLAIN
    }
}
