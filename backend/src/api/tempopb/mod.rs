//! Messages of Tempo's `tempopb` package, as far as the API reads or writes them. Numbers are Tempo's.

mod metrics;
mod requests;

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::trace::v1::TracesData;

pub use metrics::{Exemplar, InstantSeries, QueryInstantResponse, QueryRangeResponse, Sample, TimeSeries};
pub use requests::{QueryInstantRequest, QueryRangeRequest, SearchRequest, SearchTagValuesRequest, SearchTagsRequest};

/// Answer to a trace by id, second version. `trace` is always there, even if it is empty: clients rely on it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TraceByIdResponse {
    /// `tempopb.Trace` has the wire format of OTLP's `TracesData`.
    #[prost(message, optional, tag = "1")]
    pub trace: Option<TracesData>,
    /// Always there.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<TraceByIdMetrics>,
    /// Whether spans are missing.
    #[prost(enumeration = "PartialStatus", tag = "3")]
    pub status: i32,
    /// Why.
    #[prost(string, tag = "4")]
    pub message: String,
}

/// Work done for a trace by id.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct TraceByIdMetrics {
    /// Estimate of the memory that was read.
    #[prost(uint64, tag = "1")]
    pub inspected_bytes: u64,
}

/// Whether an answer is complete.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd, prost::Enumeration)]
#[repr(i32)]
pub enum PartialStatus {
    /// It is.
    Complete = 0,
    /// Something was left away, the message says what.
    Partial = 1,
}

/// Answer to a search.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchResponse {
    /// Newest first.
    #[prost(message, repeated, tag = "1")]
    pub traces: Vec<TraceSearchMetadata>,
    /// Always there.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<SearchMetrics>,
}

/// A trace that was found.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TraceSearchMetadata {
    /// Hexadecimal, without leading zeros.
    #[prost(string, tag = "1")]
    pub trace_id: String,
    /// Service of the root.
    #[prost(string, tag = "2")]
    pub root_service_name: String,
    /// Name of the root.
    #[prost(string, tag = "3")]
    pub root_trace_name: String,
    /// Start of its first span.
    #[prost(uint64, tag = "4")]
    pub start_time_unix_nano: u64,
    /// From the first start to the last end.
    #[prost(uint32, tag = "5")]
    pub duration_ms: u32,
    /// The first of `span_sets`, for old clients.
    #[prost(message, optional, tag = "6")]
    pub span_set: Option<SpanSet>,
    /// What matched.
    #[prost(message, repeated, tag = "7")]
    pub span_sets: Vec<SpanSet>,
    /// All services of the trace.
    #[prost(btree_map = "string, message", tag = "8")]
    pub service_stats: BTreeMap<String, ServiceStats>,
}

/// Spans of a trace that matched together.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SpanSet {
    /// No more than asked for.
    #[prost(message, repeated, tag = "1")]
    pub spans: Vec<Span>,
    /// How many there are.
    #[prost(uint32, tag = "2")]
    pub matched: u32,
    /// Results of `by()` and aggregates.
    #[prost(message, repeated, tag = "3")]
    pub attributes: Vec<KeyValue>,
}

/// A span that matched.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Span {
    /// 16 hexadecimal digits.
    #[prost(string, tag = "1")]
    pub span_id: String,
    /// If the query mentions it.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Start.
    #[prost(uint64, tag = "3")]
    pub start_time_unix_nano: u64,
    /// End minus start.
    #[prost(uint64, tag = "4")]
    pub duration_nanos: u64,
    /// What the query mentions or selects.
    #[prost(message, repeated, tag = "5")]
    pub attributes: Vec<KeyValue>,
}

/// Spans of one service in a trace.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ServiceStats {
    /// All.
    #[prost(uint32, tag = "1")]
    pub span_count: u32,
    /// Those that failed.
    #[prost(uint32, tag = "2")]
    pub error_count: u32,
}

/// Work done for a search. Grafana refuses answers with more fields than these.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct SearchMetrics {
    /// Traces whose spans were looked at.
    #[prost(uint32, tag = "1")]
    pub inspected_traces: u32,
    /// Estimate of the memory or storage that was read.
    #[prost(uint64, tag = "2")]
    pub inspected_bytes: u64,
    /// Blocks in the time range.
    #[prost(uint32, tag = "3")]
    pub total_blocks: u32,
    /// Parts of the work that are done.
    #[prost(uint32, tag = "4")]
    pub completed_jobs: u32,
    /// Parts of the work.
    #[prost(uint32, tag = "5")]
    pub total_jobs: u32,
    /// Size of those blocks.
    #[prost(uint64, tag = "6")]
    pub total_block_bytes: u64,
    /// Spans that were looked at.
    #[prost(uint64, tag = "7")]
    pub inspected_spans: u64,
}

/// Work done for names or values of tags.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct MetadataMetrics {
    /// Estimate of the memory or storage that was read.
    #[prost(uint64, tag = "1")]
    pub inspected_bytes: u64,
}

/// Names of tags.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagsResponse {
    /// Sorted.
    #[prost(string, repeated, tag = "1")]
    pub tag_names: Vec<String>,
    /// Always there.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<MetadataMetrics>,
}

/// Names of tags by scope.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagsV2Response {
    /// Those that have names.
    #[prost(message, repeated, tag = "1")]
    pub scopes: Vec<SearchTagsV2Scope>,
    /// Always there.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<MetadataMetrics>,
}

/// Names of tags of one scope.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagsV2Scope {
    /// `span`, `resource`, `intrinsic` and others.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Sorted.
    #[prost(string, repeated, tag = "2")]
    pub tags: Vec<String>,
}

/// Values of a tag.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagValuesResponse {
    /// Sorted.
    #[prost(string, repeated, tag = "1")]
    pub tag_values: Vec<String>,
    /// Always there.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<MetadataMetrics>,
}

/// Values of a tag with their types.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagValuesV2Response {
    /// Sorted by type, then by value.
    #[prost(message, repeated, tag = "1")]
    pub tag_values: Vec<TagValue>,
    /// Always there.
    #[prost(message, optional, tag = "2")]
    pub metrics: Option<MetadataMetrics>,
}

/// One value of a tag.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TagValue {
    /// `string`, `int`, `float`, `bool` or `keyword`.
    #[prost(string, tag = "1")]
    pub r#type: String,
    /// As text.
    #[prost(string, tag = "2")]
    pub value: String,
}
