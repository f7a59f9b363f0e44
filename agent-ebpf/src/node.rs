//! For which request a thread sends that runs libuv's loop: within the callback of what it has received of one, it works for that one.
//! In Node.js also within the callback of an answer to a call that was made for one. See ADR 0031; of Python, ADR 0032.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use coati_common::event::Served;
use coati_common::limits::{ASKED as CALLS, EVENT_LOOPS, MADE};

use crate::exchange::Caller;
use crate::globals::Mark;
use crate::iov::kind;
use crate::kread::user;
use crate::maps::NO_PREALLOC;
use crate::scratch::Slot;
use crate::tell::Moved;

/// A request that is worked for, and what says so.
#[derive(Clone, Copy)]
#[repr(C)]
struct Work {
    served: Served,
    /// The connection on which a call for it is being answered; 0 if it is its own bytes that are called back.
    answer: u64,
}

impl Work {
    const NONE: Self = Self { served: Served::NONE, answer: 0 };
}

/// What is known of a thread that calls back what has been received.
#[derive(Clone, Copy)]
#[repr(C)]
struct Callback {
    /// 1 while it does.
    is_under_way: u64,
    /// 1 if it runs Node.js.
    is_node: u64,
    /// Where the bytes lie that the thread has last received of a request or an answer, and how many.
    buffer: u64,
    len: u64,
    /// What they are, until they are called back.
    received: Work,
    /// What is called back.
    work: Work,
    /// Of Node.js, the `LibuvStreamWrap` that calls back, and the async id that it had then; 0 if that is not known.
    stream: u64,
    id: u64,
}

/// The threads that run such a loop, by `pid_tgid`.
#[map]
static CALLBACKS: HashMap<u64, Callback> = HashMap::with_max_entries(EVENT_LOOPS, NO_PREALLOC);

/// Set when there is the first.
static IS_HERE: Mark = Mark::new();

/// The requests in whose callbacks TCP connections were made, by the address of their `struct sock`, until something is sent on them.
#[map]
static CONNECTED: LruHashMap<u64, Work> = LruHashMap::with_max_entries(MADE, 0);

/// A call, and the request that it was made for.
#[derive(Clone, Copy)]
#[repr(C)]
struct Asked {
    served: Served,
    exchange: u32,
    reserved: u32,
}

/// The latest calls that Node.js has made, by the identity of their connections.
#[map]
static ASKED: LruHashMap<u64, Asked> = LruHashMap::with_max_entries(CALLS, 0);

/// Processes that run Node.js, and where an object of it has its async id (`AsyncWrap::async_id_`); 0 if that is not known.
#[map]
static NODE_PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(EVENT_LOOPS, NO_PREALLOC);

/// `uv_buf_t.base` (include/uv/unix.h in libuv's sources).
const BUFFER_BASE: u64 = 0;

/// What [`find_callback`] gives if it knows nothing.
const NOTHING: u64 = 0;
/// If the request's own bytes are called back.
const OF_REQUEST: u64 = 1;
/// If an answer is, to a call for it.
pub const AFTER_ANSWER: u64 = 2;

#[inline(always)]
fn callback(pid_tgid: u64) -> Option<&'static mut Callback> {
    // SAFETY: as in `exchange::followed`; the entry belongs to this thread.
    CALLBACKS.get_ptr_mut(pid_tgid).map(|callback| unsafe { &mut *callback })
}

/// Whether any thread has ever run such a loop.
#[inline(always)]
pub fn is_here() -> bool {
    IS_HERE.is_set()
}

/// The thread begins to call back the `len` bytes that it has received into the `uv_buf_t` at `buffer`. Of Node.js, the `stream`
/// that does is known, else it is 0.
#[inline(always)]
pub fn begins(caller: Caller, stream: u64, len: u64, buffer: u64) -> Option<()> {
    const IDLE: Callback = Callback {
        is_under_way: 0,
        is_node: 0,
        buffer: 0,
        len: 0,
        received: Work::NONE,
        work: Work::NONE,
        stream: 0,
        id: 0,
    };
    let key = caller.pid_tgid();
    if CALLBACKS.get_ptr(key).is_none() {
        IS_HERE.set();
        CALLBACKS.insert(key, IDLE, 0).ok()?;
    }
    let callback = callback(key)?;
    callback.is_under_way = 1;
    callback.is_node = u64::from(stream != 0);
    let is_it = callback.len == len && Some(callback.buffer) == user::<u64>(buffer.wrapping_add(BUFFER_BASE));
    callback.work = if is_it { callback.received } else { Work::NONE };
    callback.received = Work::NONE;
    callback.stream = stream;
    callback.id = 0;
    if callback.work.answer != 0
        && let Some([id, _]) = async_ids(caller, stream)
    {
        callback.id = id;
    }
    Some(())
}

/// It has done so.
#[inline(always)]
pub fn ends(caller: Caller) -> Option<()> {
    let callback = callback(caller.pid_tgid())?;
    callback.is_under_way = 0;
    callback.work = Work::NONE;
    Some(())
}

/// The async id of Node.js's object at `object`, and the one of what it was made or used again in: numbers of floating point, as they
/// lie. `None` where it is not known where they do.
#[inline(always)]
fn async_ids(caller: Caller, object: u64) -> Option<[u64; 2]> {
    let at = NODE_PROCESSES.get_ptr(caller.tgid())?;
    // SAFETY: as in `exchange::followed`.
    let at = u64::from(unsafe { *at });
    // `AsyncWrap::trigger_async_id_` is the next one.
    if at == 0 { None } else { user(object.wrapping_add(at)) }
}

/// Whether the connection whose answer is called back was given to another call in this callback, by what the callback itself
/// does and not by a queue.
///
/// `http.Agent` gives the object a new async id then. What triggered that is 0 where promises go on, and is the number of a
/// `QueuedRequest` where a call has waited for the connection, which may be another request's.
#[inline(always)]
fn is_used_again(caller: Caller, callback: &Callback) -> bool {
    match async_ids(caller, callback.stream) {
        Some([id, trigger]) => callback.id != 0 && id != callback.id && trigger == 0,
        None => false,
    }
}

/// The thread has received something of a server's request of HTTP/1: it will call that back, or does, if it was given by a TLS
/// library. Exported, and with numbers for arguments only, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn node_receives(slot: u64, connection: u64, exchange: u64) -> u64 {
    let Some(callback) = callback(Caller::any().pid_tgid()) else { return 0 };
    let Some(moved) = Slot::numbered(slot).moved() else { return 0 };
    let served = Served { connection, exchange: exchange as u32, place: 0 };
    receives(callback, moved, Work { served, answer: 0 });
    1
}

/// The same of the answer to a client's request.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn node_is_answered(slot: u64, connection: u64, exchange: u64) -> u64 {
    let Some(callback) = callback(Caller::any().pid_tgid()) else { return 0 };
    if callback.is_node == 0 {
        return 0;
    }
    let (Some(moved), Some(asked)) = (Slot::numbered(slot).moved(), ASKED.get_ptr(connection)) else { return 0 };
    // SAFETY: as in `exchange::followed`.
    let asked = unsafe { &*asked };
    if asked.exchange != exchange as u32 {
        return 0;
    }
    receives(callback, moved, Work { served: asked.served, answer: connection });
    1
}

/// The thread has sent more on the connection with this identity, which was not answered yet: if it may be another request, which the
/// answer may be to, the answer says nothing. Exported for the same reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn node_sends_more(connection: u64) -> u64 {
    let Some(callback) = callback(Caller::any().pid_tgid()) else { return 0 };
    if callback.is_node == 0 {
        return 0;
    }
    let Some(asked) = ASKED.get_ptr(connection) else { return 0 };
    // SAFETY: as in `exchange::followed`.
    if unsafe { (*asked).served } != callback.work.served {
        let _is_there = ASKED.remove(connection);
    }
    1
}

#[inline(always)]
fn receives(callback: &mut Callback, moved: &Moved, work: Work) {
    if callback.is_under_way == 0 {
        let is_known = moved.source.kind == kind::BUFFER;
        callback.received = if is_known { work } else { Work::NONE };
        (callback.buffer, callback.len) = (moved.source.address, moved.len);
    } else if callback.work.served.connection == 0 {
        callback.work = work;
    } else if callback.work.served != work.served {
        callback.work.served = Served::SEVERAL;
    }
}

/// Finds the request in whose callback the current thread sends what the slot's call has moved on the connection with this identity, or
/// in whose callback the connection was made; it is left in the slot. Gives [`NOTHING`], [`OF_REQUEST`] or [`AFTER_ANSWER`]. The request
/// that is sent is the one with this number, or one of several if that is 0. Exported for the same reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_callback(slot: u64, connection: u64, exchange: u64) -> u64 {
    let (slot, caller) = (Slot::numbered(slot), Caller::any());
    let Some(callback) = callback(caller.pid_tgid()) else { return NOTHING };
    let (Some(moved), Some(served)) = (slot.moved(), slot.served()) else { return NOTHING };
    let socket = moved.socket.address;
    let mut work = callback.work;
    if work.answer == connection && !is_used_again(caller, callback) {
        work = Work::NONE;
    }
    if !moved.socket.is_unix()
        && let Some(made) = CONNECTED.get_ptr(socket)
    {
        if work.served.connection == 0 {
            // SAFETY: as in `exchange::followed`.
            work = unsafe { *made };
        }
        let _is_there = CONNECTED.remove(socket);
    }
    *served = work.served;
    if work.served.connection == 0 {
        return NOTHING;
    }
    if callback.is_node != 0 && exchange != 0 {
        let asked = Asked { served: work.served, exchange: exchange as u32, reserved: 0 };
        let _old_ones_make_room = ASKED.insert(connection, asked, 0);
    }
    if work.answer == 0 { OF_REQUEST } else { AFTER_ANSWER }
}

/// The thread makes a connection on the socket at `socket`; another one may have been there.
#[inline(always)]
pub fn connects(socket: u64) -> Option<()> {
    let work = match callback(Caller::any().pid_tgid()) {
        Some(callback) => callback.work,
        None => Work::NONE,
    };
    if work.served.connection != 0 {
        return CONNECTED.insert(socket, work, 0).ok();
    }
    if CONNECTED.get_ptr(socket).is_some() { CONNECTED.remove(socket).ok() } else { None }
}

/// Whether the thread runs such a loop.
#[inline(always)]
pub fn is_loop(caller: Caller) -> bool {
    CALLBACKS.get_ptr(caller.pid_tgid()).is_some()
}

/// The request whose bytes the thread calls back; zeros if there is none.
#[inline(always)]
pub fn called_back(caller: Caller) -> Served {
    match callback(caller.pid_tgid()) {
        Some(callback) => callback.work.served,
        None => Served::NONE,
    }
}

/// The thread has ended.
#[inline(always)]
pub fn thread_gone(pid_tgid: u64) {
    let _none_is_usual = CALLBACKS.remove(pid_tgid);
}

/// The process has ended, or runs another program.
#[inline(always)]
pub fn process_gone(tgid: u32) {
    let _none_is_usual = NODE_PROCESSES.remove(tgid);
}
