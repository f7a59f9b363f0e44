//! HTTP/2 (RFC 9113): many exchanges at once on one connection, each a stream of frames.
//!
//! The kernel programs tell the frames without the content of DATA frames. Where some are missing, the next record says
//! where it stands; header blocks may have been among them, so from there on fields may be unknown (see [`hpack`]), and
//! a stream of which nothing more is heard may have ended.

mod flow;
mod frames;
pub(super) mod fuzz;
mod head;
pub(super) mod hpack;
mod huffman;
mod static_table;
mod stream;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc};

use coati_common::event::{Begin, Data, Frames, data_flags, direction, frame_state};

use super::{
    Failure, Origin,
    exchange::{By, served},
    message::RequestStream,
    open::{Open, Out},
};
use flow::{Block, Flow, Item};
use frames::Call;
#[cfg(test)]
pub(super) use frames::testing::told;
pub(super) use stream::StreamEnd;
use stream::{Moment, Stream};

/// Streams of a connection that are followed at once.
const STREAM_LIMIT: usize = 1024;
/// Silence after which a stream is given up whose end may have been missed.
const END_UNKNOWN_NS: u64 = 3_000_000_000;

/// A connection that speaks HTTP/2.
#[derive(Debug)]
pub(super) struct Http2 {
    requests: Flow,
    responses: Flow,
    streams: Streams,
}

/// The exchanges of a connection.
#[derive(Debug)]
struct Streams {
    /// Of the connection.
    origin: Origin,
    /// Name of the Unix socket, if it is one and has one.
    unix_path: Option<Arc<str>>,
    open: BTreeMap<u32, Box<Stream>>,
    /// The newest one that the client has opened.
    newest: u32,
    /// Requests may have been missed since that.
    is_gap: bool,
    /// Nothing was understood yet, and it was only guessed that this is HTTP/2.
    is_guess: bool,
    /// It was guessed wrong.
    is_refused: bool,
}

impl Http2 {
    /// A connection whose first record this is; its bytes are still to be taken.
    pub(super) fn new(begin: &Begin, unix_path: Option<Arc<str>>) -> Self {
        let is_joined = Frames::of_mark(begin.last).state != frame_state::OTHER;
        let (requests, responses) =
            if is_joined { (Flow::joined(), Flow::joined()) } else { (Flow::preface(), Flow::new()) };
        Self { requests, responses, streams: Streams::new(Origin::new(begin), unix_path, is_joined) }
    }

    /// A connection that was switched by the answer to `open`, which is its first stream. Frames of the server follow
    /// behind byte `start` of that answer.
    pub(super) fn upgraded(open: &mut Open, start: u64) -> Option<Self> {
        let mut streams = Streams::new(open.origin, open.unix_path.clone(), false);
        streams.newest = 1;
        let RequestStream { head, bytes, .. } = &mut open.request;
        let head = head.take()?;
        let body = bytes.saturating_sub(super::http1::Head::size(&*head) as u64);
        streams.open.insert(
            1,
            Box::new(Stream::new(open.origin, open.unix_path.clone(), head, Some(body), open.request_last_ns, false)),
        );
        Some(Self { requests: Flow::preface(), responses: Flow::at_frame(start), streams })
    }

    /// The client's preface: from here on the kernel follows the frames.
    pub(super) fn preface(&mut self, begin: &Begin) {
        let origin = Origin::new(begin);
        self.streams.origin = origin;
        self.responses.recount();
    }

    /// Takes the bytes of the record that tells of the preface, or of the request at which the connection was joined.
    pub(super) fn begin(&mut self, begin: &Begin, payload: &[u8], out: &mut Out<'_>) {
        let call = Call { start: 0, len: begin.len, payload, mark: Some(begin.last) };
        let time_ns = begin.header.time_ns;
        let at = Moment {
            first_ns: time_ns,
            last_ns: time_ns,
            by: By { tgid: begin.tgid, tid: begin.tid, served: served(begin.served) },
        };
        self.take(direction::REQUEST, &call, at, out);
    }

    /// Takes the bytes of a later record.
    pub(super) fn data(&mut self, data: &Data, payload: &[u8], out: &mut Out<'_>) {
        let (total, last_ns) = if data.direction == direction::REQUEST {
            (data.totals.request_bytes, data.totals.request_last_ns)
        } else {
            (data.totals.response_bytes, data.totals.response_last_ns)
        };
        let mark = (data.flags & data_flags::FRAMES != 0).then_some(data.last);
        let call = Call { start: total.saturating_sub(data.len), len: data.len, payload, mark };
        let first_ns = data.header.time_ns;
        // A send that had to wait for room ended later than it began.
        let at = Moment {
            first_ns,
            last_ns: first_ns.max(last_ns),
            by: By { tgid: data.tgid, tid: data.tid, served: served(data.served) },
        };
        self.take(data.direction, &call, at, out);
    }

    /// Takes bytes of the server that came in one call with the answer that switched the connection.
    pub(super) fn switched(&mut self, start: u64, len: u64, payload: &[u8], first_ns: u64, out: &mut Out<'_>) {
        let Origin { tgid, tid, .. } = self.streams.origin;
        let at = Moment { first_ns, last_ns: first_ns, by: By { tgid, tid, served: None } };
        self.take(direction::RESPONSE, &Call { start, len, payload, mark: None }, at, out);
    }

    fn take(&mut self, towards: u8, call: &Call<'_>, at: Moment, out: &mut Out<'_>) {
        let Self { requests, responses, streams } = self;
        if streams.is_refused {
            return;
        }
        let is_request = towards == direction::REQUEST;
        let from = if is_request { requests } else { responses };
        let missed = from.take(call, &mut |item| {
            if is_request { streams.of_client(item, at, out) } else { streams.of_server(item, at, out) }
        });
        out.counters.http2_missed_bytes += missed;
    }

    /// Notes how far the streams have come; gives how many have run for long.
    pub(super) fn note_progress(&mut self, now_ns: u64) -> usize {
        self.streams.open.values_mut().for_each(|stream| stream.note_progress(now_ns));
        self.streams.open.values().filter(|stream| stream.is_long(now_ns)).count()
    }

    /// Shows the streams that have been open for long.
    pub(super) fn show(&mut self, after_ns: u64, now_ns: u64, out: &mut Out<'_>) {
        self.streams.open.values_mut().for_each(|stream| stream.show(after_ns, now_ns, out));
    }

    /// Ends what only the time that has passed tells to be over.
    pub(super) fn settle_silent(&mut self, now_ns: u64, out: &mut Out<'_>) {
        let is_over =
            |stream: &Stream| stream.is_end_uncertain && now_ns.saturating_sub(stream.heard_ns()) >= END_UNKNOWN_NS;
        let over: Vec<u32> =
            self.streams.open.iter().filter(|(_, stream)| is_over(stream)).map(|(id, _)| *id).collect();
        for id in over {
            self.streams.finish(id, StreamEnd::Unknown, out);
        }
    }

    /// Ends every stream.
    pub(super) fn finish(&mut self, end: StreamEnd, out: &mut Out<'_>) {
        while let Some((_, stream)) = self.streams.open.pop_first() {
            stream.finish(end, out);
        }
    }

    /// Gives every stream up; gives their number.
    pub(super) fn evict(&mut self, out: &mut Out<'_>) -> u64 {
        let count = self.streams.open.len() as u64;
        while let Some((_, stream)) = self.streams.open.pop_first() {
            (out.emit)(super::Event::Dropped(&stream.origin));
        }
        count
    }

    /// Streams that are open.
    pub(super) fn open(&self) -> usize {
        self.streams.open.len()
    }

    /// The oldest stream that is open.
    pub(super) fn oldest(&self) -> Option<&Origin> {
        self.streams.open.first_key_value().map(|(_, stream)| &stream.origin)
    }
}

impl Streams {
    const fn new(origin: Origin, unix_path: Option<Arc<str>>, is_guess: bool) -> Self {
        Self { origin, unix_path, open: BTreeMap::new(), newest: 0, is_gap: false, is_guess, is_refused: false }
    }

    fn of_client(&mut self, item: Item, at: Moment, out: &mut Out<'_>) {
        match item {
            Item::Block(block) => self.request(*block, at, out),
            Item::Data { stream, bytes, .. } => {
                if let Some(stream) = self.open.get_mut(&stream) {
                    stream.request_data(bytes, at);
                }
            }
            Item::Reset { stream } => {
                self.finish(stream, StreamEnd::Failed { time_ns: at.last_ns, failure: Failure::StreamReset }, out);
            }
            Item::GoAway { .. } => {}
            Item::Gap => {
                out.counters.http2_gaps += 1;
                self.is_gap = true;
                self.open.values_mut().for_each(|stream| stream.miss_request());
            }
        }
    }

    fn of_server(&mut self, item: Item, at: Moment, out: &mut Out<'_>) {
        match item {
            Item::Block(block) => self.response(*block, at, out),
            Item::Data { stream, bytes, is_last, is_end } => {
                if let Some(open) = self.open.get_mut(&stream) {
                    open.response_data(bytes, is_last, at);
                    if is_end {
                        self.finish(stream, StreamEnd::Complete, out);
                    }
                }
            }
            Item::Reset { stream } => {
                self.finish(stream, StreamEnd::Failed { time_ns: at.last_ns, failure: Failure::StreamReset }, out);
            }
            Item::GoAway { last } => {
                // The server has not looked at what came later.
                let refused: Vec<u32> = self.open.range(last.saturating_add(1)..).map(|(id, _)| *id).collect();
                for id in refused {
                    let failure = Failure::StreamRefused;
                    self.finish(id, StreamEnd::Failed { time_ns: at.last_ns, failure }, out);
                }
            }
            Item::Gap => {
                out.counters.http2_gaps += 1;
                self.open.values_mut().for_each(|stream| stream.miss_response());
            }
        }
    }

    fn request(&mut self, block: Block, at: Moment, out: &mut Out<'_>) {
        let Block { header, fields, .. } = block;
        let id = header.stream;
        if let Some(stream) = self.open.get_mut(&id) {
            // Trailers.
            stream.request_data(0, at);
            return;
        }
        // What the client may not open, or the trailers of a stream that is over.
        if id % 2 == 0 || id <= self.newest {
            return;
        }
        if std::mem::take(&mut self.is_gap) && self.newest > 0 {
            out.counters.begin_missing += u64::from((id - self.newest) / 2 - 1);
        }
        self.newest = id;
        let head = fields.as_ref().ok().and_then(|fields| fields.request(out.keeps_headers));
        if self.is_guess && head.is_none() {
            self.is_refused = true;
            out.counters.http2_refused += 1;
            return;
        }
        self.is_guess = false;
        out.counters.exchanges += 1;
        let is_malformed = fields.is_err();
        let (Some(head), Ok(fields)) = (head, fields) else {
            out.counters.request_malformed += u64::from(is_malformed);
            out.counters.request_unreadable += u64::from(!is_malformed);
            return;
        };
        if self.open.len() >= STREAM_LIMIT {
            out.counters.evicted += 1;
            return;
        }
        let origin = self.origin.stream(id, header.at, at.first_ns, at.by);
        (out.emit)(super::Event::Began(&origin, &head));
        let mut stream =
            Stream::new(origin, self.unix_path.clone(), Arc::new(head), Some(0), at.last_ns, fields.is_grpc());
        stream.request_data(0, at);
        self.open.insert(id, Box::new(stream));
    }

    fn response(&mut self, block: Block, at: Moment, out: &mut Out<'_>) {
        let Block { header, fields, is_end, .. } = block;
        let Some(stream) = self.open.get_mut(&header.stream) else {
            if header.stream % 2 == 1 && header.stream > self.newest && !self.is_guess {
                // Its request was missed.
                out.counters.begin_missing += 1;
                self.newest = header.stream;
            }
            return;
        };
        stream.response_block(fields.as_ref().ok(), is_end, at, out);
        out.counters.response_malformed += u64::from(fields.is_err());
        if is_end {
            self.finish(header.stream, StreamEnd::Complete, out);
        }
    }

    fn finish(&mut self, id: u32, end: StreamEnd, out: &mut Out<'_>) {
        if let Some(stream) = self.open.remove(&id) {
            stream.finish(end, out);
        }
    }
}
