//! For which request uvloop sends, the event loop of Python that is made with libuv: it keeps what tasks have written, and sends it later,
//! outside of their contexts. See ADR 0038.

use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use coati_common::event::{Served, phase, role};
use coati_common::limits::MADE;

use crate::exchange::{self, Caller};
use crate::kread::user;
use crate::python;
use crate::scratch::Slot;
use crate::sock::{self, Socket};

/// What was written on a socket and is still to be sent.
#[derive(Clone, Copy)]
#[repr(C)]
struct Queued {
    /// The request that the context works for in which it was written.
    served: Served,
    /// Inode number of the socket: another may lie there later.
    inode: u32,
    /// The connection's newest exchange then: it is sent with the next one, or was sent within the context.
    exchange: u32,
}

/// By the address of the `struct sock`.
#[map]
static QUEUED: LruHashMap<u64, Queued> = LruHashMap::with_max_entries(MADE, 0);

/// `UVHandle._handle` (uvloop/handles/handle.pxd in uvloop's sources), behind the head of every object and the table of its functions.
const TRANSPORT_HANDLE: u64 = 24;
/// `uv_stream_t.io_watcher.fd` (include/uv.h and include/uv/unix.h in libuv's sources).
const STREAM_FD: u64 = 184;

/// The thread has something to send through the `UVStream` at `transport`.
#[inline(always)]
pub fn writes(caller: Caller, transport: u64) -> Option<()> {
    let handle = user::<u64>(transport.wrapping_add(TRANSPORT_HANDLE))?;
    let fd = user::<u32>(handle.wrapping_add(STREAM_FD))?;
    let socket = Socket::of_descriptor(fd.into())?.address;
    let exchange = match exchange::on(socket) {
        None => 0,
        // An answer, or more of a request that was sent before.
        Some((_, connection)) if connection.role == role::SERVER || connection.phase == phase::REQUEST => return None,
        Some((_, connection)) => connection.exchange,
    };
    let inode = sock::inode(socket);
    if inode == 0 {
        return None;
    }
    let context = python::python_context();
    let served = if python::is_context(context) { python::served_in(caller, context) } else { Served::NONE };
    let mut queued = Queued { served, inode, exchange };
    if let Some(before) = QUEUED.get_ptr(socket) {
        // SAFETY: as in `exchange::followed`.
        let before = unsafe { &*before };
        if before.inode == inode && before.exchange == exchange && before.served != served {
            queued.served = Served::SEVERAL;
        }
    }
    QUEUED.insert(socket, queued, 0).ok()
}

/// Finds the request for which that was written which the slot's call has moved, as this `exchange` of its connection, or as a
/// stream of HTTP/2 (0); it is left in the slot. 0 if that is not known here.
///
/// Exported, and with numbers for arguments only, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_queued(slot: u64, exchange: u64) -> u64 {
    let slot = Slot::numbered(slot);
    let (Some(moved), Some(served)) = (slot.moved(), slot.served()) else { return 0 };
    let socket = moved.socket.address;
    let Some(queued) = QUEUED.get_ptr(socket) else { return 0 };
    // SAFETY: as in `exchange::followed`.
    let queued = unsafe { *queued };
    let _is_there = QUEUED.remove(socket);
    let is_next = exchange == 0 || queued.exchange.wrapping_add(1) == exchange as u32;
    if queued.inode != sock::inode(socket) || !is_next {
        return 0;
    }
    *served = queued.served;
    1
}
