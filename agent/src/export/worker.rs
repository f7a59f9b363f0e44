//! The task that takes spans from the queue, makes requests of them and gives these to every outlet.

use std::mem;

use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Encoded, Room,
    batch::{Batch, Limits},
    outlet::Outlet,
    queue::{Next, Spans},
};
use crate::telemetry::{DropCause, Telemetry};

/// Requests between this task and an outlet: outlets take them at once, unless their disk is stuck.
const HANDED_OVER: usize = 4;

/// Sends spans until the queue is dropped and empty.
#[derive(Debug)]
pub struct Exporter {
    spans: Spans,
    limits: Limits,
    outlets: Vec<Outlet>,
    telemetry: Telemetry,
}

/// What is on its way to the outlets. It survives that its future is dropped, so that all of it can be counted.
struct Batcher {
    spans: Spans,
    limits: Limits,
    outlets: Vec<mpsc::Sender<Encoded>>,
    batch: Batch,
    /// A request, and how many outlets have it.
    handing_over: Option<(Encoded, usize)>,
}

impl Exporter {
    pub(super) fn new(spans: Spans, limits: Limits, outlets: Vec<Outlet>, telemetry: Telemetry) -> Self {
        Self { spans, limits, outlets, telemetry }
    }

    /// How much waits in memory, for each endpoint.
    pub fn room(&self) -> Room {
        Room(self.outlets.iter().map(Outlet::waiting).collect())
    }

    /// Exports until the queue is dropped and everything in it is sent or safe on disk, or until the moment that
    /// `deadline` holds, from when on it is set. What is only in memory then is dropped and counted.
    pub async fn run(self, mut deadline: watch::Receiver<Option<Instant>>) {
        let Self { spans, limits, outlets, telemetry } = self;
        telemetry.set_exporting(true);
        let mut tasks = JoinSet::new();
        let start = |outlet: Outlet| {
            let (sender, requests) = mpsc::channel(HANDED_OVER);
            tasks.spawn(outlet.run(requests, deadline.clone()));
            sender
        };
        let outlets = outlets.into_iter().map(start).collect();
        let mut batcher = Batcher { spans, limits, outlets, batch: Batch::default(), handing_over: None };
        let passed = async {
            let end = deadline.wait_for(Option::is_some).await.ok().and_then(|end| *end);
            match end {
                Some(end) => sleep_until(end).await,
                // Whoever could set one is gone.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = batcher.batch_all() => {}
            () = passed => {}
        }
        let lost = batcher.give_up();
        telemetry.spans_dropped(DropCause::Shutdown).inc_by(lost);
        telemetry.queue_length.dec_by(i64::try_from(lost).unwrap_or(i64::MAX));
        // Each ends at the deadline at the latest, and writes to its disk what it still has.
        while tasks.join_next().await.is_some() {}
        telemetry.set_exporting(false);
    }
}

impl Batcher {
    async fn batch_all(&mut self) {
        while self.next_batch().await {
            let batch = mem::take(&mut self.batch);
            let spans = batch.len() as u64;
            self.handing_over = Some((Encoded { sequence: 0, spans, body: batch.encode() }, 0));
            self.hand_over().await;
        }
    }

    /// Waits for spans, and a little for others. False when the queue is dropped and empty.
    async fn next_batch(&mut self) -> bool {
        let Some(spans) = self.spans.wait().await else { return false };
        let end = Instant::now() + self.limits.delay;
        self.batch.add(spans);
        if self.batch.fill(&mut self.spans, &self.limits) {
            self.spans.gather(end).await;
            self.batch.fill(&mut self.spans, &self.limits);
        }
        true
    }

    async fn hand_over(&mut self) {
        while let Some((request, outlets)) = &mut self.handing_over
            && let Some(outlet) = self.outlets.get(*outlets)
        {
            // An outlet ends before its time only by a panic, which was logged; the others go on.
            let _ = outlet.send(request.clone()).await;
            *outlets += 1;
        }
        self.handing_over = None;
    }

    /// Spans that no outlet will get, once for each of these.
    fn give_up(mut self) -> u64 {
        let endpoints = self.outlets.len() as u64;
        self.spans.close();
        let mut left = self.batch.len() as u64 * endpoints;
        while let Next::Spans(spans) = self.spans.next_if(|_| true) {
            left += spans.count as u64 * endpoints;
        }
        if let Some((request, had)) = &self.handing_over {
            left += request.spans * endpoints.saturating_sub(*had as u64);
        }
        left
    }
}
