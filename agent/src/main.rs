//! The agent binary.

use std::{
    env,
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::Context as _;
use coati_agent::{
    cli::{self, Command},
    config::Config,
    doctor::{self, Report},
    pipeline::{self, PipelineError},
};
use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// Something of the configuration is wrong; anything else that keeps the agent from running is 1.
const WRONG_CONFIGURATION: u8 = 2;

fn main() -> ExitCode {
    let variable = |name: &str| env::var(name).ok();
    let command = match cli::parse(env::args_os(), &variable) {
        Ok(command) => command,
        // Its text has its cause.
        Err(error) => return fail(&anyhow::anyhow!("{error}"), WRONG_CONFIGURATION),
    };
    let result = match command {
        Command::Doctor(config) => return examine(&config),
        Command::Print { text, warnings } => {
            for warning in warnings {
                say(&format!("warning: {warning}"));
            }
            std::io::stdout().write_all(text.as_bytes()).context("cannot print")
        }
        Command::Run(config) => run(&config),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if matches!(error.downcast_ref(), Some(PipelineError::Export(_) | PipelineError::Kubernetes(_))) => {
            fail(&error, WRONG_CONFIGURATION)
        }
        Err(error) => fail(&error, 1),
    }
}

fn run(config: &Config) -> anyhow::Result<()> {
    log(config)?;
    // The same words as at the start, and what file and environment say by then.
    let reread = || match cli::parse(env::args_os(), &|name: &str| env::var(name).ok())? {
        Command::Run(config) => Ok(*config),
        Command::Doctor(_) | Command::Print { .. } => Ok(config.clone()),
    };
    Ok(pipeline::run(config, &reread)?)
}

/// Exit code 0 if capture would work, 1 if not.
fn examine(config: &Config) -> ExitCode {
    let Report { text, works } = doctor::examine(config);
    // Who closed standard output still has the exit code.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if works { ExitCode::SUCCESS } else { ExitCode::from(1) }
}

/// Logs to standard error: standard output is for spans.
fn log(config: &Config) -> anyhow::Result<()> {
    let level = Level::from(config.log_level);
    // Libraries tell a lot at `debug` that is about them and not about the node.
    let mut targets = Targets::new().with_default(level.min(Level::WARN)).with_target("coati_agent", level);
    // They tell of every answer that refuses something, and of every one that does not come; the agent says so once.
    targets = targets.with_target("kube_runtime", LevelFilter::ERROR).with_target("kube_client", LevelFilter::OFF);
    if config.kernel_debug {
        targets = targets.with_target("coati_agent_ebpf", LevelFilter::TRACE);
    }
    let stderr = std::io::stderr;
    let format = tracing_subscriber::fmt::layer().with_writer(stderr).with_ansi(stderr().is_terminal());
    tracing_subscriber::registry().with(targets).with(format).try_init().context("cannot log")
}

/// One line, causes and all.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    say(&format!("{error:#}").replace('\n', " "));
    ExitCode::from(code)
}

fn say(line: &str) {
    // Without standard error there is nobody to tell that there is none.
    let _ = writeln!(std::io::stderr(), "coati-agent: {line}");
}
