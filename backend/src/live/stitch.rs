//! What the agents of several nodes saw of one request becomes one trace.
//!
//! An agent that sees only the server's end of a request sends it, and all below it, in a *provisional* trace: its id names
//! the client span, which another agent sends in a trace of its own. As soon as both are here the spans of the provisional
//! trace become spans of the other one. What leaves memory before its caller came was called from outside: its top span
//! becomes a root. ADR 0020 says why it works in every order, and after a crash.

#[cfg(test)]
mod tests;

use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use coati_common::stitch::{caller_of, provisional_trace_id};

use super::callers::{Callers, Home, SpanId};
use super::entry::{Life, Part};
use super::set::LiveSet;
use super::trace::{Trace, TraceId};
use crate::otlp::{MessageWriter, SpanRef, Top};

/// Client spans of agents, each with its trace: what other agents saw below them belongs there.
#[derive(Debug)]
pub struct Calls(Vec<(SpanId, TraceId)>);

impl Calls {
    /// Those of a request. Reads its spans, best while they are in the processor's caches.
    pub fn of(traces: &[Trace]) -> Self {
        let mut calls = Vec::new();
        for trace in traces {
            let of_agent = trace.spans.iter().filter(|span| span.batch.of_agent());
            calls.extend(of_agent.filter_map(|span| Some((SpanRef::client_id(&span.bytes)?, trace.id))));
        }
        Self(calls)
    }

    /// Whether spans may hang together with others by their ids.
    pub(super) fn may_link(&self, traces: &[Trace]) -> bool {
        !self.0.is_empty() || traces.iter().any(|trace| caller_of(trace.id.0).is_some())
    }
}

impl LiveSet {
    /// Tells of a client span in a block: what is below it belongs there.
    pub fn know_caller(&self, tenant: &str, span: [u8; 8], trace: TraceId, now_ns: u64) {
        let mut callers = self.callers();
        callers.tick(now_ns);
        callers.of(tenant).came(span, trace);
    }

    /// Tells of a trace in a block: if it is provisional it was called from outside, for good.
    pub fn know_stored(&self, tenant: &str, trace: TraceId, now_ns: u64) {
        if let Some(caller) = caller_of(trace.0) {
            let mut callers = self.callers();
            callers.tick(now_ns);
            callers.of(tenant).left(caller);
        }
    }

    /// The trace in which the spans of a trace are, as far as is known; mostly itself.
    pub fn home(&self, tenant: &str, id: &TraceId) -> TraceId {
        if caller_of(id.0).is_none() { *id } else { self.callers().of(tenant).home(*id).id }
    }

    /// [`Self::insert`] of such spans.
    pub(super) fn insert_linked(
        &self,
        tenant: &str,
        (traces, calls): (Vec<Trace>, Calls),
        received_ns: u64,
        sequence: u64,
    ) {
        // What has to move, now or when it is here.
        let mut moves = self.note(tenant, &traces, calls, received_ns);
        let parts = traces.into_iter().map(|spans| {
            let Home { id, is_outside } = match caller_of(spans.id.0) {
                Some(_) => self.callers().of(tenant).home(spans.id),
                None => Home { id: spans.id, is_outside: false },
            };
            let mut spans = if id == spans.id { spans } else { spans.moved_to(id) };
            if is_outside {
                spans = spans.settled().unwrap_or(spans);
            } else if caller_of(id.0).is_some() {
                // Its caller may come in between.
                moves.push(id);
            }
            Part::new(spans, received_ns, sequence)
        });
        self.append(tenant, parts);
        for id in moves {
            self.unite(tenant, &id);
        }
    }

    /// Notes who calls and who is called. Returns the traces whose caller has come.
    fn note(&self, tenant: &str, traces: &[Trace], calls: Calls, received_ns: u64) -> Vec<TraceId> {
        let mut callers = self.callers();
        callers.tick(received_ns);
        let mut notes = callers.of(tenant);
        traces.iter().filter_map(|trace| caller_of(trace.id.0)).for_each(|caller| notes.called(caller));
        let came = |(span, trace): (SpanId, TraceId)| notes.came(span, trace).then(|| below(span));
        calls.0.into_iter().filter_map(came).collect()
    }

    /// Moves the spans of a trace to where they belong, if that is elsewhere.
    fn unite(&self, tenant: &str, id: &TraceId) {
        if self.home(tenant, id) == *id {
            return;
        }
        let _alone = self.moving.write().unwrap_or_else(PoisonError::into_inner);
        let home = self.home(tenant, id);
        if let Some(part) = self.take(tenant, id) {
            self.append(tenant, [part.moved(|trace| trace.moved_to(home))]);
        }
    }

    /// Moves what is to leave memory and was forgotten to be moved, because its note was.
    pub(super) fn unite_what(&self, leaves: &mut impl FnMut(&Life) -> bool) {
        let mut late = Vec::new();
        let still = self.still();
        for shard in self.shards() {
            for (tenant, traces) in &shard.tenants {
                let provisional = traces.iter().filter(|(id, _)| caller_of(id.0).is_some());
                let leaving =
                    provisional.filter(|(_, entry)| entry.live.as_ref().is_some_and(|part| leaves(&part.life)));
                late.extend(leaving.map(|(id, _)| (Arc::clone(tenant), *id)));
            }
        }
        drop(still);
        for (tenant, id) in &late {
            self.unite(tenant, id);
        }
    }

    /// Whether a trace leaves memory as it is. From then on a provisional one is called from outside.
    pub(super) fn leaves_alone(&self, tenant: &str, id: &TraceId) -> bool {
        caller_of(id.0).is_none_or(|caller| self.callers().of(tenant).leave(caller))
    }

    fn callers(&self) -> MutexGuard<'_, Callers> {
        self.callers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The provisional trace below a client span.
const fn below(span: SpanId) -> TraceId {
    TraceId(provisional_trace_id(span))
}

impl Trace {
    /// A provisional trace that has no caller as one like any other, but for its id; none if it is not provisional.
    pub(super) fn settled(&self) -> Option<Self> {
        let caller = caller_of(self.id.0)?;
        Some(self.rewritten(self.id, Top::Leaves(&caller)))
    }

    /// The same spans in another trace.
    fn moved_to(&self, id: TraceId) -> Self {
        self.rewritten(id, Top::Stays)
    }

    /// The spans of a trace that was stored as called from outside, in the trace of its caller, which came after that.
    pub(crate) fn returned_to(&self, id: TraceId) -> Self {
        let caller = caller_of(self.id.0);
        self.rewritten(id, caller.as_ref().map_or(Top::Stays, Top::Returns))
    }

    /// The same spans as those of trace `id`. Only agents know who calls them, so only theirs return to a caller.
    fn rewritten(&self, id: TraceId, top: Top<'_>) -> Self {
        let before: usize = self.spans.iter().map(|span| span.bytes.len()).sum();
        let mut writer = MessageWriter::with_capacity(before);
        let ends = self.spans.iter().map(|span| {
            let is_foreign = matches!(top, Top::Returns(_)) && !span.batch.of_agent();
            span.view().rewrite(&id.0, if is_foreign { Top::Stays } else { top }, &mut writer);
            writer.len()
        });
        let ends: Vec<_> = ends.collect();
        let after = writer.len();
        // One allocation for all, as when they came.
        let mut rest = Bytes::from(writer.into_bytes());
        let mut trace = Self::empty(id);
        trace.spans.reserve_exact(self.spans.len());
        let mut start = 0;
        for (span, end) in self.spans.iter().zip(ends) {
            let bytes = rest.split_to(end - start);
            start = end;
            trace.push(&span.batch, bytes.clone(), &SpanRef::parse(&bytes));
        }
        trace.bytes = (self.bytes + after).saturating_sub(before);
        trace
    }
}
