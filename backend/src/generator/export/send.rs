//! Sends what waits to a server: one request after the other, until it is taken or refused.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::queue::{Queue, Queued};
use super::{ExportError, TenantHeaders, otlp, remote_write};
use crate::config::{OtlpConfig, RemoteWriteConfig};

/// Wait after the first failure; each is twice the one before, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Longest wait that a server may ask for.
const LONGEST_ASKED: Duration = Duration::from_mins(5);

/// Sends what waits for one server.
#[derive(Debug)]
pub struct Sender {
    queue: Arc<Queue>,
    server: Server,
}

#[derive(Debug)]
enum Server {
    RemoteWrite(remote_write::Server),
    Otlp(otlp::Server),
}

/// What became of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    Taken,
    /// So many samples are lost.
    Refused {
        why: String,
        samples: u32,
    },
    Later {
        why: String,
        after: Option<Duration>,
    },
    /// To be sent in another way, at once.
    Again {
        why: String,
    },
}

/// Fails if the settings, or files that they name, cannot be used.
pub(in crate::generator) fn check_remote_write(config: &RemoteWriteConfig) -> Result<(), ExportError> {
    remote_write::Encoding::new(config)?;
    remote_write::Server::new(config, false, TenantHeaders::default()).map(drop)
}

/// The same of a server that takes OTLP.
pub(in crate::generator) fn check_otlp(config: &OtlpConfig) -> Result<(), ExportError> {
    otlp::Server::new(config, false).map(drop)
}

impl Sender {
    /// Fails if the settings cannot be used. `tells_tenant`: whether the server is told the tenant. `headers`: what it is told
    /// beside that.
    pub fn remote_write(
        queue: Arc<Queue>,
        config: &RemoteWriteConfig,
        tells_tenant: bool,
        headers: TenantHeaders,
    ) -> Result<Self, ExportError> {
        Ok(Self { queue, server: Server::RemoteWrite(remote_write::Server::new(config, tells_tenant, headers)?) })
    }

    /// The same of a server that takes OTLP.
    pub fn otlp(queue: Arc<Queue>, config: &OtlpConfig, tells_tenant: bool) -> Result<Self, ExportError> {
        Ok(Self { queue, server: Server::Otlp(otlp::Server::new(config, tells_tenant)?) })
    }

    /// Sends for ever.
    pub async fn run(mut self) {
        let mut wait = FIRST_WAIT;
        let mut failing = false;
        loop {
            let queue = Arc::clone(&self.queue);
            let oldest = tokio::task::spawn_blocking(move || queue.oldest()).await;
            let (number, queued) = match oldest {
                Ok(Ok(Some(oldest))) => oldest,
                Ok(Err(error)) => {
                    let url = self.queue.url();
                    warn!(url, error = %crate::telemetry::chain(&error), "samples in the queue cannot be read now");
                    tokio::time::sleep(LONGEST_WAIT).await;
                    continue;
                }
                Ok(Ok(None)) | Err(_) => {
                    self.queue.more.notified().await;
                    continue;
                }
            };
            let outcome = match &mut self.server {
                Server::RemoteWrite(server) => server.send(&queued).await,
                Server::Otlp(server) => server.send(&queued).await,
            };
            let url = self.queue.url();
            match outcome {
                Outcome::Taken => {
                    self.taken(&queued, queued.samples);
                    if std::mem::take(&mut failing) {
                        info!(url, "samples are taken again");
                    }
                }
                Outcome::Refused { why, samples } => {
                    warn!(url, samples, why, "samples were refused and are lost");
                    self.queue.lost("refused", samples);
                    if samples < queued.samples {
                        self.taken(&queued, queued.samples - samples);
                    }
                }
                Outcome::Later { why, after } => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(url, why, "samples cannot be sent, they wait on disk");
                    }
                    self.queue.metrics.retries.get_or_create(&self.queue.endpoint).inc();
                    tokio::time::sleep(after.map_or(wait, |after| after.min(LONGEST_ASKED))).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    continue;
                }
                Outcome::Again { why } => {
                    info!(url, why, "sent in another way");
                    continue;
                }
            }
            wait = FIRST_WAIT;
            let queue = Arc::clone(&self.queue);
            // It fails only when the runtime ends.
            let _ended = tokio::task::spawn_blocking(move || queue.done(number)).await;
        }
    }

    fn taken(&self, queued: &Queued, samples: u32) {
        let Queue { metrics, endpoint, .. } = &*self.queue;
        metrics.sent_samples.get_or_create(endpoint).inc_by(samples.into());
        metrics.newest_sent.get_or_create(endpoint).set((queued.time_ms / 1_000) as i64);
    }
}
