//! What was counted of one tenant.

use std::sync::Arc;

use opentelemetry_proto::tonic::resource::v1::Resource;

use super::Plan;
use super::attributes::of_resource;
use super::collected::{FamilySnapshot, SeriesSnapshot, SeriesState};
use super::family::{Family, OVERFLOW, Room};
use super::service_graphs::{ServiceGraphs, ServiceGraphsPlan};
use super::span::Seen;
use super::span_metrics::{ResourceLabels, SpanMetrics};
use super::state::SavedFamily;
use crate::live::Trace;
use coati_common::wellknown::resource::SERVICE_NAME;

/// What was counted of one tenant.
#[derive(Debug)]
pub(super) struct Tenant {
    pub(super) room: Room,
    pub(super) span_metrics: Option<SpanMetrics>,
    pub(super) service_graphs: Option<ServiceGraphs>,
    /// Spans since the last collection, and those of them that a filter left out.
    pub(super) spans: u64,
    pub(super) filtered: u64,
    pub(super) bytes: u64,
    /// Kept for its memory.
    key: Vec<u8>,
}

/// What is the same for all spans of a resource.
struct OfResource<'a> {
    resource: &'a Arc<Resource>,
    labels: Option<ResourceLabels>,
    service: Option<Arc<str>>,
}

impl Tenant {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            room: Room { max: plan.max_active_series, ..Room::default() },
            span_metrics: plan.span_metrics.as_ref().map(SpanMetrics::new),
            service_graphs: plan.service_graphs.as_ref().map(ServiceGraphs::new),
            spans: 0,
            filtered: 0,
            bytes: 0,
            key: Vec::new(),
        }
    }

    /// Counts spans that came at a time, milliseconds since the epoch.
    pub(super) fn count(&mut self, plan: &Plan, traces: &[Trace], now_ms: u64) {
        let Self { room, span_metrics, service_graphs, spans, filtered, bytes, key } = self;
        let mut resources: Vec<OfResource<'_>> = Vec::new();
        let mut values = Vec::new();
        for trace in traces {
            for stored in &trace.spans {
                let resource = &stored.batch.resource;
                let known = resources.iter().rposition(|known| Arc::ptr_eq(known.resource, resource));
                let place = known.unwrap_or_else(|| {
                    resources.push(OfResource::new(plan, resource));
                    resources.len() - 1
                });
                let Some(of) = resources.get(place) else { continue };
                let of_agent = stored.batch.of_agent();
                let seen = Seen { trace: &trace.id, span: stored.view(), resource, of_agent, now_ms };
                *spans += 1;
                *bytes += stored.bytes.len() as u64;
                if let (Some(plan), Some(metrics), Some(labels)) = (&plan.span_metrics, &mut *span_metrics, &of.labels)
                {
                    plan.wanted().find(&seen.span, &mut values);
                    // It is counted when it is over.
                    if of_agent && plan.is_partial(&values) {
                        continue;
                    }
                    *filtered += u64::from(!metrics.count(plan, &seen, labels, &values, room, key));
                } else if of_agent && seen.span.is_partial() {
                    continue;
                }
                if let (Some(plan), Some(graphs), Some(service)) =
                    (&plan.service_graphs, &mut *service_graphs, &of.service)
                    && ServiceGraphsPlan::counts(seen.span.kind)
                {
                    values.clear();
                    if let Some(wanted) = plan.wanted(&seen) {
                        wanted.find(&seen.span, &mut values);
                    }
                    graphs.count(plan, &seen, service, &values, room, key);
                }
            }
        }
    }

    /// What was counted so far. Series in which nothing was counted since `oldest_ms` end.
    pub(super) fn collect(&mut self, plan: &Plan, now_ms: u64, oldest_ms: u64) -> (Vec<FamilySnapshot>, u64) {
        if let (Some(plan), Some(graphs)) = (&plan.service_graphs, &mut self.service_graphs) {
            graphs.expire(plan, now_ms, &mut self.room, &mut self.key);
        }
        let Self { room, span_metrics, service_graphs, .. } = self;
        let mut ended = 0;
        let families = families(span_metrics, service_graphs).map(|family| {
            let mut series = Vec::with_capacity(family.len());
            ended += family.end_stale(oldest_ms, room, |key, gone| {
                if gone.collected {
                    series.push(SeriesSnapshot { key, series: gone, state: SeriesState::Gone });
                }
            });
            family.each(|key, live| {
                let state = if live.collected { SeriesState::Steady } else { SeriesState::New };
                live.collected = true;
                series.push(SeriesSnapshot { key: Arc::clone(key), series: live.clone(), state });
                live.histograms.iter_mut().flatten().for_each(|histogram| histogram.forget_exemplars());
            });
            FamilySnapshot { shape: Arc::clone(&family.shape), series }
        });
        let families = families.collect();
        (families, ended)
    }

    /// Goes on with what was counted before a restart. Families that are called otherwise now begin anew.
    pub(super) fn restore(&mut self, saved: &[SavedFamily]) {
        let Self { room, span_metrics, service_graphs, .. } = self;
        for family in families(span_metrics, service_graphs) {
            let same = saved.iter().find(|saved| saved.is_of(&family.shape));
            for (key, series) in same.into_iter().flat_map(SavedFamily::series) {
                if *key != *OVERFLOW {
                    room.active += family.shape.weight();
                }
                family.insert(key, series);
            }
        }
    }
}

fn families<'a>(
    span_metrics: &'a mut Option<SpanMetrics>,
    service_graphs: &'a mut Option<ServiceGraphs>,
) -> impl Iterator<Item = &'a mut Family> {
    let of_spans = span_metrics.iter_mut().flat_map(|metrics| [&mut metrics.spans, &mut metrics.targets]);
    of_spans.chain(service_graphs.iter_mut().map(|graphs| &mut graphs.requests))
}

impl<'a> OfResource<'a> {
    fn new(plan: &Plan, resource: &'a Arc<Resource>) -> Self {
        let labels = plan.span_metrics.as_ref().map(|plan| plan.of_resource(resource));
        // Who has no name is no node of a graph.
        let service = plan.service_graphs.as_ref().and_then(|_| of_resource(&resource.attributes, SERVICE_NAME));
        Self { resource, labels, service: service.map(Into::into) }
    }
}
