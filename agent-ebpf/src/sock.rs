//! From a file descriptor to a TCP connection, and what the kernel knows of it.

use aya_ebpf::helpers::bpf_get_current_task;
use coati_common::event::Begin;

use crate::globals as at;
use crate::kread::{field, pointer};

const S_IFMT: u16 = 0o170_000;
const S_IFSOCK: u16 = 0o140_000;
const SOCK_STREAM: u16 = 1;
const IPPROTO_TCP: u16 = 6;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// `::ffff:0:0/96`
const IPV4_MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Address of the `struct sock` behind descriptor `fd` of the current process, if it is a TCP connection.
#[inline(always)]
pub fn of_descriptor(fd: u64) -> Option<u64> {
    let fd = fd as u32;
    // SAFETY: the helper has no requirements.
    let task = unsafe { bpf_get_current_task() };
    let files = pointer(task, at::TASK_FILES.load())?;
    let table = pointer(files, at::FILES_FDT.load())?;
    if fd >= field::<u32>(table, at::FDTABLE_MAX_FDS.load())? {
        return None;
    }
    let descriptors = pointer(table, at::FDTABLE_FD.load())?;
    let file = pointer(descriptors + u64::from(fd) * 8, 0)?;
    let inode = pointer(file, at::FILE_INODE.load())?;
    if field::<u16>(inode, at::INODE_MODE.load())? & S_IFMT != S_IFSOCK {
        return None;
    }
    let socket = pointer(file, at::FILE_PRIVATE_DATA.load())?;
    if field::<u16>(socket, at::SOCKET_TYPE.load())? != SOCK_STREAM {
        return None;
    }
    let sk = pointer(socket, at::SOCKET_SK.load())?;
    if !matches!(field::<u16>(sk, at::SOCK_FAMILY.load())?, AF_INET | AF_INET6) {
        return None;
    }
    let protocol = at::SOCK_PROTOCOL.load();
    if protocol != at::ABSENT && field::<u16>(sk, protocol)? != IPPROTO_TCP {
        return None;
    }
    Some(sk)
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

/// Where both streams of the connection stand.
#[inline(always)]
pub fn positions(sk: u64) -> Positions {
    const UNKNOWN: Positions = Positions { send: 0, receive: 0, known: 0 };
    let (write_seq, copied_seq) = (at::TCP_WRITE_SEQ.load(), at::TCP_COPIED_SEQ.load());
    if write_seq == at::ABSENT || copied_seq == at::ABSENT {
        return UNKNOWN;
    }
    match (field::<u32>(sk, write_seq), field::<u32>(sk, copied_seq)) {
        (Some(send), Some(receive)) => Positions { send, receive, known: 1 },
        _ => UNKNOWN,
    }
}

/// Fills in addresses, ports and network namespace; what cannot be read is zero.
#[inline(always)]
pub fn describe(sk: u64, begin: &mut Begin) {
    if field::<u16>(sk, at::SOCK_FAMILY.load()) == Some(AF_INET6) && at::SOCK_LOCAL_V6.load() != at::ABSENT {
        begin.local_address = field(sk, at::SOCK_LOCAL_V6.load()).unwrap_or_default();
        begin.remote_address = field(sk, at::SOCK_REMOTE_V6.load()).unwrap_or_default();
    } else {
        begin.local_address = mapped(field(sk, at::SOCK_LOCAL_V4.load()).unwrap_or_default());
        begin.remote_address = mapped(field(sk, at::SOCK_REMOTE_V4.load()).unwrap_or_default());
    }
    begin.local_port = field(sk, at::SOCK_LOCAL_PORT.load()).unwrap_or_default();
    begin.remote_port = u16::from_be(field(sk, at::SOCK_REMOTE_PORT.load()).unwrap_or_default());
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
fn mapped(address: [u8; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..12].copy_from_slice(&IPV4_MAPPED);
    bytes[12..].copy_from_slice(&address);
    bytes
}
