//! Metrics of the services of the node, under the names that Beyla has.
//!
//! ```text
//! span ─► Request ─► label set of each kind ─► Series ─┐
//! /proc ─────────► ProcessSamples ─────────────────────────────┴─► Points ─► /metrics, OTLP
//! ```
//!
//! Every request that the agent sees is counted, whether its span is kept or not. A *label set* is what `service_name`,
//! `http_route` and the like are for some requests; it has a value for each metric of its kind. There are `max_series` of them
//! at most: what comes then is counted under the one label `otel_metric_overflow="true"`, as OpenTelemetry's SDKs do. Those
//! of which nothing was seen for a while are forgotten.

mod choice;
mod delta;
mod exponential;
mod export;
mod graph;
mod histogram;
mod labels;
mod models;
mod names;
mod otlp;
mod point;
mod processes;
mod protobuf;
mod request;
mod series;
mod service;
mod settings;
mod text;

#[cfg(test)]
pub(crate) mod tests;

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use prometheus_client::metrics::{counter::Counter, family::Family};

pub use choice::{LabelChoice, LabelRule};
pub use delta::Temporality;
pub use export::OtlpMetricsSettings;
pub(crate) use export::{MetricsExport, Source};
pub use graph::Peers;
pub(crate) use labels::{Labelled, Labels, Value as LabelValue};
pub(crate) use point::{Metric, Point, Prefix, Shape, Unit, Value};
pub(crate) use processes::INTERVAL as PROCESS_INTERVAL;
pub(crate) use protobuf::{MetricFamily, of_text, page};
pub(crate) use service::Service;
pub use settings::{Aggregation, Bounds, Buckets, Feature, Features, MetricsSettings};
pub use text::{Format, plain};

use crate::{
    decode::Role,
    discover::{Host, ProcTree, Process},
    inference::Inference,
};
use graph::Edge;
use labels::{Http, OfSpan, Rpc};
use models::Models;
use names::Kind;
use processes::ProcessUsage;
pub(crate) use request::Request;
use series::{At, Store};
use service::{Known, Services};

/// Every clone counts into the same cells.
#[derive(Clone, Debug)]
pub struct RequestMetrics {
    inner: Arc<Mutex<Inner>>,
    /// Asked for every request, so that one that is not counted costs nothing.
    is_on: Arc<AtomicBool>,
    wants_peers: Arc<AtomicBool>,
    skipped: Family<Vec<(&'static str, &'static str)>, Counter>,
    overflow: Counter,
}

#[derive(Debug, Default)]
struct Inner {
    settings: MetricsSettings,
    /// What has no service is of the node.
    node: Arc<Service>,
    host_id: String,
    services: Services,
    models: Models,
    store: Store,
    processes: ProcessUsage,
}

impl Default for RequestMetrics {
    fn default() -> Self {
        Self::new(MetricsSettings::default())
    }
}

impl RequestMetrics {
    /// Nothing was seen yet.
    pub fn new(settings: MetricsSettings) -> Self {
        let metrics = Self {
            inner: Arc::default(),
            is_on: Arc::default(),
            wants_peers: Arc::default(),
            skipped: Family::default(),
            overflow: Counter::default(),
        };
        metrics.configure(settings);
        metrics.skipped("end_unknown");
        metrics
    }

    /// What is measured from now on. Where buckets or labels become others, all that was counted is forgotten: it would be another
    /// thing under the same name.
    pub fn configure(&self, settings: MetricsSettings) {
        let features = settings.all_features();
        self.is_on.store(features != Features::NONE, Ordering::Relaxed);
        self.wants_peers.store(features.has(Feature::ApplicationServiceGraph), Ordering::Relaxed);
        let mut inner = self.lock();
        let what_is_counted = |of: &MetricsSettings| (of.buckets.clone(), of.aggregation, of.labels);
        if what_is_counted(&inner.settings) != what_is_counted(&settings) {
            inner.store = Store::default();
        }
        inner.settings = settings;
    }

    /// Which node this is.
    pub fn set_host(&self, host: &Host) {
        let mut inner = self.lock();
        inner.node = Arc::new(Service::node(host));
        host.id().unwrap_or_default().clone_into(&mut inner.host_id);
    }

    /// Whether anything is measured.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// Whether [`Self::count`] is to be told who is at the other end.
    pub fn wants_peers(&self) -> bool {
        self.wants_peers.load(Ordering::Relaxed)
    }

    /// Counts a request of `process` at its end, `now_ns` by the clock of the records. `is_kept` says that its span can be found,
    /// `peer` is the process at the other end if it is observed too.
    pub(crate) fn count(
        &self,
        request: &Request<'_>,
        process: &Arc<Process>,
        now_ns: u64,
        is_kept: bool,
        peer: Option<&Arc<Process>>,
    ) {
        if !self.is_on() {
            return;
        }
        // A duration that is not known is not invented: the span says so, and this counter.
        if !request.is_end_known {
            self.skipped("end_unknown").inc();
            return;
        }
        let mut inner = self.lock();
        let features = process.exports.features(inner.settings.features);
        if features == Features::NONE {
            return;
        }
        let own = inner.services.of(process);
        let peer = peer.map(|process| inner.services.of(process));
        let exemplar = (is_kept && inner.settings.exemplars).then(|| request.exemplar());
        let at = At { now_ns, begin_unix_ns: request.begin_unix_ns, exemplar };
        if inner.count(features, request, &own, peer.as_ref(), &at) {
            self.overflow.inc();
        }
    }

    /// Counts a request to a model, seen at its server or at its client.
    pub(crate) fn count_inference(
        &self,
        inference: &Inference,
        role: Role,
        request: &Request<'_>,
        process: &Arc<Process>,
        now_ns: u64,
        is_kept: bool,
    ) {
        if !process.exports.metrics {
            return;
        }
        let mut inner = self.lock();
        let exemplar = (is_kept && inner.settings.exemplars).then(|| request.exemplar());
        let at = At { now_ns, begin_unix_ns: request.begin_unix_ns, exemplar };
        let Inner { settings, services, models, store, .. } = &mut *inner;
        let own = services.of(process);
        if !models.count(inference, role, &own, &at, store, settings) {
            self.overflow.inc();
        }
    }

    /// Forgets what has not been seen for a while; to be called now and then.
    pub fn expire(&self, now_ns: u64) {
        let mut inner = self.lock();
        let Inner { settings, services, store, .. } = &mut *inner;
        store.expire(settings.expire, now_ns);
        services.forget_unused();
    }

    /// Looks at the processes of which there are requests, if that is wanted; to be called five seconds.
    pub fn look_at_processes(&self, tree: &ProcTree, now_ns: u64) {
        let mut inner = self.lock();
        let Inner { settings, services, .. } = &*inner;
        if !settings.all_features().has(Feature::ApplicationProcess) {
            return;
        }
        let wants = |process: &Process| process.exports.features(settings.features).has(Feature::ApplicationProcess);
        let all = services.processes().filter(|(process, _)| wants(process)).take(settings.max_series);
        let all: Vec<_> = all.collect();
        // Who counts requests does not wait for files to be read.
        let mut processes = std::mem::take(&mut inner.processes);
        drop(inner);
        processes.look(&all, now_ns, |tgid| tree.usage(tgid));
        self.lock().processes = processes;
    }

    /// Adds what the metrics cost in accuracy to what `/metrics` shows.
    pub(crate) fn register(&self, agent: &mut prometheus_client::registry::Registry) {
        let help = "Requests that are in no metric of requests, by cause";
        agent.register("metrics_skipped", help, self.skipped.clone());
        let help = "Requests counted under otel_metric_overflow, because there are metrics.max_series label sets";
        agent.register("metrics_overflow", help, self.overflow.clone());
    }

    /// The families as text of `/metrics`.
    pub(crate) fn write(&self, format: Format, out: &mut String) -> fmt::Result {
        text::write(self.points(), format, out)
    }

    /// Whether there are histograms that text cannot show.
    pub(crate) fn has_native(&self) -> bool {
        self.lock().settings.aggregation == Aggregation::Exponential
    }

    /// The families as messages.
    pub(crate) fn families(&self) -> Vec<MetricFamily> {
        protobuf::families(self.points())
    }

    /// The node, of which there is what has no service.
    pub(crate) fn node(&self) -> Arc<Service> {
        Arc::clone(&self.lock().node)
    }

    /// A copy: the lock is held by who counts requests.
    pub(crate) fn points(&self) -> Vec<Point> {
        let inner = self.lock();
        let mut points = inner.infos();
        inner.store.points(&inner.node, &mut points);
        if inner.settings.all_features().has(Feature::ApplicationProcess) {
            let processors = std::thread::available_parallelism().map_or(1, Into::into);
            inner.processes.points(processors, &mut points);
        }
        points
    }

    fn skipped(&self, cause: &'static str) -> Counter {
        self.skipped.get_or_create_owned(&vec![("cause", cause)])
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// True if there was no room for a label set.
    fn count(&mut self, features: Features, request: &Request<'_>, own: &Known, peer: Option<&Known>, at: &At) -> bool {
        let Self { settings, store, node, .. } = self;
        let has = |feature| features.has(feature);
        let seconds = Some(request.seconds());
        let bytes = |bytes: Option<i64>| bytes.map(|bytes| bytes as f64);
        let (asked, answered) = (bytes(request.asked_bytes), bytes(request.answered_bytes));
        let mut fits = true;
        if has(Feature::Application) {
            fits &= match (request.role, request.rpc_system) {
                (Role::Server, "") => {
                    store.add(Kind::HttpServer, own, &Http(request), &[seconds, asked, answered], at, settings)
                }
                (Role::Client, "") => {
                    store.add(Kind::HttpClient, own, &Http(request), &[seconds, asked, answered], at, settings)
                }
                (Role::Server, _) => store.add(Kind::RpcServer, own, &Rpc(request), &[seconds], at, settings),
                (Role::Client, _) => store.add(Kind::RpcClient, own, &Rpc(request), &[seconds], at, settings),
            };
        }
        let of_span = OfSpan(request);
        let one = Some(1.0);
        if has(Feature::ApplicationSpan) {
            fits &= store.add(Kind::Span, own, &of_span, &[seconds, one, asked, answered], at, settings);
        } else if has(Feature::ApplicationSpanSizes) {
            fits &= store.add(Kind::SpanSizes, own, &of_span, &[asked, answered], at, settings);
        }
        if has(Feature::ApplicationSpanOtel) {
            fits &= store.add(Kind::SpanOtel, own, &of_span, &[seconds, one], at, settings);
        }
        if has(Feature::ApplicationServiceGraph)
            && let Some(edge) = Edge::of(request, &own.service, peer.map(|peer| &*peer.service))
        {
            let node = Known { id: 0, service: Arc::clone(node) };
            let kind = match request.role {
                Role::Server => Kind::GraphServer,
                Role::Client => Kind::GraphClient,
            };
            fits &= store.add(kind, &node, &edge, &[seconds], at, settings);
            if edge.is_counted {
                let failed = Some(f64::from(u8::from(request.is_error)));
                fits &= store.add(Kind::Graph, &node, &edge, &[one, failed], at, settings);
            }
        }
        !fits
    }

    /// What there is: services, and the node.
    fn infos(&self) -> Vec<Point> {
        const OF_SPANS: [Feature; 4] = [
            Feature::ApplicationSpan,
            Feature::ApplicationSpanOtel,
            Feature::ApplicationSpanSizes,
            Feature::ApplicationServiceGraph,
        ];
        let features = self.settings.all_features();
        let mut points = Vec::new();
        let mut add = |metric, service: &Arc<Service>, labels: Arc<Labels>| {
            let value = Value::Gauge(1.0);
            points.push(Point { metric, service: Arc::clone(service), labels, since_unix_ns: 0, value });
        };
        let is_on = features != Features::NONE;
        for service in self.services.all().filter(|_| is_on) {
            add(names::TARGET_INFO, service, Arc::clone(&service.info));
            if features.has_any(&OF_SPANS) {
                add(names::TRACES_TARGET_INFO, service, Arc::clone(&service.info));
            }
        }
        if features.has(Feature::ApplicationHost) && self.services.all().next().is_some() {
            let labels = Labels::of(&labels::HostInfo(&self.host_id));
            add(names::TRACES_HOST_INFO, &self.node, Arc::new(labels));
        }
        points
    }
}
