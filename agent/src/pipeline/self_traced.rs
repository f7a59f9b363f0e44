//! Processes that trace themselves: they have an SDK that exports spans, so a second span of each request is of no use.

use foldhash::{HashSet, HashSetExt as _};

use crate::decode::{Exchange, Role};

/// Processes that are kept; their exits may be among the lost records.
const MAX_PROCESSES: usize = 8192;

/// Which processes do, by what they are seen to send.
#[derive(Debug)]
pub(super) struct SelfTraced {
    is_on: bool,
    exporters: HashSet<u32>,
    /// Processes that take the spans of others: what they send on is not theirs.
    carriers: HashSet<u32>,
}

impl SelfTraced {
    /// Has seen nothing yet.
    pub(super) fn new() -> Self {
        Self { is_on: true, exporters: HashSet::new(), carriers: HashSet::new() }
    }

    /// Whether it matters.
    pub(super) const fn set_on(&mut self, is_on: bool) {
        self.is_on = is_on;
    }

    /// Whether no spans are to be made of the process.
    pub(super) fn has(&self, tgid: u32) -> bool {
        self.is_on && self.exporters.contains(&tgid) && !self.carriers.contains(&tgid)
    }

    /// A request that carried spans is over. Only what was taken counts: who exports into the void is not traced by itself.
    pub(super) fn exported(&mut self, exchange: &Exchange) {
        let processes = match exchange.origin.role {
            Role::Server => &mut self.carriers,
            Role::Client if was_taken(exchange) => &mut self.exporters,
            Role::Client => return,
        };
        if processes.len() < MAX_PROCESSES && processes.insert(exchange.origin.tgid) {
            let (tgid, role) = (exchange.origin.tgid, exchange.origin.role);
            tracing::debug!(tgid, ?role, "a process that carries spans");
        }
    }

    /// The process is gone, or is another program now.
    pub(super) fn forget(&mut self, tgid: u32) {
        self.exporters.remove(&tgid);
        self.carriers.remove(&tgid);
    }
}

fn was_taken(exchange: &Exchange) -> bool {
    let is_success = exchange.response.as_ref().is_some_and(|response| (200..300).contains(&response.status));
    // Of a connection that was there before the agent the trailers may not be readable.
    is_success && exchange.grpc.is_none_or(|grpc| grpc.status.is_none_or(|status| status == 0))
}
