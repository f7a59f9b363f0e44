//! Traces on their way out of memory.

use std::collections::BTreeMap;
use std::sync::{Arc, MutexGuard, PoisonError};

use super::entry::{Life, Part};
use super::set::LiveSet;
use super::trace::Trace;

/// Traces that are being written to blocks. Until [`Cut::commit`] readers find them in the live set; a cut that is
/// dropped before puts them back, so that nothing is lost if the writing fails.
#[derive(Debug)]
pub struct Cut<'a> {
    set: &'a LiveSet,
    tenants: Vec<TenantCut>,
    committed: bool,
    _one_at_a_time: MutexGuard<'a, ()>,
}

/// The traces of one tenant in a [`Cut`].
#[derive(Clone, Debug)]
pub struct TenantCut {
    /// Whose they are.
    pub tenant: Arc<str>,
    /// By id.
    pub traces: Vec<Arc<Trace>>,
    /// When the first of their spans was received, nanoseconds since the epoch.
    pub received_first_ns: u64,
    /// When the last of their spans was received, nanoseconds since the epoch.
    pub received_last_ns: u64,
}

impl Cut<'_> {
    /// What is being cut, by tenant.
    pub fn tenants(&self) -> &[TenantCut] {
        &self.tenants
    }

    /// Traces in it.
    pub fn trace_count(&self) -> usize {
        self.tenants.iter().map(|cut| cut.traces.len()).sum()
    }

    /// Estimate of the memory that they hold.
    pub fn bytes(&self) -> usize {
        self.tenants.iter().flat_map(|cut| &cut.traces).map(|trace| trace.bytes).sum()
    }

    /// Says that the traces are in blocks that every reader finds: they leave memory.
    pub fn commit(mut self) {
        self.committed = true;
        for TenantCut { tenant, traces, .. } in &self.tenants {
            for trace in traces {
                self.set.remove_cut(tenant, &trace.id);
            }
        }
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        for TenantCut { tenant, traces, .. } in &self.tenants {
            for trace in traces {
                self.set.shard(&trace.id).restore(tenant, &trace.id);
            }
        }
    }
}

impl LiveSet {
    /// What is known of every trace that is not being cut.
    pub fn lives(&self) -> Vec<Life> {
        let mut lives = Vec::new();
        self.for_each_life(|life| lives.push(*life));
        lives
    }

    /// The lowest number in the log of a request that brought a span of a trace that is not being cut.
    pub fn first_sequence(&self) -> Option<u64> {
        let mut lowest: Option<u64> = None;
        self.for_each_life(|Life { first_sequence, .. }| {
            lowest = Some(lowest.map_or(*first_sequence, |lowest| lowest.min(*first_sequence)));
        });
        lowest
    }

    fn for_each_life(&self, mut look: impl FnMut(&Life)) {
        let _still = self.still();
        for shard in self.shards() {
            let entries = shard.tenants.values().flat_map(|traces| traces.values());
            entries.filter_map(|entry| entry.live.as_ref()).for_each(|part| look(&part.life));
        }
    }

    /// Begins to cut the traces that `leaves` says, those whose caller did not come as called from outside. Waits for the
    /// end of the cut before.
    pub fn cut(&self, mut leaves: impl FnMut(&Life) -> bool) -> Cut<'_> {
        let one_at_a_time = self.cutting.lock().unwrap_or_else(PoisonError::into_inner);
        self.unite_what(&mut leaves);
        let still = self.still();
        let mut tenants: BTreeMap<Arc<str>, TenantCut> = BTreeMap::new();
        for mut shard in self.shards() {
            for (tenant, traces) in &mut shard.tenants {
                for (id, entry) in traces {
                    let takes = |part: &mut Part| leaves(&part.life) && self.leaves_alone(tenant, id);
                    let Some(part) = entry.live.take_if(takes) else { continue };
                    let Life { first_received_ns, last_received_ns, .. } = part.life;
                    let cut = tenants.entry(Arc::clone(tenant)).or_insert_with(|| TenantCut {
                        tenant: Arc::clone(tenant),
                        traces: Vec::new(),
                        received_first_ns: first_received_ns,
                        received_last_ns: last_received_ns,
                    });
                    cut.traces.push(Arc::clone(&part.trace));
                    cut.received_first_ns = cut.received_first_ns.min(first_received_ns);
                    cut.received_last_ns = cut.received_last_ns.max(last_received_ns);
                    entry.cutting = Some(part);
                }
            }
        }
        drop(still);
        let mut tenants: Vec<_> = tenants.into_values().collect();
        for cut in &mut tenants {
            for trace in &mut cut.traces {
                if let Some(settled) = trace.settled() {
                    *trace = Arc::new(settled);
                }
            }
            cut.traces.sort_unstable_by_key(|trace| trace.id);
        }
        Cut { set: self, tenants, committed: false, _one_at_a_time: one_at_a_time }
    }
}
