//! For which request the thread of an event loop sends, where it answers many at once: as what it runs keeps that. See ADR 0031.

use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use coati_common::event::{Connection, Served, phase, role};
use coati_common::limits::{CHUNK_RECORDS, EVENT_LOOPS};

use crate::exchange::{self, Caller};
use crate::globals::Mark;
use crate::kread::user;
use crate::maps::NO_PREALLOC;
use crate::scratch::Slot;
use crate::sock::{self, Socket};

/// What a thread is about to send.
#[derive(Clone, Copy)]
#[repr(C)]
struct Turn {
    /// Address of the `struct sock` on which it sends; 0 if it has done so.
    socket: u64,
    /// Inode number of that: another may lie there when the thread sends.
    inode: u32,
    reserved: u32,
    /// The request for which it does.
    served: Served,
}

/// The threads of event loops, by `pid_tgid`.
#[map]
static TURNS: HashMap<u64, Turn> = HashMap::with_max_entries(EVENT_LOOPS, NO_PREALLOC);

/// Set when there is the first.
static IS_HERE: Mark = Mark::new();

/// Processes that run nginx, and where a request has the address of its HTTP/2 stream there (`ngx_http_request_t.stream`); 0 if
/// that is not known.
#[map]
static NGINX_PROCESSES: HashMap<u32, u32> = HashMap::with_max_entries(EVENT_LOOPS, NO_PREALLOC);

/// `ngx_chain_writer_ctx_t.connection` (src/core/ngx_buf.h in nginx's sources).
const WRITER_CONNECTION: u64 = 16;
/// `ngx_connection_t.data`: what is sent is a part of that request's (src/core/ngx_connection.h).
const CONNECTION_DATA: u64 = 0;
/// `ngx_connection_t.fd`.
const CONNECTION_FD: u64 = 24;
/// `ngx_http_request_t.signature`, and what it is (src/http/ngx_http_request.h).
const REQUEST_SIGNATURE: u64 = 0;
const IS_REQUEST: u32 = u32::from_le_bytes(*b"HTTP");
/// `ngx_http_request_t.connection`: to the client.
const REQUEST_CONNECTION: u64 = 8;
/// `ngx_http_v2_stream_t.request` and `.node`, and the number that the latter begins with (src/http/v2/ngx_http_v2.h).
const STREAM_REQUEST: u64 = 0;
const STREAM_NODE: u64 = 16;

/// nginx is about to send, to an upstream server, what the writer at `writer` has got.
#[inline(always)]
pub fn nginx_sends(caller: Caller, writer: u64) -> Option<()> {
    let upstream = user::<u64>(writer.wrapping_add(WRITER_CONNECTION))?;
    let request = user::<u64>(upstream.wrapping_add(CONNECTION_DATA))?;
    if user::<u32>(request.wrapping_add(REQUEST_SIGNATURE))? != IS_REQUEST {
        return None;
    }
    let socket = socket(upstream)?.address;
    let served = nginx_serves(caller, request).unwrap_or(Served::NONE);
    let turn = Turn { socket, inode: sock::inode(socket), reserved: 0, served };
    IS_HERE.set();
    TURNS.insert(caller.pid_tgid(), turn, 0).ok()
}

/// Whether any thread has ever had a turn.
#[inline(always)]
pub fn is_here() -> bool {
    IS_HERE.is_set()
}

/// What nginx's request at `request` is to us, if that is known.
#[inline(always)]
fn nginx_serves(caller: Caller, request: u64) -> Option<Served> {
    let client = user::<u64>(request.wrapping_add(REQUEST_CONNECTION))?;
    let connection = exchange::on(socket(client)?.address)?.1;
    if connection.role != role::SERVER {
        return None;
    }
    let place =
        if connection.phase == phase::HTTP2 { nginx_stream(caller, request, client)? } else { only(connection)? };
    Some(Served { connection: connection.connection, exchange: connection.exchange, place })
}

/// The socket of nginx's connection at `connection`; an HTTP/2 stream has a copy of its connection.
#[inline(always)]
fn socket(connection: u64) -> Option<Socket> {
    Socket::of_descriptor(user::<u32>(connection.wrapping_add(CONNECTION_FD))?.into())
}

/// The stream of nginx's request at `request`, whose client is at `client`. A subrequest has that of its main request.
#[inline(always)]
fn nginx_stream(caller: Caller, request: u64, client: u64) -> Option<u32> {
    let at = NGINX_PROCESSES.get_ptr(caller.tgid())?;
    // SAFETY: as in `exchange::followed`.
    let at = u64::from(unsafe { *at });
    if at == 0 {
        return None;
    }
    let stream = user::<u64>(request.wrapping_add(at))?;
    let main = user::<u64>(stream.wrapping_add(STREAM_REQUEST))?;
    // It is a stream, then, and no other has this copy.
    if user::<u64>(main.wrapping_add(REQUEST_CONNECTION))? != client {
        return None;
    }
    user::<u32>(user::<u64>(stream.wrapping_add(STREAM_NODE))?)
}

/// The place of the request among those of HTTP/1 that came with one call, if it is the first. While its answer is told to the
/// end, user space knows whether that is over, and so that it is another one.
#[inline(always)]
fn only(connection: &Connection) -> Option<u32> {
    if connection.totals.response_chunks > CHUNK_RECORDS { None } else { Some(0) }
}

/// Finds the request for which the current thread sends what the slot's call has moved; it is left in the slot. 0 if that is not
/// known here.
///
/// Exported, and with a number for argument only, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_turn(slot: u64) -> u64 {
    let slot = Slot::numbered(slot);
    let Some(turn) = TURNS.get_ptr_mut(Caller::any().pid_tgid()) else { return 0 };
    // SAFETY: as in `exchange::followed`; the entry belongs to this thread.
    let turn = unsafe { &mut *turn };
    let (Some(moved), Some(served)) = (slot.moved(), slot.served()) else { return 0 };
    let socket = moved.socket.address;
    if socket == 0 || turn.socket != socket || turn.inode != sock::inode(socket) {
        return 0;
    }
    turn.socket = 0;
    *served = turn.served;
    1
}

/// Whether the process runs nginx.
#[inline(always)]
pub fn is_nginx(caller: Caller) -> bool {
    NGINX_PROCESSES.get_ptr(caller.tgid()).is_some()
}

/// The thread has ended.
#[inline(always)]
pub fn thread_gone(pid_tgid: u64) {
    let _none_is_usual = TURNS.remove(pid_tgid);
}

/// The process has ended, or runs another program.
#[inline(always)]
pub fn process_gone(tgid: u32) {
    let _none_is_usual = NGINX_PROCESSES.remove(tgid);
}
