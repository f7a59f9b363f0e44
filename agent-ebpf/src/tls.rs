//! Plaintext: what a TLS library is given to send, and what it has received.
//!
//! A session's bytes feed the same state machine as a connection's. Its key in `CONNECTIONS` is a number of its own, as the
//! socket below it may be unknown. The socket is the one on which the thread moves TLS records *during* a call of the
//! library ([`record`], which the hooks on TCP call): that is certain. Libraries that are given memory instead of a socket
//! move nothing then; for these what happens around their calls must agree ([`witness`]). See ADR 0019.

mod session;

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::map;
use aya_ebpf::maps::LruHashMap;
use coati_common::event::{Kind, Tls};
use coati_common::limits;
use coati_common::loss::Loss;
use coati_common::sniff::{Sniff, TlsKind, TlsRecord};
use coati_common::tls::SessionId;

use self::session::{SEVERAL, SOCKETS, begin, bind, followed, known, session};
pub use self::session::{free, key_of, key_of_session, socket_gone};
use crate::emit;
use crate::event_loop;
use crate::exchange::{self, Caller, now};
use crate::iov::{self, Source};
use crate::kread::user;
use crate::scratch::Slot;
use crate::sock::{self, Socket};
use crate::strand::{self, ByThread, Strand};

/// What is known of where the record lies that a call is about.
mod place {
    /// No record was seen yet.
    pub const NONE: u32 = 0;
    /// There.
    pub const KNOWN: u32 = 1;
    /// There were records, but this is not certain.
    pub const UNKNOWN: u32 = 2;
}

/// What a call of the library does.
pub mod kind {
    /// It receives.
    pub const READ: u32 = 0;
    /// It sends.
    pub const WRITE: u32 = 1;
    /// It does neither.
    pub const HANDSHAKE: u32 = 2;
}

/// What is known of the records that came on a thread since it last received by the library.
mod outside {
    /// There were none.
    pub const NONE: u32 = 0;
    /// They came on one socket, and what came first began with one that may hold plaintext.
    pub const DATA: u32 = 1;
    /// They came on one socket.
    pub const OTHER: u32 = 2;
    /// They came on several sockets.
    pub const SEVERAL: u32 = 3;
}

/// The call of the library that a thread, or a goroutine, is in, and where its records lie.
///
/// A library that works on memory is given records that the thread has received before the call. So which socket they came
/// on is kept too, and the first of them.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Thread {
    /// Address of the session's object; 0 if the thread is in no call.
    object: u64,
    /// Address of the plaintext.
    buffer: u64,
    /// Where the library writes how much moved; 0 if it returns that.
    moved: u64,
    /// The stack pointer when the call was entered.
    stack: u64,
    /// Address of the `struct sock` on which records moved; 0 if none did, or [`SEVERAL`].
    socket: u64,
    /// TCP sequence number of the record.
    position: u32,
    /// One of [`place`].
    place: u32,
    /// One of [`kind`].
    kind: u32,
    /// One of [`outside`].
    outside: u32,
    /// Address of the `struct sock` on which records came outside of calls.
    outside_socket: u64,
    /// TCP sequence number of the first of them.
    outside_position: u32,
    /// Its bytes behind the header.
    outside_length: u32,
}

/// Processes that were told of as speaking TLS.
#[map]
static SPEAKERS: LruHashMap<u32, u8> = LruHashMap::with_max_entries(limits::TLS_PROCESSES, 0);

/// A call as it is entered.
pub struct Entered {
    pub object: u64,
    pub buffer: u64,
    pub size: u64,
    /// As in [`Thread`].
    pub moved: u64,
}

/// A call of the library was entered: one of [`kind`].
#[inline(always)]
pub fn enter<S: Strand>(strand: &S, caller: Caller, call: &Entered, kind: u32) -> Option<()> {
    let thread = thread(strand)?;
    let stack = strand.stack();
    if thread.object != 0 {
        // TLS within TLS, or one function of the library that calls another: only the outermost has the plaintext.
        if stack < thread.stack {
            return None;
        }
        emit::lost(Loss::ReturnMissed);
        let _none_is_usual = S::sends().remove(strand.key());
    }
    thread.object = call.object;
    thread.buffer = call.buffer;
    thread.moved = call.moved;
    thread.stack = stack;
    thread.socket = 0;
    thread.place = place::NONE;
    thread.kind = kind;
    if kind != kind::WRITE {
        return None;
    }
    let id = caller.session(call.object);
    let source = Source::buffer(call.buffer, call.size);
    let session = session(&id, &source, call.size)?;
    let slot = Slot::borrow()?;
    let socket = Socket::tls(session.key, known(session.socket));
    let result = exchange::send_by(slot, caller, socket, source, S::sends(), strand.key());
    slot.give_back();
    result
}

/// The call of the library that the thread was in and that has returned, if it is the outermost one.
#[inline(always)]
fn left<S: Strand>(strand: &S, kind: u32) -> Option<Thread> {
    let thread = S::calls().get_ptr_mut(strand.key())?;
    // SAFETY: as in `exchange::followed`; the entry belongs to this thread.
    let thread = unsafe { &mut *thread };
    let is_nested = strand.stack() < thread.stack + S::return_slot();
    if thread.object == 0 || thread.kind != kind || is_nested {
        return None;
    }
    let call = *thread;
    if !S::HAS_OUTSIDE {
        S::calls().remove(strand.key()).ok()?;
        return Some(call);
    }
    thread.object = 0;
    if kind != kind::WRITE {
        thread.outside = outside::NONE;
    }
    Some(call)
}

impl Thread {
    /// How much moved, for a call that returned `result`; not above 0 if nothing did.
    #[inline(always)]
    fn moved(&self, result: i64) -> i64 {
        if self.moved == 0 {
            result
        } else if result == 1 {
            user::<u64>(self.moved).unwrap_or_default() as i64
        } else {
            -1
        }
    }
}

/// A call that sends returned `result`.
#[inline(always)]
pub fn sent<C: EbpfContext, S: Strand>(ctx: &C, strand: &S, caller: Caller, result: i64) -> Option<()> {
    let call = left(strand, kind::WRITE)?;
    let moved = call.moved(result);
    let id = caller.session(call.object);
    let Some(session) = followed(&id) else {
        // It was closed meanwhile.
        let _none_is_usual = S::sends().remove(strand.key());
        return None;
    };
    bind(&id, session, call.socket);
    if let Some(send) = S::sends().get_ptr_mut(strand.key()) {
        // SAFETY: as above.
        let send = unsafe { &mut (*send).of };
        send.socket.address = known(session.socket);
        send.positions.send = call.position;
        let is_known = call.place == place::KNOWN && session.retries == 0 && session.socket == call.socket;
        send.positions.known = u32::from(is_known);
    }
    session.retries = u32::from(moved <= 0);
    let slot = Slot::borrow()?;
    let result = exchange::sent_by(ctx, slot, moved, S::sends(), strand.key());
    slot.give_back();
    result
}

/// A call that receives returned `result`.
#[inline(always)]
pub fn received<C: EbpfContext, S: Strand>(ctx: &C, strand: &S, caller: Caller, result: i64) -> Option<()> {
    let call = left(strand, kind::READ)?;
    let moved = call.moved(result);
    let id = caller.session(call.object);
    if moved <= 0 {
        if call.place != place::NONE {
            // The rest of the record comes in another call.
            let session = match followed(&id) {
                Some(session) => session,
                None => begin(&id)?,
            };
            bind(&id, session, call.socket);
            session.position = call.position;
            session.place = call.place;
        }
        witness(&id, &call, 0);
        // That the other end has said goodbye; what has failed is not told from it by all functions.
        if moved < 0 || call.moved != 0 {
            return None;
        }
    }
    let len = if moved > 0 { moved as u64 } else { 0 };
    let source = Source::buffer(call.buffer, len);
    let session = if len > 0 { session(&id, &source, len)? } else { followed(&id)? };
    bind(&id, session, call.socket);
    witness(&id, &call, len);
    let (position, place) = if call.place != place::NONE {
        (call.position, call.place)
    } else if session.place != place::NONE {
        (session.position, session.place)
    } else if call.outside_holds(len) && session.socket == call.outside_socket {
        (call.outside_position, place::KNOWN)
    } else {
        (0, place::NONE)
    };
    session.place = place::NONE;
    let mut socket = Socket::tls(session.key, known(session.socket));
    socket.position = position;
    socket.is_placed = u32::from(place == place::KNOWN);
    let slot = Slot::borrow()?;
    let result = exchange::received(ctx, slot, caller, socket, || Some(source), len);
    slot.give_back();
    result
}

/// A handshake, or a step of one, has returned.
#[inline(always)]
pub fn shaken() -> Option<()> {
    let caller = Caller::watched()?;
    let call = left(&ByThread(caller.pid_tgid()), kind::HANDSHAKE)?;
    let id = caller.session(call.object);
    if call.socket != 0 && event_loop::is_nginx(caller) {
        // It reads ahead: the first request may have come with the end of the handshake, and then no call moves it.
        let session = match followed(&id) {
            Some(session) => session,
            None => begin(&id)?,
        };
        bind(&id, session, call.socket);
        if call.place == place::KNOWN {
            session.position = call.position;
            session.place = call.place;
        }
    }
    witness(&id, &call, 0);
    Some(())
}

/// A handshake of a library that moves all bytes itself has returned. If it has received the first data as well, the call
/// that gives them will move nothing.
#[inline(always)]
pub fn shaken_itself<S: Strand>(strand: &S, caller: Caller) -> Option<()> {
    let call = left(strand, kind::HANDSHAKE)?;
    if call.place != place::KNOWN {
        return None;
    }
    let id = caller.session(call.object);
    let session = match followed(&id) {
        Some(session) => session,
        None => begin(&id)?,
    };
    bind(&id, session, call.socket);
    session.position = call.position;
    session.place = call.place;
    Some(())
}

impl Thread {
    /// Whether the first record that came before the call is as long as one that holds `len` bytes (RFC 8446 §5.2, RFC
    /// 5288, RFC 7905): what the call gave is from it.
    #[inline(always)]
    fn outside_holds(&self, len: u64) -> bool {
        self.outside == outside::DATA && (len + 16..=len + 24).contains(&u64::from(self.outside_length))
    }
}

/// A call that moved no records, after records came on one socket: they may be the session's. Believed when it was so
/// twice and never otherwise, and a record once was as long as the `len` bytes that the call gave.
#[inline(always)]
fn witness(id: &SessionId, call: &Thread, len: u64) -> Option<()> {
    if call.socket != 0 || call.outside == outside::NONE || call.outside == outside::SEVERAL {
        return None;
    }
    let session = match followed(id) {
        Some(session) => session,
        None => begin(id)?,
    };
    if session.socket != 0 {
        // If it is by what a call moved, what happens around calls says nothing.
        if session.candidate == session.socket && call.outside_socket != session.socket {
            let _gone_is_fine = SOCKETS.remove(session.socket);
            session.socket = SEVERAL;
        }
        return None;
    }
    if session.candidate != 0 && session.candidate != call.outside_socket
        || SOCKETS.get_ptr(call.outside_socket).is_some()
    {
        session.socket = SEVERAL;
        return None;
    }
    session.candidate = call.outside_socket;
    session.witnesses += 1;
    if call.outside_holds(len) {
        session.has_match = 1;
    }
    if session.witnesses >= 2 && session.has_match != 0 {
        bind(id, session, call.outside_socket);
    }
    Some(())
}

/// A TLS record, or `len` bytes that begin with one, moves on a socket: if it does so within a call of a library, it
/// belongs to the session of that.
#[inline(always)]
pub fn record(caller: Caller, socket: Socket, record: TlsRecord, source: &Source, len: u64, sends: bool) {
    let Some(thread) = strand::call_of(caller) else {
        if record.kind == TlsKind::Handshake {
            tell_speaker(caller.tgid().into());
        }
        return;
    };
    // SAFETY: as in `exchange::followed`; the entry belongs to this thread.
    let thread = unsafe { &mut *thread };
    if thread.object == 0 {
        if !sends {
            came_outside(thread, socket.address, record, len);
        }
        return;
    }
    if thread.socket == 0 {
        thread.socket = socket.address;
    } else if thread.socket != socket.address {
        thread.socket = SEVERAL;
    }
    let streams = sock::positions(socket.address);
    if thread.kind == kind::HANDSHAKE {
        thread.place = place::NONE;
        if !sends
            && streams.known != 0
            && let Some(ahead) = behind_handshake(source, record, len)
        {
            thread.position = streams.receive.wrapping_sub(len as u32).wrapping_add(ahead);
            thread.place = place::KNOWN;
        }
        return;
    }
    let is_data = record.kind == TlsKind::Data && streams.known != 0;
    if sends {
        // The first one that a call sends holds the first byte, unless a handshake comes before.
        if thread.kind == kind::WRITE && thread.place == place::NONE {
            thread.position = streams.send;
            thread.place = if is_data { place::KNOWN } else { place::UNKNOWN };
        }
    } else if thread.kind == kind::WRITE {
        if thread.place == place::NONE {
            thread.place = place::UNKNOWN;
        }
    } else {
        // A library reads when it has no whole record, so the last one that a call reads is what it gives; it may read the
        // next ones with it. Where a part of the handshake is between, this is a position at which no request begins.
        thread.position = streams.receive.wrapping_sub(len as u32);
        thread.place = if is_data { place::KNOWN } else { place::UNKNOWN };
    }
}

/// Records of a handshake that may be received together with data.
const HANDSHAKE_RECORDS: u32 = 4;
/// Bytes of a record's header.
const HEADER: u32 = 5;
/// Lengths of the record that ends a handshake of TLS 1.3, with either of its hashes (RFC 8446 §4.4.4, §5.2).
const FINISHED: [u32; 2] = [53, 69];

/// Where the first record of data begins in `len` bytes at `source` that begin with a record of a handshake, if there is one
/// behind what ends the handshake.
#[inline(always)]
fn behind_handshake(source: &Source, first: TlsRecord, len: u64) -> Option<u32> {
    if source.kind != iov::kind::BUFFER {
        return None;
    }
    let (mut record, mut at) = (first, 0);
    for _ in 0..HANDSHAKE_RECORDS {
        let is_last = match record.kind {
            TlsKind::Handshake => true,
            TlsKind::Data => FINISHED.contains(&record.length),
            TlsKind::Other => false,
        };
        at += HEADER + record.length;
        if u64::from(at + HEADER) > len {
            return None;
        }
        let words = user::<[u64; 2]>(source.address + u64::from(at))?;
        record = Sniff::new(words, HEADER).tls_record()?;
        if is_last && record.kind == TlsKind::Data {
            return Some(at);
        }
    }
    None
}

/// `len` bytes that begin with a record came on a thread that is in no call of the library.
#[inline(always)]
fn came_outside(thread: &mut Thread, socket: u64, record: TlsRecord, len: u64) {
    if thread.outside != outside::NONE {
        if thread.outside_socket != socket {
            thread.outside = outside::SEVERAL;
        }
        return;
    }
    let streams = sock::positions(socket);
    let is_data = record.kind == TlsKind::Data && streams.known != 0;
    thread.outside = if is_data { outside::DATA } else { outside::OTHER };
    thread.outside_socket = socket;
    thread.outside_position = streams.receive.wrapping_sub(len as u32);
    thread.outside_length = record.length;
}

/// Whether the thread is in a call of a library.
#[inline(always)]
pub fn is_in_call(caller: Caller) -> bool {
    // SAFETY: as above.
    strand::thread_call(caller).is_some_and(|thread| unsafe { (*thread).object != 0 })
}

/// Tells once that a process speaks TLS.
///
/// Exported, so that its record does not count as stack of every hook.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn tell_speaker(tgid: u64) -> u64 {
    let tgid = tgid as u32;
    if SPEAKERS.get_ptr(tgid).is_some() || SPEAKERS.insert(tgid, 1, 0).is_err() {
        return 0;
    }
    emit::plain(&Tls { header: emit::header(Kind::Tls, now()), tgid, reserved: 0 }, Loss::RingFullProcess);
    1
}

/// Forgets that a process was told of: another may get its number.
#[inline(always)]
pub fn process_gone(tgid: u32) {
    let _none_is_usual = SPEAKERS.remove(tgid);
}

#[inline(always)]
fn thread<S: Strand>(strand: &S) -> Option<&'static mut Thread> {
    const IDLE: Thread = Thread {
        object: 0,
        buffer: 0,
        moved: 0,
        stack: 0,
        socket: 0,
        position: 0,
        place: place::NONE,
        kind: kind::READ,
        outside: outside::NONE,
        outside_socket: 0,
        outside_position: 0,
        outside_length: 0,
    };
    if S::calls().get_ptr(strand.key()).is_none() && S::calls().insert(strand.key(), IDLE, 0).is_err() {
        emit::lost(Loss::CallsFull);
        return None;
    }
    // SAFETY: as in `exchange::followed`; the entry belongs to this thread.
    S::calls().get_ptr_mut(strand.key()).map(|thread| unsafe { &mut *thread })
}
