//! What is said of GPUs in a span. docs/gpu.md lists it.

use coati_common::{cuda::Calls, wellknown::gpu as key};
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value},
    trace::v1::{Span, span::Event},
};

use super::join::{Joined, ids, primary};
use crate::span::{Attributes, Clock};

/// Other services that are named.
const OTHERS: usize = 8;

/// What was found of a span.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// What the devices did that it used.
    pub(super) joined: Vec<Joined>,
    /// The names of the other processes that used the first device.
    pub(super) others: Vec<String>,
    /// Joules that are its own.
    pub(super) energy: Option<f64>,
    /// Most requests that shared what its process used at a time, itself included.
    pub(super) requests: Option<u64>,
    /// What was called of CUDA.
    pub(super) calls: Option<Calls>,
    /// Tokens that were generated.
    pub(super) output_tokens: Option<u64>,
}

/// Adds to `span` what is known.
pub(super) fn add(span: &mut Span, found: &Found, clock: Clock) {
    if let Some(calls) = &found.calls {
        add_calls(span, calls);
    }
    let Found { joined, others, energy, .. } = found;
    let Some(first) = primary(joined) else { return };
    let mut attributes = Attributes(std::mem::take(&mut span.attributes));
    attributes.text(key::HW_ID, &*first.device.id);
    attributes.text(key::HW_TYPE, "gpu");
    if let Some(name) = &first.device.name {
        attributes.text(key::HW_NAME, &**name);
    }
    if let Some(driver) = &first.device.driver {
        attributes.text(key::HW_DRIVER_VERSION, &**driver);
    }
    if let Some(parent) = &first.device.parent {
        attributes.text(key::COATI_PARENT_ID, &**parent);
    }
    for (name, value) in [
        (key::HW_UTILIZATION, first.utilization_mean),
        (key::COATI_UTILIZATION_MAX, first.utilization_max),
        (key::COATI_PROCESS_UTILIZATION, first.process_utilization),
        (key::HW_POWER, first.power),
        (key::HW_TEMPERATURE, first.temperature),
        (key::HW_ENERGY, *energy),
        (key::COATI_ENERGY, joined.iter().map(|joined| joined.energy).sum()),
        (key::COATI_ENERGY_PER_TOKEN, per_token(*energy, found.output_tokens)),
        (key::COATI_COVERAGE, Some(first.coverage)),
    ] {
        if let Some(value) = value {
            attributes.double(name, value);
        }
    }
    for (name, value) in [
        (key::HW_MEMORY_USAGE, first.process_memory),
        (key::COATI_MEMORY_USAGE, first.device_memory),
        (key::COATI_SAMPLES, Some(first.samples as u64)),
        (key::COATI_REQUESTS, found.requests),
    ] {
        if let Some(value) = value {
            attributes.count(name, value);
        }
    }
    if let Some(share) = first.share.filter(|_| energy.is_some()) {
        let is_divided = found.requests.is_some_and(|requests| requests > 1);
        attributes.text(key::COATI_ENERGY_METHOD, share.method(is_divided));
    }
    if !others.is_empty() {
        let mut names: Vec<&str> = others.iter().map(String::as_str).collect();
        names.sort_unstable();
        names.dedup();
        names.truncate(OTHERS);
        attributes.push(key::COATI_OTHERS, texts(names));
    }
    if joined.len() > 1 {
        let ids = ids(joined);
        attributes.push(key::COATI_IDS, texts(ids.iter().map(|id| &**id)));
    }
    span.attributes = attributes.0;
    span.events.extend(events(first, clock));
}

/// What was called. That nothing was launched is said too; of all else only what there was.
fn add_calls(span: &mut Span, calls: &Calls) {
    let mut attributes = Attributes(std::mem::take(&mut span.attributes));
    attributes.count(key::CUDA_LAUNCHES, calls.launches);
    for (name, value) in [
        (key::CUDA_GRAPH_LAUNCHES, calls.graph_launches),
        (key::CUDA_COPIED_TO_DEVICE, calls.to_device_bytes),
        (key::CUDA_COPIED_TO_HOST, calls.to_host_bytes),
        (key::CUDA_COPIED_ON_DEVICE, calls.on_device_bytes),
        (key::CUDA_COPIED_UNSPECIFIED, calls.unspecified_bytes),
        (key::CUDA_ALLOCATIONS, calls.allocations),
        (key::CUDA_ALLOCATED, calls.allocated_bytes),
        (key::CUDA_FREES, calls.frees),
        (key::CUDA_SYNCHRONIZATIONS, calls.synchronizations),
    ] {
        if value > 0 {
            attributes.count(name, value);
        }
    }
    if calls.synchronizations > 0 {
        attributes.seconds(key::CUDA_BLOCKED, calls.blocked_ns);
    }
    span.attributes = attributes.0;
}

fn per_token(energy: Option<f64>, output_tokens: Option<u64>) -> Option<f64> {
    let tokens = output_tokens.filter(|tokens| *tokens > 0)?;
    Some(energy? / tokens as f64)
}

fn events(joined: &Joined, clock: Clock) -> impl Iterator<Item = Event> {
    let event = move |name: &str, time_ns: u64, fill: &dyn Fn(&mut Attributes)| {
        let mut attributes = Attributes(Vec::<KeyValue>::new());
        attributes.text(key::HW_ID, &*joined.device.id);
        fill(&mut attributes);
        Event {
            time_unix_nano: clock.unix_ns(time_ns),
            name: name.to_owned(),
            attributes: attributes.0,
            dropped_attributes_count: 0,
        }
    };
    let throttled = joined.throttled.iter().map(move |(reason, time_ns)| {
        event(key::THROTTLED_EVENT, *time_ns, &|attributes| attributes.text(key::COATI_THROTTLE_REASON, *reason))
    });
    let xids = joined.xids.iter().map(move |(xid, time_ns)| {
        event(key::XID_EVENT, *time_ns, &|attributes| attributes.count(key::COATI_XID, *xid))
    });
    throttled.chain(xids)
}

fn texts<'a>(values: impl IntoIterator<Item = &'a str>) -> Value {
    let value = |text: &str| AnyValue { value: Some(Value::StringValue(text.to_owned())) };
    Value::ArrayValue(ArrayValue { values: values.into_iter().map(value).collect() })
}
