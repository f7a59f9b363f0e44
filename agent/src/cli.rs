//! The command line.

use std::{ffi::OsString, path::PathBuf};

use clap::{
    ArgAction, CommandFactory as _, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use crate::config::{Config, ConfigError, set_flag};

/// Turns the HTTP requests of a Linux node into OpenTelemetry spans, by eBPF, without touching the services.
///
/// Every flag has an environment variable, COATI_AGENT_ and its name in capitals; flags win over variables, variables
/// over the file. OTEL_EXPORTER_OTLP_… variables are understood, and Beyla's where they mean the same.
///
/// `coati-agent doctor`, with the same flags, says what capture there would be on this node, and what the agent that runs on
/// it has lost; it ends with 0 if capture would work.
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

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// To run.
    Run(Box<Config>),
    /// To say how capture would be, and end.
    Doctor(Box<Config>),
    /// To print this text, help or version, and end.
    Print(String),
}

/// Understands the command line (the program's name first) and the environment.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Command, ConfigError> {
    let mut arguments: Vec<OsString> = arguments.into_iter().collect();
    let is_doctor = arguments.get(1).is_some_and(|word| word == DOCTOR);
    if is_doctor {
        arguments.remove(1);
    }
    let flags = match Flags::try_parse_from(arguments) {
        Ok(flags) => flags,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Command::Print(error.to_string()));
        }
        Err(error) => return Err(ConfigError::Flag(one_line(&error))),
    };
    let Flags { config, otlp_endpoint, otlp_protocol, listen, hooks, print, log_level, kernel_debug } = flags;
    let file = config.or_else(|| variable("COATI_AGENT_CONFIG").filter(|path| !path.is_empty()).map(PathBuf::from));
    let mut config = Config::read(file.as_deref(), variable)?;
    set_flag(&mut config.export.endpoint, "otlp-endpoint", otlp_endpoint.as_deref())?;
    set_flag(&mut config.export.protocol, "otlp-protocol", otlp_protocol.as_deref())?;
    set_flag(&mut config.listen, "listen", listen.as_deref())?;
    set_flag(&mut config.hooks, "hooks", hooks.as_deref())?;
    set_flag(&mut config.print, "print", print.as_deref())?;
    set_flag(&mut config.log_level, "log-level", log_level.as_deref())?;
    config.kernel_debug |= kernel_debug;
    let config = Box::new(config);
    Ok(if is_doctor { Command::Doctor(config) } else { Command::Run(config) })
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
mod tests {
    use std::{collections::HashMap, fs};

    use rstest::rstest;

    use super::*;
    use crate::{
        config::{Hooks, LogLevel},
        kernel::features::HookSet,
    };

    fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        let arguments = [&["coati-agent"], arguments].concat().into_iter().map(OsString::from);
        match parse(arguments, &|name| variables.get(name).map(|value| (*value).to_owned())) {
            Ok(Command::Run(config)) => Ok(*config),
            Ok(Command::Doctor(_)) => panic!("the doctor was asked for"),
            Ok(Command::Print(text)) => panic!("{text}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn flags_win_over_variables_and_variables_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "listen: 127.0.0.1:1\nlog_level: warn\nhooks: syscall\nexport:\n  endpoint: http://file:1\n")
            .unwrap();
        let path = file.path().to_str().unwrap();
        let variables = [
            ("COATI_AGENT_LISTEN", "127.0.0.1:2"),
            ("BEYLA_LOG_LEVEL", "DEBUG"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://env:1"),
        ];
        let config =
            run(&["--config", path, "--listen", "127.0.0.1:3", "--otlp-endpoint=http://flag:1"], &variables).unwrap();
        assert_eq!(config.listen.port(), 3);
        assert_eq!(config.log_level, LogLevel::Debug);
        assert_eq!(config.hooks, Hooks::Only(HookSet::Syscall));
        assert_eq!(config.export_settings().endpoint, "http://flag:1");

        let variables = [("COATI_AGENT_CONFIG", path), ("COATI_AGENT_LISTEN", "127.0.0.1:2")];
        assert_eq!(run(&[], &variables).unwrap().listen.port(), 2);
        assert_eq!(run(&[], &[("COATI_AGENT_CONFIG", path)]).unwrap().listen.port(), 1);
    }

    #[rstest]
    #[case::unknown(
        &["--hook", "auto"],
        "--hook: no such flag, expected one of --config, --otlp-endpoint, --otlp-protocol, --listen, --hooks, --print, \
         --log-level, --kernel-debug"
    )]
    #[case::no_value(&["--listen"], "--listen <ADDRESS>: expected a value")]
    #[case::twice(&["--listen", "127.0.0.1:1", "--listen", "127.0.0.1:2"], "--listen <ADDRESS>: expected at most once")]
    #[case::word(
        &["serve"],
        "serve: no such flag, expected one of --config, --otlp-endpoint, --otlp-protocol, --listen, --hooks, --print, \
         --log-level, --kernel-debug"
    )]
    #[case::bad_address(
        &["--listen", "9400"],
        "--listen: expected an address with a port such as `127.0.0.1:9400`, found `9400`"
    )]
    #[case::unknown_hooks(
        &["--hooks", "xdp"],
        "--hooks: expected `auto`, `fentry`, `kprobe` or `syscall`, found `xdp`"
    )]
    #[case::bad_protocol(&["--otlp-protocol", "http/json"], "--otlp-protocol: expected `grpc` or `http/protobuf`, found `http/json`")]
    #[case::bad_format(&["--print", "xml"], "--print: expected `text`, `json` or `disabled`, found `xml`")]
    #[case::no_file(&["--config", "/no/such/file"], "/no/such/file: No such file or directory (os error 2)")]
    fn bad_command_lines(#[case] arguments: &[&str], #[case] expected: &str) {
        assert_eq!(run(arguments, &[]).unwrap_err(), expected);
    }

    #[test]
    fn the_doctor_takes_the_same_flags() {
        let arguments = ["coati-agent", "doctor", "--hooks", "kprobe"].map(OsString::from);
        let Ok(Command::Doctor(config)) = parse(arguments, &|_| None) else { panic!() };
        assert_eq!(config.hooks, Hooks::Only(HookSet::Kprobe));
        assert!(run(&["--hooks", "auto", "doctor"], &[]).unwrap_err().starts_with("doctor: no such flag"));
    }

    #[rstest]
    #[case::help("--help", "Usage: coati-agent")]
    #[case::version("--version", concat!("coati-agent ", env!("CARGO_PKG_VERSION")))]
    fn help_and_version_are_printed(#[case] flag: &str, #[case] expected: &str) {
        let arguments = ["coati-agent", flag].map(OsString::from);
        let Ok(Command::Print(text)) = parse(arguments, &|_| None) else { panic!() };
        assert!(text.contains(expected), "{text}");
    }
}
