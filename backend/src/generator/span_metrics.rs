//! `traces_spanmetrics_…`: calls, latencies and sizes of spans.

use opentelemetry_proto::tonic::resource::v1::Resource;

use super::attributes::{Asked, Wanted, found, label_name, of_resource, write_value};
use super::family::{Family, Labels, Shape};
use super::filter::{Filter, FilterError, kind_name, status_name};
use super::key::Lengths;
use super::names::Names;
use super::parts::{SpanMetricsParts, native_buckets};
use super::room::Room;
use super::span::{Multiplier, Seen};
use crate::config::{GeneratorConfig, IntrinsicDimensions, SpanNameSanitization};
use crate::otlp::ValueRef;
use coati_common::wellknown::resource::{SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_NAMESPACE};

/// Labels that dimensions must not be taken for.
pub(super) const INTRINSIC: [&str; 7] =
    ["service", SPAN_NAME, "span_kind", "status_code", "status_message", "job", "instance"];

const SPAN_NAME: &str = "span_name";

/// Place in [`Shape`]'s list of histograms.
const LATENCY: usize = 0;

/// What is counted, the same for all tenants.
#[derive(Clone, Debug)]
pub(super) struct SpanMetricsPlan {
    intrinsic: IntrinsicDimensions,
    /// What of resource or span becomes a label, one list for each label.
    sources: Vec<Sources>,
    target_info: bool,
    instance: bool,
    excluded: Vec<String>,
    sanitization: SpanNameSanitization,
    lengths: Lengths,
    filter: Filter,
    multiplier: Multiplier,
    /// Places in [`Shape`]'s list of counters, of those that are made.
    calls: Option<usize>,
    sizes: Option<usize>,
    latency: bool,
    pub(super) asked: Asked,
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
    /// If names are, or would be, replaced by patterns.
    pub(super) names: Option<Names>,
}

/// `job`, and `instance` if that is a label.
type Target = (String, Option<String>);

/// What is the same for all spans of a resource.
#[derive(Debug)]
pub(super) struct ResourceLabels {
    service: String,
    /// Of each source of each label, in their order.
    values: Vec<Option<String>>,
    target: Option<Target>,
}

impl SpanMetricsPlan {
    pub(super) fn new(
        generator: &GeneratorConfig,
        parts: SpanMetricsParts,
        wanted: &mut Wanted,
    ) -> Result<Self, FilterError> {
        let config = &generator.processor.span_metrics;
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
            labels.push("job".into());
            labels.extend(config.enable_instance_label.then(|| "instance".into()));
        }
        let calls = parts.calls.then(|| "traces_spanmetrics_calls_total".into());
        let sizes = parts.sizes.then(|| "traces_spanmetrics_size_total".into());
        let shape = Shape {
            counters: calls.into_iter().chain(sizes).collect(),
            histograms: if parts.latency { &["traces_spanmetrics_latency"] } else { &[] },
            labels: Labels::Named(labels),
            bounds: config.histogram_buckets.0.clone(),
            kind: generator.generate_native_histograms,
            native: native_buckets(generator),
            info: false,
        };
        Ok(Self {
            intrinsic: config.intrinsic_dimensions,
            sources,
            target_info: config.enable_target_info,
            instance: config.enable_instance_label,
            sanitization: generator.span_name_sanitization,
            lengths: Lengths::new(&generator.registry),
            excluded: config.target_info_excluded_dimensions.clone(),
            filter: Filter::new(&config.filter_policies, wanted)?,
            multiplier: Multiplier::new(&config.span_multiplier_key, config.enable_tracestate_span_multiplier, wanted),
            calls: parts.calls.then_some(0),
            sizes: parts.sizes.then_some(usize::from(parts.calls)),
            latency: parts.latency,
            asked: wanted.added(),
            shape,
        })
    }

    pub(super) fn of_resource(&self, resource: &Resource) -> ResourceLabels {
        let text = |key: &str| of_resource(&resource.attributes, key);
        let service = text(SERVICE_NAME).unwrap_or_default();
        let values = self.sources.iter().flat_map(|sources| &sources.keys).map(|(key, _)| text(key)).collect();
        let target = self.target_info.then(|| {
            let space = text(SERVICE_NAMESPACE).filter(|_| !service.is_empty());
            let job = space.map_or_else(|| service.clone(), |space| format!("{space}/{service}"));
            (job, self.instance.then(|| text(SERVICE_INSTANCE_ID).unwrap_or_default()))
        });
        ResourceLabels { service, values, target }
    }

    /// The series' key of a span that is called `name` there.
    fn write_key(
        &self,
        seen: &Seen<'_>,
        name: &[u8],
        of: &ResourceLabels,
        values: &[Option<ValueRef<'_>>],
        key: &mut Vec<u8>,
    ) {
        key.clear();
        let Self { lengths, intrinsic, .. } = self;
        let span = &seen.span;
        if intrinsic.service {
            lengths.push(key, &of.service);
        }
        if intrinsic.span_name {
            lengths.push(key, name);
        }
        if intrinsic.span_kind {
            lengths.push(key, kind_name(span.kind));
        }
        if intrinsic.status_code {
            lengths.push(key, status_name(span));
        }
        if intrinsic.status_message {
            lengths.push(key, span.status.map_or(&[][..], |status| status.message.as_bytes()));
        }
        let mut of_resource = of.values.iter();
        for sources in &self.sources {
            lengths.push_with(key, |key| sources.write(&mut of_resource, values, key));
        }
        if let Some((job, instance)) = &of.target {
            [Some(job), instance.as_ref()].into_iter().flatten().for_each(|value| lengths.push(key, value));
        }
    }

    /// Key of `traces_target_info`: names and values. False if there are but `job` and `instance`, or neither of these.
    fn write_target(&self, job: &str, instance: &str, resource: &Resource, key: &mut Vec<u8>) -> bool {
        let mut own = false;
        key.clear();
        self.lengths.push_named(key, "job", job);
        self.lengths.push_named(key, "instance", instance);
        for attribute in &resource.attributes {
            let name = attribute.key.as_str();
            let known = [SERVICE_NAME, SERVICE_NAMESPACE, SERVICE_INSTANCE_ID].contains(&name);
            if !known && !self.excluded.iter().any(|excluded| excluded == name) {
                let value = of_resource(&resource.attributes, name).unwrap_or_default();
                own |= !value.is_empty();
                self.lengths.push_named(key, &label_name(name, &["job", "instance"]), &value);
            }
        }
        own && !(job.is_empty() && instance.is_empty())
    }
}

impl Sources {
    /// Joins what there is of them.
    fn write<'a>(
        &self,
        of_resource: &mut impl Iterator<Item = &'a Option<String>>,
        values: &[Option<ValueRef<'_>>],
        key: &mut Vec<u8>,
    ) {
        let begin = key.len();
        for ((_, number), resource) in self.keys.iter().zip(of_resource) {
            let before = key.len();
            if before > begin {
                key.extend_from_slice(self.join.as_bytes());
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
    }
}

impl SpanMetrics {
    pub(super) fn new(plan: &SpanMetricsPlan) -> Self {
        let targets = Shape::info("traces_target_info".into(), Labels::InKey);
        let names = plan.intrinsic.span_name.then(|| Names::new(plan.sanitization)).flatten();
        Self { spans: Family::new(plan.shape.clone()), targets: Family::new(targets), names }
    }

    /// Takes in the names of spans that were counted before.
    pub(super) fn learn_names(&mut self) {
        let Self { spans, names: Some(names), .. } = self else { return };
        for (label, value) in spans.keys().flat_map(|key| spans.shape.labels.values(key)) {
            if let (SPAN_NAME, Ok(name)) = (label, std::str::from_utf8(value)) {
                names.learn(name);
            }
        }
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
        let Self { spans, targets, names } = self;
        let name = seen.span.name;
        match names {
            None => plan.write_key(seen, name.as_bytes(), of, values, key),
            Some(names) => {
                let pattern = names.pattern(name.as_str());
                plan.write_key(seen, pattern.map_or(name.as_bytes(), str::as_bytes), of, values, key);
                if names.is_dry_run() {
                    names.note(room.entity(&spans.shape.labels, key), room.limits.window_ms, seen.now_ms);
                    plan.write_key(seen, name.as_bytes(), of, values, key);
                }
            }
        }
        let times = plan.multiplier.of(seen, values);
        if let Some((shape, series)) = spans.of(key, seen.now_ms, room) {
            if let Some(calls) = plan.calls.and_then(|place| series.counters.get_mut(place)) {
                *calls += times;
            }
            if let Some(size) = plan.sizes.and_then(|place| series.counters.get_mut(place)) {
                // Bytes that came: of spans that were not kept there are none.
                *size += seen.span.as_bytes().len() as f64;
            }
            if plan.latency {
                series.observe(shape, LATENCY, seen.seconds(), times, &seen.trace.0);
            }
        }
        if let Some((job, instance)) = &of.target {
            // Without an attribute of its own it says nothing.
            let instance = instance.as_deref().unwrap_or_default();
            if plan.write_target(job, instance, seen.resource, key)
                && let Some((_, series)) = targets.of(key, seen.now_ms, room)
            {
                series.counters = [1.0, 0.0];
            }
        }
        true
    }
}

fn intrinsic_labels(intrinsic: IntrinsicDimensions) -> Vec<Box<str>> {
    let IntrinsicDimensions { service, span_name, span_kind, status_code, status_message } = intrinsic;
    let on = [service, span_name, span_kind, status_code, status_message];
    INTRINSIC.iter().zip(on).filter(|(_, on)| *on).map(|(name, _)| (*name).into()).collect()
}
