//! Calls of Go's `crypto/tls` and `net/http`, by uprobes behind the entries of functions and on the instructions with which they return:
//! what a `uretprobe` does to a stack is fatal to a goroutine, whose stack the runtime walks and moves.
//!
//! Compiled code passes arguments and results in registers since Go 1.17 (src/cmd/compile/abi-internal.md in Go's sources).

use aya_ebpf::EbpfContext;
use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use crate::exchange::Caller;
use crate::goroutine;
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

/// `func (c *Conn) serverHandshake(ctx context.Context) error`
#[uprobe]
pub fn go_tls_handshake(ctx: ProbeContext) -> u32 {
    enter(&ctx, kind::HANDSHAKE)
}

/// Its return.
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

/// `func (pc *persistConn) roundTrip(req *transportRequest) (resp *Response, err error)` of `net/http`
#[uprobe]
pub fn go_round_trip(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| goroutine::round_trip(Caller::watched()?, register(&ctx, R14), register(&ctx, RAX)))();
    0
}

/// `func (w persistConnWriter) Write(p []byte) (n int, err error)` of `net/http`; `w` is a pointer to the connection.
#[uprobe]
pub fn go_round_trip_write(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| goroutine::writes(Caller::watched()?, register(&ctx, R14), register(&ctx, RAX)))();
    0
}

/// `func (cc *http2ClientConn) roundTrip(req *Request, streamf func(*http2clientStream)) (*Response, error)`: what sends the
/// request is a goroutine that this one starts.
#[uprobe]
pub fn go_ask(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| goroutine::asks(Caller::watched()?, register(&ctx, R14)))();
    0
}

/// `func (sc *http2serverConn) runHandler(rw *http2responseWriter, req *Request, handler func(ResponseWriter, *Request))`
#[uprobe]
pub fn go_handle(ctx: ProbeContext) -> u32 {
    handle(&ctx, CONN)
}

/// The same of `net/http/internal/http2`, since Go 1.27.
#[uprobe]
pub fn go_handle_internal(ctx: ProbeContext) -> u32 {
    handle(&ctx, INTERNAL_CONN)
}

/// Where a `serverConn` has its `conn`: behind `srv` and `hs`, which became an interface.
const CONN: u64 = 16;
const INTERNAL_CONN: u64 = 24;

#[inline(always)]
fn handle(ctx: &ProbeContext, conn: u64) -> u32 {
    let _nothing_to_do = (|| {
        let (server, writer) = (register(ctx, RAX), register(ctx, RBX));
        goroutine::handles(Caller::watched()?, register(ctx, R14), server.wrapping_add(conn), writer)
    })();
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
pub(super) const RAX: usize = 10;
const RCX: usize = 11;
const RSP: usize = 19;

#[inline(always)]
pub(super) fn register(ctx: &ProbeContext, index: usize) -> u64 {
    // SAFETY: the context of a uprobe is a `struct pt_regs`, which has more words; the verifier checks that.
    unsafe { core::ptr::read_volatile(ctx.as_ptr().cast::<u64>().add(index)) }
}
