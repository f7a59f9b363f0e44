//! What the generator says of itself, for each tenant.

use super::service_graphs::EdgeTally;
use super::tenant::{Report, Tenant};
use crate::telemetry::{EdgeLabels, GeneratorMetrics, LabelLabels, ProcessorLabels, ReasonLabels, TenantLabels};

/// Tells the metrics what became of a tenant's spans since the last time.
pub(super) fn tell(metrics: &GeneratorMetrics, name: &str, tenant: &mut Tenant, now_ms: u64) {
    let labels = TenantLabels { tenant: name.to_owned() };
    let Report { received, series, series_demand, entities, entity_demand, labels: of_labels, names, edges } =
        tenant.report(now_ms);
    metrics.spans.get_or_create(&labels).inc_by(received.spans);
    metrics.bytes.get_or_create(&labels).inc_by(received.bytes);
    let discarded = |processor: &str, reason: &str, spans| {
        let (processor, reason) = (processor.to_owned(), reason.to_owned());
        metrics.discarded.get_or_create(&ReasonLabels { tenant: name.to_owned(), processor, reason }).inc_by(spans);
    };
    discarded("span-metrics", "span_metrics_filtered", received.filtered);

    let limits = tenant.limits();
    for (metrics, tally, max, demand) in [
        (&metrics.series, series, limits.series, series_demand),
        (&metrics.entities, entities, limits.entities, entity_demand),
    ] {
        metrics.active.get_or_create(&labels).set(tally.active as i64);
        metrics.max_active.get_or_create(&labels).set(max as i64);
        metrics.demand.get_or_create(&labels).set(demand as i64);
        metrics.added.get_or_create(&labels).inc_by(tally.added);
        metrics.removed.get_or_create(&labels).inc_by(tally.removed);
        metrics.limited.get_or_create(&labels).inc_by(tally.limited);
    }
    for label in of_labels {
        let labels = LabelLabels { tenant: name.to_owned(), label_name: label.name };
        metrics.label_demand.get_or_create(&labels).set(label.demand as i64);
        metrics.limited_values.get_or_create(&labels).inc_by(label.limited);
    }
    if let Some(names) = names {
        metrics.sanitized.get_or_create(&labels).inc_by(names.sanitized);
        metrics.sanitized_demand.get_or_create(&labels).set(names.demand as i64);
    }

    for (processor, on) in tenant.processors() {
        let labels = ProcessorLabels { tenant: name.to_owned(), processor: processor.to_owned() };
        metrics.processors.get_or_create(&labels).set(i64::from(on));
    }
    if let Some((EdgeTally { expired, completed, filtered, dropped }, waiting)) = edges {
        metrics.edges.get_or_create(&labels).inc_by(completed as i64);
        for (count, kind) in expired.into_iter().zip(["SPAN_KIND_CLIENT", "SPAN_KIND_SERVER"]) {
            let labels = EdgeLabels { tenant: name.to_owned(), unmatched_span_kind: kind.to_owned() };
            metrics.expired_edges.get_or_create(&labels).inc_by(count as i64);
        }
        metrics.waiting_edges.get_or_create(&labels).set(waiting as i64);
        metrics.dropped_edges.get_or_create(&labels).inc_by(dropped);
        discarded("service-graphs", "service_graphs_filtered", filtered);
    }
}
