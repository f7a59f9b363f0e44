//! The same numbers as on `/metrics`, for OTLP: nothing is counted twice, as these are read from the cells that are shown there.

use std::sync::Arc;

use prometheus_client::metrics::{counter::Counter, gauge::Gauge};

use super::{DropCause, LOSS_CAUSES, RECORD_KINDS, RequestOutcome, Telemetry, kind_name, process};
use crate::metrics::{LabelValue, Labelled, Labels, Metric, Point, Prefix, Service, Shape, Unit, Value};

/// One label, or none.
struct Label(Option<(&'static str, &'static str)>);

impl Labelled for Label {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, LabelValue<'a>)) {
        if let Self(Some((name, value))) = self {
            see(name, LabelValue::Text(value));
        }
    }
}

/// Points in the making.
struct Points {
    node: Arc<Service>,
    since_unix_ns: u64,
    all: Vec<Point>,
}

impl Points {
    fn add(&mut self, otlp: &'static str, unit: Unit, label: Option<(&'static str, &'static str)>, value: Value) {
        let shape = if matches!(value, Value::Gauge(_)) { Shape::Gauge } else { Shape::Counter };
        let metric = Metric { otlp, prometheus: "", help: "", unit, shape, prefix: Prefix::None };
        self.all.push(Point {
            metric,
            service: Arc::clone(&self.node),
            labels: Arc::new(Labels::of(&Label(label))),
            since_unix_ns: self.since_unix_ns,
            value,
        });
    }

    fn counter(&mut self, otlp: &'static str, unit: &'static str, cell: &Counter) {
        self.add(otlp, Unit::Other(unit), None, Value::Counter(cell.get() as f64));
    }

    fn gauge(&mut self, otlp: &'static str, unit: &'static str, cell: &Gauge) {
        self.add(otlp, Unit::Other(unit), None, Value::Gauge(cell.get() as f64));
    }

    fn counters<const N: usize>(
        &mut self,
        otlp: &'static str,
        unit: &'static str,
        label: &'static str,
        cells: [(&'static str, Counter); N],
    ) {
        for (value, cell) in cells {
            self.add(otlp, Unit::Other(unit), Some((label, value)), Value::Counter(cell.get() as f64));
        }
    }
}

impl Telemetry {
    /// What the agent tells of itself.
    pub(crate) fn points(&self) -> Vec<Point> {
        let (node, since_unix_ns) = (self.requests.node(), self.started_unix_ns);
        let mut points = Points { node, since_unix_ns, all: Vec::new() };
        let records = RECORD_KINDS.map(|kind| (kind_name(kind), self.records(kind)));
        let losses = LOSS_CAUSES.map(|cause| (cause, self.losses(cause)));
        let dropped = DropCause::ALL.map(|cause| (cause.name(), self.spans_dropped(cause)));
        let requests = RequestOutcome::ALL.map(|outcome| (outcome.name(), self.export_requests(outcome)));
        points.counters("coati.agent.records", "{record}", "kind", records);
        points.counters("coati.agent.losses", "{record}", "cause", losses);
        points.counter("coati.agent.ring.sequence_gaps", "{record}", &self.sequence_gaps);
        points.counter("coati.agent.parse_failures", "{message}", &self.parse_failures);
        points.counter("coati.agent.exchanges", "{request}", &self.exchanges);
        points.counter("coati.agent.spans", "{span}", &self.spans);
        points.counter("coati.agent.spans.exported", "{span}", &self.spans_exported);
        points.counters("coati.agent.spans.dropped", "{span}", "cause", dropped);
        points.counters("coati.agent.export.requests", "{request}", "outcome", requests);
        points.gauge("coati.agent.exchanges.open", "{request}", &self.open_exchanges);
        points.gauge("coati.agent.export.queue.length", "{span}", &self.queue_length);
        points.gauge("coati.agent.processes", "{process}", &self.processes);
        if let Some(reading) = process::read() {
            points.add("process.memory.usage", Unit::Bytes, None, Value::Gauge(reading.resident_bytes as f64));
            points.add("process.cpu.time", Unit::Seconds, None, Value::Counter(reading.cpu_seconds));
        }
        points.all
    }
}
