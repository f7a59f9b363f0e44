//! Which fields each message has as JSON.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue, KeyValueList};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::{Event, Link, SpanKind};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status, TracesData};

use super::json::{Object, ToJson};
use super::tempopb::{
    Exemplar, InstantSeries, MetadataMetrics, PartialStatus, QueryInstantResponse, QueryRangeResponse, Sample,
    SearchMetrics, SearchResponse, SearchTagValuesResponse, SearchTagValuesV2Response, SearchTagsResponse,
    SearchTagsV2Response, SearchTagsV2Scope, ServiceStats, Span as FoundSpan, SpanSet, TagValue, TimeSeries,
    TraceByIdMetrics, TraceByIdResponse, TraceSearchMetadata,
};

/// A trace as the first version of the API writes it: its list has another name.
pub(super) struct TraceV1<'a>(pub(super) &'a TracesData);

impl ToJson for TraceV1<'_> {
    fn fields(&self, object: &mut Object<'_>) {
        object.messages("batches", &self.0.resource_spans);
    }
}

impl ToJson for TracesData {
    fn fields(&self, object: &mut Object<'_>) {
        object.messages("resourceSpans", &self.resource_spans);
    }
}

impl ToJson for ResourceSpans {
    fn fields(&self, object: &mut Object<'_>) {
        if let Some(resource) = &self.resource {
            object.message("resource", resource);
        }
        object.messages("scopeSpans", &self.scope_spans);
        object.string("schemaUrl", &self.schema_url);
    }
}

impl ToJson for Resource {
    fn fields(&self, object: &mut Object<'_>) {
        object.messages("attributes", &self.attributes);
        object.u32("droppedAttributesCount", self.dropped_attributes_count);
    }
}

impl ToJson for ScopeSpans {
    fn fields(&self, object: &mut Object<'_>) {
        if let Some(scope) = &self.scope {
            object.message("scope", scope);
        }
        object.messages("spans", &self.spans);
        object.string("schemaUrl", &self.schema_url);
    }
}

impl ToJson for InstrumentationScope {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("name", &self.name);
        object.string("version", &self.version);
        object.messages("attributes", &self.attributes);
        object.u32("droppedAttributesCount", self.dropped_attributes_count);
    }
}

impl ToJson for Span {
    fn fields(&self, object: &mut Object<'_>) {
        object.bytes("traceId", &self.trace_id);
        object.bytes("spanId", &self.span_id);
        object.string("traceState", &self.trace_state);
        object.bytes("parentSpanId", &self.parent_span_id);
        object.u32("flags", self.flags);
        object.string("name", &self.name);
        if self.kind != 0 {
            match SpanKind::try_from(self.kind) {
                Ok(kind) => object.string("kind", kind.as_str_name()),
                Err(_) => object.oneof_f64("kind", f64::from(self.kind)),
            }
        }
        object.u64("startTimeUnixNano", self.start_time_unix_nano);
        object.u64("endTimeUnixNano", self.end_time_unix_nano);
        object.messages("attributes", &self.attributes);
        object.u32("droppedAttributesCount", self.dropped_attributes_count);
        object.messages("events", &self.events);
        object.u32("droppedEventsCount", self.dropped_events_count);
        object.messages("links", &self.links);
        object.u32("droppedLinksCount", self.dropped_links_count);
        if let Some(status) = &self.status {
            object.message("status", status);
        }
    }
}

impl ToJson for Event {
    fn fields(&self, object: &mut Object<'_>) {
        object.u64("timeUnixNano", self.time_unix_nano);
        object.string("name", &self.name);
        object.messages("attributes", &self.attributes);
        object.u32("droppedAttributesCount", self.dropped_attributes_count);
    }
}

impl ToJson for Link {
    fn fields(&self, object: &mut Object<'_>) {
        object.bytes("traceId", &self.trace_id);
        object.bytes("spanId", &self.span_id);
        object.string("traceState", &self.trace_state);
        object.messages("attributes", &self.attributes);
        object.u32("droppedAttributesCount", self.dropped_attributes_count);
        object.u32("flags", self.flags);
    }
}

impl ToJson for Status {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("message", &self.message);
        if self.code != 0 {
            object.string("code", self.code().as_str_name());
        }
    }
}

impl ToJson for KeyValue {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("key", &self.key);
        if let Some(value) = &self.value {
            object.message("value", value);
        }
    }
}

impl ToJson for AnyValue {
    fn fields(&self, object: &mut Object<'_>) {
        match &self.value {
            None | Some(Value::StringValueStrindex(_)) => {}
            Some(Value::StringValue(text)) => object.oneof_string("stringValue", text),
            Some(Value::BoolValue(truth)) => object.oneof_bool("boolValue", *truth),
            Some(Value::IntValue(int)) => object.oneof_string("intValue", &int.to_string()),
            Some(Value::DoubleValue(float)) => object.oneof_f64("doubleValue", *float),
            Some(Value::ArrayValue(array)) => object.message("arrayValue", array),
            Some(Value::KvlistValue(list)) => object.message("kvlistValue", list),
            Some(Value::BytesValue(bytes)) if bytes.is_empty() => object.oneof_string("bytesValue", ""),
            Some(Value::BytesValue(bytes)) => object.bytes("bytesValue", bytes),
        }
    }
}

impl ToJson for ArrayValue {
    fn fields(&self, object: &mut Object<'_>) {
        object.messages("values", &self.values);
    }
}

impl ToJson for KeyValueList {
    fn fields(&self, object: &mut Object<'_>) {
        object.messages("values", &self.values);
    }
}

impl ToJson for TraceByIdResponse {
    fn fields(&self, object: &mut Object<'_>) {
        if let Some(trace) = &self.trace {
            object.message("trace", trace);
        }
        if let Some(metrics) = &self.metrics {
            object.message("metrics", metrics);
        }
        partial(object, self.status, &self.message);
    }
}

impl ToJson for TraceByIdMetrics {
    fn fields(&self, object: &mut Object<'_>) {
        object.u64("inspectedBytes", self.inspected_bytes);
    }
}

impl ToJson for SearchResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("traces", &self.traces);
        if let Some(metrics) = &self.metrics {
            object.message("metrics", metrics);
        }
    }
}

impl ToJson for TraceSearchMetadata {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("traceID", &self.trace_id);
        object.string("rootServiceName", &self.root_service_name);
        object.string("rootTraceName", &self.root_trace_name);
        object.u64("startTimeUnixNano", self.start_time_unix_nano);
        object.u32("durationMs", self.duration_ms);
        if let Some(set) = &self.span_set {
            object.message("spanSet", set);
        }
        object.messages("spanSets", &self.span_sets);
        object.map("serviceStats", self.service_stats.iter());
    }
}

impl ToJson for SpanSet {
    fn fields(&self, object: &mut Object<'_>) {
        object.messages("spans", &self.spans);
        object.u32("matched", self.matched);
        object.messages("attributes", &self.attributes);
    }
}

impl ToJson for FoundSpan {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("spanID", &self.span_id);
        object.string("name", &self.name);
        object.u64("startTimeUnixNano", self.start_time_unix_nano);
        object.u64("durationNanos", self.duration_nanos);
        object.messages("attributes", &self.attributes);
    }
}

impl ToJson for ServiceStats {
    fn fields(&self, object: &mut Object<'_>) {
        object.u32("spanCount", self.span_count);
        object.u32("errorCount", self.error_count);
    }
}

impl ToJson for SearchMetrics {
    fn fields(&self, object: &mut Object<'_>) {
        object.u32("inspectedTraces", self.inspected_traces);
        object.u64("inspectedBytes", self.inspected_bytes);
        object.u32("totalBlocks", self.total_blocks);
        object.u32("completedJobs", self.completed_jobs);
        object.u32("totalJobs", self.total_jobs);
        object.u64("totalBlockBytes", self.total_block_bytes);
        object.u64("inspectedSpans", self.inspected_spans);
    }
}

impl ToJson for MetadataMetrics {
    fn fields(&self, object: &mut Object<'_>) {
        object.u64("inspectedBytes", self.inspected_bytes);
    }
}

impl ToJson for SearchTagsResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.strings("tagNames", &self.tag_names);
        if let Some(metrics) = &self.metrics {
            object.message("metrics", metrics);
        }
    }
}

impl ToJson for SearchTagsV2Response {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("scopes", &self.scopes);
        if let Some(metrics) = &self.metrics {
            object.message("metrics", metrics);
        }
    }
}

impl ToJson for SearchTagsV2Scope {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("name", &self.name);
        object.strings("tags", &self.tags);
    }
}

impl ToJson for SearchTagValuesResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.strings("tagValues", &self.tag_values);
        if let Some(metrics) = &self.metrics {
            object.message("metrics", metrics);
        }
    }
}

impl ToJson for SearchTagValuesV2Response {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("tagValues", &self.tag_values);
        if let Some(metrics) = &self.metrics {
            object.message("metrics", metrics);
        }
    }
}

impl ToJson for TagValue {
    fn fields(&self, object: &mut Object<'_>) {
        object.string("type", &self.r#type);
        object.string("value", &self.value);
    }
}

impl ToJson for QueryRangeResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("series", &self.series);
        if let Some(metrics) = &self.metrics {
            object.message("metrics", metrics);
        }
        partial(object, self.status, &self.message);
    }
}

impl ToJson for TimeSeries {
    fn fields(&self, object: &mut Object<'_>) {
        object.messages("labels", &self.labels);
        object.messages("samples", &self.samples);
        object.messages("exemplars", &self.exemplars);
    }
}

impl ToJson for Sample {
    fn fields(&self, object: &mut Object<'_>) {
        object.i64("timestampMs", self.timestamp_ms);
        object.f64("value", self.value);
    }
}

impl ToJson for Exemplar {
    fn fields(&self, object: &mut Object<'_>) {
        object.messages("labels", &self.labels);
        object.f64("value", self.value);
        object.i64("timestampMs", self.timestamp_ms);
    }
}

impl ToJson for QueryInstantResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.list("series", &self.series);
        if let Some(metrics) = &self.metrics {
            object.message("metrics", metrics);
        }
        partial(object, self.status, &self.message);
    }
}

impl ToJson for InstantSeries {
    fn fields(&self, object: &mut Object<'_>) {
        object.messages("labels", &self.labels);
        object.f64("value", self.value);
    }
}

/// Whether something is missing, and why. Nothing is written of an answer that is complete.
fn partial(object: &mut Object<'_>, status: i32, message: &str) {
    if status == PartialStatus::Partial as i32 {
        object.string("status", "PARTIAL");
    }
    object.string("message", message);
}
