//! The bytes of a call: one buffer, several, or none that can be read.

use coati_common::limits::{PAYLOAD_BYTES, TAIL_BYTES};
use coati_common::sniff::{SNIFF_BYTES, Sniff};

use crate::globals as at;
use crate::kread::{Head, at_most, field, opaque, user, user_bytes};
use crate::scratch::{Payload, Slot, Walk};

/// Buffers of one call that are walked; bytes beyond are counted, not read.
const BUFFERS: u64 = 64;
/// Buffers that are searched for the first byte.
const FIRST_BUFFERS: u64 = 4;
/// Buffers that a call has filled and that are walked back over.
const FILLED_BUFFERS: u64 = 64;
/// `struct user_msghdr`, part of the system call interface: where `msg_iov` and `msg_iovlen` lie.
const MSGHDR_IOV: u64 = 16;
pub const IOVEC_SIZE: u64 = 16;
/// Words of a `struct iov_iter` that are read at once: all that there are.
const ITERATOR_WORDS: usize = 5;

/// Where the bytes of a call lie.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Source {
    /// One of [`kind`].
    pub kind: u32,
    /// Bytes at the start of the first of several buffers that do not count.
    pub skip: u32,
    /// Address of the buffer, or of the first `struct iovec`.
    pub address: u64,
    /// Bytes of the buffer, or number of `struct iovec`.
    pub count: u64,
}

/// Kinds of [`Source`].
pub mod kind {
    /// The bytes never pass the process (`sendfile`, `splice`).
    pub const NONE: u32 = 0;
    /// One buffer.
    pub const BUFFER: u32 = 1;
    /// Several buffers, listed in the process's memory.
    pub const VECTOR: u32 = 2;
    /// Several buffers, listed in the kernel's memory.
    pub const ITERATOR: u32 = 3;
    /// The bytes cannot be found.
    pub const LOST: u32 = 4;
}

impl Source {
    /// Bytes that never pass the process.
    pub const NONE: Self = Self::new(kind::NONE, 0, 0);

    const fn new(kind: u32, address: u64, count: u64) -> Self {
        Self { kind, skip: 0, address, count }
    }

    /// `buf, count`
    #[inline(always)]
    pub const fn buffer(address: u64, count: u64) -> Self {
        Self::new(kind::BUFFER, address, count)
    }

    /// `iov, iovcnt`
    #[inline(always)]
    pub const fn vector(address: u64, count: u64) -> Self {
        Self::new(kind::VECTOR, address, count)
    }

    /// `struct user_msghdr *`
    #[inline(always)]
    pub fn message(address: u64) -> Option<Self> {
        let [address, count] = user::<[u64; 2]>(address + MSGHDR_IOV)?;
        Some(Self::vector(address, count))
    }

    /// What the kernel's `struct msghdr` at `address` has yet to give or take (include/linux/uio.h). Bytes that the
    /// kernel has itself, those of files among them, are only counted.
    #[inline(always)]
    pub fn ahead(address: u64) -> Self {
        let iterator = Iterator::of(address);
        if iterator.kind == at::ITER_IS_UBUF.load() {
            return Self::buffer(iterator.pointer + iterator.offset, iterator.count);
        }
        if iterator.kind != at::ITER_IS_IOVEC.load() {
            return Self::NONE;
        }
        let skip = iterator.offset as u32;
        Self { skip, ..Self::new(kind::ITERATOR, iterator.pointer, iterator.segments) }
    }

    /// What the kernel's `struct msghdr` at `address` has just taken: the last `moved` bytes before where it stands.
    #[inline(always)]
    pub fn behind(slot: Slot, address: u64, moved: u64) -> Self {
        let iterator = Iterator::of(address);
        if iterator.kind == at::ITER_IS_UBUF.load() {
            return Self::buffer(iterator.pointer + iterator.offset - moved, moved);
        }
        if iterator.kind != at::ITER_IS_IOVEC.load() {
            return Self::NONE;
        }
        let Some(walk) = slot.walk() else { return Self::new(kind::LOST, 0, 0) };
        walk.vector = iterator.pointer;
        walk.skip = iterator.offset;
        walk.left = moved;
        let count = rewind(slot.number());
        let Some(walk) = slot.walk() else { return Self::new(kind::LOST, 0, 0) };
        let kind = if count > 0 { kind::ITERATOR } else { kind::LOST };
        Self { skip: walk.skip as u32, ..Self::new(kind, walk.vector, count) }
    }

    /// The first of the `moved` bytes; `None` if they cannot be read, which before a send may only mean that nobody has
    /// touched the page yet.
    #[inline(always)]
    pub fn sniff(&self, moved: u64) -> Option<Sniff> {
        let (address, len) = match self.kind {
            kind::BUFFER => (self.address, self.count),
            kind::VECTOR | kind::ITERATOR => self.first_buffer()?,
            kind::LOST => return None,
            _ => (0, 0),
        };
        let len = if len < moved { len } else { moved };
        let len = at_most::<{ SNIFF_BYTES as u64 }>(len);
        let mut words = [0_u64; 2];
        // SAFETY: `len` is at most the size of `words`.
        if len > 0 && !unsafe { user_bytes(words.as_mut_ptr().cast(), len, address) } {
            return None;
        }
        Some(Sniff::new(words, len as u32))
    }

    #[inline(always)]
    fn first_buffer(&self) -> Option<(u64, u64)> {
        let mut skip = u64::from(self.skip);
        for index in 0..FIRST_BUFFERS {
            if index >= self.count {
                break;
            }
            let [address, len] = iovec(self.address + index * IOVEC_SIZE, self.kind == kind::ITERATOR)?;
            if len > skip {
                return Some((address + skip, len - skip));
            }
            skip = 0;
        }
        Some((0, 0))
    }

    /// Copies the first of the `moved` bytes to the payload of `slot`, as many as `room`, and finds the last eight.
    #[inline(always)]
    pub fn copy(&self, slot: Slot, moved: u64, room: u64) -> Copied {
        const NOTHING: Copied = Copied { len: 0, readable: false, last: [0; 8] };
        match self.kind {
            kind::BUFFER => {
                let Some(payload) = slot.payload() else { return NOTHING };
                let len = at_most::<{ PAYLOAD_BYTES as u64 }>(if moved < room { moved } else { room });
                // SAFETY: `len` is at most half the size of `payload`.
                let readable = len == 0 || unsafe { user_bytes(payload.as_mut_ptr(), len, self.address) };
                let len = if readable { len } else { 0 };
                let last = if len > 0 && len == moved { end_of(payload, len) } else { last_of(self.address, moved) };
                Copied { len, readable, last: last.to_be_bytes() }
            }
            kind::VECTOR | kind::ITERATOR => {
                let Some(walk) = slot.walk() else { return NOTHING };
                self.start(walk, moved, room);
                let last = copy_vector(slot.number());
                let Some(walk) = slot.walk() else { return NOTHING };
                Copied { len: walk.copied, readable: walk.unreadable == 0, last: last.to_be_bytes() }
            }
            kind::LOST => NOTHING,
            _ => Copied { len: 0, readable: true, last: [0; 8] },
        }
    }
}

impl Source {
    /// Sets a walk over the `moved` bytes to its start; `room` of them are to be copied.
    #[inline(always)]
    fn start(&self, walk: &mut Walk, moved: u64, room: u64) {
        walk.vector = self.address;
        walk.count = self.count;
        walk.in_kernel = u64::from(self.kind == kind::ITERATOR);
        walk.skip = u64::from(self.skip);
        walk.left = moved;
        walk.copied = 0;
        walk.room = room;
        walk.last = [0; 2];
        walk.before = [0; 2];
        walk.unreadable = 0;
    }

    /// Copies the last of the `moved` bytes, [`TAIL_BYTES`] at most, to the payload of `slot`; how many, 0 if they cannot be read
    /// or found.
    #[inline(always)]
    pub fn copy_end(&self, slot: Slot, moved: u64) -> u64 {
        let Some(walk) = slot.walk() else { return 0 };
        self.start(walk, moved, 0);
        copy_end(slot.number(), self.kind.into())
    }
}

/// Takes the [`Walk`] of a slot, of a [`Source`] of this kind: copies the last of the bytes in `left` to its payload; how
/// many.
///
/// Exported, and with numbers for arguments only, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn copy_end(slot: u64, kind: u64) -> u64 {
    let number = slot;
    let slot = Slot::numbered(number);
    let Some(walk) = slot.walk() else { return 0 };
    let moved = walk.left;
    let len = at_most::<{ TAIL_BYTES as u64 }>(moved);
    if kind == u64::from(kind::BUFFER) {
        let Some(payload) = slot.payload() else { return 0 };
        // SAFETY: `len` is at most half the size of `payload`.
        return if unsafe { user_bytes(payload.as_mut_ptr(), len, walk.vector + moved - len) } { len } else { 0 };
    }
    if kind != u64::from(kind::VECTOR) && kind != u64::from(kind::ITERATOR) {
        return 0;
    }
    walk.skip += moved - len;
    walk.left = len;
    walk.room = len;
    copy_vector(number);
    let Some(walk) = slot.walk() else { return 0 };
    if walk.left == 0 && walk.unreadable == 0 { walk.copied } else { 0 }
}

/// A `struct iov_iter`.
struct Iterator {
    kind: u32,
    offset: u64,
    count: u64,
    pointer: u64,
    segments: u64,
}

impl Iterator {
    /// The one of the kernel's `struct msghdr` at `message`.
    #[inline(always)]
    fn of(message: u64) -> Self {
        let mut head = Head::<ITERATOR_WORDS>::at(message + u64::from(at::MSGHDR_ITER.load()));
        let head = head.read();
        Self {
            kind: u32::from(head.get::<u8>(at::ITER_TYPE.load())),
            offset: head.get(at::ITER_OFFSET.load()),
            count: head.get(at::ITER_COUNT.load()),
            pointer: head.get(at::ITER_POINTER.load()),
            segments: head.get(at::ITER_SEGMENTS.load()),
        }
    }
}

/// The `struct iovec` at `address`.
#[inline(always)]
pub fn iovec(address: u64, in_kernel: bool) -> Option<[u64; 2]> {
    if in_kernel { field(address, 0) } else { user(address) }
}

/// What [`Source::copy`] found.
pub struct Copied {
    /// Bytes of payload.
    pub len: u64,
    /// Whether everything that there was room for could be read.
    pub readable: bool,
    /// The last bytes, the very last one at the end; zeros where unknown.
    pub last: [u8; 8],
}

/// Takes the [`Walk`] of a slot back by the bytes in `left`: from the `skip`th byte of the buffer at `vector` to where
/// they begin. How many buffers they lie in; 0 if in too many.
///
/// Exported, and with a number for argument only, so that the verifier checks it once and not for every way to it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn rewind(slot: u64) -> u64 {
    let Some(walk) = Slot::numbered(slot).walk() else { return 0 };
    for steps in 0..FILLED_BUFFERS {
        if walk.left <= walk.skip {
            walk.skip -= walk.left;
            return steps + 1;
        }
        walk.left -= walk.skip;
        walk.vector -= IOVEC_SIZE;
        let Some([_, len]) = field::<[u64; 2]>(walk.vector, 0) else { return 0 };
        walk.skip = len;
    }
    0
}

/// Takes the [`Walk`] of a slot: copies to its payload, and returns the last eight bytes that moved as a big-endian
/// number, as far as they are known. The rest of the result is in the [`Walk`].
///
/// Exported, and with a number for argument only, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn copy_vector(slot: u64) -> u64 {
    let Some(walk) = Slot::numbered(slot).walk() else { return 0 };
    for index in 0..BUFFERS {
        // Hidden, or the two ends of the loop become one that the verifier of Linux 6.1 cannot bound.
        if index >= opaque(walk.count) || step(slot, walk.vector + index * IOVEC_SIZE) == 0 {
            break;
        }
    }
    if walk.left == 0 { last_of_two(walk.before, walk.last) } else { 0 }
}

/// Takes one buffer; 1 if the walk goes on. Exported for the same reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn step(slot: u64, vector: u64) -> u64 {
    let slot = Slot::numbered(slot);
    let (Some(walk), Some(payload)) = (slot.walk(), slot.payload()) else { return 0 };
    let Some([address, len]) = iovec(vector, walk.in_kernel != 0) else {
        walk.unreadable = 1;
        return 0;
    };
    let skip = if walk.skip < len { walk.skip } else { len };
    walk.skip -= skip;
    let (address, len) = (address + skip, len - skip);
    let len = if len < walk.left { len } else { walk.left };
    if len == 0 {
        return 1;
    }
    let copied = at_most::<{ PAYLOAD_BYTES as u64 }>(walk.copied);
    let room = walk.room.saturating_sub(copied);
    let take = at_most::<{ PAYLOAD_BYTES as u64 }>(if len < room { len } else { room });
    if take > 0 {
        // SAFETY: offset and length are each at most half the size of `payload`.
        if unsafe { user_bytes(payload.as_mut_ptr().add(copied as usize), take, address) } {
            walk.copied = copied + take;
        } else {
            // What follows would be taken for what is missing.
            walk.room = 0;
            walk.unreadable = 1;
        }
    }
    walk.before = walk.last;
    walk.last = [address, len];
    walk.left -= len;
    u64::from(walk.left > 0)
}

/// The last eight of `len` bytes at `address` as a big-endian number, fewer if there are fewer; 0 if unreadable.
#[inline(always)]
fn last_of(address: u64, len: u64) -> u64 {
    let count = at_most::<8>(len);
    let mut bytes = 0_u64;
    // SAFETY: `count` is at most the size of `bytes`.
    if count == 0 || !unsafe { user_bytes((&raw mut bytes).cast(), count, address + len - count) } {
        return 0;
    }
    u64::from_be(bytes) >> (64 - 8 * count)
}

/// The last eight of the first `len` bytes of `payload` as a big-endian number.
#[inline(always)]
pub fn end_of(payload: &Payload, len: u64) -> u64 {
    let start = at_most::<{ PAYLOAD_BYTES as u64 }>(len.saturating_sub(8));
    // SAFETY: eight bytes from at most the middle of `payload` on.
    let end = u64::from_be(unsafe { payload.as_ptr().add(start as usize).cast::<u64>().read_unaligned() });
    if len >= 8 { end } else { end >> (64 - 8 * len) }
}

/// The last eight bytes of two buffers, one after the other.
#[inline(always)]
fn last_of_two(before: [u64; 2], last: [u64; 2]) -> u64 {
    let end = last_of(last[0], last[1]);
    if last[1] >= 8 || before[1] == 0 {
        return end;
    }
    last_of(before[0], before[1]) << (8 * last[1]) | end
}
