//! From a request, sorted by sender, to the spans of each trace.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use foldhash::fast::RandomState;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::{DecodeError, Message};

use super::trace::{Batch, Trace, TraceId};
use crate::otlp::{Checked, Odd, ResourceSpansRef, ScopeSpansRef, SpanRef, check};

/// What a request brings of each trace, in the order in which the traces appear.
///
/// Spans whose trace id is not 16 bytes long belong to no trace and are left out: `receive` has refused them before.
pub fn group(request: Checked<'_>) -> Vec<Trace> {
    let mut groups = Groups::default();
    for ResourceSpansRef { resource, schema_url, scope_spans } in request.resource_spans {
        let resource = Arc::new(resource);
        let resource_schema_url: Arc<str> = schema_url.as_str().into();
        for (index, ScopeSpansRef { scope, schema_url, spans }) in scope_spans.into_iter().enumerate() {
            let batch = Arc::new(Batch {
                resource: Arc::clone(&resource),
                resource_schema_url: Arc::clone(&resource_schema_url),
                scope: Arc::new(scope),
                scope_schema_url: schema_url.as_str().into(),
            });
            let memory = batch.memory(index == 0);
            groups.add(&batch, memory, &spans);
        }
    }
    groups.traces
}

/// The same of a message.
pub fn group_message(request: &ExportTraceServiceRequest) -> Vec<Trace> {
    // What prost encodes can be read in place, but for values that are nested deeper than it decodes itself.
    check(&request.encode_to_vec()).map(group).unwrap_or_default()
}

/// The same of an encoded request, however it is written.
pub fn group_encoded(request: &[u8]) -> Result<Vec<Trace>, GroupError> {
    if let Ok(checked) = check(request) {
        return Ok(group(checked));
    }
    let encoded = ExportTraceServiceRequest::decode(request).map_err(GroupError::Decode)?.encode_to_vec();
    check(&encoded).map(group).map_err(|Odd| GroupError::TooDeep)
}

/// Why a request has no traces.
#[derive(Debug, thiserror::Error)]
pub enum GroupError {
    /// It is none.
    #[error("not a request")]
    Decode(#[source] DecodeError),
    /// A value in it is nested in more others than are read.
    #[error("request holds values that are nested too deep")]
    TooDeep,
}

#[derive(Default)]
struct Groups {
    traces: Vec<Trace>,
    by_id: HashMap<TraceId, usize, RandomState>,
    /// For the spans of one batch: trace by trace, how long they are together, and who they are. Kept for their memory.
    members: Vec<(usize, u32)>,
}

impl Groups {
    fn add(&mut self, batch: &Arc<Batch>, memory: usize, spans: &[SpanRef<'_>]) {
        self.members.clear();
        for (number, span) in (0..).zip(spans) {
            let Ok(id) = TraceId::try_from(span.trace_id) else { continue };
            let traces = &mut self.traces;
            let place = *self.by_id.entry(id).or_insert_with(|| {
                traces.push(Trace::empty(id));
                traces.len() - 1
            });
            self.members.push((place, number));
        }
        let Some(memory) = memory.checked_div(self.members.len()) else { return };
        // By trace; within one, as they were sent.
        self.members.sort_unstable();
        for members in self.members.chunk_by(|a, b| a.0 == b.0) {
            let of = |number: &u32| spans.get(*number as usize);
            let Some(trace) = members.first().and_then(|(place, _)| self.traces.get_mut(*place)) else { continue };
            // One allocation of its own for what a trace gets, so that no trace keeps the spans of others in memory.
            let length = members.iter().filter_map(|(_, number)| of(number)).map(|span| span.as_bytes().len()).sum();
            let mut joined = Vec::with_capacity(length);
            members.iter().filter_map(|(_, number)| of(number)).for_each(|span| joined.extend(span.as_bytes()));
            let mut rest = Bytes::from(joined);
            trace.spans.reserve_exact(members.len());
            for span in members.iter().filter_map(|(_, number)| of(number)) {
                let bytes = rest.split_to(span.as_bytes().len());
                trace.push(batch, bytes, span);
            }
            trace.bytes += memory * members.len() + ALLOCATIONS;
        }
    }
}

/// What the allocator takes for what a trace gets at once.
const ALLOCATIONS: usize = 64;
