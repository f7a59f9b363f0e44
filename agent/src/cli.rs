//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    ArgAction, CommandFactory as _, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::config::{Config, ConfigError, from_alloy, from_beyla, schema, set_flag};

/// Turns the HTTP requests of a Linux node into OpenTelemetry spans, by eBPF, without touching the services.
///
/// Every flag has an environment variable, COATI_AGENT_ and its name in capitals; flags win over variables, variables
/// over the file. OTEL_EXPORTER_OTLP_… variables are understood, and Beyla's where they mean the same.
///
/// `coati-agent doctor`, with the same flags, says what capture there would be on this node, and what the agent that runs on
/// it has lost; it ends with 0 if capture would work.
///
/// `coati-agent config check FILE` says in one line what is wrong with a file, or that it is fine; `config print [FILE]`
/// gives what file and environment make together, without secrets; `config schema` a JSON Schema for editors; `config
/// from-beyla FILE` and `config from-alloy FILE` translate a file of Beyla or of Grafana Alloy, secrets included.
#[derive(Debug, Parser)]
#[command(name = "coati-agent", version)]
#[expect(clippy::doc_markdown, reason = "the comments are the text of --help, where Markdown is noise")]
struct Flags {
    /// YAML file with the configuration [default: none, everything has a default]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Address of the OTLP endpoint [default: http://127.0.0.1:4317]
    #[arg(long, value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// `grpc` or `http/protobuf` [default: by the endpoint's port]
    #[arg(long, value_name = "PROTOCOL")]
    otlp_protocol: Option<String>,
    /// Address of /metrics, /healthz and /readyz; port 0 chooses a free one [default: 127.0.0.1:9400]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Kernel hooks: `auto`, `fentry`, `kprobe` or `syscall` [default: auto]
    #[arg(long, value_name = "HOOKS")]
    hooks: Option<String>,
    /// Print spans to standard output as they are made: `text`, `json` or `disabled` [default: disabled]
    #[arg(long, value_name = "FORMAT")]
    print: Option<String>,
    /// `error`, `warn`, `info`, `debug` or `trace` [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Log what the kernel programs do
    #[arg(long, action = ArgAction::SetTrue)]
    kernel_debug: bool,
}

/// The word behind the program's name that asks how capture would be.
const DOCTOR: &str = "doctor";
/// The one that asks for something about configurations.
const CONFIG: &str = "config";
/// What can be asked then.
const CONFIG_COMMANDS: &str =
    "config: expected `check FILE`, `print [FILE]`, `schema`, `from-beyla FILE` or `from-alloy FILE`";

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// To run.
    Run(Box<Config>),
    /// To say how capture would be, and end.
    Doctor(Box<Config>),
    /// To print this text, and end.
    Print {
        /// For standard output: help, version, a configuration.
        text: String,
        /// For standard error: what was asked for in it and is not done.
        warnings: Vec<String>,
    },
}

/// Understands the command line (the program's name first) and the environment.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Command, ConfigError> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    if let Some((word, words)) = arguments.get(1..).and_then(<[_]>::split_first)
        && word == CONFIG
    {
        return about_configuration(words, variable);
    }
    let is_doctor = arguments.get(1).is_some_and(|word| word == DOCTOR);
    if is_doctor {
        arguments.remove(1);
    }
    let flags = match Flags::try_parse_from(arguments) {
        Ok(flags) => flags,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Command::Print { text: error.to_string(), warnings: Vec::new() });
        }
        Err(error) => return Err(ConfigError::Flag(one_line(&error))),
    };
    let Flags { config, otlp_endpoint, otlp_protocol, listen, hooks, print, log_level, kernel_debug } = flags;
    let file = config.or_else(|| file_of_environment(variable));
    let mut config = Config::read(file.as_deref(), variable)?;
    set_flag(&mut config.export.endpoint, "otlp-endpoint", otlp_endpoint.as_deref())?;
    if otlp_endpoint.is_some() {
        config.export.endpoints.clear();
    }
    set_flag(&mut config.export.protocol, "otlp-protocol", otlp_protocol.as_deref())?;
    set_flag(&mut config.listen, "listen", listen.as_deref())?;
    set_flag(&mut config.hooks, "hooks", hooks.as_deref())?;
    set_flag(&mut config.print, "print", print.as_deref())?;
    set_flag(&mut config.log_level, "log-level", log_level.as_deref())?;
    config.kernel_debug |= kernel_debug;
    let config = Box::new(config);
    Ok(if is_doctor { Command::Doctor(config) } else { Command::Run(config) })
}

/// The file that a variable names.
fn file_of_environment(variable: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let names = ["COATI_AGENT_CONFIG", "OTEL_EBPF_CONFIG_PATH", "BEYLA_CONFIG_PATH"];
    names.into_iter().find_map(|name| variable(name).filter(|path| !path.is_empty())).map(PathBuf::from)
}

/// `coati-agent config …`.
fn about_configuration(words: &[OsString], variable: &dyn Fn(&str) -> Option<String>) -> Result<Command, ConfigError> {
    let (command, rest) = words.split_first().ok_or_else(|| ConfigError::Flag(CONFIG_COMMANDS.to_owned()))?;
    let file = rest.first().map(PathBuf::from);
    let translated = |config: Config| Command::Print { text: config.to_yaml(), warnings: config.warnings };
    match (command.to_str(), &file, rest.len()) {
        (Some("schema"), None, 0) => Ok(Command::Print { text: schema(), warnings: Vec::new() }),
        (Some("check"), Some(file), 1) => {
            let Config { warnings, .. } = Config::of_file(file, variable)?;
            Ok(Command::Print { text: format!("{}: fine\n", file.display()), warnings })
        }
        (Some("print"), _, 0 | 1) => {
            let file = file.or_else(|| file_of_environment(variable));
            Ok(translated(Config::read(file.as_deref(), variable)?.redacted()))
        }
        (Some("from-beyla"), Some(file), 1) => from_beyla(file, variable).map(translated),
        (Some("from-alloy"), Some(file), 1) => from_alloy(file, variable).map(translated),
        _ => Err(ConfigError::Flag(CONFIG_COMMANDS.to_owned())),
    }
}

/// The parser's own text has several lines and a hint to `--help`.
fn one_line(error: &clap::Error) -> String {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.as_str(),
        _ => "command line",
    };
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let command = Flags::command();
            let flags: Vec<_> =
                command.get_arguments().filter_map(|flag| Some(format!("--{}", flag.get_long()?))).collect();
            format!("{argument}: no such flag, expected one of {}", flags.join(", "))
        }
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues => format!("{argument}: expected a value"),
        ErrorKind::ArgumentConflict => format!("{argument}: expected at most once"),
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    }
}

#[cfg(test)]
#[path = "cli_tests.rs"]
mod tests;
