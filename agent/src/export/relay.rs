//! The way into the queue for spans that SDKs have made.
//!
//! What is taken from an SDK is acknowledged, so it must not be dropped a moment later for want of room: spans are taken
//! only while at least half of the memory that they may need is free. The other half is for the node's own.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use super::queue::{EncodedSpans, Under, Waiting, send};
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
    sender: mpsc::WeakUnboundedSender<EncodedSpans>,
    waiting: Arc<Waiting>,
    /// Spans that go together at most.
    together: usize,
    endpoints: u64,
    room: Room,
    telemetry: Telemetry,
}

impl RelayQueue {
    pub(super) const fn new(
        sender: mpsc::WeakUnboundedSender<EncodedSpans>,
        waiting: Arc<Waiting>,
        together: usize,
        endpoints: u64,
        room: Room,
        telemetry: Telemetry,
    ) -> Self {
        Self { sender, waiting, together, endpoints, room, telemetry }
    }

    /// Puts all of these spans into the queue, or none.
    pub fn push(&self, spans: Vec<RelayedSpan>) -> Result<(), RelayError> {
        let sender = self.sender.upgrade().filter(|sender| !sender.is_closed()).ok_or(RelayError::Closed)?;
        let (count, limit) = (spans.len(), self.waiting.limit() / 2);
        if count > limit {
            return Err(RelayError::NeverFits { spans: count, limit });
        }
        if self.room.waiting() + (self.waiting.spans() + count) as u64 > limit as u64 || !self.waiting.reserve(count) {
            return Err(RelayError::Full);
        }
        self.telemetry.queue_length.inc_by(i64::try_from(count as u64 * self.endpoints).unwrap_or(i64::MAX));
        let mut together: Vec<EncodedSpans> = Vec::new();
        for RelayedSpan { under, bytes } in spans {
            let is_same = |it: &&mut EncodedSpans| it.under.is_relayed(&under) && !it.is_full(self.together);
            if let Some(spans) = together.last_mut().filter(is_same) {
                spans.add(&bytes);
            } else {
                let mut spans = EncodedSpans::new(Under::Relayed(under), bytes.len());
                spans.add(&bytes);
                together.push(spans);
            }
        }
        for spans in together {
            send(&sender, spans, self.endpoints, &self.telemetry);
        }
        self.waiting.hurry();
        Ok(())
    }
}
