//! The memory that requests may take from their first byte to their answer, all senders together.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep};

use super::ExportError;

/// What is counted by; a semaphore counts to 2^32 only.
const UNIT: usize = 1 << 10;

/// Bytes of all requests at once.
#[derive(Debug)]
pub(super) struct Budget {
    units: Arc<Semaphore>,
    limit: usize,
    in_use: Gauge,
}

/// What one request has of the budget; clones share it, the last one gives it back.
#[derive(Clone, Debug)]
pub(super) struct Share(Arc<Mutex<Held>>);

#[derive(Debug)]
struct Held {
    units: Arc<Semaphore>,
    limit: usize,
    in_use: Gauge,
    bytes: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Budget {
    /// A budget of `limit` bytes; `in_use` shows what is taken.
    pub(super) fn new(limit: usize, in_use: Gauge) -> Self {
        let units = Arc::new(Semaphore::new((limit / UNIT).min(Semaphore::MAX_PERMITS)));
        Self { units, limit, in_use }
    }

    /// The share of a request of which nothing has been read.
    pub(super) fn share(&self) -> Share {
        let (units, in_use) = (Arc::clone(&self.units), self.in_use.clone());
        Share(Arc::new(Mutex::new(Held { units, limit: self.limit, in_use, bytes: 0, permit: None })))
    }

    /// Fails if a request of this size has no room at this moment. Takes nothing: what a sender announces need not come.
    pub(super) fn check(&self, bytes: usize) -> Result<(), ExportError> {
        if bytes.div_ceil(UNIT) > self.units.available_permits() {
            return Err(ExportError::Overloaded { bytes, limit: self.limit });
        }
        Ok(())
    }
}

impl Share {
    /// Takes so much of the budget that the request may hold `bytes` in all. Never less than before.
    pub(super) fn grow_to(&self, bytes: usize) -> Result<(), ExportError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).grow_to(bytes)
    }

    /// Takes so much that the request may hold `bytes` more.
    fn grow_by(&self, bytes: usize) -> Result<(), ExportError> {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = held.bytes + bytes;
        held.grow_to(bytes)
    }
}

impl Held {
    fn grow_to(&mut self, bytes: usize) -> Result<(), ExportError> {
        let more = bytes.div_ceil(UNIT).saturating_sub(self.bytes.div_ceil(UNIT));
        if more > 0 {
            let overloaded = ExportError::Overloaded { bytes, limit: self.limit };
            let more = u32::try_from(more).map_err(|_| ExportError::Overloaded { bytes, limit: self.limit })?;
            let Ok(permit) = Arc::clone(&self.units).try_acquire_many_owned(more) else { return Err(overloaded) };
            match &mut self.permit {
                Some(held) => held.merge(permit),
                None => self.permit = Some(permit),
            }
        }
        self.in_use.inc_by(bytes.saturating_sub(self.bytes) as i64);
        self.bytes = self.bytes.max(bytes);
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.in_use.dec_by(self.bytes as i64);
    }
}

/// A body that takes its share of the budget while it is read, and ends with an error when it does not come in time.
pub(super) struct Metered<B> {
    body: B,
    share: Share,
    time_limit: Duration,
    deadline: Pin<Box<Sleep>>,
}

impl<B> Metered<B> {
    pub(super) fn new(body: B, share: Share, time_limit: Duration) -> Self {
        Self { body, share, time_limit, deadline: Box::pin(sleep(time_limit)) }
    }
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("body cannot be read: {0}")]
    Transport(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl<B> Body for Metered<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        if self.deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(ExportError::Stalled { limit: self.time_limit }.into())));
        }
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else { return Poll::Pending };
        Poll::Ready(frame.map(|frame| {
            let frame = frame.map_err(|error| ReadError::Transport(error.into()))?;
            self.share.grow_by(frame.data_ref().map_or(0, Bytes::len))?;
            Ok(frame)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_grow_as_far_as_the_budget_reaches_and_give_it_back() {
        let gauge = Gauge::default();
        let budget = Budget::new(10 * UNIT, gauge.clone());
        let (first, second) = (budget.share(), budget.share());
        first.grow_to(1).unwrap();
        first.grow_to(4 * UNIT).unwrap();
        first.grow_to(UNIT).unwrap();
        second.grow_by(5 * UNIT).unwrap();
        second.grow_by(UNIT).unwrap();
        assert_eq!(gauge.get(), 10 * UNIT as i64);
        let error = first.grow_by(1).unwrap_err();
        assert!(
            matches!(error, ExportError::Overloaded { bytes, limit } if (bytes, limit) == (4 * UNIT + 1, 10 * UNIT))
        );
        assert!(budget.check(1).is_err());
        let clone = second.clone();
        drop(second);
        first.grow_by(1).unwrap_err();
        drop(clone);
        budget.check(6 * UNIT).unwrap();
        first.grow_to(10 * UNIT).unwrap();
        drop(first);
        assert_eq!(gauge.get(), 0);
    }
}
