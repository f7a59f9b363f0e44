//! What was counted of one tenant.

use std::sync::Arc;

use opentelemetry_proto::tonic::resource::v1::Resource;

use super::attributes::of_resource;
use super::collected::{FamilySnapshot, SeriesSnapshot, SeriesState};
use super::family::{Family, OVERFLOW, Room};
use super::host_info::HostInfoPlan;
use super::plan::Plan;
use super::service_graphs::{ServiceGraphs, ServiceGraphsPlan};
use super::span::Seen;
use super::span_metrics::{ResourceLabels, SpanMetrics};
use super::state::SavedFamily;
use crate::live::Trace;
use coati_common::wellknown::resource::SERVICE_NAME;

/// What was counted of one tenant.
#[derive(Debug)]
pub(super) struct Tenant {
    plan: Arc<Plan>,
    pub(super) room: Room,
    pub(super) span_metrics: Option<SpanMetrics>,
    pub(super) service_graphs: Option<ServiceGraphs>,
    hosts: Option<Family>,
    /// Series of before the settings changed, which end with the next collection.
    retired: Vec<FamilySnapshot>,
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
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        Self {
            room: Room { max: plan.max_active_series, ..Room::default() },
            span_metrics: plan.span_metrics.as_ref().map(SpanMetrics::new),
            service_graphs: plan.service_graphs.as_ref().map(ServiceGraphs::new),
            hosts: plan.host_info.as_ref().map(HostInfoPlan::family),
            retired: Vec::new(),
            spans: 0,
            filtered: 0,
            bytes: 0,
            key: Vec::new(),
            plan,
        }
    }

    /// Counts in another way from now on. Series that are called and counted as before go on, the others end.
    pub(super) fn replan(&mut self, plan: Arc<Plan>) {
        let mut fresh = Self::new(plan);
        std::mem::swap(self, &mut fresh);
        let mut before = fresh;
        let max = self.room.max;
        self.room = Room { max, ..before.room };
        (self.spans, self.filtered, self.bytes) = (before.spans, before.filtered, before.bytes);
        self.retired = std::mem::take(&mut before.retired);
        let edges = before.service_graphs.as_mut().map(|graphs| {
            let tally = (graphs.expired, graphs.completed);
            (std::mem::take(&mut graphs.edges), graphs.requests.shape.labels.clone(), tally)
        });
        let mut families: Vec<Family> = Vec::new();
        families.extend(before.span_metrics.map(|metrics| [metrics.spans, metrics.targets]).into_iter().flatten());
        families
            .extend(before.service_graphs.map(|graphs| [graphs.requests, graphs.connections]).into_iter().flatten());
        families.extend(before.hosts);
        let Self { span_metrics, service_graphs, hosts, .. } = self;
        for family in self::families(span_metrics, service_graphs, hosts) {
            if let Some(same) = families.iter().position(|before| before.shape == family.shape) {
                *family = families.swap_remove(same);
            }
        }
        if let (Some(graphs), Some((edges, labels, (expired, completed)))) = (service_graphs, edges) {
            (graphs.expired, graphs.completed) = (expired, completed);
            if graphs.requests.shape.labels == labels {
                graphs.edges = edges;
            } else {
                // What waits has values of the labels of before.
                graphs.give_up_all(&edges);
            }
        }
        for mut family in families {
            let mut series = Vec::new();
            family.end_stale(u64::MAX, &mut self.room, |key, gone| {
                if gone.collected {
                    series.push(SeriesSnapshot { key, series: gone, state: SeriesState::Gone });
                }
            });
            self.retired.push(FamilySnapshot { shape: Arc::clone(&family.shape), series });
        }
    }

    /// The kinds of metrics, as the configuration calls them, and whether they are made.
    pub(super) fn processors(&self) -> [(&'static str, bool); 3] {
        let Plan { span_metrics, service_graphs, host_info, .. } = &*self.plan;
        [
            ("span-metrics", span_metrics.is_some()),
            ("service-graphs", service_graphs.is_some()),
            ("host-info", host_info.is_some()),
        ]
    }

    /// Counts spans that came at a time, milliseconds since the epoch.
    pub(super) fn count(&mut self, traces: &[Trace], now_ms: u64) {
        let Self { plan, room, span_metrics, service_graphs, hosts, spans, filtered, bytes, key, .. } = self;
        let mut resources: Vec<OfResource<'_>> = Vec::new();
        let mut values = Vec::new();
        for trace in traces {
            for stored in &trace.spans {
                let resource = &stored.batch.resource;
                let known = resources.iter().rposition(|known| Arc::ptr_eq(known.resource, resource));
                let place = known.unwrap_or_else(|| {
                    resources.push(OfResource::new(plan, resource));
                    if let (Some(plan), Some(hosts)) = (&plan.host_info, &mut *hosts) {
                        plan.count(hosts, resource, now_ms, room, key);
                    }
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
    /// Those that are new were zero at `previous_ms`.
    pub(super) fn collect(&mut self, (previous_ms, now_ms): (u64, u64), oldest_ms: u64) -> (Vec<FamilySnapshot>, u64) {
        if let (Some(plan), Some(graphs)) = (&self.plan.service_graphs, &mut self.service_graphs) {
            graphs.expire(plan, now_ms, &mut self.room, &mut self.key);
        }
        let Self { room, span_metrics, service_graphs, hosts, retired, .. } = self;
        let mut ended = 0;
        let families = families(span_metrics, service_graphs, hosts).map(|family| {
            let mut series = Vec::with_capacity(family.len());
            ended += family.end_stale(oldest_ms, room, |key, gone| {
                if gone.collected {
                    series.push(SeriesSnapshot { key, series: gone, state: SeriesState::Gone });
                }
            });
            family.each(|key, live| {
                let state = if live.collected { SeriesState::Steady } else { SeriesState::New };
                if state == SeriesState::New {
                    live.created_ms = previous_ms;
                }
                live.collected = true;
                series.push(SeriesSnapshot { key: Arc::clone(key), series: live.clone(), state });
                live.histograms.iter_mut().flatten().for_each(|histogram| histogram.forget_exemplars());
            });
            FamilySnapshot { shape: Arc::clone(&family.shape), series }
        });
        let mut families: Vec<_> = families.collect();
        families.append(retired);
        (families, ended)
    }

    /// Goes on with what was counted before a restart. Families that are called otherwise now begin anew.
    pub(super) fn restore(&mut self, saved: &[SavedFamily]) {
        let Self { room, span_metrics, service_graphs, hosts, .. } = self;
        for family in families(span_metrics, service_graphs, hosts) {
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
    hosts: &'a mut Option<Family>,
) -> impl Iterator<Item = &'a mut Family> {
    let of_spans = span_metrics.iter_mut().flat_map(|metrics| [&mut metrics.spans, &mut metrics.targets]);
    let of_graphs = service_graphs.iter_mut().flat_map(|graphs| [&mut graphs.requests, &mut graphs.connections]);
    of_spans.chain(of_graphs).chain(hosts)
}

impl<'a> OfResource<'a> {
    fn new(plan: &Plan, resource: &'a Arc<Resource>) -> Self {
        let labels = plan.span_metrics.as_ref().map(|plan| plan.of_resource(resource));
        // Who has no name is no node of a graph.
        let service = plan.service_graphs.as_ref().and_then(|_| of_resource(&resource.attributes, SERVICE_NAME));
        Self { resource, labels, service: service.map(Into::into) }
    }
}
