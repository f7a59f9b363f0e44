//! Which spans of a request can be stored.

use std::collections::BTreeMap;
use std::fmt;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;

/// Why a span is not stored. Names as Tempo has them, where it has them.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reason {
    /// The trace id is not 16 bytes long, or all zero.
    InvalidTraceId,
    /// The span id is not 8 bytes long, or all zero.
    InvalidSpanId,
    /// The parent's id is neither empty nor 8 bytes long.
    InvalidParentSpanId,
    /// The trace would grow beyond its limit.
    TraceTooLarge,
}

impl Reason {
    /// Value of the `reason` label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::InvalidTraceId => "invalid_trace_id",
            Self::InvalidSpanId => "invalid_span_id",
            Self::InvalidParentSpanId => "invalid_parent_span_id",
            Self::TraceTooLarge => "trace_too_large",
        }
    }

    const fn rule(self) -> &'static str {
        match self {
            Self::InvalidTraceId => "a trace id is 16 bytes, not all zero",
            Self::InvalidSpanId => "a span id is 8 bytes, not all zero",
            Self::InvalidParentSpanId => "a parent span id is empty or 8 bytes",
            Self::TraceTooLarge => "the trace has reached its size limit",
        }
    }
}

/// How many spans were rejected, and why. Displayed as one sentence for the sender.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rejections(BTreeMap<Reason, u64>);

impl Rejections {
    /// Counts `spans` more.
    pub fn add(&mut self, reason: Reason, spans: u64) {
        *self.0.entry(reason).or_default() += spans;
    }

    /// All rejected spans.
    pub fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Spans by reason.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        self.0.iter().map(|(reason, spans)| (*reason, *spans))
    }
}

impl fmt::Display for Rejections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (reason, spans)) in self.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{spans} rejected as {} ({})", reason.name(), reason.rule())?;
        }
        Ok(())
    }
}

/// Removes the spans that cannot be stored; the others stay as they are.
pub fn remove_invalid(request: &mut ExportTraceServiceRequest) -> Rejections {
    let mut rejections = Rejections::default();
    let scopes = request.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans);
    for scope in scopes {
        scope.spans.retain(|span| {
            let reason = invalid(&span.trace_id, &span.span_id, &span.parent_span_id);
            if let Some(reason) = reason {
                rejections.add(reason, 1);
            }
            reason.is_none()
        });
    }
    rejections
}

/// Why a span with these ids cannot be stored, if so.
pub(super) fn invalid(trace_id: &[u8], span_id: &[u8], parent_span_id: &[u8]) -> Option<Reason> {
    let is_id = |id: &[u8], len: usize| id.len() == len && id.iter().any(|byte| *byte != 0);
    if !is_id(trace_id, 16) {
        Some(Reason::InvalidTraceId)
    } else if !is_id(span_id, 8) {
        Some(Reason::InvalidSpanId)
    } else if !matches!(parent_span_id.len(), 0 | 8) {
        Some(Reason::InvalidParentSpanId)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use rstest::rstest;

    #[rstest]
    #[case::root(&[1; 16], &[2; 8], &[], None)]
    #[case::child(&[1; 16], &[2; 8], &[3; 8], None)]
    #[case::parent_of_zeros_means_root(&[1; 16], &[2; 8], &[0; 8], None)]
    #[case::no_trace_id(&[], &[2; 8], &[], Some(Reason::InvalidTraceId))]
    #[case::short_trace_id(&[1; 8], &[2; 8], &[], Some(Reason::InvalidTraceId))]
    #[case::long_trace_id(&[1; 17], &[2; 8], &[], Some(Reason::InvalidTraceId))]
    #[case::zero_trace_id(&[0; 16], &[2; 8], &[], Some(Reason::InvalidTraceId))]
    #[case::no_span_id(&[1; 16], &[], &[], Some(Reason::InvalidSpanId))]
    #[case::long_span_id(&[1; 16], &[2; 16], &[], Some(Reason::InvalidSpanId))]
    #[case::zero_span_id(&[1; 16], &[0; 8], &[], Some(Reason::InvalidSpanId))]
    #[case::short_parent(&[1; 16], &[2; 8], &[3; 7], Some(Reason::InvalidParentSpanId))]
    fn ids(#[case] trace: &[u8], #[case] span: &[u8], #[case] parent: &[u8], #[case] expected: Option<Reason>) {
        assert_eq!(invalid(trace, span, parent), expected);
    }

    #[test]
    fn one_bad_span_does_not_take_the_others_with_it() {
        let span = |id: u8| Span { trace_id: vec![1; 16], span_id: vec![id; 8], ..Span::default() };
        let spans = vec![span(1), span(0), span(2), Span::default()];
        let scope = ScopeSpans { spans, ..ScopeSpans::default() };
        let resource = ResourceSpans { scope_spans: vec![scope], ..ResourceSpans::default() };
        let mut request = ExportTraceServiceRequest { resource_spans: vec![resource] };
        let rejections = remove_invalid(&mut request);
        assert_eq!(request.resource_spans[0].scope_spans[0].spans, [span(1), span(2)]);
        assert_eq!(rejections.total(), 2);
        insta::assert_snapshot!(rejections, @"1 rejected as invalid_trace_id (a trace id is 16 bytes, not all zero); 1 rejected as invalid_span_id (a span id is 8 bytes, not all zero)");
    }
}
