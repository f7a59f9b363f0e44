//! The bounded map of live traces.

use std::collections::{BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use foldhash::quality::RandomState;

use super::bell::Bell;
use super::callers::Callers;
use super::entry::{Part, State};
use super::stitch::Calls;
use super::trace::{Trace, TraceId};
use crate::telemetry::LiveMetrics;

/// Independent parts of the map, so that requests do not wait for each other.
const SHARDS: usize = 16;

/// Bounds of a [`LiveSet`], in bytes of estimated memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Limits {
    /// Of all traces together.
    pub total_bytes: usize,
    /// Of one trace.
    pub trace_bytes: usize,
}

impl Default for Limits {
    /// 256 MiB, and 64 MiB a trace.
    fn default() -> Self {
        Self { total_bytes: 256 << 20, trace_bytes: 64 << 20 }
    }
}

/// What a [`LiveSet`] holds and what it has done.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Stats {
    /// Traces in memory, those included that are being cut.
    pub traces: usize,
    /// Estimate of their memory.
    pub bytes: usize,
    /// Traces that have ever been begun here.
    pub created_traces: u64,
}

/// Live traces of all tenants.
///
/// A trace is never changed in place once somebody reads it (copy on write), so a query works on the versions that it
/// took while more spans come in. Nothing leaves but by a [`Cut`](super::Cut) that is committed.
#[derive(Debug)]
pub struct LiveSet {
    limits: Limits,
    shards: [Mutex<State>; SHARDS],
    hasher: RandomState,
    /// Which traces hang together. Never locked while waiting for one of the others.
    pub(super) callers: Mutex<Callers>,
    /// Held alone while spans move from one trace to another, and shared by who must not see them half way.
    pub(super) moving: RwLock<()>,
    /// Bytes that are promised to requests on their way.
    reserved: AtomicUsize,
    /// Bytes of the largest trace that ever was here.
    largest: AtomicUsize,
    metrics: LiveMetrics,
    bell: Bell,
    /// Held by the cut that is under way.
    pub(super) cutting: Mutex<()>,
}

/// Memory that is kept free for a request, until this is dropped.
#[derive(Debug)]
pub struct Room<'a> {
    set: &'a LiveSet,
    bytes: usize,
}

impl LiveSet {
    /// An empty set.
    pub fn new(limits: Limits) -> Self {
        Self::with_metrics(limits, LiveMetrics::default())
    }

    /// An empty set that keeps its counts in `metrics`.
    pub fn with_metrics(limits: Limits, metrics: LiveMetrics) -> Self {
        Self {
            limits,
            callers: Mutex::new(Callers::new(metrics.clone())),
            moving: RwLock::new(()),
            metrics,
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::default(),
            reserved: AtomicUsize::new(0),
            largest: AtomicUsize::new(0),
            bell: Bell::default(),
            cutting: Mutex::new(()),
        }
    }

    /// Keeps room for spans that are to be inserted; `None` if the bound forbids it until something has left. One
    /// request always has room when there is nothing else.
    pub fn reserve(&self, traces: &[Trace]) -> Option<Room<'_>> {
        let bytes = traces.iter().map(|trace| trace.bytes).sum();
        let held = self.bytes() + self.reserved.fetch_add(bytes, Ordering::Relaxed);
        let room = Room { set: self, bytes };
        (held == 0 || held.saturating_add(bytes) <= self.limits.total_bytes).then_some(room)
    }

    /// Whether nothing more can be taken until something has left.
    pub fn is_full(&self) -> bool {
        self.bytes() >= self.limits.total_bytes
    }

    /// Adds spans to their traces, those with a provisional trace id to that of their caller if it is known; see
    /// [`super::stitch`].
    ///
    /// `received_ns` is when the spans came, nanoseconds since the epoch; `sequence` is the number of their request in
    /// the log.
    pub fn insert(&self, tenant: &str, traces: Vec<Trace>, received_ns: u64, sequence: u64) {
        let calls = Calls::of(&traces);
        self.insert_with(tenant, (traces, calls), received_ns, sequence);
    }

    /// The same; `calls` are those of these traces.
    pub fn insert_with(&self, tenant: &str, (traces, calls): (Vec<Trace>, Calls), received_ns: u64, sequence: u64) {
        if calls.may_link(&traces) {
            return self.insert_linked(tenant, (traces, calls), received_ns, sequence);
        }
        let parts = traces.into_iter().map(|spans| Part::new(spans, received_ns, sequence));
        self.append(tenant, parts);
    }

    /// Adds parts of traces. What they come to is counted once: all threads share the counts.
    pub(super) fn append(&self, tenant: &str, parts: impl IntoIterator<Item = Part<Trace>>) {
        let (mut bytes, mut created, mut largest) = (0, 0, 0);
        for part in parts {
            let (before, after) = self.shard(&part.trace.id).append(tenant, part);
            bytes += after - before;
            created += i64::from(before == 0);
            largest = largest.max(after);
        }
        if largest > self.largest.load(Ordering::Relaxed) {
            self.largest.fetch_max(largest, Ordering::Relaxed);
        }
        let held = usize::try_from(self.metrics.bytes.inc_by(bytes as i64)).unwrap_or_default();
        let half = self.limits.total_bytes / 2;
        if held <= half && held.saturating_add(bytes) > half {
            self.bell.ring();
        }
        self.metrics.traces.inc_by(created);
        self.metrics.created.inc_by(created as u64);
    }

    /// Takes out what is live of a trace.
    pub(super) fn take(&self, tenant: &str, id: &TraceId) -> Option<Part> {
        let (part, gone) = self.shard(id).take_live(tenant, id)?;
        self.removed(&part, gone);
        Some(part)
    }

    /// Whether the trace may still grow by so many bytes.
    pub fn takes(&self, tenant: &str, id: &TraceId, bytes: usize) -> bool {
        // As long as no trace is near the limit it does not matter how large this one is.
        let largest = self.largest.load(Ordering::Relaxed);
        largest.saturating_add(bytes) <= self.limits.trace_bytes || bytes <= self.room(tenant, id)
    }

    /// Bytes that the trace may still grow by.
    fn room(&self, tenant: &str, id: &TraceId) -> usize {
        let id = self.home(tenant, id);
        let held = self.shard(&id).entry(tenant, &id).map_or(0, super::entry::Entry::bytes);
        self.limits.trace_bytes.saturating_sub(held)
    }

    /// The present version of a trace, or of the one in which its spans are now.
    pub fn trace(&self, tenant: &str, id: &TraceId) -> Option<Arc<Trace>> {
        let _still = self.still();
        let id = self.home(tenant, id);
        self.shard(&id).entry(tenant, &id)?.trace()
    }

    /// The present versions of all traces of a tenant, those that started last first, then by id.
    pub fn snapshot(&self, tenant: &str) -> Vec<Arc<Trace>> {
        let mut traces = Vec::new();
        let still = self.still();
        for shard in self.shards() {
            let held = shard.tenants.get(tenant).into_iter().flat_map(HashMap::values);
            traces.extend(held.filter_map(super::entry::Entry::trace));
        }
        drop(still);
        traces.sort_unstable_by(|a, b| b.start_ns.cmp(&a.start_ns).then_with(|| a.id.cmp(&b.id)));
        traces
    }

    /// Tenants that have live traces, sorted.
    pub fn tenants(&self) -> Vec<Arc<str>> {
        let mut tenants = BTreeSet::new();
        let _still = self.still();
        for shard in self.shards() {
            tenants.extend(shard.tenants.keys().cloned());
        }
        tenants.into_iter().collect()
    }

    /// Rings when the set becomes half full.
    pub fn bell(&self) -> &Bell {
        &self.bell
    }

    /// Sizes and counts.
    pub fn stats(&self) -> Stats {
        Stats {
            traces: usize::try_from(self.metrics.traces.get()).unwrap_or_default(),
            bytes: self.bytes(),
            created_traces: self.metrics.created.get(),
        }
    }

    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    fn bytes(&self) -> usize {
        usize::try_from(self.metrics.bytes.get()).unwrap_or_default()
    }

    pub(super) fn shard(&self, id: &TraceId) -> MutexGuard<'_, State> {
        let hash = self.hasher.hash_one(id) as usize;
        let [first, ..] = &self.shards;
        lock(self.shards.get(hash % SHARDS).unwrap_or(first))
    }

    /// One after the other.
    pub(super) fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, State>> {
        self.shards.iter().map(lock)
    }

    /// Takes a trace out that was cut; late spans of it stay.
    pub(super) fn remove_cut(&self, tenant: &str, id: &TraceId) {
        if let Some((part, gone)) = self.shard(id).take_cutting(tenant, id) {
            self.removed(&part, gone);
        }
    }

    /// As long as this is held no spans move from one trace to another.
    pub(super) fn still(&self) -> RwLockReadGuard<'_, ()> {
        self.moving.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn removed(&self, part: &Part, gone: bool) {
        self.metrics.bytes.dec_by(part.life.bytes as i64);
        if gone {
            self.metrics.traces.dec();
        }
    }
}

fn lock(shard: &Mutex<State>) -> MutexGuard<'_, State> {
    // No method of `State` panics between two changes that belong together.
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.set.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
