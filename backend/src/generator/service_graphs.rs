//! `traces_service_graph_…`: requests from service to service, known by both of their spans or by one that names the other
//! end.

use std::sync::Arc;

use coati_common::stitch::{caller_of, provisional_trace_id};

use super::attributes::{Asked, Wanted, found, label_name, of_resource, text_of};
use super::edges::{Connection, Edge, EdgeKey, Edges};
use super::family::{Family, Labels, Shape};
use super::filter::{Filter, FilterError};
use super::key::Lengths;
use super::parts::{ServiceGraphsParts, native_buckets};
use super::room::Room;
use super::span::{Multiplier, Seen};
use crate::config::GeneratorConfig;
use crate::otlp::ValueRef;

/// Labels that dimensions must not be taken for.
const INTRINSIC: [&str; 4] = ["client", "server", "connection_type", "virtual_node"];

/// Places in [`Shape`]'s lists, where they are made.
const REQUESTS: usize = 0;
const FAILED: usize = 1;
const SERVER: usize = 0;
const CLIENT: usize = 1;
const MESSAGING: usize = 2;

const HISTOGRAMS: [&str; 3] = [
    "traces_service_graph_request_server_seconds",
    "traces_service_graph_request_client_seconds",
    "traces_service_graph_request_messaging_system_seconds",
];

/// Who calls a service whose caller sends no spans.
const USER: &str = "user";

/// Kinds of spans, as OTLP numbers them.
const SERVER_KIND: i32 = 2;
const CLIENT_KIND: i32 = 3;
const PRODUCER_KIND: i32 = 4;
const CONSUMER_KIND: i32 = 5;

/// What is counted, the same for all tenants.
#[derive(Clone, Debug)]
pub(super) struct ServiceGraphsPlan {
    wait_ms: u64,
    max_items: usize,
    /// Keys, and their numbers among the attributes of spans.
    dimensions: Vec<(String, usize)>,
    prefixed: bool,
    virtual_node_label: bool,
    parts: ServiceGraphsParts,
    messaging: bool,
    /// Numbers of attributes.
    peer: Vec<usize>,
    database: Vec<usize>,
    database_host: [usize; 3],
    database_port: usize,
    filter: Filter,
    multiplier: Multiplier,
    lengths: Lengths,
    asked: Asked,
    shape: Shape,
}

/// What was counted of a tenant.
#[derive(Debug)]
pub(super) struct ServiceGraphs {
    pub(super) requests: Family,
    /// Who calls whom.
    pub(super) connections: Family,
    pub(super) edges: Edges,
    /// Ends that a filter left out: the other end is left out too.
    dropped: Edges,
    pub(super) tally: EdgeTally,
}

/// What became of ends of requests since that was last told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EdgeTally {
    /// Given up: of clients, of servers.
    pub(super) expired: [u64; 2],
    /// Edges that were counted.
    pub(super) completed: u64,
    /// Ends that a filter left out,
    pub(super) filtered: u64,
    /// and the edges that are missing because of that.
    pub(super) dropped: u64,
}

/// Where an end waits, and where its other end may.
#[derive(Clone, Copy, Debug)]
struct Places {
    here: EdgeKey,
    /// If the other end may be on another node.
    afar: Option<EdgeKey>,
    of_client: bool,
}

impl ServiceGraphsPlan {
    pub(super) fn new(
        generator: &GeneratorConfig,
        parts: ServiceGraphsParts,
        wanted: &mut Wanted,
    ) -> Result<Self, FilterError> {
        let config = &generator.processor.service_graphs;
        let dimensions: Vec<_> = config.dimensions.iter().map(|key| (key.clone(), wanted.add(key))).collect();
        let mut labels: Vec<Box<str>> = ["client", "server", "connection_type"].map(Into::into).to_vec();
        let prefixes: &[&str] = if config.enable_client_server_prefix { &["client_", "server_"] } else { &[""] };
        for prefix in prefixes {
            labels.extend(dimensions.iter().map(|(key, _)| label_name(&format!("{prefix}{key}"), &INTRINSIC).into()));
        }
        if config.enable_virtual_node_label {
            labels.push("virtual_node".into());
        }
        let messaging = parts.latency && config.enable_messaging_system_latency_histogram;
        let counters = ["traces_service_graph_request_total", "traces_service_graph_request_failed_total"];
        let shape = Shape {
            counters: counters.into_iter().filter(|_| parts.requests).map(Into::into).collect(),
            histograms: match (parts.latency, messaging) {
                (false, _) => &[],
                (true, false) => HISTOGRAMS.split_at(MESSAGING).0,
                (true, true) => &HISTOGRAMS,
            },
            labels: Labels::Named(labels),
            bounds: config.histogram_buckets.0.clone(),
            kind: generator.generate_native_histograms,
            native: native_buckets(generator),
            info: false,
        };
        Ok(Self {
            wait_ms: u64::try_from(config.wait.as_millis()).unwrap_or(u64::MAX),
            max_items: config.max_items,
            dimensions,
            prefixed: config.enable_client_server_prefix,
            virtual_node_label: config.enable_virtual_node_label,
            parts,
            messaging,
            peer: config.peer_attributes.iter().map(|key| wanted.add(key)).collect(),
            database: config.database_name_attributes.iter().map(|key| wanted.add(key)).collect(),
            database_host: ["peer.service", "server.address", "network.peer.address"].map(|key| wanted.add(key)),
            database_port: wanted.add("network.peer.port"),
            filter: Filter::new(&config.filter_policies, wanted)?,
            multiplier: Multiplier::new(&config.span_multiplier_key, config.enable_tracestate_span_multiplier, wanted),
            lengths: Lengths::new(&generator.registry),
            asked: wanted.added(),
            shape,
        })
    }

    /// Whether a span is an end of a request.
    pub(super) const fn counts(kind: i32) -> bool {
        matches!(kind, SERVER_KIND..=CONSUMER_KIND)
    }

    /// Which attributes of a span that is counted are looked at; none if nothing depends on them.
    pub(super) fn asked(&self, seen: &Seen<'_>) -> Asked {
        let needed = matches!(seen.span.kind, CLIENT_KIND | PRODUCER_KIND)
            || seen.span.is_root()
            || seen.is_from_afar()
            || !self.dimensions.is_empty()
            || self.multiplier.wants_attributes()
            || !self.filter.is_empty();
        if needed { self.asked } else { Asked::default() }
    }

    fn peer(&self, values: &[Option<ValueRef<'_>>]) -> Option<Box<str>> {
        self.peer.iter().find_map(|number| found(values, *number)).map(|value| text_of(value).into())
    }

    /// Name of the database that a client's span asks.
    fn database(&self, values: &[Option<ValueRef<'_>>]) -> Option<Arc<str>> {
        let name = self.database.iter().find_map(|number| found(values, *number))?;
        let [service, server, address] = self.database_host.map(|number| found(values, number));
        let host = match (service.or(server), address, found(values, self.database_port)) {
            (Some(host), ..) => text_of(host),
            (None, Some(address), Some(port)) => format!("{}:{}", text_of(address), text_of(port)),
            (None, Some(address), None) => text_of(address),
            (None, None, _) => text_of(name),
        };
        Some(host.into())
    }

    fn fill_dimensions(&self, edge: &mut Edge, of_client: bool, seen: &Seen<'_>, values: &[Option<ValueRef<'_>>]) {
        let count = self.dimensions.len();
        edge.dimensions.resize(if self.prefixed { 2 * count } else { count }, Box::default());
        let begin = if self.prefixed && !of_client { count } else { 0 };
        for ((key, number), slot) in self.dimensions.iter().zip(edge.dimensions.iter_mut().skip(begin)) {
            let text = of_resource(&seen.resource.attributes, key);
            if let Some(text) = text.or_else(|| found(values, *number).map(text_of)) {
                *slot = text.into();
            }
        }
    }
}

impl ServiceGraphs {
    pub(super) fn new(plan: &ServiceGraphsPlan) -> Self {
        let connections = Shape::info("traces_service_graph_connection_info".into(), plan.shape.labels.clone());
        let (requests, connections) = (Family::new(plan.shape.clone()), Family::new(connections));
        let (edges, dropped) = (Edges::default(), Edges::default());
        Self { requests, connections, edges, dropped, tally: EdgeTally::default() }
    }

    /// Counts a span that is an end of a request; `service` sent it. `values` are what was found of the wanted attributes,
    /// `key` is reused.
    pub(super) fn count(
        &mut self,
        plan: &ServiceGraphsPlan,
        seen: &Seen<'_>,
        service: &Arc<str>,
        values: &[Option<ValueRef<'_>>],
        room: &mut Room,
        key: &mut Vec<u8>,
    ) {
        let span = &seen.span;
        let places = Places::of(seen);
        let Places { here, of_client, .. } = places;
        if !plan.filter.is_empty() && self.is_left_out(plan, seen, &places, service, values) {
            return;
        }
        // Nobody can be the other end of a root.
        let waited = if of_client || !span.is_root() {
            places.of_the_other().into_iter().flatten().find_map(|key| self.edges.take(&key))
        } else {
            None
        };
        // Two of the same end: the first one was sent twice, or answered by several.
        let (mut edge, twin) = match waited {
            Some(edge) if of_client == edge.client.is_some() => (Edge::default(), Some(edge)),
            Some(edge) => (edge, None),
            None => (Edge::default(), None),
        };
        if edge.client.is_none() && edge.server.is_none() {
            edge.trace_id = seen.trace.0;
        }
        edge.failed |= seen.failed();
        edge.times = plan.multiplier.of(seen, values).max(edge.times);
        if edge.connection == Connection::Direct && matches!(span.kind, PRODUCER_KIND | CONSUMER_KIND) {
            edge.connection = Connection::Messaging;
        }
        if !plan.dimensions.is_empty() {
            plan.fill_dimensions(&mut edge, of_client, seen, values);
        }
        if of_client {
            edge.client = Some(Arc::clone(service));
            edge.client_seconds = Some(seen.seconds());
            edge.client_end_ns = span.end_time_unix_nano;
            if edge.server.is_none() {
                match plan.database(values) {
                    None => edge.peer = plan.peer(values),
                    // The edge is complete, whoever else is named.
                    Some(database) => (edge.connection, edge.server) = (Connection::Database, Some(database)),
                }
            }
        } else {
            edge.server = Some(Arc::clone(service));
            edge.server_seconds = Some(seen.seconds());
            edge.server_start_ns = span.start_time_unix_nano;
            if edge.client.is_none() && (span.is_root() || seen.is_from_afar()) {
                edge.peer = plan.peer(values);
            }
            if edge.client.is_none() && span.is_root() {
                edge.called_from_outside();
            }
        }
        if let Some(twin) = twin {
            self.give_up(plan, twin, &here, room, key, seen.now_ms);
        }
        if edge.client.is_some() && edge.server.is_some() {
            self.complete(plan, &edge, room, key, seen.now_ms, &seen.trace.0);
            return;
        }
        self.edges.wait(places.own(), edge, seen.now_ms.saturating_add(plan.wait_ms));
        self.expire(plan, seen.now_ms, room, key);
    }

    /// Whether a filter leaves out an end, or its other end.
    fn is_left_out(
        &mut self,
        plan: &ServiceGraphsPlan,
        seen: &Seen<'_>,
        places: &Places,
        service: &Arc<str>,
        values: &[Option<ValueRef<'_>>],
    ) -> bool {
        let Self { edges, dropped, tally, .. } = self;
        let keys = || places.of_the_other().into_iter().flatten();
        let is_other = |edge: &Edge| places.of_client != edge.client.is_some();
        let has_other = places.of_client || !seen.span.is_root();
        if plan.filter.passes(&seen.resource.attributes, &seen.span, values) {
            let is_dropped = has_other && keys().any(|key| dropped.get(&key).is_some_and(is_other));
            tally.dropped += u64::from(is_dropped);
            return is_dropped;
        }
        tally.filtered += 1;
        if !has_other {
            return true;
        }
        if let Some(key) = keys().find(|key| edges.get(key).is_some_and(is_other)) {
            edges.take(&key);
            tally.dropped += 1;
        }
        let mut end = Edge::default();
        *(if places.of_client { &mut end.client } else { &mut end.server }) = Some(Arc::clone(service));
        dropped.wait(places.own(), end, seen.now_ms.saturating_add(plan.wait_ms));
        while dropped.expired(seen.now_ms, plan.max_items).is_some() {}
        true
    }

    /// Gives up what has waited for too long.
    pub(super) fn expire(&mut self, plan: &ServiceGraphsPlan, now_ms: u64, room: &mut Room, key: &mut Vec<u8>) {
        while let Some((edge_key, edge)) = self.edges.expired(now_ms, plan.max_items) {
            self.give_up(plan, edge, &edge_key, room, key, now_ms);
        }
    }

    /// The same, and forgets what a filter left out that long ago.
    pub(super) fn expire_all(&mut self, plan: &ServiceGraphsPlan, now_ms: u64, room: &mut Room, key: &mut Vec<u8>) {
        self.expire(plan, now_ms, room, key);
        while self.dropped.expired(now_ms, plan.max_items).is_some() {}
    }

    /// Counts what waits as given up.
    pub(super) fn give_up_all(&mut self, edges: &Edges) {
        for (_, _, edge) in edges.iter() {
            if let Some(count) = self.tally.expired.get_mut(usize::from(edge.client.is_none())) {
                *count += 1;
            }
        }
    }

    fn give_up(
        &mut self,
        plan: &ServiceGraphsPlan,
        mut edge: Edge,
        waited_at: &EdgeKey,
        room: &mut Room,
        key: &mut Vec<u8>,
        now_ms: u64,
    ) {
        if edge.client.is_none() && is_from_afar(waited_at) {
            edge.called_from_outside();
        } else if edge.client.is_some()
            && let Some(peer) = edge.peer.take()
        {
            (edge.server, edge.virtual_node, edge.connection) = (Some(peer.into()), "server", Connection::Virtual);
        } else {
            if let Some(count) = self.tally.expired.get_mut(usize::from(edge.client.is_none())) {
                *count += 1;
            }
            return;
        }
        let trace_id = edge.trace_id;
        self.complete(plan, &edge, room, key, now_ms, &trace_id);
    }

    fn complete(
        &mut self,
        plan: &ServiceGraphsPlan,
        edge: &Edge,
        room: &mut Room,
        key: &mut Vec<u8>,
        now_ms: u64,
        trace_id: &[u8; 16],
    ) {
        self.tally.completed += 1;
        key.clear();
        let mut push = |text: &str| plan.lengths.push(key, text);
        push(edge.client.as_deref().unwrap_or_default());
        push(edge.server.as_deref().unwrap_or_default());
        push(edge.connection.name());
        edge.dimensions.iter().for_each(|value| push(value));
        if plan.virtual_node_label {
            push(edge.virtual_node);
        }
        let ServiceGraphsParts { requests, latency, connections } = plan.parts;
        if connections && let Some((_, series)) = self.connections.of(key, now_ms, room) {
            series.counters = [1.0, 0.0];
        }
        if !requests && !latency {
            return;
        }
        let Some((shape, series)) = self.requests.of(key, now_ms, room) else { return };
        let times = edge.times;
        if requests && let Some(requests) = series.counters.get_mut(REQUESTS) {
            *requests += times;
        }
        if requests && let Some(failed) = series.counters.get_mut(FAILED).filter(|_| edge.failed) {
            *failed += times;
        }
        if !latency {
            return;
        }
        // Of an end that sends no spans the duration is what the other end saw.
        let (client, server) = (edge.client_seconds, edge.server_seconds);
        for (histogram, seconds) in [(SERVER, server.or(client)), (CLIENT, client.or(server))] {
            if let Some(seconds) = seconds {
                series.observe(shape, histogram, seconds, times, trace_id);
            }
        }
        if plan.messaging && edge.connection == Connection::Messaging {
            let seconds = edge.server_start_ns.saturating_sub(edge.client_end_ns) as f64 / 1e9;
            series.observe(shape, MESSAGING, seconds, times, trace_id);
        }
    }
}

impl Places {
    fn of(seen: &Seen<'_>) -> Self {
        let of_client = matches!(seen.span.kind, CLIENT_KIND | PRODUCER_KIND);
        let joint = if of_client { seen.span.span_id } else { seen.span.parent_span_id };
        let of_agent = joint.try_into().ok().filter(|_| seen.of_agent);
        let afar = of_agent.map(|joint| edge_key(&provisional_trace_id(joint), joint.as_slice()));
        Self { here: edge_key(&seen.trace.0, joint), afar, of_client }
    }

    /// Where this end waits.
    fn own(&self) -> EdgeKey {
        self.afar.filter(|_| self.of_client).unwrap_or(self.here)
    }

    /// Where the other end may wait.
    fn of_the_other(&self) -> [Option<EdgeKey>; 2] {
        [Some(self.here), self.afar]
    }
}

impl Edge {
    /// Of the client's end nothing will come.
    fn called_from_outside(&mut self) {
        let client = self.peer.take().map_or_else(|| USER.into(), Into::into);
        (self.client, self.virtual_node, self.connection) = (Some(client), "client", Connection::Virtual);
    }
}

/// Whether a server's end that waits there is called from another node, or from outside.
fn is_from_afar(key: &EdgeKey) -> bool {
    let (trace, span) = key.split_at(16);
    trace.try_into().ok().and_then(caller_of).is_some_and(|caller| caller == span)
}

fn edge_key(trace: &[u8; 16], span: &[u8]) -> EdgeKey {
    let mut key = [0; 24];
    let (of_trace, of_span) = key.split_at_mut(trace.len());
    of_trace.copy_from_slice(trace);
    match span.first_chunk::<8>() {
        Some(span) => of_span.copy_from_slice(span),
        None => of_span.iter_mut().zip(span).for_each(|(to, from)| *to = *from),
    }
    key
}
