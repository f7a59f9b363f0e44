//! Entry and exit of the functions of Unix stream sockets (`net/unix/af_unix.c`), by BPF trampolines and by kprobes: as
//! `trampolines` and `kprobes` do it for TCP.

use aya_ebpf::macros::{fentry, fexit, kprobe, kretprobe};
use aya_ebpf::programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext};

use super::kprobes::Receive;
use super::trampolines::{argument, result};
use crate::closing;
use crate::exchange::{self, Caller, NOT_THE_STREAM};
use crate::iov::Source;
use crate::scratch::Slot;
use crate::sock::{Socket, stream};

/// `unix_stream_sendmsg(sock, msg, len)`
#[fentry]
pub fn fentry_unix_sendmsg(ctx: FEntryContext) -> i32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let source = || Some(Source::ahead(argument(&ctx, 1)));
        exchange::send(Slot::UNIX_SENDMSG_ENTRY, caller, Socket::unix_of(argument(&ctx, 0)), source)
    })();
    0
}

/// `unix_stream_sendmsg(sock, msg, len)`
#[fexit]
pub fn fexit_unix_sendmsg(ctx: FExitContext) -> i32 {
    let _nothing_to_do = exchange::sent(&ctx, Slot::UNIX_SENDMSG_EXIT, result(&ctx), stream::UNIX);
    0
}

/// `unix_stream_sendpage(sock, page, offset, size, flags)`: files and pipes, until Linux 6.4.
#[fentry]
pub fn fentry_unix_sendpage(ctx: FEntryContext) -> i32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let slot = Slot::borrow()?;
        let result = exchange::send(slot, caller, Socket::unix_of(argument(&ctx, 0)), || Some(Source::NONE));
        slot.give_back();
        result
    })();
    0
}

/// `unix_stream_sendpage(sock, page, offset, size, flags)`
#[fexit]
pub fn fexit_unix_sendpage(ctx: FExitContext) -> i32 {
    let _nothing_to_do = (|| {
        let slot = Slot::borrow()?;
        let result = exchange::sent(&ctx, slot, result(&ctx), stream::UNIX);
        slot.give_back();
        result
    })();
    0
}

/// `unix_stream_recvmsg(sock, msg, size, flags)`
#[fexit]
pub fn fexit_unix_recvmsg(ctx: FExitContext) -> i32 {
    let result = result(&ctx);
    if result < 0 {
        return 0;
    }
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        // Nothing came because nothing was asked for.
        if argument(&ctx, 3) & NOT_THE_STREAM != 0 || argument(&ctx, 2) == 0 {
            return None;
        }
        let source = || Some(Source::behind(Slot::UNIX_RECVMSG_EXIT, argument(&ctx, 1), result as u64));
        let socket = Socket::unix_of(argument(&ctx, 0))?;
        exchange::received(&ctx, Slot::UNIX_RECVMSG_EXIT, caller, socket, source, result as u64)
    })();
    0
}

/// `unix_stream_splice_read(sock, ppos, pipe, size, flags)`
#[fexit]
pub fn fexit_unix_splice_read(ctx: FExitContext) -> i32 {
    let result = result(&ctx);
    if result < 0 || argument(&ctx, 3) == 0 {
        return 0;
    }
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let slot = Slot::borrow()?;
        let result = Socket::unix_of(argument(&ctx, 0))
            .and_then(|socket| exchange::received(&ctx, slot, caller, socket, || Some(Source::NONE), result as u64));
        slot.give_back();
        result
    })();
    0
}

/// `unix_release(sock)`: no tracepoint tells the end of a Unix socket.
#[fentry]
pub fn fentry_unix_release(ctx: FEntryContext) -> i32 {
    let _nothing_to_do = closing::last_descriptor(|| Socket::unix_of(argument(&ctx, 0)));
    0
}

/// `unix_stream_sendmsg(sock, msg, len)`
#[kprobe]
pub fn kprobe_unix_sendmsg(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let source = || Some(Source::ahead(ctx.arg(1)?));
        exchange::send(Slot::EXCLUSIVE, caller, Socket::unix_of(ctx.arg(0)?), source)
    })();
    0
}

/// `unix_stream_sendpage(sock, page, offset, size, flags)`
#[kprobe]
pub fn kprobe_unix_sendpage(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        exchange::send(Slot::EXCLUSIVE, caller, Socket::unix_of(ctx.arg(0)?), || Some(Source::NONE))
    })();
    0
}

/// The return of both.
#[kretprobe]
pub fn kretprobe_unix_send(ctx: RetProbeContext) -> u32 {
    let _nothing_to_do = exchange::sent(&ctx, Slot::EXCLUSIVE, i64::from(ctx.ret::<i32>()), stream::UNIX);
    0
}

/// `unix_stream_recvmsg(sock, msg, size, flags)`
#[kprobe]
pub fn kprobe_unix_recvmsg(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        Receive::enters(caller, || {
            let flags = ctx.arg::<u64>(3)?;
            if flags & NOT_THE_STREAM != 0 || ctx.arg::<u64>(2)? == 0 {
                return None;
            }
            Some(Receive { socket: Socket::unix_of(ctx.arg(0)?)?.address, message: ctx.arg(1)?, flags })
        })
    })();
    0
}

/// `unix_stream_splice_read(sock, ppos, pipe, size, flags)`
#[kprobe]
pub fn kprobe_unix_splice_read(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        Receive::enters(caller, || {
            if ctx.arg::<u64>(3)? == 0 {
                return None;
            }
            Some(Receive { socket: Socket::unix_of(ctx.arg(0)?)?.address, message: 0, flags: 0 })
        })
    })();
    0
}

/// The return of both.
#[kretprobe]
pub fn kretprobe_unix_receive(ctx: RetProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let Receive { socket, message, .. } = Receive::returned(caller)?;
        // Negative, for an error, is the same in 32 and in 64 bits.
        let result = i64::from(ctx.ret::<i32>());
        if result < 0 {
            return None;
        }
        let source =
            || Some(if message == 0 { Source::NONE } else { Source::behind(Slot::EXCLUSIVE, message, result as u64) });
        exchange::received(&ctx, Slot::EXCLUSIVE, caller, Socket::unix(socket), source, result as u64)
    })();
    0
}

/// `unix_release(sock)`
#[kprobe]
pub fn kprobe_unix_release(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = closing::last_descriptor(|| Socket::unix_of(ctx.arg(0)?));
    0
}
