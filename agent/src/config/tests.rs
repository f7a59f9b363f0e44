use std::collections::HashMap;

use rstest::rstest;

use super::*;
use crate::{
    discover::Ports,
    export::{Auth, Compression, Protocol},
};

#[path = "schema_tests.rs"]
mod schema_tests;

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

const EXAMPLE: &str = include_str!("../../../deploy/agent.yaml");

/// What has no default stands in a comment; with the marks taken away it must be valid too.
fn example_with_everything() -> String {
    EXAMPLE.replace("#~ ", "").replace(": {}\n", ":\n").replace(": []\n", ":\n").replace(": null\n", ":\n")
}

#[test]
fn the_example_file_has_every_key_and_its_default() {
    assert_eq!(format!("{:?}", of_file(EXAMPLE).unwrap()), format!("{:?}", Config::default()));
    let text = example_with_everything();
    let everything = of_file(&text).unwrap();
    let [rule] = &everything.discovery.instrument[..] else { panic!("{everything:?}") };
    assert!(rule.k8s_pod_labels.len() == 1 && rule.sampler.is_some());
    assert_eq!(everything.export_settings().endpoints.len(), 2);
    // Every key is set: what is written of it has as many keys as the schema.
    let written = serde_json::to_value(&everything).unwrap();
    for path in schema_tests::keys(&schema_tests::schema()) {
        let pointer = format!("/{}", path.replace('.', "/")).replace("[]", "/0");
        assert!(
            schema_tests::is_shown_elsewhere(&path) || written.pointer(&pointer).is_some(),
            "{path} is not in the example"
        );
    }
}

#[test]
fn what_is_written_is_read_as_the_same() {
    for text in ["", &example_with_everything()] {
        let yaml = of_file(text).unwrap().to_yaml();
        assert_eq!(of_file(&yaml).unwrap().to_yaml(), yaml);
    }
    assert_eq!(format!("{:?}", of_file(&Config::default().to_yaml()).unwrap()), format!("{:?}", Config::default()));
}

#[test]
fn secrets_are_not_shown() {
    let config = of_file(
        "export: {headers: {authorization: Bearer abc}, endpoints: [{endpoint: 'http://a:1', headers: {x: abc}}]}",
    )
    .unwrap();
    assert!(config.to_yaml().contains("Bearer abc") && config.to_yaml().contains("x: abc"));
    assert!(!format!("{config:?}").contains("abc"));
    let shown = config.redacted().to_yaml();
    assert!(shown.contains("authorization: \"***\"") && !shown.contains("abc"), "{shown}");
}

#[rstest]
#[case::unknown_key(
    "listen: 127.0.0.1:1\nlog_levl: info\n",
    "agent.yaml:2: log_levl: unknown field `log_levl`, expected one of log_level, listen, hooks, tls, cuda, print, \
     kernel_debug, export, receive, discovery, spans, routes, gpu, inference, kubernetes, metrics, telemetry"
)]
#[case::unknown_key_in_a_section(
    "export:\n  endpoint: http://x:1\n  queues: 5\n",
    "agent.yaml:3: export.queues: unknown field `queues`, expected one of endpoint, protocol, compression, headers, \
     timeout, tls, auth, endpoints, queue, queue_spans, batch_spans, batch_bytes, batch_delay"
)]
#[case::relative_path(
    "export:\n  queue: {directory: here}",
    "agent.yaml:2: export.queue.directory: expected an absolute path, found `here`"
)]
#[case::bad_fsync(
    "export:\n  queue:\n    fsync: sometimes",
    "agent.yaml:3: export.queue.fsync: expected `always`, `never`, or a time such as `1s`, found `sometimes`"
)]
#[case::unknown_auth("export:\n  auth:\n    digest: x", "agent.yaml:3: export.auth")]
#[case::password_in_the_file("export:\n  auth:\n    basic: {username: a, password: b}", "agent.yaml:3: export.auth")]
#[case::endpoint_without_its_address("export:\n  endpoints:\n    - name: a\n", "agent.yaml:3: export.endpoints[0]")]
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
    "export:\n  endpoint: tempo:4317",
    "agent.yaml:2: export.endpoint: expected an address such as `http://127.0.0.1:4317` or \
     `https://tempo.example:4317`, found `tempo:4317`"
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
#[case::unbalanced_expression(
    "discovery:\n  services:\n    - k8s_pod_labels: {app: '(a'}\n",
    "agent.yaml:3: discovery.services[0].k8s_pod_labels.app: expected a regular expression such as `nginx`, `/python3?$` or \
     `ollama|immich`, found `(a`"
)]
#[case::process_ids(
    "discovery:\n  services:\n    - target_pids: [1, x]\n",
    "agent.yaml:3: discovery.services[0].target_pids: expected process ids such as `17` or `17,4711`, found `1,x`"
)]
#[case::unknown_condition(
    "discovery:\n  instrument:\n    - exe: nginx\n",
    "agent.yaml:3: discovery.instrument[0].exe: unknown field `exe`, expected one of name, namespace, exe_path, "
)]
#[case::sampler(
    "spans:\n  sampling: {sampler: ratio}\n",
    "agent.yaml:2: spans.sampling.sampler: expected `always_on`, `always_off`, `traceidratio`, `parentbased_always_on`, \
     `parentbased_always_off` or `parentbased_traceidratio`, found `ratio`"
)]
#[case::ratio(
    "spans: {sampling: {ratio: 10}}",
    "agent.yaml:1: spans.sampling.ratio: expected a number from 0 to 1, found `10`"
)]
#[case::sampler_of_a_rule(
    "discovery:\n  services:\n    - sampler: {name: traceidratio, arg: 7}\n",
    "agent.yaml:3: discovery.services[0].sampler.arg: expected a number from 0 to 1, found `7`"
)]
#[case::exports("discovery:\n  services:\n    - exports: [logs]\n", "agent.yaml:3: discovery.services[0].exports[0]: ")]
#[case::header_pattern(
    "spans: {request_headers: ['{']}",
    "agent.yaml:1: spans.request_headers[0]: expected a shell pattern such as `nginx`, `/usr/bin/python*` or \
     `*{ollama,immich}*`, found `{`"
)]
#[case::ignore_mode(
    "routes: {ignore_mode: none}",
    "agent.yaml:1: routes.ignore_mode: expected `all`, `traces` or `metrics`, found `none`"
)]
#[case::unmatched(
    "routes: {unmatched: guess}",
    "agent.yaml:1: routes.unmatched: expected `heuristic`, `wildcard`, `path`, `unset` or `low-cardinality`, found `guess`"
)]
#[case::wildcard(
    "routes: {wildcard_char: a/b}",
    "agent.yaml:1: routes.wildcard_char: expected a text of 1 to 16 characters without a slash such as `{id}` or `*`, \
     found `a/b`"
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
    "xml",
    "environment variable BEYLA_TRACE_PRINTER: expected `text`, `json`, `json_indent`, `counter` or `disabled`, found `xml`"
)]
#[case::headers(
    "OTEL_EXPORTER_OTLP_HEADERS",
    "secret",
    "environment variable OTEL_EXPORTER_OTLP_HEADERS: expected headers such as `X-Scope-OrgID=home,Authorization=Basic%20abc`"
)]
#[case::regular_expression(
    "BEYLA_EXECUTABLE_NAME",
    "(a|b",
    "environment variable BEYLA_EXECUTABLE_NAME: expected a regular expression"
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
    let settings = of_environment(variables).unwrap().export_settings().endpoints.remove(0);
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
    .export_settings()
    .endpoints
    .remove(0);
    assert_eq!(settings.headers["X-Scope-OrgID"].reveal(), "home");
    assert_eq!(settings.headers["authorization"].reveal(), "Basic YTpi");
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
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(rule.open_ports, Ports::parse("80,8000-8999"));
    assert!(rule.exe_path.as_ref().unwrap().is_match("/usr/sbin/nginx-debug"));
    assert_eq!(config.print, Some(Format::Json));
    assert_eq!(config.log_level, LogLevel::Warn);
    assert!(config.kernel_debug);
}

/// What is set, what comes of it, and what is said.
#[rstest]
#[case::glob(&[("BEYLA_AUTO_TARGET_EXE", "*/ollama")], "exe_path: \"*/ollama\"", None)]
#[case::go(&[("OTEL_GO_AUTO_TARGET_EXE", "/app/shop")], "exe_path: /app/shop", None)]
#[case::regex(&[("BEYLA_EXECUTABLE_NAME", "ollama|ntfy")], "exe_path: ollama|ntfy", None)]
#[case::language(&[("OTEL_EBPF_AUTO_TARGET_LANGUAGE", "{go,java}")], "languages: \"{go,java}\"", None)]
#[case::process(&[("BEYLA_TARGET_PID", "17,18")], "target_pids: 17,18", None)]
#[case::name(&[("BEYLA_OPEN_PORT", "80"), ("OTEL_SERVICE_NAME", "shop")], "name: shop", None)]
#[case::name_of_nobody(&[("OTEL_SERVICE_NAME", "shop")], "instrument: []", Some("OTEL_SERVICE_NAME: names the one service"))]
#[case::sampler(&[("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")], "sampler: parentbased_traceidratio", None)]
#[case::ratio(&[("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")], "ratio: 0.25", None)]
#[case::own_ratio(&[("COATI_AGENT_TRACES_SAMPLER_ARG", "0.25")], "ratio: 0.25", None)]
#[case::ratio_of_nothing(&[("OTEL_TRACES_SAMPLER_ARG", "0.25")], "ratio: 1.0", Some("not used without OTEL_TRACES_SAMPLER"))]
#[case::no_ratio(
    &[("OTEL_TRACES_SAMPLER", "always_on"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")],
    "sampler: always_on",
    Some("spans.sampling.ratio: not used by the sampler `always_on`")
)]
#[case::port(&[("BEYLA_PROMETHEUS_PORT", "9090")], "listen: 0.0.0.0:9090", None)]
#[case::ports(
    &[("BEYLA_PROMETHEUS_PORT", "9090"), ("BEYLA_INTERNAL_METRICS_PROMETHEUS_PORT", "6060")],
    "listen: 0.0.0.0:9090",
    None
)]
#[case::printer(&[("BEYLA_TRACE_PRINTER", "counter")], "print: disabled", Some("`counter` is not supported"))]
#[case::printer_json(&[("BEYLA_TRACE_PRINTER", "json_indent")], "print: json", Some("it is `json`"))]
#[case::unsupported(&[("BEYLA_BPF_WAKEUP_LEN", "500")], "", Some("BEYLA_BPF_WAKEUP_LEN: not needed"))]
#[case::unsupported_here_too(&[("OTEL_EBPF_NETWORK_METRICS", "true")], "", Some("OTEL_EBPF_NETWORK_METRICS: not supported"))]
#[case::cloud(&[("GRAFANA_CLOUD_ZONE", "eu")], "", Some("GRAFANA_CLOUD_ZONE: not supported"))]
fn more_variables_of_beyla(#[case] variables: &[(&str, &str)], #[case] written: &str, #[case] warning: Option<&str>) {
    let config = of_environment(variables).unwrap();
    let yaml = config.to_yaml();
    assert!(yaml.contains(written), "{yaml}");
    match (&config.warnings[..], warning) {
        ([], None) => {}
        ([one], Some(expected)) => assert!(one.contains(expected), "{one}"),
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case::set("listen: ${ADDRESS}:1", "listen: 10.0.0.1:1", &[])]
#[case::twice("listen: ${ADDRESS}:${PORT:-7}", "listen: 10.0.0.1:7", &[])]
#[case::default_not_used("listen: ${ADDRESS:-x}:1", "listen: 10.0.0.1:1", &[])]
#[case::unset("a\nx${NAME}y\n", "a\nxy\n", &["agent.yaml:2: the variable NAME is not set"])]
#[case::comment("# ${NAME}\n  # ${NAME}", "# ${NAME}\n  # ${NAME}", &[])]
#[case::open("a: ${NAME", "a: ${NAME", &[])]
#[case::dollars("a: $NAME $$ {b}", "a: $NAME $$ {b}", &[])]
fn variables_in_a_file(#[case] text: &str, #[case] expected: &str, #[case] unset: &[&str]) {
    let variable = |name: &str| (name == "ADDRESS").then(|| "10.0.0.1".to_owned());
    let (expanded, warnings) = file::expand(text, Path::new(FILE), &variable);
    assert_eq!(
        (expanded.as_str(), &warnings[..]),
        (expected, &unset.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>()[..])
    );
}

#[test]
fn beylas_names_of_the_rules_are_understood() {
    let config =
        of_file("discovery:\n  instrument: [{open_ports: 80}]\n  exclude_instrument: [{exe_path: '*beyla*'}]\n");
    let selection = config.unwrap().selection();
    assert_eq!((selection.include.len(), selection.exclude.len()), (1, 2), "one rule is there by itself");
}

#[rstest]
#[case::off(&[], None)]
#[case::by_its_endpoint(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:4317")], Some("http://m:4317"))]
#[case::switched_on(&[("COATI_AGENT_OTLP_METRICS", "true"), ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://t:4317")], Some("http://t:4317"))]
#[case::switched_off(&[("COATI_AGENT_OTLP_METRICS", "false"), ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:4317")], None)]
fn own_metrics_are_sent_if_asked_for(#[case] variables: &[(&str, &str)], #[case] endpoint: Option<&str>) {
    let settings = of_environment(variables).unwrap().otlp_metrics();
    assert_eq!(settings.as_ref().map(|settings| settings.endpoint.endpoint.as_str()), endpoint);
}

#[test]
fn several_endpoints_share_no_secrets() {
    let config = of_file(
        "export:\n  endpoint: http://ignored:1\n  headers: {authorization: secret}\n  timeout: 3s\n  endpoints:\n    \
         - endpoint: https://a:4318\n      auth: {bearer: {token_file: /token}}\n    \
         - {endpoint: 'http://b:4317', name: second, timeout: 5s, compression: none, headers: {x: other}}\n",
    )
    .unwrap();
    let settings = config.export_settings();
    let [first, second] = &settings.endpoints[..] else { panic!("{settings:?}") };
    assert_eq!((first.name.as_str(), first.endpoint.as_str()), ("a:4318", "https://a:4318/v1/traces"));
    assert_eq!((first.timeout, first.headers.len()), (Duration::from_secs(3), 0));
    assert_eq!(first.auth, Auth::Bearer { token_file: "/token".into() });
    assert_eq!((second.name.as_str(), second.endpoint.as_str()), ("second", "http://b:4317"));
    assert_eq!((second.timeout, second.compression), (Duration::from_secs(5), Compression::None));
    assert_eq!((second.auth.clone(), second.headers["x"].reveal()), (Auth::None, "other"));
    assert!(!format!("{config:?}{settings:?}").contains("secret"));
}

#[test]
fn an_endpoint_of_the_environment_replaces_the_list_of_the_file() {
    let mut config =
        of_file("export:\n  endpoints: [{endpoint: 'http://a:4317'}, {endpoint: 'http://b:4317'}]\n").unwrap();
    let variable = |name: &str| (name == "OTEL_EXPORTER_OTLP_ENDPOINT").then(|| "http://c:4317".to_owned());
    environment::apply(&mut config, &variable).unwrap();
    let endpoints: Vec<_> = config.export_settings().endpoints.into_iter().map(|endpoint| endpoint.endpoint).collect();
    assert_eq!(endpoints, ["http://c:4317"]);
}

#[rstest]
#[case::none(&[], None)]
#[case::of_systemd(&[("STATE_DIRECTORY", "/var/lib/coati:/var/lib/other")], Some("/var/lib/coati/export-queue"))]
#[case::own(&[("STATE_DIRECTORY", "/var/lib/coati"), ("COATI_AGENT_EXPORT_QUEUE_DIRECTORY", "/q")], Some("/q"))]
fn where_requests_wait(#[case] variables: &[(&str, &str)], #[case] directory: Option<&str>) {
    let settings = of_environment(variables).unwrap().export_settings();
    assert_eq!(settings.queue.map(|queue| queue.directory), directory.map(PathBuf::from));
}

#[rstest]
#[case::https("https://tempo:4317", true)]
#[case::http("http://tempo:4317", false)]
fn certificates_by_the_variables_of_opentelemetry(#[case] endpoint: &str, #[case] are_used: bool) {
    let config = of_environment(&[
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/cert.pem"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
        ("BEYLA_OTEL_INSECURE_SKIP_VERIFY", "true"),
    ])
    .unwrap();
    let tls = config.export_settings().endpoints.remove(0).tls;
    assert_eq!((tls.is_some(), config.warnings.is_empty()), (are_used, are_used), "{:?}", config.warnings);
    if let Some(tls) = tls {
        let files = [tls.ca_file, tls.cert_file, tls.key_file].map(Option::unwrap);
        assert_eq!(files, ["/ca.pem", "/cert.pem", "/key.pem"].map(PathBuf::from));
        assert!(tls.insecure_skip_verify);
    }
}

#[test]
fn what_a_list_of_endpoints_makes_useless_is_said() {
    let mut config = of_file("export: {endpoints: [{endpoint: 'http://a:1'}]}").unwrap();
    environment::apply(&mut config, &|name| (name == "OTEL_EXPORTER_OTLP_HEADERS").then(|| "a=b".to_owned())).unwrap();
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
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
