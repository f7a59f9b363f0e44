//! Which tags of a request are new to the catalog: the part of the tag index that every request passes.

#[cfg(test)]
mod tests;

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

    /// The tags of these traces that the catalog does not know yet, or not for this time, and that it knows from now on; hand
    /// them to [`Self::record`].
    pub fn observe<'a>(&self, tenant: &str, traces: impl IntoIterator<Item = &'a Trace>) -> Vec<Seen> {
        let mut observer = self.observer(tenant, true);
        observer.traces(traces);
        observer.finish()
    }

    /// The first half of [`Self::observe`], which changes nothing. It goes through all that there is, best while that is in the
    /// processor's caches.
    pub fn unknown<'a>(&self, tenant: &str, traces: impl IntoIterator<Item = &'a Trace>) -> Unknown {
        let mut observer = self.observer(tenant, false);
        observer.traces(traces);
        // If there are too many, all are counted when they are looked at again.
        Unknown((!observer.is_full()).then(|| observer.finish()))
    }

    /// The second half of [`Self::observe`] of the same traces, which must be in the log.
    pub fn add<'a>(
        &self,
        tenant: &str,
        traces: impl IntoIterator<Item = &'a Trace>,
        Unknown(unknown): Unknown,
    ) -> Vec<Seen> {
        let Some(mut unknown) = unknown else { return self.observe(tenant, traces) };
        if !unknown.is_empty() {
            let mut observer = self.observer(tenant, true);
            // Others may have brought them meanwhile.
            unknown.retain_mut(|seen| {
                let (noted, is_new) = observer.add(&Tag::of(seen));
                if !noted.is_indexed() {
                    seen.value = None;
                }
                is_new
            });
            observer.finish();
        }
        unknown
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
        let mut observer = self.observer(tenant, true);
        for value in values {
            borrow(value, &mut |value| {
                let noted = observer.look(Tag { scope, name, value, hours });
                takes_more &= !matches!(noted, Some(ValueNoted::OverLimit));
            });
        }
        fresh.append(&mut observer.finish());
        takes_more
    }

    fn observer(&self, tenant: &str, adds: bool) -> Observer<'_> {
        let owner = self.hasher.hash_one(tenant);
        Observer { index: self, owner, known: self.known(), adds, new: Vec::new(), over_limit: 0, too_long: 0 }
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

/// Tags of a request that are not known, some of them more than once; none if there are too many to keep them.
#[derive(Debug, PartialEq)]
pub struct Unknown(Option<Vec<Seen>>);

/// Most tags of an [`Unknown`]: after a start everything is new, and a request can be large.
const MOST_UNKNOWN: usize = 1_024;

/// Compares tags with what is known; those that are not come out.
struct Observer<'i> {
    index: &'i TagIndex,
    /// Hash of the tenant.
    owner: u64,
    known: MutexGuard<'i, Known>,
    /// Whether what is new is known from then on; if not it is looked at until too much is new.
    adds: bool,
    new: Vec<Seen>,
    over_limit: u64,
    too_long: u64,
}

impl Observer<'_> {
    /// Goes through all tags, until too many are new.
    fn traces<'a>(&mut self, traces: impl IntoIterator<Item = &'a Trace>) {
        let mut before: Option<(&Batch, Hours)> = None;
        for TraceSpan { batch, bytes } in traces.into_iter().flat_map(|trace| &trace.spans) {
            let span = SpanRef::parse(bytes);
            let hours = Hours::of_nanos(span.start_time_unix_nano);
            // Spans of one request share these.
            if before.is_none_or(|(before, of)| !std::ptr::eq(before, &raw const **batch) || of != hours) {
                self.batch(batch, hours);
                before = Some((batch, hours));
            }
            self.span(batch, &span, hours);
            if self.is_full() {
                return;
            }
        }
    }

    fn is_full(&self) -> bool {
        !self.adds && self.new.len() > MOST_UNKNOWN
    }

    /// What was new; what is not indexed is counted at once, as all threads share the counts.
    fn finish(self) -> Vec<Seen> {
        let CatalogMetrics { over_limit, too_long, .. } = &self.index.metrics;
        over_limit.inc_by(self.over_limit);
        too_long.inc_by(self.too_long);
        self.new
    }

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
        self.unless_recent(hash, |observer| {
            let value = Some(Borrowed::String(Text::of_checked(value).as_str()));
            observer.has(Tag { scope: Scope::Intrinsic, name, value, hours })
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
            let mut look = |value| all_known &= observer.has(Tag { scope, name, value, hours });
            match value {
                Some(ValueRef::Array(array)) => {
                    let mut is_empty = true;
                    for element in array.elements() {
                        is_empty = false;
                        look(scalar(element));
                    }
                    if is_empty {
                        look(None);
                    }
                }
                value => look(value.and_then(scalar)),
            }
            all_known
        });
    }

    /// Looks at a tag unless it is one of those that were known last; `look` says whether it is known.
    #[inline]
    fn unless_recent(&mut self, hash: u64, look: impl FnOnce(&mut Self) -> bool) {
        if self.known.recent.place(hash).is_some_and(|place| *place == hash) {
            return;
        }
        if look(self)
            && let Some(place) = self.known.recent.place(hash)
        {
            *place = hash;
        }
    }

    /// Whether the index has the tag, now.
    fn has(&mut self, tag: Tag<'_>) -> bool {
        self.look(tag).is_some_and(ValueNoted::is_indexed)
    }

    /// What became of a tag; nothing yet if it is new and is not added.
    fn look(&mut self, tag: Tag<'_>) -> Option<ValueNoted> {
        let TagIndex { hasher, limits, .. } = self.index;
        match self.known.look(hasher, *limits, self.owner, &tag) {
            Some(noted) => {
                self.count(noted);
                Some(noted)
            }
            None if self.adds => {
                let (noted, is_new) = self.add(&tag);
                if is_new {
                    self.new.push(tag.to_seen(noted.is_indexed()));
                }
                Some(noted)
            }
            None => {
                if !self.is_full() {
                    self.new.push(tag.to_seen(true));
                }
                None
            }
        }
    }

    /// What becomes of a tag that was new, and whether it still is.
    fn add(&mut self, tag: &Tag<'_>) -> (ValueNoted, bool) {
        let TagIndex { hasher, limits, .. } = self.index;
        let (noted, is_new) = self.known.add(hasher, *limits, self.owner, tag);
        self.count(noted);
        (noted, is_new)
    }

    fn count(&mut self, noted: ValueNoted) {
        match noted {
            ValueNoted::Indexed => {}
            ValueNoted::OverLimit => self.over_limit += 1,
            ValueNoted::TooLong => self.too_long += 1,
        }
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
