//! Which tags of a request are new to the catalog: the part of the tag index that every request passes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;

use super::{Catalog, CatalogError, Hours, Scope, Seen, TagValue};
use crate::live::{Batch, is_root};
use crate::query::Value;
use crate::telemetry::CatalogMetrics;

/// Longest name and longest value that are indexed, bytes.
const INDEXED_BYTES: usize = 1024;

const ALL: IndexLimits = IndexLimits { names: u32::MAX, values: u32::MAX, all_values: usize::MAX };

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

/// By hashes of 64 bits, keyed anew at each start: two of a million entries share one in one of 37 million starts, and
/// then one value is missing in a completion list.
#[derive(Default)]
struct Known {
    scopes: HashMap<u64, u32, Passed>,
    names: HashMap<u64, Name, Passed>,
    values: HashMap<u64, Hours, Passed>,
}

struct Name {
    hours: Hours,
    values: u32,
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

    /// The tags of these batches that the catalog does not know yet, or not for this time; hand them to
    /// [`Self::record`].
    pub fn observe<'a>(&self, tenant: &str, batches: impl IntoIterator<Item = &'a Batch>) -> Vec<Seen> {
        let mut fresh = Vec::new();
        let mut known = self.known();
        let mut previous = None;
        for batch in batches {
            for_each_tag(batch, previous, &mut |tag| {
                let noted = known.note(&self.hasher, self.limits, tenant, &tag);
                match noted.value {
                    ValueNoted::Indexed => {}
                    ValueNoted::OverLimit => _ = self.metrics.over_limit.inc(),
                    ValueNoted::TooLong => _ = self.metrics.too_long.inc(),
                }
                if noted.fresh {
                    fresh.push(tag.to_seen(matches!(noted.value, ValueNoted::Indexed)));
                }
            });
            previous = Some(batch);
        }
        fresh
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
        let mut known = self.known();
        for value in values {
            borrow(value, &mut |value| {
                let tag = Tag { scope, name, value, hours };
                let noted = known.note(&self.hasher, self.limits, tenant, &tag);
                match noted.value {
                    ValueNoted::Indexed => {}
                    ValueNoted::OverLimit => {
                        self.metrics.over_limit.inc();
                        takes_more = false;
                    }
                    ValueNoted::TooLong => _ = self.metrics.too_long.inc(),
                }
                if noted.fresh {
                    fresh.push(tag.to_seen(matches!(noted.value, ValueNoted::Indexed)));
                }
            });
        }
        takes_more
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

/// What became of a tag.
struct Noted {
    /// The catalog must be told.
    fresh: bool,
    value: ValueNoted,
}

enum ValueNoted {
    Indexed,
    OverLimit,
    TooLong,
}

impl Known {
    fn load(store: &dyn Catalog, hasher: &RandomState) -> Result<Self, CatalogError> {
        let mut known = Self::default();
        store.for_each(&mut |tenant, seen| {
            known.note(hasher, ALL, tenant, &Tag::of(&seen));
        })?;
        Ok(known)
    }

    fn note(&mut self, hasher: &RandomState, limits: IndexLimits, tenant: &str, tag: &Tag<'_>) -> Noted {
        if tag.name.len() > INDEXED_BYTES {
            return Noted { fresh: false, value: ValueNoted::TooLong };
        }
        let too_long = matches!(tag.value, Some(Borrowed::String(text)) if text.len() > INDEXED_BYTES);
        let value = tag.value.filter(|_| !too_long);
        let value_key = value.map(|value| hasher.hash_one((tenant, tag.scope, tag.name, value)));
        // Almost every tag ends here. Hours of a value are hours of its name too.
        if let Some(hours) = value_key.and_then(|key| self.values.get(&key))
            && hours.contains(tag.hours)
        {
            return Noted { fresh: false, value: ValueNoted::Indexed };
        }
        let mut fresh = false;
        let name = match self.names.entry(hasher.hash_one((tenant, tag.scope, tag.name))) {
            Entry::Occupied(name) => {
                let name = name.into_mut();
                fresh |= widen(&mut name.hours, tag.hours);
                name
            }
            Entry::Vacant(vacant) => {
                let names = self.scopes.entry(hasher.hash_one((tenant, tag.scope))).or_default();
                if *names >= limits.names {
                    return Noted { fresh: false, value: ValueNoted::OverLimit };
                }
                *names += 1;
                fresh = true;
                vacant.insert(Name { hours: tag.hours, values: 0 })
            }
        };
        if too_long {
            return Noted { fresh, value: ValueNoted::TooLong };
        }
        let full = self.values.len() >= limits.all_values || name.values >= limits.values;
        let Some(value_key) = value_key else { return Noted { fresh, value: ValueNoted::Indexed } };
        match self.values.entry(value_key) {
            Entry::Occupied(mut hours) => fresh |= widen(hours.get_mut(), tag.hours),
            Entry::Vacant(_) if full => {
                return Noted { fresh, value: ValueNoted::OverLimit };
            }
            Entry::Vacant(vacant) => {
                vacant.insert(tag.hours);
                name.values += 1;
                fresh = true;
            }
        }
        Noted { fresh, value: ValueNoted::Indexed }
    }
}

/// True if `hours` has changed.
fn widen(hours: &mut Hours, by: Hours) -> bool {
    if hours.contains(by) {
        return false;
    }
    *hours = hours.union(by);
    true
}

/// A [`Seen`] that owns nothing.
#[derive(Clone, Copy)]
struct Tag<'a> {
    scope: Scope,
    name: &'a str,
    value: Option<Borrowed<'a>>,
    hours: Hours,
}

#[derive(Clone, Copy, Hash)]
enum Borrowed<'a> {
    String(&'a str),
    Int(i64),
    /// By its bits.
    Float(u64),
    Bool(bool),
}

impl<'a> Tag<'a> {
    fn of(seen: &'a Seen) -> Self {
        let Seen { scope, name, value, hours } = seen;
        let value = value.as_ref().map(|value| match value {
            TagValue::String(text) => Borrowed::String(text),
            TagValue::Int(number) => Borrowed::Int(*number),
            TagValue::Float(number) => Borrowed::Float(number.to_bits()),
            TagValue::Bool(truth) => Borrowed::Bool(*truth),
        });
        Self { scope: *scope, name, value, hours: *hours }
    }

    fn to_seen(self, with_value: bool) -> Seen {
        let value = self.value.filter(|_| with_value).map(|value| match value {
            Borrowed::String(text) => TagValue::String(text.to_owned()),
            Borrowed::Int(number) => TagValue::Int(number),
            Borrowed::Float(bits) => TagValue::Float(f64::from_bits(bits)),
            Borrowed::Bool(truth) => TagValue::Bool(truth),
        });
        Seen { scope: self.scope, name: self.name.to_owned(), value, hours: self.hours }
    }
}

/// Every tag of a batch; what it shares with `previous` is left out.
fn for_each_tag(batch: &Batch, previous: Option<&Batch>, note: &mut impl FnMut(Tag<'_>)) {
    let span_hours = |span: &Span| Hours::of_nanos(span.start_time_unix_nano);
    let Some(hours) = batch.spans.iter().map(span_hours).reduce(Hours::union) else { return };
    if !previous.is_some_and(|previous| Arc::ptr_eq(&previous.resource, &batch.resource)) {
        attributes(Scope::Resource, &batch.resource.attributes, hours, note);
    }
    if !previous.is_some_and(|previous| Arc::ptr_eq(&previous.scope, &batch.scope)) {
        attributes(Scope::Instrumentation, &batch.scope.attributes, hours, note);
        intrinsic("instrumentation:name", &batch.scope.name, hours, note);
        intrinsic("instrumentation:version", &batch.scope.version, hours, note);
    }
    for span in &batch.spans {
        let hours = span_hours(span);
        attributes(Scope::Span, &span.attributes, hours, note);
        intrinsic("name", &span.name, hours, note);
        if let Some(status) = &span.status {
            intrinsic("statusMessage", &status.message, hours, note);
        }
        if is_root(span) {
            intrinsic("rootName", &span.name, hours, note);
            intrinsic("rootServiceName", batch.service_name().unwrap_or_default(), hours, note);
        }
        for event in &span.events {
            attributes(Scope::Event, &event.attributes, hours, note);
            intrinsic("event:name", &event.name, hours, note);
        }
        for link in &span.links {
            attributes(Scope::Link, &link.attributes, hours, note);
        }
    }
}

fn intrinsic(name: &'static str, value: &str, hours: Hours, note: &mut impl FnMut(Tag<'_>)) {
    if !value.is_empty() {
        note(Tag { scope: Scope::Intrinsic, name, value: Some(Borrowed::String(value)), hours });
    }
}

fn attributes(scope: Scope, attributes: &[KeyValue], hours: Hours, note: &mut impl FnMut(Tag<'_>)) {
    for KeyValue { key: name, value, .. } in attributes {
        match value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Any::ArrayValue(array)) if !array.values.is_empty() => {
                for element in &array.values {
                    note(Tag { scope, name, value: scalar(element), hours });
                }
            }
            _ => note(Tag { scope, name, value: value.as_ref().and_then(scalar), hours }),
        }
    }
}

/// The value, if it is of a type that can be compared in queries.
fn scalar(value: &AnyValue) -> Option<Borrowed<'_>> {
    match value.value.as_ref()? {
        Any::StringValue(text) => Some(Borrowed::String(text)),
        Any::BoolValue(truth) => Some(Borrowed::Bool(*truth)),
        Any::IntValue(number) => Some(Borrowed::Int(*number)),
        Any::DoubleValue(number) => Some(Borrowed::Float(number.to_bits())),
        Any::ArrayValue(_) | Any::KvlistValue(_) | Any::BytesValue(_) | Any::StringValueStrindex(_) => None,
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

/// For keys that are hashes already.
#[derive(Default)]
struct PassThrough(u64);

type Passed = BuildHasherDefault<PassThrough>;

impl Hasher for PassThrough {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::MemoryCatalog;
    use crate::live::group;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::any_value::Value;
    use opentelemetry_proto::tonic::common::v1::{ArrayValue, InstrumentationScope};
    use opentelemetry_proto::tonic::resource::v1::Resource;
    use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Status};

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
        let groups = group(request(spans));
        let fresh = index.observe("t", groups.iter().map(|group| group.batch.as_ref()));
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
