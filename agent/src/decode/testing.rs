//! Makes the records that the kernel programs would write for calls on a connection.

use coati_common::{
    event::{Begin, Data, End, Header, Kind, Totals, data_flags, direction, end_reason, role},
    limits::{CHUNK_RECORDS, HEAD_BYTES},
};

use super::{DecodeConfig, DecodeCounters, Decoder, Event, Exchange};
use crate::capture::Record;

/// One millisecond: every call on a [`Wire`] takes place that much after the one before.
pub(crate) const MS: u64 = 1_000_000;

/// One end of a connection, as the kernel programs follow it.
#[derive(Clone, Debug)]
pub(crate) struct Wire {
    pub(crate) records: Vec<Record>,
    pub(crate) time_ns: u64,
    pub(crate) tgid: u32,
    pub(crate) totals: Totals,
    pub(crate) exchange: u32,
    pub(crate) tail: [u8; 8],
    pub(crate) client_position: u32,
    pub(crate) server_position: u32,
    pub(crate) positions_known: bool,
    pub(crate) local: ([u8; 16], u16),
    pub(crate) remote: ([u8; 16], u16),
    connection: u64,
    role: u8,
    is_answering: bool,
    request_copied: usize,
    response_copied: usize,
}

impl Wire {
    /// The end of a process that answers on 10.0.0.2:8080.
    pub(crate) fn server(connection: u64) -> Self {
        Self {
            records: Vec::new(),
            time_ns: 10 * MS,
            tgid: 100,
            totals: Totals::default(),
            exchange: 0,
            tail: [0; 8],
            client_position: 1_000,
            server_position: 5_000,
            positions_known: true,
            local: (mapped([10, 0, 0, 2]), 8080),
            remote: (mapped([10, 0, 0, 1]), 40_000),
            connection,
            role: role::SERVER,
            is_answering: true,
            request_copied: 0,
            response_copied: 0,
        }
    }

    /// The end of a process that asks 10.0.0.2:8080.
    pub(crate) fn client(connection: u64) -> Self {
        let server = Self::server(connection);
        Self { role: role::CLIENT, tgid: 200, local: server.remote, remote: server.local, ..server }
    }

    pub(crate) fn wait(&mut self, ns: u64) -> &mut Self {
        self.time_ns += ns;
        self
    }

    /// Bytes of a request.
    pub(crate) fn request(&mut self, bytes: &[u8]) -> &mut Self {
        let header = self.header(Kind::Begin);
        let is_begin = self.is_answering
            && ["GET ", "POST ", "HEAD ", "PUT ", "CONNECT ", "OPTIONS "]
                .iter()
                .any(|method| bytes.starts_with(method.as_bytes()));
        if is_begin {
            let previous = std::mem::take(&mut self.totals);
            self.exchange += 1;
            self.is_answering = false;
            (self.request_copied, self.response_copied, self.tail) = (0, 0, [0; 8]);
            self.count_request(bytes, header.time_ns);
            let payload = budget(&mut self.request_copied, bytes);
            let begin = Begin {
                header,
                connection: self.connection,
                socket: self.connection << 8,
                exchange: self.exchange,
                tgid: self.tgid,
                tid: self.tgid + 1,
                netns: 1,
                client_position: self.client_position,
                server_position: self.server_position,
                local_address: self.local.0,
                remote_address: self.remote.0,
                local_port: self.local.1,
                remote_port: self.remote.1,
                role: self.role,
                positions_known: self.positions_known.into(),
                payload_len: payload.len() as u16,
                len: bytes.len() as u64,
                last: last(bytes),
                previous,
            };
            self.records.push(Record::Begin(Box::new(begin), payload));
        } else {
            self.count_request(bytes, header.time_ns);
            if self.request_copied < HEAD_BYTES {
                let payload = budget(&mut self.request_copied, bytes);
                self.data(direction::REQUEST, 0, bytes.len() as u64, last(bytes), payload, header.time_ns);
            }
        }
        self.client_position = self.client_position.wrapping_add(bytes.len() as u32);
        self
    }

    /// Bytes of responses.
    pub(crate) fn response(&mut self, bytes: &[u8]) -> &mut Self {
        let payload = budget(&mut self.response_copied, bytes);
        self.answer(
            bytes.len() as u64,
            last(bytes),
            payload,
            bytes.starts_with(b"HTTP/1.1 10") && !bytes.starts_with(b"HTTP/1.1 101"),
        )
    }

    /// Bytes of a response that no system call has in a buffer.
    pub(crate) fn sendfile(&mut self, len: u64) -> &mut Self {
        self.answer(len, [0; 8], Vec::new(), false)
    }

    /// Bytes that no program sees: a system call without a hook.
    pub(crate) fn unseen(&mut self, len: u64) -> &mut Self {
        self.server_position = self.server_position.wrapping_add(len as u32);
        self
    }

    /// A receive that returned 0.
    pub(crate) fn eof(&mut self) -> &mut Self {
        let header = self.header(Kind::Data);
        let direction = if self.role == role::CLIENT { direction::RESPONSE } else { direction::REQUEST };
        self.data(direction, data_flags::EOF, 0, [0; 8], Vec::new(), header.time_ns);
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

    fn answer(&mut self, len: u64, last: [u8; 8], payload: Vec<u8>, is_interim: bool) -> &mut Self {
        let time_ns = self.header(Kind::Data).time_ns;
        self.server_position = self.server_position.wrapping_add(len as u32);
        if is_interim && self.totals.response_bytes == 0 {
            self.data(direction::RESPONSE, data_flags::INTERIM, len, last, payload, time_ns);
            return self;
        }
        self.is_answering = true;
        let totals = &mut self.totals;
        let flags = if totals.response_bytes == 0 { data_flags::FIRST } else { 0 };
        if totals.response_bytes == 0 {
            totals.response_first_ns = time_ns;
        } else {
            totals.longest_gap_ns = totals.longest_gap_ns.max(time_ns - totals.response_last_ns);
        }
        totals.response_bytes += len;
        totals.response_last_ns = time_ns;
        totals.response_chunks += 1;
        self.tail = last;
        if totals.response_chunks <= CHUNK_RECORDS {
            self.data(direction::RESPONSE, flags, len, last, payload, time_ns);
        }
        self
    }

    fn data(&mut self, direction: u8, flags: u8, len: u64, last: [u8; 8], payload: Vec<u8>, time_ns: u64) {
        let data = Data {
            header: Header { kind: Kind::Data as u32, time_ns, ..Header::default() },
            connection: self.connection,
            exchange: self.exchange,
            tgid: self.tgid,
            tid: self.tgid + 1,
            payload_len: payload.len() as u16,
            direction,
            flags,
            len,
            last,
            totals: self.totals,
        };
        self.records.push(Record::Data(data, payload));
    }

    fn end(&mut self, reason: u32) -> &mut Self {
        let header = self.header(Kind::End);
        let (connection, exchange, totals) = (self.connection, self.exchange, self.totals);
        self.records.push(Record::End(End { header, connection, exchange, reason, totals }));
        self
    }

    fn count_request(&mut self, bytes: &[u8], time_ns: u64) {
        self.totals.request_bytes += bytes.len() as u64;
        self.totals.request_last_ns = time_ns;
    }

    fn header(&mut self, kind: Kind) -> Header {
        self.time_ns += MS;
        Header { kind: kind as u32, cpu: 0, cpu_seq: self.records.len() as u64, time_ns: self.time_ns }
    }
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

fn budget(copied: &mut usize, bytes: &[u8]) -> Vec<u8> {
    let count = bytes.len().min(HEAD_BYTES - *copied);
    *copied += count;
    bytes[..count].to_vec()
}

/// A decoder and what it told.
pub(crate) struct Run {
    pub(crate) decoder: Decoder,
    /// `opened`, `began`, `ended` and `dropped`, with the exchange's number and place.
    pub(crate) told: Vec<String>,
    pub(crate) exchanges: Vec<Exchange>,
}

impl Run {
    pub(crate) fn new(config: DecodeConfig) -> Self {
        Self { decoder: Decoder::new(config), told: Vec::new(), exchanges: Vec::new() }
    }

    pub(crate) fn of(records: &[Record]) -> Self {
        let mut run = Self::new(DecodeConfig::default());
        run.feed(records);
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
        let (told, exchanges) = (&mut self.told, &mut self.exchanges);
        step(&mut self.decoder, &mut |event| {
            let (word, origin) = match event {
                Event::Opened(origin) => ("opened", origin),
                Event::Began(origin, _) => ("began", origin),
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
fn line(exchange: &Exchange) -> String {
    let path = exchange.request.path().unwrap_or_else(|| exchange.request.host().unwrap_or_default());
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
