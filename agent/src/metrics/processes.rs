//! What the processes use that serve requests or make them.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use coati_common::wellknown::resource as key;

use super::{
    labels::{Labelled, Labels, Value as LabelValue},
    point::{Metric, Point, Prefix, Shape, Unit, Value},
    service::Service,
};
use crate::discover::{Process, Usage};

/// How often they are looked at, as Beyla does.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

const fn metric(otlp: &'static str, prometheus: &'static str, help: &'static str, unit: Unit, shape: Shape) -> Metric {
    Metric { otlp, prometheus, help, unit, shape, prefix: Prefix::Service }
}

const CPU_TIME: Metric = metric(
    "process.cpu.time",
    "process_cpu_time_seconds",
    "Processor time of a process",
    Unit::Seconds,
    Shape::Counter,
);
const CPU_UTILIZATION: Metric = metric(
    "process.cpu.utilization",
    "process_cpu_utilization_ratio",
    "Share of all processors that a process has used lately",
    Unit::Ratio,
    Shape::Gauge,
);
const MEMORY: Metric = metric(
    "process.memory.usage",
    "process_memory_usage_bytes",
    "Resident memory of a process",
    Unit::Bytes,
    Shape::Gauge,
);
const VIRTUAL_MEMORY: Metric = metric(
    "process.memory.virtual",
    "process_memory_virtual_bytes",
    "Address space of a process",
    Unit::Bytes,
    Shape::Gauge,
);
const DISK: Metric = metric(
    "process.disk.io",
    "process_disk_io_bytes",
    "Bytes that a process has read from disks and written to them",
    Unit::Bytes,
    Shape::Counter,
);

#[cfg(test)]
pub(super) const ALL: [Metric; 5] = [CPU_TIME, CPU_UTILIZATION, MEMORY, VIRTUAL_MEMORY, DISK];

const MODE: &str = "cpu.mode";

/// The newest look at each process.
#[derive(Debug, Default)]
pub(super) struct ProcessUsage {
    looks: HashMap<u32, Look>,
}

#[derive(Debug)]
struct Look {
    /// Weak, so that it is forgotten when nobody else knows it.
    process: Weak<Process>,
    command: String,
    service: Arc<Service>,
    usage: Usage,
    at_ns: u64,
    /// Seconds of processor time in a second, in programs and in the kernel; `None` at the first look.
    rates: Option<(f64, f64)>,
}

impl ProcessUsage {
    /// Looks at these processes, and forgets others. `usage` says what one uses.
    pub(super) fn look(
        &mut self,
        processes: &[(Arc<Process>, Arc<Service>)],
        now_ns: u64,
        usage: impl Fn(u32) -> Option<Usage>,
    ) {
        let mut before = std::mem::take(&mut self.looks);
        for (process, service) in processes {
            let Some(usage) = usage(process.tgid) else { continue };
            // Its number may be another process's by now.
            let earlier = before.remove(&process.tgid).filter(|look| look.process.as_ptr() == Arc::as_ptr(process));
            let rates = earlier.as_ref().and_then(|look| look.rates(&usage, now_ns));
            let command = process.attribute(key::PROCESS_COMMAND).to_owned();
            let (weak, service) = (Arc::downgrade(process), Arc::clone(service));
            let look = Look { process: weak, command, service, usage, at_ns: now_ns, rates };
            self.looks.insert(process.tgid, look);
        }
    }

    /// Adds what was seen. `processors` is how many the node has.
    pub(super) fn points(&self, processors: usize, points: &mut Vec<Point>) {
        for (tgid, look) in &self.looks {
            let Look { command, service, usage, rates, .. } = look;
            let mut add = |metric: Metric, name: &'static str, kind: &'static str, value: Value| {
                let labels = Labels::of(&OfProcess { tgid: *tgid, command, name, kind });
                let (service, labels) = (Arc::clone(service), Arc::new(labels));
                points.push(Point { metric, service, labels, since_unix_ns: 0, value });
            };
            add(CPU_TIME, MODE, "user", Value::Counter(usage.user_seconds));
            add(CPU_TIME, MODE, "system", Value::Counter(usage.system_seconds));
            if let Some((user, system)) = rates {
                add(CPU_UTILIZATION, MODE, "user", Value::Gauge(user / processors as f64));
                add(CPU_UTILIZATION, MODE, "system", Value::Gauge(system / processors as f64));
            }
            add(MEMORY, "", "", Value::Gauge(usage.resident_bytes as f64));
            add(VIRTUAL_MEMORY, "", "", Value::Gauge(usage.virtual_bytes as f64));
            if let Some((read, written)) = usage.disk {
                add(DISK, "disk.io.direction", "read", Value::Counter(read as f64));
                add(DISK, "disk.io.direction", "write", Value::Counter(written as f64));
            }
        }
    }
}

impl Look {
    fn rates(&self, newer: &Usage, now_ns: u64) -> Option<(f64, f64)> {
        let seconds = now_ns.checked_sub(self.at_ns).filter(|ns| *ns > 0)? as f64 / 1e9;
        let rate = |newer: f64, older: f64| (newer - older).max(0.0) / seconds;
        let Usage { user_seconds, system_seconds, .. } = self.usage;
        Some((rate(newer.user_seconds, user_seconds), rate(newer.system_seconds, system_seconds)))
    }
}

/// A process, and one more label.
struct OfProcess<'p> {
    tgid: u32,
    command: &'p str,
    name: &'static str,
    kind: &'static str,
}

impl Labelled for OfProcess<'_> {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, LabelValue<'a>)) {
        see(key::PROCESS_PID, LabelValue::Number(Some(self.tgid.into())));
        see(key::PROCESS_COMMAND, LabelValue::Text(self.command));
        see(self.name, LabelValue::Text(self.kind));
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::resource::v1::Resource;

    use super::*;
    use crate::discover::Exports;

    fn process(tgid: u32) -> (Arc<Process>, Arc<Service>) {
        let process = Process {
            tgid,
            service_name: "a".to_owned(),
            resource: Resource::default(),
            sampler: None,
            exports: Exports::default(),
        };
        (Arc::new(process), Arc::default())
    }

    fn values(usage: &ProcessUsage, metric: Metric) -> Vec<(String, f64)> {
        let mut points = Vec::new();
        usage.points(4, &mut points);
        let of_metric = points.into_iter().filter(|point| point.metric == metric);
        let mut values: Vec<_> = of_metric
            .map(|point| match point.value {
                Value::Counter(value) | Value::Gauge(value) => (point.labels.text.clone(), value),
                Value::Histogram(_) => panic!("{point:?}"),
            })
            .collect();
        values.sort_by(|left, right| left.0.cmp(&right.0));
        values
    }

    #[test]
    fn utilization_is_what_was_used_between_two_looks() {
        let mut usage = ProcessUsage::default();
        let all = [process(7)];
        let used = |user_seconds| move |_| Some(Usage { user_seconds, resident_bytes: 9, ..Usage::default() });
        usage.look(&all, 1_000_000_000, used(10.0));
        assert_eq!(values(&usage, CPU_UTILIZATION), []);
        usage.look(&all, 6_000_000_000, used(20.0));
        let expected = [("cpu_mode=\"system\"", 0.0), ("cpu_mode=\"user\"", 0.5)];
        let expected = expected.map(|(mode, value)| (format!("process_pid=\"7\",{mode}"), value));
        assert_eq!(values(&usage, CPU_UTILIZATION), expected);
        assert_eq!(values(&usage, MEMORY), [("process_pid=\"7\"".to_owned(), 9.0)]);
        // Not known, not invented.
        assert_eq!(values(&usage, DISK), []);
    }

    #[test]
    fn a_number_that_is_given_again_begins_anew() {
        let mut usage = ProcessUsage::default();
        let used = |user_seconds| move |_| Some(Usage { user_seconds, ..Usage::default() });
        usage.look(&[process(7)], 1, used(10.0));
        usage.look(&[process(7)], 2, used(1.0));
        assert_eq!(values(&usage, CPU_UTILIZATION), []);
        usage.look(&[], 3, used(1.0));
        assert_eq!(values(&usage, MEMORY), []);
    }

    #[test]
    fn this_process_uses_something() {
        let used = crate::discover::ProcTree::new("/proc").usage(std::process::id()).unwrap();
        assert!(used.resident_bytes > 0 && used.virtual_bytes >= used.resident_bytes, "{used:?}");
        assert!(used.disk.is_some());
        assert!(crate::discover::ProcTree::new("/proc").usage(u32::MAX).is_none());
    }
}
