//! `docs/metrics.md` has every metric of the backend.

use std::hash::Hash;

use coati_tests::metrics_page;
use prometheus_client::metrics::family::{Family, MetricConstructor};

use super::{
    AccessLabels, BackendLabels, BackendRequestLabels, DiscardedLabels, EdgeLabels, EndpointLabels, LabelLabels,
    LevelLabels, LimitedMetrics, LossLabels, Metrics, OperationLabels, ProcessorLabels, QueryLabels, ReasonLabels,
    ReceiverLabels, RefusedLabels, RequestLabels, StoreLabels, TenantLabels,
};

/// Makes a series.
fn touch<L: Clone + Eq + Hash, M: Clone, C: MetricConstructor<M>>(family: &Family<L, M, C>, labels: &L) {
    drop(family.get_or_create(labels));
}

/// One series of each metric that has labels: what is forgotten here is named by the check.
fn one_of_each() -> Metrics {
    let metrics = Metrics::new();
    let some = || "x".to_owned();
    let tenant = TenantLabels { tenant: some() };
    let request = RequestLabels { method: some(), route: some(), status_code: some() };
    touch(&metrics.request_duration, &request);
    touch(&metrics.queries, &QueryLabels { tenant: some(), op: "x", result: "x" });

    touch(&metrics.access.refused, &AccessLabels { listener: "x", reason: "x" });

    let receive = &metrics.receive;
    touch(&receive.spans_received, &tenant);
    touch(&receive.bytes_received, &tenant);
    touch(&receive.discarded_spans, &DiscardedLabels { reason: some(), tenant: some() });
    for gauge in [&receive.accepted_spans, &receive.refused_spans] {
        touch(gauge, &ReceiverLabels { receiver: "x" });
    }
    touch(&receive.refused_requests, &RefusedLabels { reason: some() });

    let blocks = &metrics.blocks;
    let held = BackendLabels { tenant: some(), status: some() };
    touch(&blocks.length, &tenant);
    touch(&blocks.bytes, &held);
    touch(&blocks.objects, &held);

    touch(&metrics.store.requests, &StoreLabels { operation: "x", outcome: "x" });
    touch(&metrics.store.duration, &OperationLabels { operation: "x" });
    touch(&metrics.store.tempos_duration, &BackendRequestLabels { operation: "x", status_code: 200 });

    let compaction = &metrics.compaction;
    let level = LevelLabels { level: 1 };
    for written in
        [&compaction.blocks, &compaction.bytes_written, &compaction.objects_written, &compaction.objects_combined]
    {
        touch(written, &level);
    }
    touch(&compaction.outstanding_blocks, &tenant);

    let generator = &metrics.generator;
    for counter in [&generator.spans, &generator.bytes, &generator.sanitized, &generator.dropped_edges] {
        touch(counter, &tenant);
    }
    for gauge in [&generator.edges, &generator.sanitized_demand, &generator.waiting_edges] {
        touch(gauge, &tenant);
    }
    for LimitedMetrics { active, max_active, demand, added, removed, limited } in
        [&generator.series, &generator.entities]
    {
        for gauge in [active, max_active, demand] {
            touch(gauge, &tenant);
        }
        for counter in [added, removed, limited] {
            touch(counter, &tenant);
        }
    }
    let label = LabelLabels { tenant: some(), label_name: some() };
    touch(&generator.label_demand, &label);
    touch(&generator.limited_values, &label);
    touch(&generator.discarded, &ReasonLabels { tenant: some(), processor: some(), reason: some() });
    touch(&generator.processors, &ProcessorLabels { tenant: some(), processor: some() });
    touch(&generator.failed_changes, &tenant);
    touch(&generator.expired_edges, &EdgeLabels { tenant: some(), unmatched_span_kind: some() });
    let endpoint = EndpointLabels { url: some() };
    touch(&generator.sent_samples, &endpoint);
    touch(&generator.retries, &endpoint);
    touch(&generator.queue_bytes, &endpoint);
    touch(&generator.newest_sent, &endpoint);
    touch(&generator.lost_samples, &LossLabels { url: some(), reason: some() });
    metrics
}

#[test]
fn the_page_of_metrics_is_what_the_code_says() {
    let text = one_of_each().encode().unwrap();
    metrics_page::check("backend", &text).unwrap_or_else(|error| panic!("{error:#}"));
}
