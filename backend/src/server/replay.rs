//! From the log into memory, at start.
//!
//! Newest first, so that no more is decoded than the live set may hold: a log of many gigabytes costs no more time than
//! the memory that it fills. What the catalog has not seen yet is indexed on the way; if that reaches back beyond the
//! live set (a catalog that is built anew), the rest is indexed after the start.

use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message;
use tracing::{error, info};

use super::ServerError;
use crate::catalog::TagIndex;
use crate::live::{LiveSet, TraceBatch, group};
use crate::telemetry::chain;
use crate::wal::{Frame, Log};

/// What a replay has done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Replayed {
    /// Every frame with a lower number is in the catalog.
    pub(super) indexed_from: u64,
    /// Frames that are not in the catalog yet.
    pub(super) rest: Option<Range<u64>>,
}

/// A frame, decoded and not yet in the live set.
struct Pending {
    tenant: String,
    received_ns: u64,
    batches: Vec<TraceBatch>,
}

/// Fills the live set, and tells the catalog what it does not know yet.
pub(super) fn replay(
    log: &Log,
    live: &LiveSet,
    tags: &TagIndex,
    stopping: &AtomicBool,
) -> Result<Replayed, ServerError> {
    let started = Instant::now();
    let next_sequence = log.next_sequence();
    let first_sequence = log.segments().first().map(|segment| segment.first_sequence);
    let indexed = indexed(tags, first_sequence, next_sequence)?;
    let (mut frames, mut raw_bytes, mut held) = (0_u64, 0_u64, 0);
    let mut pending = Vec::new();
    let mut index_failure = None;
    let flow = log.newest_first(|frame| {
        if held >= live.limits().total_bytes || stopping.load(Ordering::Relaxed) {
            return ControlFlow::Break(frame.sequence);
        }
        let Some(batches) = decode(frame) else { return ControlFlow::Continue(()) };
        if frame.sequence > indexed
            && let Err(error) = observe(tags, frame.tenant, &batches)
        {
            index_failure.get_or_insert(error);
        }
        frames += 1;
        raw_bytes += u64::from(frame.raw_len);
        held += batches.iter().map(|batch| batch.bytes).sum::<usize>();
        pending.push(Pending { tenant: frame.tenant.to_owned(), received_ns: frame.received_ns, batches });
        ControlFlow::Continue(())
    });
    let oldest_unread = match flow.map_err(ServerError::Log)? {
        ControlFlow::Break(sequence) => Some(sequence),
        ControlFlow::Continue(()) => None,
    };
    // In the order in which they came, so that eviction finds the right ones.
    while let Some(Pending { tenant, received_ns, batches }) = pending.pop() {
        live.insert(&tenant, batches, received_ns);
    }
    if let Some(error) = &index_failure {
        error!(error = %chain(error), "tags of the log not indexed");
    }
    let seconds = started.elapsed().as_secs_f64();
    info!(frames, bytes = raw_bytes, seconds, traces = live.stats().traces, "log replayed");
    Ok(match oldest_unread {
        _ if index_failure.is_some() => Replayed { indexed_from: indexed + 1, rest: None },
        Some(unread) if unread > indexed => Replayed { indexed_from: indexed + 1, rest: Some(indexed + 1..unread + 1) },
        Some(_) | None => Replayed { indexed_from: next_sequence, rest: None },
    })
}

/// Indexes the frames with these numbers; false if it was stopped before the end.
pub(super) fn index(
    log: &Log,
    tags: &TagIndex,
    sequences: Range<u64>,
    stopping: &AtomicBool,
) -> Result<bool, ServerError> {
    let flow = log.newest_first(|frame| {
        if stopping.load(Ordering::Relaxed) {
            return ControlFlow::Break(Ok(false));
        }
        if frame.sequence < sequences.start {
            return ControlFlow::Break(Ok(true));
        }
        if sequences.contains(&frame.sequence)
            && let Some(batches) = decode(frame)
            && let Err(error) = observe(tags, frame.tenant, &batches)
        {
            return ControlFlow::Break(Err(error));
        }
        ControlFlow::Continue(())
    });
    match flow.map_err(ServerError::Log)? {
        ControlFlow::Break(outcome) => outcome,
        ControlFlow::Continue(()) => Ok(true),
    }
}

/// Number up to which the catalog knows the log.
fn indexed(tags: &TagIndex, first_sequence: Option<u64>, next_sequence: u64) -> Result<u64, ServerError> {
    let store = tags.store();
    let indexed = store.checkpoint().map_err(ServerError::Catalog)?.unwrap_or_default();
    if indexed < next_sequence {
        return Ok(indexed);
    }
    // The catalog must not take new frames for old ones.
    let known = known_of(first_sequence, next_sequence);
    store.set_checkpoint(known).map_err(ServerError::Catalog)?;
    Ok(known)
}

/// What the catalog knows of a log that ends below the checkpoint.
fn known_of(first_sequence: Option<u64>, next_sequence: u64) -> u64 {
    match first_sequence {
        // The log has lost its end, and the catalog has seen the rest.
        Some(first) if first > 1 => next_sequence - 1,
        // The log was deleted and its numbers begin again.
        Some(_) | None => 0,
    }
}

fn decode(frame: &Frame<'_>) -> Option<Vec<TraceBatch>> {
    let request = frame
        .request()
        .map_err(|error| chain(&error))
        .and_then(|bytes| ExportTraceServiceRequest::decode(bytes.as_slice()).map_err(|error| error.to_string()));
    match request {
        Ok(request) => Some(group(request)),
        Err(error) => {
            error!(sequence = frame.sequence, error, "frame of the log is sound but cannot be decoded");
            None
        }
    }
}

fn observe(tags: &TagIndex, tenant: &str, batches: &[TraceBatch]) -> Result<(), ServerError> {
    let fresh = tags.observe(tenant, batches.iter().map(|batch| batch.batch.as_ref()));
    tags.record(tenant, &fresh).map_err(ServerError::Catalog)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::deleted(None, 1, 0)]
    #[case::begun_again(Some(1), 9, 0)]
    #[case::end_lost(Some(5), 9, 8)]
    fn a_log_below_the_checkpoint(#[case] first: Option<u64>, #[case] next: u64, #[case] known: u64) {
        assert_eq!(known_of(first, next), known);
    }
}
