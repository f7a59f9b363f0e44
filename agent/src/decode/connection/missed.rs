//! Answers that were not seen, and what was taken for a request while one was under way.

use coati_common::event::{self, Begin, Kind, begin_flags};

use super::{super::Role, Connection, Out};

impl Connection {
    /// Drops what began like a request in the body of an answer: the next request has come from the other end.
    pub(super) fn drop_misread(&mut self, begin: &Begin, out: &mut Out<'_>) {
        let role = Role::of(begin);
        while let Some(open) = self.pending.pop_back_if(|open| open.origin.role != role) {
            out.counters.request_malformed += 1;
            open.give_up(out);
        }
    }

    /// An answer may have come by a call that was not seen: whose, nothing tells, and each request that waits would get the next
    /// one's. So none does. `read_to` is of `begin`.
    pub(super) fn find_missed(&mut self, begin: &Begin, read_to: Option<u32>, out: &mut Out<'_>) {
        let seen = begin.previous.response_bytes.wrapping_add(self.interim) as u32;
        if self.read_to.zip(read_to).is_some_and(|(from, to)| to.wrapping_sub(from) != seen) {
            self.abandon_http1(out);
        }
    }
}

/// How far a client had read of what it receives by TCP and as it is sent, if `begin` says it.
pub(super) fn read_to(begin: &Begin) -> Option<u32> {
    let other = begin_flags::POSITIONS | begin_flags::TLS | begin_flags::UNIX;
    let is_client = begin.role == event::role::CLIENT && begin.header.kind == Kind::Begin as u32;
    (is_client && begin.flags & other == begin_flags::POSITIONS).then_some(begin.server_position)
}
