//! How a connection's state changes with the bytes that move: pure, so that it is tested outside the kernel.
//!
//! The kernel programs take the same three steps for every system call: [`Connection::meaning`] of its first bytes,
//! [`Connection::enter`] (the state changes; for a call that sends, before anything is sent), and
//! [`Connection::count`] (totals; once it is known how much moved).

#![expect(clippy::inline_always, reason = "called by kernel programs: a call costs stack and a frame of the verifier")]

use crate::event::{Connection, Frames, Totals, connection_flags, data_flags, direction, frame_state, phase, role};
use crate::limits::{CHUNK_RECORDS, HEAD_BYTES};
use crate::sniff::{Sniff, Status};

/// What the bytes of one system call are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Meaning {
    /// The first bytes of the next request.
    Begin = 1,
    /// More of a request.
    Request = 2,
    /// The first bytes of a final response.
    First = 3,
    /// The first bytes of a response that ends HTTP on this connection (101).
    Upgrade = 4,
    /// An interim response.
    Interim = 5,
    /// More of a response.
    Response = 6,
    /// The preface of HTTP/2.
    Preface = 7,
    /// A request of HTTP/2, on a connection that is older than the agent.
    Joined = 8,
    /// The first bytes of a request, where a response was expected: what was taken for the connection's first request is
    /// in the body of an answer that was under way when the agent began. This end has the other role.
    Turned = 9,
}

impl Meaning {
    /// The meaning that `value` stands for.
    #[inline(always)]
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Begin),
            2 => Some(Self::Request),
            3 => Some(Self::First),
            4 => Some(Self::Upgrade),
            5 => Some(Self::Interim),
            6 => Some(Self::Response),
            7 => Some(Self::Preface),
            8 => Some(Self::Joined),
            9 => Some(Self::Turned),
            _ => None,
        }
    }

    /// What bytes are that begin with `sniff`, on a connection that is not followed yet; `None` if they are no HTTP.
    #[inline(always)]
    pub fn first(sniff: &Sniff) -> Option<Self> {
        if sniff.may_begin() {
            Some(Self::Begin)
        } else if sniff.is_preface() {
            Some(Self::Preface)
        } else if sniff.is_request_frame() {
            Some(Self::Joined)
        } else {
            None
        }
    }

    /// They are told by a [`crate::event::Begin`].
    #[inline(always)]
    pub const fn begins(self) -> bool {
        matches!(self, Self::Begin | Self::Preface | Self::Joined | Self::Turned)
    }

    /// One of [`direction`].
    #[inline(always)]
    pub const fn direction(self) -> u8 {
        match self {
            Self::Begin | Self::Request | Self::Preface | Self::Joined | Self::Turned => direction::REQUEST,
            Self::First | Self::Upgrade | Self::Interim | Self::Response => direction::RESPONSE,
        }
    }

    /// The [`data_flags`] of a record about such bytes.
    #[inline(always)]
    pub const fn flags(self) -> u8 {
        match self {
            Self::First | Self::Upgrade => data_flags::FIRST,
            Self::Interim => data_flags::INTERIM,
            Self::Begin | Self::Request | Self::Response | Self::Preface | Self::Joined | Self::Turned => 0,
        }
    }
}

impl Connection {
    /// A connection on which nothing has happened yet.
    #[inline(always)]
    pub const fn idle(connection: u64, role: u8) -> Self {
        Self {
            connection,
            last_ns: 0,
            totals: Totals::ZERO,
            exchange: 0,
            request_copied: 0,
            response_copied: 0,
            role,
            phase: phase::RESPONSE,
            flags: 0,
            process: 0,
            inode: 0,
            netns: 0,
            reserved: 0,
            response_tail: [0; 8],
            frames: [Frames::UNKNOWN; 2],
        }
    }

    /// The direction of bytes that this end sends.
    #[inline(always)]
    pub const fn sends(&self) -> u8 {
        if self.role == role::CLIENT { direction::REQUEST } else { direction::RESPONSE }
    }

    /// The direction of bytes that this end receives.
    #[inline(always)]
    pub const fn receives(&self) -> u8 {
        if self.role == role::CLIENT { direction::RESPONSE } else { direction::REQUEST }
    }

    /// Whether [`Self::meaning`] depends on the bytes themselves, in this state and direction.
    #[inline(always)]
    pub const fn must_sniff(&self, direction: u8) -> bool {
        if self.is_over() {
            return false;
        }
        match direction {
            direction::REQUEST => self.takes_request() || self.phase == phase::UPGRADED,
            _ => self.phase == phase::REQUEST,
        }
    }

    /// What bytes that begin with `sniff` are, if they move in `direction` now.
    #[inline(always)]
    pub fn meaning(&self, direction: u8, sniff: &Sniff) -> Meaning {
        if direction == direction::REQUEST {
            if !self.must_sniff(direction) {
                return Meaning::Request;
            }
            if sniff.is_preface() {
                return Meaning::Preface;
            }
            let begins = self.takes_request()
                && (sniff.is_method() || self.phase == phase::RESPONSE && sniff.is_method_prefix());
            return if begins { Meaning::Begin } else { Meaning::Request };
        }
        if !self.must_sniff(direction) {
            return Meaning::Response;
        }
        if self.exchange == 1 && sniff.begins_no_response() {
            return Meaning::Turned;
        }
        match sniff.status() {
            Status::Final => Meaning::First,
            Status::Switching => Meaning::Upgrade,
            Status::Interim => Meaning::Interim,
        }
    }

    /// Takes the change of state that `meaning` brings.
    #[inline(always)]
    pub const fn enter(&mut self, meaning: Meaning, time_ns: u64) {
        match meaning {
            Meaning::Begin => self.begin(phase::REQUEST),
            Meaning::Turned => {
                self.role ^= role::CLIENT ^ role::SERVER;
                self.begin(phase::REQUEST);
            }
            Meaning::Preface => {
                self.begin(phase::HTTP2);
                self.frames = [Frames::PREFACE, Frames::UNKNOWN];
            }
            Meaning::Joined => {
                self.begin(phase::HTTP2);
                self.frames = [Frames::HEADER, Frames::UNKNOWN];
            }
            Meaning::First => self.phase = phase::RESPONSE,
            Meaning::Upgrade => self.phase = phase::UPGRADED,
            Meaning::Interim => self.flags |= connection_flags::INTERIM,
            Meaning::Request | Meaning::Response => {}
        }
        self.last_ns = time_ns;
    }

    #[inline(always)]
    const fn begin(&mut self, phase: u8) {
        self.totals = Totals::ZERO;
        self.exchange = self.exchange.wrapping_add(1);
        self.request_copied = 0;
        self.response_copied = 0;
        self.phase = phase;
        self.flags &= connection_flags::UNIX;
        self.response_tail = [0; 8];
    }

    /// Adds `len` bytes; `first_ns` is when the first of them moved, `last_ns` when the last did.
    #[inline(always)]
    pub const fn count(&mut self, meaning: Meaning, len: u64, first_ns: u64, last_ns: u64) {
        match meaning {
            Meaning::Begin | Meaning::Request | Meaning::Preface | Meaning::Joined | Meaning::Turned => {
                self.totals.request_bytes += len;
                // A thread that lost its CPU in the call looks as if it had waited. But what was answered had been sent.
                let answered_ns = self.totals.response_first_ns;
                self.totals.request_last_ns =
                    if answered_ns > first_ns && answered_ns < last_ns { first_ns } else { last_ns };
            }
            Meaning::First | Meaning::Upgrade | Meaning::Response => {
                let gap = first_ns.saturating_sub(self.totals.response_last_ns);
                if self.totals.response_first_ns == 0 {
                    self.totals.response_first_ns = first_ns;
                } else if gap > self.totals.longest_gap_ns {
                    self.totals.longest_gap_ns = gap;
                }
                self.totals.response_bytes += len;
                self.totals.response_last_ns = last_ns;
                self.totals.response_chunks = self.totals.response_chunks.saturating_add(1);
            }
            Meaning::Interim => {}
        }
    }

    /// Whether user space gets a record of such bytes; asked after [`Self::count`], and not of HTTP/2.
    #[inline(always)]
    pub const fn tells(&self, meaning: Meaning) -> bool {
        let is_upgraded = self.phase == phase::UPGRADED;
        match meaning {
            Meaning::Request => !self.is_over() && (is_upgraded || (self.request_copied as usize) < HEAD_BYTES),
            Meaning::Response => !self.is_over() && (is_upgraded || self.totals.response_chunks <= CHUNK_RECORDS),
            _ => true,
        }
    }

    /// Bytes of payload that a record of such bytes may carry.
    #[inline(always)]
    pub const fn room(&self, meaning: Meaning) -> usize {
        match meaning {
            Meaning::Begin | Meaning::Interim | Meaning::Preface | Meaning::Joined | Meaning::Turned => HEAD_BYTES,
            Meaning::Request | Meaning::Response if self.phase == phase::UPGRADED => HEAD_BYTES,
            Meaning::Request => HEAD_BYTES.saturating_sub(self.request_copied as usize),
            Meaning::First | Meaning::Upgrade | Meaning::Response => {
                HEAD_BYTES.saturating_sub(self.response_copied as usize)
            }
        }
    }

    /// Notes that a record carried `len` bytes of payload.
    #[inline(always)]
    pub const fn copied(&mut self, meaning: Meaning, len: u16) {
        match meaning {
            Meaning::Begin | Meaning::Request | Meaning::Preface | Meaning::Joined | Meaning::Turned => {
                self.request_copied = self.request_copied.saturating_add(len);
            }
            Meaning::First | Meaning::Upgrade | Meaning::Response => {
                self.response_copied = self.response_copied.saturating_add(len);
            }
            Meaning::Interim => {}
        }
    }

    /// Keeps the response's last bytes: `last` are those of a call that moved `len`.
    #[inline(always)]
    pub const fn keep_tail(&mut self, meaning: Meaning, len: u64, last: [u8; 8]) {
        if !matches!(meaning, Meaning::First | Meaning::Upgrade | Meaning::Response) {
            return;
        }
        self.response_tail = if len >= 8 {
            last
        } else {
            let older = u64::from_be_bytes(self.response_tail) << (8 * len);
            (older | u64::from_be_bytes(last)).to_be_bytes()
        };
    }

    /// Whether user space gets a record when the peer sends nothing more.
    #[inline(always)]
    pub const fn tells_eof(&self) -> bool {
        self.exchange > 0 && !self.is_over()
    }

    /// The connection ends; whether its last exchange must be ended by a record, which happens once.
    #[inline(always)]
    pub const fn finish(&mut self) -> bool {
        let must = self.exchange > 0 && self.flags & connection_flags::ENDED == 0;
        self.flags |= connection_flags::ENDED;
        must
    }

    /// A request may begin: the one before it is being answered, or its answer may have come with an interim one.
    #[inline(always)]
    const fn takes_request(&self) -> bool {
        self.phase == phase::RESPONSE || self.phase == phase::REQUEST && self.flags & connection_flags::INTERIM != 0
    }

    /// No exchange begins or ends here any more: bytes are only counted.
    #[inline(always)]
    const fn is_over(&self) -> bool {
        self.flags & connection_flags::ENDED != 0
    }
}

impl Frames {
    /// Nothing is known of the next byte.
    pub const UNKNOWN: Self = Self::at(frame_state::UNKNOWN, 0);
    /// A frame begins.
    pub const HEADER: Self = Self::at(frame_state::HEADER, 0);
    /// The preface of HTTP/2 begins, which is told like a frame.
    pub const PREFACE: Self = Self::at(frame_state::OTHER, 24);

    const fn at(state: u8, left: u32) -> Self {
        Self { left, state, have: 0, reserved: [0; 2], header: [0; 8] }
    }

    /// What a record says of where its first byte stands.
    #[inline(always)]
    pub const fn mark(&self) -> [u8; 8] {
        let [a, b, c, d] = self.left.to_be_bytes();
        [a, b, c, d, self.state, self.have, 0, 0]
    }

    /// What a [`Self::mark`] says; the bytes of a header that had moved before are not in it.
    pub const fn of_mark(mark: [u8; 8]) -> Self {
        let [a, b, c, d, state, have, ..] = mark;
        Self { left: u32::from_be_bytes([a, b, c, d]), state, have, reserved: [0; 2], header: [0; 8] }
    }
}

impl Totals {
    /// Nothing has happened.
    pub const ZERO: Self = Self {
        request_bytes: 0,
        response_bytes: 0,
        request_last_ns: 0,
        response_first_ns: 0,
        response_last_ns: 0,
        longest_gap_ns: 0,
        response_chunks: 0,
        reserved: 0,
    };
}

#[cfg(test)]
mod tests;
