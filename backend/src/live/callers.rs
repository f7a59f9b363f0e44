//! Who calls a provisional trace: by the ids of client spans.
//!
//! A client span and the trace below it, which has an id that names the span ([`coati_common::stitch`]), come in any order.
//! What comes first leaves a note here for the other. So the traces that hang together are known at any time, and in which
//! of them their spans belong: the one at the top.

use std::collections::HashMap;
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

impl Notes<'_> {
    /// A client span has come in a trace. Returns whether the trace below it has to move.
    pub(super) fn came(&mut self, span: SpanId, trace: TraceId) -> bool {
        // The top of a trace is not below itself, whatever somebody sends.
        if caller_of(trace.0).is_some() && caller_of(self.home(trace).id.0) == Some(span) {
            return false;
        }
        match self.note(span) {
            None => self.write(span, Note::In(trace, Below::Nothing)),
            Some(Note::Awaited) => {
                self.metrics.stitch_united.inc();
                self.write(span, Note::In(trace, Below::Something));
                return true;
            }
            Some(Note::Outside) => _ = self.metrics.stitch_late.inc(),
            // It was sent twice, or an id was used twice.
            Some(Note::In(..)) => {}
        }
        false
    }

    /// What is below a client span has come.
    pub(super) fn called(&mut self, span: SpanId) {
        match self.note(span) {
            None => self.write(span, Note::Awaited),
            Some(Note::In(trace, Below::Nothing)) => {
                self.metrics.stitch_united.inc();
                self.write(span, Note::In(trace, Below::Something));
            }
            Some(Note::In(_, Below::Something) | Note::Awaited | Note::Outside) => {}
        }
    }

    /// What is below a client span is stored as called from outside. False if its caller is known by now.
    pub(super) fn leave(&mut self, span: SpanId) -> bool {
        match self.note(span) {
            Some(Note::In(..)) => return false,
            Some(Note::Outside) => {}
            Some(Note::Awaited) | None => {
                self.metrics.stitch_outside.inc();
                self.write(span, Note::Outside);
            }
        }
        true
    }

    /// What is below a client span was stored so before.
    pub(super) fn left(&mut self, span: SpanId) {
        self.write(span, Note::Outside);
    }

    /// The trace in which the spans of a trace belong: itself, or the one above all that it is below of.
    pub(super) fn home(&mut self, trace: TraceId) -> Home {
        let mut id = trace;
        for _ in 0..MAX_DEPTH {
            let Some(span) = caller_of(id.0) else { break };
            match self.note(span) {
                Some(Note::In(above, _)) => id = above,
                Some(Note::Outside) => return Home { id, is_outside: true },
                Some(Note::Awaited) | None => break,
            }
        }
        Home { id, is_outside: false }
    }

    fn note(&mut self, span: SpanId) -> Option<Note> {
        let Generations { young, old } = self.kept;
        if let Some(note) = young.get(&span) {
            return Some(*note);
        }
        let note = old.remove(&span)?;
        self.write(span, note);
        Some(note)
    }

    fn write(&mut self, span: SpanId, note: Note) {
        *self.young += usize::from(self.kept.young.insert(span, note).is_none());
    }
}
