//! Entry and return of TCP's own functions, by kprobes: as `trampolines`, for kernels without them.
//!
//! A return does not see the arguments, so the entry of a receive keeps them. The kernel follows a bounded number of
//! calls to their return; beyond it, returns are missed, which the next call of the thread finds out.

use aya_ebpf::macros::{kprobe, kretprobe};
use aya_ebpf::maps::{Array, HashMap};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use coati_common::limits;

use super::trampolines::received;
use crate::exchange::{self, Caller, NOT_THE_STREAM};
use crate::globals;
use crate::iov::Source;
use crate::kread::opaque;
use crate::maps::{RECEIVES, RECEIVING};
use crate::notes::{self, Note, Noted, Place};
use crate::scratch::Slot;
use crate::sock::{Socket, stream};

/// What is noted of a receive.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Receive {
    /// Address of the `struct sock`.
    pub socket: u64,
    /// Address of the kernel's `struct msghdr`; 0 if the bytes do not pass the process.
    pub message: u64,
    /// Flags of the call.
    pub flags: u64,
}

/// Of no receive.
static BLANK: Note<Receive> = Note::blank(Receive { socket: 0, message: 0, flags: 0 });

impl Noted for Receive {
    const PLACES: u32 = limits::RECEIVING;

    #[inline(always)]
    fn places() -> &'static Array<Place<Self>> {
        &RECEIVING
    }

    #[inline(always)]
    fn others() -> &'static HashMap<u64, Note<Self>> {
        &RECEIVES
    }

    #[inline(always)]
    fn blank() -> &'static Note<Self> {
        &BLANK
    }
}

impl Receive {
    /// Notes what `caller` has entered; `None` is a receive that does not matter, whose return shall find nothing that an earlier
    /// one has left.
    #[inline(always)]
    pub fn enters(caller: Caller, receive: impl FnOnce() -> Option<Self>) -> Option<()> {
        notes::leaves::<Self>(caller.pid_tgid());
        let receive = receive()?;
        notes::enters::<Self>(caller.pid_tgid())?.of = receive;
        Some(())
    }

    /// The one that `caller` was in, once.
    #[inline(always)]
    pub fn returned(caller: Caller) -> Option<Self> {
        let note = notes::under_way::<Self>(caller.pid_tgid())?;
        let receive = note.of;
        note.end();
        Some(receive)
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
        Receive::enters(caller, || {
            let matters = flags & NOT_THE_STREAM == 0 && ctx.arg::<u64>(2)? != 0;
            if matters { Some(Receive { socket: ctx.arg(0)?, message: ctx.arg(1)?, flags }) } else { None }
        })
    })();
    0
}

/// `tcp_splice_read(sock, ppos, pipe, len, flags)`
#[kprobe]
pub fn kprobe_tcp_splice_read(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        Receive::enters(caller, || {
            if ctx.arg::<u64>(3)? == 0 {
                return None;
            }
            Some(Receive { socket: Socket::tcp_of(ctx.arg(0)?)?.address, message: 0, flags: 0 })
        })
    })();
    0
}

/// The return of both.
#[kretprobe]
pub fn kretprobe_receive(ctx: RetProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let caller = Caller::watched()?;
        let Receive { socket, message, flags } = Receive::returned(caller)?;
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
