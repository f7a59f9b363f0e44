//! The way into the queue for spans that SDKs have made.
//!
//! What is taken from an SDK is acknowledged, so it must not be dropped a moment later for want of room: spans are taken
//! only while at least half of the memory that they may need is free. The other half is for the node's own.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::{Notify, mpsc};

use super::queue::{EncodedSpan, Under};
use crate::telemetry::Telemetry;

/// What an SDK has sent spans under, encoded.
#[derive(Debug)]
pub struct Relayed {
    /// A `ResourceSpans` without spans.
    pub resource: Vec<u8>,
    /// A `ScopeSpans` without spans.
    pub scope: Vec<u8>,
}

/// A span that an SDK has made.
#[derive(Debug)]
pub struct RelayedSpan {
    /// What it is sent under.
    pub under: Arc<Relayed>,
    /// `opentelemetry.proto.trace.v1.Span`.
    pub bytes: Vec<u8>,
}

/// Why spans were not taken: none of them was.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum RelayError {
    /// There is no room now.
    #[error("the queue is full")]
    Full,
    /// There will never be room for so many.
    #[error("{spans} spans never fit, {limit} are the most")]
    NeverFits {
        /// Spans.
        spans: usize,
        /// The most that are taken at once.
        limit: usize,
    },
    /// The queue is closed.
    #[error("the queue is closed")]
    Closed,
}

/// Spans that wait in memory, for each endpoint.
#[derive(Clone, Debug, Default)]
pub struct Room(pub(super) Arc<[Arc<AtomicU64>]>);

impl Room {
    /// Of the endpoint with the shortest queue: one that is away is not to stop the others.
    fn waiting(&self) -> u64 {
        self.0.iter().map(|waiting| waiting.load(Ordering::Relaxed)).min().unwrap_or(0)
    }
}

/// Where spans of SDKs are put. It does not keep the queue open.
#[derive(Clone, Debug)]
pub struct RelayQueue {
    sender: mpsc::WeakSender<EncodedSpan>,
    many: Arc<Notify>,
    endpoints: u64,
    room: Room,
    telemetry: Telemetry,
}

impl RelayQueue {
    pub(super) const fn new(
        sender: mpsc::WeakSender<EncodedSpan>,
        many: Arc<Notify>,
        endpoints: u64,
        room: Room,
        telemetry: Telemetry,
    ) -> Self {
        Self { sender, many, endpoints, room, telemetry }
    }

    /// Puts all of these spans into the queue, or none.
    pub fn push(&self, spans: Vec<RelayedSpan>) -> Result<(), RelayError> {
        let sender = self.sender.upgrade().ok_or(RelayError::Closed)?;
        let (count, limit) = (spans.len(), sender.max_capacity() / 2);
        if count > limit {
            return Err(RelayError::NeverFits { spans: count, limit });
        }
        let queued = sender.max_capacity() - sender.capacity();
        if self.room.waiting() + (queued + count) as u64 > limit as u64 {
            return Err(RelayError::Full);
        }
        let places = sender.try_reserve_many(count).map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => RelayError::Full,
            mpsc::error::TrySendError::Closed(()) => RelayError::Closed,
        })?;
        self.telemetry.queue_length.inc_by(i64::try_from(count as u64 * self.endpoints).unwrap_or(i64::MAX));
        for (place, RelayedSpan { under, bytes }) in places.zip(spans) {
            place.send(EncodedSpan { under: Under::Relayed(under), bytes });
        }
        self.many.notify_one();
        Ok(())
    }
}
