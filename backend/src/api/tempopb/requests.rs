//! Requests, as they come over gRPC. A number or a text that is not set is 0 or empty.

use std::collections::BTreeMap;

/// A search.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchRequest {
    /// Of the search before TraceQL.
    #[prost(btree_map = "string, string", tag = "1")]
    pub tags: BTreeMap<String, String>,
    /// Shortest trace.
    #[prost(uint32, tag = "2")]
    pub min_duration_ms: u32,
    /// Longest trace.
    #[prost(uint32, tag = "3")]
    pub max_duration_ms: u32,
    /// Most traces.
    #[prost(uint32, tag = "4")]
    pub limit: u32,
    /// Seconds since the epoch.
    #[prost(uint32, tag = "5")]
    pub start: u32,
    /// Seconds since the epoch.
    #[prost(uint32, tag = "6")]
    pub end: u32,
    /// TraceQL.
    #[prost(string, tag = "8")]
    pub query: String,
    /// Most spans of each spanset.
    #[prost(uint32, tag = "9")]
    pub spans_per_span_set: u32,
}

/// Names of tags.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagsRequest {
    /// `span`, `resource` and others.
    #[prost(string, tag = "1")]
    pub scope: String,
    /// TraceQL that the spans must match.
    #[prost(string, tag = "2")]
    pub query: String,
    /// Seconds since the epoch.
    #[prost(uint32, tag = "3")]
    pub start: u32,
    /// Seconds since the epoch.
    #[prost(uint32, tag = "4")]
    pub end: u32,
    /// Most names of each scope.
    #[prost(uint32, tag = "5")]
    pub max_tags_per_scope: u32,
}

/// Values of a tag.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SearchTagValuesRequest {
    /// Which tag.
    #[prost(string, tag = "1")]
    pub tag_name: String,
    /// TraceQL that the spans must match.
    #[prost(string, tag = "2")]
    pub query: String,
    /// Seconds since the epoch.
    #[prost(uint32, tag = "4")]
    pub start: u32,
    /// Seconds since the epoch.
    #[prost(uint32, tag = "5")]
    pub end: u32,
    /// Most values.
    #[prost(uint32, tag = "6")]
    pub max_tag_values: u32,
}

/// Series over time.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueryRangeRequest {
    /// TraceQL.
    #[prost(string, tag = "1")]
    pub query: String,
    /// Nanoseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub start: u64,
    /// Nanoseconds since the epoch.
    #[prost(uint64, tag = "3")]
    pub end: u64,
    /// Nanoseconds; 0 for one that suits the range.
    #[prost(uint64, tag = "4")]
    pub step: u64,
    /// Most exemplars.
    #[prost(uint32, tag = "16")]
    pub exemplars: u32,
    /// Most series.
    #[prost(uint32, tag = "17")]
    pub max_series: u32,
}

/// One value for each series.
#[derive(Clone, PartialEq, prost::Message)]
pub struct QueryInstantRequest {
    /// TraceQL.
    #[prost(string, tag = "1")]
    pub query: String,
    /// Nanoseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub start: u64,
    /// Nanoseconds since the epoch.
    #[prost(uint64, tag = "3")]
    pub end: u64,
}
