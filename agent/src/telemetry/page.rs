//! `docs/metrics.md` has every metric of the agent.

use coati_tests::metrics_page;

use super::Telemetry;
use crate::{
    gpu, inference,
    kubernetes::{KubernetesMetrics, testing::cluster},
    metrics::{self, Format},
};

/// One series of each metric that has labels: what is forgotten here is named by the check.
fn one_of_each() -> String {
    let telemetry = Telemetry::default();
    telemetry.anomalies("x");
    telemetry.links("x");
    telemetry.tls_failures("x");
    telemetry.export.endpoint("x");
    telemetry.relay.refused("x");
    telemetry.cuda_failures("x");
    telemetry.cuda.count("x", &coati_common::cuda::Calls { launches: 1, ..Default::default() });
    metrics::tests::count_all(&telemetry.requests, &inference::tests::counted());
    let mut registry = telemetry.registry();
    registry.register_collector(Box::new(gpu::tests::all_metrics()));
    registry.register_collector(Box::new(KubernetesMetrics(cluster(&[], &[]))));
    let mut text = String::new();
    prometheus_client::encoding::text::encode_registry(&mut text, &registry).unwrap();
    telemetry.requests.write(Format::OpenMetrics, &mut text).unwrap();
    text
}

#[test]
fn the_page_of_metrics_is_what_the_code_says() {
    metrics_page::check("agent", &one_of_each()).unwrap_or_else(|error| panic!("{error:#}"));
}
