//! Which fields of the kernel the programs read, and where they lie on this one.

use super::btf::{Btf, BtfError};

/// What a program sees for a field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;

/// A field cannot be found that the programs cannot do without.
#[derive(Debug, thiserror::Error)]
#[error("the kernel programs need `{field}` of `struct {name}`")]
pub struct OffsetError {
    /// Name of the struct.
    pub name: &'static str,
    /// Path of the field in it.
    pub field: &'static str,
    /// What the type information says.
    #[source]
    pub source: BtfError,
}

/// A number that is no field's place, and the global of the programs that takes it.
enum Number {
    /// Of a value of an enum.
    Value(&'static str, &'static str),
    /// Of a parameter of a function.
    Parameter(&'static str, &'static str),
}

/// Without these the programs on TCP's functions do not work; [`Offsets::has_iterators`]. The enum's values differ
/// between kernels, and so do the parameters.
const NUMBERS: [(&str, Number); 3] = [
    ("ITER_IS_UBUF", Number::Value("iter_type", "ITER_UBUF")),
    ("ITER_IS_IOVEC", Number::Value("iter_type", "ITER_IOVEC")),
    ("RECVMSG_FLAGS", Number::Parameter("tcp_recvmsg", "flags")),
];

/// The same of fields: the name that the pointer to the first buffer has changed in 6.4.
const ITERATOR: [(&str, &str, &[&str]); 6] = [
    ("MSGHDR_ITER", "msghdr", &["msg_iter"]),
    ("ITER_TYPE", "iov_iter", &["iter_type"]),
    ("ITER_OFFSET", "iov_iter", &["iov_offset"]),
    ("ITER_COUNT", "iov_iter", &["count"]),
    ("ITER_POINTER", "iov_iter", &["__iov", "iov"]),
    ("ITER_SEGMENTS", "iov_iter", &["nr_segs"]),
];

/// Without one of these, Unix sockets are not watched; [`Offsets::has_unix_sockets`].
const UNIX: [(&str, &str, &str); 7] = [
    ("SOCK_SOCKET", "sock", "sk_socket"),
    ("SOCKET_INODE", "socket_alloc", "vfs_inode"),
    ("INODE_NUMBER", "inode", "i_ino"),
    ("UNIX_PEER", "unix_sock", "peer"),
    ("UNIX_ADDRESS", "unix_sock", "addr"),
    ("UNIX_ADDRESS_LEN", "unix_address", "len"),
    ("UNIX_ADDRESS_NAME", "unix_address", "name"),
];

/// How many refer to a `struct file`, and what that is while one descriptor does: since Linux 6.13 one less
/// (`include/linux/file_ref.h`).
const COUNTS: [(&str, u32); 2] = [("f_count", 1), ("f_ref", 0)];

/// A field, and the global of the programs that takes its offset.
struct Field {
    global: &'static str,
    name: &'static str,
    path: &'static str,
    /// Added to the offset: for an element of an array.
    plus: u32,
    /// What is lost without it; `None` if everything is.
    without: Option<&'static str>,
}

const fn needed(global: &'static str, name: &'static str, path: &'static str) -> Field {
    Field { global, name, path, plus: 0, without: None }
}

const fn useful(global: &'static str, name: &'static str, path: &'static str, without: &'static str) -> Field {
    Field { global, name, path, plus: 0, without: Some(without) }
}

const POSITIONS: &str = "positions in the TCP streams: both ends of a connection on this node are not paired";
const STREAMS: &str = "where TCP streams began: both ends of an HTTP/2 connection on this node are not paired";
const UNREAD: &str = "unread bytes: what a client reads after its connection was closed is not seen";
const CLOSE: &str = "states of sockets: a request that comes with its client's close is not paired with the client's";
const NAMESPACE: &str = "network namespaces";
const THREADS: &str = "the count of a process's threads: one that outlives its first thread seems to end early";
const STACK: &str = "stack pointers: calls of TLS libraries inside one another are not told apart";
/// What is lost without the register of goroutines.
#[cfg(target_arch = "x86_64")]
const GOROUTINE: &str = "which goroutine makes a system call: no sockets of Go's TLS";
/// What is lost without the places of threads' own data.
#[cfg(target_arch = "x86_64")]
const PYTHON: &str = "which thread of Python makes a system call: calls of its programs have no parents but by process";
const IPV6: &str = "IPv6 addresses";

/// Every field, as it is spelt in kernels since 5.15.
const FIELDS: [Field; 30] = [
    needed("TASK_FILES", "task_struct", "files"),
    needed("FILES_FDT", "files_struct", "fdt"),
    needed("FDTABLE_MAX_FDS", "fdtable", "max_fds"),
    needed("FDTABLE_FD", "fdtable", "fd"),
    needed("FILE_INODE", "file", "f_inode"),
    needed("FILE_OPERATIONS", "file", "f_op"),
    needed("FILE_PRIVATE_DATA", "file", "private_data"),
    needed("INODE_MODE", "inode", "i_mode"),
    needed("SOCK_TYPE", "sock", "sk_type"),
    needed("SOCKET_SK", "socket", "sk"),
    needed("SOCK_FAMILY", "sock", "__sk_common.skc_family"),
    needed("SOCK_LOCAL_V4", "sock", "__sk_common.skc_rcv_saddr"),
    needed("SOCK_REMOTE_V4", "sock", "__sk_common.skc_daddr"),
    needed("SOCK_LOCAL_PORT", "sock", "__sk_common.skc_num"),
    needed("SOCK_REMOTE_PORT", "sock", "__sk_common.skc_dport"),
    useful("SOCK_LOCAL_V6", "sock", "__sk_common.skc_v6_rcv_saddr", IPV6),
    useful("SOCK_REMOTE_V6", "sock", "__sk_common.skc_v6_daddr", IPV6),
    useful("SOCK_PROTOCOL", "sock", "sk_protocol", "the protocol of stream sockets: all are taken for TCP"),
    useful("SOCK_STATE", "sock", "__sk_common.skc_state", CLOSE),
    useful("SOCK_NET", "sock", "__sk_common.skc_net.net", NAMESPACE),
    useful("NET_INUM", "net", "ns.inum", NAMESPACE),
    useful("TCP_WRITE_SEQ", "tcp_sock", "write_seq", POSITIONS),
    useful("TCP_COPIED_SEQ", "tcp_sock", "copied_seq", POSITIONS),
    useful("TCP_RCV_NXT", "tcp_sock", "rcv_nxt", UNREAD),
    useful("TCP_BYTES_RECEIVED", "tcp_sock", "bytes_received", STREAMS),
    useful("TCP_SND_UNA", "tcp_sock", "snd_una", STREAMS),
    useful("TCP_BYTES_ACKED", "tcp_sock", "bytes_acked", STREAMS),
    useful("TASK_SIGNAL", "task_struct", "signal", THREADS),
    useful("SIGNAL_LIVE", "signal_struct", "live", THREADS),
    useful("BINPRM_FILENAME", "linux_binprm", "filename", "paths of programs that start"),
];

/// Where the first four arguments of a system call are kept while it runs, the stack pointer, and where a thread has its own data.
#[cfg(target_arch = "x86_64")]
const REGISTERS: [Field; 7] = [
    needed("REGS_ARG0", "pt_regs", "di"),
    needed("REGS_ARG1", "pt_regs", "si"),
    needed("REGS_ARG2", "pt_regs", "dx"),
    needed("REGS_ARG3", "pt_regs", "r10"),
    useful("REGS_STACK", "pt_regs", "sp", STACK),
    useful("REGS_GOROUTINE", "pt_regs", "r14", GOROUTINE),
    useful("TASK_THREAD_BASE", "task_struct", "thread.fsbase", PYTHON),
];

/// Where the first four arguments of a system call are kept while it runs. The result replaces the first one in the
/// registers, so the kernel keeps it elsewhere too.
#[cfg(target_arch = "aarch64")]
const REGISTERS: [Field; 5] = [
    needed("REGS_ARG0", "pt_regs", "orig_x0"),
    Field { plus: 8, ..needed("REGS_ARG1", "pt_regs", "regs") },
    Field { plus: 16, ..needed("REGS_ARG2", "pt_regs", "regs") },
    Field { plus: 24, ..needed("REGS_ARG3", "pt_regs", "regs") },
    useful("REGS_STACK", "pt_regs", "sp", STACK),
];

/// Offsets for the programs' globals.
#[derive(Debug, Default)]
pub struct Offsets {
    /// Name of the global and its value, [`ABSENT`] where the kernel lacks the field.
    pub globals: Vec<(&'static str, u32)>,
    /// What this kernel cannot tell, each once.
    pub missing: Vec<&'static str>,
    /// The kernel's lists of buffers can be read.
    pub has_iterators: bool,
    /// Unix sockets can be read.
    pub has_unix_sockets: bool,
}

impl Offsets {
    /// Looks every field up.
    pub fn find(btf: &Btf<'_>) -> Result<Self, OffsetError> {
        let mut offsets = Self::default();
        for field in FIELDS.iter().chain(&REGISTERS) {
            let value = match (offset(btf, field), field.without) {
                (Ok(value), _) => value,
                (Err(_), Some(without)) => {
                    if !offsets.missing.contains(&without) {
                        offsets.missing.push(without);
                    }
                    ABSENT
                }
                (Err(source), None) => return Err(OffsetError { name: field.name, field: field.path, source }),
            };
            offsets.globals.push((field.global, value));
        }
        let fields = ITERATOR
            .iter()
            .map(|&(global, name, paths)| (global, paths.iter().find_map(|path| btf.field(name, path).ok()?.bytes())));
        let numbers = NUMBERS.iter().map(|(global, number)| match number {
            Number::Value(name, value) => (*global, btf.enumerator(name, value)),
            Number::Parameter(function, name) => (*global, btf.parameter(function, name)),
        });
        let iterators: Vec<_> = fields.chain(numbers).collect();
        // Without ITER_UBUF (Linux 6.0) no list is of that kind.
        offsets.has_iterators = iterators.iter().all(|&(global, value)| value.is_some() || global == "ITER_IS_UBUF");
        offsets.globals.extend(iterators.into_iter().map(|(global, value)| (global, value.unwrap_or(ABSENT))));
        offsets.find_unix_sockets(btf);
        Ok(offsets)
    }
}

impl Offsets {
    fn find_unix_sockets(&mut self, btf: &Btf<'_>) {
        let offset = |name, path| btf.field(name, path).ok()?.bytes();
        let fields = UNIX.map(|(global, name, path)| (global, offset(name, path)));
        self.has_unix_sockets = fields.iter().all(|(_, value)| value.is_some());
        let is_known = self.has_unix_sockets;
        self.globals.extend(fields.map(|(global, value)| (global, value.filter(|_| is_known).unwrap_or(ABSENT))));
        let count = COUNTS.iter().find_map(|&(path, of_one)| Some((btf.field("file", path).ok()?.bytes()?, of_one)));
        let (count, of_one) = count.unwrap_or((ABSENT, ABSENT));
        self.globals.extend([("FILE_COUNT", count), ("FILE_COUNT_OF_ONE", of_one)]);
    }
}

fn offset(btf: &Btf<'_>, field: &Field) -> Result<u32, BtfError> {
    let missing = || BtfError::NoField { name: field.name.to_owned(), field: field.path.to_owned() };
    btf.field(field.name, field.path)?.bytes().and_then(|bytes| bytes.checked_add(field.plus)).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn every_global_is_set_once() {
        let fields = FIELDS.iter().chain(&REGISTERS).map(|field| field.global);
        let iterators = ITERATOR.iter().map(|it| it.0).chain(NUMBERS.iter().map(|it| it.0));
        let globals: Vec<_> = fields.chain(iterators).chain(UNIX.iter().map(|it| it.0)).collect();
        let distinct: HashSet<_> = globals.iter().collect();
        assert_eq!(distinct.len(), globals.len());
    }

    /// A blob with no types at all.
    fn nothing() -> Vec<u8> {
        let mut bytes = 0xeb9f_u16.to_ne_bytes().to_vec();
        bytes.extend([1, 0]);
        bytes.extend([24_u32, 0, 0, 0, 1].iter().flat_map(|word| word.to_ne_bytes()));
        bytes.push(0);
        bytes
    }

    #[test]
    fn a_needed_field_that_is_missing_is_named() {
        let bytes = nothing();
        let error = Offsets::find(&Btf::parse(&bytes).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "the kernel programs need `files` of `struct task_struct`");
        assert_eq!(error.source, BtfError::NoStruct { name: "task_struct".to_owned() });
    }

    #[test]
    fn the_running_kernel_has_all_fields() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("SKIPPED: this kernel has no /sys/kernel/btf/vmlinux; no test that its fields are found");
            return;
        };
        let offsets = Offsets::find(&Btf::parse(&bytes).unwrap()).unwrap();
        assert_eq!(offsets.missing, Vec::<&str>::new());
        assert!(offsets.has_iterators);
        assert!(offsets.has_unix_sockets);
        assert!(offsets.globals.iter().all(|&(_, value)| value != ABSENT), "{offsets:?}");
    }
}
