//! Metrics that are made of spans: span metrics and service graphs, called and counted as Tempo's metrics-generator does.
//!
//! Spans are counted when they are in the log, before they are acknowledged: that takes less than half a microsecond for
//! each, and so nothing has to wait in between and nothing can be lost there. What was counted is written to disk at every
//! collection, with the numbers of the requests that are in it; after a crash the log has the others.

mod attributes;
mod check;
mod collected;
mod drain;
mod edges;
mod export;
mod expose;
mod family;
mod filter;
mod histogram;
mod host_info;
mod http;
mod keep;
mod key;
mod names;
mod parts;
mod plan;
mod room;
mod service_graphs;
mod sketch;
mod span;
mod span_metrics;
mod state;
mod tell;
mod tenant;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_across_nodes;
#[cfg(test)]
mod tests_collection;
#[cfg(test)]
mod tests_filters;
#[cfg(test)]
mod tests_limits;
#[cfg(test)]
mod tests_tenants;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use foldhash::quality::RandomState;

use crate::config::{GeneratorConfig, TenantGenerator};
use crate::live::Trace;
use crate::telemetry::{GeneratorMetrics, TenantLabels};
use collected::{Applied, TenantSnapshot};
use plan::Plans;
use tenant::{Collection, Tenant, Whose};

pub use check::{SettingError, check, check_tenant, check_tenants};
pub use collected::Collected;
pub use drain::check_names;
pub use export::{ExportError, HeaderError, Queue, RelabelError, Sender, TenantHeaders, decode_queued};
pub use filter::FilterError;
pub use http::{Latest, router};
pub use keep::{Keeper, KeeperConfig, Saved};
pub use state::{StateError, check_state};

/// Counts spans of all tenants.
///
/// One lock is enough for all: a span is counted in a tenth of the time that it takes to take it in, so a dozen cores that do
/// nothing else would have to wait for each other.
#[derive(Debug)]
pub struct Generator {
    counted: Mutex<Counted>,
    headers: TenantHeaders,
    metrics: GeneratorMetrics,
}

#[derive(Debug)]
struct Counted {
    plans: Plans,
    tenants: HashMap<Arc<str>, Tenant, RandomState>,
    applied: Applied,
    /// When it was last collected, milliseconds since the epoch.
    collected_ms: u64,
}

impl Generator {
    /// Counts from zero on, which is at `now_ms`; `instance` is the name of this host.
    pub fn new(
        config: &GeneratorConfig,
        instance: &str,
        metrics: GeneratorMetrics,
        now_ms: u64,
    ) -> Result<Self, FilterError> {
        let plans = Plans::new(config, instance)?;
        let (tenants, applied) = (HashMap::default(), Applied::default());
        let counted = Counted { plans, tenants, applied, collected_ms: now_ms };
        let headers = TenantHeaders::default();
        headers.set(&config.tenants);
        Ok(Self { counted: Mutex::new(counted), headers, metrics })
    }

    /// What tenants' series are sent with, as it is at any time.
    pub fn headers(&self) -> TenantHeaders {
        self.headers.clone()
    }

    /// Takes the settings that are different for some tenants in place of those of before. Series that are called or counted
    /// otherwise from now on end with the next collection, others go on. Fails, and changes nothing, if a setting
    /// cannot be used.
    pub fn set_tenants(&self, settings: &BTreeMap<String, TenantGenerator>) -> Result<(), FilterError> {
        let mut counted = self.counted();
        let before: Vec<_> =
            counted.plans.tenants().filter(|tenant| !settings.contains_key(*tenant)).cloned().collect();
        let changes = settings.iter().map(|(tenant, own)| (tenant.as_str(), Some(own)));
        counted.change(changes.chain(before.iter().map(|tenant| (tenant.as_str(), None))), &self.metrics)?;
        self.headers.set(settings);
        Ok(())
    }

    /// Counts the spans of a request, once. `sequence` is its number in the log, `received_ns` when it came, nanoseconds
    /// since the epoch.
    pub fn count(&self, tenant: &str, traces: &[Trace], received_ns: u64, sequence: u64) {
        let mut counted = self.counted();
        let Counted { plans, tenants, applied, collected_ms } = &mut *counted;
        if !applied.add(sequence) {
            return;
        }
        let tenant = match tenants.get_mut(tenant) {
            Some(tenant) => tenant,
            None => {
                tenants.entry(tenant.into()).or_insert_with(|| Tenant::new(Arc::clone(plans.of(tenant)), *collected_ms))
            }
        };
        tenant.count(traces, received_ns / 1_000_000);
    }

    /// What was counted up to now, milliseconds since the epoch, with samples of all tenants that want them.
    pub fn collect(&self, now_ms: u64) -> Collected {
        self.collect_of(Whose::All, now_ms)
    }

    /// The same with samples of some.
    fn collect_of(&self, whose: Whose, now_ms: u64) -> Collected {
        let mut counted = self.counted();
        // No two samples of a series have the same time, whatever the clock does.
        let time_ms = now_ms.max(counted.collected_ms + 2);
        counted.collected_ms = time_ms;
        let Counted { plans, tenants, applied, .. } = &mut *counted;
        let oldest_ms = now_ms.saturating_sub(plans.stale_ms);
        let applied = applied.clone();
        let tenants = tenants.iter_mut().map(|(name, tenant)| {
            let turn = tenant.turn(whose, now_ms);
            let Collection { previous_ms, families } = tenant.collect(turn, (time_ms, now_ms), oldest_ms);
            let graphs = tenant.service_graphs.as_ref();
            let edges = graphs.iter().flat_map(|graphs| graphs.edges.iter());
            let edges = edges.map(|(until_ms, key, edge)| (until_ms, *key, edge.clone())).collect();
            tell::tell(&self.metrics, name, tenant, now_ms);
            let external_labels = plans.external_labels(name);
            let (tenant, trace_id_label) = (Arc::clone(name), tenant.trace_id_label());
            Arc::new(TenantSnapshot { tenant, turn, previous_ms, trace_id_label, external_labels, families, edges })
        });
        let tenants = tenants.collect();
        self.metrics.collections.inc();
        Collected { time_ms, applied, tenants }
    }

    /// How long it is until the next tenant's time; none if there is no tenant with samples.
    fn next_collection(&self, now_ms: u64) -> Option<Duration> {
        let counted = self.counted();
        let next_ms = counted.tenants.values().filter_map(Tenant::next_ms).min()?;
        Some(Duration::from_millis(next_ms.saturating_sub(now_ms)))
    }

    /// Every request with a lower number is counted.
    pub fn counted_below(&self) -> u64 {
        self.counted().applied.below
    }

    /// No request with this number or a higher one is counted.
    pub fn counted_to(&self) -> u64 {
        let counted = self.counted();
        counted.applied.also.last().map_or(counted.applied.below, |last| last + 1)
    }

    /// Requests with lower numbers are not counted any more.
    pub fn count_from(&self, sequence: u64) {
        let mut counted = self.counted();
        counted.applied.below = counted.applied.below.max(sequence);
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        // Numbers that were not all added when a thread panicked are still numbers.
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    fn change<'a>(
        &mut self,
        changes: impl Iterator<Item = (&'a str, Option<&'a TenantGenerator>)> + Clone,
        metrics: &GeneratorMetrics,
    ) -> Result<(), FilterError> {
        for (name, settings) in changes.clone() {
            if let Some(Err(error)) = settings.map(|settings| self.plans.check(settings)) {
                metrics.failed_changes.get_or_create(&TenantLabels { tenant: name.to_owned() }).inc();
                return Err(error);
            }
        }
        for (name, settings) in changes {
            if self.plans.change(name, settings)?
                && let Some(tenant) = self.tenants.get_mut(name)
            {
                tenant.replan(Arc::clone(self.plans.of(name)));
            }
        }
        Ok(())
    }
}

/// Label with the name of the host, as Tempo has it.
const INSTANCE_LABEL: &str = "__metrics_gen_instance";
