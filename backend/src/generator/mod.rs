//! Metrics that are made of spans: span metrics and service graphs, called and counted as Tempo's metrics-generator does.
//!
//! Spans are counted when they are in the log, before they are acknowledged: that takes less than half a microsecond for
//! each, and so nothing has to wait in between and nothing can be lost there. What was counted is written to disk at every
//! collection, with the numbers of the requests that are in it; after a crash the log has the others.

mod attributes;
mod check;
mod collected;
mod edges;
mod expose;
mod family;
mod filter;
mod histogram;
mod http;
mod keep;
mod remote_write;
mod service_graphs;
mod span;
mod span_metrics;
mod state;
mod tenant;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_across_nodes;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use foldhash::quality::RandomState;

use crate::config::{GeneratorConfig, ProcessorName};
use crate::live::Trace;
use crate::telemetry::{EdgeLabels, GeneratorMetrics, ReasonLabels, TenantLabels};
use collected::{Applied, TenantSnapshot};
use service_graphs::ServiceGraphsPlan;
use span_metrics::SpanMetricsPlan;
use tenant::Tenant;

pub use check::{SettingError, check};
pub use collected::Collected;
pub use filter::FilterError;
pub use http::{Latest, router};
pub use keep::{Keeper, KeeperConfig, Saved};
pub use remote_write::{Queue, RemoteWriteError, Sender, decode_queued};
pub use state::{StateError, check_state};

/// How it is counted, the same for all tenants.
#[derive(Debug)]
struct Plan {
    span_metrics: Option<SpanMetricsPlan>,
    service_graphs: Option<ServiceGraphsPlan>,
    max_active_series: u64,
    stale_ms: u64,
    /// Names and values.
    external_labels: Vec<(String, String)>,
    tenant_label: String,
}

/// Counts spans of all tenants.
#[derive(Debug)]
pub struct Generator {
    plan: Plan,
    counted: Mutex<Counted>,
    metrics: GeneratorMetrics,
}

#[derive(Debug, Default)]
struct Counted {
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
        let GeneratorConfig { processors, registry, processor, generate_native_histograms: kind, .. } = config;
        let span_metrics = processors.contains(&ProcessorName::SpanMetrics);
        let service_graphs = processors.contains(&ProcessorName::ServiceGraphs);
        let mut external_labels = registry.external_labels.clone();
        if !instance.is_empty() {
            external_labels.entry(INSTANCE_LABEL.to_owned()).or_insert_with(|| instance.to_owned());
        }
        let plan = Plan {
            span_metrics: span_metrics.then(|| SpanMetricsPlan::new(&processor.span_metrics, *kind)).transpose()?,
            service_graphs: service_graphs.then(|| ServiceGraphsPlan::new(&processor.service_graphs, *kind)),
            max_active_series: registry.max_active_series.into(),
            stale_ms: u64::try_from(registry.stale_duration.as_millis()).unwrap_or(u64::MAX),
            external_labels: external_labels.into_iter().collect(),
            tenant_label: registry.inject_tenant_id_as.clone(),
        };
        let counted = Counted { collected_ms: now_ms, ..Counted::default() };
        Ok(Self { plan, counted: Mutex::new(counted), metrics })
    }

    /// Counts the spans of a request, once. `sequence` is its number in the log, `received_ns` when it came, nanoseconds
    /// since the epoch.
    pub fn count(&self, tenant: &str, traces: &[Trace], received_ns: u64, sequence: u64) {
        let mut counted = self.counted();
        let Counted { tenants, applied, .. } = &mut *counted;
        if !applied.add(sequence) {
            return;
        }
        let tenant = match tenants.get_mut(tenant) {
            Some(tenant) => tenant,
            None => tenants.entry(tenant.into()).or_insert_with(|| Tenant::new(&self.plan)),
        };
        tenant.count(&self.plan, traces, received_ns / 1_000_000);
    }

    /// What was counted up to now, milliseconds since the epoch.
    pub fn collect(&self, now_ms: u64) -> Collected {
        let mut counted = self.counted();
        // No two samples of a series have the same time, whatever the clock does.
        let time_ms = now_ms.max(counted.collected_ms + 2);
        let previous_ms = std::mem::replace(&mut counted.collected_ms, time_ms);
        let oldest_ms = now_ms.saturating_sub(self.plan.stale_ms);
        let applied = counted.applied.clone();
        let tenants = counted.tenants.iter_mut().map(|(name, tenant)| {
            let (families, ended) = tenant.collect(&self.plan, now_ms, oldest_ms);
            let graphs = tenant.service_graphs.as_ref();
            let edges = graphs.iter().flat_map(|graphs| graphs.edges.iter());
            let edges = edges.map(|(until_ms, key, edge)| (until_ms, *key, edge.clone())).collect();
            self.tell(name, tenant, ended);
            let mut external_labels = self.plan.external_labels.clone();
            if !self.plan.tenant_label.is_empty() {
                external_labels.push((self.plan.tenant_label.clone(), name.to_string()));
            }
            TenantSnapshot { tenant: Arc::clone(name), external_labels, families, edges }
        });
        let tenants = tenants.collect();
        self.metrics.collections.inc();
        Collected { time_ms, previous_ms, applied, tenants }
    }

    /// Tells the metrics what a tenant did since the last time.
    fn tell(&self, name: &str, tenant: &mut Tenant, ended: u64) {
        let labels = TenantLabels { tenant: name.to_owned() };
        let metrics = &self.metrics;
        let reason = ReasonLabels { tenant: name.to_owned(), reason: "filter".to_owned() };
        metrics.spans.get_or_create(&labels).inc_by(std::mem::take(&mut tenant.spans));
        metrics.bytes.get_or_create(&labels).inc_by(std::mem::take(&mut tenant.bytes));
        metrics.discarded.get_or_create(&reason).inc_by(std::mem::take(&mut tenant.filtered));
        metrics.added.get_or_create(&labels).inc_by(std::mem::take(&mut tenant.room.added));
        metrics.removed.get_or_create(&labels).inc_by(ended);
        metrics.limited.get_or_create(&labels).inc_by(std::mem::take(&mut tenant.room.limited));
        metrics.active.get_or_create(&labels).set(tenant.room.active as i64);
        metrics.max_active.get_or_create(&labels).set(tenant.room.max as i64);
        if let Some(graphs) = &mut tenant.service_graphs {
            metrics.edges.get_or_create(&labels).inc_by(std::mem::take(&mut graphs.completed));
            for (count, kind) in graphs.expired.iter_mut().zip(["client", "server"]) {
                let labels = EdgeLabels { tenant: name.to_owned(), unmatched_span_kind: kind.to_owned() };
                metrics.expired_edges.get_or_create(&labels).inc_by(std::mem::take(count));
            }
            metrics.waiting_edges.get_or_create(&labels).set(graphs.edges.len() as i64);
        }
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

/// Label with the name of the host, as Tempo has it.
const INSTANCE_LABEL: &str = "__metrics_gen_instance";
