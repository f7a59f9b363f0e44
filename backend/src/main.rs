//! The backend binary.

use std::io::{BufWriter, ErrorKind, stdout};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use coati_backend::cli::{self, Command};
use coati_backend::config::Config;
use coati_backend::server::{self, Server};
use coati_backend::telemetry;
use coati_backend::tools::{self, Outcome, ToolError};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

/// Spans are made on one thread and freed on another, which glibc's allocator pays for with locks and fragments: with
/// this one ingest takes a third less processor time and the replay a quarter of its time (`cargo xtask bench ingest`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code for a wrong flag, file or key.
const USAGE: u8 = 2;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "this is where a program speaks to who started it")]
fn main() -> ExitCode {
    match cli::parse(std::env::args_os(), &|name| std::env::var(name).ok()) {
        Ok(Command::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Command::Blocks(options, config)) => {
            match tools::run(&options, &config, &mut BufWriter::new(stdout().lock())) {
                Ok(Outcome::Sound) => ExitCode::SUCCESS,
                Ok(Outcome::Damaged) => ExitCode::FAILURE,
                // Who reads the output has seen enough.
                Err(ToolError::Output { source, .. }) if source.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
                Err(error) => {
                    eprintln!("coati-backend: {}", telemetry::chain(&error));
                    ExitCode::FAILURE
                }
            }
        }
        Ok(Command::Run(config)) => match run(&config) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("coati-backend: {error:#}");
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            eprintln!("coati-backend: {error}");
            ExitCode::from(USAGE)
        }
    }
}

fn run(config: &Config) -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::from(config.log_level))
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    config.given.warnings().iter().for_each(|warning| warn!("{warning}"));
    server::take_small_pages();
    let runtime = server::runtime().context("cannot start the runtime")?;
    let outcome = runtime.block_on(serve(config));
    // A replay that was cut short must not hold the end up; it changes nothing on disk that counts.
    runtime.shutdown_timeout(Duration::from_millis(500));
    outcome
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => info!(signal = "SIGTERM", "stopping"),
            _ = interrupt.recv() => info!(signal = "SIGINT", "stopping"),
        }
    };
    tokio::pin!(stop);
    let server = tokio::select! {
        started = Server::start(config) => started?,
        () = &mut stop => return Ok(()),
    };
    stop.await;
    server.stop().await;
    Ok(())
}
