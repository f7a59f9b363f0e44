//! The bounded queue between the thread that makes spans and the task that sends them.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout_at},
};

use super::{
    encode::{add_request, add_span, add_to_scope},
    relay::{RelayQueue, Relayed, Room},
};
use crate::{
    discover::Process,
    span::{AttributeFilter, FinishedSpan, RequestSpan},
    telemetry::{DropCause, Telemetry},
};

/// Spans that travel together at most, and bytes of them; the last one may go over it.
const TOGETHER: usize = 64;
const TOGETHER_BYTES: usize = 32 * 1024;
/// Processes whose spans are gathered at a time: with one more, all go.
const GATHERED: usize = 32;

/// Spans as they are sent, all under the same.
///
/// They are encoded by the thread that made them, one behind the other: nothing of a single span has to be allocated, or
/// freed by another thread, and what waits takes little memory.
#[derive(Debug)]
pub(crate) struct EncodedSpans {
    /// What they are sent under.
    pub(crate) under: Under,
    /// How many there are.
    pub(crate) count: usize,
    /// `opentelemetry.proto.trace.v1.ScopeSpans`, with nothing but them.
    pub(crate) fields: Vec<u8>,
}

impl EncodedSpans {
    /// None yet, and room for so many bytes.
    pub(super) fn new(under: Under, bytes: usize) -> Self {
        Self { under, count: 0, fields: Vec::with_capacity(bytes) }
    }

    /// Adds an encoded span.
    pub(super) fn add(&mut self, span: &[u8]) {
        self.count += 1;
        add_to_scope(span, &mut self.fields);
    }

    /// Whether others go separately.
    pub(super) fn is_full(&self, most: usize) -> bool {
        self.count >= most.min(TOGETHER) || self.fields.len() >= TOGETHER_BYTES
    }
}

/// What a span is sent under.
#[derive(Clone, Debug)]
pub(crate) enum Under {
    /// A process that it was made of.
    Process(Arc<Process>),
    /// What an SDK has sent it under.
    Relayed(Arc<Relayed>),
}

impl Under {
    fn is(&self, process: &Arc<Process>) -> bool {
        matches!(self, Self::Process(own) if Arc::ptr_eq(own, process))
    }

    pub(super) fn is_relayed(&self, relayed: &Arc<Relayed>) -> bool {
        matches!(self, Self::Relayed(own) if Arc::ptr_eq(own, relayed))
    }
}

/// How many spans wait in the queue.
#[derive(Debug)]
pub(super) struct Waiting {
    spans: AtomicUsize,
    /// How many may.
    limit: usize,
    /// When so many wait, they are taken at once.
    many: usize,
    is_many: Notify,
}

impl Waiting {
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn spans(&self) -> usize {
        self.spans.load(Ordering::Relaxed)
    }

    /// Makes room for so many more; false if there is none.
    pub(super) fn reserve(&self, spans: usize) -> bool {
        let add = |waiting: usize| waiting.checked_add(spans).filter(|all| *all <= self.limit);
        self.spans.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// So many are no longer in the queue.
    pub(super) fn release(&self, spans: usize) {
        self.spans.fetch_sub(spans, Ordering::Relaxed);
    }

    /// To be called when some were put into the queue.
    fn tell(&self) {
        if self.spans() >= self.many {
            self.is_many.notify_one();
        }
    }

    /// They are to be taken, however few there are.
    pub(super) fn hurry(&self) {
        self.is_many.notify_one();
    }
}

/// Where finished spans are put. Dropping it lets the exporter send what is left and end.
#[derive(Debug)]
pub struct SpanQueue {
    sender: mpsc::UnboundedSender<EncodedSpans>,
    waiting: Arc<Waiting>,
    /// Spans that go together at most.
    together: usize,
    /// What is not yet in the queue, but has its room there.
    gathered: Vec<EncodedSpans>,
    /// The span that is being written; kept for its memory.
    span: Vec<u8>,
    /// Bytes of those that went last: as many are likely to come together again.
    usual_bytes: usize,
    /// Each span counts once for each of them.
    endpoints: u64,
    telemetry: Telemetry,
}

/// What takes spans out of the queue.
#[derive(Debug)]
pub(crate) struct Spans {
    receiver: mpsc::UnboundedReceiver<EncodedSpans>,
    /// What was taken out and did not fit.
    kept: Option<EncodedSpans>,
    waiting: Arc<Waiting>,
}

/// Both ends of a queue for `spans` spans, of which `batch` are worth to be sent at once, to so many endpoints.
pub(crate) fn bounded(spans: usize, batch: usize, endpoints: u64, telemetry: Telemetry) -> (SpanQueue, Spans) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let many = batch.min(spans / 2).max(1);
    let waiting = Arc::new(Waiting { spans: AtomicUsize::new(0), limit: spans, many, is_many: Notify::new() });
    let queue = SpanQueue {
        sender,
        waiting: Arc::clone(&waiting),
        together: batch.max(1),
        gathered: Vec::new(),
        span: Vec::new(),
        usual_bytes: 0,
        endpoints,
        telemetry,
    };
    (queue, Spans { receiver, kept: None, waiting })
}

impl SpanQueue {
    /// Puts a span into the queue, or drops and counts it. Never blocks. It can be taken out after [`Self::flush`].
    pub fn push(&mut self, span: FinishedSpan) {
        let FinishedSpan { process, span } = span;
        self.push_written(&process, |bytes| add_span(span, bytes));
    }

    /// The same with the span of a request, of which only the attributes that `filter` leaves are sent.
    pub fn push_request(&mut self, span: &RequestSpan<'_>, filter: Option<&mut AttributeFilter>) {
        self.push_written(span.process, |bytes| add_request(span, filter, bytes));
    }

    fn push_written(&mut self, process: &Arc<Process>, write: impl FnOnce(&mut Vec<u8>)) {
        if !self.waiting.reserve(1) {
            self.telemetry.spans_dropped(DropCause::QueueFull).inc_by(self.endpoints);
            return;
        }
        self.telemetry.queue_length.inc_by(i64::try_from(self.endpoints).unwrap_or(i64::MAX));
        self.span.clear();
        write(&mut self.span);
        let (together, is_same) = (self.together, |spans: &EncodedSpans| spans.under.is(process));
        if let Some(spans) = self.gathered.iter_mut().rev().find(|spans| is_same(spans)) {
            spans.add(&self.span);
            if spans.is_full(together) {
                self.flush();
            }
            return;
        }
        // With room for a little more: what outgrows its place is copied to another one.
        let room = self.usual_bytes + self.usual_bytes / 8;
        let mut spans = EncodedSpans::new(Under::Process(Arc::clone(process)), room);
        spans.add(&self.span);
        self.gathered.push(spans);
        if together == 1 || self.gathered.len() >= GATHERED {
            self.flush();
        }
    }

    /// Lets the spans go that were put into the queue. To be called after each few of them.
    pub fn flush(&mut self) {
        for mut spans in self.gathered.drain(..) {
            self.usual_bytes = spans.fields.len();
            spans.fields.shrink_to_fit();
            send(&self.sender, spans, self.endpoints, &self.telemetry);
        }
        self.waiting.tell();
    }

    /// Another way in, for spans that somebody else has made. It is closed when this one is.
    pub fn relay(&self, room: Room) -> RelayQueue {
        let (sender, waiting) = (self.sender.downgrade(), Arc::clone(&self.waiting));
        RelayQueue::new(sender, waiting, self.together, self.endpoints, room, self.telemetry.clone())
    }
}

/// Puts spans into the queue. It is closed only when the exporter has ended before its time: then they are lost, and counted.
pub(super) fn send(
    sender: &mpsc::UnboundedSender<EncodedSpans>,
    spans: EncodedSpans,
    endpoints: u64,
    telemetry: &Telemetry,
) {
    if let Err(mpsc::error::SendError(spans)) = sender.send(spans) {
        let lost = spans.count as u64 * endpoints;
        telemetry.queue_length.dec_by(i64::try_from(lost).unwrap_or(i64::MAX));
        telemetry.spans_dropped(DropCause::Shutdown).inc_by(lost);
    }
}

impl Drop for SpanQueue {
    fn drop(&mut self) {
        self.flush();
        self.waiting.hurry();
    }
}

impl Spans {
    /// Waits for spans. `None` when the queue is dropped and empty.
    pub(crate) async fn wait(&mut self) -> Option<EncodedSpans> {
        let spans = match self.kept.take() {
            Some(spans) => spans,
            None => self.receiver.recv().await?,
        };
        self.waiting.release(spans.count);
        Some(spans)
    }

    /// Spans that are there already, if they fit.
    pub(crate) fn next_if(&mut self, fits: impl FnOnce(&EncodedSpans) -> bool) -> Next {
        let Some(spans) = self.kept.take().or_else(|| self.receiver.try_recv().ok()) else { return Next::None };
        if !fits(&spans) {
            self.kept = Some(spans);
            return Next::TooMany;
        }
        self.waiting.release(spans.count);
        Next::Spans(spans)
    }

    /// Lets no more come: what is there can still be taken.
    pub(crate) fn close(&mut self) {
        self.receiver.close();
    }

    /// Lets spans come until `end`, until many are there, or until none can come any more.
    ///
    /// The task sleeps meanwhile: to be woken for each span would cost its maker a system call each.
    pub(crate) async fn gather(&self, end: Instant) {
        let _ = timeout_at(end, self.waiting.is_many.notified()).await;
    }
}

/// What is there already.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing.
    None,
    /// More than there is room for.
    TooMany,
    /// These.
    Spans(EncodedSpans),
}
