//! Calls of Go's `crypto/tls`, by uprobes behind the entries of its functions and on the instructions with which they return:
//! what a `uretprobe` does to a stack is fatal to a goroutine, whose stack the runtime walks and moves.
//!
//! Compiled code passes arguments and results in registers since Go 1.17 (src/cmd/compile/abi-internal.md in Go's sources).

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use crate::exchange::Caller;
use crate::strand::ByGoroutine;
use crate::tls::{self, Entered, kind};

/// `func (c *Conn) Write(b []byte) (int, error)`
#[uprobe]
pub fn go_tls_write(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::WRITE)
}

/// Its return.
#[uprobe]
pub fn go_tls_written(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let (strand, caller) = strand(&ctx)?;
        tls::sent(&ctx, &strand, caller, result(&ctx))
    })();
    0
}

/// `func (c *Conn) Read(b []byte) (int, error)`
#[uprobe]
pub fn go_tls_read(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::READ)
}

/// Its return.
#[uprobe]
pub fn go_tls_was_read(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let (strand, caller) = strand(&ctx)?;
        tls::received(&ctx, &strand, caller, result(&ctx))
    })();
    0
}

/// `func (c *Conn) clientHandshake(ctx context.Context) error`, `func (c *Conn) serverHandshake(ctx context.Context) error`
#[uprobe]
pub fn go_tls_handshake(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::HANDSHAKE)
}

/// Their returns.
#[uprobe]
pub fn go_tls_shaken(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| {
        let (strand, caller) = strand(&ctx)?;
        tls::shaken_itself(&strand, caller)
    })();
    0
}

/// `func (c *Conn) Close() error`
#[uprobe]
pub fn go_tls_close(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| tls::free(Caller::watched()?, register(&ctx, RAX)))();
    0
}

#[inline(always)]
fn enter(ctx: &ProbeContext, kind: u32) -> u32 {
    let _nothing_to_do = (|| {
        let (strand, caller) = strand(ctx)?;
        let (buffer, size) = match kind {
            kind::HANDSHAKE => (0, 0),
            _ => (register(ctx, RBX), register(ctx, RCX)),
        };
        let call = Entered { object: register(ctx, RAX), buffer, size, moved: 0 };
        if call.object == 0 || kind != kind::HANDSHAKE && size == 0 {
            return None;
        }
        tls::enter(&strand, caller, &call, kind)
    })();
    0
}

#[inline(always)]
fn strand(ctx: &ProbeContext) -> Option<(ByGoroutine, Caller)> {
    let caller = Caller::watched()?;
    Some((ByGoroutine::new(caller, register(ctx, R14), register(ctx, RSP))?, caller))
}

/// How much moved, or -1 with an error and nothing: the end of the stream is one.
#[inline(always)]
fn result(ctx: &ProbeContext) -> i64 {
    let (moved, error) = (register(ctx, RAX) as i64, register(ctx, RBX));
    if moved <= 0 && error != 0 { -1 } else { moved }
}

/// Where a register lies in `struct pt_regs` of x86-64 (arch/x86/include/asm/ptrace.h), in words. These programs are attached
/// on that architecture only.
const R14: usize = 1;
const RBX: usize = 5;
const RAX: usize = 10;
const RCX: usize = 11;
const RSP: usize = 19;

#[inline(always)]
fn register(ctx: &ProbeContext, index: usize) -> u64 {
    // SAFETY: the context of a uprobe is a `struct pt_regs`, which has more words; the verifier checks that.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<u64>().add(index)) }
}
