//! Functions of programs with event loops, by uprobes.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use crate::event_loop;
use crate::exchange::Caller;

/// `ngx_int_t ngx_chain_writer(void *ctx, ngx_chain_t *in)` of nginx: all that it sends to upstream servers goes through it.
#[uprobe]
pub fn nginx_send(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| event_loop::nginx_sends(Caller::watched()?, ctx.arg(0)?))();
    0
}
