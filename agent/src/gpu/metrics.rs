//! Devices on `/metrics` and by OTLP: the newest sample of each.
//!
//! Names are those of the semantic conventions, on `/metrics` as Prometheus writes them; those of NVIDIA's DCGM exporter can be had
//! beside them, so that its dashboards work.

use std::{fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use super::{
    history::{DeviceHistory, History},
    sample::DeviceSample,
    sampler::{Gpu, Shared},
};
use crate::{
    kubernetes::{GpuUser, Kubernetes},
    metrics::{self, LabelValue, Labelled, Metric, Point, Prefix, Service, Shape, Value},
};

/// Samples back in which a value may lie that is read once a second only.
const SLOW_SAMPLES: usize = 100;

/// The collector.
#[derive(Clone, Debug)]
pub struct GpuMetrics {
    shared: Arc<Shared>,
    dcgm_names: bool,
    host: String,
    kubernetes: Option<Kubernetes>,
}

/// A value of a device.
type Pick = fn(&DeviceHistory) -> Option<f64>;
type Labels = Vec<(&'static str, String)>;

/// A family: its name, its help, its unit, whether it only grows, a label of its own, and its value.
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    is_counter: bool,
    series: &'static [(&'static [(&'static str, &'static str)], Pick)],
}

macro_rules! now {
    ($field:ident) => {
        |device| device.current()?.$field
    };
    ($field:ident as f64) => {
        |device| device.current()?.$field.map(|value| value as f64)
    };
}

macro_rules! slow {
    ($field:ident) => {
        |device| device.latest(SLOW_SAMPLES, |sample| sample.$field).map(|value| value as f64)
    };
}

const GENERAL: &[(&str, &str)] = &[("hw.gpu.task", "general")];
const ENCODER: &[(&str, &str)] = &[("hw.gpu.task", "encoder")];
const DECODER: &[(&str, &str)] = &[("hw.gpu.task", "decoder")];
const TRANSMIT: &[(&str, &str)] = &[("network.io.direction", "transmit")];
const RECEIVE: &[(&str, &str)] = &[("network.io.direction", "receive")];
const CORRECTED: &[(&str, &str)] = &[("error.type", "ecc_corrected")];
const UNCORRECTED: &[(&str, &str)] = &[("error.type", "ecc_uncorrected")];
const XID: &[(&str, &str)] = &[("error.type", "xid")];

fn xids(device: &DeviceHistory) -> Option<f64> {
    device.current().map(|_| device.xids as f64)
}

fn families() -> [Family; 13] {
    let gauge = |name, help, unit, series| Family { name, help, unit, is_counter: false, series };
    let counter = |name, help, unit, series| Family { name, help, unit, is_counter: true, series };
    let ratio = || Some(Unit::Other("ratio".to_owned()));
    [
        gauge(
            "hw.gpu.utilization",
            "Share of time in which the GPU was busy",
            ratio(),
            &[(GENERAL, now!(utilization)), (ENCODER, now!(encoder)), (DECODER, now!(decoder))],
        ),
        gauge("hw.gpu.memory.usage", "Device memory in use", Some(Unit::Bytes), &[(&[], now!(memory_used as f64))]),
        gauge("hw.gpu.memory.limit", "Device memory", Some(Unit::Bytes), &[(&[], now!(memory_total as f64))]),
        gauge(
            "hw.gpu.memory.utilization",
            "Share of device memory in use",
            ratio(),
            &[(&[], |device| {
                let DeviceSample { memory_used, memory_total, .. } = device.current()?;
                memory_total.filter(|total| *total > 0).and_then(|total| Some((*memory_used)? as f64 / total as f64))
            })],
        ),
        gauge("hw.power", "Power that the GPU draws", Some(Unit::Other("watts".to_owned())), &[(&[], now!(power))]),
        gauge(
            "hw.power.limit",
            "Power that it may draw",
            Some(Unit::Other("watts".to_owned())),
            &[(&[], now!(power_limit))],
        ),
        counter("hw.energy", "Energy since the driver was loaded", Some(Unit::Joules), &[(&[], now!(energy))]),
        gauge("hw.temperature", "Temperature", Some(Unit::Celsius), &[(&[], now!(temperature))]),
        gauge(
            "coati.gpu.clock",
            "Clocks",
            Some(Unit::Other("hertz".to_owned())),
            &[(&[("clock", "sm")], now!(sm_clock)), (&[("clock", "memory")], now!(memory_clock))],
        ),
        gauge(
            "hw.gpu.io",
            "Bytes per second over PCIe",
            Some(Unit::Other("bytes_per_second".to_owned())),
            &[(TRANSMIT, slow!(pcie_transmit)), (RECEIVE, slow!(pcie_receive))],
        ),
        counter(
            "hw.errors",
            "Errors of memory and driver",
            None,
            &[(CORRECTED, slow!(ecc_corrected)), (UNCORRECTED, slow!(ecc_uncorrected)), (XID, xids)],
        ),
        gauge(
            "coati.gpu.throttled",
            "1 while a reason keeps the clocks down",
            None,
            &[(&[], |device| {
                let reasons = device.current()?.throttle?.reasons().count();
                Some(if reasons > 0 { 1.0 } else { 0.0 })
            })],
        ),
        gauge(
            "coati.gpu.up",
            "1 while the GPU answers",
            None,
            &[(&[], |device| Some(if device.is_present { 1.0 } else { 0.0 }))],
        ),
    ]
}

/// What DCGM's exporter calls it, in its units.
fn dcgm() -> [Family; 12] {
    let gauge = |name, help, series| Family { name, help, unit: None, is_counter: false, series };
    [
        gauge(
            "DCGM_FI_DEV_GPU_UTIL",
            "GPU utilization (in %)",
            &[(&[], |device| percent(device.current()?.utilization))],
        ),
        gauge(
            "DCGM_FI_DEV_MEM_COPY_UTIL",
            "Memory utilization (in %)",
            &[(&[], |device| percent(device.current()?.memory_utilization))],
        ),
        gauge(
            "DCGM_FI_DEV_ENC_UTIL",
            "Encoder utilization (in %)",
            &[(&[], |device| percent(device.current()?.encoder))],
        ),
        gauge(
            "DCGM_FI_DEV_DEC_UTIL",
            "Decoder utilization (in %)",
            &[(&[], |device| percent(device.current()?.decoder))],
        ),
        gauge(
            "DCGM_FI_DEV_FB_USED",
            "Frame buffer memory used (in MiB)",
            &[(&[], |device| Some(mebibytes(device.current()?.memory_used?)))],
        ),
        gauge(
            "DCGM_FI_DEV_FB_FREE",
            "Frame buffer memory free (in MiB)",
            &[(&[], |device| {
                let sample = device.current()?;
                Some(mebibytes(sample.memory_total?.saturating_sub(sample.memory_used?)))
            })],
        ),
        gauge("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W)", &[(&[], now!(power))]),
        gauge(
            "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
            "Energy since boot (in mJ)",
            &[(&[], |device| Some(device.current()?.energy? * 1e3))],
        ),
        gauge("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C)", &[(&[], now!(temperature))]),
        gauge(
            "DCGM_FI_DEV_SM_CLOCK",
            "SM clock frequency (in MHz)",
            &[(&[], |device| Some(device.current()?.sm_clock? / 1e6))],
        ),
        gauge(
            "DCGM_FI_DEV_MEM_CLOCK",
            "Memory clock frequency (in MHz)",
            &[(&[], |device| Some(device.current()?.memory_clock? / 1e6))],
        ),
        gauge(
            "DCGM_FI_DEV_XID_ERRORS",
            "Value of the last XID error encountered",
            &[(&[], |device| {
                device.current()?;
                Some(device.samples.iter().rev().find_map(|sample| sample.xids.last()).map_or(0.0, |xid| *xid as f64))
            })],
        ),
    ]
}

fn percent(ratio: Option<f64>) -> Option<f64> {
    ratio.map(|ratio| ratio * 100.0)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

impl GpuMetrics {
    /// The metrics of the devices that `gpu` samples, on the node `host`.
    pub fn new(gpu: &Gpu, host: Option<&str>) -> Self {
        Self {
            shared: gpu.shared(),
            dcgm_names: gpu.config().dcgm_names,
            host: host.unwrap_or_default().to_owned(),
            kubernetes: None,
        }
    }

    /// Says which pods have the devices and the processes on them.
    #[must_use]
    pub fn in_pods(mut self, kubernetes: Option<Kubernetes>) -> Self {
        self.kubernetes = kubernetes;
        self
    }

    fn encode_family(encoder: &mut DescriptorEncoder<'_>, family: &Family, rows: &[(Labels, f64)]) -> fmt::Result {
        if rows.is_empty() {
            return Ok(());
        }
        let kind = if family.is_counter { MetricType::Counter } else { MetricType::Gauge };
        let name = family.name.replace('.', "_");
        let mut encoder = encoder.encode_descriptor(&name, family.help, family.unit.as_ref(), kind)?;
        for (labels, value) in rows {
            let labels: Vec<_> = labels.iter().map(|(name, value)| (name.replace('.', "_"), value.as_str())).collect();
            let series = encoder.encode_family(&labels)?;
            if family.is_counter {
                ConstCounter::new(*value).encode(series)?;
            } else {
                ConstGauge::new(*value).encode(series)?;
            }
        }
        Ok(())
    }

    fn rows(&self, history: &History, family: &Family, is_dcgm: bool) -> Vec<(Labels, f64)> {
        let mut rows = Vec::new();
        for device in history.devices() {
            for (own, pick) in family.series {
                let Some(value) = pick(device) else { continue };
                let mut labels = if is_dcgm { self.dcgm_labels(device) } else { labels(device) };
                let user = self.kubernetes.as_ref().and_then(|it| it.gpu_user(&device.info.id, device.info.minor));
                labels.extend(user.into_iter().flat_map(|user| of_pod(user, is_dcgm)));
                labels.extend(own.iter().map(|(name, value)| (*name, (*value).to_owned())));
                rows.push((labels, value));
            }
        }
        rows
    }

    fn dcgm_labels(&self, device: &DeviceHistory) -> Labels {
        let info = &device.info;
        vec![
            ("gpu", info.index.to_string()),
            ("UUID", info.id.to_string()),
            ("device", format!("nvidia{}", info.index)),
            ("modelName", info.name.as_deref().unwrap_or_default().to_owned()),
            ("Hostname", self.host.clone()),
        ]
    }
}

fn labels(device: &DeviceHistory) -> Labels {
    let info = &device.info;
    let mut labels = vec![("hw.id", info.id.to_string()), ("hw.type", "gpu".to_owned())];
    labels.extend(info.name.as_deref().map(|name| ("hw.name", name.to_owned())));
    labels.extend(info.parent.as_deref().map(|parent| ("hw.parent", parent.to_owned())));
    labels
}

/// The pod that something is of; DCGM's exporter has names of its own for it.
fn of_pod(user: GpuUser, is_dcgm: bool) -> Labels {
    let names = if is_dcgm {
        ["namespace", "pod", "container"]
    } else {
        ["k8s.namespace.name", "k8s.pod.name", "k8s.container.name"]
    };
    let values = [user.namespace, user.pod, user.container];
    names.into_iter().zip(values.map(|value| value.to_string())).collect()
}

/// Processes and the devices that they use: who, and how much of what.
fn process_rows(
    history: &History,
    kubernetes: Option<&Kubernetes>,
    pick: fn(&super::sample::ProcessSample) -> Option<f64>,
) -> Vec<(Labels, f64)> {
    let row = |(info, process): (&super::sample::DeviceInfo, &super::sample::ProcessSample)| {
        let relative = history.relatives().iter().find(|relative| relative.pid == process.pid);
        let mut labels = vec![("hw.id", info.id.to_string()), ("process.pid", process.pid.to_string())];
        if let Some(id) = relative.and_then(|it| it.container.as_deref()) {
            labels.push(("container.id", id.to_owned()));
            let user = kubernetes.and_then(|kubernetes| kubernetes.container(id));
            labels.extend(user.into_iter().flat_map(|user| of_pod(user, false)));
        }
        Some((labels, pick(process)?))
    };
    history.current_processes().filter_map(row).collect()
}

/// A family of processes.
fn of_processes(name: &'static str, help: &'static str, unit: Unit) -> Family {
    Family { name, help, unit: Some(unit), is_counter: false, series: &[] }
}

impl GpuMetrics {
    /// The families under the conventions' names, with their rows.
    fn all(&self, history: &History) -> Vec<(Family, Vec<(Labels, f64)>)> {
        let with_rows = |family| {
            let rows = self.rows(history, &family, false);
            (family, rows)
        };
        let mut all: Vec<_> = families().into_iter().map(with_rows).collect();
        let kubernetes = self.kubernetes.as_ref();
        let memory = of_processes("coati.gpu.process.memory.usage", "Device memory of a process", Unit::Bytes);
        all.push((memory, process_rows(history, kubernetes, |process| process.memory.map(|bytes| bytes as f64))));
        let ratio = Unit::Other("ratio".to_owned());
        let utilization =
            of_processes("coati.gpu.process.utilization", "Use of the multiprocessors by a process", ratio);
        all.push((utilization, process_rows(history, kubernetes, |process| process.sm)));
        all
    }

    /// The same for OTLP, of this node.
    pub(crate) fn points(&self, node: &Arc<Service>) -> Vec<Point> {
        let all = self.all(&self.shared.history());
        let points =
            all.iter().flat_map(|(family, rows)| rows.iter().map(|(labels, value)| family.point(labels, *value, node)));
        points.collect()
    }
}

impl Family {
    fn point(&self, labels: &Labels, value: f64, node: &Arc<Service>) -> Point {
        let Self { name: otlp, help, unit, is_counter, .. } = self;
        let (shape, value) =
            if *is_counter { (Shape::Counter, Value::Counter(value)) } else { (Shape::Gauge, Value::Gauge(value)) };
        let unit = metrics::Unit::Other(unit.as_ref().map_or("", otlp_unit));
        Point {
            metric: Metric { otlp, prometheus: "", help, unit, shape, prefix: Prefix::None },
            service: Arc::clone(node),
            labels: Arc::new(metrics::Labels::of(&Own(labels))),
            since_unix_ns: 0,
            value,
        }
    }
}

/// What OTLP calls a unit.
fn otlp_unit(unit: &Unit) -> &'static str {
    match unit.as_str() {
        "bytes" => "By",
        "bytes_per_second" => "By/s",
        "celsius" => "Cel",
        "hertz" => "Hz",
        "joules" => "J",
        "ratio" => "1",
        "watts" => "W",
        _ => "",
    }
}

struct Own<'l>(&'l Labels);

impl Labelled for Own<'_> {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, LabelValue<'a>)) {
        for (name, value) in self.0 {
            see(name, LabelValue::Text(value));
        }
    }
}

impl Collector for GpuMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let history = self.shared.history();
        for (family, rows) in self.all(&history) {
            Self::encode_family(&mut encoder, &family, &rows)?;
        }
        if self.dcgm_names {
            for family in dcgm() {
                Self::encode_family(&mut encoder, &family, &self.rows(&history, &family, true))?;
            }
        }
        Ok(())
    }
}
