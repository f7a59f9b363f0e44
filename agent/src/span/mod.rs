//! A finished exchange as an OpenTelemetry span.

use std::sync::Arc;

use opentelemetry_proto::tonic::trace::v1::Span;

use crate::discover::Process;

/// A span and the process that it belongs to; the exporter groups spans by process.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// Whose resource the span is sent under.
    pub process: Arc<Process>,
    /// The span.
    pub span: Span,
}
