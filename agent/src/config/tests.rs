use std::collections::HashMap;

use rstest::rstest;

use super::*;

const FILE: &str = "agent.yaml";

fn of_file(text: &str) -> Result<Config, String> {
    file::parse(text, Path::new(FILE)).map_err(|error| error.to_string())
}

fn of_environment(variables: &[(&str, &str)]) -> Result<Config, String> {
    let variables: HashMap<_, _> = variables.iter().copied().collect();
    Config::read(None, &|name| variables.get(name).map(|value| (*value).to_owned())).map_err(|error| error.to_string())
}

#[rstest]
#[case::empty("")]
#[case::comments_only("# nothing\n")]
#[case::empty_sections("export:\ndiscovery:\ntelemetry:\n  otlp_metrics:\n")]
fn what_a_file_does_not_say_has_its_default(#[case] text: &str) {
    assert_eq!(format!("{:?}", of_file(text).unwrap()), format!("{:?}", Config::default()));
}

#[test]
fn the_example_file_has_every_key_and_its_default() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/agent.yaml"));
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(format!("{:?}", of_file(&text).unwrap()), format!("{:?}", Config::default()));
    // What has no default stands in a comment; with the marks taken away it must be valid too.
    let everything = text.replace("#~ ", "").replace(": {}\n", ":\n").replace(": []\n", ":\n");
    let everything = of_file(&everything).unwrap();
    assert!(everything.export.endpoint.is_some() && !everything.export.headers.is_empty());
    assert!(everything.telemetry.otlp_metrics.endpoint.is_some());
    assert!(everything.gpu.library.is_some());
    let [rule] = &everything.discovery.include[..] else { panic!("{everything:?}") };
    assert!(rule.exe_path.is_some() && rule.open_ports.is_some());
    assert_eq!(everything.discovery.exclude.len(), 1);
    for key in keys(&everything) {
        assert!(text.contains(&format!("{key}:")), "{key} is not in the example");
    }
}

/// The names of the fields. A new one breaks the patterns, so that it is not forgotten here.
fn keys(config: &Config) -> [&'static str; 34] {
    let Config {
        log_level: _,
        listen: _,
        hooks: _,
        print: _,
        kernel_debug: _,
        export,
        discovery: _,
        spans: SpansConfig { redact_query: _, across_nodes: _ },
        routes: RoutesConfig { patterns: _, max_words: _ },
        gpu: GpuSection { enabled: _, library: _, interval: _, idle_interval: _, dcgm_names: _ },
        telemetry,
    } = config;
    let ExportConfig {
        endpoint: _,
        protocol: _,
        compression: _,
        headers: _,
        timeout: _,
        queue_spans: _,
        batch_spans: _,
        batch_bytes: _,
        batch_delay: _,
    } = export;
    let OtlpMetricsConfig { enabled: _, endpoint: _, interval: _ } = &telemetry.otlp_metrics;
    [
        "log_level",
        "listen",
        "hooks",
        "print",
        "kernel_debug",
        "export",
        "endpoint",
        "protocol",
        "compression",
        "headers",
        "timeout",
        "queue_spans",
        "batch_spans",
        "batch_bytes",
        "batch_delay",
        "discovery",
        "include",
        "exclude",
        "exe_path",
        "open_ports",
        "spans",
        "redact_query",
        "across_nodes",
        "routes",
        "patterns",
        "max_words",
        "gpu",
        "library",
        "idle_interval",
        "dcgm_names",
        "telemetry",
        "otlp_metrics",
        "enabled",
        "interval",
    ]
}

#[rstest]
#[case::unknown_key(
    "listen: 127.0.0.1:1\nlog_levl: info\n",
    "agent.yaml:2: log_levl: unknown field `log_levl`, expected one of log_level, listen, hooks, print, kernel_debug, \
     export, discovery, spans, routes, gpu, telemetry"
)]
#[case::unknown_key_in_a_section(
    "export:\n  endpoint: http://x:1\n  queue: 5\n",
    "agent.yaml:3: export.queue: unknown field `queue`, expected one of endpoint, protocol, compression, headers, \
     timeout, queue_spans, batch_spans, batch_bytes, batch_delay"
)]
#[case::bad_level(
    "log_level: loud",
    "agent.yaml:1: log_level: expected `error`, `warn`, `info`, `debug` or `trace`, found `loud`"
)]
#[case::bad_number(
    "export:\n  queue_spans: many",
    "agent.yaml:2: export.queue_spans: expected a whole number, at least 1, found `many`"
)]
#[case::zero(
    "export: {batch_spans: 0}",
    "agent.yaml:1: export.batch_spans: expected a whole number, at least 1, found `0`"
)]
#[case::no_unit(
    "export:\n  timeout: 10",
    "agent.yaml:2: export.timeout: expected a time with a unit such as `200ms`, `10s` or `5m`, found `10`"
)]
#[case::bad_endpoint(
    "export:\n  endpoint: https://tempo:4317",
    "agent.yaml:2: export.endpoint: expected an address such as `http://127.0.0.1:4317` (https is not built in), found \
     `https://tempo:4317`"
)]
#[case::bad_flag(
    "kernel_debug: yes please",
    "agent.yaml:1: kernel_debug: expected `true` or `false`, found `yes please`"
)]
#[case::in_a_list(
    "discovery:\n  exclude:\n    - exe_path: nginx\n    - open_ports: http\n",
    "agent.yaml:4: discovery.exclude[1].open_ports: expected ports such as `80`, `80,443` or `8000-8999`, found `http`"
)]
#[case::unbalanced_pattern(
    "discovery:\n  include:\n    - exe_path: 'a{b'\n",
    "agent.yaml:3: discovery.include[0].exe_path: expected a shell pattern such as `nginx`, `/usr/bin/python*` or \
     `*{ollama,immich}*`, found `a{b`"
)]
#[case::list_for_a_value("listen: [1]\n", "agent.yaml:1: listen: expected string scalar")]
#[case::value_for_a_section("export: 3\n", "agent.yaml:1: export: expected mapping start")]
#[case::value_for_a_list("discovery:\n  include: nginx\n", "agent.yaml:2: discovery.include: expected sequence start")]
#[case::twice("hooks: auto\nhooks: auto\n", "agent.yaml:2: expected `hooks` at most once")]
#[case::no_yaml("export: [\n", "agent.yaml:1: ")]
#[case::a_list("- 1\n", "agent.yaml:1: expected mapping start")]
fn mistakes_in_a_file_are_named(#[case] text: &str, #[case] expected: &str) {
    let error = of_file(text).unwrap_err();
    assert!(error.starts_with(expected), "{error}");
    assert!(!error.contains('\n'), "{error}");
}

#[rstest]
#[case::own(
    "COATI_AGENT_LISTEN",
    "here",
    "environment variable COATI_AGENT_LISTEN: expected an address with a port such as `127.0.0.1:9400`, found `here`"
)]
#[case::opentelemetry(
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "http/json",
    "environment variable OTEL_EXPORTER_OTLP_PROTOCOL: expected `grpc` or `http/protobuf`, found `http/json`"
)]
#[case::milliseconds(
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "10s",
    "environment variable OTEL_EXPORTER_OTLP_TIMEOUT: expected a whole number of milliseconds, at least 1, found `10s`"
)]
#[case::beyla(
    "BEYLA_TRACE_PRINTER",
    "counter",
    "environment variable BEYLA_TRACE_PRINTER: expected `text`, `json` or `disabled`, found `counter`"
)]
#[case::headers(
    "OTEL_EXPORTER_OTLP_HEADERS",
    "secret",
    "environment variable OTEL_EXPORTER_OTLP_HEADERS: expected headers such as `X-Scope-OrgID=home,Authorization=Basic%20abc`"
)]
#[case::regular_expression(
    "BEYLA_EXECUTABLE_NAME",
    "(a|b)",
    "environment variable BEYLA_EXECUTABLE_NAME: expected a part of an executable's path"
)]
fn mistakes_in_the_environment_are_named(#[case] name: &str, #[case] value: &str, #[case] expected: &str) {
    let error = of_environment(&[(name, value)]).unwrap_err();
    assert!(error.starts_with(expected), "{error}");
}

#[rstest]
#[case::headers("OTEL_EXPORTER_OTLP_HEADERS", "secret", "found `***`")]
#[case::endpoint("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:secret@tempo:4317", "found `***@tempo:4317`")]
#[case::own_endpoint("COATI_AGENT_OTLP_ENDPOINT", "http://secret@tempo:4317", "found `***@tempo:4317`")]
fn mistakes_are_named_without_secrets(#[case] name: &str, #[case] value: &str, #[case] found: &str) {
    let error = of_environment(&[(name, value)]).unwrap_err();
    assert!(error.contains(name) && error.ends_with(found), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn an_empty_variable_is_not_set() {
    let config = of_environment(&[("COATI_AGENT_LISTEN", ""), ("OTEL_EXPORTER_OTLP_ENDPOINT", "")]).unwrap();
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
}

#[rstest]
#[case::nothing(&[], "http://127.0.0.1:4317", Protocol::Grpc)]
#[case::http(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")], "http://127.0.0.1:4318/v1/traces", Protocol::HttpProtobuf)]
#[case::grpc_endpoint(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://tempo:4317")], "http://tempo:4317", Protocol::Grpc)]
#[case::http_by_its_port(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://tempo:4318")], "http://tempo:4318/v1/traces", Protocol::HttpProtobuf)]
#[case::http_by_its_path(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://gw/otlp/")], "http://gw/otlp/v1/traces", Protocol::HttpProtobuf)]
#[case::grpc_on_the_other_port(
    &[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://tempo:4318"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
    "http://tempo:4318",
    Protocol::Grpc
)]
#[case::whole_url(
    &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://tempo:4318/custom"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://x:1")],
    "http://tempo:4318/custom",
    Protocol::HttpProtobuf
)]
#[case::path_not_added_twice(&[("COATI_AGENT_OTLP_ENDPOINT", "http://t:4318/v1/traces")], "http://t:4318/v1/traces", Protocol::HttpProtobuf)]
#[case::own_first(
    &[("COATI_AGENT_OTLP_ENDPOINT", "http://a:4317"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://b:4317")],
    "http://a:4317",
    Protocol::Grpc
)]
fn endpoint_and_protocol(#[case] variables: &[(&str, &str)], #[case] endpoint: &str, #[case] protocol: Protocol) {
    let settings = of_environment(variables).unwrap().export_settings();
    assert_eq!((settings.endpoint.as_str(), settings.protocol), (endpoint, protocol));
}

#[test]
fn variables_of_opentelemetry() {
    let settings = of_environment(&[
        ("OTEL_EXPORTER_OTLP_HEADERS", "X-Scope-OrgID=home, authorization=Basic%20YTpi"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
    ])
    .unwrap()
    .export_settings();
    assert_eq!(settings.headers["X-Scope-OrgID"], "home");
    assert_eq!(settings.headers["authorization"], "Basic YTpi");
    assert_eq!(settings.timeout, Duration::from_millis(2500));
    assert_eq!(settings.compression, Compression::Gzip);
}

#[test]
fn variables_of_beyla() {
    let config = of_environment(&[
        ("BEYLA_OPEN_PORT", "80,8000-8999"),
        ("BEYLA_EXECUTABLE_NAME", "nginx"),
        ("BEYLA_TRACE_PRINTER", "json"),
        ("BEYLA_LOG_LEVEL", "WARN"),
        ("BEYLA_BPF_DEBUG", "true"),
    ])
    .unwrap();
    let [rule] = &config.selection().include[..] else { panic!("{config:?}") };
    assert_eq!(rule.open_ports, Ports::parse("80,8000-8999"));
    assert!(rule.exe_path.as_ref().unwrap().is_match("/usr/sbin/nginx-debug"));
    assert_eq!(config.print, Some(Format::Json));
    assert_eq!(config.log_level, LogLevel::Warn);
    assert!(config.kernel_debug);
}

#[test]
fn beylas_names_of_the_rules_are_understood() {
    let config =
        of_file("discovery:\n  instrument: [{open_ports: 80}]\n  exclude_instrument: [{exe_path: '*beyla*'}]\n");
    let selection = config.unwrap().selection();
    assert_eq!((selection.include.len(), selection.exclude.len()), (1, 1));
}

#[rstest]
#[case::off(&[], None)]
#[case::by_its_endpoint(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:4317")], Some("http://m:4317"))]
#[case::switched_on(&[("COATI_AGENT_OTLP_METRICS", "true"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://t:4317")], Some("http://t:4317"))]
#[case::switched_off(&[("COATI_AGENT_OTLP_METRICS", "false"), ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:4317")], None)]
fn own_metrics_are_sent_if_asked_for(#[case] variables: &[(&str, &str)], #[case] endpoint: Option<&str>) {
    let settings = of_environment(variables).unwrap().otlp_metrics(None);
    assert_eq!(settings.as_ref().map(|settings| settings.endpoint.as_str()), endpoint);
}

#[test]
fn every_prefix_of_a_file_is_taken_or_refused_in_one_line() {
    let text = "listen: 127.0.0.1:1\nexport:\n  headers: {a: 'b'}\ndiscovery:\n  include:\n    - exe_path: \"x*\"\n";
    for length in 0..=text.len() {
        if let Err(error) = of_file(text.get(..length).unwrap()) {
            assert!(error.starts_with(FILE) && !error.contains('\n'), "{error}");
        }
    }
}

proptest::proptest! {
    #[test]
    fn takes_any_text(text in ".*") {
        let _ = of_file(&text);
    }
}
