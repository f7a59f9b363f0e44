mod alloy;

use insta::assert_snapshot;
use rstest::rstest;

use super::*;

const BEYLA: &str = include_str!("fixtures/beyla.yaml");
const BLOCK: &str = include_str!("fixtures/block.alloy");
const ALLOY: &str = include_str!("fixtures/alloy.alloy");

fn of(text: &str, name: &str) -> Result<Config, String> {
    file::of_text(text, Path::new(name), &|name| Some(format!("${name}"))).map_err(|error| error.to_string())
}

/// What differs from the defaults, and what is said.
fn shown(config: &Config) -> String {
    let default = Config::default().to_yaml();
    let (mut all, mut path): (String, Vec<&str>) = (String::new(), Vec::new());
    let yaml = config.to_yaml();
    for line in yaml.lines() {
        let depth = (line.len() - line.trim_start().len()) / 2;
        path.truncate(depth);
        path.push(line);
        let is_of_sections =
            ["discovery:", "routes:", "spans:", "export:", "metrics:", "telemetry:"].contains(&path[0]);
        if !default.lines().any(|other| other == line) && (is_of_sections || depth == 0) {
            all += &path.iter().map(|part| part.trim()).collect::<Vec<_>>().join(" ");
            all.push('\n');
        }
    }
    for warning in &config.warnings {
        all.extend(["! ", warning, "\n"]);
    }
    all
}

#[test]
fn the_sample_of_beyla() {
    assert_snapshot!(shown(&of(BEYLA, "beyla.yaml").unwrap()), @r#"
    listen: 0.0.0.0:9090
    export: endpoint: http://tempo:4318
    export: protocol: http/protobuf
    discovery: instrument:
    discovery: - k8s_namespace: "{frigate,ollama,immich,ntfy}"
    discovery: - open_ports: "11434"
    discovery: - open_ports: "11434" sampler:
    discovery: - open_ports: "11434" sampler: name: parentbased_traceidratio
    discovery: - open_ports: "11434" sampler: ratio: 0.1
    discovery: - open_ports: "11434" exports:
    discovery: - open_ports: "11434" - traces
    discovery: - open_ports: "11434" - metrics
    discovery: exclude_instrument:
    discovery: - k8s_container_name: istio-proxy
    discovery: - k8s_namespace: "{kube-system,kube-node-lease,local-path-storage,grafana-alloy,cert-manager,monitoring,gke-*}"
    spans: sampling: sampler: always_on
    spans: sampling: keep_errors: false
    routes: patterns:
    routes: - /api/{id}
    routes: - /v1/:x
    routes: ignored_patterns:
    routes: - /healthz
    routes: - /metrics
    routes: - /internal/*
    routes: ignore_mode: traces
    routes: wildcard_char: "*"
    routes: max_words: 10
    metrics: - application_span
    metrics: - application_service_graph
    metrics: - application_process
    metrics: - application_host
    metrics: labels:
    metrics: - metrics: http_server_request_duration
    metrics: - metrics: http_server_request_duration include:
    metrics: - metrics: http_server_request_duration - "*"
    metrics: - metrics: http_server_request_duration exclude:
    metrics: - metrics: http_server_request_duration - url.path
    metrics: - metrics: http_server_request_duration - client.address
    telemetry: otlp_metrics: enabled: true
    telemetry: otlp_metrics: endpoint: http://otelcol:4318
    telemetry: otlp_metrics: protocol: http/protobuf
    ! beyla.yaml:15: ebpf.high_request_volume: not needed: losses are counted by cause in `coati_agent_losses_total`
    ! beyla.yaml:16: ebpf.wakeup_len: not needed: losses are counted by cause in `coati_agent_losses_total`
    ! beyla.yaml:17: ebpf.buffer_sizes: not needed: the first 1 KiB of every head and the ends of models' answers are copied
    ! beyla.yaml:18: ebpf.payload_extraction: not needed: requests to models are recognised by themselves, from the ends of their bodies
    ! beyla.yaml:20: attributes.kubernetes.meta_restrict_local_node: not supported: docs/kubernetes.md says what is asked for and how names are made
    ! beyla.yaml:23: attributes.select.traces.include: not needed: spans have all attributes that there are; `spans.attributes.include` would leave out all others
    ! beyla.yaml:24: attributes.rename_unresolved_hosts: not supported: addresses stay as they are
    ! beyla.yaml:31: filter.network: not supported: flows are not counted
    ! beyla.yaml:32: name_resolver: not supported: servers are called as their clients call them (`Host`)
    ! beyla.yaml:33: metrics.features: not supported: network; docs/configuration.md lists what is
    ! beyla.yaml:35: otel_traces_export.instrumentations: only HTTP and gRPC are observed, not sql, redis, kafka, mqtt
    ! beyla.yaml:37: internal_metrics.prometheus.port: all metrics of the agent are on one port: `listen`
    ! beyla.yaml:37: internal_metrics.prometheus.path: not supported: the path is `/metrics`
    ! beyla.yaml:38: network: not supported: flows are not counted; use Cilium's Hubble or Beyla's network mode
    "#);
}

#[rstest]
#[case::ours("listen: 127.0.0.1:1\nprint: text", false)]
#[case::shared("log_level: info\ndiscovery: {}\nroutes: {}", false)]
#[case::beyla("ebpf: {}", true)]
#[case::target("open_port: 80", true)]
#[case::executable("executable_name: x", true)]
#[case::export("otel_traces_export: {}", true)]
#[case::both("ebpf: {}\nexport: {}", false)]
#[case::a_list("- ebpf", false)]
#[case::empty("", false)]
fn files_are_told_apart(#[case] text: &str, #[case] expected: bool) {
    assert_eq!(is_beyla(text, Path::new("b.yaml")).unwrap(), expected);
}

#[rstest]
#[case::level(
    "trace_printer: text\nlog_level: loud",
    "b.yaml:2: log_level: expected `error`, `warn`, `info`, `debug` or `trace`, found `loud`"
)]
#[case::pattern(
    "ebpf: {}\ndiscovery:\n  services:\n    - exe_path: a\n    - exe_path_regexp: '(b'\n",
    "b.yaml:5: discovery.services[1].exe_path_regexp: expected a regular expression such as `nginx`, `/python3?$` or \
     `ollama|immich`, found `(b`"
)]
#[case::label(
    "ebpf: {}\ndiscovery:\n  instrument:\n    - k8s_pod_labels:\n        app: 'a{'\n",
    "b.yaml:5: discovery.instrument[0].k8s_pod_labels: expected a shell pattern such as `nginx`"
)]
#[case::no_yaml("open_port: 1\nebpf: [\n", "b.yaml:")]
#[case::port("open_port: http", "b.yaml:1: open_port: expected ports such as")]
#[case::endpoint(
    "otel_traces_export:\n  endpoint: tempo:4317\n",
    "b.yaml:2: otel_traces_export.endpoint: expected an address"
)]
#[case::time(
    "otel_traces_export: {batch_timeout: 5}",
    "b.yaml:1: otel_traces_export.batch_timeout: expected a time with a unit"
)]
#[case::sampler(
    "otel_traces_export:\n  sampler:\n    name: magic\n",
    "b.yaml:3: otel_traces_export.sampler.name: expected `always_on`"
)]
fn mistakes_are_named_as_they_are_written(#[case] text: &str, #[case] expected: &str) {
    let error = of(text, "b.yaml").unwrap_err();
    assert!(error.starts_with(expected), "{error}");
}

#[rstest]
#[case::unknown("ebpf: {new_thing: 1}", "b.yaml:1: ebpf.new_thing: no such key of Beyla is known, so it is ignored")]
#[case::unknown_at_the_top(
    "ebpf: {}\nnew_thing: 1",
    "b.yaml:2: new_thing: no such key of Beyla is known, so it is ignored"
)]
#[case::unknown_condition(
    "ebpf: {}\ndiscovery: {instrument: [{exe_path: a, k8s_zone: b}]}",
    "b.yaml:2: discovery.instrument[0].k8s_zone: no such condition is known, so the rule is used without it"
)]
#[case::a_feature_of_a_rule(
    "ebpf: {}\ndiscovery: {instrument: [{exe_path: a, exports: [metrics], metrics: {features: [application, network]}}]}",
    "b.yaml:2: discovery.instrument[0].metrics.features: not supported: network"
)]
#[case::labels_of_a_service(
    "attributes: {select: {http_*: {exclude: [k8s_pod_name]}}}",
    "b.yaml:1: attributes.select.http_*.exclude: labels that name the service"
)]
#[case::injection(
    "ebpf: {context_propagation: all}",
    "b.yaml:1: ebpf.context_propagation: not supported: nothing is put into"
)]
#[case::whole_subtree(
    "network: {enable: true, cidrs: [10.0.0.0/8]}",
    "b.yaml:1: network: not supported: flows are not counted"
)]
#[case::printer("trace_printer: counter", "b.yaml:1: trace_printer: `counter` is not supported")]
#[case::name("service_name: a", "b.yaml:1: service_name: names the one service that is observed")]
#[case::filter(
    "filter: {application: {server_port: {match: '80'}}}",
    "b.yaml:1: filter.application.server_port.match: not supported"
)]
#[case::path(
    "otel_traces_export: {endpoint: 'http://gw:4318/own'}",
    "b.yaml:1: otel_traces_export.endpoint: `/v1/traces` is added"
)]
#[case::no_section("ebpf: {}\nroutes: 7", "b.yaml:2: routes: expected a section, so it is ignored")]
#[case::no_rule("ebpf: {}\ndiscovery: {services: [nginx]}", "b.yaml:2: discovery.services[0]: expected a section")]
#[case::no_sampler(
    "ebpf: {}\notel_traces_export: {sampler: always_on}",
    "b.yaml:2: otel_traces_export.sampler: expected a section"
)]
#[case::variable("open_port: ${}80", "b.yaml:1: the variable  is not set")]
fn what_is_not_supported_is_said(#[case] text: &str, #[case] expected: &str) {
    let config = file::of_text(text, Path::new("b.yaml"), &|_| None).unwrap();
    let [warning] = &config.warnings[..] else { panic!("{:?}", config.warnings) };
    assert!(warning.starts_with(expected), "{warning}");
}

#[rstest]
#[case::same("ebpf: {track_request_headers: true, context_propagation: disabled}", "")]
#[case::single_target("open_port: 80\nexecutable_name: ng.*x", "- exe_path: ng.*x\n    open_ports: \"80\"\n")]
#[case::single_target_and_rules(
    "open_port: 80\nservice_name: a\ndiscovery: {services: [{exe_path: b}]}",
    "services:\n  - exe_path: b\n  - name: a\n    open_ports: \"80\"\n"
)]
#[case::ports("open_port: 80,8000-8999", "open_ports: 80,8000-8999")]
#[case::grpc("otel_traces_export: {endpoint: 'http://t:14317'}", "protocol: grpc")]
#[case::guessed("otel_traces_export: {endpoint: 'http://t:80'}", "protocol: http/protobuf")]
#[case::said("otel_traces_export: {protocol: grpc, endpoint: 'http://t:80'}", "protocol: grpc")]
#[case::said_below("otel_traces_export: {endpoint: 'http://t:80', protocol: grpc}", "protocol: grpc")]
#[case::delay("otel_traces_export: {batch_timeout: 1m0.5s}", "batch_delay: 60500ms")]
#[case::left_out("ebpf: {}", "k8s_namespace: \"{kube-system,")]
#[case::nothing_left_out("ebpf: {}\ndiscovery: {default_exclude_instrument: []}", "default_exclude_instrument: []")]
#[case::ids("ebpf: {}", "wildcard_char: \"*\"")]
#[case::words("ebpf: {}\nroutes: {max_path_segment_cardinality: 10}", "max_words: 10")]
#[case::own_metrics("otel_metrics_export: {endpoint: 'http://m:4317', interval: 30s}", "interval: 30s")]
#[case::filter("filter: {application: {url_path: {not_match: '/internal/*'}}}", "ignored_patterns:\n  - /internal/*\n")]
#[case::filter_and_routes(
    "routes: {ignored_patterns: [/a]}\nfilter: {application: {url.path: {not_match: /b}}}",
    "ignored_patterns:\n  - /a\n  - /b\n"
)]
#[case::excluded_attributes("attributes: {select: {traces: {exclude: [url_query]}}}", "exclude:\n    - url_query\n")]
fn translations(#[case] text: &str, #[case] expected: &str) {
    let yaml = of(text, "b.yaml").unwrap().to_yaml();
    assert!(yaml.contains(expected), "{yaml}");
}

#[rstest]
#[case("1s", Some(1000))]
#[case("1m30s", Some(90_000))]
#[case("1.5h", Some(5_400_000))]
#[case("250ms", Some(250))]
#[case("10us", Some(1))]
#[case("5", None)]
#[case("s", None)]
#[case("5d", None)]
#[case("1s5", None)]
#[case("-1s", None)]
#[case("1e400s", None)]
fn times_of_go(#[case] text: &str, #[case] ms: Option<u64>) {
    assert_eq!(duration(text), ms.map(std::time::Duration::from_millis));
}

#[rstest]
#[case::secure("https://t:4317", true, 0)]
#[case::plain("http://t:4317", false, 1)]
fn a_certificate_that_is_not_checked(#[case] endpoint: &str, #[case] skips: bool, #[case] warnings: usize) {
    let text = format!("otel_traces_export: {{endpoint: '{endpoint}', insecure_skip_verify: true}}");
    let config = of(&text, "b.yaml").unwrap();
    assert_eq!(config.export.tls.is_some_and(|tls| tls.insecure_skip_verify), skips);
    assert_eq!(config.warnings.len(), warnings, "{:?}", config.warnings);
}

#[test]
fn every_known_key_has_its_section() {
    for (key, _) in beyla::KEYS {
        if let Some((section, _)) = key.rsplit_once('.') {
            let is_section = |(name, meaning): &(&str, beyla::Meaning)| {
                *name == section && matches!(meaning, beyla::Meaning::Section)
            };
            assert!(beyla::KEYS.iter().any(is_section), "{key}");
        }
        assert_eq!(beyla::KEYS.iter().filter(|(name, _)| name == key).count(), 1, "{key}");
    }
}

#[test]
fn takes_every_prefix() {
    for (text, name) in [(BEYLA, "b.yaml"), (ALLOY, "a.alloy"), (BLOCK, "b.alloy")] {
        for length in (0..=text.len()).filter(|length| text.is_char_boundary(*length)) {
            if let Err(error) = of(text.get(..length).unwrap(), name) {
                assert!(error.starts_with(name) && !error.contains('\n'), "{error}");
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn takes_any_yaml(text in "[a-z_:{}\\[\\] \n,0-9'*-]{0,80}") {
        crate::config::translate_any(&format!("ebpf: {{}}\n{text}"), "b.yaml");
    }
}

/// What Beyla says of single services, and of labels, in the order in which it counts.
#[test]
fn metrics_of_single_services_and_labels() {
    let text = "discovery:
  instrument:
    - {exe_path: a, exports: [metrics], metrics: {features: [application_span, application_service_graph]}}
    - {exe_path: b, exports: [traces]}
attributes:
  select:
    http_server_request_duration: {exclude: [http.route]}
    global: {exclude: [server.*]}
";
    let config = of(text, "b.yaml").unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let [a, b] = &config.selection().include[..] else { panic!() };
    let (a, b) = (a.treatment.exports, b.treatment.exports);
    assert!(!a.traces && a.metrics && b.traces && !b.metrics && b.features.is_none());
    let features: Vec<_> = a.features.unwrap().iter().collect();
    assert_eq!(features, [crate::metrics::Feature::ApplicationSpan, crate::metrics::Feature::ApplicationServiceGraph]);
    let of_metrics: Vec<_> = config.metrics.labels.iter().map(|labels| labels.metrics.pattern().to_string()).collect();
    assert_eq!(of_metrics, ["*", "http_server_request_duration"]);
}
