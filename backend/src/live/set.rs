//! The bounded map of live traces.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::group::TraceBatch;
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
    /// Traces in memory.
    pub traces: usize,
    /// Estimate of their memory.
    pub bytes: usize,
    /// Traces that have ever been begun here.
    pub created_traces: u64,
    /// Traces that were evicted for memory.
    pub evicted_traces: u64,
}

/// Live traces of all tenants.
///
/// A trace is never changed in place once somebody reads it (copy on write), so a query works on the versions that it
/// took while more spans come in.
#[derive(Debug)]
pub struct LiveSet {
    limits: Limits,
    shards: [Shard; SHARDS],
    hasher: RandomState,
    /// Number of the latest change; orders traces by their last activity.
    activity: AtomicU64,
    metrics: LiveMetrics,
    evicting: Mutex<()>,
}

#[derive(Debug)]
struct Shard {
    state: Mutex<State>,
    /// Lowest activity in the shard, `u64::MAX` if it is empty: lets the evictor choose a shard without its lock.
    oldest: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    tenants: HashMap<Arc<str>, HashMap<TraceId, Entry>>,
    by_activity: BTreeMap<u64, (Arc<str>, TraceId)>,
}

#[derive(Debug)]
struct Entry {
    trace: Arc<Trace>,
    activity: u64,
    received_ns: u64,
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
            metrics,
            shards: std::array::from_fn(|_| Shard { state: Mutex::default(), oldest: AtomicU64::new(u64::MAX) }),
            hasher: RandomState::new(),
            activity: AtomicU64::new(0),
            evicting: Mutex::new(()),
        }
    }

    /// Adds spans to their traces, then evicts the traces that were quiet for longest until the bound holds again.
    ///
    /// `received_ns` is when the spans came, nanoseconds since the epoch.
    pub fn insert(&self, tenant: &str, batches: Vec<TraceBatch>, received_ns: u64) {
        for batch in batches {
            let shard = self.shard(&batch.id);
            let mut state = shard.lock();
            let activity = self.activity.fetch_add(1, Ordering::Relaxed);
            let (created, bytes) = state.append(tenant, batch, activity, received_ns);
            shard.oldest.store(state.oldest(), Ordering::Relaxed);
            self.metrics.bytes.inc_by(bytes as i64);
            if created {
                self.metrics.traces.inc();
                self.metrics.created.inc();
            }
        }
        self.evict();
    }

    /// Drops the traces of which nothing has come since `before_ns`, nanoseconds since the epoch.
    pub fn expire(&self, before_ns: u64) {
        for shard in &self.shards {
            let mut state = shard.lock();
            while let Some(expired) = state.pop_oldest_if(|entry| entry.received_ns < before_ns) {
                self.metrics.bytes.dec_by(expired.bytes as i64);
                self.metrics.traces.dec();
            }
            shard.oldest.store(state.oldest(), Ordering::Relaxed);
        }
    }

    /// Bytes that the trace may still grow by.
    pub fn room(&self, tenant: &str, id: &TraceId) -> usize {
        let state = self.shard(id).lock();
        let held = state.tenants.get(tenant).and_then(|traces| traces.get(id)).map_or(0, |entry| entry.trace.bytes);
        self.limits.trace_bytes.saturating_sub(held)
    }

    /// The present version of a trace.
    pub fn trace(&self, tenant: &str, id: &TraceId) -> Option<Arc<Trace>> {
        let state = self.shard(id).lock();
        Some(Arc::clone(&state.tenants.get(tenant)?.get(id)?.trace))
    }

    /// The present versions of all traces of a tenant, those that started last first, then by id.
    pub fn snapshot(&self, tenant: &str) -> Vec<Arc<Trace>> {
        let mut traces = Vec::new();
        for shard in &self.shards {
            let state = shard.lock();
            let held = state.tenants.get(tenant).into_iter().flat_map(HashMap::values);
            traces.extend(held.map(|entry| Arc::clone(&entry.trace)));
        }
        traces.sort_unstable_by(|a, b| b.start_ns.cmp(&a.start_ns).then_with(|| a.id.cmp(&b.id)));
        traces
    }

    /// Tenants that have live traces, sorted.
    pub fn tenants(&self) -> Vec<Arc<str>> {
        let mut tenants = BTreeSet::new();
        for shard in &self.shards {
            tenants.extend(shard.lock().tenants.keys().cloned());
        }
        tenants.into_iter().collect()
    }

    /// Sizes and counts.
    pub fn stats(&self) -> Stats {
        Stats {
            traces: self.metrics.traces.get() as usize,
            bytes: self.bytes(),
            created_traces: self.metrics.created.get(),
            evicted_traces: self.metrics.evicted.get(),
        }
    }

    /// The bounds.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    fn bytes(&self) -> usize {
        usize::try_from(self.metrics.bytes.get()).unwrap_or_default()
    }

    fn shard(&self, id: &TraceId) -> &Shard {
        let hash = self.hasher.hash_one(id) as usize;
        let [first, ..] = &self.shards;
        self.shards.get(hash % SHARDS).unwrap_or(first)
    }

    fn evict(&self) {
        if self.bytes() <= self.limits.total_bytes {
            return;
        }
        let _one_at_a_time = self.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        while self.bytes() > self.limits.total_bytes {
            let Some(shard) = self.shards.iter().min_by_key(|shard| shard.oldest.load(Ordering::Relaxed)) else {
                return;
            };
            let mut state = shard.lock();
            let Some(evicted) = state.pop_oldest_if(|_| true) else { return };
            shard.oldest.store(state.oldest(), Ordering::Relaxed);
            drop(state);
            self.metrics.bytes.dec_by(evicted.bytes as i64);
            self.metrics.traces.dec();
            self.metrics.evicted.inc();
        }
    }
}

impl Shard {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic between two statements of `State` could only leave a trace out of the eviction order.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns whether the trace is new, and the bytes that it grew by.
    fn append(&mut self, tenant: &str, batch: TraceBatch, activity: u64, received_ns: u64) -> (bool, usize) {
        let TraceBatch { id, batch, bytes } = batch;
        let tenant = match self.tenants.get_key_value(tenant) {
            Some((tenant, _)) => Arc::clone(tenant),
            None => tenant.into(),
        };
        let traces = self.tenants.entry(Arc::clone(&tenant)).or_default();
        let mut created = false;
        let entry = traces.entry(id).or_insert_with(|| {
            created = true;
            Entry { trace: Arc::new(Trace::empty(id)), activity, received_ns }
        });
        let before = if created { 0 } else { entry.trace.bytes };
        Arc::make_mut(&mut entry.trace).append(batch, bytes);
        self.by_activity.remove(&entry.activity);
        entry.activity = activity;
        entry.received_ns = entry.received_ns.max(received_ns);
        self.by_activity.insert(activity, (tenant, id));
        (created, entry.trace.bytes - before)
    }

    fn pop_oldest_if(&mut self, condition: impl FnOnce(&Entry) -> bool) -> Option<Arc<Trace>> {
        let oldest = self.by_activity.first_entry()?;
        let (tenant, id) = oldest.get();
        let traces = self.tenants.get_mut(tenant)?;
        if !condition(traces.get(id)?) {
            return None;
        }
        let (tenant, id) = oldest.remove();
        let entry = traces.remove(&id)?;
        if traces.is_empty() {
            self.tenants.remove(&tenant);
        }
        Some(entry.trace)
    }

    fn oldest(&self) -> u64 {
        self.by_activity.first_key_value().map_or(u64::MAX, |(activity, _)| *activity)
    }
}
