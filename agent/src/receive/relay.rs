//! From a request to spans in the export's queue.

use std::sync::Arc;

use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::KeyValue,
    trace::v1::{ResourceSpans, ScopeSpans, Span},
};
use prost::Message as _;

use super::{
    Refusal,
    enrich::add_missing,
    gpus::Gpus,
    sender::{Connection, Senders},
};
use crate::{
    export::{RelayError, RelayQueue, Relayed, RelayedSpan},
    telemetry::Telemetry,
};

/// Takes requests of all transports.
#[derive(Clone, Debug)]
pub(super) struct Relay {
    pub(super) queue: RelayQueue,
    pub(super) senders: Senders,
    pub(super) gpus: Option<Gpus>,
    pub(super) telemetry: Telemetry,
}

impl Relay {
    /// Relays what is in `request`, all or nothing but for spans that nobody could store.
    pub(super) async fn export(
        &self,
        request: ExportTraceServiceRequest,
        connection: &Connection,
    ) -> Result<ExportTraceServiceResponse, Refusal> {
        let sender = self.senders.find(connection).await;
        let gpus = self.gpus.as_ref().zip(sender.tgid).and_then(|(gpus, tgid)| gpus.of(tgid));
        if let Some(gpus) = &gpus {
            gpus.wait(&request).await;
        }
        let (spans, rejected) = take_apart(request, &sender.attributes, |spans| {
            if let Some(gpus) = &gpus {
                gpus.describe(spans, &mut self.senders.names());
            }
        });
        let taken = spans.len() as u64;
        self.queue.push(spans).map_err(|error| match error {
            RelayError::Full => Refusal::Full,
            RelayError::Closed => Refusal::Ending,
            RelayError::NeverFits { spans, limit } => Refusal::TooMany { spans, limit },
        })?;
        self.telemetry.relay.spans.inc_by(taken);
        let partial_success = (rejected > 0).then(|| {
            self.telemetry.relay.rejected.inc_by(rejected);
            ExportTracePartialSuccess {
                rejected_spans: i64::try_from(rejected).unwrap_or(i64::MAX),
                error_message: format!("{rejected} spans have ids that are none: a trace id is 16 bytes, a span id 8"),
            }
        });
        Ok(ExportTraceServiceResponse { partial_success })
    }

    /// Counts a request that was refused.
    pub(super) fn refused(&self, refusal: &Refusal) {
        self.telemetry.relay.refused(refusal.cause()).inc();
    }
}

/// The spans of a request, each with what it is sent under, and how many were left out. Those that the sender has made itself are
/// given to `describe`.
fn take_apart(
    request: ExportTraceServiceRequest,
    known: &[KeyValue],
    describe: impl Fn(&mut [Span]),
) -> (Vec<RelayedSpan>, u64) {
    let (mut spans, mut rejected) = (Vec::new(), 0);
    for ResourceSpans { resource, scope_spans, schema_url } in request.resource_spans {
        let mut resource = resource.unwrap_or_default();
        let is_own = add_missing(&mut resource, known);
        let head = ResourceSpans { resource: Some(resource), schema_url, ..ResourceSpans::default() }.encode_to_vec();
        for ScopeSpans { scope, spans: mut of_scope, schema_url } in scope_spans {
            if is_own {
                describe(&mut of_scope);
            }
            let scope = ScopeSpans { scope, schema_url, ..ScopeSpans::default() }.encode_to_vec();
            let under = Arc::new(Relayed { resource: head.clone(), scope });
            for span in of_scope {
                if is_storable(&span) {
                    spans.push(RelayedSpan { under: Arc::clone(&under), bytes: span.encode_to_vec() });
                } else {
                    rejected += 1;
                }
            }
        }
    }
    (spans, rejected)
}

/// Whether a span has the ids that one must have.
fn is_storable(span: &Span) -> bool {
    let is_id = |id: &[u8], bytes: usize| id.len() == bytes && id.iter().any(|byte| *byte != 0);
    is_id(&span.trace_id, 16) && is_id(&span.span_id, 8) && matches!(span.parent_span_id.len(), 0 | 8)
}
