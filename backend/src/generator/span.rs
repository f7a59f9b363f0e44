//! What both processors read of a span and of what it was sent under.

use std::sync::Arc;

use coati_common::stitch::caller_of;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::attributes::{Wanted, found};
use crate::live::TraceId;
use crate::otlp::{SpanRef, ValueRef};

/// A span, and what it was sent under.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) trace: &'a TraceId,
    pub(super) span: SpanRef<'a>,
    pub(super) resource: &'a Resource,
    /// Whether an agent of Coati made it.
    pub(super) of_agent: bool,
    /// Milliseconds since the epoch.
    pub(super) now_ms: u64,
}

impl Seen<'_> {
    /// From start to end; 0 where the clock went backwards.
    pub(super) fn seconds(&self) -> f64 {
        self.span.end_time_unix_nano.saturating_sub(self.span.start_time_unix_nano) as f64 / 1e9
    }

    /// Whether it is the server's end of a request whose client is on another node, or outside of all.
    pub(super) fn is_from_afar(&self) -> bool {
        caller_of(self.trace.0).is_some_and(|caller| caller == self.span.parent_span_id)
    }

    pub(super) fn failed(&self) -> bool {
        self.span.status.is_some_and(|status| status.code == 2)
    }
}

/// How many spans a span stands for.
#[derive(Clone, Debug, Default)]
pub(super) struct Multiplier {
    /// Key of the attribute that says which part of all spans was kept, and its number among those of spans.
    ratio: Option<(Arc<str>, usize)>,
    trace_state: bool,
}

impl Multiplier {
    pub(super) fn new(key: &str, trace_state: bool, wanted: &mut Wanted) -> Self {
        Self { ratio: (!key.is_empty()).then(|| (key.into(), wanted.add(key))), trace_state }
    }

    /// Whether the attributes of every span must be looked at.
    pub(super) const fn wants_attributes(&self) -> bool {
        self.ratio.is_some()
    }

    /// 1 if nothing is said, or nothing that makes sense. The trace state goes before the attribute, as in Tempo.
    pub(super) fn of(&self, seen: &Seen<'_>, values: &[Option<ValueRef<'_>>]) -> f64 {
        let makes_sense = |times: &f64| times.is_finite() && *times > 0.0;
        let sampled = if self.trace_state { of_trace_state(seen.span.trace_state.as_str()) } else { None };
        let kept = || {
            let (key, number) = self.ratio.as_ref()?;
            let of_span = match found(values, *number) {
                Some(ValueRef::Double(ratio)) => Some(ratio),
                _ => None,
            };
            let ratio = of_span.filter(makes_sense).or_else(|| double_of(&seen.resource.attributes, key))?;
            Some(1.0 / ratio)
        };
        sampled.filter(makes_sense).or_else(kept).filter(makes_sense).unwrap_or(1.0)
    }
}

/// An attribute of a resource that is a number with a fraction.
fn double_of(attributes: &[KeyValue], key: &str) -> Option<f64> {
    let value = &attributes.iter().find(|attribute| attribute.key == key)?.value;
    match value.as_ref()?.value.as_ref()? {
        Value::DoubleValue(double) => Some(*double),
        _ => None,
    }
}

/// OpenTelemetry's `ot=th:…`: up to 14 hexadecimal digits of a fraction, below which traces were left out.
fn of_trace_state(state: &str) -> Option<f64> {
    let member = state.split(',').find_map(|member| member.trim().strip_prefix("ot="))?;
    let digits = member.split(';').find_map(|field| field.strip_prefix("th:"))?;
    if digits.is_empty() || digits.len() > 14 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let threshold = u64::from_str_radix(digits, 16).ok()? << (4 * (14 - digits.len()));
    Some(1.0 / (1.0 - threshold as f64 / (1_u64 << 56) as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::none("", None)]
    #[case::others("a=b,c=d", None)]
    #[case::half("ot=th:8", Some(2.0))]
    #[case::one_of_sixteen("a=b, ot=rv:1;th:f", Some(16.0))]
    #[case::all("ot=th:0", Some(1.0))]
    #[case::no_number("ot=th:x", None)]
    #[case::with_a_sign("ot=th:+8", None)]
    #[case::too_long("ot=th:123456789012345", None)]
    fn thresholds(#[case] state: &str, #[case] expected: Option<f64>) {
        assert_eq!(of_trace_state(state), expected);
    }
}
