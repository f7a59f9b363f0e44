//! Records that the kernel programs write into the ring buffer, in native byte order.
//!
//! One HTTP exchange gives a [`Begin`] (the first bytes of the request), a [`Data`] for every further system call
//! that matters, and an [`End`] when the connection ends first. The kernel parses no HTTP beyond a method name and a
//! status class; user space does. Every record says when what it tells *happened*, so user space can put records of
//! different CPUs into order.
//!
//! Layout rule: fields are ordered so that `repr(C)` leaves no padding, so every byte of a record is initialised.

use crate::limits::{PATH_BYTES, UNIX_PATH_BYTES};

/// What a record is; the first field of [`Header`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Kind {
    /// A [`Begin`], followed by its payload.
    Begin = 1,
    /// A [`Data`], followed by its payload.
    Data = 2,
    /// An [`End`].
    End = 3,
    /// An [`Exec`].
    Exec = 4,
    /// An [`Exit`].
    Exit = 5,
    /// A [`Tail`], followed by its payload.
    Tail = 6,
    /// A [`Begin`], followed by its payload: from here on the connection speaks HTTP/2.
    Http2 = 7,
    /// A [`Tls`].
    Tls = 8,
    /// A [`Unix`].
    Unix = 9,
}

impl Kind {
    /// The kind that `value` stands for.
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Begin),
            2 => Some(Self::Data),
            3 => Some(Self::End),
            4 => Some(Self::Exec),
            5 => Some(Self::Exit),
            6 => Some(Self::Tail),
            7 => Some(Self::Http2),
            8 => Some(Self::Tls),
            9 => Some(Self::Unix),
            _ => None,
        }
    }
}

/// The start of every record.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Header {
    /// A [`Kind`].
    pub kind: u32,
    /// CPU on which the record was written.
    pub cpu: u32,
    /// Number of this record among those of its CPU, counting lost ones too: a gap is a loss.
    pub cpu_seq: u64,
    /// When it happened, nanoseconds of `CLOCK_MONOTONIC`: entry of a call that sends, exit of a call that receives.
    pub time_ns: u64,
}

/// Which end of the connection the observed process is.
pub mod role {
    /// The process receives requests.
    pub const SERVER: u8 = 1;
    /// The process sends requests.
    pub const CLIENT: u8 = 2;
}

/// Which of the two messages of an exchange bytes belong to.
pub mod direction {
    /// Bytes of the request.
    pub const REQUEST: u8 = 0;
    /// Bytes of the response.
    pub const RESPONSE: u8 = 1;
}

/// What is known of an exchange when its record is written. Times are `CLOCK_MONOTONIC` nanoseconds, 0 = has not happened.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Totals {
    /// Bytes of the request so far, head included.
    pub request_bytes: u64,
    /// Bytes of the response so far, interim (1xx) responses excluded, head included.
    pub response_bytes: u64,
    /// Last byte of the request.
    pub request_last_ns: u64,
    /// First byte of the (final) response.
    pub response_first_ns: u64,
    /// Last byte of the response so far.
    pub response_last_ns: u64,
    /// Longest pause between two system calls of the response.
    pub longest_gap_ns: u64,
    /// System calls that moved bytes of the response.
    pub response_chunks: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// The request that a client's request is made for, as far as the kernel knows: in programs written in Go by goroutine, in
/// those with event loops as they keep it, in Python by context.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Served {
    /// Identity of its connection, as in [`Begin`]; 0 if it is not known.
    pub connection: u64,
    /// Its number on that.
    pub exchange: u32,
    /// Of HTTP/2 the stream, else 0.
    pub place: u32,
}

impl Served {
    /// It is not known.
    pub const NONE: Self = Self { connection: 0, exchange: 0, place: 0 };
    /// It is one of several: none that is certain.
    pub const SEVERAL: Self = Self { connection: u64::MAX, exchange: 0, place: 0 };
}

/// Flags of a [`Begin`].
pub mod begin_flags {
    /// The two positions are known.
    pub const POSITIONS: u8 = 1;
    /// The bytes are what a TLS library was given or gave. Addresses and ports are zeros if its socket is not known.
    pub const TLS: u8 = 2;
    /// The connection is a pair of Unix sockets. Addresses and ports are zeros.
    pub const UNIX: u8 = 4;
    /// The thread runs Python, and outside of all contexts: nothing but the thread tells what it works for.
    pub const THREAD: u8 = 8;
    /// The thread runs Python, in a context.
    pub const CONTEXT: u8 = 16;
    /// The request that it is made for is told by the answer to another one that was made for that: what waits for the same answer
    /// goes on at the same time.
    pub const AFTER_ANSWER: u8 = 32;
}

/// A new exchange: the connection was idle or answering, and bytes that begin with an HTTP method moved.
///
/// As a [`Kind::Http2`]: all that moves on the connection from here on, which is many exchanges. Then `last` is a
/// [`Frames::mark`], and `server_position` is that of the first byte that the server ever sent.
///
/// Under TLS `client_position` is that of the record in which the request begins, and `server_position` as for HTTP/2.
///
/// Of Unix sockets `client_position` is the inode number of the client's socket, and `server_position` is 0.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Begin {
    /// `kind` is [`Kind::Begin`] or [`Kind::Http2`]; `time_ns` is the first byte of the request.
    pub header: Header,
    /// Identity of the connection: never used again while the agent runs.
    pub connection: u64,
    /// Key of the `CONNECTIONS` map, for [`Totals`] of a long exchange: the kernel address of the socket, under TLS a
    /// number that the session has.
    pub socket: u64,
    /// Number of this exchange on its connection, from 1.
    pub exchange: u32,
    /// Process (thread group) that made the system call.
    pub tgid: u32,
    /// Thread that made the system call.
    pub tid: u32,
    /// Inode number of the connection's network namespace, 0 if unknown.
    pub netns: u32,
    /// TCP sequence number of the request's first byte.
    pub client_position: u32,
    /// TCP sequence number of the byte that the server sends next.
    pub server_position: u32,
    /// Address of the observed process's end; IPv4 as IPv4-mapped IPv6.
    pub local_address: [u8; 16],
    /// Address of the other end.
    pub remote_address: [u8; 16],
    /// Port of the observed process's end, host byte order.
    pub local_port: u16,
    /// Port of the other end, host byte order.
    pub remote_port: u16,
    /// [`role::SERVER`] or [`role::CLIENT`].
    pub role: u8,
    /// Of [`begin_flags`].
    pub flags: u8,
    /// Bytes of payload that follow the record.
    pub payload_len: u16,
    /// Bytes that the system call moved.
    pub len: u64,
    /// The last bytes that the call moved, the very last one at the end; zeros where unknown.
    pub last: [u8; 8],
    /// Of a client.
    pub served: Served,
    /// Final totals of the exchange before this one on the same connection; zeros for the first.
    pub previous: Totals,
}

/// Flags of a [`Data`] record.
pub mod data_flags {
    /// First bytes of a final response.
    pub const FIRST: u8 = 1;
    /// The bytes begin with an interim (1xx, not 101) status line and are not counted in the totals.
    pub const INTERIM: u8 = 2;
    /// The peer will send nothing more (a receive returned 0).
    pub const EOF: u8 = 4;
    /// The payload could not be read although there was room for it.
    pub const UNREADABLE: u8 = 8;
    /// The payload is HTTP/2 frames without the content of DATA frames; `last` is a [`super::Frames::mark`].
    pub const FRAMES: u8 = 16;
}

/// Bytes of an exchange that has begun.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Data {
    /// `kind` is [`Kind::Data`].
    pub header: Header,
    /// As in [`Begin`].
    pub connection: u64,
    /// As in [`Begin`].
    pub exchange: u32,
    /// Process that made the system call.
    pub tgid: u32,
    /// Thread that made the system call.
    pub tid: u32,
    /// Bytes of payload that follow the record.
    pub payload_len: u16,
    /// One of [`direction`].
    pub direction: u8,
    /// Of [`data_flags`].
    pub flags: u8,
    /// Bytes that the system call moved.
    pub len: u64,
    /// The last bytes that the call moved, the very last one at the end; zeros where unknown.
    pub last: [u8; 8],
    /// Of a client's HTTP/2 frames.
    pub served: Served,
    /// Totals, this call included.
    pub totals: Totals,
}

/// The last bytes of a call that moved more of a response to `POST` than its [`Data`] carries, or of several calls that
/// got none. Comes before the record of that call.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Tail {
    /// `kind` is [`Kind::Tail`].
    pub header: Header,
    /// As in [`Begin`].
    pub connection: u64,
    /// As in [`Begin`].
    pub exchange: u32,
    /// Bytes of payload that follow the record.
    pub payload_len: u16,
    /// Reserved, 0.
    pub reserved: u16,
}

/// Why an [`End`] was written.
pub mod end_reason {
    /// The socket was closed on this side, or is gone.
    pub const CLOSED: u32 = 1;
    /// The connection was reset.
    pub const RESET: u32 = 2;
}

/// The connection of an exchange is over.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct End {
    /// `kind` is [`Kind::End`].
    pub header: Header,
    /// As in [`Begin`].
    pub connection: u64,
    /// The exchange that was the last one.
    pub exchange: u32,
    /// One of [`end_reason`].
    pub reason: u32,
    /// Final totals.
    pub totals: Totals,
}

/// A process has begun to run another program.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Exec {
    /// `kind` is [`Kind::Exec`].
    pub header: Header,
    /// The process.
    pub tgid: u32,
    /// Bytes of `path` that are used.
    pub path_len: u32,
    /// Path of the executable as it was given to `execve`, cut at [`PATH_BYTES`].
    pub path: [u8; PATH_BYTES],
}

/// A process (its last thread) has ended.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Exit {
    /// `kind` is [`Kind::Exit`].
    pub header: Header,
    /// The process.
    pub tgid: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// A process has begun a TLS handshake on a TCP connection, and no call of a TLS library was seen of the thread.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Tls {
    /// `kind` is [`Kind::Tls`].
    pub header: Header,
    /// The process.
    pub tgid: u32,
    /// Reserved, 0.
    pub reserved: u32,
}

/// The name of a connection's Unix socket; comes before the connection's first [`Begin`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Unix {
    /// `kind` is [`Kind::Unix`].
    pub header: Header,
    /// As in [`Begin`].
    pub connection: u64,
    /// Bytes of `path` that are used; 0 if the socket has no name.
    pub path_len: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// `sun_path` as the server has bound it: a path, which may end with a zero, or an abstract name, which begins with one.
    pub path: [u8; UNIX_PATH_BYTES],
}

/// What the kernel keeps of a connection; value of the `CONNECTIONS` map, whose key is the socket's address, or under TLS
/// a number of the session.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Connection {
    /// Identity, as in [`Begin`].
    pub connection: u64,
    /// When the last byte moved in either direction.
    pub last_ns: u64,
    /// Totals of the current exchange.
    pub totals: Totals,
    /// Number of the current exchange.
    pub exchange: u32,
    /// Bytes of the request head that were handed to user space.
    pub request_copied: u16,
    /// Bytes of the response head that were handed to user space.
    pub response_copied: u16,
    /// One of [`role`].
    pub role: u8,
    /// One of [`phase`].
    pub phase: u8,
    /// Of [`connection_flags`].
    pub flags: u8,
    /// What was known of the process when the current exchange began, of [`crate::process`].
    pub process: u8,
    /// Of a Unix socket its inode number, else 0.
    pub inode: u32,
    /// Network namespace, once a request has told it; else 0.
    pub netns: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// The last bytes of the response so far.
    pub response_tail: [u8; 8],
    /// HTTP/2 only: where the two directions stand, requests first.
    pub frames: [Frames; 2],
}

/// Where one direction of an HTTP/2 connection stands between two system calls.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Frames {
    /// Bytes of the current frame's payload that are still to come.
    pub left: u32,
    /// One of [`frame_state`].
    pub state: u8,
    /// Bytes of the next frame's header that have moved; less than 9.
    pub have: u8,
    /// Reserved, 0.
    pub reserved: [u8; 2],
    /// Those bytes, zeros behind.
    pub header: [u8; 8],
}

/// What the next byte of a direction is.
pub mod frame_state {
    /// Not known: no frame was recognised yet, or a call moved more of them than are walked.
    pub const UNKNOWN: u8 = 0;
    /// Of a frame's header.
    pub const HEADER: u8 = 1;
    /// Of the payload of a DATA frame: not copied.
    pub const DATA: u8 = 2;
    /// Of the payload of another frame, or of the connection's preface: copied.
    pub const OTHER: u8 = 3;
}

/// Where a connection stands.
pub mod phase {
    /// The request is moving, or waits for its answer.
    pub const REQUEST: u8 = 1;
    /// The response is moving, or has ended: the kernel does not know which.
    pub const RESPONSE: u8 = 2;
    /// `101 Switching Protocols`: what follows is not HTTP/1. The start of what each call moves is told.
    pub const UPGRADED: u8 = 3;
    /// HTTP/2: frames are told without the content of DATA frames.
    pub const HTTP2: u8 = 4;
}

/// Flags of a [`Connection`].
pub mod connection_flags {
    /// An interim response was seen in this exchange.
    pub const INTERIM: u8 = 1;
    /// The exchange's [`super::End`] was written.
    pub const ENDED: u8 = 2;
    /// The connection was reset, but the process has not read all of what came before.
    pub const RESET: u8 = 4;
    /// The request is a `POST`: the end of its response is told as a [`super::Tail`].
    pub const KEEPS_END: u8 = 8;
    /// The socket is a Unix socket.
    pub const UNIX: u8 = 16;
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    /// The kernel copies whole records: a padding byte would be uninitialised kernel memory, and the verifier refuses it.
    #[test]
    fn records_have_no_padding() {
        assert_eq!(size_of::<Header>(), 4 + 4 + 8 + 8);
        assert_eq!(size_of::<Totals>(), 6 * 8 + 2 * 4);
        assert_eq!(size_of::<Begin>(), 24 + 16 + 6 * 4 + 32 + 2 + 2 + 1 + 1 + 2 + 8 + 8 + 16 + 56);
        assert_eq!(size_of::<Data>(), 24 + 8 + 3 * 4 + 2 + 1 + 1 + 8 + 8 + 16 + 56);
        assert_eq!(size_of::<End>(), 24 + 8 + 4 + 4 + 56);
        assert_eq!(size_of::<Tail>(), 24 + 8 + 4 + 2 + 2);
        assert_eq!(size_of::<Exec>(), 24 + 8 + PATH_BYTES);
        assert_eq!(size_of::<Exit>(), 24 + 8);
        assert_eq!(size_of::<Tls>(), 24 + 8);
        assert_eq!(size_of::<Unix>(), 24 + 8 + 4 + 4 + UNIX_PATH_BYTES);
        assert_eq!(size_of::<Connection>(), 16 + 56 + 4 + 2 + 2 + 4 + 4 + 4 + 4 + 8 + 2 * 16);
        assert_eq!(size_of::<Frames>(), 4 + 1 + 1 + 2 + 8);
    }
}
