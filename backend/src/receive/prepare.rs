//! The part of the work on a request that needs only a processor: check, split by trace, pack for the log.

use std::collections::HashMap;

use bytes::Bytes;
use coati_common::otlp_json as json;
use foldhash::quality::RandomState;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::compression::pack;
use super::validate::{Reason, Rejections, invalid, remove_invalid};
use super::{ExportError, weight};
use crate::live::{LiveSet, Trace, TraceId, group};
use crate::otlp::{self, Odd};

/// How a request is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Format {
    /// `application/x-protobuf`, and gRPC.
    Protobuf,
    /// `application/json`.
    Json,
}

/// A request, ready for the log and the live set.
#[derive(Debug)]
pub struct Prepared {
    /// Its spans by trace; empty if there is nothing to store.
    pub traces: Vec<Trace>,
    /// Spans that came.
    pub spans: u64,
    /// What was not.
    pub rejections: Rejections,
    /// The accepted spans, encoded.
    pub payload: Bytes,
    /// Whether `payload` is compressed with zstd.
    pub compressed: bool,
    /// Bytes of the payload before compression.
    pub raw_len: u32,
}

/// Checks a request, splits it by trace and packs it for the log.
pub fn prepare(body: Bytes, format: Format, live: &LiveSet, tenant: &str) -> Result<Prepared, ExportError> {
    let in_place = match format {
        Format::Protobuf => in_place(&body)?,
        Format::Json => None,
    };
    let (mut traces, mut encoded, mut rejections) = match in_place {
        // What is stored whole goes into the log as it came: fields that this program does not know are kept.
        Some(traces) => (traces, body, Rejections::default()),
        None => decoded(&body, format)?,
    };
    let too_large = remove_too_large(&mut traces, live, tenant);
    if !too_large.is_empty() {
        rejections.add(Reason::TraceTooLarge, too_large.values().sum());
        encoded = without(&encoded, &too_large)?;
    }
    let accepted: u64 = traces.iter().map(|trace| trace.spans.len() as u64).sum();
    let raw_len = encoded.len() as u32;
    let packed = pack(&encoded);
    Ok(Prepared {
        traces,
        spans: accepted + rejections.total(),
        rejections,
        compressed: packed.is_some(),
        payload: packed.map_or(encoded, Bytes::from),
        raw_len,
    })
}

/// The traces of a request, without decoding it; none if there is something in it that needs a closer look.
fn in_place(body: &[u8]) -> Result<Option<Vec<Trace>>, ExportError> {
    let Ok(checked) = otlp::check(body) else { return Ok(None) };
    weight::check_decoded(body, checked.decoded_bytes)?;
    let scopes = checked.resource_spans.iter().flat_map(|resource| &resource.scope_spans);
    let mut spans = scopes.flat_map(|scope| &scope.spans);
    if spans.any(|span| invalid(span.trace_id, span.span_id, span.parent_span_id).is_some()) {
        return Ok(None);
    }
    Ok(Some(group(checked)))
}

/// The traces of a request, the accepted spans encoded anew, and what was not accepted.
fn decoded(body: &Bytes, format: Format) -> Result<(Vec<Trace>, Bytes, Rejections), ExportError> {
    weight::check(body, format)?;
    let mut request = match format {
        Format::Protobuf => ExportTraceServiceRequest::decode(body.clone()).map_err(ExportError::Protobuf)?,
        Format::Json => json::decode(body).map_err(ExportError::Json)?,
    };
    let rejections = remove_invalid(&mut request);
    let encoded = Bytes::from(request.encode_to_vec());
    match otlp::check(&encoded) {
        Ok(checked) => Ok((group(checked), encoded, rejections)),
        Err(Odd) => Err(ExportError::TooDeep),
    }
}

/// Removes the traces that would grow beyond their limit; returns them with how many spans of each came.
fn remove_too_large(traces: &mut Vec<Trace>, live: &LiveSet, tenant: &str) -> HashMap<TraceId, u64, RandomState> {
    let mut removed = HashMap::default();
    traces.retain(|trace| {
        let fits = live.takes(tenant, &trace.id, trace.bytes);
        if !fits {
            removed.insert(trace.id, trace.spans.len() as u64);
        }
        fits
    });
    removed
}

/// An encoded request without the spans of some traces.
fn without<V>(encoded: &Bytes, traces: &HashMap<TraceId, V, RandomState>) -> Result<Bytes, ExportError> {
    let mut request = ExportTraceServiceRequest::decode(encoded.clone()).map_err(ExportError::Protobuf)?;
    let scopes = request.resource_spans.iter_mut().flat_map(|resource| &mut resource.scope_spans);
    for scope in scopes {
        scope
            .spans
            .retain(|span| TraceId::try_from(span.trace_id.as_slice()).is_ok_and(|id| !traces.contains_key(&id)));
    }
    Ok(request.encode_to_vec().into())
}
