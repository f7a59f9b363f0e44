//! Connections that close.
//!
//! Often in an interrupt: the current process is whoever happens to run. Raw tracepoints: the kernel leaves programs on
//! the other kind out while it interrupts one of them, and every close must be seen, or a new socket at the same address
//! would be taken for the old one.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;

use crate::closing;
use crate::node;

const TCP_ESTABLISHED: i32 = 1;
const TCP_SYN_SENT: i32 = 2;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_CLOSE_WAIT: i32 = 8;
const TCP_LAST_ACK: i32 = 9;

/// `inet_sock_set_state(sk, oldstate, newstate)`
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn socket_state(ctx: RawTracePointContext) -> i32 {
    let (socket, old, new): (u64, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let _nothing_to_do = match new {
        // A connection that was not being closed on either side, or not on this one, ends by a reset only.
        TCP_CLOSE => closing::disconnected(socket, matches!(old, TCP_ESTABLISHED | TCP_CLOSE_WAIT)),
        TCP_FIN_WAIT1 | TCP_LAST_ACK => closing::closed_here(socket),
        // A socket that is used for one connection after the other.
        TCP_SYN_SENT => {
            let _most_are_of_no_request = node::connects(socket);
            closing::gone(socket)
        }
        _ => None,
    };
    0
}

/// `tcp_destroy_sock(sk)`
#[raw_tracepoint(tracepoint = "tcp_destroy_sock")]
pub fn socket_gone(ctx: RawTracePointContext) -> i32 {
    let _nothing_to_do = closing::gone(ctx.arg(0));
    0
}
