//! Functions of programs with event loops, by uprobes.

use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use crate::exchange::Caller;
use crate::{event_loop, node, uvloop};

/// `ngx_int_t ngx_chain_writer(void *ctx, ngx_chain_t *in)` of nginx: all that it sends to upstream servers goes through it.
#[uprobe]
pub fn nginx_send(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| event_loop::nginx_sends(Caller::watched()?, ctx.arg(0)?))();
    0
}

/// `void node::LibuvStreamWrap::OnUvRead(ssize_t nread, const uv_buf_t *buf)` of Node.js: calls back what was received.
#[uprobe]
pub fn node_read(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| node::begins(Caller::watched()?, ctx.arg(0)?, ctx.arg(1)?, ctx.arg(2)?))();
    0
}

/// `void __uv_stream_on_read(uv_stream_t *stream, ssize_t nread, const uv_buf_t *buf)` of uvloop, or `__uv_stream_buffered_on_read`: the
/// same.
#[uprobe]
pub fn uvloop_read(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| node::begins(Caller::watched()?, 0, ctx.arg(1)?, ctx.arg(2)?))();
    0
}

/// `UVStream._initiate_write(self)` of uvloop: something is written on a connection.
#[uprobe]
pub fn uvloop_write(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| uvloop::writes(Caller::watched()?, ctx.arg(0)?))();
    0
}

/// The return of all that call back, with all that was to be done at once.
#[uretprobe]
pub fn node_has_read(_ctx: RetProbeContext) -> u32 {
    let _nothing_to_do = (|| node::ends(Caller::watched()?))();
    0
}
