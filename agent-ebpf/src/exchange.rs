//! What happens to a connection when bytes move on it.
//!
//! A call that sends changes the state when it is entered ([`send`]), because the answer may arrive before it returns,
//! and tells when it returns ([`sent`]), because only then is known how much was sent. A call that receives does both
//! when it returns ([`received`]).

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::maps::HashMap;
use aya_log_ebpf::debug;
use coati_common::event::end_reason::{CLOSED, RESET};
use coati_common::event::{Connection, End, Kind, connection_flags, role};
use coati_common::follow::Meaning;
use coati_common::loss::Loss;
use coati_common::sniff::Sniff;

use crate::emit;
use crate::globals;
use crate::iov::Source;
use crate::maps::{CALLS, CONNECTIONS, SKIPPED};
use crate::scratch::Slot;
use crate::sock::{self, Positions, Socket, stream};
use crate::tail;
use crate::tell::{tell, tell_eof};
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
const NEW: u64 = 1;

/// The send that a thread is in, or was in last: what is kept of one is written over by the next, because to make and to
/// remove an entry of the map costs more than all else that a send does.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Call {
    /// 1 until the call returns.
    pub is_under_way: u64,
    /// Through what it sends.
    pub socket: Socket,
    /// When the call was entered.
    pub time_ns: u64,
    /// What it sends from.
    pub source: Source,
    /// The connection as it was before.
    pub before: Connection,
    /// What its bytes are, a [`Meaning`]; 0 if that is known only when it returns.
    pub meaning: u32,
    /// Where the streams stood.
    pub positions: Positions,
}

/// The calling thread.
#[derive(Clone, Copy)]
pub struct Caller {
    pid_tgid: u64,
}

impl Caller {
    /// The current thread, if its process may be watched.
    #[inline(always)]
    pub fn watched() -> Option<Self> {
        let caller = Self::any();
        (caller.tgid() != globals::OWN_TGID.load()).then_some(caller)
    }

    /// The current thread, whatever it is.
    #[inline(always)]
    pub fn any() -> Self {
        Self { pid_tgid: bpf_get_current_pid_tgid() }
    }

    #[inline(always)]
    pub const fn pid_tgid(self) -> u64 {
        self.pid_tgid
    }

    #[inline(always)]
    pub const fn tgid(self) -> u32 {
        (self.pid_tgid >> 32) as u32
    }

    #[inline(always)]
    pub const fn tid(self) -> u32 {
        self.pid_tgid as u32
    }

    /// Asked only of what is not followed, and when an exchange is about to begin: every other call does without the look-up.
    #[inline(always)]
    fn is_skipped(self) -> bool {
        SKIPPED.get_ptr(self.tgid()).is_some()
    }
}

/// The followed connection at `socket`.
#[inline(always)]
pub fn followed(socket: u64) -> Option<&'static mut Connection> {
    let connection = CONNECTIONS.get_ptr_mut(socket)?;
    // SAFETY: a value of the map lives at least as long as the program runs. Another CPU may write to it at the same
    // time, if two threads use one connection at once: the fields of the two directions are distinct, each is written
    // whole, and the others tell at worst a count that is out by one call.
    Some(unsafe { &mut *connection })
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

/// The connection at `key` is over, at a time that is not known.
///
/// Exported, so that the verifier checks it once; and its record lies in the slot, so that it does not count as stack of
/// every hook.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn end_of_another(slot: u64, key: u64) -> u64 {
    let (Some(connection), Some(record)) = (followed(key), Slot::numbered(slot).record::<End>()) else { return 0 };
    if connection.finish() {
        record.head = end(connection, CLOSED);
        emit::plain(&record.head, Loss::RingFullEnd);
    }
    let _gone_is_fine = CONNECTIONS.remove(key);
    1
}

/// Begins to follow the connection on `socket`.
#[inline(always)]
fn follow(slot: Slot, socket: Socket, role: u8) -> Option<&'static mut Connection> {
    // Not on the stack: it is a quarter of that, and Linux 6.1 counts the functions that are called with it.
    let connection = slot.connection()?;
    *connection = Connection::idle(emit::new_connection(), role);
    if socket.is_unix() {
        connection.flags = connection_flags::UNIX;
        connection.inode = sock::inode(socket.address);
    }
    if CONNECTIONS.insert(socket.key, &*connection, NEW).is_err() {
        emit::lost(Loss::ConnectionsFull);
        return None;
    }
    followed(socket.key)
}

/// What bytes are that begin at `source`, and whose connection they move on.
enum Found {
    /// Nothing that is followed.
    Nothing,
    /// The bytes cannot be read now, and it depends on them.
    Unreadable,
    /// These.
    Bytes(&'static mut Connection, Meaning),
}

/// Looks at the first of `len` bytes that move on `socket`. Where a connection begins to be followed by them, this end
/// is a `new_role`.
#[inline(always)]
fn find(slot: Slot, caller: Caller, socket: &mut Socket, source: &Source, len: u64, new_role: u8) -> Found {
    let Some(connection) = current(slot, socket) else {
        if caller.is_skipped() || !socket.identify() {
            return Found::Nothing;
        }
        let Some(sniff) = source.sniff(len) else { return Found::Unreadable };
        let Some(meaning) = Meaning::first(&sniff) else {
            if socket.is_tcp()
                && let Some(record) = sniff.tls_record()
            {
                tls::record(caller, *socket, record, source, len, new_role == role::CLIENT);
            }
            return Found::Nothing;
        };
        // Where the kernel encrypts, a library gives it the plaintext: that is followed where the library got it.
        if !socket.is_tls() && tls::is_in_call(caller) {
            return Found::Nothing;
        }
        return match follow(slot, *socket, new_role) {
            Some(connection) => Found::Bytes(connection, meaning),
            None => Found::Nothing,
        };
    };
    let towards = if new_role == role::CLIENT { connection.sends() } else { connection.receives() };
    let sniff = if connection.must_sniff(towards) { source.sniff(len) } else { Some(Sniff::default()) };
    let Some(sniff) = sniff else { return Found::Unreadable };
    let meaning = connection.meaning(towards, &sniff);
    if meaning.begins() && caller.is_skipped() {
        return Found::Nothing;
    }
    Found::Bytes(connection, meaning)
}

/// A thread has entered a call that sends from `source` through `socket`.
#[inline(always)]
pub fn send(slot: Slot, caller: Caller, socket: Socket, source: Source) -> Option<()> {
    send_by(slot, caller, socket, source, &CALLS, &caller.pid_tgid())
}

/// The same of a thread or a goroutine, which `key` names; the call is remembered in `calls`.
#[inline(always)]
pub fn send_by<K>(
    slot: Slot,
    caller: Caller,
    socket: Socket,
    source: Source,
    calls: &HashMap<K, Call>,
    key: &K,
) -> Option<()> {
    let mut socket = socket;
    let (connection, meaning) = match find(slot, caller, &mut socket, &source, u64::MAX, role::CLIENT) {
        Found::Nothing => return None,
        Found::Unreadable => (None, 0),
        Found::Bytes(connection, meaning) => (Some(connection), meaning as u32),
    };
    let call = call_of(slot, calls, key)?;
    call.is_under_way = 1;
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

/// The place for the call with this key, which is entered; `None`, and counted, if there is no room.
#[inline(always)]
fn call_of<K>(slot: Slot, calls: &HashMap<K, Call>, key: &K) -> Option<&'static mut Call> {
    let call = match calls.get_ptr_mut(key) {
        Some(call) => call,
        None => {
            // Not on the stack, as in `follow`.
            let new = slot.call()?;
            new.is_under_way = 0;
            if calls.insert(key, &*new, NEW).is_err() {
                emit::lost(Loss::CallsFull);
                return None;
            }
            calls.get_ptr_mut(key)?
        }
    };
    // SAFETY: as in `followed`; the entry belongs to this thread.
    let call = unsafe { &mut *call };
    if call.is_under_way != 0 {
        // The kernel left out our program when that returned.
        emit::lost(Loss::ReturnMissed);
    }
    Some(call)
}

/// The call that this thread was in returned `result`. What kind of stream it was on, one of [`stream`], is known to each hook.
#[inline(always)]
pub fn sent<C: EbpfContext>(ctx: &C, slot: Slot, result: i64, kind: u32) -> Option<()> {
    sent_by(ctx, slot, result, &CALLS, &Caller::any().pid_tgid(), kind)
}

/// The same of the call with this key, one of `calls`.
#[inline(always)]
pub fn sent_by<C: EbpfContext, K>(
    ctx: &C,
    slot: Slot,
    result: i64,
    calls: &HashMap<K, Call>,
    key: &K,
    kind: u32,
) -> Option<()> {
    let call = calls.get_ptr_mut(key)?;
    // SAFETY: as in `followed`; the entry belongs to this thread.
    let call = unsafe { &mut *call };
    if call.is_under_way == 0 {
        return None;
    }
    call.is_under_way = 0;
    if result > 0 {
        finish(ctx, slot, Caller::any(), call, result as u64, kind);
    } else {
        take_back(call);
    }
    // Threads are few, and end; what else has calls does not tell.
    if kind == stream::TLS { calls.remove(key).ok() } else { Some(()) }
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
        match find(slot, caller, &mut socket, &call.source, len, role::CLIENT) {
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
    let exchange = call.before.exchange + u32::from(meaning.begins());
    let is_same = |it: &&mut Connection| it.connection == call.before.connection && it.exchange == exchange;
    let mut is_gone = false;
    let connection = match followed(key).filter(is_same) {
        Some(connection) => connection,
        // Closed while the call ran, or another thread is with the next request: the bytes were taken all the same.
        None => {
            let connection = slot.connection()?;
            *connection = call.before;
            connection.enter(meaning, call.time_ns);
            is_gone = true;
            connection
        }
    };
    let end_ns = now();
    let last_ns = if end_ns - call.time_ns > BLOCKED_NS { end_ns } else { call.time_ns };
    connection.count(meaning, len, call.time_ns, last_ns);
    log_begin(ctx, caller, connection, meaning, len);
    let moved = slot.moved()?;
    moved.socket = socket;
    moved.source = call.source;
    moved.previous = call.before.totals;
    moved.len = len;
    moved.time_ns = call.time_ns;
    moved.meaning = meaning as u32;
    moved.client_position = call.positions.send;
    moved.server_position = call.positions.receive;
    moved.positions_known = call.positions.known;
    moved.is_gone = u32::from(is_gone);
    tell(slot, connection, meaning);
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
        let _gone_is_fine = CONNECTIONS.remove(call.socket.key);
    } else {
        *connection = call.before;
    }
}

/// A call that receives from `socket` into `source` returned `len`.
#[inline(always)]
pub fn received<C: EbpfContext>(
    ctx: &C,
    slot: Slot,
    caller: Caller,
    socket: Socket,
    source: Source,
    len: u64,
) -> Option<()> {
    if len == 0 {
        return tell_eof(slot, caller, socket.key, followed(socket.key)?);
    }
    let mut socket = socket;
    let (connection, meaning) = match find(slot, caller, &mut socket, &source, len, role::SERVER) {
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
    let moved = slot.moved()?;
    moved.socket = socket;
    moved.source = source;
    moved.previous = previous;
    moved.len = len;
    moved.time_ns = time_ns;
    moved.meaning = meaning as u32;
    moved.client_position = receive;
    moved.server_position = send;
    moved.positions_known = known;
    moved.is_gone = 0;
    tell(slot, connection, meaning);
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

/// This end of the connection at `socket` was closed: nothing of a server's response is to come. A client may still
/// receive its answer.
#[inline(always)]
pub fn closed_here(socket: u64) -> Option<()> {
    let (key, connection) = on(socket)?;
    if connection.role == role::SERVER {
        tell_end(key, connection, CLOSED);
    }
    Some(())
}

/// The connection at `socket` is over, in order or by a reset.
#[inline(always)]
pub fn disconnected(socket: u64, by_reset: bool) -> Option<()> {
    let (key, connection) = on(socket)?;
    // What has arrived can still be read, or may be with the TLS library: then the response ends with the socket.
    if connection.role == role::CLIENT && (key != socket || sock::has_unread(socket)) {
        if by_reset {
            connection.flags |= connection_flags::RESET;
        }
        return None;
    }
    tell_end(key, connection, if by_reset { RESET } else { CLOSED });
    CONNECTIONS.remove(key).ok()
}

/// The socket at `socket` is gone, or will be used for another connection.
#[inline(always)]
pub fn gone(socket: u64) -> Option<()> {
    if let Some((key, _)) = on(socket) {
        session_gone(key);
    }
    tls::socket_gone(socket)
}

/// The only descriptor of the socket is being closed. The end of a TCP connection is told of elsewhere.
#[inline(always)]
pub fn closing(socket: Socket) -> Option<()> {
    let is_unix = followed(socket.key)?.flags & connection_flags::UNIX != 0;
    if is_unix { session_gone(socket.key) } else { None }
}

/// The connection with a key is over.
#[inline(always)]
pub fn session_gone(key: u64) -> Option<()> {
    let connection = followed(key)?;
    tell_end(key, connection, if connection.flags & connection_flags::RESET != 0 { RESET } else { CLOSED });
    CONNECTIONS.remove(key).ok()
}

#[inline(always)]
fn tell_end(key: u64, connection: &mut Connection, reason: u32) {
    if !connection.finish() {
        return;
    }
    tail::over(key, connection, now());
    // On the stack: this may run in an interrupt in the middle of another program (see `scratch`).
    let record = end(connection, reason);
    emit::plain(&record, Loss::RingFullEnd);
}

#[inline(always)]
fn end(connection: &Connection, reason: u32) -> End {
    End {
        header: emit::header(Kind::End, now()),
        connection: connection.connection,
        exchange: connection.exchange,
        reason,
        totals: connection.totals,
    }
}

/// The time, nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: the helper has no requirements.
    unsafe { bpf_ktime_get_ns() }
}
