//! System calls that move bytes of connections.
//!
//! Named by what they do with bytes, not by system call: those with the same arguments share a program (see
//! `plan` in the agent). A call that receives is only looked at when it returns: its arguments still lie where the
//! process's registers were saved, and so calls that a thread was already in when the agent started are seen too.

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::tracepoint;
use aya_ebpf::programs::TracePointContext;

use crate::closing;
use crate::exchange::{self, Caller, NOT_THE_STREAM};
use crate::globals;
use crate::iov::Source;
use crate::kread::Typed;
use crate::scratch::Slot;
use crate::sock::{Socket, stream};

/// Where the arguments of `sys_enter_*`, and the result of `sys_exit_*`, begin: behind the common fields and the
/// number of the system call. The same for all of them, on every 64-bit kernel.
const FIELDS: usize = 16;

/// Field `index` of the tracepoint.
#[inline(always)]
fn field(ctx: &TracePointContext, index: usize) -> u64 {
    // SAFETY: the verifier and the kernel check, when the program is loaded and attached, that the field is there.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<u8>().add(FIELDS + 8 * index).cast::<u64>()) }
}

/// `send(fd, buf, len, …)`
#[tracepoint]
pub fn enter_send_buffer(ctx: TracePointContext) -> u32 {
    enter(&ctx, 0, |ctx| Some(Source::buffer(field(ctx, 1), field(ctx, 2))))
}

/// `send(fd, iov, iovcnt)`
#[tracepoint]
pub fn enter_send_vector(ctx: TracePointContext) -> u32 {
    enter(&ctx, 0, |ctx| Some(Source::vector(field(ctx, 1), field(ctx, 2))))
}

/// `send(fd, msghdr, …)`
#[tracepoint]
pub fn enter_send_message(ctx: TracePointContext) -> u32 {
    enter(&ctx, 0, |ctx| Source::message(field(ctx, 1)))
}

/// `send(fd, …)` of bytes that never pass the process.
#[tracepoint]
pub fn enter_send_file(ctx: TracePointContext) -> u32 {
    enter(&ctx, 0, |_| Some(Source::NONE))
}

/// `splice(_, _, fd, …)`
#[tracepoint]
pub fn enter_splice(ctx: TracePointContext) -> u32 {
    enter(&ctx, 2, |_| Some(Source::NONE))
}

/// The end of every send.
#[tracepoint]
pub fn exit_send(ctx: TracePointContext) -> u32 {
    let _nothing_to_do = exchange::sent(&ctx, Slot::EXCLUSIVE, field(&ctx, 0) as i64, stream::ANY);
    0
}

/// `receive(fd, buf, len)`
#[tracepoint]
pub fn exit_receive_buffer(ctx: TracePointContext) -> u32 {
    exit(&ctx, |arguments| Some(Source::buffer(arguments.get(1), arguments.get(2))))
}

/// `receive(fd, buf, len, flags, …)`
#[tracepoint]
pub fn exit_receive_buffer_flags(ctx: TracePointContext) -> u32 {
    exit(&ctx, |arguments| {
        if arguments.get(3) & NOT_THE_STREAM != 0 {
            return None;
        }
        Some(Source::buffer(arguments.get(1), arguments.get(2)))
    })
}

/// `receive(fd, iov, iovcnt)`
#[tracepoint]
pub fn exit_receive_vector(ctx: TracePointContext) -> u32 {
    exit(&ctx, |arguments| Some(Source::vector(arguments.get(1), arguments.get(2))))
}

/// `receive(fd, msghdr, flags)`
#[tracepoint]
pub fn exit_receive_message(ctx: TracePointContext) -> u32 {
    exit(&ctx, |arguments| {
        if arguments.get(2) & NOT_THE_STREAM != 0 {
            return None;
        }
        Source::message(arguments.get(1))
    })
}

/// `splice(fd, …)`, which has no end of its own: it is a send as well.
#[tracepoint]
pub fn exit_splice(ctx: TracePointContext) -> u32 {
    if exchange::sent(&ctx, Slot::EXCLUSIVE, field(&ctx, 0) as i64, stream::ANY).is_none() {
        return exit(&ctx, |_| Some(Source::NONE));
    }
    0
}

/// `close(fd)`: of Unix sockets nothing else tells the end.
#[tracepoint]
pub fn enter_close(ctx: TracePointContext) -> u32 {
    let _nothing_to_do = (|| {
        Caller::watched()?;
        closing::last_descriptor(|| Socket::of_only_descriptor(field(&ctx, 0)))
    })();
    0
}

#[inline(always)]
fn enter(ctx: &TracePointContext, fd: usize, source: impl Fn(&TracePointContext) -> Option<Source>) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        exchange::send(Slot::EXCLUSIVE, caller, Socket::of_watched(caller, field(ctx, fd)), || source(ctx))
    })();
    0
}

#[inline(always)]
fn exit(ctx: &TracePointContext, source: impl Fn(&Arguments) -> Option<Source>) -> u32 {
    let result = field(ctx, 0) as i64;
    if result < 0 {
        return 0;
    }
    let _nothing_to_do = (|| {
        let caller = Caller::watched().filter(|caller| !caller.is_skipped())?;
        let arguments = Arguments::of_current();
        // Nothing came because nothing was asked for.
        if result == 0 && source(&arguments)?.count == 0 {
            return None;
        }
        let socket = Socket::of_descriptor(arguments.get(0))?;
        exchange::received(ctx, Slot::EXCLUSIVE, caller, socket, || source(&arguments), result as u64)
    })();
    0
}

/// The arguments of the system call that the current thread is in.
struct Arguments {
    registers: Typed,
}

impl Arguments {
    #[inline(always)]
    fn of_current() -> Self {
        Self { registers: Typed::current_task().saved_registers() }
    }

    #[inline(always)]
    fn get(&self, index: usize) -> u64 {
        let offset = match index {
            0 => globals::REGS_ARG0.load(),
            1 => globals::REGS_ARG1.load(),
            2 => globals::REGS_ARG2.load(),
            _ => globals::REGS_ARG3.load(),
        };
        self.registers.u64(offset)
    }
}
