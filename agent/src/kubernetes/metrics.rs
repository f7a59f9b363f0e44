//! How the watches do, on `/metrics`.

use std::{fmt, sync::atomic::Ordering};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{Kubernetes, Shared, WatchCounters, index::Watched, object};

/// The collector.
#[derive(Debug)]
pub struct KubernetesMetrics(pub Kubernetes);

impl WatchCounters {
    pub(super) fn synced(&self, now: u64) {
        self.synced.store(now, Ordering::Relaxed);
    }
}

impl Shared {
    /// Those of one watch.
    pub(super) fn counters(&self, plural: &'static str) -> &WatchCounters {
        if plural == object::Pod::PLURAL { &self.pods } else { &self.services }
    }
}

impl Collector for KubernetesMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shared = &*self.0.shared;
        let (pods, services) = {
            let index = shared.index();
            (index.pods(), index.services())
        };
        let mut gauge = |name: &str, help: &str, value: usize| {
            let encoder = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value as i64).encode(encoder)
        };
        gauge("coati_agent_kubernetes_pods", "Pods of this node that are known", pods)?;
        gauge("coati_agent_kubernetes_services", "Services that are known", services)?;

        let help = "Processes of containers that no known pod has, looked up";
        let misses =
            encoder.encode_descriptor("coati_agent_kubernetes_lookup_misses", help, None, MetricType::Counter)?;
        ConstCounter::new(shared.misses.get()).encode(misses)?;

        let watches = [object::Pod::PLURAL, object::Service::PLURAL].map(|plural| (plural, shared.counters(plural)));
        let help = "Times that a watch or list ended with an error and was begun again";
        let mut restarts =
            encoder.encode_descriptor("coati_agent_kubernetes_watch_restarts", help, None, MetricType::Counter)?;
        for (plural, counters) in watches {
            ConstCounter::new(counters.restarts.get()).encode(restarts.encode_family(&[("resource", plural)])?)?;
        }
        let help = "When a list was complete or a change came, Unix time";
        let mut synced = encoder.encode_descriptor(
            "coati_agent_kubernetes_last_sync_timestamp",
            help,
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for (plural, counters) in watches {
            let seconds = counters.synced.load(Ordering::Relaxed) as i64;
            ConstGauge::new(seconds).encode(synced.encode_family(&[("resource", plural)])?)?;
        }
        Ok(())
    }
}
