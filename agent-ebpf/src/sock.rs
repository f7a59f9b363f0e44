//! TCP connections: from a file descriptor to one, and what the kernel knows of it.

use coati_common::event::{Begin, role};

use crate::globals as at;
use crate::kread::{Head, Typed, field, pointer};

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const SOCK_STREAM: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const TCP_CLOSE_WAIT: u8 = 8;

/// Words from the start of a `struct sock` that are read at once: most fields that are wanted lie there.
const HEAD_WORDS: usize = 5;

/// What kind of stream a [`Socket`] is.
mod stream {
    /// That is to be found out.
    pub const ANY: u32 = 0;
    /// TCP.
    pub const TCP: u32 = 1;
    /// The plaintext of a TLS session.
    pub const TLS: u32 = 2;
}

/// A `struct sock`, or a TLS session on one.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Socket {
    /// Key of its connection: where it lies, or the number of the session.
    pub key: u64,
    /// Where it lies; 0 if that is not known.
    pub address: u64,
    /// One of [`stream`].
    kind: u32,
    /// Of a session that has received: TCP sequence number of the record.
    pub position: u32,
    /// 1 if that is known.
    pub is_placed: u32,
    reserved: u32,
}

impl Socket {
    /// One that a function of TCP was called for.
    #[inline(always)]
    pub const fn tcp(address: u64) -> Self {
        Self::new(address, address, stream::TCP)
    }

    /// The TLS session with a number, on the one at `address`, if that is not 0.
    #[inline(always)]
    pub const fn tls(key: u64, address: u64) -> Self {
        Self::new(key, address, stream::TLS)
    }

    #[inline(always)]
    const fn new(key: u64, address: u64, kind: u32) -> Self {
        Self { key, address, kind, position: 0, is_placed: 0, reserved: 0 }
    }

    /// The one of the `struct socket` at `socket`, for which a function of TCP was called.
    #[inline(always)]
    pub fn tcp_of(socket: u64) -> Option<Self> {
        Some(Self::tcp(pointer(socket, at::SOCKET_SK.load())?))
    }

    /// The one behind descriptor `fd` of the current process, if it is a socket.
    #[inline(always)]
    pub fn of_descriptor(fd: u64) -> Option<Self> {
        let fd = fd as u32;
        let table = Typed::current_task().pointer(at::TASK_FILES.load())?.pointer(at::FILES_FDT.load())?;
        if fd >= table.u32(at::FDTABLE_MAX_FDS.load()) {
            return None;
        }
        let descriptors = table.u64(at::FDTABLE_FD.load());
        let file = pointer(descriptors + u64::from(fd) * 8, 0)?;
        let inode = pointer(file, at::FILE_INODE.load())?;
        if field::<u16>(inode, at::INODE_MODE.load())? & S_IFMT != S_IFSOCK {
            return None;
        }
        let socket = pointer(file, at::FILE_PRIVATE_DATA.load())?;
        let address = pointer(socket, at::SOCKET_SK.load())?;
        Some(Self::new(address, address, stream::ANY))
    }

    /// Whether it is a TCP connection, or a session on one. Not asked of one that is followed.
    #[inline(always)]
    pub fn is_tcp(self) -> bool {
        self.kind != stream::ANY || is_tcp(self.address)
    }

    /// Whether it is a TLS session.
    #[inline(always)]
    pub const fn is_tls(self) -> bool {
        self.kind == stream::TLS
    }

    /// Where both streams stand; of a session that is not known.
    #[inline(always)]
    pub fn positions(self) -> Positions {
        if self.is_tls() { Positions::UNKNOWN } else { positions(self.address) }
    }

    /// Where both streams stood when the request began that `len` bytes were received of.
    #[inline(always)]
    pub fn positions_before(self, len: u64) -> Positions {
        if self.is_tls() {
            return Positions { send: 0, receive: self.position, known: self.is_placed };
        }
        // What the call took is already behind the receive position, and so is the peer's close if it came with that.
        let Positions { send, receive, known } = positions(self.address);
        let close = u32::from(has_read_close(self.address));
        Positions { send, receive: receive.wrapping_sub(len as u32).wrapping_sub(close), known }
    }
}

#[inline(always)]
fn is_tcp(sk: u64) -> bool {
    if !matches!(field::<u16>(sk, at::SOCK_FAMILY.load()), Some(AF_INET | AF_INET6)) {
        return false;
    }
    if field::<u16>(sk, at::SOCK_TYPE.load()) != Some(SOCK_STREAM) {
        return false;
    }
    let protocol = at::SOCK_PROTOCOL.load();
    protocol == at::ABSENT || field::<u16>(sk, protocol) == Some(IPPROTO_TCP)
}

/// TCP sequence numbers of a connection, as this end sees them.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Positions {
    /// Of the byte that this end sends next.
    pub send: u32,
    /// Of the byte that this end's process receives next.
    pub receive: u32,
    /// 1 if both could be read.
    pub known: u32,
}

impl Positions {
    /// Neither is known.
    pub const UNKNOWN: Self = Self { send: 0, receive: 0, known: 0 };
}

/// Where both streams of the connection stand.
#[inline(always)]
pub fn positions(sk: u64) -> Positions {
    let (write_seq, copied_seq) = (at::TCP_WRITE_SEQ.load(), at::TCP_COPIED_SEQ.load());
    if write_seq == at::ABSENT || copied_seq == at::ABSENT {
        return Positions::UNKNOWN;
    }
    match (field::<u32>(sk, write_seq), field::<u32>(sk, copied_seq)) {
        (Some(send), Some(receive)) => Positions { send, receive, known: 1 },
        _ => Positions::UNKNOWN,
    }
}

/// How often [`server_start`] reads what changes meanwhile.
const SERVER_START_TRIES: u32 = 4;

/// Sequence number of the first byte that the server ever sent on the connection, of which this end is a `role`: the
/// same at both ends, whenever it is asked for.
///
/// Where the stream stands and how far it has come are counted together (net/ipv4/tcp_input.c, `tcp_rcv_nxt_update` and
/// `tcp_snd_una_update`), for what is received by who has not called us, so it may change in between; then it is read again.
#[inline(always)]
pub fn server_start(sk: u64, role: u8) -> Option<u32> {
    let (position, count) = if role == role::CLIENT {
        (at::TCP_RCV_NXT.load(), at::TCP_BYTES_RECEIVED.load())
    } else {
        (at::TCP_SND_UNA.load(), at::TCP_BYTES_ACKED.load())
    };
    if position == at::ABSENT || count == at::ABSENT {
        return None;
    }
    for _ in 0..SERVER_START_TRIES {
        let before: u64 = field(sk, count)?;
        let start = field::<u32>(sk, position)?.wrapping_sub(before as u32);
        if field::<u64>(sk, count)? == before {
            return Some(start);
        }
    }
    None
}

/// Whether something has arrived that the process has not read, the peer's close included.
#[inline(always)]
pub fn has_unread(sk: u64) -> bool {
    let (rcv_nxt, copied_seq) = (at::TCP_RCV_NXT.load(), at::TCP_COPIED_SEQ.load());
    if rcv_nxt == at::ABSENT || copied_seq == at::ABSENT {
        return false;
    }
    field::<u32>(sk, rcv_nxt) != field::<u32>(sk, copied_seq)
}

/// Whether the process has read all that the peer sent, and that it closed its side: that takes a sequence number.
#[inline(always)]
fn has_read_close(sk: u64) -> bool {
    let state = at::SOCK_STATE.load();
    let is_known = state != at::ABSENT && at::TCP_RCV_NXT.load() != at::ABSENT;
    is_known && field::<u8>(sk, state) == Some(TCP_CLOSE_WAIT) && !has_unread(sk)
}

/// Fills in addresses, ports and network namespace; what cannot be read is zero, all of it if `sk` is.
#[inline(always)]
pub fn describe(sk: u64, begin: &mut Begin) {
    if sk == 0 {
        (begin.local_address, begin.remote_address) = ([0; 16], [0; 16]);
        (begin.local_port, begin.remote_port, begin.netns) = (0, 0, 0);
        return;
    }
    let head = Head::<HEAD_WORDS>::of(sk);
    if head.get::<u16>(at::SOCK_FAMILY.load()) == AF_INET6 && at::SOCK_LOCAL_V6.load() != at::ABSENT {
        begin.local_address = field(sk, at::SOCK_LOCAL_V6.load()).unwrap_or_default();
        begin.remote_address = field(sk, at::SOCK_REMOTE_V6.load()).unwrap_or_default();
    } else {
        begin.local_address = mapped(head.get(at::SOCK_LOCAL_V4.load()));
        begin.remote_address = mapped(head.get(at::SOCK_REMOTE_V4.load()));
    }
    begin.local_port = head.get(at::SOCK_LOCAL_PORT.load());
    begin.remote_port = u16::from_be(head.get(at::SOCK_REMOTE_PORT.load()));
    begin.netns = network_namespace(sk).unwrap_or_default();
}

#[inline(always)]
fn network_namespace(sk: u64) -> Option<u32> {
    let (net, inum) = (at::SOCK_NET.load(), at::NET_INUM.load());
    if net == at::ABSENT || inum == at::ABSENT {
        return None;
    }
    field(pointer(sk, net)?, inum)
}

#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
