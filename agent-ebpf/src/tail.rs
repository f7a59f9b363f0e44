//! The ends of responses to `POST`: token counts stand there, at the end of a stream or of a large document.
//!
//! Of each of the first calls of a response that moved more than its record carries, the last bytes are told in a record
//! of their own, just before it. Of later calls they are kept here, in two halves that take turns, until what was sent ends
//! like a chunked body, or the connection is over; then the halves are told. So a long stream costs one copy of the end of
//! each call, and two records.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use coati_common::event::{Connection, Kind, Tail, connection_flags};
use coati_common::limits::{TAIL_BYTES, TAILS};
use coati_common::loss::Loss;

use crate::emit;
use crate::iov::Source;
use crate::kread::{at_most, opaque, own_bytes};
use crate::scratch::{Payload, Slot};

/// `POST `, as eight bytes are read in.
const POST: [u8; 5] = *b"POST ";
/// How a chunked body without trailers ends: `0`, and two line ends.
const LAST_CHUNK: u64 = u64::from_be_bytes(*b"\0\0\x000\r\n\r\n");
const LAST_CHUNK_MASK: u64 = 0xff_ffff_ffff;

/// A record of kept bytes as it goes into the ring buffer, with twice the room, as [`crate::scratch::Payload`].
#[repr(C)]
pub struct Half {
    head: Tail,
    payload: [u8; 2 * TAIL_BYTES],
}

/// The last bytes of a long response.
#[repr(C)]
pub struct Kept {
    halves: [Half; 2],
    /// Of which connection and exchange.
    connection: u64,
    exchange: u64,
    /// Bytes in each half.
    len: [u64; 2],
    /// The half that is being filled, 0 or 1.
    current: u64,
}

/// Long responses, by the address of the socket.
#[map]
static KEPT: LruHashMap<u64, Kept> = LruHashMap::with_max_entries(TAILS, 0);

/// What a new entry is copied from: too large for the stack. Never written to.
#[map]
static NOTHING: PerCpuArray<Kept> = PerCpuArray::with_max_entries(1, 0);

/// Marks the connection if the request that begins with `payload` is one whose answer's end is of interest.
#[inline(always)]
pub fn mark(connection: &mut Connection, payload: &Payload, len: u64) {
    if len > POST.len() as u64 && POST.iter().zip(payload).all(|(wanted, found)| wanted == found) {
        connection.flags |= connection_flags::KEEPS_END;
    }
}

/// What one call moved of a response.
pub struct Moved<'a> {
    pub socket: u64,
    pub len: u64,
    pub time_ns: u64,
    pub source: &'a Source,
    /// How much of it a record will carry; `None` if no record tells of the call.
    pub carried: Option<u64>,
}

/// Tells or keeps the end of what a call moved. Uses the slot's record, so the one that tells of the call comes later.
#[inline(always)]
pub fn take(slot: Slot, connection: &Connection, moved: &Moved<'_>) -> Option<()> {
    if connection.flags & connection_flags::KEEPS_END == 0 {
        return None;
    }
    // A comparison of the two would teach the verifier of Linux 6.1 a bound that contradicts a later one, on a way that no
    // call takes.
    if moved.carried.is_some_and(|carried| opaque(moved.len.wrapping_sub(carried)).cast_signed() <= 0) {
        return None;
    }
    let len = moved.source.copy_end(slot, moved.len);
    if len == 0 {
        return None;
    }
    if moved.carried.is_some() {
        tell_end(slot.number(), connection.connection, connection.exchange.into(), len, moved.time_ns);
    } else {
        keep(moved.socket, connection.connection, connection.exchange.into(), slot.number(), len);
    }
    Some(())
}

/// Tells what is kept of the response on `socket` if it seems to be over: it ends like a chunked body, in however many calls
/// that end was sent.
#[inline(always)]
pub fn told_to_the_end(socket: u64, connection: &Connection, time_ns: u64) {
    if u64::from_be_bytes(connection.response_tail) & LAST_CHUNK_MASK == LAST_CHUNK {
        over(socket, connection, time_ns);
    }
}

/// Tells what is kept of the response on `socket`: nothing more of it will come.
#[inline(always)]
pub fn over(socket: u64, connection: &Connection, time_ns: u64) {
    if connection.flags & connection_flags::KEEPS_END != 0 {
        tell_kept(socket, time_ns);
    }
}

/// Tells the first `len` bytes of a slot's payload.
///
/// Exported, as the others here, and with numbers for arguments only, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_end(slot: u64, connection: u64, exchange: u64, len: u64, time_ns: u64) -> u64 {
    let Some(record) = Slot::numbered(slot).record::<Tail>() else { return 0 };
    let len = at_most::<{ TAIL_BYTES as u64 }>(len);
    if len > 0 {
        record.head = head(connection, exchange as u32, len, time_ns);
        emit::record(record, len, Loss::RingFullData);
    }
    1
}

/// Appends the first `len` bytes of a slot's payload to what is kept of the response on `socket`.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn keep(socket: u64, connection: u64, exchange: u64, slot: u64, len: u64) -> u64 {
    let Some(payload) = Slot::numbered(slot).payload() else { return 0 };
    if KEPT.get_ptr_mut(&socket).is_none() {
        let Some(nothing) = NOTHING.get_ptr(0) else { return 0 };
        // SAFETY: nobody writes to it.
        if KEPT.insert(&socket, unsafe { &*nothing }, 0).is_err() {
            return 0;
        }
    }
    let Some(kept) = KEPT.get_ptr_mut(&socket) else { return 0 };
    // SAFETY: as for `CONNECTIONS`: the entry lives as long as the program runs, and two threads that answer at once
    // mix up their bytes, not the kernel's.
    let kept = unsafe { &mut *kept };
    if kept.connection != connection || kept.exchange != exchange {
        kept.connection = connection;
        kept.exchange = exchange;
        kept.len = [0; 2];
        kept.current = 0;
    }
    let len = at_most::<{ TAIL_BYTES as u64 }>(len);
    let used = if kept.current == 0 { kept.len[0] } else { kept.len[1] };
    if used + len > TAIL_BYTES as u64 {
        kept.current ^= 1;
        if kept.current == 0 { kept.len[0] = 0 } else { kept.len[1] = 0 }
    }
    if kept.current == 0 {
        kept.len[0] = append(&mut kept.halves[0], kept.len[0], len, payload);
    } else {
        kept.len[1] = append(&mut kept.halves[1], kept.len[1], len, payload);
    }
    1
}

/// The length of the half with `len` bytes more.
#[inline(always)]
fn append(half: &mut Half, used: u64, len: u64, payload: &Payload) -> u64 {
    let used = at_most::<{ TAIL_BYTES as u64 }>(used);
    // SAFETY: offset and length are each at most half the size of the payload.
    let to = unsafe { half.payload.as_mut_ptr().add(used as usize) };
    // SAFETY: as above.
    if unsafe { own_bytes(to, len, payload.as_ptr()) } { used + len } else { used }
}

/// Tells what is kept of the response on `socket`, the older half first.
#[inline(always)]
fn tell_kept(socket: u64, time_ns: u64) {
    let older = tell_half(socket, 1, time_ns);
    if older != 0 {
        tell_half(socket, 0, time_ns);
    }
}

/// Tells the half that is being filled, or the other one (`is_other` is 1).
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_half(socket: u64, is_other: u64, time_ns: u64) -> u64 {
    let Some(kept) = KEPT.get_ptr_mut(&socket) else { return 0 };
    // SAFETY: as in `keep`.
    let kept = unsafe { &mut *kept };
    let (connection, exchange) = (kept.connection, kept.exchange as u32);
    if opaque(kept.current ^ is_other) == 0 {
        let len = kept.len[0];
        kept.len[0] = 0;
        tell(&mut kept.halves[0], connection, exchange, len, time_ns);
    } else {
        let len = kept.len[1];
        kept.len[1] = 0;
        tell(&mut kept.halves[1], connection, exchange, len, time_ns);
    }
    1
}

#[inline(always)]
fn tell(half: &mut Half, connection: u64, exchange: u32, len: u64, time_ns: u64) {
    let len = at_most::<{ TAIL_BYTES as u64 }>(len);
    if len > 0 {
        half.head = head(connection, exchange, len, time_ns);
        emit::kept(half, len, Loss::RingFullData);
    }
}

#[inline(always)]
fn head(connection: u64, exchange: u32, len: u64, time_ns: u64) -> Tail {
    Tail { header: emit::header(Kind::Tail, time_ns), connection, exchange, payload_len: len as u16, reserved: 0 }
}
