//! For which request a goroutine works: it has read it, or was started by one that has, or sends what one of these asks for.
//!
//! Goroutines are named by the number that the runtime gives to each, and never to another one. Where in a goroutine it
//! lies, the agent tells for each process that is written in Go. See ADR 0029.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use coati_common::event::{Connection, Served};
use coati_common::go::{Goroutine, GoroutineId, Layout};
use coati_common::limits;
use coati_common::tls::SessionId;

use crate::exchange::{self, Caller};
use crate::kread::user;
use crate::maps::NO_PREALLOC;
use crate::scratch::Slot;
use crate::sock::Socket;
use crate::{strand, tls};

/// Processes written in Go; they are marked in [`crate::maps::PROCESSES`], too.
#[map]
static GO_PROCESSES: HashMap<u32, Layout> = HashMap::with_max_entries(limits::GO_PROCESSES, NO_PREALLOC);

/// The requests that goroutines work for. Of those that have ended nothing tells, so the oldest make room.
#[map]
static WORK: LruHashMap<Goroutine, Served> = LruHashMap::with_max_entries(limits::GO_WORK, 0);

/// The requests that pooled connections of `net/http`'s client are used for, by their `persistConn`.
#[map]
static ROUND_TRIPS: LruHashMap<GoroutineId, Served> = LruHashMap::with_max_entries(limits::GO_WORK, 0);

/// `http2stream.id`. The words before it lead there: `http2responseWriter.rws`, and its `stream`.
const STREAM_ID: u64 = 8;
/// `net.netFD.pfd.Sysfd`; a `net.TCPConn` begins with the address of its `netFD`.
const SYSFD: u64 = 16;

/// Where the goroutine at `g` of the process keeps its number, and that number.
#[inline(always)]
fn number(caller: Caller, g: u64) -> Option<(Layout, Goroutine)> {
    let layout = GO_PROCESSES.get_ptr(caller.tgid())?;
    // SAFETY: as in `exchange::followed`.
    let layout = unsafe { *layout };
    let number = user::<u64>(g.wrapping_add(layout.number.into()))?;
    Some((layout, Goroutine { tgid: caller.tgid(), reserved: 0, number }))
}

/// The request that the goroutine at `g` works for; zeros if none is known.
#[inline(always)]
fn served_by(caller: Caller, g: u64) -> Option<Served> {
    let (layout, mut goroutine) = number(caller, g)?;
    if let Some(served) = WORK.get_ptr(goroutine) {
        // SAFETY: as above.
        return Some(unsafe { *served });
    }
    if layout.creator == 0 {
        return Some(Served::NONE);
    }
    goroutine.number = user::<u64>(g.wrapping_add(layout.creator.into()))?;
    // SAFETY: as above.
    Some(WORK.get_ptr(goroutine).map_or(Served::NONE, |served| unsafe { *served }))
}

/// Finds the request that the current goroutine works for; it is left in the slot.
///
/// Exported, and with a number for argument only, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_served(slot: u64) -> u64 {
    let Some(served) = Slot::numbered(slot).served() else { return 0 };
    *served = served_by(Caller::any(), strand::goroutine_address()).unwrap_or(Served::NONE);
    1
}

/// The current goroutine has read of this request. Exported for the same reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn serves(connection: u64, exchange: u64) -> u64 {
    let Some((_, goroutine)) = number(Caller::any(), strand::goroutine_address()) else { return 0 };
    if let Some(known) = WORK.get_ptr_mut(goroutine) {
        // SAFETY: as above.
        let known = unsafe { &mut *known };
        // It has read the one before as well, mostly. A new entry costs more than all else here; but what another thread may
        // read meanwhile can only be changed in one piece.
        if known.connection == connection && known.place == 0 {
            known.exchange = exchange as u32;
            return 1;
        }
    }
    let served = Served { connection, exchange: exchange as u32, place: 0 };
    let _old_ones_make_room = WORK.insert(goroutine, served, 0);
    1
}

/// The goroutine at `g` asks for something: what it works for now, it works for until it reads a request itself. Its creator may
/// go on with another one.
#[inline(always)]
pub fn asks(caller: Caller, g: u64) -> Option<Served> {
    let served = served_by(caller, g)?;
    if served.connection != 0 {
        let (_, goroutine) = number(caller, g)?;
        // `BPF_NOEXIST`: mostly it has read the request.
        let _is_there = WORK.insert(goroutine, served, 1);
    }
    Some(served)
}

/// `net/http` is about to use the pooled connection at `pooled` for what the goroutine at `g` asks for.
#[inline(always)]
pub fn round_trip(caller: Caller, g: u64, pooled: u64) -> Option<()> {
    // Also if it works for none: the connection may have been used for another.
    let served = asks(caller, g)?;
    ROUND_TRIPS.insert(GoroutineId { tgid: caller.tgid(), reserved: 0, address: pooled }, served, 0).ok()
}

/// The goroutine at `g` is about to send on that connection.
#[inline(always)]
pub fn writes(caller: Caller, g: u64, pooled: u64) -> Option<()> {
    let (_, goroutine) = number(caller, g)?;
    let served = ROUND_TRIPS.get_ptr(GoroutineId { tgid: caller.tgid(), reserved: 0, address: pooled })?;
    // SAFETY: as above.
    WORK.insert(goroutine, unsafe { *served }, 0).ok()
}

/// The goroutine at `g` is to answer a request of HTTP/2: `conn` is where the server has its `net.Conn`, `writer` the
/// `http2responseWriter`.
#[inline(always)]
pub fn handles(caller: Caller, g: u64, conn: u64, writer: u64) -> Option<()> {
    let (_, goroutine) = number(caller, g)?;
    let stream = user::<u64>(user::<u64>(writer)?)?;
    let place = user::<u32>(stream.wrapping_add(STREAM_ID))?;
    // An interface: its type, and its data.
    let object = user::<u64>(conn.wrapping_add(8))?;
    let key = match tls::key_of_session(&SessionId { tgid: caller.tgid(), reserved: 0, object }) {
        Some(key) => key,
        // In clear text: a TCP connection of package net.
        None => Socket::of_descriptor(user::<u64>(user::<u64>(object)?.wrapping_add(SYSFD))?)?.key,
    };
    let Connection { connection, exchange, .. } = *exchange::followed(key)?;
    WORK.insert(goroutine, Served { connection, exchange, place }, 0).ok()
}

/// The process has ended, or runs another program.
#[inline(always)]
pub fn process_gone(tgid: u32) {
    let _none_is_usual = GO_PROCESSES.remove(tgid);
}
