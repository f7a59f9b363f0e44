//! One trace as the live set holds it and queries read it.

use std::fmt;
use std::hint::black_box;
use std::sync::Arc;

use bytes::Bytes;
use coati_common::wellknown::AGENT_SCOPE;
use coati_common::wellknown::resource::SERVICE_NAME;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;

use super::size;
use crate::otlp::SpanRef;

/// Bytes that a processor loads at once.
const CACHE_LINE: usize = 64;

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

/// What spans were sent under: one `ScopeSpans` of one request.
///
/// Those of separate requests stay separate, so that a trace is answered as it was received.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// What the spans were sent under; shared by all batches of one `ResourceSpans`, and by no others.
    pub resource: Arc<Resource>,
    /// `ResourceSpans.schema_url`.
    pub resource_schema_url: Arc<str>,
    /// Instrumentation scope.
    pub scope: Arc<InstrumentationScope>,
    /// `ScopeSpans.schema_url`.
    pub scope_schema_url: Arc<str>,
}

/// A span of a trace.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSpan {
    /// What it was sent under.
    pub batch: Arc<Batch>,
    /// The span itself, an encoded `Span` that was checked.
    pub bytes: Bytes,
}

impl TraceSpan {
    /// What is in it.
    pub fn view(&self) -> SpanRef<'_> {
        SpanRef::parse(&self.bytes)
    }

    /// The message.
    pub fn decode(&self) -> Span {
        self.view().decode()
    }
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
    /// In the order of arrival; those of one batch stand together.
    pub spans: Vec<TraceSpan>,
    /// Earliest start of a span, nanoseconds since the epoch.
    pub start_ns: u64,
    /// Latest end of a span, nanoseconds since the epoch.
    pub end_ns: u64,
    /// Earliest span at the top, if one has come.
    pub root: Option<Root>,
    /// Estimate of the memory that the trace holds.
    pub bytes: usize,
}

impl Trace {
    /// A trace of which nothing has come yet.
    pub fn empty(id: TraceId) -> Self {
        Self { id, spans: Vec::new(), start_ns: u64::MAX, end_ns: 0, root: None, bytes: size_of::<Self>() }
    }

    /// Adds a span that is a message.
    pub fn add(&mut self, batch: &Arc<Batch>, span: &Span) {
        let bytes = Bytes::from(span.encode_to_vec());
        self.push(batch, bytes.clone(), &SpanRef::parse(&bytes));
    }

    /// Adds a span; `bytes` is its encoding, `view` what is in it.
    pub(crate) fn push(&mut self, batch: &Arc<Batch>, bytes: Bytes, view: &SpanRef<'_>) {
        let start_ns = view.start_time_unix_nano;
        self.start_ns = self.start_ns.min(start_ns);
        self.end_ns = self.end_ns.max(view.end_time_unix_nano);
        if view.is_top() && self.root.as_ref().is_none_or(|root| start_ns < root.start_ns) {
            let service_name = batch.service_name().unwrap_or_default().into();
            self.root = Some(Root { service_name, span_name: view.name.as_str().into(), start_ns });
        }
        self.bytes += size_of::<TraceSpan>() + bytes.len();
        self.spans.push(TraceSpan { batch: Arc::clone(batch), bytes });
    }

    /// Brings its spans into the processor's caches, which they have left since they came: loads that do not wait for each other
    /// take a fraction of the time that those of a parser take.
    pub(crate) fn fetch(&self) {
        let lines = self.spans.iter().flat_map(|span| span.bytes.iter().step_by(CACHE_LINE));
        black_box(lines.fold(0, |sum, byte| sum ^ byte));
    }

    /// Adds what came later of the same trace.
    pub fn extend(&mut self, later: Self) {
        let Self { id: _, spans, start_ns, end_ns, root, bytes } = later;
        self.start_ns = self.start_ns.min(start_ns);
        self.end_ns = self.end_ns.max(end_ns);
        if let Some(root) = root
            && self.root.as_ref().is_none_or(|known| root.start_ns < known.start_ns)
        {
            self.root = Some(root);
        }
        self.bytes += bytes;
        self.spans.extend(spans);
    }
}

impl Batch {
    /// Estimate of the memory that it holds; of the resource only if that is shared with no batch that was counted before.
    pub(crate) fn memory(&self, with_resource: bool) -> usize {
        let resource = if with_resource { size::resource(&self.resource) } else { 0 };
        size_of::<Self>() + resource + size::scope(&self.scope)
    }

    /// Whether an agent of Coati made the spans.
    pub(crate) fn of_agent(&self) -> bool {
        self.scope.name == AGENT_SCOPE
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
