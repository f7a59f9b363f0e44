//! Filters before hash maps. Most of what is looked up in those is not there, and to find that out takes 150 instructions; here
//! it takes 15, so that who is not watched hardly pays.
//!
//! Each is a counting Bloom filter with one hash: a place counts the keys that are there and lead to it. It counts up before its
//! key is put into the map, and down after that was removed, so where it is zero the key is not in the map.
//! A place that stays counted costs look-ups, and loses nothing.

use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;

use crate::emit;

/// Places, a power of two.
const PLACES: u32 = 1 << 14;

/// The sockets in [`crate::maps::CONNECTIONS`].
#[map]
static FOLLOWED: Array<u64> = Array::with_max_entries(PLACES, 0);

/// The threads that are in a send of [`crate::maps::CALLS`].
#[map]
static SENDING: Array<u64> = Array::with_max_entries(PLACES, 0);

/// One of the filters.
#[derive(Clone, Copy)]
pub enum Filter {
    /// By the address of the socket.
    Followed,
    /// By the thread.
    Sending,
}

impl Filter {
    /// Whether the key may be there.
    #[inline(always)]
    pub fn may_have(self, key: u64) -> bool {
        // SAFETY: a number of the map, read whole.
        self.place(key).is_none_or(|count| unsafe { count.read_volatile() != 0 })
    }

    /// A key is about to be there.
    #[inline(always)]
    pub fn add(self, key: u64) {
        self.change(key, 1);
    }

    /// The key is not there any more.
    #[inline(always)]
    pub fn remove(self, key: u64) {
        self.change(key, u64::MAX);
    }

    #[inline(always)]
    fn change(self, key: u64, by: u64) {
        if let Some(count) = self.place(key) {
            // SAFETY: a number of the map, and aligned.
            unsafe { emit::fetch_add(count, by) };
        }
    }

    #[inline(always)]
    fn place(self, key: u64) -> Option<*mut u64> {
        match self {
            // Multiplied by 2⁶⁴ over the golden ratio (Knuth, The Art of Computer Programming 3, 6.4), as sockets lie at regular
            // distances; the upper bits are the best.
            Self::Followed => {
                FOLLOWED.get_ptr_mut((key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES.ilog2())) as u32)
            }
            // One after the other.
            Self::Sending => SENDING.get_ptr_mut(key as u32 & (PLACES - 1)),
        }
    }
}
