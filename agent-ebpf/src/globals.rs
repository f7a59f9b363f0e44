//! Read-only values that the loader sets before it loads the programs.
//!
//! To the verifier they are constants: code behind a flag that is off, or behind an offset that this kernel does not
//! have, is dropped. And [`Mark`]s, which the programs set themselves.

use core::cell::UnsafeCell;

use aya_ebpf::Global;

/// An offset, or another number of its description of itself, that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

macro_rules! offsets {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        $($(#[$doc])* #[unsafe(no_mangle)] pub static $name: Global<u32> = Global::new(ABSENT);)*
    };
}

offsets! {
    /// `task_struct.files`
    TASK_FILES,
    /// `task_struct.signal`
    TASK_SIGNAL,
    /// `signal_struct.live`
    SIGNAL_LIVE,
    /// `files_struct.fdt`
    FILES_FDT,
    /// `fdtable.max_fds`
    FDTABLE_MAX_FDS,
    /// `fdtable.fd`
    FDTABLE_FD,
    /// `file.f_inode`
    FILE_INODE,
    /// `file.f_op`
    FILE_OPERATIONS,
    /// `file.private_data`
    FILE_PRIVATE_DATA,
    /// `file.f_count`, or what has taken its place
    FILE_COUNT,
    /// The value of that while one descriptor alone refers to the file
    FILE_COUNT_OF_ONE,
    /// `inode.i_mode`
    INODE_MODE,
    /// `socket.sk`
    SOCKET_SK,
    /// `sock.sk_socket`
    SOCK_SOCKET,
    /// `socket_alloc.vfs_inode`, behind the `socket` that it begins with
    SOCKET_INODE,
    /// `inode.i_ino`
    INODE_NUMBER,
    /// `unix_sock.peer`; absent if Unix sockets cannot be watched
    UNIX_PEER,
    /// `unix_sock.addr`
    UNIX_ADDRESS,
    /// `unix_address.len`
    UNIX_ADDRESS_LEN,
    /// `unix_address.name`
    UNIX_ADDRESS_NAME,
    /// `sock.__sk_common.skc_family`
    SOCK_FAMILY,
    /// `sock.sk_type`
    SOCK_TYPE,
    /// `sock.sk_protocol`, absent where it is a bit field
    SOCK_PROTOCOL,
    /// `sock.__sk_common.skc_rcv_saddr`
    SOCK_LOCAL_V4,
    /// `sock.__sk_common.skc_daddr`
    SOCK_REMOTE_V4,
    /// `sock.__sk_common.skc_v6_rcv_saddr`
    SOCK_LOCAL_V6,
    /// `sock.__sk_common.skc_v6_daddr`
    SOCK_REMOTE_V6,
    /// `sock.__sk_common.skc_num`
    SOCK_LOCAL_PORT,
    /// `sock.__sk_common.skc_dport`
    SOCK_REMOTE_PORT,
    /// `sock.__sk_common.skc_state`
    SOCK_STATE,
    /// `sock.__sk_common.skc_net`
    SOCK_NET,
    /// `net.ns.inum`
    NET_INUM,
    /// `tcp_sock.write_seq`
    TCP_WRITE_SEQ,
    /// `tcp_sock.copied_seq`
    TCP_COPIED_SEQ,
    /// `tcp_sock.rcv_nxt`
    TCP_RCV_NXT,
    /// `tcp_sock.bytes_received`
    TCP_BYTES_RECEIVED,
    /// `tcp_sock.snd_una`
    TCP_SND_UNA,
    /// `tcp_sock.bytes_acked`
    TCP_BYTES_ACKED,
    /// `msghdr.msg_iter`
    MSGHDR_ITER,
    /// `iov_iter.iter_type`
    ITER_TYPE,
    /// `iov_iter.iov_offset`
    ITER_OFFSET,
    /// `iov_iter.count`
    ITER_COUNT,
    /// `iov_iter.__iov`, and the address of the only buffer
    ITER_POINTER,
    /// `iov_iter.nr_segs`
    ITER_SEGMENTS,
    /// The value `ITER_UBUF` of `iov_iter.iter_type`
    ITER_IS_UBUF,
    /// The value `ITER_IOVEC` of `iov_iter.iter_type`
    ITER_IS_IOVEC,
    /// Which parameter of `tcp_recvmsg` is `flags`
    RECVMSG_FLAGS,
    /// `linux_binprm.filename`
    BINPRM_FILENAME,
    /// `pt_regs`: first argument of a system call, as it still is when the call returns
    REGS_ARG0,
    /// `pt_regs`: second argument
    REGS_ARG1,
    /// `pt_regs`: third argument
    REGS_ARG2,
    /// `pt_regs`: fourth argument
    REGS_ARG3,
    /// `pt_regs`: stack pointer
    REGS_STACK,
    /// `pt_regs`: the register in which compiled Go code has its goroutine, absent where that is not known
    REGS_GOROUTINE,
    /// `task_struct.thread.fsbase`: where a thread has its own data, absent where registers are not those of x86-64
    TASK_THREAD_BASE,
}

/// The agent's own process, which is not watched; 0 watches every process.
#[unsafe(no_mangle)]
pub static OWN_TGID: Global<u32> = Global::new(0);

/// Unread bytes in the ring buffer from which the agent is woken; below it looks by itself.
#[unsafe(no_mangle)]
pub static WAKE_AT: Global<u32> = Global::new(1 << 20);

/// Bytes by which a return moves the stack pointer: of the address that a call has put there.
#[unsafe(no_mangle)]
pub static RETURN_SLOT: Global<u32> = Global::new(0);

/// 1 turns the debug lines on.
#[unsafe(no_mangle)]
pub static DEBUG: Global<u8> = Global::new(0);

/// Whether debug lines are on.
#[inline(always)]
pub fn debug() -> bool {
    DEBUG.load() != 0
}

/// That something was seen: set once by whichever program sees it first, and asked before what needs a look-up in a map.
#[repr(transparent)]
pub struct Mark(Learned);

impl Mark {
    pub const fn new() -> Self {
        Self(Learned::new())
    }

    #[inline(always)]
    pub fn set(&self) {
        self.0.store(1);
    }

    #[inline(always)]
    pub fn is_set(&self) -> bool {
        self.0.load() != 0
    }
}

/// A number that the programs find out.
#[repr(transparent)]
pub struct Learned(UnsafeCell<u64>);

// SAFETY: it is written and read whole, and nothing else depends on the order.
unsafe impl Sync for Learned {}

impl Learned {
    /// Not known yet: 0.
    pub const fn new() -> Self {
        Self(UnsafeCell::new(0))
    }

    #[inline(always)]
    pub fn store(&self, value: u64) {
        // SAFETY: as above.
        unsafe { self.0.get().write_volatile(value) }
    }

    #[inline(always)]
    pub fn load(&self) -> u64 {
        // SAFETY: as above.
        unsafe { self.0.get().read_volatile() }
    }
}
