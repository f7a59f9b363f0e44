//! Connections that close.
//!
//! Often in an interrupt: the current process is whoever happens to run.

use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use coati_common::event::end_reason::{CLOSED, RESET};

use crate::exchange;

const TCP_ESTABLISHED: i32 = 1;
const TCP_FIN_WAIT1: i32 = 4;
const TCP_CLOSE: i32 = 7;
const TCP_CLOSE_WAIT: i32 = 8;
const TCP_LAST_ACK: i32 = 9;

/// `inet_sock_set_state(sk, oldstate, newstate)`
///
/// A raw tracepoint: the kernel leaves programs on the other kind out while it interrupts one of them, and every close
/// must be seen, or a new socket at the same address would be taken for the old one.
#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
pub fn socket_state(ctx: RawTracePointContext) -> i32 {
    let (socket, old, new): (u64, i32, i32) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    let _nothing_to_do = match new {
        // A connection that was not being closed on either side, or not on this one, ends by a reset only.
        TCP_CLOSE => {
            let reason = if matches!(old, TCP_ESTABLISHED | TCP_CLOSE_WAIT) { RESET } else { CLOSED };
            exchange::end(socket, reason, false, true)
        }
        // The server has closed: nothing of the response is to come. A client that has closed may still receive.
        TCP_FIN_WAIT1 | TCP_LAST_ACK => exchange::end(socket, CLOSED, true, false),
        _ => None,
    };
    0
}
