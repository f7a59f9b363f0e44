//! Entry and return of TCP's own functions, by kprobes: as `trampolines`, for kernels without them.
//!
//! A return does not see the arguments, so the entry of a receive keeps them. The kernel follows a bounded number of
//! calls to their return; beyond it, returns are missed, which the next call of the thread finds out.

use aya_ebpf::macros::{kprobe, kretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use coati_common::loss::Loss;

use super::trampolines::received;
use crate::emit;
use crate::exchange::{self, Caller, NOT_THE_STREAM};
use crate::globals;
use crate::iov::Source;
use crate::kread::opaque;
use crate::maps::RECEIVES;
use crate::scratch::Slot;
use crate::sock::{Socket, stream};

/// The receive that a thread is in, or was in last, as for [`crate::call::Call`].
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Receive {
    /// Address of the `struct sock`; 0 once the call has returned.
    pub socket: u64,
    /// Address of the kernel's `struct msghdr`; 0 if the bytes do not pass the process.
    pub message: u64,
    /// Flags of the call.
    pub flags: u64,
}

impl Receive {
    /// Keeps it until the call returns that `caller` has entered.
    #[inline(always)]
    pub fn remember(self, caller: Caller) {
        let Some(kept) = RECEIVES.get_ptr_mut(caller.pid_tgid()) else {
            if RECEIVES.insert(caller.pid_tgid(), &self, 0).is_err() {
                emit::lost(Loss::CallsFull);
            }
            return;
        };
        // SAFETY: a value of the map lives at least as long as the program runs; it belongs to this thread.
        let kept = unsafe { &mut *kept };
        if kept.socket != 0 {
            // The kernel left out our program when that returned.
            emit::lost(Loss::ReturnMissed);
        }
        *kept = self;
    }

    /// What `caller` has entered is not kept: its return shall find nothing that an earlier one has left.
    #[inline(always)]
    pub fn none(caller: Caller) -> Option<()> {
        Self::recall(caller)?;
        emit::lost(Loss::ReturnMissed);
        None
    }

    /// The one that `caller` was in, once.
    #[inline(always)]
    pub fn recall(caller: Caller) -> Option<Self> {
        let kept = RECEIVES.get_ptr_mut(caller.pid_tgid())?;
        // SAFETY: as above.
        let kept = unsafe { &mut *kept };
        let receive = *kept;
        kept.socket = 0;
        (receive.socket != 0).then_some(receive)
    }
}

/// `tcp_sendmsg(sk, msg, size)`
#[kprobe]
pub fn kprobe_tcp_sendmsg(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let source = || Some(Source::ahead(ctx.arg(1)?));
        exchange::send(Slot::EXCLUSIVE, caller, Some(Socket::tcp(ctx.arg(0)?)), source)
    })();
    0
}

/// `tcp_sendpage(sk, page, offset, size, flags)`: files and pipes, until Linux 6.4.
#[kprobe]
pub fn kprobe_tcp_sendpage(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        exchange::send(Slot::EXCLUSIVE, caller, Some(Socket::tcp(ctx.arg(0)?)), || Some(Source::NONE))
    })();
    0
}

/// The return of both.
#[kretprobe]
pub fn kretprobe_send(ctx: RetProbeContext) -> u32 {
    let _nothing_to_do = exchange::sent(&ctx, Slot::EXCLUSIVE, i64::from(ctx.ret::<i32>()), stream::TCP);
    0
}

/// `tcp_recvmsg(sk, msg, len, flags, addr_len)`
#[kprobe]
pub fn kprobe_tcp_recvmsg(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        // Hidden, or the compiler would choose the place before it reads, which the verifier forbids.
        let (third, fourth) = (opaque(ctx.arg(3)?), opaque(ctx.arg(4)?));
        let flags = if globals::RECVMSG_FLAGS.load() == 3 { third } else { fourth };
        if flags & NOT_THE_STREAM != 0 || ctx.arg::<u64>(2)? == 0 {
            return Receive::none(caller);
        }
        Receive { socket: ctx.arg(0)?, message: ctx.arg(1)?, flags }.remember(caller);
        Some(())
    })();
    0
}

/// `tcp_splice_read(sock, ppos, pipe, len, flags)`
#[kprobe]
pub fn kprobe_tcp_splice_read(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        if ctx.arg::<u64>(3)? == 0 {
            return Receive::none(caller);
        }
        let socket = Socket::tcp_of(ctx.arg(0)?)?;
        Receive { socket: socket.address, message: 0, flags: 0 }.remember(caller);
        Some(())
    })();
    0
}

/// The return of both.
#[kretprobe]
pub fn kretprobe_receive(ctx: RetProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let Receive { socket, message, flags } = Receive::recall(caller)?;
        // Negative, for an error, is the same in 32 and in 64 bits.
        let result = i64::from(ctx.ret::<i32>());
        if result < 0 {
            return None;
        }
        let source =
            || Some(if message == 0 { Source::NONE } else { received(Slot::EXCLUSIVE, message, flags, result as u64) });
        exchange::received(&ctx, Slot::EXCLUSIVE, caller, Socket::tcp(socket), source, result as u64)
    })();
    0
}
