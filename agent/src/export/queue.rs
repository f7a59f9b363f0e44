//! The bounded queue between the thread that makes spans and the task that sends them.

use tokio::sync::mpsc;

use crate::{
    span::FinishedSpan,
    telemetry::{DropCause, Telemetry},
};

/// Where finished spans are put. Dropping it lets the exporter send what is left and end.
#[derive(Debug)]
pub struct SpanQueue {
    sender: mpsc::Sender<FinishedSpan>,
    telemetry: Telemetry,
}

/// Both ends of a queue for so many spans.
pub(crate) fn bounded(spans: usize, telemetry: Telemetry) -> (SpanQueue, mpsc::Receiver<FinishedSpan>) {
    let (sender, receiver) = mpsc::channel(spans);
    (SpanQueue { sender, telemetry }, receiver)
}

impl SpanQueue {
    /// Puts a span into the queue, or drops and counts it. Never blocks.
    pub fn push(&self, span: FinishedSpan) {
        match self.sender.try_send(span) {
            Ok(()) => {
                self.telemetry.queue_length.inc();
            }
            // Closed only when the exporter has ended before its time.
            Err(mpsc::error::TrySendError::Full(_)) => {
                self.telemetry.spans_dropped(DropCause::QueueFull).inc();
            }
            Err(mpsc::error::TrySendError::Closed(_)) => {
                self.telemetry.spans_dropped(DropCause::Shutdown).inc();
            }
        }
    }
}
