//! `traces_spanmetrics_…`: calls, latencies and sizes of spans.

use opentelemetry_proto::tonic::resource::v1::Resource;

use super::attributes::{Wanted, found, label_name, of_resource, write_value};
use super::family::{Family, Labels, Room, SEPARATOR, Shape};
use super::filter::{Filter, FilterError, kind_name, status_name};
use super::parts::SpanMetricsParts;
use super::span::{Multiplier, Seen};
use crate::config::{HistogramKind, IntrinsicDimensions, SpanMetricsConfig};
use crate::otlp::ValueRef;
use coati_common::wellknown::resource::{SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_NAMESPACE};
use coati_common::wellknown::span::COATI_SPAN_PARTIAL;

/// Labels that dimensions must not be taken for.
const INTRINSIC: [&str; 7] = ["service", "span_name", "span_kind", "status_code", "status_message", "job", "instance"];

/// Place in [`Shape`]'s list of histograms.
const LATENCY: usize = 0;

/// What is counted, the same for all tenants.
#[derive(Clone, Debug)]
pub(super) struct SpanMetricsPlan {
    intrinsic: IntrinsicDimensions,
    /// What of resource or span becomes a label, one list for each label.
    sources: Vec<Sources>,
    target_info: bool,
    excluded: Vec<String>,
    filter: Filter,
    multiplier: Multiplier,
    /// Places in [`Shape`]'s list of counters, of those that are made.
    calls: Option<usize>,
    sizes: Option<usize>,
    latency: bool,
    wanted: Wanted,
    /// Number of the attribute that marks a span which is not over.
    partial: usize,
    shape: Shape,
}

/// What a label is made of.
#[derive(Clone, Debug)]
struct Sources {
    /// Keys, and their numbers among the attributes of spans.
    keys: Vec<(String, usize)>,
    join: String,
}

/// What was counted of a tenant.
#[derive(Debug)]
pub(super) struct SpanMetrics {
    pub(super) spans: Family,
    pub(super) targets: Family,
}

/// What is the same for all spans of a resource.
#[derive(Debug)]
pub(super) struct ResourceLabels {
    service: String,
    /// Of each source of each label, in their order.
    values: Vec<Option<String>>,
    /// `job` and `instance`.
    target: Option<(String, String)>,
}

impl SpanMetricsPlan {
    pub(super) fn new(
        config: &SpanMetricsConfig,
        parts: SpanMetricsParts,
        kind: HistogramKind,
    ) -> Result<Self, FilterError> {
        let mut wanted = Wanted::default();
        let mut labels = intrinsic_labels(config.intrinsic_dimensions);
        let mut sources = Vec::new();
        for key in &config.dimensions {
            labels.push(label_name(key, &INTRINSIC).into());
            sources.push(Sources { keys: vec![(key.clone(), wanted.add(key))], join: String::new() });
        }
        for mapping in &config.dimension_mappings {
            labels.push(label_name(&mapping.name, &INTRINSIC).into());
            let keys = mapping.source_labels.iter().map(|key| (key.clone(), wanted.add(key))).collect();
            sources.push(Sources { keys, join: mapping.join.clone() });
        }
        if config.enable_target_info {
            labels.extend(["job".into(), "instance".into()]);
        }
        let calls = parts.calls.then(|| "traces_spanmetrics_calls_total".into());
        let sizes = parts.sizes.then(|| "traces_spanmetrics_size_total".into());
        let shape = Shape {
            counters: calls.into_iter().chain(sizes).collect(),
            histograms: if parts.latency { &["traces_spanmetrics_latency"] } else { &[] },
            labels: Labels::Named(labels),
            bounds: config.histogram_buckets.0.clone(),
            kind,
            info: false,
        };
        Ok(Self {
            intrinsic: config.intrinsic_dimensions,
            sources,
            target_info: config.enable_target_info,
            excluded: config.target_info_excluded_dimensions.clone(),
            filter: Filter::new(&config.filter_policies, &mut wanted)?,
            multiplier: Multiplier::new(
                &config.span_multiplier_key,
                config.enable_tracestate_span_multiplier,
                &mut wanted,
            ),
            calls: parts.calls.then_some(0),
            sizes: parts.sizes.then_some(usize::from(parts.calls)),
            latency: parts.latency,
            partial: wanted.add(COATI_SPAN_PARTIAL),
            wanted,
            shape,
        })
    }

    /// Whether a span was sent before its end. `values` are what was found of the wanted attributes.
    pub(super) fn is_partial(&self, values: &[Option<ValueRef<'_>>]) -> bool {
        matches!(found(values, self.partial), Some(ValueRef::Bool(true)))
    }

    /// Which attributes of spans are looked at.
    pub(super) fn wanted(&self) -> &Wanted {
        &self.wanted
    }

    pub(super) fn of_resource(&self, resource: &Resource) -> ResourceLabels {
        let text = |key: &str| of_resource(&resource.attributes, key);
        let service = text(SERVICE_NAME).unwrap_or_default();
        let values = self.sources.iter().flat_map(|sources| &sources.keys).map(|(key, _)| text(key)).collect();
        let target = self.target_info.then(|| {
            let job = text(SERVICE_NAMESPACE).map_or_else(|| service.clone(), |space| format!("{space}/{service}"));
            (job, text(SERVICE_INSTANCE_ID).unwrap_or_default())
        });
        ResourceLabels { service, values, target }
    }

    /// The series' key of a span.
    fn write_key(&self, seen: &Seen<'_>, of: &ResourceLabels, values: &[Option<ValueRef<'_>>], key: &mut Vec<u8>) {
        key.clear();
        let span = &seen.span;
        let mut push = |value: &[u8]| {
            key.extend_from_slice(value);
            key.push(SEPARATOR);
        };
        if self.intrinsic.service {
            push(of.service.as_bytes());
        }
        if self.intrinsic.span_name {
            push(span.name.as_bytes());
        }
        if self.intrinsic.span_kind {
            push(kind_name(span.kind).as_bytes());
        }
        if self.intrinsic.status_code {
            push(status_name(span).as_bytes());
        }
        if self.intrinsic.status_message {
            push(span.status.map_or(&[], |status| status.message.as_bytes()));
        }
        let mut of_resource = of.values.iter();
        for sources in &self.sources {
            let begin = key.len();
            for ((_, number), resource) in sources.keys.iter().zip(of_resource.by_ref()) {
                let before = key.len();
                if before > begin {
                    key.extend_from_slice(sources.join.as_bytes());
                }
                let joined = key.len();
                match resource {
                    Some(text) => key.extend_from_slice(text.as_bytes()),
                    None => {
                        if let Some(value) = found(values, *number) {
                            write_value(value, key);
                        }
                    }
                }
                if key.len() == joined {
                    key.truncate(before);
                }
            }
            key.push(SEPARATOR);
        }
        if let Some((job, instance)) = &of.target {
            for value in [job, instance] {
                key.extend_from_slice(value.as_bytes());
                key.push(SEPARATOR);
            }
        }
    }
}

impl SpanMetrics {
    pub(super) fn new(plan: &SpanMetricsPlan) -> Self {
        let targets = Shape {
            counters: vec!["traces_target_info".into()],
            histograms: &[],
            labels: Labels::InKey,
            bounds: Vec::new(),
            kind: HistogramKind::Classic,
            info: true,
        };
        Self { spans: Family::new(plan.shape.clone()), targets: Family::new(targets) }
    }

    /// Counts a span; false if a filter leaves it out. `values` are what was found of the wanted attributes, `key` is reused.
    pub(super) fn count(
        &mut self,
        plan: &SpanMetricsPlan,
        seen: &Seen<'_>,
        of: &ResourceLabels,
        values: &[Option<ValueRef<'_>>],
        room: &mut Room,
        key: &mut Vec<u8>,
    ) -> bool {
        if !plan.filter.passes(&seen.resource.attributes, &seen.span, values) {
            return false;
        }
        plan.write_key(seen, of, values, key);
        let Self { spans, targets } = self;
        let times = plan.multiplier.of(seen, values);
        let shape = std::sync::Arc::clone(&spans.shape);
        if let Some(series) = spans.of(key, seen.now_ms, room) {
            if let Some(calls) = plan.calls.and_then(|place| series.counters.get_mut(place)) {
                *calls += times;
            }
            if let Some(size) = plan.sizes.and_then(|place| series.counters.get_mut(place)) {
                *size += seen.span.as_bytes().len() as f64 * times;
            }
            if plan.latency {
                series.observe(&shape, LATENCY, seen.seconds(), times, &seen.trace.0);
            }
        }
        if let Some((job, instance)) = &of.target {
            // Without an attribute of its own it says nothing.
            if write_target(job, instance, seen.resource, &plan.excluded, key)
                && let Some(series) = targets.of(key, seen.now_ms, room)
            {
                series.counters = [1.0, 0.0];
            }
        }
        true
    }
}

/// Key of `traces_target_info`: names and values. False if there are but `job` and `instance`, or neither of these.
fn write_target(job: &str, instance: &str, resource: &Resource, excluded: &[String], key: &mut Vec<u8>) -> bool {
    let mut own = false;
    key.clear();
    let mut push = |name: &str, value: &str| {
        for text in [name, value] {
            key.extend_from_slice(text.as_bytes());
            key.push(SEPARATOR);
        }
    };
    push("job", job);
    push("instance", instance);
    for attribute in &resource.attributes {
        let name = attribute.key.as_str();
        let known = [SERVICE_NAME, SERVICE_NAMESPACE, SERVICE_INSTANCE_ID].contains(&name);
        if !known && !excluded.iter().any(|excluded| excluded == name) {
            let value = of_resource(&resource.attributes, name).unwrap_or_default();
            own |= !value.is_empty();
            push(&label_name(name, &["job", "instance"]), &value);
        }
    }
    own && !(job.is_empty() && instance.is_empty())
}

fn intrinsic_labels(intrinsic: IntrinsicDimensions) -> Vec<Box<str>> {
    let IntrinsicDimensions { service, span_name, span_kind, status_code, status_message } = intrinsic;
    let on = [service, span_name, span_kind, status_code, status_message];
    INTRINSIC.iter().zip(on).filter(|(_, on)| *on).map(|(name, _)| (*name).into()).collect()
}
