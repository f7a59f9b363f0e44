//! The stages, wired: start, serve, stop.

mod data_dir;
mod replay;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::serve::ListenerExt as _;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tonic::transport::server::TcpIncoming;
use tracing::{error, info, warn};

use self::data_dir::DataDir;
use self::replay::Replay;
use crate::api::{self, ApiState};
use crate::catalog::{Catalog, CatalogError, Hours, IndexLimits, SledCatalog, TagIndex, Watermark};
use crate::config::{Config, RetentionConfig};
use crate::live::{Limits, LiveSet};
use crate::receive::{self, GrpcReceiver, Ingest, IngestConfig, Stages};
use crate::telemetry::{Metrics, Readiness, chain};
use crate::tenant::Tenancy;
use crate::wal::{Log, RealDisk, Wal, WalConfig, WalError};

/// Time between looks at retention and checkpoint.
const HOUSEKEEPING: Duration = Duration::from_secs(10);

/// Requests of one connection at once: each may hold a whole request in memory before it counts as being in work.
const STREAMS: u32 = 32;

/// Time between looks whether a silent sender is still there.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// How long requests in work may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(3);

/// What part of the size limit the log may take if blocks cannot be written.
const LOG_PARTS: u64 = 4;

/// Segments are whole or gone; the log has at least so many before it is full.
const SEGMENTS: u64 = 8;

/// Largest segment.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Threads for what blocks. tokio's 512 would each keep memory of their own for the allocator.
const BLOCKING_THREADS: usize = 16;

/// The runtime that a server is to run on.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()
}

/// Why the backend does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} (--{flag})")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The flag that says so.
        flag: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The catalog fails even when it is begun anew.
    #[error("cannot open the catalog")]
    Catalog(#[source] CatalogError),
    /// The data directory cannot be made or written.
    #[error("cannot use the data directory {} (--data-dir)", path.display())]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another backend has it.
    #[error("the data directory {} (--data-dir) is in use by another coati-backend", path.display())]
    DataDirInUse {
        /// The directory.
        path: PathBuf,
    },
    /// The log cannot be opened.
    #[error("cannot open the log")]
    Log(#[source] WalError),
    /// A thread could not be started, or broke off.
    #[error("cannot start {what}")]
    Thread {
        /// What it was to do.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Addresses that are listened on.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Queries.
    pub api: SocketAddr,
    /// OTLP over gRPC.
    pub otlp_grpc: SocketAddr,
    /// OTLP over HTTP.
    pub otlp_http: SocketAddr,
}

/// A running backend.
pub struct Server {
    addresses: Addresses,
    readiness: Readiness,
    stop: watch::Sender<bool>,
    stopping: Arc<AtomicBool>,
    listeners: JoinSet<()>,
    housekeeping: JoinHandle<()>,
    wal: Arc<Wal>,
    tags: Arc<TagIndex>,
    indexed: Arc<Watermark>,
    _data_dir: DataDir,
}

impl Server {
    /// Starts everything; returns when the log is replayed and spans are taken. The API is served from before the replay
    /// on, `/ready` says when it is over.
    pub async fn start(config: &Config) -> Result<Self, ServerError> {
        let data_dir = DataDir::open(&config.data_dir)?;
        let api_listener = bind(config.listen.api, "api-listen").await?;
        let grpc_listener = bind(config.listen.otlp_grpc, "otlp-grpc-listen").await?;
        let http_listener = bind(config.listen.otlp_http, "otlp-http-listen").await?;
        let addresses = Addresses { api: api_listener.1, otlp_grpc: grpc_listener.1, otlp_http: http_listener.1 };
        let (stop, stopped) = watch::channel(false);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut listeners = JoinSet::new();

        let metrics = Arc::new(Metrics::new());
        let readiness = Readiness::default();
        let tenancy = Tenancy::new(config.multitenancy);
        let limits = Limits {
            total_bytes: config.live.max_bytes.as_usize(),
            trace_bytes: config.live.max_trace_bytes.min(config.live.max_bytes).as_usize(),
        };
        let live = Arc::new(LiveSet::with_metrics(limits, metrics.live.clone()));
        let tags = open_tags(data_dir.catalog(), &metrics).await?;
        let api = ApiState::new(
            Arc::clone(&live),
            Arc::clone(tags.store()),
            tenancy.clone(),
            readiness.clone(),
            Arc::clone(&metrics),
        );
        listeners.spawn(serve_http("api", api_listener.0, api::router(api), stopped.clone()));

        let mut log = {
            let (dir, metrics) = (data_dir.wal(), metrics.wal.clone());
            blocking("reading the log", move || Log::open(&dir, Arc::new(RealDisk), metrics)).await?
        }
        .map_err(ServerError::Log)?;
        let applied = Arc::new(Watermark::new(0));
        let indexed = Arc::new(Watermark::new(0));
        let known = tags.store().checkpoint().map_err(ServerError::Catalog)?.unwrap_or_default();
        // The catalog must not take new frames for old ones.
        log.number_from(known + 1);
        let replayed = {
            let (log, live, tags) = (log.clone(), Arc::clone(&live), Arc::clone(&tags));
            let (applied, stopping) = (Arc::clone(&applied), Arc::clone(&stopping));
            let replay = move || {
                let (live, tags, applied, stopping) = (&live, &tags, &applied, &stopping);
                Replay { live, tags, applied, stopping, indexed: known }.run(&log, 0)
            };
            blocking("the replay", replay).await?
        }?;
        if !replayed.index_failed {
            indexed.finish_below(log.next_sequence());
        }

        let wal = Arc::new(
            Wal::start(log, wal_config(&config.retention))
                .map_err(|source| ServerError::Thread { what: "the writer of the log", source })?,
        );
        let max_in_flight_bytes = config.receive.max_in_flight_bytes.as_usize();
        let max_request_bytes = config.receive.max_request_bytes.as_usize().min(max_in_flight_bytes);
        let stages =
            Stages { wal: Arc::clone(&wal), live, tags: Arc::clone(&tags), applied, indexed: Arc::clone(&indexed) };
        let limits = IngestConfig { max_request_bytes, max_in_flight_bytes };
        let ingest = Arc::new(Ingest::new(limits, stages, metrics.receive.clone(), now_ns));
        let durations = metrics.request_duration.clone();
        let grpc = GrpcReceiver::new(Arc::clone(&ingest), tenancy.clone(), durations.clone());
        listeners.spawn(serve_grpc(grpc_listener.0, grpc, stopped.clone()));
        let http = receive::router(ingest, tenancy, durations);
        listeners.spawn(serve_http("otlp-http", http_listener.0, http, stopped));

        let housekeeping = tokio::spawn(keep_house(Arc::clone(&tags), Arc::clone(&indexed), config.retention.age));
        readiness.set(true);
        for (listener, address) in
            [("api", addresses.api), ("otlp-grpc", addresses.otlp_grpc), ("otlp-http", addresses.otlp_http)]
        {
            info!(listener, %address, "listening");
        }
        Ok(Self {
            addresses,
            readiness,
            stop,
            stopping,
            listeners,
            housekeeping,
            wal,
            tags,
            indexed,
            _data_dir: data_dir,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Stops: takes nothing new, ends what is in work, closes the log, stores the checkpoint.
    pub async fn stop(mut self) {
        self.readiness.set(false);
        self.stopping.store(true, Ordering::Relaxed);
        self.stop.send_replace(true);
        let drained = timeout(DRAIN, async { while self.listeners.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            warn!(seconds = DRAIN.as_secs(), "connections still open are cut");
            self.listeners.abort_all();
        }
        self.housekeeping.abort();
        let Self { wal, tags, indexed, .. } = self;
        let closed = blocking("the end", move || {
            wal.close();
            store_checkpoint(tags.store().as_ref(), &indexed);
        });
        if let Err(error) = closed.await {
            error!(error = %chain(&error), "stopped badly");
        }
    }
}

async fn bind(address: SocketAddr, flag: &'static str) -> Result<(TcpListener, SocketAddr), ServerError> {
    let bound = TcpListener::bind(address).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) = bound.map_err(|source| ServerError::Bind { address, flag, source })?;
    Ok((listener, address))
}

/// Runs what blocks away from the threads that serve connections.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ServerError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ServerError::Thread { what, source: io::Error::other(error) })
}

async fn open_tags(dir: PathBuf, metrics: &Metrics) -> Result<Arc<TagIndex>, ServerError> {
    let metrics = metrics.catalog.clone();
    let opened = blocking("opening the catalog", move || {
        SledCatalog::open(&dir, &metrics, |store| {
            store.checkpoint()?;
            TagIndex::open(Arc::new(store), IndexLimits::default(), metrics.clone())
        })
    });
    Ok(Arc::new(opened.await?.map_err(ServerError::Catalog)?))
}

fn wal_config(retention: &RetentionConfig) -> WalConfig {
    let max_bytes = retention.max_bytes.0 / LOG_PARTS;
    WalConfig { segment_bytes: (max_bytes / SEGMENTS).min(SEGMENT_BYTES), max_bytes }
}

async fn serve_http(name: &'static str, listener: TcpListener, router: Router, mut stopped: watch::Receiver<bool>) {
    let stop = async move { _ = stopped.wait_for(|stop| *stop).await };
    // With Nagle's algorithm an answer of two small writes waits for the client's delayed acknowledgement: 40 ms.
    let listener = listener.tap_io(|connection| _ = connection.set_nodelay(true));
    if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(stop).await {
        error!(listener = name, error = %chain(&error), "listener broke off");
    }
}

async fn serve_grpc(listener: TcpListener, receiver: GrpcReceiver, mut stopped: watch::Receiver<bool>) {
    let stop = async move { _ = stopped.wait_for(|stop| *stop).await };
    let server = tonic::transport::Server::builder()
        .http2_adaptive_window(Some(true))
        .max_concurrent_streams(STREAMS)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(receiver)
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE)),
            stop,
        );
    if let Err(error) = server.await {
        error!(listener = "otlp-grpc", error = %chain(&error), "listener broke off");
    }
}

/// Retention of tags and checkpoint, every few seconds.
async fn keep_house(tags: Arc<TagIndex>, indexed: Arc<Watermark>, age: Duration) {
    let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
    let mut pruned_hour = 0;
    loop {
        tokio::time::sleep(HOUSEKEEPING).await;
        let oldest_hour = Hours::of_nanos(now_ns().saturating_sub(age_ns)).first;
        let prune = std::mem::replace(&mut pruned_hour, oldest_hour) != oldest_hour;
        let (tags, indexed) = (Arc::clone(&tags), Arc::clone(&indexed));
        let done = blocking("housekeeping", move || {
            store_checkpoint(tags.store().as_ref(), &indexed);
            if prune && let Err(error) = tags.prune(oldest_hour) {
                warn!(error = %chain(&error), "old tags not removed");
            }
        });
        if let Err(error) = done.await {
            error!(error = %chain(&error), "housekeeping broke off");
        }
    }
}

fn store_checkpoint(catalog: &dyn Catalog, indexed: &Watermark) {
    // Nothing is complete while the catalog is being built.
    let Some(indexed) = indexed.below().checked_sub(1) else { return };
    if let Err(error) = catalog.set_checkpoint(indexed) {
        warn!(error = %chain(&error), "checkpoint not stored: the next start indexes more");
    }
}

/// Nanoseconds since the epoch.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
