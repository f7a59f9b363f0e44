//! The table of connections: finds the one that a record is about, and bounds what is kept.

use std::{
    collections::{VecDeque, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use coati_common::event::{self, Begin, Data, End};
use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};

use super::{DecodeCounters, Event, connection::Connection, open::Out};
use crate::capture::Record;

/// How often the whole table is looked through.
const SWEEP_NS: u64 = 1_000_000_000;
/// Records that may wait for their `Begin` at once.
const HELD_LIMIT: usize = 1024;
/// Share of the table that is given up when it is full: one in so many.
const EVICTED_SHARE: usize = 16;

/// Limits of a [`Decoder`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DecodeConfig {
    /// Connections that are followed at once; with one more the quietest are given up.
    pub max_connections: usize,
    /// How long records wait for the `Begin` that they belong to.
    pub hold: Duration,
    /// Silence after which the kernel is asked how an open exchange is doing.
    pub audit_after: Duration,
    /// How long an exchange is open before it is shown, and then ever more rarely; `None` for never.
    pub show_after: Option<Duration>,
    /// Whether the headers of responses, and those of HTTP/2 that have no place of their own, are kept.
    pub keeps_headers: bool,
}

impl Default for DecodeConfig {
    fn default() -> Self {
        Self {
            max_connections: 65_536,
            hold: Duration::from_secs(1),
            audit_after: Duration::from_secs(10),
            show_after: Some(Duration::from_secs(10)),
            keeps_headers: false,
        }
    }
}

/// An exchange of which the kernel may know more than its records told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LongRunning {
    /// Identity of the connection.
    pub connection: u64,
    /// Key of the `CONNECTIONS` map.
    pub socket: u64,
    /// The kernel's number of the exchange.
    pub exchange: u32,
    /// Bytes of the response that are still to come, where its head tells.
    pub left: Option<u64>,
}

/// A record that came before its `Begin`.
#[derive(Debug)]
struct Held {
    connection: u64,
    exchange: u32,
    since_ns: u64,
    record: Record,
}

/// Keys that were noted since the last look at the table, or between the one before and that.
#[derive(Debug, Default)]
struct Recent<K> {
    now: HashSet<K>,
    before: HashSet<K>,
}

impl<K: Copy + Eq + std::hash::Hash> Recent<K> {
    fn insert(&mut self, key: K) {
        self.now.insert(key);
    }

    fn contains(&self, key: K) -> bool {
        self.now.contains(&key) || self.before.contains(&key)
    }

    /// The table is looked at; gives what is not recent any more.
    fn turn(&mut self) -> HashSet<K> {
        std::mem::replace(&mut self.before, std::mem::take(&mut self.now))
    }
}

/// The name of a Unix socket as it is shown: abstract ones begin with `@` instead of a zero.
fn unix_path(bytes: &[u8]) -> Option<Arc<str>> {
    let text = match bytes {
        [0, name @ ..] => format!("@{}", String::from_utf8_lossy(name)),
        // The kernel counts the zero at the end if the server did.
        path => String::from_utf8_lossy(path.strip_suffix(&[0]).unwrap_or(path)).into_owned(),
    };
    (!text.is_empty()).then(|| text.into())
}

/// Makes exchanges out of records. Times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug)]
pub struct Decoder {
    config: DecodeConfig,
    connections: HashMap<u64, Connection>,
    held: VecDeque<Held>,
    /// Connections with an exchange that the kernel must be asked about.
    polled: HashSet<u64>,
    /// Connections that are over: what still comes of them is late. (A [`Connection`] is too large to be kept for that where each
    /// request has one of its own.)
    over: Recent<u64>,
    counters: DecodeCounters,
    /// Processes that have ended.
    exited: Recent<u32>,
    /// Responses that have run for ten seconds, at the last look.
    long_streams: usize,
    /// The latest time that was heard of.
    now_ns: u64,
    swept_ns: u64,
}

impl Decoder {
    /// An empty table.
    pub fn new(config: DecodeConfig) -> Self {
        Self {
            config,
            connections: HashMap::new(),
            held: VecDeque::new(),
            polled: HashSet::new(),
            over: Recent::default(),
            counters: DecodeCounters::default(),
            exited: Recent::default(),
            long_streams: 0,
            now_ns: 0,
            swept_ns: 0,
        }
    }

    /// Whether headers are kept, from now on.
    pub const fn set_keeps_headers(&mut self, keeps: bool) {
        self.config.keeps_headers = keeps;
    }

    /// How long an exchange is open before it is shown, from now on.
    pub const fn set_show_after(&mut self, after: Option<Duration>) {
        self.config.show_after = after;
    }

    /// Takes a record. Records come in the order of their times; a small disorder does no harm.
    pub fn record(&mut self, record: Record, emit: &mut dyn FnMut(Event<'_>)) {
        self.now_ns = self.now_ns.max(record.header().time_ns);
        match record {
            Record::Begin(begin, payload) => self.begin(&begin, &payload, emit),
            Record::Data(data, payload) => self.data(data, payload, emit),
            Record::Tail(tail, payload) => {
                if let Some(connection) = self.connections.get_mut(&tail.connection) {
                    connection.tail(tail.exchange, &payload);
                }
            }
            Record::End(end) => self.end(end, emit),
            Record::Unix(_, id, _) if self.over.contains(id) => {}
            Record::Unix(_, id, path) => {
                self.make_room(emit);
                self.connections.entry(id).or_default().unix_path = unix_path(&path);
            }
            Record::Exit(process) => {
                self.exited.insert(process.tgid);
            }
            // Of processes, not of connections.
            Record::Exec(..) | Record::Tls(_) => {}
        }
    }

    /// To be called a few times a second: gives up waiting where it is time.
    pub fn tick(&mut self, now_ns: u64, emit: &mut dyn FnMut(Event<'_>)) {
        self.now_ns = self.now_ns.max(now_ns);
        let hold_ns = self.config.hold.as_nanos() as u64;
        while let Some(held) = self.held.pop_front_if(|held| held.since_ns.saturating_add(hold_ns) <= now_ns) {
            self.expire(&held, emit);
        }
        if now_ns.saturating_sub(self.swept_ns) >= SWEEP_NS {
            self.swept_ns = now_ns;
            self.sweep(now_ns, emit);
        }
    }

    /// The exchanges to read totals for from the `CONNECTIONS` map, and to tell with [`Self::progress`].
    pub fn long_running(&self) -> impl Iterator<Item = LongRunning> {
        self.polled.iter().filter_map(|id| {
            let connection = self.connections.get(id)?;
            let (origin, left) = connection.oldest()?;
            Some(LongRunning { connection: *id, socket: origin.socket, exchange: connection.number, left })
        })
    }

    /// What the `CONNECTIONS` map has for the socket of `connection`, `None` if nothing.
    pub fn progress(
        &mut self,
        connection: u64,
        state: Option<&event::Connection>,
        now_ns: u64,
        emit: &mut dyn FnMut(Event<'_>),
    ) {
        // The address of a socket is used again.
        let state = state.filter(|state| state.connection == connection);
        if let Some(found) = self.connections.get_mut(&connection) {
            found.progress(
                state,
                now_ns,
                &mut Out { counters: &mut self.counters, emit, keeps_headers: self.config.keeps_headers },
            );
            if found.is_over() {
                self.forget(connection);
            } else if found.open_exchanges() == 0 {
                self.polled.remove(&connection);
            }
        }
    }

    /// Ends everything that is open, as far as it is known; for the agent's own end.
    pub fn finish(&mut self, emit: &mut dyn FnMut(Event<'_>)) {
        for connection in self.connections.values_mut() {
            connection.abandon(&mut Out {
                counters: &mut self.counters,
                emit,
                keeps_headers: self.config.keeps_headers,
            });
        }
        self.connections.clear();
        self.polled.clear();
    }

    /// What was decoded and lost so far.
    pub const fn counters(&self) -> &DecodeCounters {
        &self.counters
    }

    /// Exchanges that are open now.
    pub fn open_exchanges(&self) -> usize {
        (self.counters.exchanges - self.counters.ended - self.counters.dropped()) as usize
    }

    /// Responses that have run for ten seconds and are not over.
    pub const fn long_streams(&self) -> usize {
        self.long_streams
    }

    /// Connections that are followed now.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    fn begin(&mut self, begin: &Begin, payload: &[u8], emit: &mut dyn FnMut(Event<'_>)) {
        self.make_room(emit);
        let connection = match self.connections.entry(begin.connection) {
            Entry::Vacant(entry) if !self.over.contains(begin.connection) => entry.insert(Connection::default()),
            Entry::Occupied(entry) if begin.exchange > entry.get().number && !entry.get().is_closed => entry.into_mut(),
            _ => {
                self.counters.begin_late += 1;
                return;
            }
        };
        // Of what came before a connection's first known exchange only the records that wait for it tell.
        let is_new = connection.number == 0;
        if !is_new {
            self.counters.begin_missing += u64::from(begin.exchange - connection.number - 1);
        }
        connection.begin(
            begin,
            payload,
            &mut Out { counters: &mut self.counters, emit, keeps_headers: self.config.keeps_headers },
        );
        if !self.held.is_empty() {
            self.replay(begin.connection, begin.exchange, is_new, emit);
        }
    }

    fn data(&mut self, data: Data, payload: Vec<u8>, emit: &mut dyn FnMut(Event<'_>)) {
        let (id, exchange) = (data.connection, data.exchange);
        match self.connections.get_mut(&id) {
            Some(connection) if exchange < connection.number || connection.is_over() => self.counters.data_late += 1,
            Some(connection) if exchange == connection.number => {
                connection.data(
                    &data,
                    &payload,
                    &mut Out { counters: &mut self.counters, emit, keeps_headers: self.config.keeps_headers },
                );
                if connection.is_over() {
                    self.forget(id);
                } else if connection.is_only_counted() {
                    self.polled.insert(id);
                }
            }
            None if self.over.contains(id) => self.counters.data_late += 1,
            _ => self.hold(id, exchange, Record::Data(data, payload), emit),
        }
    }

    fn end(&mut self, end: End, emit: &mut dyn FnMut(Event<'_>)) {
        match self.connections.get_mut(&end.connection) {
            Some(connection) if connection.is_closed => self.counters.data_late += 1,
            Some(connection) if end.exchange <= connection.number => {
                connection.end(
                    &end,
                    &mut Out { counters: &mut self.counters, emit, keeps_headers: self.config.keeps_headers },
                );
                if connection.is_over() {
                    self.forget(end.connection);
                }
            }
            None if self.over.contains(end.connection) => self.counters.data_late += 1,
            _ => self.hold(end.connection, end.exchange, Record::End(end), emit),
        }
    }

    /// A connection is over.
    fn forget(&mut self, connection: u64) {
        self.connections.remove(&connection);
        self.polled.remove(&connection);
        self.over.insert(connection);
    }

    fn hold(&mut self, connection: u64, exchange: u32, record: Record, emit: &mut dyn FnMut(Event<'_>)) {
        if self.held.len() >= HELD_LIMIT
            && let Some(oldest) = self.held.pop_front()
        {
            self.expire(&oldest, emit);
        }
        self.held.push_back(Held { connection, exchange, since_ns: self.now_ns, record });
    }

    /// Takes the records that waited for this `Begin`. Those of earlier exchanges of the connection wait in vain.
    fn replay(&mut self, connection: u64, exchange: u32, is_new: bool, emit: &mut dyn FnMut(Event<'_>)) {
        let (mut due, held): (Vec<Held>, Vec<Held>) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|held| held.connection == connection && held.exchange <= exchange);
        self.held = held.into();
        due.sort_by_key(|held| held.record.header().time_ns);
        let mut missing = 0;
        for held in due {
            if held.exchange < exchange {
                self.counters.begin_missing += u64::from(is_new && held.exchange > missing);
                self.counters.data_late += 1;
                missing = missing.max(held.exchange);
                continue;
            }
            self.record(held.record, emit);
        }
    }

    /// A record's `Begin` will not come any more.
    fn expire(&mut self, held: &Held, emit: &mut dyn FnMut(Event<'_>)) {
        let mut out = Out { counters: &mut self.counters, emit, keeps_headers: self.config.keeps_headers };
        match self.connections.entry(held.connection) {
            Entry::Occupied(mut entry) => {
                let connection = entry.get_mut();
                if connection.number < held.exchange {
                    out.counters.begin_missing += u64::from(held.exchange - connection.number);
                    connection.abandon(&mut out);
                    let unix_path = connection.unix_path.take();
                    *connection = Connection::headless(held.exchange, self.now_ns);
                    connection.unix_path = unix_path;
                }
                connection.is_closed |= matches!(held.record, Record::End(_));
            }
            // The end of a connection that was given up, or that was silent while the agent was there.
            Entry::Vacant(_) if matches!(held.record, Record::End(_)) => {}
            Entry::Vacant(entry) => {
                out.counters.begin_missing += 1;
                entry.insert(Connection::headless(held.exchange, self.now_ns));
            }
        }
    }

    fn sweep(&mut self, now_ns: u64, emit: &mut dyn FnMut(Event<'_>)) {
        let audit_ns = self.config.audit_after.as_nanos() as u64;
        let mut out = Out { counters: &mut self.counters, emit, keeps_headers: self.config.keeps_headers };
        let (polled, long_streams) = (&mut self.polled, &mut self.long_streams);
        let show_after_ns = self.config.show_after.map(|after| after.as_nanos() as u64);
        *long_streams = 0;
        // Some hooks do not see what a process had open when it ended. Where others do, the `End` has come by now.
        let gone = self.exited.turn();
        self.over.turn();
        self.connections.retain(|id, connection| {
            if connection.unix_owner.is_some_and(|tgid| gone.contains(&tgid)) && !connection.is_closed {
                connection.abandon(&mut out);
                polled.remove(id);
                return false;
            }
            connection.settle_silent(now_ns, &mut out);
            *long_streams += connection.note_progress(now_ns);
            if let Some(after_ns) = show_after_ns {
                connection.show(after_ns, now_ns, &mut out);
            }
            if connection.open_exchanges() == 0 {
                polled.remove(id);
            } else if !connection.is_closed && now_ns.saturating_sub(connection.last_ns) >= audit_ns {
                polled.insert(*id);
            }
            !connection.is_over()
        });
    }

    /// Gives up the quietest connections if the table is full.
    fn make_room(&mut self, emit: &mut dyn FnMut(Event<'_>)) {
        if self.connections.len() < self.config.max_connections.max(1) {
            return;
        }
        // Closed ones are of no more use, so they go first.
        let age = |connection: &Connection| if connection.is_closed { 0 } else { connection.last_ns };
        let mut ages: Vec<u64> = self.connections.values().map(age).collect();
        let share = ages.len() / EVICTED_SHARE;
        let (_, limit, _) = ages.select_nth_unstable(share);
        let (limit, mut room) = (*limit, share + 1);
        let mut out = Out { counters: &mut self.counters, emit, keeps_headers: self.config.keeps_headers };
        self.connections.retain(|_, connection| {
            if room == 0 || age(connection) > limit {
                return true;
            }
            room -= 1;
            let evicted = connection.evict(&mut out);
            out.counters.evicted += evicted;
            false
        });
    }
}
