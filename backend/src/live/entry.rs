//! What a shard of the live set holds of one trace.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::trace::{Trace, TraceId};

/// Facts by which it is decided whether a trace leaves memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Life {
    /// When its first span was received, nanoseconds since the epoch.
    pub first_received_ns: u64,
    /// When its last span was received, nanoseconds since the epoch.
    pub last_received_ns: u64,
    /// Number of the first request in the log that brought a span of it.
    pub first_sequence: u64,
    /// Estimate of its memory.
    pub bytes: usize,
}

/// Spans of a trace that came between two cuts, or in one request: those are not shared yet.
#[derive(Clone, Debug)]
pub(super) struct Part<T = Arc<Trace>> {
    pub(super) trace: T,
    /// Here, and not looked up in the trace, so that all of them can be read without waiting for memory at each one.
    pub(super) life: Life,
}

/// A trace. Late spans of one that is being cut make a new live part.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) live: Option<Part>,
    pub(super) cutting: Option<Part>,
}

/// The traces of a shard, by tenant. No tenant is there without traces, no entry without a part.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) tenants: HashMap<Arc<str>, HashMap<TraceId, Entry, RandomState>, RandomState>,
}

impl Part<Trace> {
    pub(super) fn new(trace: Trace, received_ns: u64, sequence: u64) -> Self {
        let life = Life {
            first_received_ns: received_ns,
            last_received_ns: received_ns,
            first_sequence: sequence,
            bytes: trace.bytes,
        };
        Self { trace, life }
    }

    fn shared(self) -> Part {
        let Self { trace, life } = self;
        Part { trace: Arc::new(trace), life }
    }
}

impl Part {
    fn own(self) -> Part<Trace> {
        let Self { trace, life } = self;
        Part { trace: Arc::unwrap_or_clone(trace), life }
    }

    /// The same spans in another trace.
    pub(super) fn moved(self, to: impl FnOnce(&Trace) -> Trace) -> Part<Trace> {
        let trace = to(&self.trace);
        let life = Life { bytes: trace.bytes, ..self.life };
        Part { trace, life }
    }

    /// Adds what came later.
    pub(super) fn extend(&mut self, later: Part<Trace>) {
        let Part { trace, life } = later;
        Arc::make_mut(&mut self.trace).extend(trace);
        self.life.first_received_ns = self.life.first_received_ns.min(life.first_received_ns);
        self.life.last_received_ns = self.life.last_received_ns.max(life.last_received_ns);
        self.life.first_sequence = self.life.first_sequence.min(life.first_sequence);
        self.life.bytes += life.bytes;
    }
}

impl Entry {
    /// All of it that is in memory.
    pub(super) fn trace(&self) -> Option<Arc<Trace>> {
        match (&self.cutting, &self.live) {
            (Some(cutting), Some(live)) => {
                let mut whole = Trace::clone(&cutting.trace);
                whole.extend(Trace::clone(&live.trace));
                Some(Arc::new(whole))
            }
            (Some(part), None) | (None, Some(part)) => Some(Arc::clone(&part.trace)),
            (None, None) => None,
        }
    }

    /// Estimate of its memory.
    pub(super) fn bytes(&self) -> usize {
        self.cutting.iter().chain(&self.live).map(|part| part.life.bytes).sum()
    }
}

impl State {
    /// Returns how many bytes the trace had, none if it is new, and has now.
    pub(super) fn append(&mut self, tenant: &str, part: Part<Trace>) -> (usize, usize) {
        let id = part.trace.id;
        let traces = match self.tenants.get_mut(tenant) {
            Some(traces) => traces,
            None => self.tenants.entry(tenant.into()).or_default(),
        };
        let entry = traces.entry(id).or_default();
        let before = entry.bytes();
        match &mut entry.live {
            Some(live) => live.extend(part),
            None => entry.live = Some(part.shared()),
        }
        (before, entry.bytes())
    }

    pub(super) fn entry(&self, tenant: &str, id: &TraceId) -> Option<&Entry> {
        self.tenants.get(tenant)?.get(id)
    }

    /// Ends the cut of a trace: the part that was being cut, and whether nothing else of the trace is here.
    pub(super) fn take_cutting(&mut self, tenant: &str, id: &TraceId) -> Option<(Part, bool)> {
        self.take(tenant, id, |entry| entry.cutting.take())
    }

    /// The same of the part that is not being cut.
    pub(super) fn take_live(&mut self, tenant: &str, id: &TraceId) -> Option<(Part, bool)> {
        self.take(tenant, id, |entry| entry.live.take())
    }

    fn take(
        &mut self,
        tenant: &str,
        id: &TraceId,
        part: impl FnOnce(&mut Entry) -> Option<Part>,
    ) -> Option<(Part, bool)> {
        let traces = self.tenants.get_mut(tenant)?;
        let entry = traces.get_mut(id)?;
        let part = part(entry)?;
        let gone = entry.live.is_none() && entry.cutting.is_none();
        if gone {
            traces.remove(id);
            if traces.is_empty() {
                self.tenants.remove(tenant);
            }
        }
        Some((part, gone))
    }

    /// Gives a trace up as being cut: all of it is live again.
    pub(super) fn restore(&mut self, tenant: &str, id: &TraceId) {
        let Some(entry) = self.tenants.get_mut(tenant).and_then(|traces| traces.get_mut(id)) else { return };
        if let Some(mut part) = entry.cutting.take() {
            if let Some(later) = entry.live.take() {
                part.extend(later.own());
            }
            entry.live = Some(part);
        }
    }
}
