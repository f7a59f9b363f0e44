//! The bytes of an HTTP/2 connection: copies frames, and leaves out the content of DATA frames.
//!
//! User space needs every header block, or it could not read the ones after it; of bodies it needs the lengths. So the
//! walk goes from frame to frame through all that a call moved, and keeps where it stands for the next call.

use coati_common::event::{Frames, frame_state};
use coati_common::limits::{FRAME_STEPS, FRAMES_BYTES, PAYLOAD_BYTES};

use crate::iov::{IOVEC_SIZE, Source, iovec, kind};
use crate::kread::{at_most, user_bytes};
use crate::scratch::{Payload, Slot, Walk};

/// Bytes of a frame's header.
const HEADER_BYTES: u64 = 9;
const DATA: u64 = 0;

/// What [`copy`] found.
pub struct Told {
    /// Bytes of payload.
    pub len: u64,
    /// Whether everything that there was room for could be read.
    pub readable: bool,
    /// Whether user space can do something with a record of it: a frame began or ended.
    pub is_news: bool,
}

/// Copies the frames among the `moved` bytes to the payload of `slot`, and takes `frames` to where they end.
#[inline(always)]
pub fn copy(source: &Source, slot: Slot, moved: u64, frames: &mut Frames) -> Told {
    const NOTHING: Told = Told { len: 0, readable: true, is_news: false };
    let is_listed = matches!(source.kind, kind::VECTOR | kind::ITERATOR);
    if !is_listed && source.kind != kind::BUFFER {
        // Bytes of a file can only be the content of a DATA frame.
        if frames.state == frame_state::DATA && u64::from(frames.left) > moved {
            frames.left -= moved as u32;
        } else {
            *frames = Frames::UNKNOWN;
        }
        return NOTHING;
    }
    if frames.state == frame_state::UNKNOWN {
        if !source.sniff(moved).is_some_and(|sniff| sniff.is_frame()) {
            return NOTHING;
        }
        *frames = Frames::HEADER;
    }
    let Some(walk) = slot.walk() else { return NOTHING };
    walk.vector = source.address;
    walk.count = if is_listed { source.count } else { 0 };
    walk.in_kernel = u64::from(source.kind == kind::ITERATOR);
    walk.skip = u64::from(source.skip);
    walk.left = if is_listed { moved } else { 0 };
    walk.address = source.address;
    walk.len = if is_listed { 0 } else { moved };
    walk.index = 0;
    walk.copied = 0;
    walk.room = FRAMES_BYTES as u64;
    walk.unreadable = 0;
    walk.frame_left = u64::from(frames.left);
    walk.state = u64::from(frames.state);
    walk.have = u64::from(frames.have);
    walk.header = [u64::from_ne_bytes(frames.header), 0, 0, 0];
    walk.ended = 0;
    for _ in 0..FRAME_STEPS {
        if frame_step(slot.number()) == 0 {
            break;
        }
    }
    let Some(walk) = slot.walk() else { return NOTHING };
    *frames = if walk.len > 0 || walk.left > 0 {
        Frames::UNKNOWN
    } else {
        Frames {
            left: walk.frame_left as u32,
            state: walk.state as u8,
            have: walk.have as u8,
            reserved: [0; 2],
            header: walk.header[0].to_ne_bytes(),
        }
    };
    let is_news = walk.copied > 0 || walk.ended > 0 || walk.unreadable > 0;
    Told { len: walk.copied, readable: walk.unreadable == 0, is_news }
}

/// Takes the next buffer, or the rest of a frame's header, or of its payload; 0 if there is nothing left, or no going on.
///
/// Exported, and with a number for argument only, so that the verifier checks it once and not for every way to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn frame_step(slot: u64) -> u64 {
    let slot = Slot::numbered(slot);
    let (Some(walk), Some(payload)) = (slot.walk(), slot.payload()) else { return 0 };
    if walk.len == 0 {
        return u64::from(next_buffer(walk));
    }
    if walk.state == u64::from(frame_state::HEADER) {
        let have = at_most::<{ HEADER_BYTES - 1 }>(walk.have);
        let missing = HEADER_BYTES - have;
        let take = at_most::<HEADER_BYTES>(if walk.len < missing { walk.len } else { missing });
        // SAFETY: offset and length are together below the size of `header`.
        let to = unsafe { walk.header.as_mut_ptr().cast::<u8>().add(have as usize) };
        // SAFETY: as above.
        if !unsafe { user_bytes(to, take, walk.address) } {
            walk.unreadable = 1;
            return 0;
        }
        put(walk, payload, take);
        walk.have = have + take;
        if walk.have < HEADER_BYTES {
            return 1;
        }
        walk.have = 0;
        let word = u64::from_be(walk.header[0]);
        walk.frame_left = word >> 40;
        let is_data = word >> 32 & 0xff == DATA;
        walk.state = u64::from(if is_data { frame_state::DATA } else { frame_state::OTHER });
    } else {
        let take = if walk.len < walk.frame_left { walk.len } else { walk.frame_left };
        walk.frame_left -= take;
        if walk.state == u64::from(frame_state::OTHER) {
            put(walk, payload, take);
        } else {
            walk.address += take;
            walk.len -= take;
        }
    }
    if walk.frame_left == 0 {
        walk.state = u64::from(frame_state::HEADER);
        walk.header[0] = 0;
        walk.ended = 1;
    }
    1
}

/// The next of several buffers, if there is one.
#[inline(always)]
fn next_buffer(walk: &mut Walk) -> bool {
    if walk.left == 0 || walk.index >= walk.count {
        return false;
    }
    let Some([address, len]) = iovec(walk.vector + walk.index * IOVEC_SIZE, walk.in_kernel != 0) else {
        walk.unreadable = 1;
        return false;
    };
    walk.index += 1;
    let skip = if walk.skip < len { walk.skip } else { len };
    walk.skip = 0;
    let len = len - skip;
    walk.address = address + skip;
    walk.len = if len < walk.left { len } else { walk.left };
    walk.left -= walk.len;
    true
}

/// Copies the next `take` bytes, as far as there is room; once there is none, nothing more is copied, or what follows
/// would be taken for what is missing.
#[inline(always)]
fn put(walk: &mut Walk, payload: &mut Payload, take: u64) {
    let copied = at_most::<{ PAYLOAD_BYTES as u64 }>(walk.copied);
    let room = walk.room.saturating_sub(copied);
    let len = at_most::<{ PAYLOAD_BYTES as u64 }>(if take < room { take } else { room });
    if len > 0 {
        // SAFETY: offset and length are each at most half the size of `payload`.
        if unsafe { user_bytes(payload.as_mut_ptr().add(copied as usize), len, walk.address) } {
            walk.copied = copied + len;
        } else {
            walk.room = 0;
            walk.unreadable = 1;
        }
    }
    if len < take {
        walk.room = 0;
    }
    walk.address += take;
    walk.len -= take;
}
