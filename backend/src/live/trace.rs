//! One trace as the live set holds it and queries read it.

use std::fmt;
use std::sync::Arc;

use coati_common::wellknown::resource::SERVICE_NAME;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;

use super::size;

/// The 16 bytes that all spans of a trace share.
#[derive(Clone, Copy, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct TraceId(pub [u8; 16]);

impl TryFrom<&[u8]> for TraceId {
    type Error = std::array::TryFromSliceError;

    /// Fails unless there are 16 bytes.
    fn try_from(bytes: &[u8]) -> Result<Self, Self::Error> {
        bytes.try_into().map(Self)
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for TraceId {
    /// 32 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Spans of one trace that came under one resource and one scope in one request.
///
/// Batches of separate requests stay separate, so that a trace is answered as it was received.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// What the spans were sent under; shared by all batches of the request.
    pub resource: Arc<Resource>,
    /// `ResourceSpans.schema_url`.
    pub resource_schema_url: Arc<str>,
    /// Instrumentation scope.
    pub scope: Arc<InstrumentationScope>,
    /// `ScopeSpans.schema_url`.
    pub scope_schema_url: Arc<str>,
    /// The spans in the order in which they were sent.
    pub spans: Vec<Span>,
}

/// The span without a parent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Root {
    /// `service.name` of its resource.
    pub service_name: Arc<str>,
    /// Its name.
    pub span_name: Arc<str>,
    /// Its start, nanoseconds since the epoch.
    pub start_ns: u64,
}

/// Everything received of one trace so far. Never changed in place: a query keeps the version that it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Identity.
    pub id: TraceId,
    /// In the order of arrival.
    pub batches: Vec<Arc<Batch>>,
    /// Earliest start of a span, nanoseconds since the epoch.
    pub start_ns: u64,
    /// Latest end of a span, nanoseconds since the epoch.
    pub end_ns: u64,
    /// Earliest span without a parent, if one has come.
    pub root: Option<Root>,
    /// Spans in all batches.
    pub span_count: usize,
    /// Estimate of the memory that the trace holds.
    pub bytes: usize,
}

impl Trace {
    /// A trace of which nothing has come yet.
    pub fn empty(id: TraceId) -> Self {
        let bytes = size_of::<Self>();
        Self { id, batches: Vec::new(), start_ns: u64::MAX, end_ns: 0, root: None, span_count: 0, bytes }
    }

    /// Adds what one request brought; `bytes` is the estimate of the memory that the batch holds.
    pub fn append(&mut self, batch: Arc<Batch>, bytes: usize) {
        for span in &batch.spans {
            self.start_ns = self.start_ns.min(span.start_time_unix_nano);
            self.end_ns = self.end_ns.max(span.end_time_unix_nano);
            let start_ns = span.start_time_unix_nano;
            if is_root(span) && self.root.as_ref().is_none_or(|root| start_ns < root.start_ns) {
                let service_name = batch.service_name().unwrap_or_default().into();
                self.root = Some(Root { service_name, span_name: span.name.as_str().into(), start_ns });
            }
        }
        self.span_count += batch.spans.len();
        self.bytes += bytes;
        self.batches.push(batch);
    }

    /// Adds what came later of the same trace.
    pub(crate) fn extend(&mut self, later: &Self) {
        self.start_ns = self.start_ns.min(later.start_ns);
        self.end_ns = self.end_ns.max(later.end_ns);
        if let Some(root) = &later.root
            && self.root.as_ref().is_none_or(|known| root.start_ns < known.start_ns)
        {
            self.root = Some(root.clone());
        }
        self.span_count += later.span_count;
        self.bytes += later.bytes;
        self.batches.extend(later.batches.iter().cloned());
    }
}

/// True for a span without a parent; some senders write a parent of zeros for that.
pub fn is_root(span: &Span) -> bool {
    span.parent_span_id.iter().all(|byte| *byte == 0)
}

impl Batch {
    /// Estimate of the memory that it holds; of the resource only if that is shared with no batch that was counted before.
    pub(crate) fn memory(&self, with_resource: bool) -> usize {
        let resource = if with_resource { size::resource(&self.resource) } else { 0 };
        size_of::<Self>() + resource + size::scope(&self.scope) + size::list(&self.spans, size::span)
    }

    /// `service.name` of the resource, if it is a string.
    pub fn service_name(&self) -> Option<&str> {
        let attribute = self.resource.attributes.iter().find(|attribute| attribute.key == SERVICE_NAME)?;
        match attribute.value.as_ref()?.value.as_ref()? {
            Value::StringValue(name) => Some(name),
            _ => None,
        }
    }
}
