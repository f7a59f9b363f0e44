//! Who calls a provisional trace: by the ids of client spans.
//!
//! A client span and the trace below it, which has an id that names the span ([`coati_common::stitch`]), come in any order.
//! What comes first leaves a note here for the other. So the traces that hang together are known at any time, and in which
//! of them their spans belong: the one at the top.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use coati_common::stitch::caller_of;
use foldhash::quality::RandomState;

use super::trace::TraceId;
use crate::telemetry::LiveMetrics;

/// How long a client span is known at least, after it came or was of use: longer than a trace is in memory. Twice as long
/// at most.
pub const CALLERS_KNOWN_FOR: Duration = Duration::from_mins(1);

const LIFE_NS: u64 = CALLERS_KNOWN_FOR.as_nanos() as u64;

/// If there are more notes than this within that time the older ones go earlier: about 13 MB, twice.
const MAX_NOTES: usize = 7 << 16;

/// Traces one below the other that are followed at most.
const MAX_DEPTH: usize = 256;

pub(super) type SpanId = [u8; 8];

/// What is known of a client span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Note {
    /// It came in this trace, and whether there is something below it.
    In(TraceId, Below),
    /// It did not come yet, but what is below it did.
    Awaited,
    /// What is below it was stored, before it came, as called from outside.
    Outside,
}

/// Whether the trace below a client span has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Below {
    Nothing,
    Something,
}

/// In which trace the spans of another one belong.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Home {
    pub(super) id: TraceId,
    /// Whether the trace is provisional and has nobody above it, for good.
    pub(super) is_outside: bool,
}

type Map = HashMap<SpanId, Note, RandomState>;

/// Notes of a tenant, in two generations.
#[derive(Debug, Default)]
struct Generations {
    young: Map,
    old: Map,
}

/// Notes of all tenants.
#[derive(Debug)]
pub(super) struct Callers {
    tenants: HashMap<Arc<str>, Generations, RandomState>,
    /// Young notes of all tenants.
    young: usize,
    /// When the young generation began, nanoseconds since the epoch.
    began_ns: u64,
    metrics: LiveMetrics,
}

/// Notes of one tenant.
pub(super) struct Notes<'a> {
    kept: &'a mut Generations,
    young: &'a mut usize,
    metrics: &'a LiveMetrics,
}

impl Callers {
    pub(super) fn new(metrics: LiveMetrics) -> Self {
        Self { tenants: HashMap::default(), young: 0, began_ns: 0, metrics }
    }

    /// Tells the time.
    pub(super) fn tick(&mut self, now_ns: u64) {
        let since_ns = now_ns.saturating_sub(self.began_ns);
        if since_ns < LIFE_NS && self.young < MAX_NOTES {
            return;
        }
        self.tenants.retain(|_, Generations { young, old }| {
            *old = std::mem::take(young);
            // After a long silence nothing is young.
            if since_ns >= 2 * LIFE_NS {
                old.clear();
            }
            !old.is_empty()
        });
        (self.young, self.began_ns) = (0, now_ns);
    }

    pub(super) fn of(&mut self, tenant: &str) -> Notes<'_> {
        let Self { tenants, young, metrics, .. } = self;
        if !tenants.contains_key(tenant) {
            tenants.insert(tenant.into(), Generations::default());
        }
        // It is there.
        let kept = tenants.entry(tenant.into()).or_default();
        Notes { kept, young, metrics }
    }
}

impl Generations {
    /// The note on a client span, which is young from now on, or where to write one. `young` is how many are.
    fn entry(&mut self, span: SpanId, young: &mut usize) -> Entry<'_, SpanId, Note> {
        let vacant = match self.young.entry(span) {
            Entry::Vacant(vacant) => vacant,
            known @ Entry::Occupied(_) => return known,
        };
        let Some(note) = self.old.remove(&span) else { return Entry::Vacant(vacant) };
        *young += 1;
        Entry::Occupied(vacant.insert_entry(note))
    }
}

impl Notes<'_> {
    /// A client span has come in a trace. Returns whether the trace below it has to move.
    pub(super) fn came(&mut self, span: SpanId, trace: TraceId) -> bool {
        // The top of a trace is not below itself, whatever somebody sends.
        if caller_of(trace.0).is_some() && caller_of(self.home(trace).id.0) == Some(span) {
            return false;
        }
        match self.kept.entry(span, self.young) {
            Entry::Vacant(vacant) => {
                vacant.insert(Note::In(trace, Below::Nothing));
                *self.young += 1;
            }
            Entry::Occupied(mut note) => match note.get() {
                Note::Awaited => {
                    note.insert(Note::In(trace, Below::Something));
                    self.metrics.stitch_united.inc();
                    return true;
                }
                Note::Outside => _ = self.metrics.stitch_late.inc(),
                // It was sent twice, or an id was used twice.
                Note::In(..) => {}
            },
        }
        false
    }

    /// What is below a client span has come.
    pub(super) fn called(&mut self, span: SpanId) {
        match self.kept.entry(span, self.young) {
            Entry::Vacant(vacant) => {
                vacant.insert(Note::Awaited);
                *self.young += 1;
            }
            Entry::Occupied(mut note) => {
                if let Note::In(trace, Below::Nothing) = *note.get() {
                    note.insert(Note::In(trace, Below::Something));
                    self.metrics.stitch_united.inc();
                }
            }
        }
    }

    /// What is below a client span is stored as called from outside. False if its caller is known by now.
    pub(super) fn leave(&mut self, span: SpanId) -> bool {
        match self.kept.entry(span, self.young) {
            Entry::Vacant(vacant) => {
                vacant.insert(Note::Outside);
                *self.young += 1;
                self.metrics.stitch_outside.inc();
            }
            Entry::Occupied(mut note) => match note.get() {
                Note::In(..) => return false,
                Note::Outside => {}
                Note::Awaited => {
                    note.insert(Note::Outside);
                    self.metrics.stitch_outside.inc();
                }
            },
        }
        true
    }

    /// What is below a client span was stored so before.
    pub(super) fn left(&mut self, span: SpanId) {
        *self.young += usize::from(self.kept.young.insert(span, Note::Outside).is_none());
    }

    /// The trace in which the spans of a trace belong: itself, or the one above all that it is below of.
    pub(super) fn home(&mut self, trace: TraceId) -> Home {
        let mut id = trace;
        for _ in 0..MAX_DEPTH {
            let Some(span) = caller_of(id.0) else { break };
            let Entry::Occupied(note) = self.kept.entry(span, self.young) else { break };
            match note.get() {
                Note::In(above, _) => id = *above,
                Note::Outside => return Home { id, is_outside: true },
                Note::Awaited => break,
            }
        }
        Home { id, is_outside: false }
    }
}
