//! The stages, wired: start, serve, stop.

mod data_dir;
mod error;
mod generator;
mod housekeeping;
mod listen;
mod recall;
mod reload;
mod replay;
mod storage;
#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::thread::disable_transparent_huge_pages;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{error, info, warn};

use self::data_dir::DataDir;
pub use self::error::ServerError;
use self::generator::Metering;
use self::housekeeping::{House, store_checkpoint};
use self::listen::{bind, serve_grpc, serve_http};
use self::recall::recall;
use self::replay::Replay;
use crate::access::{self, Door};
use crate::api::{self, ApiState};
use crate::catalog::{Catalog, CatalogError, IndexLimits, SledCatalog, TagIndex, Watermark};
use crate::compact::{Compactor, Running};
use crate::config::{Config, CutConfig, ListenerName, RetentionConfig};
use crate::cut::{CutPolicy, Cutter, CutterConfig, Registry, Stopped};
use crate::generator::{Latest, router as generator_router};
use crate::live::{Limits, LiveSet};
use crate::overrides::Overrides;
use crate::promql;
use crate::receive::{self, GrpcReceiver, Ingest, IngestConfig, Stages};
use crate::telemetry::{Metrics, Readiness, chain};
use crate::tenant::Tenancy;
use crate::wal::{Log, RealDisk, Wal, WalConfig};

/// How long requests in work may take to end when the server stops.
const DRAIN: Duration = Duration::from_secs(2);

/// How long the whole stop may take. What is still at work then loses nothing: it is in the log, or begun anew.
const STOP: Duration = Duration::from_millis(4_400);

/// How long the last cut may take when the server stops; what is not in blocks then stays in the log.
const LAST_CUT: Duration = Duration::from_secs(2);

/// What part of the size limit the log may take if blocks cannot be written.
const LOG_PARTS: u64 = 4;

/// Segments are whole or gone; the log has at least so many before it is full.
const SEGMENTS: u64 = 8;

/// Largest segment.
const SEGMENT_BYTES: u64 = 64 << 20;

/// Threads for what blocks: half of them are never taken by queries. tokio's 512 would each keep memory of their own for the
/// allocator.
const BLOCKING_THREADS: usize = 2 * api::MAX_QUERIES;

/// Makes this process take memory in pages of 4 KiB. The allocator asks for huge ones where it can: what comes and goes with
/// requests would be two megabytes to clear each time, and an idle backend would use little of each.
pub fn take_small_pages() {
    if let Err(error) = disable_transparent_huge_pages(true) {
        warn!(%error, "transparent huge pages stay on: more memory is used");
    }
}

/// The runtime that a server is to run on.
pub fn runtime() -> io::Result<Runtime> {
    Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()
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
    ingest: Arc<Ingest>,
    readiness: Readiness,
    stop: watch::Sender<bool>,
    stopping: Arc<AtomicBool>,
    listeners: JoinSet<()>,
    housekeeping: JoinHandle<()>,
    /// Reads certificates and secrets again.
    fresh: JoinHandle<()>,
    /// Look for what is different for some tenants.
    reload: Vec<JoinHandle<()>>,
    cutter: Cutter,
    compactor: Running,
    house: House,
    metering: Option<Metering>,
    _data_dir: Arc<DataDir>,
}

impl Server {
    /// Starts everything; returns when the log is replayed and spans are taken. The API is served from the beginning on,
    /// `/ready` says what is missing. While the store cannot be reached this waits.
    pub async fn start(config: &Config) -> Result<Self, ServerError> {
        let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
        let api_listener = bind(config.listen.api, "api-listen").await?;
        let grpc_listener = bind(config.listen.otlp_grpc, "otlp-grpc-listen").await?;
        let http_listener = bind(config.listen.otlp_http, "otlp-http-listen").await?;
        let addresses = Addresses { api: api_listener.1, otlp_grpc: grpc_listener.1, otlp_http: http_listener.1 };
        let (stop, stopped) = watch::channel(false);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut listeners = JoinSet::new();

        let metrics = Arc::new(Metrics::new());
        let door = |listener| -> Result<Arc<Door>, ServerError> {
            let variable = |name: &str| std::env::var(name).ok();
            let door = Door::new(listener, config, &variable, metrics.access.clone());
            Ok(Arc::new(door.map_err(ServerError::Access)?))
        };
        let api_door = door(ListenerName::Api)?;
        let grpc_door = door(ListenerName::OtlpGrpc)?;
        let http_door = door(ListenerName::OtlpHttp)?;
        let readiness = Readiness::default();
        let tenancy = Tenancy::new(config.multitenancy);
        let limits = Limits {
            total_bytes: config.live.max_bytes.as_usize(),
            trace_bytes: config.live.max_trace_bytes.min(config.live.max_bytes).as_usize(),
        };
        let live = Arc::new(LiveSet::with_metrics(limits, metrics.live.clone()));
        let (catalog, tags) = open_catalog(data_dir.catalog(), &metrics).await?;
        let listed = Arc::new(OnceLock::new());
        let api = ApiState::new(
            Arc::clone(&live),
            Arc::clone(tags.store()),
            tenancy.clone(),
            readiness.clone(),
            Arc::clone(&metrics),
        )
        .with_config(config)
        .with_blocks(Arc::clone(&listed));
        let generator = generator::open(config, &data_dir.generator(), &metrics.generator)?;
        let overrides = generator
            .as_ref()
            .map(|generator| Arc::new(Overrides::new(config, Arc::clone(generator), metrics.generator.clone())));
        let api = api.with_overrides(overrides.clone());
        let latest = Latest::default();
        let (history, history_folder) = {
            let (config, folder) = (config.clone(), data_dir.generator());
            blocking("reading samples", move || generator::history(&config, &folder)).await?
        };
        let router = api::router(api)
            .merge(generator_router(latest.clone(), tenancy.clone()))
            .merge(promql::router(Arc::clone(&history), tenancy.clone()));
        listeners.spawn(serve_http(&api_door, api_listener, router, stopped.clone()));

        let blocks = storage::open_blocks(&config.storage, &data_dir, &catalog, &metrics, &readiness).await?;
        // Nobody else sets it.
        let _first = listed.set(Arc::clone(&blocks));
        if let Some(overrides) = overrides.as_ref().filter(|overrides| overrides.has_api()) {
            overrides.open(Arc::clone(blocks.store()));
            storage::read_overrides(overrides, &readiness).await?;
        }
        if let Some(generator) = &generator {
            let (generator, folder) = (Arc::clone(generator), data_dir.generator());
            blocking("reading what was counted", move || generator::restore(&generator, &folder)).await?;
        }
        readiness.set_missing("the log is being replayed");
        let mut log = {
            let (dir, metrics) = (data_dir.wal(), metrics.wal.clone());
            blocking("reading the log", move || Log::open(&dir, Arc::new(RealDisk), metrics)).await?
        }
        .map_err(ServerError::Log)?;
        let from = blocks.checkpoint();
        let known = checkpoint(&catalog).map_err(ServerError::Catalog)?;
        // Nor the blocks nor the catalog must take new requests for old ones, if the log was lost.
        let counted = generator.as_ref().map_or(0, |generator| generator.counted_to());
        log.number_from(from.max(known.map_or(1, |known| known + 1)).max(counted));
        let applied = Arc::new(Watermark::new(from));
        let indexed = Arc::new(Watermark::new(0));
        let cutter = Cutter::start(CutterConfig {
            policy: cut_policy(&config.cut, limits.total_bytes),
            live: Arc::clone(&live),
            applied: Arc::clone(&applied),
            sink: Arc::new(Registry::new(Arc::clone(&blocks), now_ns)),
            metrics: metrics.live.clone(),
            clock: now_ns,
        })
        .map_err(|source| ServerError::Thread { what: "the cutter", source })?;
        let replayed = {
            let (log, live, tags) = (log.clone(), Arc::clone(&live), Arc::clone(&tags));
            let (applied, stopping) = (Arc::clone(&applied), Arc::clone(&stopping));
            let blocks = Arc::clone(&blocks);
            let replay = move || {
                recall(&live, &blocks, &log, from)?;
                let (live, tags, applied, stopping) = (&live, &tags, &applied, &stopping);
                Replay { live, tags, applied, stopping, indexed: known.unwrap_or_default() }.run(&log, from)
            };
            blocking("the replay", replay).await?
        }?;

        let next_sequence = log.next_sequence();
        let metering = match &generator {
            Some(generator) => {
                let (log, counting) = (log.clone(), Arc::clone(generator));
                blocking("counting", move || generator::catch_up(&log, &counting)).await??;
                Some(Metering::start(
                    config,
                    generator,
                    &live,
                    (latest, (history, history_folder)),
                    &data_dir.generator(),
                    &metrics.generator,
                )?)
            }
            None => None,
        };
        let wal = Wal::start(log, wal_config(&config.retention))
            .map_err(|source| ServerError::Thread { what: "the writer of the log", source })?;
        let house = House {
            wal: Arc::new(wal),
            live,
            blocks,
            tags,
            applied,
            indexed,
            counted: metering.as_ref().map(Metering::saved),
            age: config.retention.age,
            stopping: Arc::clone(&stopping),
            rebuilt: Arc::default(),
        };
        // What the catalog does not know and the log does not have any more is in blocks.
        let catalog_is_whole = known.map_or(house.blocks.snapshot().is_empty(), |known| known + 1 >= from);
        if catalog_is_whole && !replayed.index_failed {
            house.indexed.finish_below(next_sequence);
        } else {
            let house = house.clone();
            tokio::task::spawn_blocking(move || house.rebuild_catalog());
        }

        let mut reload = Vec::new();
        if let Some((file, overrides)) = config.file.clone().zip(overrides.clone()) {
            reload.push(tokio::spawn(reload::watch(file, overrides, metrics.generator.clone())));
        }
        if let Some(overrides) = overrides.filter(|overrides| overrides.has_api()) {
            let interval = config.overrides.user_configurable_overrides.poll_interval;
            reload.push(tokio::spawn(reload::poll(overrides, interval, metrics.generator.clone())));
        }
        let ingest = Arc::new(ingest(config, &house, &metrics).with_generator(generator));
        let durations = metrics.request_duration.clone();
        let grpc = GrpcReceiver::new(Arc::clone(&ingest), tenancy.clone(), durations.clone());
        listeners.spawn(serve_grpc(&grpc_door, grpc_listener, grpc, stopped.clone()));
        let http = receive::router(Arc::clone(&ingest), tenancy, durations);
        listeners.spawn(serve_http(&http_door, http_listener, http, stopped));

        let compactor = Compactor::new(&config.compaction, &config.retention, metrics.compaction.clone(), now_ns);
        let block_bytes = {
            let budget = storage::BlockBudget::new(config.retention.max_bytes.0);
            let (wal, data_dir) = (metrics.wal.clone(), Arc::clone(&data_dir));
            move || {
                let others = [data_dir.catalog(), data_dir.generator()].map(|folder| storage::directory_bytes(&folder));
                budget.of(wal.bytes.get().unsigned_abs() + others.iter().sum::<u64>())
            }
        };
        let compactor = Running::start(compactor, Arc::clone(&house.blocks), block_bytes)
            .map_err(|source| ServerError::Thread { what: "compaction", source })?;
        let housekeeping = tokio::spawn(house.clone().keep());
        readiness.set_ready();
        api_door.announce(addresses.api);
        grpc_door.announce(addresses.otlp_grpc);
        http_door.announce(addresses.otlp_http);
        let fresh = tokio::spawn(access::keep_fresh(vec![api_door, grpc_door, http_door]));
        Ok(Self {
            addresses,
            ingest,
            readiness,
            stop,
            stopping,
            listeners,
            housekeeping,
            fresh,
            reload,
            cutter,
            compactor,
            house,
            metering,
            _data_dir: data_dir,
        })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// What gRPC and HTTP hand requests to, for who has them in memory.
    pub fn ingest(&self) -> &Arc<Ingest> {
        &self.ingest
    }

    /// Stops: takes nothing new, ends what is in work, writes what is in memory to blocks if that does not take long,
    /// closes the log, stores the checkpoint.
    pub async fn stop(mut self) {
        let end = Instant::now() + STOP;
        self.readiness.set_missing("the backend stops");
        self.stopping.store(true, Ordering::Relaxed);
        self.stop.send_replace(true);
        self.housekeeping.abort();
        self.fresh.abort();
        self.reload.iter().for_each(JoinHandle::abort);
        let compactor = self.compactor;
        let compaction = on_own_thread("the end of compaction", move || compactor.stop());
        let drained = timeout(DRAIN, async { while self.listeners.join_next().await.is_some() {} }).await;
        if drained.is_err() {
            warn!(seconds = DRAIN.as_secs(), "connections still open are cut");
            self.listeners.abort_all();
        }
        let Self { house, cutter, metering, .. } = self;
        let closed = on_own_thread("the end", move || {
            if let Some(metering) = metering {
                metering.stop();
            }
            if cutter.stop(LAST_CUT) == Stopped::RestInLog {
                info!("what is in no block is read back from the log at the next start");
            }
            house.release_log();
            house.wal.close();
            store_checkpoint(house.tags.store().as_ref(), &house.indexed);
        });
        match timeout_at(end, closed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => error!(error = %chain(&error), "stopped badly"),
            Err(_) => warn!("the log is not closed in time; the next start reads it back"),
        }
        if timeout_at(end.min(Instant::now() + Duration::from_millis(500)), compaction).await.is_err() {
            warn!("compaction is given up in the middle; the next start removes what it has begun");
        }
    }
}

/// Runs what blocks away from the threads that serve connections.
async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ServerError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ServerError::Thread { what, source: io::Error::other(error) })
}

/// The same on a new thread, which begins at once: queries may have taken all of those of [`blocking`].
fn on_own_thread<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = Result<T, ServerError>> {
    let (done, answer) = oneshot::channel();
    let work = move || _ = done.send(work());
    let begun = thread::Builder::new().name("stop".to_owned()).spawn(work);
    async move {
        begun.map_err(|source| ServerError::Thread { what, source })?;
        answer.await.map_err(|error| ServerError::Thread { what, source: io::Error::other(error) })
    }
}

/// Opens the catalog, and the index of its tags.
async fn open_catalog(dir: PathBuf, metrics: &Metrics) -> Result<(Arc<SledCatalog>, Arc<TagIndex>), ServerError> {
    let metrics = metrics.catalog.clone();
    let opened = blocking("opening the catalog", move || {
        SledCatalog::open(&dir, &metrics, |store| {
            checkpoint(&store)?;
            let store = Arc::new(store);
            let catalog: Arc<dyn Catalog> = Arc::clone(&store) as _;
            Ok((store, Arc::new(TagIndex::open(catalog, IndexLimits::default(), metrics.clone())?)))
        })
    });
    opened.await?.map_err(ServerError::Catalog)
}

/// Up to where the log is in the catalog; nothing while that is closed, it is built when it opens.
fn checkpoint(catalog: &SledCatalog) -> Result<Option<u64>, CatalogError> {
    match catalog.checkpoint() {
        Err(CatalogError::Closed) => Ok(None),
        checkpoint => checkpoint,
    }
}

fn ingest(config: &Config, house: &House, metrics: &Metrics) -> Ingest {
    let max_in_flight_bytes = config.receive.max_in_flight_bytes.as_usize();
    let max_request_bytes = config.receive.max_request_bytes.as_usize().min(max_in_flight_bytes);
    let House { wal, live, tags, applied, indexed, .. } = house.clone();
    let limits = IngestConfig { max_request_bytes, max_in_flight_bytes, ..IngestConfig::default() };
    Ingest::new(limits, Stages { wal, live, tags, applied, indexed }, metrics.receive.clone(), now_ns)
}

fn cut_policy(config: &CutConfig, memory_bytes: usize) -> CutPolicy {
    let CutConfig { idle, max_age, block_bytes, max_wait } = *config;
    CutPolicy { idle, max_age, block_bytes: block_bytes.as_usize(), max_wait, memory_bytes }
}

fn wal_config(retention: &RetentionConfig) -> WalConfig {
    let max_bytes = retention.max_bytes.0 / LOG_PARTS;
    WalConfig { segment_bytes: (max_bytes / SEGMENTS).min(SEGMENT_BYTES), max_bytes }
}

/// Nanoseconds since the epoch.
fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
