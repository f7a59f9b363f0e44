//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Parser, Subcommand};

use crate::access;
use crate::config::{self, Config, ConfigError, SETTINGS};
use crate::generator;
use crate::tools;

/// Receives OpenTelemetry traces, stores them, and answers TraceQL and the Tempo API.
///
/// Every flag has an environment variable, COATI_BACKEND_ and its name in capitals; flags win over variables, variables
/// over the file. The file may also be given as Tempo's -config.file=FILE.
#[derive(Debug, Parser)]
#[command(name = "coati-backend", version, disable_help_subcommand = true)]
#[expect(clippy::doc_markdown, reason = "the comments are the text of --help, where Markdown is noise")]
struct Flags {
    /// YAML file with the configuration [default: none, everything has a default]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Directory of all data [default: ./coati-data]
    #[arg(long, global = true, value_name = "DIRECTORY")]
    data_dir: Option<String>,
    /// Address for queries; port 0 chooses a free one, which is logged [default: 0.0.0.0:3200]
    #[arg(long, value_name = "ADDRESS")]
    api_listen: Option<String>,
    /// Address for OTLP over gRPC [default: 0.0.0.0:4317]
    #[arg(long, value_name = "ADDRESS")]
    otlp_grpc_listen: Option<String>,
    /// Address for OTLP over HTTP [default: 0.0.0.0:4318]
    #[arg(long, value_name = "ADDRESS")]
    otlp_http_listen: Option<String>,
    /// Age after which data is deleted [default: 7d]
    #[arg(long, value_name = "TIME")]
    retention: Option<String>,
    /// Size that the data directory does not grow beyond [default: 10GiB]
    #[arg(long, value_name = "SIZE")]
    max_bytes: Option<String>,
    /// Whether small blocks are merged here: `true` or `false` [default: true]
    #[arg(long, value_name = "BOOL")]
    compaction: Option<String>,
    /// Size beyond which blocks are not merged [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    max_block_bytes: Option<String>,
    /// Memory for live traces [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    max_live_bytes: Option<String>,
    /// Memory for one trace [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    max_trace_bytes: Option<String>,
    /// Time after the last span of a trace until it goes to a block [default: 5s]
    #[arg(long, value_name = "TIME")]
    cut_idle: Option<String>,
    /// Time after the first span of a trace until it goes to a block [default: 30s]
    #[arg(long, value_name = "TIME")]
    cut_max_age: Option<String>,
    /// Memory of traces that go to a block together [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    cut_block_bytes: Option<String>,
    /// Longest wait for others to go to a block with [default: 10s]
    #[arg(long, value_name = "TIME")]
    cut_max_wait: Option<String>,
    /// Largest request, after decompression [default: 20MiB]
    #[arg(long, value_name = "SIZE")]
    max_request_bytes: Option<String>,
    /// Requests in work at once [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    max_in_flight_bytes: Option<String>,
    /// Longest time that a query may take [default: 2m]
    #[arg(long, value_name = "TIME")]
    query_max_duration: Option<String>,
    /// Most memory and storage that a query may look at [default: 1024GiB]
    #[arg(long, value_name = "SIZE")]
    query_max_read_bytes: Option<String>,
    /// Memory for the answer to a search [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    query_max_answer_bytes: Option<String>,
    /// Memory for what a metrics query counts [default: 32MiB]
    #[arg(long, value_name = "SIZE")]
    query_max_metrics_bytes: Option<String>,
    /// Whether /api/mcp offers queries to language models: `true` or `false` [default: false]
    #[arg(long, value_name = "BOOL")]
    query_mcp: Option<String>,
    /// Whether X-Scope-OrgID names the tenant: `true` or `false` [default: false]
    #[arg(long, value_name = "BOOL")]
    multitenancy: Option<String>,
    /// `error`, `warn`, `info`, `debug` or `trace` [default: info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
    /// Where blocks lie: `local`, in the data directory, or `s3` [default: local]
    #[arg(long, value_name = "KIND")]
    storage_backend: Option<String>,
    /// Bucket of the blocks; it must be there
    #[arg(long, value_name = "NAME")]
    s3_bucket: Option<String>,
    /// Put before the path of every object
    #[arg(long, value_name = "PATH")]
    s3_prefix: Option<String>,
    /// Host, host:port or URL of the store [default: AWS_ENDPOINT_URL, else AWS]
    #[arg(long, value_name = "URL")]
    s3_endpoint: Option<String>,
    /// Region of the bucket [default: AWS_REGION, else us-east-1]
    #[arg(long, value_name = "NAME")]
    s3_region: Option<String>,
    /// File with keys as in ~/.aws/credentials [default: AWS_ACCESS_KEY_ID, else what AWS gives]
    #[arg(long, value_name = "FILE")]
    s3_credentials_file: Option<String>,
    /// Whether an endpoint that is no URL speaks HTTP without TLS [default: false]
    #[arg(long, value_name = "BOOL")]
    s3_insecure: Option<String>,
    /// Whether the bucket stands in the path of a request: `auto`, `true` or `false` [default: auto]
    #[arg(long, value_name = "BOOL")]
    s3_forcepathstyle: Option<String>,
    /// Certificates (PEM) that are trusted beside those of the system
    #[arg(long, value_name = "FILE")]
    s3_tls_ca_path: Option<String>,
    #[command(subcommand)]
    tool: Option<Tool>,
}

/// What else the program does.
#[derive(Debug, Subcommand)]
enum Tool {
    Blocks(tools::Options),
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Command {
    /// To run.
    Run(Box<Config>),
    /// To look at the blocks of a store.
    Blocks(Box<tools::Options>, Box<Config>),
    /// To print this text, help or version, and end.
    Print(String),
}

/// Understands the command line (the program's name first) and the environment.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Command, ConfigError> {
    let arguments: Vec<OsString> = arguments.into_iter().map(as_tempo_spells_it).collect();
    let flags = match Flags::try_parse_from(&arguments) {
        Ok(flags) => flags,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Command::Print(error.to_string()));
        }
        Err(error) => return Err(ConfigError::Flag(one_line(&error, &arguments))),
    };
    let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
    let file = flags.config.clone().or_else(|| variable("COATI_BACKEND_CONFIG").map(PathBuf::from));
    let mut config = file.as_deref().map_or_else(|| Ok(Config::default()), config::read)?;
    config.file.clone_from(&file);
    for (setting, _) in SETTINGS {
        let name = format!("COATI_BACKEND_{}", setting.replace('-', "_").to_ascii_uppercase());
        if let Some(value) = variable(&name) {
            config.set(setting, &value, &name)?;
        }
        if let Some(value) = flags.value(setting) {
            config.set(setting, value, &format!("--{setting}"))?;
        }
    }
    config.check(&variable)?;
    // Tools make no metrics, and may run where the files for them are not. No flag says what is checked here.
    if let (None, Some(path)) = (&flags.tool, file) {
        access::check(&config, &variable).map_err(|source| ConfigError::Access { path: path.clone(), source })?;
        generator::check(&config.metrics_generator).map_err(|source| ConfigError::Generator { path, source })?;
    }
    let config = Box::new(config);
    Ok(match flags.tool {
        None => Command::Run(config),
        Some(Tool::Blocks(options)) => Command::Blocks(Box::new(options), config),
    })
}

impl Flags {
    fn value(&self, setting: &str) -> Option<&str> {
        let value = match setting {
            "data-dir" => &self.data_dir,
            "api-listen" => &self.api_listen,
            "otlp-grpc-listen" => &self.otlp_grpc_listen,
            "otlp-http-listen" => &self.otlp_http_listen,
            "retention" => &self.retention,
            "max-bytes" => &self.max_bytes,
            "compaction" => &self.compaction,
            "max-block-bytes" => &self.max_block_bytes,
            "max-live-bytes" => &self.max_live_bytes,
            "max-trace-bytes" => &self.max_trace_bytes,
            "cut-idle" => &self.cut_idle,
            "cut-max-age" => &self.cut_max_age,
            "cut-block-bytes" => &self.cut_block_bytes,
            "cut-max-wait" => &self.cut_max_wait,
            "max-request-bytes" => &self.max_request_bytes,
            "max-in-flight-bytes" => &self.max_in_flight_bytes,
            "query-max-duration" => &self.query_max_duration,
            "query-max-read-bytes" => &self.query_max_read_bytes,
            "query-max-answer-bytes" => &self.query_max_answer_bytes,
            "query-max-metrics-bytes" => &self.query_max_metrics_bytes,
            "query-mcp" => &self.query_mcp,
            "multitenancy" => &self.multitenancy,
            "log-level" => &self.log_level,
            "storage-backend" => &self.storage_backend,
            "s3-bucket" => &self.s3_bucket,
            "s3-prefix" => &self.s3_prefix,
            "s3-endpoint" => &self.s3_endpoint,
            "s3-region" => &self.s3_region,
            "s3-credentials-file" => &self.s3_credentials_file,
            "s3-insecure" => &self.s3_insecure,
            "s3-forcepathstyle" => &self.s3_forcepathstyle,
            "s3-tls-ca-path" => &self.s3_tls_ca_path,
            _ => &None,
        };
        value.as_deref()
    }
}

/// `-config.file` and `--config.file` mean `--config`.
fn as_tempo_spells_it(argument: OsString) -> OsString {
    let Some(text) = argument.to_str() else { return argument };
    let rest = text.strip_prefix("--config.file").or_else(|| text.strip_prefix("-config.file"));
    match rest {
        Some(rest) if rest.is_empty() || rest.starts_with('=') => format!("--config{rest}").into(),
        _ => argument,
    }
}

/// The parser's own text has several lines and a hint to `--help`.
fn one_line(error: &clap::Error, arguments: &[OsString]) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "command line",
    };
    let argument = context(ContextKind::InvalidArg);
    let command = command(arguments);
    let flags = || {
        let flags = command.get_arguments().filter_map(|flag| Some(format!("--{}", flag.get_long()?)));
        flags.collect::<Vec<_>>().join(", ")
    };
    let commands = || command.get_subcommands().map(clap::Command::get_name).collect::<Vec<_>>().join(", ");
    match error.kind() {
        ErrorKind::UnknownArgument => format!("{argument}: no such flag, expected one of {}", flags()),
        ErrorKind::InvalidSubcommand => {
            let word = context(ContextKind::InvalidSubcommand);
            format!("{word}: no such command, expected one of {}", commands())
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            format!("{}: expected one of {}", command.get_name(), commands())
        }
        ErrorKind::InvalidValue | ErrorKind::WrongNumberOfValues => format!("{argument}: expected a value"),
        ErrorKind::ArgumentConflict => format!("{argument}: expected at most once"),
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    }
}

/// The innermost command that the arguments name.
fn command(arguments: &[OsString]) -> clap::Command {
    let mut command = Flags::command();
    command.build();
    for word in arguments.iter().skip(1).filter_map(|argument| argument.to_str()) {
        if let Some(inner) = command.find_subcommand(word) {
            command = inner.clone();
        }
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ByteSize, LogLevel};
    use rstest::rstest;
    use std::collections::HashMap;
    use std::fs;
    use std::path::Path;

    fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Result<Config, String> {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        let arguments = [&["coati-backend"], arguments].concat().into_iter().map(OsString::from);
        match parse(arguments, &|name| variables.get(name).map(|value| (*value).to_owned())) {
            Ok(Command::Run(config)) => Ok(*config),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[rstest]
    #[case::config(&["--config", "FILE"])]
    #[case::config_with_equals(&["--config=FILE"])]
    #[case::as_tempo(&["-config.file=FILE"])]
    #[case::as_tempo_in_two_words(&["-config.file", "FILE"])]
    #[case::as_tempo_with_two_dashes(&["--config.file=FILE"])]
    fn flags_win_over_variables_and_variables_over_the_file(#[case] arguments: &[&str]) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "data_dir: /file\nlog_level: warn\nretention:\n  max_bytes: 1GiB\n").unwrap();
        let path = file.path().to_str().unwrap();
        let mut arguments: Vec<String> = arguments.iter().map(|argument| argument.replace("FILE", path)).collect();
        arguments.push("--data-dir=/flag".to_owned());
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let variables = [("COATI_BACKEND_DATA_DIR", "/variable"), ("COATI_BACKEND_LOG_LEVEL", "DEBUG")];
        let config = run(&arguments, &variables).unwrap();
        assert_eq!(config.data_dir, Path::new("/flag"));
        assert_eq!(config.log_level, LogLevel::Debug);
        assert_eq!(config.retention.max_bytes, ByteSize(1 << 30));
        let config = run(&[], &[("COATI_BACKEND_CONFIG", path), ("COATI_BACKEND_LOG_LEVEL", "")]).unwrap();
        assert_eq!(config.log_level, LogLevel::Warn);
    }

    #[test]
    fn every_setting_has_a_flag_and_a_variable() {
        let bucket = ("COATI_BACKEND_S3_BUCKET", "needed-with-s3");
        for (setting, key) in SETTINGS {
            let value = match setting {
                "data-dir" => "/x",
                "retention" | "cut-idle" | "cut-max-age" | "cut-max-wait" | "query-max-duration" => "1h",
                "multitenancy" | "query-mcp" | "s3-insecure" | "s3-forcepathstyle" => "true",
                "storage-backend" => "s3",
                "compaction" => "false",
                "log-level" => "trace",
                setting if setting.ends_with("listen") => "127.0.0.1:1",
                "max-trace-bytes" | "max-request-bytes" => "1MiB",
                _ => "900GiB",
            };
            let variable = format!("COATI_BACKEND_{}", setting.replace('-', "_").to_uppercase());
            let by_flag = run(&[&format!("--{setting}={value}")], &[bucket]).unwrap();
            let by_variable = run(&[], &[bucket, (&variable, value)]).unwrap();
            assert_eq!(by_flag, by_variable, "{setting}");
            assert_ne!(by_flag, run(&[], &[bucket]).unwrap(), "{setting}");
            // Its key in the file means the same.
            let sections: Vec<&str> = key.split('.').collect();
            let lines = sections.iter().enumerate().map(|(depth, name)| format!("{}{name}:", " ".repeat(depth)));
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(&file, format!("{} '{value}'\n", lines.collect::<Vec<_>>().join("\n"))).unwrap();
            let variables = if setting == "s3-bucket" { &[][..] } else { &[bucket] };
            let by_file = run(&["--config", file.path().to_str().unwrap()], variables).unwrap();
            assert_eq!(Config { given: by_flag.given.clone(), file: None, ..by_file }, by_flag, "{setting}");
        }
    }

    #[rstest]
    #[case::no_value(&["--api-listen"], "--api-listen <ADDRESS>: expected a value")]
    #[case::bad_address(&["--api-listen", "3200"], "--api-listen: expected an address with a port such as `0.0.0.0:3200`, found `3200`")]
    #[case::bad_time(&["--retention", "week"], "--retention: expected a time with a unit such as `90m`, `36h` or `7d`, found `week`")]
    #[case::bad_size(&["--max-bytes=-1"], "--max-bytes: expected a size with a unit such as `512KiB`, `256MiB` or `10GiB`, found `-1`")]
    #[case::no_bucket(&["--storage-backend=s3"], "storage.s3.bucket: expected the name of a bucket, found ``")]
    #[case::no_store(&["--storage-backend=gcs"], "--storage-backend: expected `local` or `s3`, found `gcs`")]
    #[case::too_large_a_request(&["--max-request-bytes=1025MiB"], "receive.max_request_bytes (--max-request-bytes): expected at most `1GiB`, found `1025MiB`")]
    #[case::no_file(&["--config", "/no/such/file"], "/no/such/file: No such file or directory (os error 2)")]
    fn bad_command_lines(#[case] arguments: &[&str], #[case] expected: &str) {
        assert_eq!(run(arguments, &[]).unwrap_err(), expected);
    }

    #[rstest]
    #[case::unknown("--dada-dir", "--dada-dir: no such flag, expected one of --config, --data-dir, ")]
    #[case::word("serve", "serve: no such command, expected one of blocks")]
    #[case::in_blocks("blocks list --jsno", "--jsno: no such flag, expected one of --tenant, --json, --store, ")]
    fn unknown_flags(#[case] argument: &str, #[case] expected: &str) {
        let arguments: Vec<&str> = argument.split(' ').collect();
        let error = run(&arguments, &[]).unwrap_err();
        assert!(error.starts_with(expected), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[test]
    fn a_bad_variable_is_named() {
        let error = run(&[], &[("COATI_BACKEND_MAX_BYTES", "x")]).unwrap_err();
        assert!(error.starts_with("COATI_BACKEND_MAX_BYTES: expected a size"), "{error}");
    }

    #[rstest]
    #[case::help("--help", "Usage: coati-backend")]
    #[case::version("--version", concat!("coati-backend ", env!("CARGO_PKG_VERSION")))]
    fn help_and_version_are_printed(#[case] flag: &str, #[case] expected: &str) {
        let arguments = ["coati-backend", flag].map(OsString::from);
        let Ok(Command::Print(text)) = parse(arguments, &|_| None) else { panic!() };
        assert!(text.contains(expected), "{text}");
    }
}
