//! The bounded queue between the thread that makes spans and the task that sends them.

use std::sync::Arc;

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout_at},
};

use super::{
    encode::encode,
    relay::{RelayQueue, Relayed, Room},
};
use crate::{
    discover::Process,
    span::FinishedSpan,
    telemetry::{DropCause, Telemetry},
};

/// A span as it is sent.
///
/// It is encoded by the thread that made it, so that its many small parts are freed where they were allocated, and what
/// waits takes little memory.
#[derive(Debug)]
pub(crate) struct EncodedSpan {
    /// What it is sent under.
    pub(crate) under: Under,
    /// `opentelemetry.proto.trace.v1.Span`.
    pub(crate) bytes: Vec<u8>,
}

/// What a span is sent under.
#[derive(Clone, Debug)]
pub(crate) enum Under {
    /// A process that it was made of.
    Process(Arc<Process>),
    /// What an SDK has sent it under.
    Relayed(Arc<Relayed>),
}

/// Where finished spans are put. Dropping it lets the exporter send what is left and end.
#[derive(Debug)]
pub struct SpanQueue {
    sender: mpsc::Sender<EncodedSpan>,
    many: Arc<Notify>,
    /// When so many wait, they are taken at once.
    many_spans: usize,
    /// Each span counts once for each of them.
    endpoints: u64,
    telemetry: Telemetry,
}

/// What takes spans out of the queue.
#[derive(Debug)]
pub(crate) struct Spans {
    receiver: mpsc::Receiver<EncodedSpan>,
    many: Arc<Notify>,
}

/// Both ends of a queue for `spans` spans, of which `batch` are worth to be sent at once, to so many endpoints.
pub(crate) fn bounded(spans: usize, batch: usize, endpoints: u64, telemetry: Telemetry) -> (SpanQueue, Spans) {
    let (sender, receiver) = mpsc::channel(spans);
    let many = Arc::new(Notify::new());
    let many_spans = batch.min(spans / 2).max(1);
    (SpanQueue { sender, many: Arc::clone(&many), many_spans, endpoints, telemetry }, Spans { receiver, many })
}

impl SpanQueue {
    /// Puts a span into the queue, or drops and counts it. Never blocks.
    pub fn push(&self, span: FinishedSpan) {
        let FinishedSpan { process, request, span } = span;
        let dropped = match self.sender.try_reserve() {
            Ok(place) => {
                self.telemetry.queue_length.inc_by(i64::try_from(self.endpoints).unwrap_or(i64::MAX));
                place.send(EncodedSpan { under: Under::Process(process), bytes: encode(&request, span) });
                if self.sender.max_capacity() - self.sender.capacity() >= self.many_spans {
                    self.many.notify_one();
                }
                return;
            }
            Err(mpsc::error::TrySendError::Full(())) => DropCause::QueueFull,
            // Closed only when the exporter has ended before its time.
            Err(mpsc::error::TrySendError::Closed(())) => DropCause::Shutdown,
        };
        self.telemetry.spans_dropped(dropped).inc_by(self.endpoints);
    }

    /// Another way in, for spans that somebody else has made. It is closed when this one is.
    pub fn relay(&self, room: Room) -> RelayQueue {
        let (many, telemetry) = (Arc::clone(&self.many), self.telemetry.clone());
        RelayQueue::new(self.sender.downgrade(), many, self.endpoints, room, telemetry)
    }
}

impl Drop for SpanQueue {
    fn drop(&mut self) {
        self.many.notify_one();
    }
}

impl Spans {
    /// Waits for a span. `None` when the queue is dropped and empty.
    pub(crate) async fn wait(&mut self) -> Option<EncodedSpan> {
        self.receiver.recv().await
    }

    /// A span that is there already.
    pub(crate) fn next(&mut self) -> Option<EncodedSpan> {
        self.receiver.try_recv().ok()
    }

    /// Lets no more come: what is there can still be taken.
    pub(crate) fn close(&mut self) {
        self.receiver.close();
    }

    /// Lets spans come until `end`, until many are there, or until none can come any more.
    ///
    /// The task sleeps meanwhile: to be woken for each span would cost its maker a system call each.
    pub(crate) async fn gather(&self, end: Instant) {
        let _ = timeout_at(end, self.many.notified()).await;
    }
}
