//! One request and its response.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use coati_common::event::{self, Begin, Served, begin_flags};

use super::http1::{RequestHead, ResponseHead};

/// Which end of the connection the process is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Role {
    /// The process answers.
    Server,
    /// The process asks.
    Client,
}

impl Role {
    pub(super) const fn of(begin: &Begin) -> Self {
        if begin.role == event::role::CLIENT { Self::Client } else { Self::Server }
    }
}

/// Names an exchange while the agent runs.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ExchangeId {
    /// Identity of the connection.
    pub connection: u64,
    /// The kernel's number of the exchange on the connection.
    pub number: u32,
    /// Place among the pipelined requests that the kernel takes for one exchange, from 0; of HTTP/2 the stream.
    pub place: u32,
}

/// Names a request: both ends of its connection know it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Key {
    /// The stream positions at its first byte, through NAT too. No other request has the same.
    Tcp {
        /// TCP sequence number of the request's first byte.
        client_position: u32,
        /// TCP sequence number of the byte that the server sends next; of HTTP/2, where that may be another one at each
        /// end, of the first byte that it ever sent.
        server_position: u32,
    },
    /// Unix sockets count no bytes. A client that asks for the same again on one connection has the same key again.
    Unix {
        /// Inode number of the client's socket.
        client: u32,
        /// Made of the request's head; of HTTP/2 its stream. 0 while that is not known.
        request: u64,
    },
}

/// Who an exchange belongs to and where it comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Origin {
    /// Its name.
    pub id: ExchangeId,
    /// Kernel address of the socket: key of the `CONNECTIONS` map.
    pub socket: u64,
    /// Which end the process is.
    pub role: Role,
    /// Process.
    pub tgid: u32,
    /// Thread that moved the request's first bytes.
    pub tid: u32,
    /// Network namespace's inode number, 0 if unknown.
    pub netns: u32,
    /// Stream positions, where the kernel could read them.
    pub key: Option<Key>,
    /// Address of the process's end; unspecified, with port 0, if it is not known.
    pub local: SocketAddr,
    /// Address of the other end; the same.
    pub remote: SocketAddr,
    /// The bytes are the plaintext of a TLS session.
    pub is_tls: bool,
    /// The connection is a pair of Unix sockets: it has no addresses.
    pub is_unix: bool,
    /// First byte of the request, nanoseconds of `CLOCK_MONOTONIC`.
    pub begin_ns: u64,
    /// Of a client's: the server's that it is made for, where the kernel knows.
    pub served: Option<ExchangeId>,
    /// That is told by the answer to another call that was made for it.
    pub is_after_answer: bool,
    /// What the thread that moved the request's first bytes was doing then.
    pub within: Within,
}

/// What tells for what a thread works.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Within {
    /// Nothing, or what is told as [`Origin::served`].
    #[default]
    Unknown,
    /// The thread itself: it runs Python, outside of all contexts.
    Thread,
    /// The context of Python in which it runs: what is copied from that, in which a request is read, works for the request.
    Context,
}

impl Origin {
    pub(super) fn new(begin: &Begin) -> Self {
        let Begin { client_position, server_position, flags, .. } = *begin;
        let is_unix = flags & begin_flags::UNIX != 0;
        let key = if is_unix {
            Key::Unix { client: client_position, request: 0 }
        } else {
            Key::Tcp { client_position, server_position }
        };
        Self {
            id: ExchangeId { connection: begin.connection, number: begin.exchange, place: 0 },
            socket: begin.socket,
            role: Role::of(begin),
            tgid: begin.tgid,
            tid: begin.tid,
            netns: begin.netns,
            key: (flags & begin_flags::POSITIONS != 0).then_some(key),
            local: socket_address(begin.local_address, begin.local_port),
            remote: socket_address(begin.remote_address, begin.remote_port),
            begin_ns: begin.header.time_ns,
            is_tls: flags & begin_flags::TLS != 0,
            is_unix,
            served: served(begin.served),
            is_after_answer: flags & begin_flags::AFTER_ANSWER != 0,
            within: if flags & begin_flags::CONTEXT != 0 {
                Within::Context
            } else if flags & begin_flags::THREAD != 0 {
                Within::Thread
            } else {
                Within::Unknown
            },
        }
    }

    /// Whether the two addresses are known: of a TLS session they may not be.
    pub fn has_addresses(&self) -> bool {
        self.local.port() != 0 || self.remote.port() != 0
    }

    /// The request on stream `stream` of the HTTP/2 connection that this is: its HEADERS frame begins at byte `at` of
    /// what the client has sent since.
    pub(super) fn stream(mut self, stream: u32, at: u64, begin_ns: u64, by: By) -> Self {
        (self.id.place, self.begin_ns) = (stream, begin_ns);
        (self.tgid, self.tid, self.served, self.within) = (by.tgid, by.tid, by.served, Within::Unknown);
        self.is_after_answer = false;
        self.move_on(at);
        self.set_request(stream.into());
        self
    }

    /// What tells the request apart from others of its connection, where nothing counts bytes.
    pub(super) const fn set_request(&mut self, told: u64) {
        if let Some(Key::Unix { request, .. }) = &mut self.key {
            *request = told;
        }
    }

    /// The request begins `bytes` later.
    const fn move_on(&mut self, bytes: u64) {
        match &mut self.key {
            // Sequence numbers wrap.
            Some(Key::Tcp { client_position, .. }) => *client_position = client_position.wrapping_add(bytes as u32),
            Some(Key::Unix { request, .. }) => *request = 0,
            None => {}
        }
    }

    /// The request that follows this one, `request_bytes` long, before this one was answered.
    pub(super) fn pipelined(mut self, number: u32, place: u32, request_bytes: u64, begin_ns: u64) -> Self {
        (self.id.number, self.id.place, self.begin_ns) = (number, place, begin_ns);
        // Known of the first alone.
        (self.served, self.is_after_answer) = (None, false);
        self.move_on(request_bytes);
        self
    }
}

/// Who makes a call that begins a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct By {
    /// Process.
    pub(super) tgid: u32,
    /// Thread.
    pub(super) tid: u32,
    /// As in [`Origin`].
    pub(super) served: Option<ExchangeId>,
}

/// The exchange that a record names.
pub(super) fn served(served: Served) -> Option<ExchangeId> {
    let Served { connection, exchange: number, place } = served;
    (connection != 0).then_some(ExchangeId { connection, number, place })
}

/// IPv4 travels as IPv4-mapped IPv6.
fn socket_address(address: [u8; 16], port: u16) -> SocketAddr {
    let address = Ipv6Addr::from(address);
    SocketAddr::new(address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4), port)
}

/// The most important thing that is not known of an exchange.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Incomplete {
    /// The request's head is cut: headers may be missing.
    Head,
    /// When the response ended: [`Exchange::end_ns`] is the last byte that was seen.
    End,
    /// The response, although there was one, or may have been.
    Response,
}

impl Incomplete {
    /// The value of `coati.incomplete`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::End => "end",
            Self::Response => "response",
        }
    }
}

/// Why a response did not come, or did not come whole.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// The connection was closed first, by either side.
    ConnectionClosed,
    /// The connection was reset first.
    ConnectionReset,
    /// One side gave up the stream (HTTP/2).
    StreamReset,
    /// The server went away before it looked at the stream (HTTP/2).
    StreamRefused,
}

impl Failure {
    /// The value of `error.type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionClosed => "connection_closed",
            Self::ConnectionReset => "connection_reset",
            Self::StreamReset => "stream_reset",
            Self::StreamRefused => "stream_refused",
        }
    }
}

/// What makes an exchange a call of gRPC.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Grpc {
    /// `grpc-status`; `None` if there was none, or it is not known.
    pub status: Option<u32>,
}

/// What moved on a connection that was switched to WebSocket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WebSocket {
    /// Of the client.
    pub requests: WebSocketSide,
    /// Of the server.
    pub responses: WebSocketSide,
    /// Code of the close frame; `None` if there was none, or it gave none.
    pub close_code: Option<u16>,
}

/// What one end has sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WebSocketSide {
    /// Messages; `None` if some may have been missed.
    pub messages: Option<u64>,
    /// Bytes on the wire behind the heads.
    pub bytes: u64,
}

/// How far an exchange had come while it ran.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Progress {
    /// When, nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Bytes of the request by then.
    pub request_bytes: u64,
    /// Bytes of the response by then.
    pub response_bytes: u64,
    /// System calls that had moved the response; of HTTP/2 frames.
    pub chunks: u32,
}

/// A request and its response. Times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Debug)]
pub struct Exchange {
    /// Who and where.
    pub origin: Origin,
    /// Name of the Unix socket that the server listens on, an abstract one with `@` before it; `None` if it has none.
    pub unix_path: Option<Arc<str>>,
    /// Head of the request.
    pub request: Arc<RequestHead>,
    /// Head of the final response; `None` if there was none, or it is not known (then [`Self::incomplete`] says so).
    pub response: Option<ResponseHead>,
    /// Last byte of the response; without one the end of the connection.
    pub end_ns: u64,
    /// First byte of the final response.
    pub response_first_ns: Option<u64>,
    /// System calls that moved the response.
    pub response_chunks: u32,
    /// Longest pause between two of them.
    pub longest_gap_ns: u64,
    /// Bytes on the wire behind the request's head, chunk framing included; `None` if the head is cut and nothing says.
    pub request_body_bytes: Option<u64>,
    /// Bytes on the wire behind the response's head, chunk framing included; `None` as above or without a response.
    pub response_body_bytes: Option<u64>,
    /// Set if it is a call of gRPC.
    pub grpc: Option<Grpc>,
    /// Set if the connection was switched to WebSocket: then it is over with the connection.
    pub websocket: Option<WebSocket>,
    /// How far it had come, every ten seconds of its response, oldest first.
    pub progress: Vec<Progress>,
    /// What is not known.
    pub incomplete: Option<Incomplete>,
    /// What went wrong on the wire.
    pub failure: Option<Failure>,
    /// What was captured of the bodies, of requests that look like inference.
    pub bodies: Option<Box<Bodies>>,
}

/// The captured parts of an exchange's bodies, chunk framing included.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Bodies {
    /// The start of the request's body.
    pub request: Box<[u8]>,
    /// The start of the response's body.
    pub response: Box<[u8]>,
    /// The end of the response, what is in [`Self::response`] included where it is short; there may be gaps in it.
    pub response_end: Box<[u8]>,
    /// First byte behind the response's head, nanoseconds of `CLOCK_MONOTONIC`.
    pub response_first_ns: Option<u64>,
    /// The calls that moved what is in [`Self::response`]: where the bytes of each begin, and when it was.
    pub response_calls: Vec<(usize, u64)>,
}

impl Bodies {
    /// When the byte at `place` of [`Self::response`] was moved.
    pub fn moved_ns(&self, place: usize) -> Option<u64> {
        let behind = self.response_calls.partition_point(|(start, _)| *start <= place);
        Some(self.response_calls.get(behind.checked_sub(1)?)?.1)
    }
}
