//! Files of Grafana Alloy.

use super::*;

#[test]
fn the_sample_block_of_alloy() {
    assert_snapshot!(shown(&of(BLOCK, "block.alloy").unwrap()), @r#"
    discovery: services:
    discovery: - k8s_namespace: frigate|ollama|immich|ntfy
    discovery: - k8s_namespace: frigate|ollama|immich|ntfy sampler:
    discovery: - k8s_namespace: frigate|ollama|immich|ntfy sampler: name: traceidratio
    discovery: - k8s_namespace: frigate|ollama|immich|ntfy sampler: ratio: 0.1
    discovery: exclude_services:
    discovery: - exe_path: .*alloy.*
    discovery: - k8s_namespace: "{kube-system,kube-node-lease,local-path-storage,grafana-alloy,cert-manager,monitoring,gke-*}"
    spans: sampling: sampler: always_on
    spans: sampling: keep_errors: false
    routes: patterns:
    routes: - /api/{id}
    routes: ignored_patterns:
    routes: - /metrics
    routes: - /health
    routes: ignore_mode: traces
    routes: wildcard_char: "*"
    metrics: - application_span
    metrics: - application_service_graph
    metrics: labels:
    metrics: - metrics: http_*
    metrics: - metrics: http_* include:
    metrics: - metrics: http_* - "*"
    metrics: - metrics: http_* exclude:
    metrics: - metrics: http_* - url_path
    ! block.alloy:6: discovery.survey: not supported: without rules every process is observed
    ! block.alloy:8: ebpf.context_propagation: not supported: nothing is put into requests; traces are linked by TCP positions and headers that are there
    ! block.alloy:8: ebpf.http_request_timeout: not supported: a request is over when its answer or its connection is
    ! block.alloy:11: metrics.network: not supported: flows are not counted
    ! block.alloy:13: output.traces: `otelcol.processor.batch.default.input` is not in this file: set `export.endpoint` to where it sends
    "#);
}

#[test]
fn a_whole_file_of_alloy() {
    assert_snapshot!(shown(&of(ALLOY, "node.alloy").unwrap()), @r#"
    export: endpoints:
    export: - endpoint: http://tempo.tracing:4317
    export: - endpoint: http://tempo.tracing:4317 name: tempo
    export: - endpoint: http://tempo.tracing:4317 protocol: grpc
    export: - endpoint: http://tempo.tracing:4317 headers:
    export: - endpoint: http://tempo.tracing:4317 headers: X-Scope-OrgID: home
    export: - endpoint: https://otlp.example.org/otlp
    export: - endpoint: https://otlp.example.org/otlp name: cloud
    export: - endpoint: https://otlp.example.org/otlp protocol: http/protobuf
    export: - endpoint: https://otlp.example.org/otlp headers:
    export: - endpoint: https://otlp.example.org/otlp headers: authorization: Basic JENMT1VEX1VTRVI6JENMT1VEX1BBU1NXT1JE
    export: - endpoint: https://otlp.example.org/otlp tls:
    export: - endpoint: https://otlp.example.org/otlp tls: ca_file: /etc/cloud/ca.pem
    export: - endpoint: https://otlp.example.org/otlp tls: insecure_skip_verify: false
    export: queue: directory: /var/lib/alloy/queue
    export: batch_spans: 512
    export: batch_delay: 1500ms
    discovery: services:
    discovery: - exe_path: ntfy|immich
    discovery: - exe_path: ntfy|immich k8s_namespace: ^home$
    discovery: - exe_path: ntfy|immich k8s_pod_labels:
    discovery: - exe_path: ntfy|immich k8s_pod_labels: app: photos.*
    discovery: - open_ports: "11434"
    discovery: - open_ports: "11434" sampler:
    discovery: - open_ports: "11434" sampler: name: parentbased_traceidratio
    discovery: - open_ports: "11434" sampler: ratio: 0.25
    discovery: - open_ports: 8080-8089
    discovery: exclude_services:
    discovery: - exe_path: .*alloy.*
    discovery: - k8s_namespace: "{kube-system,kube-node-lease,local-path-storage,grafana-alloy,cert-manager,monitoring,gke-*}"
    spans: attributes: exclude:
    spans: attributes: - url_query
    routes: patterns:
    routes: - /api/{id}
    routes: ignored_patterns:
    routes: - /metrics
    routes: - /health
    routes: unmatched: wildcard
    routes: wildcard_char: "*"
    ! node.alloy:79: otelcol.exporter.otlp.tempo.input.sending_queue.queue_size: not used: see `export.queue` and `export.queue_spans`
    ! node.alloy:89: otelcol.exporter.otlphttp.cloud.input.client.tls.min_version: not supported: TLS 1.2 or 1.3, with the library's own choice
    ! node.alloy:90: otelcol.exporter.otlphttp.cloud.input.client.tls.reload_interval: not needed: files are read when they change
    "#);
}

#[rstest]
#[case::no_block("a {}", "x.alloy:1: expected a block `beyla.ebpf`")]
#[case::syntax("a {\n  b = \n}", "x.alloy:3: expected a value")]
#[case::value(
    "beyla.ebpf \"a\" {\n  discovery {\n    services {\n      exe_path = \"(\"\n    }\n  }\n}",
    "x.alloy:4: discovery.services[0].exe_path: expected a regular expression"
)]
fn mistakes_in_alloy_are_named(#[case] text: &str, #[case] expected: &str) {
    let error = of(text, "x.alloy").unwrap_err();
    assert!(error.starts_with(expected), "{error}");
}

#[rstest]
#[case::one("", "", "endpoint: https://t:4317", None)]
#[case::files_of_tls(
    "tls {\n ca_file = \"/ca\"\n cert_file = \"/c\"\n key_file = \"/k\"\n server_name = \"x\"\n }",
    "",
    "tls:\n    ca_file: /ca\n    cert_file: /c\n    key_file: /k\n    server_name: x\n",
    None
)]
#[case::no_tls(
    "tls {\n insecure = true\n ca_file = \"/ca\"\n}",
    "",
    "endpoint: http://t:4317",
    Some("tls.ca_file: not used: the endpoint is one without TLS")
)]
#[case::pem(
    "tls {\n ca_pem = \"x\"\n}",
    "",
    "https://t",
    Some("tls.ca_pem: not supported: write it to a file and set `tls.ca_file`")
)]
#[case::basic(
    "auth = otelcol.auth.basic.a.handler",
    "otelcol.auth.basic \"a\" {\n username = \"u\"\n password = \"p\"\n}",
    "headers:\n    authorization: Basic dTpw\n",
    None
)]
#[case::basic_by_its_new_name(
    "auth = otelcol.auth.basic.a.handler",
    "otelcol.auth.basic \"a\" {\n client_auth {\n username = \"u\"\n password = \"p\"\n}\n}",
    "headers:\n    authorization: Basic dTpw\n",
    None
)]
#[case::basic_of_a_file(
    "auth = otelcol.auth.basic.a.handler",
    "local.file \"p\" { filename = \"/p\" }\notelcol.auth.basic \"a\" {\n username = \"u\"\n password = local.file.p.content\n}",
    "auth:\n    basic:\n      username: u\n      password_file: /p\n",
    None
)]
#[case::bearer(
    "auth = otelcol.auth.bearer.a.handler",
    "otelcol.auth.bearer \"a\" { token = env(\"T\") }",
    "headers:\n    authorization: Bearer $T\n",
    None
)]
#[case::bearer_of_a_file(
    "auth = otelcol.auth.bearer.a.handler",
    "local.file \"t\" { filename = \"/t\" }\notelcol.auth.bearer \"a\" { token = local.file.t.content }",
    "auth:\n    bearer:\n      token_file: /t\n",
    None
)]
#[case::another_scheme(
    "auth = otelcol.auth.bearer.a.handler",
    "otelcol.auth.bearer \"a\" {\n token = \"t\"\n scheme = \"Api-Key\"\n header = \"X-Key\"\n}",
    "headers:\n    x-key: Api-Key t\n",
    None
)]
#[case::headers(
    "auth = otelcol.auth.headers.a.handler",
    "otelcol.auth.headers \"a\" {\n header {\n key = \"X-Scope-OrgID\"\n value = \"home\"\n}\n}",
    "headers:\n    X-Scope-OrgID: home\n",
    None
)]
#[case::secret_of_elsewhere(
    "auth = otelcol.auth.bearer.a.handler",
    "otelcol.auth.bearer \"a\" { token = remote.vault.v.data.token }",
    "https://t",
    Some("auth: not translated, as its token is not in this file")
)]
#[case::another_auth(
    "auth = otelcol.auth.oauth2.a.handler",
    "otelcol.auth.oauth2 \"a\" { }",
    "https://t",
    Some("auth: `otelcol.auth.oauth2` is not supported: set `auth` or `headers`")
)]
fn exporters_of_alloy(
    #[case] client: &str,
    #[case] others: &str,
    #[case] expected: &str,
    #[case] warning: Option<&str>,
) {
    let text = format!(
        "beyla.ebpf \"b\" {{\n output {{ traces = [otelcol.exporter.otlp.e.input] }}\n}}\n\
         otelcol.exporter.otlp \"e\" {{\n client {{\n endpoint = \"t:4317\"\n {client}\n }}\n}}\n{others}\n"
    );
    let config = of(&text, "e.alloy").unwrap();
    let yaml = config.to_yaml();
    assert!(yaml.contains(expected), "{yaml}");
    match (&config.warnings[..], warning) {
        ([], None) => {}
        ([said], Some(expected)) => assert!(said.contains(expected), "{said}"),
        (said, _) => panic!("{said:?}"),
    }
}

#[rstest]
#[case::defaults("grpc { }\n http { }", Some("0.0.0.0:4317,0.0.0.0:4318"), 0)]
#[case::one("http {\n endpoint = \"127.0.0.1:14318\"\n}", Some("127.0.0.1:14318"), 0)]
#[case::metrics_too("grpc { }\n output {\n metrics = [a.b.input]\n traces = [a.b.input]\n}", Some("0.0.0.0:4317"), 1)]
#[case::nothing("", None, 0)]
fn receivers_of_alloy(#[case] body: &str, #[case] listen: Option<&str>, #[case] warnings: usize) {
    let text = format!("beyla.ebpf \"b\" {{\n output {{ }}\n}}\notelcol.receiver.otlp \"r\" {{\n {body}\n}}\n");
    let config = of(&text, "r.alloy").unwrap();
    assert_eq!(config.receive.listen.map(|listen| crate::config::value::Value::to_text(&listen)).as_deref(), listen);
    assert_eq!(config.warnings.len(), warnings, "{:?}", config.warnings);
}
