//! What happens to a connection when bytes move on it.
//!
//! A call that sends changes the state when it is entered ([`send`]), because the answer may arrive before it returns,
//! and tells when it returns ([`sent`]), because only then is known how much was sent. A call that receives does both
//! when it returns ([`received`]).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::maps::HashMap;
use aya_log_ebpf::debug;
use coati_common::event::{Connection, connection_flags, role};
use coati_common::follow::Meaning;
use coati_common::loss::Loss;
use coati_common::process;
use coati_common::sniff::Sniff;

use crate::call::Call;
pub use crate::caller::Caller;
use crate::closing::{HAS_UNIX, end_of_another};
use crate::emit;
use crate::filter;
use crate::globals;
use crate::iov::Source;
use crate::maps::{CONNECTIONS, FOLLOWING};
use crate::notes::{self, Note};
use crate::scratch::Slot;
use crate::sock::{self, Positions, Socket, stream};
use crate::tell::{self, tell_eof};
use crate::tls;

/// A call that sends takes longer only if it waits for room; then its last byte goes when it returns, not when it
/// was entered.
const BLOCKED_NS: u64 = 1_000_000;

const MSG_OOB: u64 = 0x1;
const MSG_PEEK: u64 = 0x2;
const MSG_ERRQUEUE: u64 = 0x2000;
/// A receive with one of these flags takes nothing from the stream, or nothing of it.
pub const NOT_THE_STREAM: u64 = MSG_OOB | MSG_PEEK | MSG_ERRQUEUE;

/// Fail if the entry is there; `BPF_NOEXIST`.
pub const NEW: u64 = 1;
/// It is there: `-EEXIST`.
const IS_THERE: i32 = -17;

/// The followed connection at `key`: the address of a socket, of which the filter may say that there is none, or the number of a
/// TLS session.
#[inline(always)]
pub fn followed(key: u64) -> Option<&'static mut Connection> {
    if is_socket(key) && !filter::may_be_followed(key) {
        return None;
    }
    let connection = CONNECTIONS.get_ptr_mut(key)?;
    // SAFETY: the memory of a value stays the map's. Another CPU may write to it at the same time, if two threads use one
    // connection at once: the fields of the two directions are distinct, each is written whole, and the others tell at
    // worst a count that is out by one call. If another CPU removes it meanwhile, the value may at once be that of
    // another key (`alloc_htab_elem`, kernel/bpf/hashtab.c): a call that the end of its connection overtakes so exactly
    // may be counted there.
    Some(unsafe { &mut *connection })
}

/// Whether a key is the address of a socket. The number of a session begins with that of a processor.
#[inline(always)]
const fn is_socket(key: u64) -> bool {
    key.cast_signed() < 0
}

/// Follows the connection at `key` no longer.
#[inline(always)]
pub fn forget(key: u64) -> Option<()> {
    CONNECTIONS.remove(key).ok()?;
    if is_socket(key) {
        filter::remove(key);
    }
    Some(())
}

/// The followed connection on `socket`, whose kind is known then.
#[inline(always)]
fn current(slot: Slot, socket: &mut Socket) -> Option<&'static mut Connection> {
    let connection = followed(socket.key)?;
    if socket.is_tls() {
        // Its key is a number that no other has.
        return Some(connection);
    }
    let is_unix = connection.flags & connection_flags::UNIX != 0;
    socket.recognise(is_unix);
    // Not every end of a Unix socket is seen: another may lie there now.
    if is_unix && connection.inode != sock::inode(socket.address) {
        end_of_another(slot.number(), socket.key);
        return None;
    }
    Some(connection)
}

/// Not 0 once connections are followed. Exported, so that the key of the map does not lie on the stacks of those that are deepest.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn is_following() -> u64 {
    // SAFETY: a number of the map, read whole.
    FOLLOWING.get_ptr(0).map_or(0, |on| unsafe { on.read_volatile() }.into())
}

/// Begins to follow the connection on `socket`, of a process of which this is known.
#[inline(always)]
fn follow(slot: Slot, socket: Socket, role: u8, process: u8) -> Option<&'static mut Connection> {
    if is_following() == 0 {
        return None;
    }
    // Not on the stack: it is a quarter of that, and Linux 6.1 counts the functions that are called with it.
    let connection = slot.connection()?;
    *connection = Connection::idle(emit::new_connection(), role);
    connection.process = process;
    if socket.is_unix() {
        connection.flags = connection_flags::UNIX;
        connection.inode = sock::inode(socket.address);
        HAS_UNIX.set();
    }
    if is_socket(socket.key) {
        filter::add(socket.key);
    }
    if let Err(error) = CONNECTIONS.insert(socket.key, &*connection, NEW) {
        if is_socket(socket.key) {
            filter::remove(socket.key);
        }
        if error != IS_THERE {
            emit::lost(Loss::ConnectionsFull);
            return None;
        }
        // Another thread of the same end was quicker.
        return followed(socket.key).filter(|other| other.role == role);
    }
    followed(socket.key)
}

/// What bytes are that begin at a [`Source`], and whose connection they move on.
enum Found {
    /// Nothing that is followed.
    Nothing,
    /// The bytes cannot be read now, and it depends on them.
    Unreadable,
    /// These.
    Bytes(&'static mut Connection, Meaning),
}

/// What is known of a call before its bytes are looked at.
struct Known {
    /// The connection, if it is followed.
    connection: Option<&'static mut Connection>,
    /// Of its process, if the connection is not followed; of [`process`].
    process: u8,
}

/// What is known of a call by `caller` on `socket`; `None` if it does not matter, whatever its bytes are. Most calls of a node
/// go no further, so nothing is read here that is not needed for that.
#[inline(always)]
fn known(slot: Slot, caller: Caller, socket: &mut Socket) -> Option<Known> {
    if let Some(connection) = current(slot, socket) {
        return Some(Known { connection: Some(connection), process: 0 });
    }
    let process = caller.process();
    if process & process::SKIPPED != 0 || !socket.identify() {
        return None;
    }
    Some(Known { connection: None, process })
}

/// Looks at the first of `len` bytes that move on `socket`. Where a connection begins to be followed by them, this end
/// is a `new_role`.
#[inline(always)]
fn find(slot: Slot, caller: Caller, known: Known, socket: Socket, source: &Source, len: u64, new_role: u8) -> Found {
    let Some(connection) = known.connection else {
        let Some(sniff) = source.sniff(len) else { return Found::Unreadable };
        let Some(meaning) = Meaning::first(&sniff) else {
            if socket.is_tcp()
                && let Some(record) = sniff.tls_record()
            {
                tls::record(caller, socket, record, source, len, new_role == role::CLIENT);
            }
            return Found::Nothing;
        };
        // Where the kernel encrypts, a library gives it the plaintext: that is followed where the library got it.
        if !socket.is_tls() && tls::is_in_call(caller) {
            return Found::Nothing;
        }
        return match follow(slot, socket, new_role, known.process) {
            Some(connection) => Found::Bytes(connection, meaning),
            None => Found::Nothing,
        };
    };
    let towards = if new_role == role::CLIENT { connection.sends() } else { connection.receives() };
    let sniff = if connection.must_sniff(towards) { source.sniff(len) } else { Some(Sniff::default()) };
    let Some(sniff) = sniff else { return Found::Unreadable };
    let meaning = connection.meaning(towards, &sniff);
    if meaning.begins() {
        let process = caller.process();
        if process & process::SKIPPED != 0 {
            return Found::Nothing;
        }
        connection.process = process;
    }
    Found::Bytes(connection, meaning)
}

/// A thread has entered a call that sends through `socket`, from where `source` says; `None` if that is no socket which matters.
#[inline(always)]
pub fn send(slot: Slot, caller: Caller, socket: Option<Socket>, source: impl FnOnce() -> Option<Source>) -> Option<()> {
    notes::leaves::<Call>(caller.pid_tgid());
    enter(slot, caller, socket?, source, || notes::enters(caller.pid_tgid()))
}

/// The same on a TLS session by a thread or a goroutine, which `key` names; the call is noted in `calls`.
#[inline(always)]
pub fn send_by<K>(
    slot: Slot,
    caller: Caller,
    socket: Socket,
    source: Source,
    calls: &HashMap<K, Note<Call>>,
    key: &K,
) -> Option<()> {
    enter(slot, caller, socket, || Some(source), || notes::enters_by(calls, key, |_| ()))
}

#[inline(always)]
fn enter(
    slot: Slot,
    caller: Caller,
    socket: Socket,
    source: impl FnOnce() -> Option<Source>,
    note: impl FnOnce() -> Option<&'static mut Note<Call>>,
) -> Option<()> {
    let mut socket = socket;
    let known = known(slot, caller, &mut socket)?;
    let source = source()?;
    let (connection, meaning) = match find(slot, caller, known, socket, &source, u64::MAX, role::CLIENT) {
        Found::Nothing => return None,
        Found::Unreadable => (None, 0),
        Found::Bytes(connection, meaning) => (Some(connection), meaning as u32),
    };
    let call = &mut note()?.of;
    call.socket = socket;
    call.time_ns = now();
    call.source = source;
    call.meaning = meaning;
    // Only a request has a place.
    call.positions = Positions::UNKNOWN;
    if Meaning::from_u32(meaning).is_none_or(Meaning::begins) {
        call.positions = socket.positions();
    }
    if let (Some(connection), Some(meaning)) = (connection, Meaning::from_u32(meaning)) {
        call.before = *connection;
        connection.enter(meaning, call.time_ns);
    }
    Some(())
}

/// The call that this thread was in returned `result`. What kind of stream it was on, one of [`stream`], is known to each hook.
#[inline(always)]
pub fn sent<C: EbpfContext>(ctx: &C, slot: Slot, result: i64, kind: u32) -> Option<()> {
    let caller = Caller::any();
    let note = notes::under_way::<Call>(caller.pid_tgid())?;
    returned(ctx, slot, caller, &mut note.of, result, kind);
    note.end();
    Some(())
}

/// The same of the call on a TLS session with this key, one of `calls`; it is forgotten.
#[inline(always)]
pub fn sent_by<C: EbpfContext, K>(
    ctx: &C,
    slot: Slot,
    result: i64,
    calls: &HashMap<K, Note<Call>>,
    key: &K,
) -> Option<()> {
    let note = notes::under_way_by(calls, key)?;
    returned(ctx, slot, Caller::any(), &mut note.of, result, stream::TLS);
    // Threads are few, and end; what else has calls does not tell.
    calls.remove(key).ok()
}

#[inline(always)]
fn returned<C: EbpfContext>(ctx: &C, slot: Slot, caller: Caller, call: &mut Call, result: i64, kind: u32) {
    if result > 0 {
        finish(ctx, slot, caller, call, result as u64, kind);
    } else {
        take_back(call);
    }
}

#[inline(always)]
fn finish<C: EbpfContext>(ctx: &C, slot: Slot, caller: Caller, call: &mut Call, len: u64, kind: u32) -> Option<()> {
    let (key, address) = (call.socket.key, call.socket.address);
    let mut socket = match kind {
        stream::TLS => Socket::tls(key, address),
        stream::TCP => Socket::tcp(key),
        stream::UNIX => Socket::unix(key),
        _ if call.socket.is_unix() => Socket::unix(key),
        _ => Socket::tcp(key),
    };
    if call.meaning == 0 {
        // The kernel has read the bytes in the meantime, so now they are there.
        let known = known(slot, caller, &mut socket)?;
        match find(slot, caller, known, socket, &call.source, len, role::CLIENT) {
            Found::Nothing => return None,
            Found::Unreadable => {
                emit::lost(Loss::PayloadUnreadable);
                return None;
            }
            Found::Bytes(connection, meaning) => {
                call.before = *connection;
                call.meaning = meaning as u32;
                connection.enter(meaning, call.time_ns);
            }
        }
    }
    let meaning = Meaning::from_u32(call.meaning)?;
    let exchange = call.before.exchange.wrapping_add(u32::from(meaning.begins()));
    let is_same = |it: &&mut Connection| it.connection == call.before.connection && it.exchange == exchange;
    let connection = match followed(key).filter(is_same) {
        Some(connection) => connection,
        // Closed while the call ran, or another thread is with the next request: the bytes were taken all the same.
        None => {
            let connection = slot.connection()?;
            *connection = call.before;
            connection.enter(meaning, call.time_ns);
            connection
        }
    };
    let end_ns = now();
    let last_ns = if end_ns - call.time_ns > BLOCKED_NS { end_ns } else { call.time_ns };
    connection.count(meaning, len, call.time_ns, last_ns);
    log_begin(ctx, caller, connection, meaning, len);
    if !tell::concerns(connection, meaning) {
        return None;
    }
    let moved = slot.moved()?;
    moved.caller = caller;
    moved.socket = socket;
    moved.source = call.source;
    moved.previous = call.before.totals;
    moved.len = len;
    moved.time_ns = call.time_ns;
    moved.meaning = meaning as u32;
    moved.client_position = call.positions.send;
    moved.server_position = call.positions.receive;
    moved.positions_known = call.positions.known;
    tell::tell(slot, connection, meaning);
    Some(())
}

/// Nothing was sent: undoes what [`send`] did, unless something else has happened on the connection since.
#[inline(always)]
fn take_back(call: &Call) {
    if call.meaning == 0 {
        return;
    }
    let Some(connection) = followed(call.socket.key) else { return };
    if connection.connection != call.before.connection || connection.last_ns != call.time_ns {
        return;
    }
    if call.before.exchange == 0 {
        let _gone_is_fine = forget(call.socket.key);
    } else {
        let ends = connection.flags & (connection_flags::RESET | connection_flags::ENDED);
        *connection = call.before;
        connection.flags |= ends;
    }
}

/// A call that receives from `socket` returned `len`; the bytes are where `source` says.
#[inline(always)]
pub fn received<C: EbpfContext>(
    ctx: &C,
    slot: Slot,
    caller: Caller,
    socket: Socket,
    source: impl FnOnce() -> Option<Source>,
    len: u64,
) -> Option<()> {
    if len == 0 {
        return tell_eof(slot, caller, socket.key, followed(socket.key)?);
    }
    let mut socket = socket;
    let known = known(slot, caller, &mut socket)?;
    let source = source()?;
    let (connection, meaning) = match find(slot, caller, known, socket, &source, len, role::SERVER) {
        Found::Nothing => return None,
        Found::Unreadable => {
            emit::lost(Loss::PayloadUnreadable);
            return None;
        }
        Found::Bytes(connection, meaning) => (connection, meaning),
    };

    let previous = connection.totals;
    let time_ns = now();
    connection.enter(meaning, time_ns);
    connection.count(meaning, len, time_ns, time_ns);
    let Positions { send, receive, known } =
        if meaning.begins() { socket.positions_before(len) } else { Positions::UNKNOWN };
    log_begin(ctx, caller, connection, meaning, len);
    if !tell::concerns(connection, meaning) {
        return None;
    }
    let moved = slot.moved()?;
    moved.caller = caller;
    moved.socket = socket;
    moved.source = source;
    moved.previous = previous;
    moved.len = len;
    moved.time_ns = time_ns;
    moved.meaning = meaning as u32;
    moved.client_position = receive;
    moved.server_position = send;
    moved.positions_known = known;
    tell::tell(slot, connection, meaning);
    Some(())
}

#[inline(always)]
fn log_begin<C: EbpfContext>(ctx: &C, caller: Caller, connection: &Connection, meaning: Meaning, len: u64) {
    if globals::debug() && meaning.begins() {
        let (tgid, role, exchange) = (caller.tgid(), connection.role, connection.exchange);
        debug!(ctx, "begin: process {} role {} exchange {} bytes {}", tgid, role, exchange, len);
    }
}

/// The connection on the socket at `socket`, under TLS or not, and its key.
#[inline(always)]
pub fn on(socket: u64) -> Option<(u64, &'static mut Connection)> {
    if let Some(connection) = followed(socket) {
        return Some((socket, connection));
    }
    let key = tls::key_of(socket)?;
    Some((key, followed(key)?))
}

/// The time, nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no requirements.
    unsafe { bpf_ktime_get_ns() }
}
