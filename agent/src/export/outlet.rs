//! The task that sends requests to one endpoint.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};

use super::{
    Encoded, EndpointSettings,
    backlog::{Backlog, Unopened},
    backoff::Backoff,
    response::Answer,
    transport::Transport,
};
use crate::telemetry::{DropCause, EndpointMetrics, RequestOutcome, Telemetry};

/// How often the same kind of failure is logged.
const LOG_AGAIN: Duration = Duration::from_secs(30);

/// An endpoint that takes longer than this for a request is taken for one that is away: what is in memory goes to disk.
const SLOW: Duration = Duration::from_secs(1);

/// Sends requests to one endpoint, one after the other.
#[derive(Debug)]
pub(super) struct Outlet {
    name: String,
    transport: Arc<Transport>,
    backoff: Backoff,
    max_memory_spans: u64,
    disk: Option<Unopened>,
    telemetry: Telemetry,
    metrics: EndpointMetrics,
    logged: Option<Instant>,
    /// Spans that wait in memory, for who wants to know whether there is room.
    waiting: Arc<AtomicU64>,
}

/// A request that is under way.
struct Sending {
    request: Encoded,
    started: Instant,
    answer: Pin<Box<dyn Future<Output = Answer> + Send>>,
}

impl Sending {
    fn start(transport: &Arc<Transport>, request: Encoded) -> Self {
        let (transport, body) = (Arc::clone(transport), request.body.clone());
        let answer = Box::pin(async move { transport.send(body).await });
        Self { request, started: Instant::now(), answer }
    }
}

/// Waits, or for ever.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Outlet {
    pub(super) fn new(
        settings: &EndpointSettings,
        transport: Transport,
        backoff: Backoff,
        max_memory_spans: u64,
        disk: Option<Unopened>,
        telemetry: &Telemetry,
    ) -> Self {
        Self {
            name: settings.name.clone(),
            transport: Arc::new(transport),
            backoff,
            max_memory_spans,
            disk,
            telemetry: telemetry.clone(),
            metrics: telemetry.export.endpoint(&settings.name),
            logged: None,
            waiting: Arc::default(),
        }
    }

    /// Spans that wait in memory, as they are at any time.
    pub(super) fn waiting(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.waiting)
    }

    /// What the endpoint is called.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Sends until no more requests come and none waits in memory, or until the moment that `deadline` holds, from when
    /// on it is set. What is left then goes to disk; without a queue there it is dropped and counted.
    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Encoded>,
        mut deadline: watch::Receiver<Option<Instant>>,
    ) {
        let mut backlog = Backlog::open(self.max_memory_spans, self.disk.take()).await;
        let found = backlog.disk_spans();
        if found > 0 {
            tracing::info!(endpoint = self.name, spans = found, "spans of an earlier run wait on disk");
            self.telemetry.queue_length.inc_by(i64::try_from(found).unwrap_or(i64::MAX));
        }
        let mut is_open = true;
        let mut is_watched = true;
        let mut sending: Option<Sending> = None;
        let mut pause: Option<Instant> = None;
        let mut end: Option<Instant> = *deadline.borrow_and_update();
        loop {
            self.account(&mut backlog);
            let is_finished = backlog.is_empty() || backlog.has_disk() && backlog.is_safe();
            if !is_open && sending.is_none() && is_finished {
                break;
            }
            if sending.is_none() && pause.is_none() {
                match backlog.oldest().await {
                    Some(request) => sending = Some(Sending::start(&self.transport, request)),
                    // It cannot be read now.
                    None if !backlog.is_empty() => pause = Some(Instant::now() + self.backoff.next(None)),
                    None => {}
                }
            }
            let slow = sending.as_ref().map(|sending| sending.started + SLOW).filter(|_| !backlog.is_away());
            let sync = backlog.sync_within();
            tokio::select! {
                request = requests.recv(), if is_open => match request {
                    Some(request) => {
                        let dropped = backlog.push(request).await;
                        self.drop_spans(DropCause::QueueFull, dropped);
                    }
                    None => is_open = false,
                },
                answer = async {
                    match &mut sending {
                        Some(sending) => sending.answer.as_mut().await,
                        None => std::future::pending().await,
                    }
                } => if let Some(Sending { request, started, .. }) = sending.take() {
                    self.telemetry.export_duration.observe(started.elapsed().as_secs_f64());
                    pause = self.answered(&mut backlog, &request, answer).await;
                },
                () = until(pause), if pause.is_some() => pause = None,
                () = until(slow), if slow.is_some() && backlog.has_disk() => backlog.set_away(true).await,
                () = sleep(sync.unwrap_or_default()), if sync.is_some() => backlog.sync().await,
                changed = deadline.changed(), if is_watched => {
                    is_watched = changed.is_ok();
                    end = *deadline.borrow_and_update();
                    // Cut short, so that every request gets one more chance.
                    pause = None;
                }
                () = until(end), if end.is_some() => break,
            }
        }
        backlog.spill().await;
        backlog.sync().await;
        self.account(&mut backlog);
        let lost = backlog.forget_memory();
        self.drop_spans(DropCause::Shutdown, lost);
        if lost > 0 {
            tracing::warn!(
                endpoint = self.name,
                spans = lost,
                "spans are lost: the endpoint did not take them in time"
            );
        }
        let kept = backlog.disk_spans();
        if kept > 0 {
            tracing::info!(endpoint = self.name, spans = kept, "spans wait on disk for the next run");
        }
    }

    /// What the answer means for the request; gives the time until which nothing is to be sent.
    async fn answered(&mut self, backlog: &mut Backlog, request: &Encoded, answer: Answer) -> Option<Instant> {
        let spans = request.spans;
        match answer {
            Answer::Accepted { rejected, message } => {
                self.backoff.reset();
                self.metrics.set_up(true);
                backlog.set_away(false).await;
                self.count_request(RequestOutcome::Accepted);
                // Given up while it was under way: counted as dropped already.
                if backlog.done(request).await {
                    let rejected = rejected.min(spans);
                    if rejected > 0 && self.may_log() {
                        let endpoint = &self.name;
                        tracing::warn!(endpoint, rejected, spans, message, "the endpoint did not take all spans");
                    }
                    self.drop_spans(DropCause::Rejected, rejected);
                    self.telemetry.spans_exported.inc_by(spans - rejected);
                    self.metrics.exported.inc_by(spans - rejected);
                    self.leave(spans - rejected);
                }
                None
            }
            Answer::Refused { reason } | Answer::Unauthorised { reason } => {
                self.backoff.reset();
                self.metrics.set_up(true);
                backlog.set_away(false).await;
                self.count_request(RequestOutcome::Refused);
                if self.may_log() {
                    tracing::error!(endpoint = self.name, spans, reason, "the endpoint refuses spans");
                }
                if backlog.done(request).await {
                    self.drop_spans(DropCause::Refused, spans);
                }
                None
            }
            Answer::Retry { after, reason } => {
                self.count_request(RequestOutcome::Retried);
                self.metrics.set_up(false);
                backlog.set_away(true).await;
                let pause = self.backoff.next(after);
                if self.may_log() {
                    tracing::warn!(endpoint = self.name, spans, reason, ?pause, "the endpoint cannot take spans now");
                }
                Some(Instant::now() + pause)
            }
        }
    }

    /// Shows what is on disk and counts what was lost there.
    fn account(&mut self, backlog: &mut Backlog) {
        self.waiting.store(backlog.memory_spans(), Ordering::Relaxed);
        if !backlog.has_disk() {
            return;
        }
        let losses = backlog.take_losses();
        self.drop_spans(DropCause::QueueFull, losses.given_up_spans);
        self.drop_spans(DropCause::Damaged, losses.damaged_spans);
        self.metrics.damaged.inc_by(losses.damaged_ranges);
        if losses.given_up_spans > 0 && self.may_log() {
            let spans = losses.given_up_spans;
            tracing::error!(endpoint = self.name, spans, "the queue on disk is full: the oldest spans are given up");
        }
        self.metrics.show_disk(backlog.disk_spans(), backlog.disk_bytes(), backlog.oldest_ns());
    }

    fn drop_spans(&self, cause: DropCause, spans: u64) {
        if spans > 0 {
            self.telemetry.spans_dropped(cause).inc_by(spans);
            self.metrics.dropped.inc_by(spans);
            self.leave(spans);
        }
    }

    /// Spans do not wait any more.
    fn leave(&self, spans: u64) {
        self.telemetry.queue_length.dec_by(i64::try_from(spans).unwrap_or(i64::MAX));
    }

    fn count_request(&self, outcome: RequestOutcome) {
        self.telemetry.export_requests(outcome).inc();
    }

    /// An endpoint that is away for a night must not fill the disk with log lines.
    fn may_log(&mut self) -> bool {
        let now = Instant::now();
        let may = self.logged.is_none_or(|logged| now.duration_since(logged) >= LOG_AGAIN);
        if may {
            self.logged = Some(now);
        }
        may
    }
}
