//! The stages, wired.
//!
//! ```text
//! thread `capture`:  Source → Stages: decode → stitch → (discover) → span → (gpu) → print, queue
//! thread `gpu`:      NVML → samples
//! tokio (main):      queue → export · Kubernetes → names · /metrics · the agent's own metrics · signals
//! ```
//!
//! The capture thread is started first: it alone may do what loading and attaching programs takes
//! ([`crate::privileges`]).
//!
//! The end is ordered: the capture thread takes what the kernel still has, ends what is open and drops the queue; the
//! exporter sends what is in it, until four seconds after the signal.

mod exchanges;
mod reload;
mod self_traced;
mod stages;

use std::{
    io::{self, BufWriter, Write},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::thread::CapabilitySet;
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    time::{Instant, interval, timeout_at},
};

use crate::{
    capture::{Capture, CaptureError, Source},
    config::{Config, ConfigError, Reload, Switch},
    decode::{DecodeConfig, Decoder},
    discover::{Host, ProcTree, Processes},
    ebpf::{LoadError, Options, Programs, give_memory_back, give_way},
    export::{EndpointSettings, ExportError, SpanQueue, exporter},
    gpu::{Gpu, GpuError, GpuMetrics, GpuReader, GpuSpans},
    kubernetes::{Kubernetes, KubernetesError, KubernetesMetrics},
    libraries::{Libraries, Wanted},
    metrics::{MetricsExport, PROCESS_INTERVAL, RequestMetrics, Source as MetricsSource},
    print::Printer,
    privileges::{self, LOOKING, Later},
    receive::{Gpus, ReceiveError, Receiver as OtlpReceiver, Senders},
    span::{Clock, SpanBuilder},
    stitch::{RandomIds, Stitcher},
    telemetry::{Server, Telemetry, TelemetryError},
};
pub use exchanges::Out;
use reload::Reloader;
pub use stages::Stages;

/// How long the agent takes to end at most; who manages it kills it a little later.
const END_WITHIN: Duration = Duration::from_millis(4300);
/// What of it is left for all that comes after the last span.
const AFTER_EXPORT: Duration = Duration::from_millis(500);

/// How long the capture waits for the names of the node's pods, so that not the first spans of every process have another
/// one; it begins without them then.
const NAMES_WITHIN: Duration = Duration::from_secs(2);

/// How long the capture thread waits for the first record.
const WAIT: Duration = Duration::from_millis(20);
/// How long it lets records gather when there are some: it costs less to take many at once. No longer than it waits, so that a
/// process of short life is as likely to be looked at in time, however much the others do.
const GATHER: Duration = WAIT;
/// Records that are to be taken at once, where more would come in that time: what they take of a processor, a service that needs it
/// may have to wait for.
const BURST: u32 = 256;
/// How long they gather in any case.
const GATHER_LEAST: Duration = Duration::from_millis(2);

/// How often it is looked whether the configuration's file has changed.
const LOOK_AT_FILE: Duration = Duration::from_secs(2);

/// Programs of ours on this node: their traffic is not the node's.
const OWN_PROGRAMS: [&str; 2] = ["coati-agent", "coati-backend"];

/// Why the agent does not run, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The kernel programs do not run.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Records cannot be had any more.
    #[error("the capture has ended")]
    Capture(#[from] CaptureError),
    /// Spans cannot be sent as it is configured.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// OTLP cannot be received.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The agent would receive what it sends.
    #[error(
        "the endpoint `{endpoint}` is where this agent receives OTLP: give `export.endpoint` the backend's address"
    )]
    Loop {
        /// The endpoint of the configuration.
        endpoint: String,
    },
    /// The agent cannot tell how it is.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// GPUs cannot be looked at.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// Kubernetes cannot be asked, but is to be.
    #[error(transparent)]
    Kubernetes(#[from] KubernetesError),
    /// No thread, or no runtime.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// The capture thread ended without a reason.
    #[error("the capture thread has panicked")]
    Panicked,
}

/// Runs the agent until it is told to end by SIGTERM or SIGINT. On SIGHUP, and when its file has changed, the
/// configuration is read again by `reread`.
pub fn run(config: &Config, reread: &dyn Fn() -> Result<Config, ConfigError>) -> Result<(), PipelineError> {
    // Before any other thread is there: they do as this one does.
    if let Err(error) = give_way() {
        tracing::debug!(%error, "the agent's threads take processors as others do");
    }
    let waiting = Waiting::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PipelineError::Start)?;
    let result = runtime.block_on(run_until_signal(config, reread, waiting));
    runtime.shutdown_timeout(Duration::ZERO);
    result
}

async fn run_until_signal(
    config: &Config,
    reread: &dyn Fn() -> Result<Config, ConfigError>,
    waiting: Waiting,
) -> Result<(), PipelineError> {
    let telemetry = Telemetry::default();
    let mut terminate = signal(SignalKind::terminate()).map_err(PipelineError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(PipelineError::Start)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(PipelineError::Start)?;
    reload::tell(config);
    let (mut reloader, reloads) = Reloader::new(config, reread, telemetry.requests.clone());
    let mut server = Server::bind(config.listen, telemetry.clone()).await?;
    // What is left to do takes no more, and no thread but the waiting one was started before.
    keep_only(LOOKING);
    let settings = config.export_settings();
    let (queue, exporter) = exporter(&settings, &telemetry, fastrand::f64)?;
    let receiving = config.receive_settings();
    let receiver = match &receiving {
        Some(settings) => Some(OtlpReceiver::bind(settings).await?),
        None => None,
    };
    let received_at = receiver.as_ref().map(OtlpReceiver::addresses).unwrap_or_default();
    if let Some(endpoint) = settings.endpoints.iter().find(|endpoint| endpoint.is_one_of(&received_at)) {
        return Err(PipelineError::Loop { endpoint: endpoint.endpoint.clone() });
    }
    let tree = ProcTree::new("/proc");
    let host = Host::of(&tree);
    let gpu_config = config.gpu_config();
    let gpu = gpu_config.enabled.then(|| Gpu::start(&gpu_config, tree.clone())).transpose()?;
    let kubernetes_config = config.kubernetes_config();
    let kubernetes = Kubernetes::start(&kubernetes_config).await?;
    if let Some(kubernetes) = &kubernetes {
        server.add(KubernetesMetrics(kubernetes.clone()));
        kubernetes.listed(NAMES_WITHIN).await;
    }
    telemetry.requests.configure(config.metrics_settings());
    telemetry.requests.set_host(&host);
    let (of_requests, of_agent) = (telemetry.requests.clone(), telemetry.clone());
    let mut sources: Vec<MetricsSource> =
        vec![Box::new(move || of_requests.points()), Box::new(move || of_agent.points())];
    if let Some(gpu) = &gpu {
        let metrics = GpuMetrics::new(gpu, host.name()).in_pods(kubernetes.clone());
        let (of_gpus, node) = (metrics.clone(), telemetry.requests.node());
        sources.push(Box::new(move || of_gpus.points(&node)));
        server.add(metrics);
        if let Some(kubernetes) = &kubernetes {
            kubernetes.follow_gpus(kubernetes_config.pod_resources, gpu.is_there());
        }
    }
    let metrics = config.otlp_metrics().map(|settings| MetricsExport::new(settings, sources)).transpose()?;
    // Whether it is to look is asked each time: it may become another thing while the agent runs.
    tokio::spawn(look_at_processes(telemetry.requests.clone(), tree.clone()));
    let (end_of_metrics, metrics_end) = oneshot::channel();
    let metrics = metrics.map(|metrics| tokio::spawn(metrics.run(metrics_end)));

    if let (Some(receiver), Some(receiving)) = (receiver, receiving) {
        let senders = if receiving.enrich {
            Senders::new(tree.clone(), config.selection(), kubernetes.clone())
        } else {
            Senders::none()
        };
        let gpus = gpu.as_ref().filter(|_| receiving.enrich).map(|gpu| Gpus::new(GpuReader::of(gpu), reading));
        receiver.start(queue.relay(exporter.room()), senders, gpus, telemetry.clone());
        for address in received_at {
            tracing::info!(%address, "OTLP is received here");
        }
    }
    let listen = server.address();
    let (deadline, end) = watch::channel(None);
    tokio::spawn(server.run(std::future::pending()));
    let exporting = tokio::spawn(exporter.run(end));

    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let capture =
        CaptureThread { config: config.clone(), tree, queue, telemetry, gpu, kubernetes, reloads, stop: stopped };
    let mut capture_ended = waiting.begin(capture);
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        %listen,
        "coati-agent starts"
    );
    for endpoint in &settings.endpoints {
        let EndpointSettings { name, endpoint, protocol, .. } = endpoint;
        let queue = settings.queue.as_ref().map_or(Path::new("memory"), |queue| &queue.directory);
        tracing::info!(name, endpoint, ?protocol, queue = %queue.display(), "spans are sent here");
    }

    let mut look = interval(LOOK_AT_FILE);
    let early = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            result = &mut capture_ended => break Some(result),
            _ = hangup.recv() => reloader.reload(),
            _ = look.tick(), if reloader.file().is_some() => reloader.look(),
        }
    };
    let end = Instant::now() + END_WITHIN;
    if deadline.send(Some(end - AFTER_EXPORT)).is_err() {
        tracing::error!("the exporter has ended before its time");
    }
    stop.store(true, Ordering::Release);
    tracing::info!("coati-agent ends");
    let captured = match early {
        Some(result) => result,
        // It ends within a few milliseconds, unless a pile of records is left.
        None => match timeout_at(end - AFTER_EXPORT, capture_ended).await {
            Ok(result) => result,
            Err(_) => Ok(Ok(())),
        },
    };
    // Not started, so nothing was captured, so nothing is worth waiting for.
    if !matches!(captured, Ok(Err(PipelineError::Load(_)))) {
        // Its end is its own deadline, unless a disk hangs; a panic in it has been logged.
        let _ = timeout_at(end, exporting).await;
    }
    if let Some(metrics) = metrics {
        // It waits for this, unless it has panicked.
        let _ = end_of_metrics.send(());
        if timeout_at(end, metrics).await.is_err() {
            tracing::warn!("the last metrics were not taken");
        }
    }
    captured.unwrap_or(Err(PipelineError::Panicked))
}

/// Keeps what is known of what processes use up to date.
async fn look_at_processes(requests: RequestMetrics, tree: ProcTree) {
    let mut ticks = interval(PROCESS_INTERVAL);
    loop {
        ticks.tick().await;
        let (requests, tree) = (requests.clone(), tree.clone());
        // Files of `/proc` can take their time.
        let look = tokio::task::spawn_blocking(move || requests.look_at_processes(&tree, monotonic_ns()));
        if look.await.is_err() {
            return;
        }
    }
}

/// Gives away what is not needed. That it cannot is worth a line, and no reason not to run.
fn keep_only(keep: CapabilitySet) {
    if let Err(error) = privileges::keep_only(keep) {
        let cause = std::error::Error::source(&error).map(ToString::to_string);
        tracing::warn!(%error, cause, "capabilities that are not needed are kept");
    }
}

/// The same of the capture thread, once its programs are attached.
fn give_away(programs: &mut Programs) {
    let has = privileges::held();
    match Later::of(programs) {
        Ok(later) => {
            if later.lacks_probes(has) {
                tracing::warn!(
                    "this kernel lets only CAP_SYS_ADMIN put probes into files: neither TLS nor CUDA is seen"
                );
            }
            keep_only(later.needs(has));
            tracing::info!(capabilities = privileges::names(privileges::held()), "privileges are given away");
        }
        Err(error) => tracing::warn!(%error, "all capabilities are kept"),
    }
}

/// The capture thread before there is something to capture: it was started while everything was allowed.
struct Waiting {
    begin: SyncSender<CaptureThread>,
    ended: oneshot::Receiver<Result<(), PipelineError>>,
}

impl Waiting {
    fn start() -> Result<Self, PipelineError> {
        let (begin, begins) = sync_channel::<CaptureThread>(1);
        let (tell, ended) = oneshot::channel();
        let wait = move || {
            // The agent may end before there is anything to capture, and nobody listens if the end took too long.
            if let Ok(capture) = begins.recv() {
                let _ = tell.send(capture.run());
            }
        };
        thread::Builder::new().name("capture".to_owned()).spawn(wait).map_err(PipelineError::Start)?;
        Ok(Self { begin, ended })
    }

    /// Lets it begin; tells its end.
    fn begin(self, capture: CaptureThread) -> oneshot::Receiver<Result<(), PipelineError>> {
        // It waits for nothing else, so it is there.
        let _ = self.begin.send(capture);
        self.ended
    }
}

/// What the capture thread takes with it.
struct CaptureThread {
    config: Config,
    tree: ProcTree,
    queue: SpanQueue,
    telemetry: Telemetry,
    gpu: Option<Gpu>,
    kubernetes: Option<Kubernetes>,
    reloads: Receiver<Reload>,
    stop: Arc<AtomicBool>,
}

impl CaptureThread {
    fn run(self) -> Result<(), PipelineError> {
        let Self { config, tree, queue, telemetry, gpu, kubernetes, reloads, stop } = self;
        let skip = OWN_PROGRAMS.iter().flat_map(|name| tree.running(name)).collect();
        let options = Options {
            skip,
            hooks: config.hooks.into(),
            tls: config.tls == Switch::Auto,
            cuda: config.cuda == Switch::Auto,
            debug: config.kernel_debug,
            ..Options::default()
        };
        let mut programs = Programs::load(&options)?;
        give_away(&mut programs);
        let attached = &programs.attached;
        let wanted = Wanted {
            tls: attached.has_tls(),
            cuda: attached.has_cuda(),
            go: attached.has_go(),
            loops: attached.has_loops(),
            python: attached.has_python(),
        };
        let has_probes = wanted.tls || wanted.cuda || wanted.go || wanted.loops || wanted.python;
        let mut source = Capture::new(programs);
        let mut processes = Processes::new(tree.clone(), config.selection()).in_pods(kubernetes.clone());
        let libraries = has_probes.then(|| {
            let (mut libraries, now_ns) = (Libraries::new(tree, wanted), monotonic_ns());
            libraries.look_at_all(now_ns, &mut source, &mut |tgid| processes.is_selected(tgid, now_ns));
            libraries
        });
        give_memory_back();
        let since_ns = monotonic_ns();
        telemetry.set_attached();
        let printer =
            config.print.map(|format| Printer::new(Box::new(BufWriter::new(io::stdout())) as Box<dyn Write>, format));
        let seed = [fastrand::u64(..), fastrand::u64(..), fastrand::u64(..), fastrand::u64(..)];
        let spans = config.span_config();
        let decoding = DecodeConfig {
            keeps_headers: spans.headers.wants_any(),
            show_after: spans.partial_after,
            ..DecodeConfig::default()
        };
        let mut stages = Stages::new(
            Decoder::new(decoding),
            Stitcher::new(config.stitch_config(), RandomIds::new(seed)),
            processes,
            SpanBuilder::new(spans, clock()).naming_peers(kubernetes),
            GpuSpans::new(gpu),
            Out { queue, printer, telemetry },
            since_ns,
        );
        stages.exclude_self_traced(config.discovery.exclude_otel_instrumented_services);
        stages.set_inference(config.inference_config());
        if let Some(libraries) = libraries {
            stages.watch_libraries(libraries);
        }
        let captured = capture(&mut source, &mut stages, &reloads, &stop, thread::sleep);
        if let Some(libraries) = stages.take_libraries() {
            libraries.leave();
        }
        Ok(captured?)
    }
}

/// Moves records from `source` through `stages` until `stop`, then everything that is left.
fn capture(
    source: &mut dyn Source,
    stages: &mut Stages,
    reloads: &Receiver<Reload>,
    stop: &AtomicBool,
    sleep: impl Fn(Duration),
) -> Result<(), CaptureError> {
    let (mut records, mut pause) = (Vec::new(), GATHER);
    while !stop.load(Ordering::Acquire) {
        source.drain(WAIT, &mut records)?;
        let gathered = records.len();
        stages.take(&mut records, source)?;
        stages.tick(monotonic_ns(), clock(), source)?;
        if let Some(reload) = reloads.try_iter().last() {
            stages.reload(reload, source);
            tracing::info!("the configuration was read again, and is in force");
        }
        if gathered > 0 {
            pause = next_pause(pause, gathered);
            sleep(pause);
        }
    }
    source.drain_all(&mut records)?;
    stages.take(&mut records, source)?;
    stages.finish(source)
}

/// How long records may gather if so many have in the time before.
fn next_pause(before: Duration, records: usize) -> Duration {
    let records = u32::try_from(records.max(1)).unwrap_or(u32::MAX);
    (before * BURST / records).clamp(GATHER_LEAST, GATHER)
}

/// The clock of the records.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What that clock means, and what it reads.
fn reading() -> (Clock, u64) {
    (clock(), monotonic_ns())
}

/// What that clock means.
fn clock() -> Clock {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clock::new(monotonic_ns(), unix.as_nanos() as u64)
}

#[cfg(test)]
mod tests;
