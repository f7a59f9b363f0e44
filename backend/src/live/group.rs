//! From a request, sorted by sender, to batches, sorted by trace.

use std::collections::HashMap;
use std::mem::size_of;
use std::sync::Arc;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};

use super::size;
use super::trace::{Batch, TraceId};

/// The part of a request that belongs to one trace, one resource and one scope.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceBatch {
    /// The trace.
    pub id: TraceId,
    /// Its spans.
    pub batch: Arc<Batch>,
    /// Estimate of the memory that the batch holds; what is shared with others is divided between them.
    pub bytes: usize,
}

/// Splits a request by trace, in the order in which the traces appear.
///
/// Spans whose trace id is not 16 bytes long belong to no trace and are left out: `receive` has refused them before.
pub fn group(request: ExportTraceServiceRequest) -> Vec<TraceBatch> {
    let mut groups = Vec::new();
    for ResourceSpans { resource, scope_spans, schema_url } in request.resource_spans {
        let resource = resource.unwrap_or_default();
        let first = groups.len();
        let shared = size::resource(&resource);
        let resource = Arc::new(resource);
        let resource_schema_url: Arc<str> = schema_url.into();
        for ScopeSpans { scope, spans, schema_url } in scope_spans {
            let scope = scope.unwrap_or_default();
            let first = groups.len();
            let shared = size::scope(&scope);
            let scope = Arc::new(scope);
            let scope_schema_url: Arc<str> = schema_url.into();
            groups.extend(by_trace(spans).into_iter().map(|(id, spans)| TraceBatch {
                id,
                bytes: size_of::<Batch>() + size::list(&spans, size::span),
                batch: Arc::new(Batch {
                    resource: Arc::clone(&resource),
                    resource_schema_url: Arc::clone(&resource_schema_url),
                    scope: Arc::clone(&scope),
                    scope_schema_url: Arc::clone(&scope_schema_url),
                    spans,
                }),
            }));
            share(&mut groups, first, shared);
        }
        share(&mut groups, first, shared);
    }
    groups
}

/// The request that [`group`] would split into these batches.
pub fn ungroup(groups: &[TraceBatch]) -> ExportTraceServiceRequest {
    let resource_spans = groups.iter().map(|TraceBatch { batch, .. }| ResourceSpans {
        resource: Some(Resource::clone(&batch.resource)),
        scope_spans: vec![ScopeSpans {
            scope: Some(InstrumentationScope::clone(&batch.scope)),
            spans: batch.spans.clone(),
            schema_url: batch.scope_schema_url.to_string(),
        }],
        schema_url: batch.resource_schema_url.to_string(),
    });
    ExportTraceServiceRequest { resource_spans: resource_spans.collect() }
}

fn by_trace(spans: Vec<Span>) -> Vec<(TraceId, Vec<Span>)> {
    let mut groups: Vec<(TraceId, Vec<Span>)> = Vec::new();
    let mut index: HashMap<TraceId, usize> = HashMap::new();
    for span in spans {
        let Ok(id) = TraceId::try_from(span.trace_id.as_slice()) else { continue };
        let position = *index.entry(id).or_insert_with(|| {
            groups.push((id, Vec::new()));
            groups.len() - 1
        });
        if let Some((_, group)) = groups.get_mut(position) {
            group.push(span);
        }
    }
    groups
}

/// Divides `bytes` between the groups from `first` on.
fn share(groups: &mut [TraceBatch], first: usize, bytes: usize) {
    let Some(sharers) = groups.get_mut(first..) else { return };
    let share = bytes.div_ceil(sharers.len().max(1));
    for group in sharers {
        group.bytes += share;
    }
}
