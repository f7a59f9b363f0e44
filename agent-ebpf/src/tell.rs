//! The records that user space gets of calls.

use coati_common::event::{
    Begin, Connection, Data, Frames, Kind, Served, Totals, Unix, begin_flags, data_flags, direction, frame_state,
    phase, role,
};
use coati_common::follow::Meaning;
use coati_common::loss::Loss;
use coati_common::process;

use crate::emit;
use crate::event_loop;
use crate::exchange::{Caller, now};
use crate::frames::{self, Told};
use crate::goroutine;
use crate::iov::Source;
use crate::node;
use crate::python;
use crate::scratch::Slot;
use crate::sock::{self, Socket};
use crate::tail;
use crate::uvloop;

/// What one call moved.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Moved {
    pub caller: Caller,
    pub socket: Socket,
    pub source: Source,
    /// What was counted before.
    pub previous: Totals,
    pub len: u64,
    pub time_ns: u64,
    /// A [`Meaning`].
    pub meaning: u32,
    pub client_position: u32,
    pub server_position: u32,
    pub positions_known: u32,
}

/// Whether anything is to be done about bytes that were counted on `connection`: not about the body of a request.
#[inline(always)]
pub fn concerns(connection: &Connection, meaning: Meaning) -> bool {
    !matches!(meaning, Meaning::Request)
        || connection.phase == phase::HTTP2
        || connection.tells(meaning)
        || node::is_here()
}

/// Writes the record that user space gets of what the slot's call has moved on `connection`, if it gets one.
///
/// What writes it is exported, and has a number and what can be checked by its type for arguments, so that the verifier checks it
/// once, and not for each of the ways that lead here; and there are several, because
/// those that are in each other have 512 bytes of stack together (`check_max_stack_depth`, kernel/bpf/verifier.c).
#[inline(always)]
pub fn tell(slot: Slot, connection: &mut Connection, meaning: Meaning) {
    let slot = slot.number();
    if meaning.begins() {
        if begin_moved(slot, connection) != 0 {
            begin_served(slot, connection.process.into());
            begin_placed(slot);
        }
    } else if connection.phase == phase::HTTP2 {
        frames_moved(slot, connection);
    } else {
        data_moved(slot, connection);
    }
}

/// A request has begun: makes its record, but for where it was sent and what for.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn begin_moved(slot: u64, connection: *mut Connection) -> u64 {
    let slot = Slot::numbered(slot);
    let Some((moved, connection, meaning)) = of(slot, connection) else { return 0 };
    u64::from(tell_begin(slot, connection, moved, meaning).is_some())
}

/// Frames of HTTP/2.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn frames_moved(slot: u64, connection: *mut Connection) -> u64 {
    let slot = Slot::numbered(slot);
    let Some((moved, connection, meaning)) = of(slot, connection) else { return 0 };
    u64::from(tell_frames(slot, connection, moved, meaning).is_some())
}

/// Bytes of HTTP/1 and of what it was upgraded to.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn data_moved(slot: u64, connection: *mut Connection) -> u64 {
    let slot = Slot::numbered(slot);
    let Some((moved, connection, meaning)) = of(slot, connection) else { return 0 };
    u64::from(tell_data(slot, connection, moved, meaning).is_some())
}

#[inline(always)]
fn of(slot: Slot, connection: *mut Connection) -> Option<(&'static Moved, &'static mut Connection, Meaning)> {
    let moved = slot.moved()?;
    // SAFETY: as in `exchange::followed`; the verifier checks that every caller has one to give.
    let connection = unsafe { connection.as_mut() }?;
    Some((moved, connection, Meaning::from_u32(moved.meaning)?))
}

#[inline(always)]
fn tell_data(slot: Slot, connection: &mut Connection, moved: &Moved, meaning: Meaning) -> Option<()> {
    let source = &moved.source;
    let is_request = meaning.direction() == direction::REQUEST;
    let is_served = is_request && connection.role == role::SERVER;
    if connection.phase != phase::UPGRADED && node::is_here() {
        if is_served {
            node::node_receives(slot.number(), connection.connection, connection.exchange.into());
        } else if is_request {
            node::node_sends_more(connection.connection);
        } else if connection.role == role::CLIENT {
            node::node_is_answered(slot.number(), connection.connection, connection.exchange.into());
        }
    }
    let tells = connection.tells(meaning);
    if !tells && meaning.direction() == direction::REQUEST {
        return None;
    }
    let room = if tells { connection.room(meaning) as u64 } else { 0 };
    if meaning.direction() == direction::RESPONSE {
        let (socket, len, time_ns) = (moved.socket.key, moved.len, moved.time_ns);
        let carried = if tells { Some(room) } else { None };
        tail::take(slot, connection, &tail::Moved { socket, len, time_ns, source, carried });
    }
    let copied = source.copy(slot, moved.len, room);
    connection.keep_tail(meaning, moved.len, copied.last);
    if !tells {
        tail::told_to_the_end(moved.socket.key, connection, moved.time_ns);
        return None;
    }
    connection.copied(meaning, copied.len as u16);
    let mut flags = meaning.flags();
    if !copied.readable {
        flags |= data_flags::UNREADABLE;
        emit::lost(Loss::PayloadUnreadable);
    }
    if is_served {
        // Go's server reads the first byte in a goroutine of its own.
        serves(connection.connection, connection.exchange, connection.process, python::context_in(connection.process));
    }
    let record = slot.record::<Data>()?;
    let head = &mut record.head;
    begin_data(head, connection, moved, meaning.direction());
    head.payload_len = copied.len as u16;
    head.flags = flags;
    head.last = copied.last;
    head.served = Served::NONE;
    emit::record(record, copied.len, Loss::RingFullData);
    Some(())
}

/// Fills in what every such record has. In place: on the stack it would be most of that.
#[inline(always)]
fn begin_data(head: &mut Data, connection: &Connection, moved: &Moved, direction: u8) {
    head.header = emit::header(Kind::Data, moved.time_ns);
    head.connection = connection.connection;
    head.exchange = connection.exchange;
    head.tgid = moved.caller.tgid();
    head.tid = moved.caller.tid();
    head.direction = direction;
    head.len = moved.len;
    head.totals = connection.totals;
}

#[inline(always)]
fn tell_begin(slot: Slot, connection: &mut Connection, moved: &Moved, meaning: Meaning) -> Option<()> {
    let source = &moved.source;
    let is_http2 = connection.phase == phase::HTTP2;
    let (len, readable, last) = if is_http2 {
        let [requests, _] = &mut connection.frames;
        let mark = requests.mark();
        let Told { len, readable, .. } = frames::copy(source, slot, moved.len, requests);
        (len, readable, mark)
    } else {
        let copied = source.copy(slot, moved.len, connection.room(meaning) as u64);
        connection.copied(meaning, copied.len as u16);
        tail::mark(connection, slot.payload()?, copied.len);
        (copied.len, copied.readable, copied.last)
    };
    if !readable {
        emit::lost(Loss::PayloadUnreadable);
    }
    if moved.socket.is_unix() && connection.exchange == 1 {
        tell_unix(slot.number(), moved.socket.address, connection.connection, moved.time_ns);
    }
    if connection.netns == 0 {
        connection.netns = sock::network_namespace(moved.socket.address).unwrap_or_default();
    }
    let record = slot.record::<Begin>()?;
    let head = &mut record.head;
    head.netns = connection.netns;
    head.served = Served::NONE;
    head.header = emit::header(if is_http2 { Kind::Http2 } else { Kind::Begin }, moved.time_ns);
    head.connection = connection.connection;
    head.socket = moved.socket.key;
    head.exchange = connection.exchange;
    head.tgid = moved.caller.tgid();
    head.tid = moved.caller.tid();
    head.client_position = moved.client_position;
    head.server_position = moved.server_position;
    head.role = connection.role;
    head.flags = if moved.socket.is_tls() {
        begin_flags::TLS
    } else if moved.socket.is_unix() {
        begin_flags::UNIX
    } else {
        0
    };
    head.payload_len = len as u16;
    head.len = moved.len;
    head.last = last;
    head.previous = moved.previous;
    Some(())
}

/// Adds what a client's request is made for to the record of [`begin_moved`]; who has read a server's works for it from now on.
/// What is known of the process is given too.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn begin_served(slot: u64, process: u64) -> u64 {
    let (slot, process) = (Slot::numbered(slot), process as u8);
    let Some(record) = slot.record::<Begin>() else { return 0 };
    let head = &mut record.head;
    let context = python::context_in(process);
    if python::is_context(context) {
        head.flags |= begin_flags::CONTEXT;
    } else if context == python::OUTSIDE {
        // uvloop reads and sends outside of the contexts in which it calls back and is asked to.
        head.flags |= if node::is_loop(Caller::any()) { begin_flags::CONTEXT } else { begin_flags::THREAD };
    }
    if head.role == role::CLIENT {
        if find_served(slot, process, context, head.connection, head.exchange) == node::AFTER_ANSWER {
            head.flags |= begin_flags::AFTER_ANSWER;
        }
        head.served = slot.served().map_or(Served::NONE, |served| *served);
    } else if head.header.kind == Kind::Begin as u32 {
        serves(head.connection, head.exchange, process, context);
        if node::is_here() {
            node::node_receives(slot.number(), head.connection, head.exchange.into());
        }
    }
    1
}

/// Adds where a request was sent to the record of [`begin_moved`], and writes it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn begin_placed(slot: u64) -> u64 {
    let slot = Slot::numbered(slot);
    let (Some(moved), Some(record)) = (slot.moved(), slot.record::<Begin>()) else { return 0 };
    let head = &mut record.head;
    let mut positions_known = moved.positions_known != 0;
    // Of HTTP/2, and of what comes before HTTP under TLS, something may be on its way that one end has sent and the other
    // has not read.
    let is_http2 = head.header.kind == Kind::Http2 as u32;
    if (is_http2 || moved.socket.is_tls()) && !moved.socket.is_unix() {
        match sock::server_start(moved.socket.address, head.role) {
            Some(start) => head.server_position = start,
            None => positions_known = false,
        }
    }
    if positions_known {
        head.flags |= begin_flags::POSITIONS;
    }
    sock::describe(moved.socket, head);
    emit::begun();
    let len = u64::from(head.payload_len);
    emit::record(record, len, Loss::RingFullBegin);
    1
}

/// Whoever has read of this server's request works for it: the goroutine, or the context of Python.
#[inline(always)]
fn serves(connection: u64, exchange: u32, process: u8, context: u64) {
    if python::is_context(context) {
        python::serves_in(context, connection, exchange.into());
    } else if process & process::GO != 0 {
        goroutine::serves(connection, exchange.into());
    }
}

/// Leaves the request that a client's is made for in the slot, as far as the event loop tells, the goroutine, or the context of
/// Python. Gives [`node::AFTER_ANSWER`] if it is that of a call whose answer is called back.
#[inline(always)]
fn find_served(slot: Slot, process: u8, context: u64, connection: u64, exchange: u32) -> u64 {
    if event_loop::is_here() && event_loop::find_turn(slot.number()) != 0 {
        return 0;
    }
    if node::is_here() {
        let found = node::find_callback(slot.number(), connection, exchange.into());
        if found != 0 {
            return found;
        }
    }
    if context == python::OUTSIDE && uvloop::find_queued(slot.number(), exchange.into()) != 0 {
        return 0;
    }
    if process & process::GO != 0 {
        goroutine::find_served(slot.number());
    } else if let Some(served) = slot.served() {
        *served = Served::NONE;
    }
    if python::is_context(context) {
        python::find_served_in(slot.number(), context);
    }
    0
}

/// Tells the name of the Unix socket at `sk`. Uses the slot's record, and leaves its payload alone.
///
/// Exported, and with numbers for arguments only, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_unix(slot: u64, sk: u64, connection: u64, time_ns: u64) -> u64 {
    let Some(record) = Slot::numbered(slot).record::<Unix>() else { return 0 };
    let head = &mut record.head;
    head.header = emit::header(Kind::Unix, time_ns);
    head.connection = connection;
    head.path_len = sock::unix_path(sk, &mut head.path);
    head.reserved = 0;
    emit::plain(head, Loss::RingFullData);
    1
}

/// Writes the record of a call that moved HTTP/2 frames, unless it moved only a part of a DATA frame's content.
#[inline(always)]
fn tell_frames(slot: Slot, connection: &mut Connection, moved: &Moved, meaning: Meaning) -> Option<()> {
    let source = &moved.source;
    let [requests, responses] = &mut connection.frames;
    let direction = meaning.direction();
    let frames = if direction == direction::REQUEST { requests } else { responses };
    let before = *frames;
    let Told { len, readable, is_news } = frames::copy(source, slot, moved.len, frames);
    if !is_news {
        return None;
    }
    // What was recognised just now stands where a frame begins.
    let mark = if before.state == frame_state::UNKNOWN { Frames::HEADER } else { before }.mark();
    let mut flags = data_flags::FRAMES;
    if !readable {
        flags |= data_flags::UNREADABLE;
        emit::lost(Loss::PayloadUnreadable);
    }
    let is_asked = direction == direction::REQUEST && connection.role == role::CLIENT;
    let is_told = is_asked && {
        // More may be known now than when the connection began. Records of frames do not say that it is told by an answer.
        let process = moved.caller.process();
        let context = python::context_in(process);
        find_served(slot, process, context, connection.connection, 0) != node::AFTER_ANSWER
    };
    let record = slot.record::<Data>()?;
    let head = &mut record.head;
    begin_data(head, connection, moved, direction);
    head.payload_len = len as u16;
    head.flags = flags;
    head.last = mark;
    head.served = if is_told { slot.served().map_or(Served::NONE, |served| *served) } else { Served::NONE };
    emit::record(record, len, Loss::RingFullData);
    Some(())
}

/// The peer of a client will send nothing more.
#[inline(always)]
pub fn tell_eof(slot: Slot, caller: Caller, socket: u64, connection: &mut Connection) -> Option<()> {
    if connection.role != role::CLIENT || !connection.tells_eof() {
        return None;
    }
    tail::over(socket, connection, now());
    let record = slot.record::<Data>()?;
    record.head = Data {
        header: emit::header(Kind::Data, now()),
        connection: connection.connection,
        exchange: connection.exchange,
        tgid: caller.tgid(),
        tid: caller.tid(),
        payload_len: 0,
        direction: direction::RESPONSE,
        flags: data_flags::EOF,
        len: 0,
        last: [0; 8],
        served: Served::NONE,
        totals: connection.totals,
    };
    emit::record(record, 0, Loss::RingFullData);
    Some(())
}
