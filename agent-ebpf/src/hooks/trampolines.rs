//! Entry and exit of TCP's own functions, by BPF trampolines (`fentry`, `fexit`): the cheapest hooks there are, and
//! they see every call that moves bytes, whichever system call, `io_uring` request or 32-bit process it comes from.
//!
//! An exit sees the arguments too, so a receive is looked at only when it returns. The functions: `net/ipv4/tcp.c`.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_get_func_arg, bpf_get_func_ret};
use aya_ebpf::macros::{fentry, fexit};
use aya_ebpf::programs::{FEntryContext, FExitContext};

use crate::exchange::{self, Caller, NOT_THE_STREAM};
use crate::globals;
use crate::iov::Source;
use crate::scratch::Slot;
use crate::sock::{Socket, stream};

/// Bytes are thrown away instead of copied.
pub const MSG_TRUNC: u64 = 0x20;

/// Argument `index` of the function.
#[inline(always)]
pub fn argument<C: EbpfContext>(ctx: &C, index: u32) -> u64 {
    let mut value = 0;
    // SAFETY: `value` is valid; if there is no such argument, it stays 0, which is nobody's address.
    unsafe { bpf_get_func_arg(ctx.as_ptr(), index, &raw mut value) };
    value
}

/// What the function returned, for functions that return `int`.
#[inline(always)]
pub fn result(ctx: &FExitContext) -> i64 {
    let mut value = 0;
    // SAFETY: as above.
    unsafe { bpf_get_func_ret(ctx.as_ptr(), &raw mut value) };
    i64::from(value as i32)
}

/// `tcp_sendmsg(sk, msg, size)`
#[fentry]
pub fn fentry_tcp_sendmsg(ctx: FEntryContext) -> i32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let source = || Some(Source::ahead(argument(&ctx, 1)));
        exchange::send(Slot::SENDMSG_ENTRY, caller, Some(Socket::tcp(argument(&ctx, 0))), source)
    })();
    0
}

/// `tcp_sendmsg(sk, msg, size)`
#[fexit]
pub fn fexit_tcp_sendmsg(ctx: FExitContext) -> i32 {
    let _nothing_to_do = exchange::sent(&ctx, Slot::SENDMSG_EXIT, result(&ctx), stream::TCP);
    0
}

/// `tcp_sendpage(sk, page, offset, size, flags)`: files and pipes, until Linux 6.4.
#[fentry]
pub fn fentry_tcp_sendpage(ctx: FEntryContext) -> i32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        exchange::send(Slot::SENDPAGE_ENTRY, caller, Some(Socket::tcp(argument(&ctx, 0))), || Some(Source::NONE))
    })();
    0
}

/// `tcp_sendpage(sk, page, offset, size, flags)`
#[fexit]
pub fn fexit_tcp_sendpage(ctx: FExitContext) -> i32 {
    let _nothing_to_do = exchange::sent(&ctx, Slot::SENDPAGE_EXIT, result(&ctx), stream::TCP);
    0
}

/// `tcp_recvmsg(sk, msg, len, flags, addr_len)`
#[fexit]
pub fn fexit_tcp_recvmsg(ctx: FExitContext) -> i32 {
    let result = result(&ctx);
    if result < 0 {
        return 0;
    }
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let flags = argument(&ctx, globals::RECVMSG_FLAGS.load());
        // Nothing came because nothing was asked for.
        if flags & NOT_THE_STREAM != 0 || argument(&ctx, 2) == 0 {
            return None;
        }
        let source = || Some(received(Slot::RECVMSG_EXIT, argument(&ctx, 1), flags, result as u64));
        exchange::received(&ctx, Slot::RECVMSG_EXIT, caller, Socket::tcp(argument(&ctx, 0)), source, result as u64)
    })();
    0
}

/// `tcp_splice_read(sock, ppos, pipe, len, flags)`
#[fexit]
pub fn fexit_tcp_splice_read(ctx: FExitContext) -> i32 {
    let result = result(&ctx);
    if result < 0 {
        return 0;
    }
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        if argument(&ctx, 3) == 0 {
            return None;
        }
        let socket = Socket::tcp_of(argument(&ctx, 0))?;
        exchange::received(&ctx, Slot::SPLICE_READ_EXIT, caller, socket, || Some(Source::NONE), result as u64)
    })();
    0
}

/// Where `len` bytes are that a receive with these flags has put behind `message`.
#[inline(always)]
pub fn received(slot: Slot, message: u64, flags: u64, len: u64) -> Source {
    if flags & MSG_TRUNC != 0 { Source::NONE } else { Source::behind(slot, message, len) }
}
