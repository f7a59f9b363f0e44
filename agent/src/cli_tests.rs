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
        Ok(Command::Print { text, .. }) => panic!("{text}"),
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
    assert_eq!(config.export_settings().endpoints[0].endpoint, "http://flag:1");

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
    let Ok(Command::Print { text, .. }) = parse(arguments, &|_| None) else { panic!() };
    assert!(text.contains(expected), "{text}");
}
