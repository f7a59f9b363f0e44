//! What both processors read of a span and of what it was sent under.

use std::sync::Arc;

use coati_common::stitch::caller_of;
use opentelemetry_proto::tonic::resource::v1::Resource;

use super::attributes::{Wanted, found, of_resource, text_of};
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
    /// Key of the attribute, and its number among those of spans.
    attribute: Option<(Arc<str>, usize)>,
    trace_state: bool,
}

impl Multiplier {
    pub(super) fn new(key: &str, trace_state: bool, wanted: &mut Wanted) -> Self {
        Self { attribute: (!key.is_empty()).then(|| (key.into(), wanted.add(key))), trace_state }
    }

    /// Whether the attributes of every span must be looked at.
    pub(super) const fn wants_attributes(&self) -> bool {
        self.attribute.is_some()
    }

    /// 1 if nothing is said, or nothing that makes sense.
    pub(super) fn of(&self, seen: &Seen<'_>, values: &[Option<ValueRef<'_>>]) -> f64 {
        let said = self.attribute.as_ref().and_then(|(key, number)| {
            let text = of_resource(&seen.resource.attributes, key);
            text.or_else(|| found(values, *number).map(text_of))?.parse::<f64>().ok()
        });
        let sampled = || if self.trace_state { of_trace_state(seen.span.trace_state.as_str()) } else { None };
        said.or_else(sampled).filter(|times| times.is_finite() && *times > 0.0).unwrap_or(1.0)
    }
}

/// OpenTelemetry's `ot=th:…`: up to 14 hexadecimal digits of a fraction, below which traces were left out.
fn of_trace_state(state: &str) -> Option<f64> {
    let member = state.split(',').find_map(|member| member.trim().strip_prefix("ot="))?;
    let digits = member.split(';').find_map(|field| field.strip_prefix("th:"))?;
    if digits.is_empty() || digits.len() > 14 {
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
    #[case::too_long("ot=th:123456789012345", None)]
    fn thresholds(#[case] state: &str, #[case] expected: Option<f64>) {
        assert_eq!(of_trace_state(state), expected);
    }
}
