//! What silence on a connection means.

use super::Connection;
use crate::decode::{
    message::LastHeads,
    open::{Ending, Open, Out},
};

/// How long a closed connection waits for the records of calls that were interrupted by the close.
const CLOSE_NS: u64 = 100_000_000;
/// Silence after which a response that has probably ended is taken for complete.
const SETTLE_NS: u64 = 1_000_000_000;
/// Silence after which a response is given up of which nothing tells the end. While it is open it makes the calls of its
/// process ambiguous, so this is short.
const END_UNKNOWN_NS: u64 = 3_000_000_000;
/// Silence after which the last heads are forgotten: who asks so seldom may have them read again.
const FORGET_HEAD_NS: u64 = 10_000_000_000;

impl Connection {
    /// Ends what only the time that has passed tells to be over.
    pub(in crate::decode) fn settle_silent(&mut self, now_ns: u64, out: &mut Out<'_>) {
        if self.closing.is_some_and(|(time_ns, _)| now_ns.saturating_sub(time_ns) >= CLOSE_NS) {
            self.close_pending(out);
        }
        if let Some(http2) = &mut self.http2 {
            http2.settle_silent(now_ns, out);
        }
        // There may be very many connections that are kept and not used.
        if now_ns.saturating_sub(self.last_ns) >= FORGET_HEAD_NS {
            self.last = LastHeads::default();
        }
        let is_over =
            |front: &Open| front.response.is_probably_complete() && now_ns.saturating_sub(front.last_ns) >= SETTLE_NS;
        if let Some(front) = self.pending.pop_front_if(|front| is_over(front)) {
            front.finish(Ending::Framing, out);
        }
        // A download of which the kernel only counts the bytes is not silent.
        let heard_ns = self.last_ns;
        let is_given_up = |front: &Open| {
            front.response.is_end_unknown() && now_ns.saturating_sub(heard_ns.max(front.last_ns)) >= END_UNKNOWN_NS
        };
        if let Some(front) = self.pending.pop_front_if(|front| is_given_up(front)) {
            front.finish(Ending::Unknown, out);
            // The answers to those behind it may have been among its bytes.
            self.drop_pipelined(out);
        }
    }
}
