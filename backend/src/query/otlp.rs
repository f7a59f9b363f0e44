//! A trace as OTLP.

use std::sync::Arc;

use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, TracesData};

use super::distinct_spans;
use crate::live::{Batch, Trace};

/// A trace as it was received, without what came again: one `ScopeSpans` for each batch, one `ResourceSpans` for batches
/// that came together.
pub fn traces_data(trace: &Trace) -> TracesData {
    let mut resource_spans: Vec<ResourceSpans> = Vec::new();
    let mut last: Option<&Arc<Batch>> = None;
    for (batch, span) in distinct_spans(trace) {
        if last.is_none_or(|last| !Arc::ptr_eq(&last.resource, &batch.resource)) {
            resource_spans.push(ResourceSpans {
                resource: Some(Resource::clone(&batch.resource)),
                scope_spans: Vec::new(),
                schema_url: batch.resource_schema_url.to_string(),
            });
        }
        let Some(ResourceSpans { scope_spans, .. }) = resource_spans.last_mut() else { continue };
        if scope_spans.is_empty() || last.is_none_or(|last| !Arc::ptr_eq(last, batch)) {
            scope_spans.push(ScopeSpans {
                scope: Some(InstrumentationScope::clone(&batch.scope)),
                spans: Vec::new(),
                schema_url: batch.scope_schema_url.to_string(),
            });
        }
        if let Some(open) = scope_spans.last_mut() {
            open.spans.push(span.decode());
        }
        last = Some(batch);
    }
    TracesData { resource_spans }
}
