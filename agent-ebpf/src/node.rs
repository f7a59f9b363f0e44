//! For which request the thread of a Node.js program sends: within the callback of what it has received of one, it works for that
//! one. See ADR 0031.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use coati_common::event::Served;
use coati_common::limits::{EVENT_LOOPS, MADE};

use crate::exchange::Caller;
use crate::globals::Mark;
use crate::iov::kind;
use crate::kread::user;
use crate::maps::NO_PREALLOC;
use crate::scratch::Slot;
use crate::tell::Moved;

/// What is known of a thread that calls back what has been received.
#[derive(Clone, Copy)]
#[repr(C)]
struct Callback {
    /// 1 while it does.
    is_under_way: u64,
    /// Where the bytes lie that the thread has last received of a request, and how many.
    buffer: u64,
    len: u64,
    /// That request, until it is called back.
    received: Served,
    /// The request that is called back.
    served: Served,
}

/// The threads that run Node.js, by `pid_tgid`.
#[map]
static CALLBACKS: HashMap<u64, Callback> = HashMap::with_max_entries(EVENT_LOOPS, NO_PREALLOC);

/// Set when there is the first.
static IS_HERE: Mark = Mark::new();

/// The requests in whose callbacks TCP connections were made, by the address of their `struct sock`, until something is sent on them.
#[map]
static CONNECTED: LruHashMap<u64, Served> = LruHashMap::with_max_entries(MADE, 0);

/// `uv_buf_t.base` (include/uv/unix.h in libuv's sources).
const BUFFER_BASE: u64 = 0;

#[inline(always)]
fn callback(pid_tgid: u64) -> Option<&'static mut Callback> {
    // SAFETY: as in `exchange::followed`; the entry belongs to this thread.
    CALLBACKS.get_ptr_mut(pid_tgid).map(|callback| unsafe { &mut *callback })
}

/// Whether any thread has ever run Node.js.
#[inline(always)]
pub fn is_here() -> bool {
    IS_HERE.is_set()
}

/// The thread begins to call back the `len` bytes that it has received into the `uv_buf_t` at `buffer`.
#[inline(always)]
pub fn begins(caller: Caller, len: u64, buffer: u64) -> Option<()> {
    const IDLE: Callback =
        Callback { is_under_way: 0, buffer: 0, len: 0, received: Served::NONE, served: Served::NONE };
    let key = caller.pid_tgid();
    if CALLBACKS.get_ptr(key).is_none() {
        IS_HERE.set();
        CALLBACKS.insert(key, IDLE, 0).ok()?;
    }
    let callback = callback(key)?;
    callback.is_under_way = 1;
    let is_it = callback.len == len && Some(callback.buffer) == user::<u64>(buffer.wrapping_add(BUFFER_BASE));
    callback.served = if is_it { callback.received } else { Served::NONE };
    callback.received = Served::NONE;
    Some(())
}

/// It has done so.
#[inline(always)]
pub fn ends(caller: Caller) -> Option<()> {
    let callback = callback(caller.pid_tgid())?;
    callback.is_under_way = 0;
    callback.served = Served::NONE;
    Some(())
}

/// The thread has received something of a server's request of HTTP/1: it will call that back, or does, if it was given by a TLS
/// library. Exported, and with numbers for arguments only, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn node_receives(slot: u64, connection: u64, exchange: u64) -> u64 {
    let Some(moved) = Slot::numbered(slot).moved() else { return 0 };
    u64::from(receives(moved, connection, exchange as u32).is_some())
}

#[inline(always)]
fn receives(moved: &Moved, connection: u64, exchange: u32) -> Option<()> {
    let callback = callback(Caller::any().pid_tgid())?;
    let request = Served { connection, exchange, place: 0 };
    if callback.is_under_way == 0 {
        let is_known = moved.source.kind == kind::BUFFER;
        callback.received = if is_known { request } else { Served::NONE };
        (callback.buffer, callback.len) = (moved.source.address, moved.len);
    } else if callback.served.connection == 0 {
        callback.served = request;
    } else if callback.served.connection != connection || callback.served.exchange != exchange {
        callback.served = Served::SEVERAL;
    }
    Some(())
}

/// Finds the request in whose callback the current thread sends what the slot's call has moved, or in whose callback the connection
/// was made; it is left in the slot. 0 if there is none. Exported for the same reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_callback(slot: u64) -> u64 {
    let slot = Slot::numbered(slot);
    let Some(callback) = callback(Caller::any().pid_tgid()) else { return 0 };
    let (Some(moved), Some(served)) = (slot.moved(), slot.served()) else { return 0 };
    let socket = moved.socket.address;
    *served = callback.served;
    if !moved.socket.is_unix()
        && let Some(made) = CONNECTED.get_ptr(socket)
    {
        if served.connection == 0 {
            // SAFETY: as in `exchange::followed`.
            *served = unsafe { *made };
        }
        let _is_there = CONNECTED.remove(socket);
    }
    u64::from(served.connection != 0)
}

/// The thread makes a connection on the socket at `socket`; another one may have been there.
#[inline(always)]
pub fn connects(socket: u64) -> Option<()> {
    let served = match callback(Caller::any().pid_tgid()) {
        Some(callback) => callback.served,
        None => Served::NONE,
    };
    if served.connection != 0 {
        return CONNECTED.insert(socket, served, 0).ok();
    }
    if CONNECTED.get_ptr(socket).is_some() { CONNECTED.remove(socket).ok() } else { None }
}

/// The thread has ended.
#[inline(always)]
pub fn thread_gone(pid_tgid: u64) {
    let _none_is_usual = CALLBACKS.remove(pid_tgid);
}
