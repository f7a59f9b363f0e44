//! TCP connections and Unix stream sockets: from a file descriptor to one, and what the kernel knows of it.

use coati_common::event::{Begin, role};
use coati_common::limits::UNIX_PATH_BYTES;

use crate::caller::Caller;
use crate::globals as at;
use crate::kread::{Head, Typed, at_most, field, kernel_bytes, pointer};

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const SOCK_STREAM: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const AF_UNIX: u16 = 1;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const TCP_CLOSE_WAIT: u8 = 8;

/// Words from the start of a `struct sock` that are read at once: most fields that are wanted lie there.
const HEAD_WORDS: usize = 5;

/// The same of a `struct file`.
const FILE_WORDS: usize = 8;

/// The operations that all sockets have for files, and nothing else (net/socket.c, `sock_alloc_file`): those of the first one that was
/// seen.
static SOCKET_OPERATIONS: at::Learned = at::Learned::new();

/// What kind of stream a [`Socket`] is.
pub mod stream {
    /// That is to be found out.
    pub const ANY: u32 = 0;
    /// TCP.
    pub const TCP: u32 = 1;
    /// The plaintext of a TLS session.
    pub const TLS: u32 = 2;
    /// A Unix socket.
    pub const UNIX: u32 = 3;
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

    /// One that a function of Unix stream sockets was called for.
    #[inline(always)]
    pub const fn unix(address: u64) -> Self {
        Self::new(address, address, stream::UNIX)
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

    /// The one of the `struct socket` at `socket`, for which a function of Unix stream sockets was called.
    #[inline(always)]
    pub fn unix_of(socket: u64) -> Option<Self> {
        Some(Self::unix(pointer(socket, at::SOCKET_SK.load())?))
    }

    /// The one behind descriptor `fd` of the current process, if it is a socket.
    #[inline(always)]
    pub fn of_descriptor(fd: u64) -> Option<Self> {
        let address = socket_of(fd);
        (address != 0).then(|| Self::new(address, address, stream::ANY))
    }

    /// The same, unless the process of the `caller` is skipped: the way to the socket is most of what a call costs.
    #[inline(always)]
    pub fn of_watched(caller: Caller, fd: u64) -> Option<Self> {
        let address = if caller.is_skipped() { 0 } else { socket_of(fd) };
        (address != 0).then(|| Self::new(address, address, stream::ANY))
    }

    /// The same as of [`Self::of_descriptor`], if nothing else refers to its file.
    #[inline(always)]
    pub fn of_only_descriptor(fd: u64) -> Option<Self> {
        let file = file(fd)?;
        let count = at::FILE_COUNT.load();
        let is_only = count != at::ABSENT && field::<u64>(file, count)? == u64::from(at::FILE_COUNT_OF_ONE.load());
        if !is_only {
            return None;
        }
        let address = of_file(file)?;
        Some(Self::new(address, address, stream::ANY))
    }

    /// Finds out what kind of stream it is, if that is not known; false if it is none that is watched. Not asked of one that
    /// is followed.
    #[inline(always)]
    pub fn identify(&mut self) -> bool {
        if self.kind == stream::ANY {
            self.kind = kind(self.address);
        }
        self.kind != stream::ANY
    }

    /// Notes what the connection that is followed says of its kind.
    #[inline(always)]
    pub fn recognise(&mut self, is_unix: bool) {
        if self.kind == stream::ANY {
            self.kind = if is_unix { stream::UNIX } else { stream::TCP };
        }
    }

    /// Whether it is a TCP connection.
    #[inline(always)]
    pub const fn is_tcp(self) -> bool {
        self.kind == stream::TCP
    }

    /// Whether it is a Unix socket.
    #[inline(always)]
    pub const fn is_unix(self) -> bool {
        self.kind == stream::UNIX
    }

    /// Whether it is a TLS session.
    #[inline(always)]
    pub const fn is_tls(self) -> bool {
        self.kind == stream::TLS
    }

    /// Where both streams stand; of a session that is not known.
    #[inline(always)]
    pub fn positions(self) -> Positions {
        match self.kind {
            stream::TLS => Positions::UNKNOWN,
            stream::UNIX => Positions { send: inode(self.address), receive: 0, known: 1 },
            _ => positions(self.address),
        }
    }

    /// Where both streams stood when the request began that `len` bytes were received of.
    #[inline(always)]
    pub fn positions_before(self, len: u64) -> Positions {
        if self.is_tls() {
            return Positions { send: 0, receive: self.position, known: self.is_placed };
        }
        if self.is_unix() {
            let client = inode(peer(self.address));
            return Positions { send: 0, receive: client, known: u32::from(client != 0) };
        }
        // What the call took is already behind the receive position.
        let Positions { send, receive, known } = positions(self.address);
        Positions { send, receive: receive.wrapping_sub(len as u32), known }
    }
}

/// Address of the `struct sock` behind descriptor `fd` of the current process; 0 if it is no socket.
///
/// Exported, so that the verifier checks it once, and that what it reads does not count as stack of every hook.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn socket_of(fd: u64) -> u64 {
    file(fd).and_then(of_file).unwrap_or_default()
}

/// The same of a `struct file`.
#[inline(always)]
fn of_file(file: u64) -> Option<u64> {
    let mut head = Head::<FILE_WORDS>::at(file);
    let head = head.read();
    let operations = head.get::<u64>(at::FILE_OPERATIONS.load());
    let of_sockets = SOCKET_OPERATIONS.load();
    let is_socket = if of_sockets == 0 {
        let inode: u64 = head.get(at::FILE_INODE.load());
        inode != 0 && field::<u16>(inode, at::INODE_MODE.load())? & S_IFMT == S_IFSOCK
    } else {
        operations == of_sockets
    };
    if !is_socket {
        return None;
    }
    let socket: u64 = head.get(at::FILE_PRIVATE_DATA.load());
    // The name of a Unix socket opened as a path (`O_PATH`) has none.
    if socket == 0 {
        return None;
    }
    let address = pointer(socket, at::SOCKET_SK.load())?;
    // The file of a descriptor that another thread closes may become another one while it is read.
    if of_sockets == 0 && kind(address) != stream::ANY {
        SOCKET_OPERATIONS.store(operations);
    }
    Some(address)
}

/// The file behind descriptor `fd` of the current process.
#[inline(always)]
fn file(fd: u64) -> Option<u64> {
    let fd = fd as u32;
    let table = Typed::current_task().pointer(at::TASK_FILES.load())?.pointer(at::FILES_FDT.load())?;
    if fd >= table.u32(at::FDTABLE_MAX_FDS.load()) {
        return None;
    }
    let descriptors = table.u64(at::FDTABLE_FD.load());
    pointer(descriptors + u64::from(fd) * 8, 0)
}

/// One of [`stream`]: `ANY` if it is none that is watched.
#[inline(always)]
fn kind(sk: u64) -> u32 {
    let Some(family) = field::<u16>(sk, at::SOCK_FAMILY.load()) else { return stream::ANY };
    let is_unix = family == AF_UNIX && at::UNIX_PEER.load() != at::ABSENT;
    if !is_unix && family != AF_INET && family != AF_INET6 {
        return stream::ANY;
    }
    if field::<u16>(sk, at::SOCK_TYPE.load()) != Some(SOCK_STREAM) {
        return stream::ANY;
    }
    if is_unix {
        return stream::UNIX;
    }
    let protocol = at::SOCK_PROTOCOL.load();
    let is_tcp = protocol == at::ABSENT || field::<u16>(sk, protocol) == Some(IPPROTO_TCP);
    if is_tcp { stream::TCP } else { stream::ANY }
}

/// Inode number of the socket at `sk`, which no other has while the machine runs (fs/inode.c, `get_next_ino`: 32 bits, one by
/// one); 0 if it has none: it was not accepted yet, or is closed.
#[inline(always)]
pub fn inode(sk: u64) -> u32 {
    if sk == 0 || at::UNIX_PEER.load() == at::ABSENT {
        return 0;
    }
    let Some(socket) = pointer(sk, at::SOCK_SOCKET.load()) else { return 0 };
    field::<u64>(socket, at::SOCKET_INODE.load() + at::INODE_NUMBER.load()).unwrap_or_default() as u32
}

/// The Unix socket at the other end of the one at `sk`; 0 if there is none.
#[inline(always)]
fn peer(sk: u64) -> u64 {
    pointer(sk, at::UNIX_PEER.load()).unwrap_or_default()
}

/// Copies the name to `path` that the server of the Unix socket at `sk`, or its peer, has bound it to; how many bytes, 0 if it
/// has none. The socket that is accepted has the name of the one that listens (net/unix/af_unix.c, `unix_stream_connect`).
#[inline(always)]
pub fn unix_path(sk: u64, path: &mut [u8; UNIX_PATH_BYTES]) -> u32 {
    const FAMILY_BYTES: u32 = 2;
    const LONGEST: u64 = 108;
    if at::UNIX_PEER.load() == at::ABSENT {
        return 0;
    }
    let address = |sk| pointer(sk, at::UNIX_ADDRESS.load());
    let Some(address) = address(sk).or_else(|| address(peer(sk))) else { return 0 };
    let len = field::<u32>(address, at::UNIX_ADDRESS_LEN.load()).unwrap_or_default().saturating_sub(FAMILY_BYTES);
    let len = at_most::<LONGEST>(u64::from(len));
    let name = address + u64::from(at::UNIX_ADDRESS_NAME.load() + FAMILY_BYTES);
    // SAFETY: `len` is at most the size of `path`.
    if len > 0 && unsafe { kernel_bytes(path.as_mut_ptr(), len, name) } { len as u32 } else { 0 }
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
fn has_read_close(sk: u64, head: &Head<HEAD_WORDS>) -> bool {
    let state = at::SOCK_STATE.load();
    let is_known = state != at::ABSENT && at::TCP_RCV_NXT.load() != at::ABSENT;
    is_known && head.get::<u8>(state) == TCP_CLOSE_WAIT && !has_unread(sk)
}

/// Fills in addresses and ports; what cannot be read is zero, all of it if the socket is not known. And what is known only now
/// of where the request stands.
#[inline(always)]
pub fn describe(socket: Socket, begin: &mut Begin) {
    let sk = socket.address;
    if sk == 0 || socket.is_unix() {
        (begin.local_address, begin.remote_address) = ([0; 16], [0; 16]);
        (begin.local_port, begin.remote_port) = (0, 0);
        return;
    }
    let mut head = Head::<HEAD_WORDS>::at(sk);
    let head = head.read();
    if head.get::<u16>(at::SOCK_FAMILY.load()) == AF_INET6 && at::SOCK_LOCAL_V6.load() != at::ABSENT {
        begin.local_address = field(sk, at::SOCK_LOCAL_V6.load()).unwrap_or_default();
        begin.remote_address = field(sk, at::SOCK_REMOTE_V6.load()).unwrap_or_default();
    } else {
        begin.local_address = mapped(head.get(at::SOCK_LOCAL_V4.load()));
        begin.remote_address = mapped(head.get(at::SOCK_REMOTE_V4.load()));
    }
    begin.local_port = head.get(at::SOCK_LOCAL_PORT.load());
    begin.remote_port = u16::from_be(head.get(at::SOCK_REMOTE_PORT.load()));
    // If the peer's close came with what the call took, then that is behind the receive position, too.
    if begin.role == role::SERVER && !socket.is_tls() && has_read_close(sk, head) {
        begin.client_position = begin.client_position.wrapping_sub(1);
    }
}

/// Network namespace of the socket at `sk`.
#[inline(always)]
pub fn network_namespace(sk: u64) -> Option<u32> {
    let (net, inum) = (at::SOCK_NET.load(), at::NET_INUM.load());
    if sk == 0 || net == at::ABSENT || inum == at::ABSENT {
        return None;
    }
    field(pointer(sk, net)?, inum)
}

#[inline(always)]
fn mapped(address: u32) -> [u8; 16] {
    let [a, b, c, d] = address.to_ne_bytes();
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
}
