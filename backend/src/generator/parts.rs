//! Which metrics of a kind are made: all that belong to it, or those that are named one by one.

use std::collections::BTreeSet;

use super::histogram::NativeBuckets;
use crate::config::{GeneratorConfig, ProcessorName};

/// Which of `traces_spanmetrics_…`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct SpanMetricsParts {
    pub(super) calls: bool,
    pub(super) sizes: bool,
    pub(super) latency: bool,
}

/// Which of `traces_service_graph_…`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct ServiceGraphsParts {
    pub(super) requests: bool,
    pub(super) latency: bool,
    pub(super) connections: bool,
}

impl SpanMetricsParts {
    /// None if there are none of them.
    pub(super) fn of(processors: &BTreeSet<ProcessorName>) -> Option<Self> {
        let on = |part| processors.contains(&ProcessorName::SpanMetrics) || processors.contains(&part);
        let parts = Self {
            calls: on(ProcessorName::SpanMetricsCount),
            sizes: on(ProcessorName::SpanMetricsSize),
            latency: on(ProcessorName::SpanMetricsLatency),
        };
        (parts.calls || parts.sizes || parts.latency).then_some(parts)
    }
}

impl ServiceGraphsParts {
    /// None if there are none of them.
    pub(super) fn of(processors: &BTreeSet<ProcessorName>) -> Option<Self> {
        let on = |part| processors.contains(&ProcessorName::ServiceGraphs) || processors.contains(&part);
        let parts = Self {
            requests: on(ProcessorName::ServiceGraphsRequest),
            latency: on(ProcessorName::ServiceGraphsLatency),
            connections: processors.contains(&ProcessorName::ServiceGraphsConnectionInfo),
        };
        (parts.requests || parts.latency || parts.connections).then_some(parts)
    }
}

/// How native histograms of all kinds of metrics begin.
pub(super) fn native_buckets(config: &GeneratorConfig) -> NativeBuckets {
    let max = Some(config.native_histogram_max_bucket_number).filter(|max| *max > 0);
    let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
    NativeBuckets::new(config.native_histogram_bucket_factor.0, max)
}
