//! The task that takes spans from the queue and sends them.

use std::time::Duration;

use prost::bytes::Bytes;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{
    backoff::Backoff,
    batch::{Batch, Limits},
    grpc::Grpc,
    http::Http,
    queue::Spans,
    response::Answer,
};
use crate::telemetry::{DropCause, RequestOutcome, Telemetry};

/// How often the same kind of failure is logged.
const LOG_AGAIN: Duration = Duration::from_secs(30);

/// How requests are sent.
#[derive(Debug)]
pub(super) enum Transport {
    /// By gRPC.
    Grpc(Box<Grpc>),
    /// By HTTP with protobuf.
    Http(Box<Http>),
}

impl Transport {
    async fn send(&mut self, body: Bytes) -> Answer {
        match self {
            Self::Grpc(client) => client.send(body).await,
            Self::Http(client) => client.send(body).await,
        }
    }
}

/// Sends spans until the queue is dropped and empty.
#[derive(Debug)]
pub struct Exporter {
    spans: Spans,
    limits: Limits,
    transport: Transport,
    backoff: Backoff,
    telemetry: Telemetry,
    logged: Option<Instant>,
}

impl Exporter {
    pub(super) fn new(
        spans: Spans,
        limits: Limits,
        transport: Transport,
        backoff: Backoff,
        telemetry: Telemetry,
    ) -> Self {
        Self { spans, limits, transport, backoff, telemetry, logged: None }
    }

    /// Exports until the queue is dropped and everything in it is sent, or until the moment that `deadline` holds, from
    /// when on it is set. What is left then is dropped and counted.
    pub async fn run(mut self, mut deadline: watch::Receiver<Option<Instant>>) {
        self.telemetry.set_exporting(true);
        let hurry = deadline.clone();
        let passed = async {
            let end = deadline.wait_for(Option::is_some).await.ok().and_then(|end| *end);
            match end {
                Some(end) => sleep_until(end).await,
                // Whoever could set one is gone.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.export_all(hurry) => {}
            () = passed => {}
        }
        self.telemetry.set_exporting(false);
        let left = u64::try_from(self.telemetry.queue_length.set(0)).unwrap_or(0);
        if left > 0 {
            self.telemetry.spans_dropped(DropCause::Shutdown).inc_by(left);
            tracing::warn!(spans = left, "spans are lost: the endpoint did not take them in time");
        }
    }

    async fn export_all(&mut self, mut hurry: watch::Receiver<Option<Instant>>) {
        while let Some(batch) = self.next_batch().await {
            self.deliver(batch, &mut hurry).await;
        }
    }

    /// Waits for a span, and a little for others. `None` when the queue is dropped and empty.
    async fn next_batch(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        batch.add(self.spans.wait().await?);
        let end = Instant::now() + self.limits.delay;
        batch.fill(&mut self.spans, &self.limits);
        if !batch.is_full(&self.limits) {
            self.spans.gather(end).await;
            batch.fill(&mut self.spans, &self.limits);
        }
        Some(batch)
    }

    /// Sends a batch as often as it takes.
    async fn deliver(&mut self, batch: Batch, hurry: &mut watch::Receiver<Option<Instant>>) {
        let spans = batch.len() as u64;
        let body = batch.encode();
        let dropped = loop {
            let started = Instant::now();
            let answer = self.transport.send(body.clone()).await;
            self.telemetry.export_duration.observe(started.elapsed().as_secs_f64());
            match answer {
                Answer::Accepted { rejected, message } => {
                    self.backoff.reset();
                    self.count_request(RequestOutcome::Accepted);
                    let rejected = rejected.min(spans);
                    if rejected > 0 && self.may_log() {
                        tracing::warn!(rejected, spans, message, "the endpoint did not take all spans");
                    }
                    self.telemetry.spans_dropped(DropCause::Rejected).inc_by(rejected);
                    break rejected;
                }
                Answer::Refused { reason } => {
                    self.backoff.reset();
                    self.count_request(RequestOutcome::Refused);
                    if self.may_log() {
                        tracing::error!(spans, reason, "the endpoint refuses spans");
                    }
                    self.telemetry.spans_dropped(DropCause::Refused).inc_by(spans);
                    break spans;
                }
                Answer::Retry { after, reason } => {
                    self.count_request(RequestOutcome::Retried);
                    let pause = self.backoff.next(after);
                    if self.may_log() {
                        tracing::warn!(spans, reason, ?pause, "the endpoint cannot take spans now");
                    }
                    wait(pause, hurry).await;
                }
            }
        };
        self.telemetry.spans_exported.inc_by(spans - dropped);
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

/// Sleeps; cut short once when the agent is about to end, so that every batch gets one more chance.
async fn wait(pause: Duration, hurry: &mut watch::Receiver<Option<Instant>>) {
    tokio::select! {
        () = sleep(pause) => {}
        Ok(()) = hurry.changed() => {}
    }
}
