//! Gives every exchange its place in a trace.
//!
//! In this order: the request's `traceparent`; for a server the client request that it is, known by the stream
//! positions of its first byte (on a Unix socket by its head); for a client the server request that the program itself says it is
//! for (by its goroutine, for example), or if it says nothing the only one that its thread has open, where that does one thing
//! after the other, else the only one that its process has open, if its response has not
//! begun; else it is a root. A server request from another node is below a client whose trace is not known here: it gets
//! a provisional trace id, which the backend replaces.
//! A link that is not certain is not made. ADR 0003 and 0020 say why.

mod counters;
mod ids;
mod traceparent;

#[cfg(test)]
mod tests;

use std::collections::{VecDeque, hash_map::Entry};

use coati_common::stitch::{PROVISIONAL_MEMBER, caller_of, provisional_trace_id};
pub use counters::StitchCounters;
use foldhash::{HashMap, HashMapExt as _};
pub use ids::{Ids, RandomIds, caller_id};
pub use traceparent::TraceParent;

use crate::decode::{Exchange, ExchangeId, Key, Origin, RequestHead, Role, Within};

/// How far a server may seem to be ahead of its client: both are stamped by the same clock, but on different CPUs.
const SLACK_NS: u64 = 1_000_000;
/// Flags of a trace that begins here: `sampled`.
const SAMPLED: u8 = 1;

/// Limits of a [`Stitcher`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct StitchConfig {
    /// Exchanges that are followed at once. With more, the surplus gets only what its own headers say.
    pub max_open: usize,
    /// How long after a client's request the server may read it, nanoseconds.
    pub pair_within_ns: u64,
    /// Whether the backend unites the traces of several nodes. If not, a server request without a client on this node is
    /// a root.
    pub across_nodes: bool,
}

impl Default for StitchConfig {
    fn default() -> Self {
        Self { max_open: 65_536, pair_within_ns: 60_000_000_000, across_nodes: true }
    }
}

/// An exchange that is not over.
#[derive(Debug)]
struct Open {
    begin_ns: u64,
    /// First byte of the final response, `None` before it came.
    answered_ns: Option<u64>,
    /// `None` until its head is read.
    ids: Option<Ids>,
    /// A span of its trace was made, below it or of itself, so it must stay in that trace.
    has_children: bool,
    /// The thread that has read it, and what that was doing.
    tid: u32,
    within: Within,
    /// Of a client's: the server's that it is made for, by what the program says, certain or not.
    served: Option<ExchangeId>,
    /// Of a server's: how many of these are open.
    calls: u32,
}

/// The client's end of an exchange whose other end may be on this node.
#[derive(Debug)]
struct ClientEnd {
    ids: Ids,
    begin_ns: u64,
    header: Option<TraceParent>,
    is_claimed: bool,
}

/// Follows the open exchanges of the node. Times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug)]
pub struct Stitcher {
    config: StitchConfig,
    random: RandomIds,
    open: HashMap<ExchangeId, Open>,
    /// Open server exchanges of each process.
    servers: HashMap<u32, Vec<ExchangeId>>,
    /// Open server exchanges that are not in `open`: while there are any, nobody can say which one is the only one.
    untracked_servers: u64,
    clients: HashMap<Key, ClientEnd>,
    /// Clients that ended without an answer, by their begin: their servers may still read the request.
    unanswered: VecDeque<(u64, Key)>,
    /// Server exchanges without a known caller.
    unpaired: HashMap<Key, ExchangeId>,
    /// Processes that have made calls while several server exchanges were open.
    crowded: Vec<u32>,
    counters: StitchCounters,
}

impl Stitcher {
    /// Nothing is open; ids come from `random`.
    pub fn new(config: StitchConfig, random: RandomIds) -> Self {
        Self {
            config,
            random,
            open: HashMap::new(),
            servers: HashMap::new(),
            untracked_servers: 0,
            clients: HashMap::new(),
            unanswered: VecDeque::new(),
            unpaired: HashMap::new(),
            crowded: Vec::new(),
            counters: StitchCounters::default(),
        }
    }

    /// A request's first bytes were seen, its head is not known yet.
    pub fn opened(&mut self, origin: &Origin) {
        self.track(origin, None);
    }

    fn track(&mut self, origin: &Origin, ids: Option<Ids>) {
        if self.open.len() >= self.config.max_open {
            self.counters.untracked += 1;
            self.untracked_servers += u64::from(origin.role == Role::Server);
            return;
        }
        let Origin { begin_ns, tid, within, served, .. } = *origin;
        let open = Open { begin_ns, answered_ns: None, ids, has_children: false, tid, within, served, calls: 0 };
        self.open.insert(origin.id, open);
        if let Some(server) = served.and_then(|served| self.open.get_mut(&served)) {
            server.calls += 1;
        }
        if origin.role == Role::Server {
            self.servers.entry(origin.tgid).or_default().push(origin.id);
        }
    }

    /// A request's head was read: its ids are decided now.
    pub fn began(&mut self, origin: &Origin, head: &RequestHead) {
        let ids = self.decide(origin, head);
        match self.open.get_mut(&origin.id) {
            Some(open) => open.ids = Some(ids),
            None => self.track(origin, Some(ids)),
        }
    }

    /// A response has begun, at `first_ns`.
    pub fn answered(&mut self, origin: &Origin, first_ns: u64) {
        if let Some(open) = self.open.get_mut(&origin.id) {
            open.answered_ns = Some(first_ns);
        }
    }

    /// The connection of an exchange was switched to another protocol: what its process does from now on is not done for
    /// this request, although that is not over.
    pub fn upgraded(&mut self, origin: &Origin) {
        if let Some(servers) = self.servers.get_mut(&origin.tgid) {
            servers.retain(|id| *id != origin.id);
        }
    }

    /// The ids of an exchange that is not over, if they were decided; it keeps them from now on.
    pub fn running(&mut self, id: ExchangeId) -> Option<Ids> {
        let open = self.open.get_mut(&id)?;
        // As if there was one: who has seen it in its trace looks for it there.
        open.has_children = true;
        open.ids.clone()
    }

    /// An exchange is over; gives its ids.
    pub fn ended(&mut self, exchange: &Exchange) -> Ids {
        let origin = &exchange.origin;
        let open = self.close(origin, exchange.response.is_some());
        if let Some(ids) = open.and_then(|open| open.ids) {
            return ids;
        }
        let header = traceparent(&exchange.request);
        self.by_header(origin, &exchange.request, header).unwrap_or_else(|| self.root(origin))
    }

    /// An exchange is lost.
    pub fn dropped(&mut self, origin: &Origin) {
        self.close(origin, false);
    }

    /// No span is made of an exchange that may have been told of: nothing is to be below it from now on.
    pub fn forget(&mut self, origin: &Origin) {
        if self.open.contains_key(&origin.id) {
            self.close(origin, false);
        }
    }

    /// To be called every few seconds: forgets what is too old to be of use.
    pub fn tick(&mut self, now_ns: u64) {
        let within_ns = self.config.pair_within_ns;
        while let Some((_, key)) =
            self.unanswered.pop_front_if(|(begin_ns, _)| now_ns.saturating_sub(*begin_ns) > within_ns)
        {
            self.clients.remove(&key);
        }
        self.servers.retain(|_, open| !open.is_empty());
    }

    /// The processes that have made calls while they had several server exchanges open, and nobody knew for which, since this was
    /// last asked; some more than once.
    pub fn take_crowded(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.crowded)
    }

    /// What was decided so far.
    pub const fn counters(&self) -> &StitchCounters {
        &self.counters
    }

    fn decide(&mut self, origin: &Origin, head: &RequestHead) -> Ids {
        match origin.role {
            Role::Server => self.decide_server(origin, head),
            Role::Client => self.decide_client(origin, head),
        }
    }

    fn decide_server(&mut self, origin: &Origin, head: &RequestHead) -> Ids {
        let header = traceparent(head);
        if let Some(ids) = self.claim(origin, header) {
            self.counters.by_position += u64::from(header.is_none());
            self.counters.by_header += u64::from(header.is_some());
            return ids;
        }
        if let Some(ids) = self.by_header(origin, head, header) {
            return ids;
        }
        let Some(key) = origin.key else { return self.root(origin) };
        if self.clients.contains_key(&key) {
            // Its client is here, and certainly not the one: nobody can say who else it is.
            return self.root(origin);
        }
        self.unpaired.insert(key, origin.id);
        match caller_id(key) {
            Some(caller) if self.config.across_nodes && may_be_remote(origin) => self.provisional(caller),
            _ => self.root(origin),
        }
    }

    /// The place below the client's end of the same exchange. A `traceparent` that the client did not send, as far as is
    /// known, is not overruled.
    fn claim(&mut self, origin: &Origin, header: Option<TraceParent>) -> Option<Ids> {
        let client = self.clients.get_mut(&origin.key?)?;
        let is_in_time = client.begin_ns <= origin.begin_ns.saturating_add(SLACK_NS)
            && origin.begin_ns.saturating_sub(client.begin_ns) <= self.config.pair_within_ns;
        if client.is_claimed || !is_in_time || (header.is_some() && header != client.header) {
            return None;
        }
        client.is_claimed = true;
        Some(Ids {
            span_id: self.random.span_id(),
            parent_span_id: Some(client.ids.span_id),
            is_parent_remote: Some(true),
            ..client.ids.clone()
        })
    }

    /// The place below the client span `caller`, which is on another node, or outside of all.
    fn provisional(&mut self, caller: [u8; 8]) -> Ids {
        self.counters.provisional += 1;
        Ids {
            trace_id: provisional_trace_id(caller),
            span_id: self.random.span_id(),
            parent_span_id: Some(caller),
            trace_state: PROVISIONAL_MEMBER.into(),
            flags: SAMPLED,
            is_parent_remote: Some(true),
            is_continued: false,
        }
    }

    fn decide_client(&mut self, origin: &Origin, head: &RequestHead) -> Ids {
        let header = traceparent(head);
        let mut ids = if let Some(ids) = self.by_header(origin, head, header) {
            ids
        } else {
            let known = origin.served.map(|parent| self.by_program(origin, parent));
            let known = known.unwrap_or_else(|| self.by_thread(origin).or_else(|| self.in_process(origin)));
            known.unwrap_or_else(|| self.root(origin))
        };
        if let Some(key) = origin.key {
            // The same was asked for on a Unix socket, and nobody has read that yet: who reads is one of the two.
            let is_ambiguous = self.clients.get(&key).is_some_and(|other| !other.is_claimed);
            let is_claimed = is_ambiguous || self.pair_late(key, origin.begin_ns, &mut ids);
            if self.clients.len() < self.config.max_open {
                let client = ClientEnd { ids: ids.clone(), begin_ns: origin.begin_ns, header, is_claimed };
                self.clients.insert(key, client);
            } else {
                self.counters.untracked += 1;
            }
        }
        ids
    }

    /// A system call that sends is told of when it returns, and by then the server may have been told of. Puts both into
    /// one trace if neither has to stay in its own.
    fn pair_late(&mut self, key: Key, begin_ns: u64, client: &mut Ids) -> bool {
        let Some(server) = self.unpaired.get(&key).and_then(|id| self.open.get_mut(id)) else { return false };
        // On a Unix socket it may have read an earlier request with the same head.
        if begin_ns > server.begin_ns.saturating_add(SLACK_NS) {
            return false;
        }
        let Some(server_ids) = &mut server.ids else { return false };
        let is_provisional = caller_of(server_ids.trace_id).is_some();
        let (can_move, client_can_move) = (!server.has_children, client.parent_span_id.is_none() && !is_provisional);
        if client_can_move {
            client.trace_id = server_ids.trace_id;
        }
        if client_can_move || can_move {
            server_ids.trace_id = client.trace_id;
            server_ids.trace_state.clone_from(&client.trace_state);
            server_ids.flags = client.flags;
            server_ids.is_continued = client.is_continued;
            server_ids.parent_span_id = Some(client.span_id);
            server_ids.is_parent_remote = Some(true);
        } else if !is_provisional {
            return false;
        }
        // A provisional trace that has to stay is below this client already, for the backend to move.
        self.unpaired.remove(&key);
        self.counters.by_position += 1;
        let decided = if is_provisional { &mut self.counters.provisional } else { &mut self.counters.roots };
        *decided = decided.saturating_sub(1);
        true
    }

    /// The place below the server exchange that the call is made for, as what the program itself keeps says. If that is over, or
    /// was not seen, there is none: the call belongs to no other. Whether it is being answered does not matter: this is certain.
    fn by_program(&mut self, origin: &Origin, request: ExchangeId) -> Option<Ids> {
        let span_id = self.span_id(origin);
        // The kernel does not tell pipelined requests of HTTP/1 apart that came together.
        if request.place == 0 && self.open.contains_key(&ExchangeId { place: 1, ..request }) {
            return None;
        }
        if origin.is_after_answer && self.may_go_on(origin, request) {
            self.counters.ambiguous += 1;
            return None;
        }
        let server = self.open.get_mut(&request)?;
        let parent = server.ids.as_ref()?;
        server.has_children = true;
        self.counters.by_program += 1;
        Some(Ids { span_id, parent_span_id: Some(parent.span_id), is_parent_remote: Some(false), ..parent.clone() })
    }

    /// Whether what makes the call may be another of the thread's requests than `request`, of which a call was answered just now: one
    /// that waits for no call of its own may have waited for the same answer.
    fn may_go_on(&self, origin: &Origin, request: ExchangeId) -> bool {
        let others = self.servers.get(&origin.tgid).into_iter().flatten().filter(|id| **id != request);
        let mut others = others.filter_map(|id| self.open.get(id)).filter(|open| open.tid == origin.tid);
        self.untracked_servers > 0 || others.any(|open| open.calls == 0 && open.answered_ns.is_none())
    }

    /// The place below the only server exchange that was read by the thread that makes the call and is open, where threads of the
    /// process do one thing after the other.
    fn by_thread(&mut self, origin: &Origin) -> Option<Ids> {
        (origin.within == Within::Thread).then_some(())?;
        let servers = self.servers.get(&origin.tgid)?.iter().filter_map(|id| Some((*id, self.open.get(id)?)));
        let mut servers = servers.filter(|(_, open)| open.tid == origin.tid);
        let ((server, open), other) = (servers.next()?, servers.next());
        if open.within != Within::Thread || other.is_some() {
            return None;
        }
        let ids = self.below(server, origin)?;
        self.counters.by_thread += 1;
        Some(ids)
    }

    /// The place below the only server exchange that the process has open.
    fn in_process(&mut self, origin: &Origin) -> Option<Ids> {
        let servers = self.servers.get(&origin.tgid)?;
        let [server] = servers.as_slice() else {
            if !servers.is_empty() {
                self.counters.ambiguous += 1;
                self.crowded.push(origin.tgid);
            }
            return None;
        };
        let ids = self.below(*server, origin)?;
        self.counters.in_process += 1;
        Some(ids)
    }

    /// The place below a server exchange of which nothing says but that it is the only one. Of one that was read in a context,
    /// contexts say what is done for it, and what another one does is not.
    ///
    /// What a response needs is asked for before its first byte, as a rule. A stream can stay open for hours, and what
    /// its process does meanwhile has mostly nothing to do with it: such calls get no link rather than a wrong one.
    fn below(&mut self, server: ExchangeId, origin: &Origin) -> Option<Ids> {
        let span_id = self.span_id(origin);
        let server = self.open.get_mut(&server)?;
        let parent = server.ids.as_ref()?;
        let is_answered = server.answered_ns.is_some_and(|first_ns| first_ns <= origin.begin_ns);
        let is_for_another = server.within == Within::Context && origin.within == Within::Context;
        if self.untracked_servers > 0 || server.begin_ns > origin.begin_ns || is_answered || is_for_another {
            return None;
        }
        server.has_children = true;
        Some(Ids { span_id, parent_span_id: Some(parent.span_id), is_parent_remote: Some(false), ..parent.clone() })
    }

    fn by_header(&mut self, origin: &Origin, head: &RequestHead, header: Option<TraceParent>) -> Option<Ids> {
        let header = header?;
        self.counters.by_header += 1;
        Some(Ids {
            trace_id: header.trace_id,
            span_id: self.span_id(origin),
            parent_span_id: Some(header.parent_id),
            trace_state: head.tracestate().into(),
            flags: header.flags,
            // Whether a client's header comes from its own process or was passed on is not known.
            is_parent_remote: (origin.role == Role::Server).then_some(true),
            is_continued: true,
        })
    }

    fn root(&mut self, origin: &Origin) -> Ids {
        self.counters.roots += 1;
        Ids {
            trace_id: self.random.trace_id(),
            span_id: self.span_id(origin),
            parent_span_id: None,
            trace_state: "".into(),
            flags: SAMPLED,
            is_parent_remote: None,
            is_continued: false,
        }
    }

    fn span_id(&mut self, origin: &Origin) -> [u8; 8] {
        match origin.key {
            Some(key) if origin.role == Role::Client => caller_id(key).unwrap_or_else(|| self.random.span_id()),
            _ => self.random.span_id(),
        }
    }

    /// Forgets an exchange.
    fn close(&mut self, origin: &Origin, is_answered: bool) -> Option<Open> {
        let open = self.open.remove(&origin.id);
        if let Some(server) = open.as_ref().and_then(|open| self.open.get_mut(&open.served?)) {
            server.calls = server.calls.saturating_sub(1);
        }
        match origin.role {
            Role::Server => self.close_server(origin, open.is_some()),
            Role::Client => self.close_client(origin, is_answered),
        }
        open
    }

    fn close_server(&mut self, origin: &Origin, was_tracked: bool) {
        if !was_tracked {
            self.untracked_servers = self.untracked_servers.saturating_sub(1);
        } else if let Some(servers) = self.servers.get_mut(&origin.tgid) {
            servers.retain(|id| *id != origin.id);
        }
        if let Some(key) = origin.key
            && let Entry::Occupied(unpaired) = self.unpaired.entry(key)
            && *unpaired.get() == origin.id
        {
            unpaired.remove();
        }
    }

    fn close_client(&mut self, origin: &Origin, is_answered: bool) {
        let Some(key) = origin.key else { return };
        let Some(client) = self.clients.get(&key) else { return };
        // Who has an answer was read by its server, and that was told of before.
        if is_answered || client.is_claimed {
            self.clients.remove(&key);
            return;
        }
        self.unanswered.push_back((client.begin_ns, key));
        if self.unanswered.len() > self.config.max_open / 2
            && let Some((_, oldest)) = self.unanswered.pop_front()
        {
            self.counters.unanswered_forgotten += 1;
            self.clients.remove(&oldest);
        }
    }
}

fn traceparent(head: &RequestHead) -> Option<TraceParent> {
    TraceParent::parse(head.traceparent()?)
}

/// False if the client is certainly on this node: then it is not seen because it is not observed.
fn may_be_remote(origin: &Origin) -> bool {
    let peer = origin.remote.ip();
    !peer.is_loopback() && peer != origin.local.ip()
}
