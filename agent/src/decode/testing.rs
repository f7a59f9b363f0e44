//! Makes the records that the kernel programs would write for calls on a connection.

use coati_common::{
    event::{
        Begin, Connection, Data, End, Frames, Header, Kind, Served, Tail, Totals, begin_flags, connection_flags,
        data_flags, direction, end_reason, phase, role,
    },
    follow::Meaning,
    sniff::{SNIFF_BYTES, Sniff},
};

use super::{DecodeConfig, DecodeCounters, Decoder, Event, Exchange, http2::told};
use crate::capture::Record;

/// One millisecond: every call on a [`Wire`] takes place that much after the one before.
pub(crate) const MS: u64 = 1_000_000;

/// One end of a connection, followed as the kernel programs do it.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub(crate) records: Vec<Record>,
    pub(crate) time_ns: u64,
    pub(crate) tgid: u32,
    pub(crate) state: Connection,
    pub(crate) client_position: u32,
    pub(crate) server_position: u32,
    pub(crate) positions_known: bool,
    /// The request that what is told is for.
    pub(crate) served: Served,
    /// The thread, if it runs Python outside of contexts.
    pub(crate) thread: Option<u32>,
    /// It does so in a context.
    pub(crate) in_context: bool,
    /// What is told is for that request because a call for it was answered.
    pub(crate) is_after_answer: bool,
    /// Bytes of frames that are copied in one call.
    pub(crate) frames_room: usize,
    pub(crate) local: ([u8; 16], u16),
    pub(crate) remote: ([u8; 16], u16),
    /// The end of what no record carried, as the kernel keeps it.
    pub(crate) kept: Vec<u8>,
    /// Inode number of the client's socket, if the connection is one of Unix sockets.
    pub(crate) unix: Option<u32>,
}

/// Bytes of an end that one record tells.
const MOST: usize = 1024;

impl Wire {
    /// The end of a process that answers on 10.0.0.2:8080.
    pub(crate) fn server(connection: u64) -> Self {
        Self {
            records: Vec::new(),
            time_ns: 10 * MS,
            tgid: 100,
            state: Connection::idle(connection, role::SERVER),
            client_position: 1_000,
            server_position: 5_000,
            positions_known: true,
            served: Served::NONE,
            thread: None,
            in_context: false,
            is_after_answer: false,
            frames_room: usize::MAX,
            local: (mapped([10, 0, 0, 2]), 8080),
            remote: (mapped([10, 0, 0, 1]), 40_000),
            kept: Vec::new(),
            unix: None,
        }
    }

    /// Makes it the end of a connection of Unix sockets, whose client's has this inode number.
    pub(crate) fn on_unix(mut self, inode: u32, path: &[u8]) -> Self {
        self.unix = Some(inode);
        (self.local, self.remote) = Default::default();
        self.records.push(Record::Unix(self.header(Kind::Unix), self.state.connection, path.to_vec()));
        self
    }

    /// The end of a process that asks 10.0.0.2:8080.
    pub(crate) fn client(connection: u64) -> Self {
        let server = Self::server(connection);
        let state = Connection::idle(connection, role::CLIENT);
        Self { state, tgid: 200, local: server.remote, remote: server.local, ..server }
    }

    pub(crate) fn wait(&mut self, ns: u64) -> &mut Self {
        self.time_ns += ns;
        self
    }

    /// Bytes of a request.
    pub(crate) fn request(&mut self, bytes: &[u8]) -> &mut Self {
        self.moved(direction::REQUEST, bytes, bytes.len() as u64, last(bytes), 0)
    }

    /// Bytes of responses.
    pub(crate) fn response(&mut self, bytes: &[u8]) -> &mut Self {
        self.moved(direction::RESPONSE, bytes, bytes.len() as u64, last(bytes), 0)
    }

    /// Bytes of responses, sent by a call that had to wait for room.
    pub(crate) fn response_blocked(&mut self, bytes: &[u8], wait_ns: u64) -> &mut Self {
        self.moved(direction::RESPONSE, bytes, bytes.len() as u64, last(bytes), wait_ns)
    }

    /// Bytes of a response that no system call has in a buffer.
    pub(crate) fn sendfile(&mut self, len: u64) -> &mut Self {
        self.moved(direction::RESPONSE, &[], len, [0; 8], 0)
    }

    /// Bytes that no program sees: a system call without a hook.
    pub(crate) fn unseen(&mut self, len: u64) -> &mut Self {
        self.server_position = self.server_position.wrapping_add(len as u32);
        self
    }

    /// A receive that returned 0.
    pub(crate) fn eof(&mut self) -> &mut Self {
        self.time_ns += MS;
        if self.state.role == role::CLIENT && self.state.tells_eof() {
            self.tell_kept();
            self.tell(direction::RESPONSE, data_flags::EOF, 0, [0; 8], Vec::new());
        }
        self
    }

    pub(crate) fn close(&mut self) -> &mut Self {
        self.end(end_reason::CLOSED)
    }

    pub(crate) fn reset(&mut self) -> &mut Self {
        self.end(end_reason::RESET)
    }

    /// The records of several wires in the order of their times.
    pub(crate) fn merge(wires: &[&Self]) -> Vec<Record> {
        let mut records: Vec<Record> = wires.iter().flat_map(|wire| wire.records.clone()).collect();
        records.sort_by_key(|record| record.header().time_ns);
        records
    }

    fn moved(&mut self, towards: u8, bytes: &[u8], len: u64, last: [u8; 8], wait_ns: u64) -> &mut Self {
        self.time_ns += MS;
        let first_ns = self.time_ns;
        let sniffed = sniff(bytes);
        // What is not followed yet.
        let first = Meaning::first(&sniffed).filter(|_| self.state.exchange == 0);
        let meaning = first.unwrap_or_else(|| self.state.meaning(towards, &sniffed));
        let previous = self.state.totals;
        self.state.enter(meaning, first_ns);
        self.state.count(meaning, len, first_ns, first_ns + wait_ns);
        if self.state.phase == phase::HTTP2 {
            self.frames(meaning, bytes, previous);
            self.move_on(towards, len);
            return self;
        }
        let room = bytes.len().min(self.state.room(meaning));
        let payload = bytes[..room].to_vec();
        self.state.keep_tail(meaning, len, last);
        self.state.last_ns = first_ns + wait_ns;
        if meaning.begins() {
            self.state.copied(meaning, room as u16);
            if payload.starts_with(b"POST ") {
                self.state.flags |= connection_flags::KEEPS_END;
            }
            self.kept.clear();
            self.begin(Kind::Begin, len, last, payload, previous);
            return self.went(towards, len, wait_ns);
        }
        if meaning.direction() == direction::RESPONSE && self.state.flags & connection_flags::KEEPS_END != 0 {
            self.keep_end(bytes, self.state.tells(meaning), payload.len());
        }
        if self.state.tells(meaning) {
            self.state.copied(meaning, room as u16);
            self.tell(towards, meaning.flags(), len, last, payload);
        }
        self.went(towards, len, wait_ns)
    }

    /// As `agent-ebpf/src/tail.rs` does it.
    fn keep_end(&mut self, bytes: &[u8], is_told: bool, carried: usize) {
        let end = bytes[bytes.len().saturating_sub(MOST)..].to_vec();
        if is_told {
            if carried < bytes.len() {
                self.tail(end);
            }
            return;
        }
        self.kept.extend(end);
        if self.state.response_tail.ends_with(b"0\r\n\r\n") {
            self.tell_kept();
        }
    }

    fn tell_kept(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        let kept = &kept[kept.len().saturating_sub(2 * MOST)..];
        kept.chunks(MOST).for_each(|half| self.tail(half.to_vec()));
    }

    fn tail(&mut self, payload: Vec<u8>) {
        let Connection { connection, exchange, .. } = self.state;
        let header = self.header(Kind::Tail);
        let tail = Tail { header, connection, exchange, payload_len: payload.len() as u16, reserved: 0 };
        self.records.push(Record::Tail(tail, payload));
    }

    fn went(&mut self, towards: u8, len: u64, wait_ns: u64) -> &mut Self {
        self.time_ns += wait_ns;
        self.move_on(towards, len);
        self
    }

    /// A call on an HTTP/2 connection.
    fn frames(&mut self, meaning: Meaning, bytes: &[u8], previous: Totals) {
        let towards = meaning.direction();
        let frames = &mut self.state.frames[usize::from(towards)];
        if frames.state == Frames::UNKNOWN.state {
            if !sniff(bytes).is_frame() {
                return;
            }
            *frames = Frames::HEADER;
        }
        let mark = frames.mark();
        let payload = told(frames, bytes, self.frames_room);
        let ended = *frames == Frames::HEADER;
        self.state.last_ns = self.time_ns;
        if meaning.begins() {
            self.begin(Kind::Http2, bytes.len() as u64, mark, payload, previous);
        } else if !payload.is_empty() || ended {
            self.tell(towards, data_flags::FRAMES, bytes.len() as u64, mark, payload);
        }
    }

    fn move_on(&mut self, towards: u8, len: u64) {
        let position =
            if towards == direction::REQUEST { &mut self.client_position } else { &mut self.server_position };
        *position = position.wrapping_add(len as u32);
    }

    fn begin(&mut self, kind: Kind, len: u64, last: [u8; 8], payload: Vec<u8>, previous: Totals) {
        let begin = Begin {
            header: self.header(kind),
            connection: self.state.connection,
            socket: self.state.connection << 8,
            exchange: self.state.exchange,
            tgid: self.tgid,
            tid: self.thread.unwrap_or(self.tgid + 1),
            netns: 1,
            client_position: self.unix.unwrap_or(self.client_position),
            server_position: if self.unix.is_some() { 0 } else { self.server_position },
            local_address: self.local.0,
            remote_address: self.remote.0,
            local_port: self.local.1,
            remote_port: self.remote.1,
            role: self.state.role,
            flags: if self.positions_known { begin_flags::POSITIONS } else { 0 }
                | if self.unix.is_some() { begin_flags::UNIX } else { 0 }
                | if self.thread.is_some() { begin_flags::THREAD } else { 0 }
                | if self.in_context { begin_flags::CONTEXT } else { 0 }
                | if self.is_after_answer { begin_flags::AFTER_ANSWER } else { 0 },
            payload_len: payload.len() as u16,
            len,
            last,
            served: self.served,
            previous,
        };
        self.records.push(Record::Begin(Box::new(begin), payload));
    }

    fn tell(&mut self, direction: u8, flags: u8, len: u64, last: [u8; 8], payload: Vec<u8>) {
        let data = Data {
            header: self.header(Kind::Data),
            connection: self.state.connection,
            exchange: self.state.exchange,
            tgid: self.tgid,
            tid: self.tgid + 1,
            payload_len: payload.len() as u16,
            direction,
            flags,
            len,
            last,
            served: self.served,
            totals: self.state.totals,
        };
        self.records.push(Record::Data(data, payload));
    }

    fn end(&mut self, reason: u32) -> &mut Self {
        self.time_ns += MS;
        if self.state.finish() {
            self.tell_kept();
            let Connection { connection, exchange, totals, .. } = self.state;
            self.records.push(Record::End(End {
                header: self.header(Kind::End),
                connection,
                exchange,
                reason,
                totals,
            }));
        }
        self
    }

    fn header(&self, kind: Kind) -> Header {
        Header { kind: kind as u32, cpu: 0, cpu_seq: self.records.len() as u64, time_ns: self.time_ns }
    }
}

fn sniff(bytes: &[u8]) -> Sniff {
    let mut start = [0; SNIFF_BYTES];
    let len = bytes.len().min(SNIFF_BYTES);
    start[..len].copy_from_slice(&bytes[..len]);
    let word = |at: usize| u64::from_ne_bytes(start[at..at + 8].try_into().unwrap());
    Sniff::new([word(0), word(8)], len as u32)
}

fn mapped(address: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(address).to_ipv6_mapped().octets()
}

fn last(bytes: &[u8]) -> [u8; 8] {
    let mut last = [0; 8];
    let count = bytes.len().min(8);
    last[8 - count..].copy_from_slice(&bytes[bytes.len() - count..]);
    last
}

/// A decoder and what it told.
pub(crate) struct Run {
    pub(crate) decoder: Decoder,
    /// `opened`, `began`, `ended` and `dropped`, with the exchange's number and place.
    pub(crate) told: Vec<String>,
    pub(crate) exchanges: Vec<Exchange>,
    /// What was shown before it was over.
    pub(crate) running: Vec<Exchange>,
}

impl Run {
    pub(crate) fn new(config: DecodeConfig) -> Self {
        Self { decoder: Decoder::new(config), told: Vec::new(), exchanges: Vec::new(), running: Vec::new() }
    }

    /// What becomes of `records`, and of the time after them.
    pub(crate) fn of(records: &[Record]) -> Self {
        let mut run = Self::new(DecodeConfig::default());
        run.feed(records);
        let last_ns = records.iter().map(|record| record.header().time_ns).max().unwrap_or_default();
        run.tick(last_ns + 5_000 * MS);
        run
    }

    pub(crate) fn feed(&mut self, records: &[Record]) {
        for record in records {
            self.with(|decoder, emit| decoder.record(record.clone(), emit));
        }
    }

    pub(crate) fn tick(&mut self, now_ns: u64) {
        self.with(|decoder, emit| decoder.tick(now_ns, emit));
    }

    pub(crate) fn with(&mut self, step: impl FnOnce(&mut Decoder, &mut dyn FnMut(Event<'_>))) {
        let Self { decoder, told, exchanges, running } = self;
        step(decoder, &mut |event| {
            let (word, origin) = match event {
                Event::Opened(origin) => ("opened", origin),
                Event::Began(origin, _) => ("began", origin),
                Event::Answered(origin, _) => ("answered", origin),
                Event::Upgraded(origin) => ("upgraded", origin),
                Event::Running(exchange) => {
                    running.push(exchange.clone());
                    return;
                }
                Event::Ended(exchange) => {
                    exchanges.push(exchange.clone());
                    ("ended", &exchange.origin)
                }
                Event::Dropped(origin) => ("dropped", origin),
            };
            told.push(format!("{word} {}.{}", origin.id.number, origin.id.place));
        });
    }

    pub(crate) fn counters(&self) -> DecodeCounters {
        *self.decoder.counters()
    }

    /// The exchanges, one a line.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.exchanges.iter().map(line).collect()
    }

    /// The causes that were counted.
    pub(crate) fn causes(&self) -> Vec<&'static str> {
        self.counters().causes().into_iter().filter(|(_, count)| *count > 0).map(|(cause, _)| cause).collect()
    }
}

/// `METHOD target status [first byte, end] request body → response body bytes`, then what is wrong; times in ms.
pub(crate) fn line(exchange: &Exchange) -> String {
    let path = exchange.request.path().or(exchange.request.host()).unwrap_or_default();
    let ms = |ns: u64| ns / MS;
    let first = exchange.response_first_ns.map_or("-".into(), |ns| ms(ns).to_string());
    let size = |bytes: Option<u64>| bytes.map_or("?".into(), |bytes| bytes.to_string());
    let mut line = format!(
        "{} {path} {} {}..{first}..{} {}→{} in {}",
        exchange.request.method_text(),
        exchange.response.as_ref().map_or("-".into(), |head| head.status.to_string()),
        ms(exchange.origin.begin_ns),
        ms(exchange.end_ns),
        size(exchange.request_body_bytes),
        size(exchange.response_body_bytes),
        exchange.response_chunks,
    );
    if let Some(incomplete) = exchange.incomplete {
        line = format!("{line} incomplete={}", incomplete.as_str());
    }
    if let Some(failure) = exchange.failure {
        line = format!("{line} failure={}", failure.as_str());
    }
    line
}
