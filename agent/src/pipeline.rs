//! The stages, wired.
//!
//! ```text
//! thread `capture`:  Source → Stages: decode → stitch → (discover) → span → (gpu) → print, queue
//! thread `gpu`:      NVML → samples
//! tokio (main):      queue → export · /metrics · the agent's own metrics · signals
//! ```
//!
//! The end is ordered: the capture thread takes what the kernel still has, ends what is open and drops the queue; the
//! exporter sends what is in it, until four seconds after the signal.

mod stages;

use std::{
    io::{self, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{oneshot, watch},
    time::{Instant, timeout_at},
};

use crate::{
    capture::{Capture, CaptureError, Source},
    config::Config,
    decode::{DecodeConfig, Decoder},
    discover::{Host, ProcTree, Processes},
    ebpf::{LoadError, Options, Programs},
    export::{ExportError, SpanQueue, exporter},
    gpu::{Gpu, GpuError, GpuMetrics, GpuSpans},
    print::Printer,
    span::{Clock, SpanBuilder},
    stitch::{RandomIds, Stitcher},
    telemetry::{OtlpMetrics, Server, Telemetry, TelemetryError},
};
pub use stages::{Out, Stages};

/// How long the agent takes to end at most; who manages it kills it a little later.
const END_WITHIN: Duration = Duration::from_millis(4300);
/// What of it is left for all that comes after the last span.
const AFTER_EXPORT: Duration = Duration::from_millis(500);

/// How long the capture thread waits for the first record.
const WAIT: Duration = Duration::from_millis(20);
/// How long it lets records gather when there are some: it costs less to take many at once.
const GATHER: Duration = Duration::from_millis(10);

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
    /// The agent cannot tell how it is.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// GPUs cannot be looked at.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// No thread, or no runtime.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// The capture thread ended without a reason.
    #[error("the capture thread has panicked")]
    Panicked,
}

/// Runs the agent until it is told to end by SIGTERM or SIGINT.
pub fn run(config: &Config) -> Result<(), PipelineError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(PipelineError::Start)?;
    let result = runtime.block_on(run_until_signal(config));
    runtime.shutdown_timeout(Duration::ZERO);
    result
}

async fn run_until_signal(config: &Config) -> Result<(), PipelineError> {
    let telemetry = Telemetry::default();
    let mut terminate = signal(SignalKind::terminate()).map_err(PipelineError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(PipelineError::Start)?;
    let mut server = Server::bind(config.listen, telemetry.clone()).await?;
    let settings = config.export_settings();
    let (queue, exporter) = exporter(&settings, &telemetry, fastrand::f64)?;
    let tree = ProcTree::new("/proc");
    let host = Host::of(&tree);
    let gpu_config = config.gpu_config();
    let gpu = gpu_config.enabled.then(|| Gpu::start(&gpu_config, tree.clone())).transpose()?;
    if let Some(gpu) = &gpu {
        server.add(GpuMetrics::new(gpu, host.name()));
    }
    let own_metrics = config
        .otlp_metrics(host.name().map(str::to_owned))
        .map(|settings| OtlpMetrics::start(&settings, &telemetry))
        .transpose()?;

    let listen = server.address();
    let (deadline, end) = watch::channel(None);
    tokio::spawn(server.run(std::future::pending()));
    let exporting = tokio::spawn(exporter.run(end));

    let stop = Arc::new(AtomicBool::new(false));
    let (ended, mut capture_ended) = oneshot::channel();
    let capture = CaptureThread { config: config.clone(), tree, queue, telemetry, gpu, stop: Arc::clone(&stop) };
    thread::Builder::new()
        .name("capture".to_owned())
        .spawn(move || {
            // Nobody listens if the end took too long.
            let _ = ended.send(capture.run());
        })
        .map_err(PipelineError::Start)?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        %listen,
        endpoint = settings.endpoint,
        protocol = ?settings.protocol,
        "coati-agent starts"
    );

    let early = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        result = &mut capture_ended => Some(result),
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
        // Its end is its own deadline; a panic in it has been logged.
        let _ = exporting.await;
    }
    if let Some(metrics) = own_metrics {
        let stopped = timeout_at(end, tokio::task::spawn_blocking(|| metrics.stop())).await;
        if !matches!(stopped, Ok(Ok(Ok(())))) {
            tracing::warn!("the last metrics were not taken");
        }
    }
    captured.unwrap_or(Err(PipelineError::Panicked))
}

/// What the capture thread takes with it.
struct CaptureThread {
    config: Config,
    tree: ProcTree,
    queue: SpanQueue,
    telemetry: Telemetry,
    gpu: Option<Gpu>,
    stop: Arc<AtomicBool>,
}

impl CaptureThread {
    fn run(self) -> Result<(), PipelineError> {
        let Self { config, tree, queue, telemetry, gpu, stop } = self;
        let skip = OWN_PROGRAMS.iter().flat_map(|name| tree.running(name)).collect();
        let options = Options { skip, hooks: config.hooks.into(), debug: config.kernel_debug, ..Options::default() };
        let mut source = Capture::new(Programs::load(&options)?);
        let since_ns = monotonic_ns();
        telemetry.set_attached();
        let printer =
            config.print.map(|format| Printer::new(Box::new(BufWriter::new(io::stdout())) as Box<dyn Write>, format));
        let seed = [fastrand::u64(..), fastrand::u64(..), fastrand::u64(..), fastrand::u64(..)];
        let mut stages = Stages::new(
            Decoder::new(DecodeConfig::default()),
            Stitcher::new(config.stitch_config(), RandomIds::new(seed)),
            Processes::new(tree, config.selection()),
            SpanBuilder::new(config.span_config(), clock()),
            GpuSpans::new(gpu),
            Out { queue, printer, telemetry },
            since_ns,
        );
        capture(&mut source, &mut stages, &stop, thread::sleep)?;
        Ok(())
    }
}

/// Moves records from `source` through `stages` until `stop`, then everything that is left.
fn capture(
    source: &mut dyn Source,
    stages: &mut Stages,
    stop: &AtomicBool,
    sleep: impl Fn(Duration),
) -> Result<(), CaptureError> {
    let mut records = Vec::new();
    while !stop.load(Ordering::Acquire) {
        source.drain(WAIT, &mut records)?;
        let has_gathered = !records.is_empty();
        stages.take(&mut records, source)?;
        stages.tick(monotonic_ns(), clock(), source)?;
        if has_gathered {
            sleep(GATHER);
        }
    }
    source.drain_all(&mut records)?;
    stages.take(&mut records, source)?;
    stages.finish(source)
}

/// The clock of the records.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// What that clock means.
fn clock() -> Clock {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clock::new(monotonic_ns(), unix.as_nanos() as u64)
}

#[cfg(test)]
mod tests;
