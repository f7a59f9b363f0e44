//! The exchanges of one connection: hands every byte to the message that it belongs to.

mod missed;
mod silence;
mod switched;

use std::{collections::VecDeque, sync::Arc};

use coati_common::{
    event::{self, Begin, Data, End, Kind, Totals, begin_flags, data_flags, direction, end_reason},
    limits::CHUNK_RECORDS,
};

use super::{
    Event, Failure, Method, Origin, Role, Upgrade,
    body::Moved,
    http2::{Http2, StreamEnd},
    message::LastHeads,
    open::{Ending, Moment, Open, Out},
    progress,
    websocket::Session,
};

/// Pipelined requests that may wait on one connection.
const PIPELINE_LIMIT: usize = 64;
/// A connection's state in the kernel is read only after so long a silence: it is not written in one piece.
const QUIET_NS: u64 = 20_000_000;

/// A connection whose exchanges are followed.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is independent of the others")]
pub(super) struct Connection {
    /// The kernel's number of the newest exchange.
    pub(super) number: u32,
    /// When something was last heard of it.
    pub(super) last_ns: u64,
    /// The socket is closed.
    pub(super) is_closed: bool,
    /// When and how it was closed, if exchanges are still to be ended by that.
    closing: Option<(u64, Failure)>,
    /// Requests without a complete response, in the order in which they will be answered.
    pending: VecDeque<Box<Open>>,
    /// The newest heads that were read.
    last: LastHeads,
    /// Bytes of the kernel's newest exchange that were handed out, by direction.
    request_seen: u64,
    response_seen: u64,
    /// Of a client, how far it had read when its newest exchange began, if that is known, and the bytes of interim answers since.
    read_to: Option<u32>,
    interim: u64,
    /// Requests that followed the kernel's newest one before it was answered.
    followers: u32,
    /// Where the next request begins is not known.
    is_request_lost: bool,
    /// The kernel's totals of the newest exchange are those of several requests.
    is_shared: bool,
    /// What follows is not HTTP, or its beginning is missing.
    is_deaf: bool,
    /// The kernel did not know the socket when it was last asked.
    is_missing: bool,
    /// What the kernel had counted of the newest exchange when it was last asked.
    counted: Option<Totals>,
    /// The last bytes of its response, if what was heard last told them.
    response_end: Option<[u8; 8]>,
    /// Set once the connection was switched to WebSocket.
    websocket: Option<Box<Session>>,
    /// Set once the connection speaks HTTP/2.
    http2: Option<Box<Http2>>,
    /// Name of the Unix socket, if it is one and has one.
    pub(super) unix_path: Option<Arc<str>>,
    /// The process that has begun the newest exchange, on a Unix socket.
    pub(super) unix_owner: Option<u32>,
}

impl Connection {
    /// A connection of whose newest exchange the `Begin` is missing.
    pub(super) fn headless(number: u32, last_ns: u64) -> Self {
        Self { number, last_ns, is_deaf: true, ..Self::default() }
    }

    /// A new exchange, later than all before.
    pub(super) fn begin(&mut self, begin: &Begin, payload: &[u8], out: &mut Out<'_>) {
        self.drop_misread(begin, out);
        let read_to = missed::read_to(begin);
        if self.websocket.is_some() {
            self.abandon_switched(out);
        } else if self.http2.is_some() {
            // Switched by an answer whose exchange goes on as a stream.
        } else if begin.exchange == self.number.saturating_add(1) {
            self.settle(&begin.previous, out);
            self.find_missed(begin, read_to, out);
        } else {
            self.abandon(out);
        }
        (self.read_to, self.interim) = (read_to, 0);
        self.last_ns = begin.header.time_ns;
        self.number = begin.exchange;
        self.unix_owner = (begin.flags & begin_flags::UNIX != 0).then_some(begin.tgid);
        self.request_seen = begin.len;
        self.response_seen = 0;
        self.followers = 0;
        self.is_request_lost = false;
        (self.is_shared, self.is_deaf, self.is_missing) = (false, false, false);
        (self.counted, self.response_end) = (None, None);
        if begin.header.kind == Kind::Http2 as u32 {
            self.abandon_http1(out);
            let http2 = match &mut self.http2 {
                Some(http2) => {
                    http2.preface(begin);
                    http2
                }
                None => self.http2.insert(Box::new(Http2::new(begin, self.unix_path.clone()))),
            };
            return http2.begin(begin, payload, out);
        }
        // The body of an upload may have lines that begin like a request.
        let is_body = self.pending.back().is_some_and(|open| open.request.is_surely_incomplete());
        out.counters.begin_in_body += u64::from(is_body);
        if is_body || self.open(Origin::new(begin), out) {
            let len = begin.len.max(payload.len() as u64);
            self.take_request(Moved::new(len, payload, &begin.last), begin.header.time_ns, out);
        }
    }

    /// More bytes of the newest exchange.
    pub(super) fn data(&mut self, data: &Data, payload: &[u8], out: &mut Out<'_>) {
        let time_ns = data.header.time_ns;
        self.last_ns = self.last_ns.max(time_ns);
        let response_end = self.response_end.take();
        if let Some(http2) = &mut self.http2 {
            // Between the two heads of a switch the client is not followed: it has nothing to say.
            if data.len > 0 && (data.direction == direction::RESPONSE || data.flags & data_flags::FRAMES != 0) {
                http2.data(data, payload, out);
            }
            if data.flags & data_flags::EOF != 0 {
                self.close(time_ns, Failure::ConnectionClosed, out);
            }
            return;
        }
        if let Some(session) = &mut self.websocket {
            let is_over = session.data(data, payload, out);
            if is_over || data.flags & data_flags::EOF != 0 {
                self.close_websocket(time_ns, out);
            }
            return;
        }
        if data.flags & data_flags::FRAMES != 0 {
            // The record that would say whose they are is lost.
            out.counters.http2_missed_bytes += data.len;
            return;
        }
        let moved = Moved::new(data.len, payload, &data.last);
        if data.direction == direction::REQUEST {
            let start = data.totals.request_bytes.saturating_sub(data.len);
            self.catch_up_request(start, time_ns, out);
            if start == self.request_seen {
                self.take_request(moved, time_ns, out);
                self.request_seen = data.totals.request_bytes;
            }
        } else {
            self.catch_up_request(data.totals.request_bytes, data.totals.request_last_ns, out);
            // A send that had to wait for room ended later than it began.
            let last_ns = time_ns.max(data.totals.response_last_ns);
            let moment = Moment { first_ns: time_ns, last_ns, calls: 1, totals: Some(&data.totals) };
            if data.flags & data_flags::INTERIM != 0 {
                self.interim += data.len;
                self.resynchronise(payload, out);
                self.take_response(moved, moment, out);
            } else {
                self.final_response(data, payload, moved, moment, out);
            }
        }
        let is_client = self.pending.front().is_some_and(|front| front.origin.role == Role::Client);
        if data.flags & data_flags::EOF != 0 && is_client {
            self.catch_up(&data.totals, response_end.unwrap_or(data.last), out);
            self.close(time_ns, Failure::ConnectionClosed, out);
        }
    }

    /// The last bytes of the newest exchange's response so far.
    pub(super) fn tail(&mut self, exchange: u32, bytes: &[u8]) {
        if exchange == self.number
            && let Some(front) = self.pending.front_mut()
        {
            front.take_end(bytes);
            self.response_end = bytes.last_chunk().copied();
        }
    }

    /// The connection is over.
    pub(super) fn end(&mut self, end: &End, out: &mut Out<'_>) {
        self.last_ns = self.last_ns.max(end.header.time_ns);
        if self.http2.is_none() && self.websocket.is_none() {
            let response_end = self.response_end.take().unwrap_or_default();
            self.catch_up(&end.totals, response_end, out);
        }
        let failure =
            if end.reason == end_reason::RESET { Failure::ConnectionReset } else { Failure::ConnectionClosed };
        self.is_closed = true;
        self.closing = Some((end.header.time_ns, failure));
        let is_whole = |open: &Open| open.response.has_begun() && !open.response.is_surely_incomplete();
        if self.switched_exchanges() == 0 && self.pending.front().is_none_or(|front| is_whole(front)) {
            self.close_pending(out);
        }
    }

    /// What the kernel says of the connection now; `None` if it does not know it.
    pub(super) fn progress(&mut self, state: Option<&event::Connection>, now_ns: u64, out: &mut Out<'_>) {
        match state {
            None if self.is_missing => {
                // Its `End` had time to come.
                out.counters.end_missing += 1;
                self.abandon(out);
                self.is_closed = true;
            }
            None => self.is_missing = true,
            Some(state) => {
                self.is_missing = false;
                self.last_ns = self.last_ns.max(state.last_ns.min(now_ns));
                if state.exchange == self.number {
                    self.counted = Some(state.totals);
                    let is_switched = self.http2.is_some() || self.websocket.is_some();
                    if !is_switched && now_ns.saturating_sub(state.last_ns) >= QUIET_NS {
                        self.catch_up(&state.totals, state.response_tail, out);
                    }
                }
            }
        }
    }

    /// Ends what is open without knowing how it went on.
    pub(super) fn abandon(&mut self, out: &mut Out<'_>) {
        self.close_pending(out);
        self.abandon_switched(out);
        self.abandon_http1(out);
    }

    fn abandon_http1(&mut self, out: &mut Out<'_>) {
        for open in self.pending.drain(..) {
            open.finish(Ending::Unknown, out);
        }
    }

    /// Gives up what is open; gives the number of exchanges.
    pub(super) fn evict(&mut self, out: &mut Out<'_>) -> u64 {
        let evicted = self.pending.len() as u64 + self.evict_switched(out);
        for open in self.pending.drain(..) {
            open.give_up(out);
        }
        evicted
    }

    /// The oldest exchange that is open and the bytes that are still to come, where that is known.
    pub(super) fn oldest(&self) -> Option<(&Origin, Option<u64>)> {
        let session = || Some((&self.websocket.as_ref()?.open.origin, None));
        let stream = || Some((self.http2.as_ref()?.oldest()?, None)).or_else(session);
        self.pending.front().map(|front| (&front.origin, front.response.left())).or_else(stream)
    }

    /// Whatever still comes is late.
    pub(super) const fn is_over(&self) -> bool {
        self.is_closed && self.closing.is_none()
    }

    /// Exchanges that are open.
    pub(super) fn open_exchanges(&self) -> usize {
        self.pending.len() + self.switched_exchanges()
    }

    /// The kernel gives no more records of this response, only totals.
    pub(super) fn is_only_counted(&self) -> bool {
        self.pending.front().is_some_and(|front| front.chunks >= CHUNK_RECORDS)
    }

    /// Adds an exchange to the ones that wait; false if too many do.
    fn open(&mut self, origin: Origin, out: &mut Out<'_>) -> bool {
        out.counters.exchanges += 1;
        if self.pending.len() >= PIPELINE_LIMIT {
            out.counters.pipelined += 1;
            return false;
        }
        self.is_shared |= !self.pending.is_empty();
        self.pending.push_back(Box::new(Open::new(origin, self.unix_path.clone())));
        true
    }

    /// Bytes of requests; a request that is complete is followed by another one.
    fn take_request(&mut self, mut moved: Moved<'_>, at_ns: u64, out: &mut Out<'_>) {
        while !moved.is_empty() {
            // Without an open exchange this is the rest of a request that was answered early.
            let Some(open) = self.pending.back_mut() else { return };
            if open.request.is_complete() {
                if open.method() == Method::Connect || self.is_request_lost {
                    return;
                }
                let position = open.request.bytes;
                let line_ends = skip_line_ends(&mut moved);
                let Some(first) = moved.known().first() else {
                    self.is_request_lost = !moved.is_empty();
                    out.counters.pipelined_unseen += u64::from(!moved.is_empty());
                    return;
                };
                if !first.is_ascii_uppercase() {
                    return;
                }
                self.followers += 1;
                out.counters.followers += 1;
                let origin = open.origin.pipelined(self.number, self.followers, position + line_ends, at_ns);
                if !self.open(origin, out) {
                    return;
                }
                continue;
            }
            let outcome = open.request.take(&mut moved, &mut self.last.request);
            open.request_last_ns = open.request_last_ns.max(at_ns);
            match outcome {
                Ok(()) => open.announce(out),
                Err(error) => {
                    if let Some(open) = self.pending.pop_back() {
                        open.refuse(error, out);
                    }
                    self.is_request_lost = true;
                    self.is_deaf |= self.pending.is_empty();
                    return;
                }
            }
        }
    }

    /// Bytes of responses, which belong to the oldest request first.
    fn take_response(&mut self, mut moved: Moved<'_>, at: Moment<'_>, out: &mut Out<'_>) {
        while !moved.is_empty() {
            let is_alone = !self.is_shared;
            let Some(front) = self.pending.front_mut() else {
                out.counters.response_excess += u64::from(!self.is_deaf);
                return;
            };
            let outcome = front.cut_request(out);
            if outcome.is_ok() {
                front.take_response(&mut moved, at, is_alone, &mut self.last.answer, out);
                if !front.response.is_complete() {
                    return;
                }
            }
            let Some(front) = self.pending.pop_front() else { return };
            match outcome {
                Ok(()) => match self.switch(front, &moved, at, out) {
                    Some(front) => front.finish(Ending::Framing, out),
                    None => return,
                },
                Err(error) => {
                    // Its response cannot be told from the others.
                    self.is_deaf = true;
                    front.refuse(error, out);
                    self.drop_pipelined(out);
                }
            }
        }
    }

    fn final_response(&mut self, data: &Data, payload: &[u8], moved: Moved<'_>, moment: Moment<'_>, out: &mut Out<'_>) {
        let start = data.totals.response_bytes.saturating_sub(data.len);
        if start < self.response_seen {
            self.late_response(start, moved, data);
            return;
        }
        if data.len == 0 {
            return;
        }
        if self.response_seen == 0 {
            self.resynchronise(if start == 0 { payload } else { &[] }, out);
        }
        self.skip_response(start, moment, out);
        self.take_response(moved, moment, out);
        self.response_seen = data.totals.response_bytes;
    }

    /// Bytes that were counted before their record came: only a response's start is still of use.
    fn late_response(&mut self, start: u64, moved: Moved<'_>, data: &Data) {
        if let Some(front) = self.pending.front_mut()
            && start == 0
            && front.response.is_headless()
        {
            let method = front.method();
            front.response.take_late_start(moved, method, &mut self.last.answer);
            front.first_ns = data.header.time_ns;
        }
    }

    /// The first response bytes of the kernel's newest exchange. If they begin a response, or are unknown, then what an
    /// older one still waits for was moved by calls that are not seen, and will not come.
    fn resynchronise(&mut self, first_bytes: &[u8], out: &mut Out<'_>) {
        let number = self.number;
        let is_stale = |open: &Open| open.origin.id.number != number && open.response.has_begun();
        if !self.pending.front().is_some_and(|front| is_stale(front)) {
            return;
        }
        let start = b"HTTP/1.";
        let is_start = first_bytes.iter().zip(start).all(|(byte, wanted)| byte == wanted);
        if !is_start {
            return;
        }
        while let Some(open) = self.pending.pop_front_if(|open| open.origin.id.number != number) {
            if open.response.has_begun() {
                open.finish(Ending::NextRequest, out);
            } else {
                out.counters.pipelined += 1;
                open.give_up(out);
            }
        }
    }

    /// Everything up to the kernel's totals has moved.
    fn catch_up(&mut self, totals: &Totals, last: [u8; 8], out: &mut Out<'_>) {
        self.catch_up_request(totals.request_bytes, totals.request_last_ns, out);
        let unseen = totals.response_bytes.saturating_sub(self.response_seen);
        if unseen == 0 {
            return;
        }
        let last_ns = totals.response_last_ns;
        let first_ns = if self.response_seen == 0 { totals.response_first_ns } else { last_ns };
        if self.response_seen == 0 {
            self.resynchronise(&[], out);
        }
        self.take_response(
            Moved::new(unseen, &[], &last),
            Moment { first_ns, last_ns, calls: 0, totals: Some(totals) },
            out,
        );
        self.response_seen = totals.response_bytes;
    }

    fn catch_up_request(&mut self, to: u64, at_ns: u64, out: &mut Out<'_>) {
        let unseen = to.saturating_sub(self.request_seen);
        if unseen > 0 {
            self.take_request(Moved::unknown(unseen), at_ns, out);
            self.request_seen = to;
        }
    }

    /// Response bytes before `to` moved, and their records are missing.
    fn skip_response(&mut self, to: u64, at: Moment<'_>, out: &mut Out<'_>) {
        let unseen = to.saturating_sub(self.response_seen);
        if unseen > 0 {
            let first_ns = match at.totals {
                Some(totals) if self.response_seen == 0 => totals.response_first_ns,
                _ => at.first_ns,
            };
            self.take_response(Moved::unknown(unseen), Moment { first_ns, calls: 0, totals: None, ..at }, out);
        }
    }

    /// The next request has begun: its predecessor is answered, unless its framing says that more will come.
    fn settle(&mut self, totals: &Totals, out: &mut Out<'_>) {
        self.catch_up(totals, [0; 8], out);
        let is_over = |open: &Open| open.response.has_begun() && !open.response.is_surely_incomplete();
        if let Some(front) = self.pending.pop_front_if(|front| is_over(front)) {
            front.finish(Ending::NextRequest, out);
            // Where its response ended is not known, so neither is which bytes answered those behind it.
            self.drop_pipelined(out);
        }
    }

    fn close_pending(&mut self, out: &mut Out<'_>) {
        if let Some((time_ns, failure)) = self.closing.take() {
            self.close(time_ns, failure, out);
        }
    }

    fn close(&mut self, time_ns: u64, failure: Failure, out: &mut Out<'_>) {
        if let Some(http2) = &mut self.http2 {
            http2.finish(StreamEnd::Failed { time_ns, failure }, out);
        }
        self.close_websocket(time_ns, out);
        while let Some(open) = self.pending.pop_front() {
            let response = &open.response;
            let hides_others = response.has_begun() && !response.is_surely_incomplete() && !response.is_last();
            open.finish(Ending::Closed { time_ns, failure }, out);
            if hides_others {
                self.drop_pipelined(out);
            }
        }
    }

    fn drop_pipelined(&mut self, out: &mut Out<'_>) {
        for open in self.pending.drain(..) {
            out.counters.pipelined += 1;
            open.give_up(out);
        }
    }
}

/// Empty lines before a request are not part of it (RFC 9112 §2.2); gives their bytes.
fn skip_line_ends(moved: &mut Moved<'_>) -> u64 {
    let count = moved.known().iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    moved.skip_known(count);
    count as u64
}
