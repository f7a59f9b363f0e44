//! The program without sockets: requests that lie in memory are handed to what gRPC and HTTP hand theirs to.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use coati_backend::config::Config;
use coati_backend::receive::{ExportError, Format, Ingest};
use coati_backend::server::{self, Server};
use tokio::task::JoinSet;

use crate::measure::{cpu_of_threads, cpu_time, folder, metric};

/// Wait after a refusal that passes.
const RETRY: Duration = Duration::from_millis(200);

/// What the whole way took.
pub(crate) struct Direct {
    pub(crate) cpu: Duration,
    pub(crate) cpu_to_acknowledgement: Duration,
    pub(crate) wall: Duration,
    /// Of `cpu`, by names of threads.
    pub(crate) threads: BTreeMap<String, Duration>,
}

/// That of a backend with this data directory, on ports that are free. The corpus is of a fixed day: nothing is too old.
pub(crate) fn config(data_dir: &Path) -> Config {
    let mut config = Config { data_dir: data_dir.to_owned(), ..Config::default() };
    let any_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    config.retention.age = Duration::from_hours(24 * 36_500);
    (config.listen.api, config.listen.otlp_grpc, config.listen.otlp_http) = (any_port, any_port, any_port);
    config
}

/// Hands requests over, `senders` at once, and waits until all traces are in blocks; with metrics of spans or without.
pub(crate) fn run(requests: &Arc<[Bytes]>, senders: u64, with_metrics: bool) -> Result<Direct> {
    let dir = folder()?;
    let mut config = config(dir.path());
    if !with_metrics {
        config.metrics_generator.processors.clear();
    }
    let runtime = server::runtime()?;
    let server = runtime.block_on(Server::start(&config))?;
    let (before, threads_before, started) = (cpu_time(), cpu_of_threads()?, Instant::now());
    runtime.block_on(hand_over_all(server.ingest(), requests, senders))?;
    let (cpu_to_acknowledgement, wall) = (cpu_time().saturating_sub(before), started.elapsed());
    wait_for_blocks(server.addresses().api)?;
    let cpu = cpu_time().saturating_sub(before);
    let mut threads = cpu_of_threads()?;
    for (name, time) in &mut threads {
        *time = time.saturating_sub(threads_before.get(name).copied().unwrap_or_default());
    }
    runtime.block_on(server.stop());
    Ok(Direct { cpu, cpu_to_acknowledgement, wall, threads })
}

/// Returns when no trace is in memory any more.
pub(crate) fn wait_for_blocks(api: SocketAddr) -> Result<()> {
    let started = Instant::now();
    while metric(api, "tempo_live_store_live_traces")? > 0 {
        ensure!(started.elapsed() < Duration::from_mins(2), "traces stay in memory");
        thread::sleep(Duration::from_millis(500));
    }
    Ok(())
}

async fn hand_over_all(ingest: &Arc<Ingest>, requests: &Arc<[Bytes]>, senders: u64) -> Result<()> {
    let tenant: Arc<str> = "single-tenant".into();
    let next = Arc::new(AtomicUsize::new(0));
    let mut sending = JoinSet::new();
    for _ in 0..senders {
        let (ingest, requests) = (Arc::clone(ingest), Arc::clone(requests));
        let (tenant, next) = (Arc::clone(&tenant), Arc::clone(&next));
        sending.spawn(async move {
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                hand_over(&ingest, &tenant, request).await?;
            }
            anyhow::Ok(())
        });
    }
    sending.join_all().await.into_iter().collect()
}

/// Until it is stored: refusals that pass are part of the way.
async fn hand_over(ingest: &Arc<Ingest>, tenant: &Arc<str>, request: &Bytes) -> Result<()> {
    loop {
        match ingest.export(Arc::clone(tenant), request.clone(), Format::Protobuf).await {
            Ok(answer) => {
                let rejected = answer.partial_success.map_or(0, |partial| partial.rejected_spans);
                ensure!(rejected == 0, "{rejected} spans were rejected");
                return Ok(());
            }
            Err(ExportError::MemoryFull { .. } | ExportError::Overloaded { .. }) => tokio::time::sleep(RETRY).await,
            Err(error) => return Err(error.into()),
        }
    }
}
