//! What was counted of one tenant.

use std::sync::Arc;

use opentelemetry_proto::tonic::resource::v1::Resource;

use super::attributes::of_resource;
use super::collected::{FamilySnapshot, SeriesSnapshot, SeriesState, Turn};
use super::family::Family;
use super::host_info::HostInfoPlan;
use super::plan::Plan;
use super::room::{LabelReport, Limits, Room, Tally};
use super::service_graphs::{EdgeTally, ServiceGraphs, ServiceGraphsPlan};
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
    /// When samples were last taken, milliseconds since the epoch.
    sampled_ms: u64,
    received: Received,
    /// Kept for its memory.
    key: Vec<u8>,
}

/// What came since that was last told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Received {
    pub(super) spans: u64,
    pub(super) bytes: u64,
    /// Spans that a filter left out of span metrics.
    pub(super) filtered: u64,
}

/// What there is of a tenant, and what came of its spans since that was last told.
#[derive(Clone, Debug)]
pub(super) struct Report {
    pub(super) received: Received,
    pub(super) series: Tally,
    /// Series there would be without limits, about.
    pub(super) series_demand: u64,
    pub(super) entities: Tally,
    pub(super) entity_demand: u64,
    pub(super) labels: Vec<LabelReport>,
    pub(super) names: Option<NamesReport>,
    /// Of service graphs, and how many ends wait.
    pub(super) edges: Option<(EdgeTally, usize)>,
}

/// What became of names of spans.
#[derive(Clone, Copy, Debug)]
pub(super) struct NamesReport {
    /// Spans whose name is not the pattern.
    pub(super) sanitized: u64,
    /// Series there are with patterns, or would be, without limits, about.
    pub(super) demand: u64,
}

/// What is the same for all spans of a resource.
struct OfResource<'a> {
    resource: &'a Arc<Resource>,
    labels: Option<ResourceLabels>,
    service: Option<Arc<str>>,
}

/// Of whom samples are taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Whose {
    All,
    /// Of those whose time it is.
    Due,
}

/// What was counted, and when samples were taken before.
#[derive(Debug)]
pub(super) struct Collection {
    pub(super) previous_ms: u64,
    pub(super) families: Vec<FamilySnapshot>,
}

impl Tenant {
    /// Nothing is counted yet; samples are as of others taken at `sampled_ms`.
    pub(super) fn new(plan: Arc<Plan>, sampled_ms: u64) -> Self {
        Self {
            room: Room::new(plan.limits),
            span_metrics: plan.span_metrics.as_ref().map(SpanMetrics::new),
            service_graphs: plan.service_graphs.as_ref().map(ServiceGraphs::new),
            hosts: plan.host_info.as_ref().map(HostInfoPlan::family),
            retired: Vec::new(),
            sampled_ms,
            received: Received::default(),
            key: Vec::new(),
            plan,
        }
    }

    /// Counts in another way from now on. Series that are called and counted as before go on, the others end.
    pub(super) fn replan(&mut self, plan: Arc<Plan>) {
        let mut before = std::mem::replace(self, Self::new(plan, self.sampled_ms));
        let entities = before.room.entities.active;
        self.room = before.room.with_limits(self.plan.limits);
        self.received = before.received;
        self.retired = before.retired;
        let edges = before
            .service_graphs
            .as_mut()
            .map(|graphs| (std::mem::take(&mut graphs.edges), graphs.requests.shape.labels.clone(), graphs.tally));
        let mut families: Vec<Family> = Vec::new();
        families.extend(before.span_metrics.map(|metrics| [metrics.spans, metrics.targets]).into_iter().flatten());
        families
            .extend(before.service_graphs.map(|graphs| [graphs.requests, graphs.connections]).into_iter().flatten());
        families.extend(before.hosts);
        let Self { room, span_metrics, service_graphs, hosts, .. } = self;
        for family in self::families(span_metrics, service_graphs, hosts) {
            if let Some(same) = families.iter().position(|before| before.shape == family.shape) {
                *family = families.swap_remove(same);
                family.enter(room);
            }
        }
        if let (Some(graphs), Some((edges, labels, tally))) = (service_graphs, edges) {
            graphs.tally = tally;
            if graphs.requests.shape.labels == labels {
                graphs.edges = edges;
            } else {
                // What waits has values of the labels of before.
                graphs.give_up_all(&edges);
            }
        }
        let mut gone = Room::default();
        for mut family in families {
            let mut series = Vec::new();
            family.end_stale(u64::MAX, &mut gone, |key, gone| {
                if gone.collected {
                    series.push(SeriesSnapshot { key, series: gone, state: SeriesState::Gone });
                }
            });
            self.retired.push(FamilySnapshot { shape: Arc::clone(&family.shape), series });
        }
        self.room.series.removed += gone.series.removed;
        self.room.entities.removed += entities.saturating_sub(self.room.entities.active);
        self.span_metrics.iter_mut().for_each(SpanMetrics::learn_names);
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
        let Self { plan, room, span_metrics, service_graphs, hosts, received, key, .. } = self;
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
                received.spans += 1;
                received.bytes += stored.bytes.len() as u64;
                plan.wanted.find(&seen.span, plan.asked(&seen), &mut values);
                // It is counted when it is over.
                if plan.is_partial(&seen, &values) {
                    continue;
                }
                if let (Some(plan), Some(metrics), Some(labels)) = (&plan.span_metrics, &mut *span_metrics, &of.labels)
                {
                    received.filtered += u64::from(!metrics.count(plan, &seen, labels, &values, room, key));
                }
                if let (Some(plan), Some(graphs), Some(service)) =
                    (&plan.service_graphs, &mut *service_graphs, &of.service)
                    && ServiceGraphsPlan::counts(seen.span.kind)
                {
                    graphs.count(plan, &seen, service, &values, room, key);
                }
            }
        }
    }

    /// Whether samples are taken now.
    pub(super) fn turn(&self, whose: Whose, now_ms: u64) -> Turn {
        match self.plan.interval_ms {
            None => Turn::Never,
            // Those whose time it is within a moment are taken together.
            Some(interval) if whose == Whose::Due && now_ms + interval / 10 < self.sampled_ms + interval => Turn::Later,
            Some(_) => Turn::Now,
        }
    }

    /// When samples are taken again, milliseconds since the epoch; none if they never are.
    pub(super) fn next_ms(&self) -> Option<u64> {
        Some(self.sampled_ms + self.plan.interval_ms?)
    }

    pub(super) fn trace_id_label(&self) -> Arc<str> {
        Arc::clone(&self.plan.trace_id_label)
    }

    /// What was counted so far. With samples, which are of `time_ms`, series in which nothing was counted since `oldest_ms`
    /// end, and those that are new were zero when samples were taken before.
    pub(super) fn collect(&mut self, turn: Turn, (time_ms, now_ms): (u64, u64), oldest_ms: u64) -> Collection {
        let previous_ms = self.sampled_ms;
        if turn != Turn::Later {
            self.sampled_ms = time_ms;
        }
        if let (Some(plan), Some(graphs)) = (&self.plan.service_graphs, &mut self.service_graphs) {
            graphs.expire_all(plan, now_ms, &mut self.room, &mut self.key);
        }
        let Self { room, span_metrics, service_graphs, hosts, retired, .. } = self;
        let families = families(span_metrics, service_graphs, hosts).map(|family| {
            let mut series = Vec::with_capacity(family.len());
            // Else their end would be told to nobody.
            if turn != Turn::Later {
                family.end_stale(oldest_ms, room, |key, gone| {
                    if gone.collected {
                        series.push(SeriesSnapshot { key, series: gone, state: SeriesState::Gone });
                    }
                });
            }
            family.each(|key, live| {
                let state = if live.collected { SeriesState::Steady } else { SeriesState::New };
                if state == SeriesState::New {
                    live.created_ms = previous_ms;
                }
                live.collected |= turn == Turn::Now;
                series.push(SeriesSnapshot { key: Arc::clone(key), series: live.clone(), state });
                if turn == Turn::Now {
                    live.histograms.iter_mut().flatten().for_each(|histogram| histogram.forget_exemplars());
                }
            });
            FamilySnapshot { shape: Arc::clone(&family.shape), series }
        });
        let mut families: Vec<_> = families.collect();
        if turn != Turn::Later {
            families.append(retired);
        }
        Collection { previous_ms, families }
    }

    /// Goes on with what was counted before a restart. Families that are called otherwise now begin anew.
    pub(super) fn restore(&mut self, saved: &[SavedFamily]) {
        let Self { room, span_metrics, service_graphs, hosts, .. } = self;
        for family in families(span_metrics, service_graphs, hosts) {
            let same = saved.iter().find(|saved| saved.is_of(&family.shape));
            for (key, series) in same.into_iter().flat_map(SavedFamily::series) {
                family.insert(key, series);
            }
            family.enter(room);
        }
        self.span_metrics.iter_mut().for_each(SpanMetrics::learn_names);
    }

    /// What there is, and would be without limits, since that was last told.
    pub(super) fn report(&mut self, now_ms: u64) -> Report {
        let Self { room, span_metrics, service_graphs, hosts, received, .. } = self;
        let of_spans = span_metrics.as_mut().map_or(0, |metrics| metrics.spans.demand(room, now_ms));
        let all: u64 = families(span_metrics, service_graphs, hosts).map(|family| family.demand(room, now_ms)).sum();
        let names = span_metrics.as_mut().and_then(|SpanMetrics { spans, names, .. }| {
            let names = names.as_mut()?;
            let would_be = names.would_be(now_ms).map(|would_be| would_be * spans.shape.weight() + all - of_spans);
            Some(NamesReport { sanitized: std::mem::take(&mut names.sanitized), demand: would_be.unwrap_or(all) })
        });
        Report {
            received: std::mem::take(received),
            series: room.series.take(),
            series_demand: all,
            entities: room.entities.take(),
            entity_demand: room.entity_demand(now_ms),
            labels: room.label_reports(now_ms),
            names,
            edges: service_graphs.as_mut().map(|graphs| (std::mem::take(&mut graphs.tally), graphs.edges.len())),
        }
    }

    pub(super) const fn limits(&self) -> Limits {
        self.room.limits
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
