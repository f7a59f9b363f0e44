//! A filter before the hash map of connections. Most sockets that are looked up there are not there, and to find that out takes 150
//! instructions; here it takes 15, so that who is not watched hardly pays.
//!
//! It is a counting Bloom filter with one hash: a place counts the keys that are there and lead to it. It counts up before its
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

/// Whether that at this address may be there.
#[inline(always)]
pub fn may_be_followed(socket: u64) -> bool {
    // SAFETY: a number of the map, read whole.
    place(socket).is_none_or(|count| unsafe { count.read_volatile() != 0 })
}

/// It is about to be there.
#[inline(always)]
pub fn add(socket: u64) {
    change(socket, 1);
}

/// It is not there any more.
#[inline(always)]
pub fn remove(socket: u64) {
    change(socket, u64::MAX);
}

#[inline(always)]
fn change(socket: u64, by: u64) {
    if let Some(count) = place(socket) {
        // SAFETY: a number of the map, and aligned.
        unsafe { emit::fetch_add(count, by) };
    }
}

/// The address multiplied by 2⁶⁴ over the golden ratio (Knuth, The Art of Computer Programming 3, 6.4), as sockets lie at regular
/// distances; the upper bits are the best.
#[inline(always)]
fn place(socket: u64) -> Option<*mut u64> {
    FOLLOWED.get_ptr_mut((socket.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - PLACES.ilog2())) as u32)
}
