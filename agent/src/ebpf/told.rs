//! What the kernel tells of a program that is loaded, where aya 0.14 does not show it.

use std::mem::offset_of;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr;

use aya_obj::generated::bpf_prog_info;

/// Of `bpf(2)`, include/uapi/linux/bpf.h.
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;

/// Where `recursion_misses` lies in `struct bpf_prog_info`, in words of eight bytes; since Linux 5.12.
const RECURSION_MISSES: usize = offset_of!(bpf_prog_info, recursion_misses) / size_of::<u64>();

/// The beginning of the kernel's `union bpf_attr` for `BPF_OBJ_GET_INFO_BY_FD`.
#[derive(Debug)]
#[repr(C)]
struct InfoByFd {
    fd: u32,
    len: u32,
    info: u64,
}

/// How often the kernel left the program out; 0 where it does not tell. Asked every second of dozens of programs, and so not
/// read out of `/proc`, where it stands too: that would cost ten times as much.
pub(super) fn recursion_misses(program: BorrowedFd<'_>) -> u64 {
    let mut info = [0_u64; RECURSION_MISSES + 1];
    let attributes =
        InfoByFd { fd: program.as_raw_fd() as u32, len: size_of_val(&info) as u32, info: info.as_mut_ptr() as u64 };
    // SAFETY: the kernel reads the attributes, and writes `len` bytes of its description at most to `info`, which live until the call is over.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, ptr::from_ref(&attributes), size_of::<InfoByFd>()) };
    if result < 0 { 0 } else { info.get(RECURSION_MISSES).copied().unwrap_or(0) }
}
