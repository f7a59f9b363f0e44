//! Which tags of a request are new to the catalog: the part of the tag index that every request passes.

use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use prost::Message;

use super::known::{Borrowed, Known, Tag, ValueNoted};
use super::{Catalog, CatalogError, Hours, Scope, Seen};
use crate::live::{Batch, Trace, TraceSpan};
use crate::otlp::{AttributeRef, Attributes, SpanRef, Text, ValueRef};
use crate::query::Value;
use crate::telemetry::CatalogMetrics;

/// How much is indexed. What is beyond is still stored and found by queries, it is only not offered for completion.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IndexLimits {
    /// Names of a scope, for each tenant.
    pub names: u32,
    /// Values of a name.
    pub values: u32,
    /// Values of all names and tenants; each costs some 20 bytes of memory and a few hundred of disk.
    pub all_values: usize,
}

impl Default for IndexLimits {
    /// 5,000 names, 10,000 values each, 500,000 in all.
    fn default() -> Self {
        Self { names: 5_000, values: 10_000, all_values: 500_000 }
    }
}

/// Keeps a [`Catalog`] up to date without asking it: the hashes of all its entries are in memory.
pub struct TagIndex {
    store: Arc<dyn Catalog>,
    limits: IndexLimits,
    metrics: CatalogMetrics,
    hasher: RandomState,
    known: Mutex<Known>,
}

impl TagIndex {
    /// The index of what is in `store`. Blocks.
    pub fn open(store: Arc<dyn Catalog>, limits: IndexLimits, metrics: CatalogMetrics) -> Result<Self, CatalogError> {
        let hasher = RandomState::default();
        let known = match Known::load(store.as_ref(), &hasher) {
            // What is not known is put again, once it is open.
            Err(CatalogError::Closed) => Known::default(),
            loaded => loaded?,
        };
        Ok(Self { store, limits, metrics, hasher, known: Mutex::new(known) })
    }

    /// The catalog.
    pub fn store(&self) -> &Arc<dyn Catalog> {
        &self.store
    }

    /// The tags of these traces that the catalog does not know yet, or not for this time; hand them to [`Self::record`].
    pub fn observe<'a>(&self, tenant: &str, traces: impl IntoIterator<Item = &'a Trace>) -> Vec<Seen> {
        let mut observer = self.observer(tenant);
        let mut before: Option<(&Batch, Hours)> = None;
        // Since they were copied the request has been on its way to the disk.
        let traces = traces.into_iter().inspect(|trace| trace.fetch());
        for TraceSpan { batch, bytes } in traces.flat_map(|trace| &trace.spans) {
            let span = SpanRef::parse(bytes);
            let hours = Hours::of_nanos(span.start_time_unix_nano);
            // Spans of one request share these.
            if before.is_none_or(|(before, of)| !std::ptr::eq(before, &raw const **batch) || of != hours) {
                observer.batch(batch, hours);
                before = Some((batch, hours));
            }
            observer.span(batch, &span, hours);
        }
        observer.fresh
    }

    /// As [`Self::observe`], of values of one tag. Adds to `fresh`; returns whether the catalog takes more values of it.
    pub(super) fn observe_values(
        &self,
        tenant: &str,
        (scope, name): (Scope, &str),
        values: &[Value<'_>],
        hours: Hours,
        fresh: &mut Vec<Seen>,
    ) -> bool {
        let mut takes_more = true;
        let mut observer = self.observer(tenant);
        for value in values {
            borrow(value, &mut |value| {
                let noted = observer.note(Tag { scope, name, value, hours });
                takes_more &= !matches!(noted, ValueNoted::OverLimit);
            });
        }
        fresh.append(&mut observer.fresh);
        takes_more
    }

    fn observer(&self, tenant: &str) -> Observer<'_> {
        let owner = self.hasher.hash_one(tenant);
        Observer { index: self, owner, known: self.known(), fresh: Vec::new() }
    }

    /// Lets what [`Self::observe`] found be written with what others find; false if it must be recorded.
    pub fn note(&self, tenant: &str, fresh: &[Seen]) -> bool {
        fresh.is_empty() || self.store.note(tenant, fresh)
    }

    /// Writes what [`Self::observe`] found. Blocks.
    pub fn record(&self, tenant: &str, fresh: &[Seen]) -> Result<(), CatalogError> {
        if fresh.is_empty() {
            return Ok(());
        }
        self.store.put(tenant, fresh).inspect_err(|_| {
            self.metrics.failed_writes.inc();
            // What is not known is written when it is seen next.
            self.forget();
        })
    }

    /// Makes it take everything for new, so that it is put again.
    pub fn forget(&self) {
        *self.known() = Known::default();
    }

    /// Forgets what was last seen before an hour since the epoch. Blocks.
    pub fn prune(&self, before: u32) -> Result<(), CatalogError> {
        if self.store.prune(before)? > 0 {
            // Something that is being recorded at this moment may be missing in what is loaded; it is recorded again.
            let known = Known::load(self.store.as_ref(), &self.hasher)?;
            *self.known() = known;
        }
        Ok(())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Passes tags on to what is known; those that are not come out.
struct Observer<'i> {
    index: &'i TagIndex,
    /// Hash of the tenant.
    owner: u64,
    known: MutexGuard<'i, Known>,
    fresh: Vec<Seen>,
}

impl Observer<'_> {
    fn batch(&mut self, batch: &Batch, hours: Hours) {
        self.messages(Scope::Resource, &batch.resource.attributes, hours);
        self.messages(Scope::Instrumentation, &batch.scope.attributes, hours);
        self.intrinsic("instrumentation:name", batch.scope.name.as_bytes(), hours);
        self.intrinsic("instrumentation:version", batch.scope.version.as_bytes(), hours);
    }

    fn span(&mut self, batch: &Batch, span: &SpanRef<'_>, hours: Hours) {
        self.attributes(Scope::Span, span.attributes(), hours);
        self.intrinsic("name", span.name.as_bytes(), hours);
        if let Some(status) = span.status {
            self.intrinsic("statusMessage", status.message.as_bytes(), hours);
        }
        if span.is_top() {
            self.intrinsic("rootName", span.name.as_bytes(), hours);
            self.intrinsic("rootServiceName", batch.service_name().unwrap_or_default().as_bytes(), hours);
        }
        for event in span.events() {
            self.attributes(Scope::Event, event.attributes(), hours);
            self.intrinsic("event:name", event.name.as_bytes(), hours);
        }
        for link in span.links() {
            self.attributes(Scope::Link, link.attributes(), hours);
        }
    }

    /// Tells tenants, scopes and hours apart: what tenants have are random numbers.
    fn seed(&self, scope: Scope, hours: Hours) -> u64 {
        self.owner ^ ((scope as u64) << u32::BITS | u64::from(hours.first))
    }

    fn intrinsic(&mut self, name: &'static str, value: &[u8], hours: Hours) {
        if value.is_empty() {
            return;
        }
        let hash = self.index.hasher.hash_one((self.seed(Scope::Intrinsic, hours), name, value));
        let value = Text::of_checked(value).as_str();
        self.unless_recent(hash, |observer| {
            observer
                .note(Tag { scope: Scope::Intrinsic, name, value: Some(Borrowed::String(value)), hours })
                .is_indexed()
        });
    }

    fn attributes(&mut self, scope: Scope, attributes: Attributes<'_>, hours: Hours) {
        attributes.encoded().for_each(|attribute| self.attribute(scope, attribute, hours));
    }

    /// The same of messages.
    fn messages(&mut self, scope: Scope, attributes: &[KeyValue], hours: Hours) {
        for attribute in attributes {
            self.attribute(scope, &attribute.encode_to_vec(), hours);
        }
    }

    fn attribute(&mut self, scope: Scope, encoded: &[u8], hours: Hours) {
        let hash = self.index.hasher.hash_one((self.seed(scope, hours), encoded));
        self.unless_recent(hash, |observer| {
            let AttributeRef { key, value } = AttributeRef::parse(encoded);
            let name = key.as_str();
            let mut all_known = true;
            let mut note = |value| all_known &= observer.note(Tag { scope, name, value, hours }).is_indexed();
            match value {
                Some(ValueRef::Array(array)) => {
                    let mut is_empty = true;
                    for element in array.elements() {
                        is_empty = false;
                        note(scalar(element));
                    }
                    if is_empty {
                        note(None);
                    }
                }
                value => note(value.and_then(scalar)),
            }
            all_known
        });
    }

    /// Looks at a tag unless it is one of those that were known last; `note` says whether it is known now.
    #[inline]
    fn unless_recent(&mut self, hash: u64, note: impl FnOnce(&mut Self) -> bool) {
        if self.known.recent.place(hash).is_some_and(|place| *place == hash) {
            return;
        }
        if note(self)
            && let Some(place) = self.known.recent.place(hash)
        {
            *place = hash;
        }
    }

    fn note(&mut self, tag: Tag<'_>) -> ValueNoted {
        let TagIndex { hasher, limits, metrics, .. } = self.index;
        let noted = self.known.note(hasher, *limits, self.owner, &tag);
        match noted.value {
            ValueNoted::Indexed => {}
            ValueNoted::OverLimit => _ = metrics.over_limit.inc(),
            ValueNoted::TooLong => _ = metrics.too_long.inc(),
        }
        if noted.fresh {
            self.fresh.push(tag.to_seen(noted.value.is_indexed()));
        }
        noted.value
    }
}

/// The value, if it is of a type that can be compared in queries.
fn scalar(value: ValueRef<'_>) -> Option<Borrowed<'_>> {
    match value {
        ValueRef::String(text) => Some(Borrowed::String(text.as_str())),
        ValueRef::Bool(truth) => Some(Borrowed::Bool(truth)),
        ValueRef::Int(number) => Some(Borrowed::Int(number)),
        ValueRef::Double(number) => Some(Borrowed::Float(number.to_bits())),
        ValueRef::Array(_) | ValueRef::Other(_) | ValueRef::Empty => None,
    }
}

/// The same for a value as queries have it; an array stands for each of its elements.
fn borrow(value: &Value<'_>, take: &mut impl FnMut(Option<Borrowed<'_>>)) {
    match value {
        Value::List(elements) if !elements.is_empty() => {
            for element in elements {
                take(comparable(element));
            }
        }
        value => take(comparable(value)),
    }
}

fn comparable<'v>(value: &'v Value<'_>) -> Option<Borrowed<'v>> {
    match value {
        Value::String(text) => Some(Borrowed::String(text)),
        Value::Bool(truth) => Some(Borrowed::Bool(*truth)),
        Value::Int(number) => Some(Borrowed::Int(*number)),
        Value::Float(number) => Some(Borrowed::Float(number.to_bits())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::known::INDEXED_BYTES;
    use crate::catalog::{MemoryCatalog, TagValue};
    use crate::live::group_message;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};

    const HOUR_NS: u64 = 3_600_000_000_000;

    fn attribute(key: &str, value: Value) -> KeyValue {
        KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
    }

    fn text(key: &str, value: &str) -> KeyValue {
        attribute(key, Value::StringValue(value.to_owned()))
    }

    fn span_at(hour: u64, attributes: Vec<KeyValue>) -> Span {
        Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            name: "GET /".to_owned(),
            start_time_unix_nano: hour * HOUR_NS,
            attributes,
            ..Span::default()
        }
    }

    fn request(spans: Vec<Span>) -> ExportTraceServiceRequest {
        let resource = Resource { attributes: vec![text("service.name", "shop")], ..Resource::default() };
        let scope = InstrumentationScope { name: "lib".to_owned(), ..InstrumentationScope::default() };
        ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(resource),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            }],
        }
    }

    /// Passes the spans through the index; returns how many tags the catalog had to be told.
    fn pass(index: &TagIndex, spans: Vec<Span>) -> usize {
        let fresh = index.observe("t", &group_message(&request(spans)));
        index.record("t", &fresh).unwrap();
        fresh.len()
    }

    fn index(limits: IndexLimits) -> TagIndex {
        TagIndex::open(Arc::new(MemoryCatalog::default()), limits, CatalogMetrics::default()).unwrap()
    }

    fn values(index: &TagIndex, scope: Scope, name: &str) -> Vec<TagValue> {
        index.store().tag_values("t", scope, name, None, 100).unwrap()
    }

    #[test]
    fn every_scope_and_type_is_indexed() {
        let index = index(IndexLimits::default());
        let mixed = ArrayValue {
            values: vec![
                AnyValue { value: Some(Value::IntValue(-3)) },
                AnyValue { value: Some(Value::StringValue("x".to_owned())) },
            ],
        };
        let mut span =
            span_at(5, vec![attribute("array", Value::ArrayValue(mixed)), attribute("ok", Value::BoolValue(true))]);
        span.events = vec![Event { name: "oops".to_owned(), attributes: vec![text("e", "1")], ..Event::default() }];
        span.links = vec![Link { attributes: vec![attribute("l", Value::DoubleValue(0.5))], ..Link::default() }];
        span.status = Some(Status { message: "broken".to_owned(), code: 2 });
        pass(&index, vec![span]);
        let string = |text: &str| TagValue::String(text.to_owned());
        assert_eq!(values(&index, Scope::Resource, "service.name"), [string("shop")]);
        assert_eq!(values(&index, Scope::Span, "array"), [string("x"), TagValue::Int(-3)]);
        assert_eq!(values(&index, Scope::Span, "ok"), [TagValue::Bool(true)]);
        assert_eq!(values(&index, Scope::Event, "e"), [string("1")]);
        assert_eq!(values(&index, Scope::Link, "l"), [TagValue::Float(0.5)]);
        let names = index.store().tag_names("t", Scope::Intrinsic, None, 100).unwrap();
        assert_eq!(
            names,
            ["event:name", "instrumentation:name", "name", "rootName", "rootServiceName", "statusMessage"]
        );
    }

    #[test]
    fn the_catalog_is_told_once_an_hour() {
        let index = index(IndexLimits::default());
        let spans = |hour| vec![span_at(hour, vec![text("a", "b")])];
        assert!(pass(&index, spans(5)) > 0);
        assert_eq!(pass(&index, spans(5)), 0);
        assert!(pass(&index, spans(6)) > 0);
        assert_eq!(pass(&index, spans(5)), 0);
        let again =
            TagIndex::open(Arc::clone(index.store()), IndexLimits::default(), CatalogMetrics::default()).unwrap();
        assert_eq!(pass(&again, spans(6)), 0, "a restart knows what is in the catalog");
    }

    #[test]
    fn all_values_together_have_a_limit() {
        // The span's name and the service's are values of three intrinsics, the service's one of an attribute too.
        let index = index(IndexLimits { all_values: 7, ..IndexLimits::default() });
        for name in ["a", "b", "c", "d"] {
            pass(&index, vec![span_at(5, vec![text(name, "x")])]);
        }
        let stored = ["a", "b", "c", "d"].map(|name| values(&index, Scope::Span, name).len());
        assert_eq!(stored, [1, 1, 0, 0]);
    }

    #[test]
    fn what_is_pruned_makes_room_and_is_told_again() {
        let index = index(IndexLimits { values: 1, ..IndexLimits::default() });
        let spans = |hour, value| vec![span_at(hour, vec![text("a", value)])];
        pass(&index, spans(5, "old"));
        pass(&index, spans(9, "new"));
        assert_eq!(values(&index, Scope::Span, "a"), [TagValue::String("old".to_owned())]);
        index.prune(6).unwrap();
        assert_eq!(values(&index, Scope::Span, "a"), []);
        pass(&index, spans(9, "new"));
        assert_eq!(values(&index, Scope::Span, "a"), [TagValue::String("new".to_owned())]);
    }

    #[test]
    fn what_is_over_a_limit_is_counted_and_its_name_is_indexed_nevertheless() {
        let index = index(IndexLimits { names: 7, values: 3, ..IndexLimits::default() });
        let spans = |name: &str, value: String| vec![span_at(5, vec![text(name, &value)])];
        for value in 0..5 {
            pass(&index, spans("a", value.to_string()));
        }
        assert_eq!(values(&index, Scope::Span, "a").len(), 3);
        assert_eq!(index.metrics.over_limit.get(), 2);
        pass(&index, spans("b", "x".repeat(INDEXED_BYTES + 1)));
        assert_eq!(index.metrics.too_long.get(), 1);
        for name in ["c", "d", "e", "f", "g", "h"] {
            pass(&index, spans(name, String::new()));
        }
        assert_eq!(index.metrics.over_limit.get(), 3);
        let names = index.store().tag_names("t", Scope::Span, None, 100).unwrap();
        assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g"]);
        assert_eq!(values(&index, Scope::Span, "b"), []);
    }
}
