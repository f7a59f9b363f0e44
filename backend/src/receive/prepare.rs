//! The part of the work on a request that needs only a processor: decode, check, split by trace, pack for the log.

use std::collections::HashMap;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;

use super::compression::pack;
use super::validate::{Reason, Rejections, remove_invalid};
use super::{ExportError, json, weight};
use crate::live::{LiveSet, TraceBatch, TraceId, group, ungroup};

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
    /// By trace; empty if there is nothing to store.
    pub batches: Vec<TraceBatch>,
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

/// Decodes and checks a request, splits it by trace and packs it for the log.
pub fn prepare(body: Bytes, format: Format, live: &LiveSet, tenant: &str) -> Result<Prepared, ExportError> {
    weight::check(&body, format)?;
    let mut request = match format {
        Format::Protobuf => ExportTraceServiceRequest::decode(body.clone()).map_err(ExportError::Protobuf)?,
        Format::Json => json::decode(&body).map_err(ExportError::Json)?,
    };
    let mut rejections = remove_invalid(&mut request);
    // What came in protobuf and is stored whole goes into the log as it is: fields that this program does not know are
    // kept, and nothing is encoded again.
    let mut encoded = match format {
        Format::Protobuf if rejections.total() == 0 => body,
        Format::Protobuf | Format::Json => request.encode_to_vec().into(),
    };
    let mut batches = group(request);
    let too_large = reject_too_large(&mut batches, live, tenant);
    if too_large > 0 {
        rejections.add(Reason::TraceTooLarge, too_large);
        encoded = ungroup(&batches).encode_to_vec().into();
    }
    let accepted: u64 = batches.iter().map(|batch| batch.batch.spans.len() as u64).sum();
    let raw_len = encoded.len() as u32;
    let packed = pack(&encoded);
    Ok(Prepared {
        batches,
        spans: accepted + rejections.total(),
        rejections,
        compressed: packed.is_some(),
        payload: packed.map_or(encoded, Bytes::from),
        raw_len,
    })
}

/// Removes the batches of traces that would grow beyond their limit; returns how many spans that were.
fn reject_too_large(batches: &mut Vec<TraceBatch>, live: &LiveSet, tenant: &str) -> u64 {
    let mut adds: HashMap<TraceId, usize> = HashMap::new();
    for batch in batches.iter() {
        *adds.entry(batch.id).or_default() += batch.bytes;
    }
    adds.retain(|id, bytes| *bytes > live.room(tenant, id));
    let mut rejected = 0;
    if !adds.is_empty() {
        batches.retain(|batch| {
            let too_large = adds.contains_key(&batch.id);
            rejected += if too_large { batch.batch.spans.len() as u64 } else { 0 };
            !too_large
        });
    }
    rejected
}
