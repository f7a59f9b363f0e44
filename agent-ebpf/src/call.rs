//! The sends that threads and goroutines are in, from entry to return.

use aya_ebpf::maps::{Array, HashMap};
use coati_common::event::Connection;
use coati_common::limits;

use crate::iov::Source;
use crate::maps::{CALLS, SENDING};
use crate::notes::{Note, Noted, Place};
use crate::sock::{Positions, Socket};

/// What is noted of a send.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Call {
    /// Through what it sends.
    pub socket: Socket,
    /// When the call was entered.
    pub time_ns: u64,
    /// What it sends from.
    pub source: Source,
    /// The connection as it was before.
    pub before: Connection,
    /// What its bytes are, a [`Meaning`](coati_common::follow::Meaning); 0 if that is known only when it returns.
    pub meaning: u32,
    /// Where the streams stood.
    pub positions: Positions,
}

/// Of no call.
static BLANK: Note<Call> = Note::blank(Call {
    socket: Socket::tcp(0),
    time_ns: 0,
    source: Source::NONE,
    before: Connection::idle(0, 0),
    meaning: 0,
    positions: Positions::UNKNOWN,
});

impl Noted for Call {
    const PLACES: u32 = limits::SENDING;

    #[inline(always)]
    fn places() -> &'static Array<Place<Self>> {
        &SENDING
    }

    #[inline(always)]
    fn others() -> &'static HashMap<u64, Note<Self>> {
        &CALLS
    }

    #[inline(always)]
    fn blank() -> &'static Note<Self> {
        &BLANK
    }
}
