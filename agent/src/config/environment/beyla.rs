//! Variables of Beyla and OBI that mean nothing here.

use super::Environment;

/// What Beyla's own variables begin with, and OBI's.
pub(super) const PREFIXES: [&str; 2] = ["BEYLA_", "OTEL_EBPF_"];

const NOT_NEEDED: &str = "not needed: losses are counted by cause in `coati_agent_losses_total`";
const KUBERNETES: &str = "not supported: docs/kubernetes.md says what is asked for";
const HTTP_ONLY: &str = "not supported: only HTTP and gRPC are observed";
const FLOWS: &str = "not supported: flows are not counted";
const NO_INJECTION: &str = "not supported: nothing is ever put into other programs or requests";

/// Names behind the prefix, and what to use instead.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("AVOIDED_SERVICES", "not supported: use `discovery.exclude_instrument`"),
    ("BPF_BATCH_LENGTH", NOT_NEEDED),
    ("BPF_BATCH_TIMEOUT", NOT_NEEDED),
    ("BPF_BUFFER_SIZE_HTTP", "not needed: the first 1 KiB of every head and the ends of models' answers are copied"),
    ("BPF_BUFFER_SIZE_KAFKA", HTTP_ONLY),
    ("BPF_BUFFER_SIZE_MYSQL", HTTP_ONLY),
    ("BPF_BUFFER_SIZE_POSTGRES", HTTP_ONLY),
    ("BPF_CONTEXT_PROPAGATION", NO_INJECTION),
    ("BPF_DISABLE_BLACK_BOX_CP", "not supported: links come from TCP positions, and a header always wins"),
    ("BPF_ENABLE_CONTEXT_PROPAGATION", NO_INJECTION),
    ("BPF_HIGH_REQUEST_VOLUME", NOT_NEEDED),
    ("BPF_HTTP_REQUEST_TIMEOUT", "not supported: a request is over when its answer or its connection is"),
    ("BPF_INSTRUMENT_GPU", "use COATI_AGENT_GPU"),
    ("BPF_PROTOCOL_DEBUG", "not supported: use COATI_AGENT_PRINT=text"),
    ("BPF_REDIS_DB_CACHE_ENABLED", HTTP_ONLY),
    ("BPF_TC_BACKEND", "not needed: nothing is attached to interfaces"),
    ("BPF_TRACK_REQUEST_HEADERS", "not needed: `traceparent` is always read, and always wins"),
    ("BPF_WAKEUP_LEN", NOT_NEEDED),
    ("CHANNEL_BUFFER_LEN", NOT_NEEDED),
    ("DISCOVERY_POLL_INTERVAL", "not needed: processes are noticed when they start"),
    ("ENFORCE_SYS_CAPS", "not needed: the agent ends if it cannot capture; ask `coati-agent doctor`"),
    ("HEALTH_CHECK_PORT", "not needed: `/healthz` and `/readyz` are on `listen`"),
    ("HEURISTIC_SQL_DETECT", HTTP_ONLY),
    ("HOST_ID", "not supported: `host.id` is the node's machine id"),
    ("HOSTNAME", "not supported: `service.instance.id` is HOST:PID"),
    ("HOSTNAME_DNS_RESOLUTION", "not supported: `service.instance.id` is HOST:PID"),
    ("INTERNAL_METRICS_EXPORTER", "use COATI_AGENT_OTLP_METRICS"),
    ("INTERNAL_METRICS_PROMETHEUS_PATH", "not supported: the path is `/metrics`"),
    ("KUBE_DISABLE_INFORMERS", KUBERNETES),
    ("KUBE_META_CACHE_ADDRESS", KUBERNETES),
    ("KUBE_META_RESTRICT_LOCAL_NODE", KUBERNETES),
    ("KUBECONFIG_PATH", KUBERNETES),
    ("LOG_CONFIG", "not supported: use `coati-agent config print`"),
    ("METRICS_INTERVAL", "use OTEL_METRIC_EXPORT_INTERVAL, in milliseconds"),
    ("MIN_PROCESS_AGE", "not needed: processes are noticed when they start"),
    ("NAME_RESOLVER_SOURCES", "not supported: servers are called as their clients call them (`Host`)"),
    ("NETWORK_METRICS", FLOWS),
    ("NETWORK_PRINT_FLOWS", FLOWS),
    ("NETWORK_SOURCE", FLOWS),
    ("NODEJS_ENABLED", NO_INJECTION),
    ("OTEL_METRICS_INSTRUMENTATIONS", HTTP_ONLY),
    ("OTEL_TRACES_INSTRUMENTATIONS", HTTP_ONLY),
    ("OTEL_TRACES_REPORT_CACHE_LEN", "not needed"),
    ("OTLP_TRACES_MAX_QUEUE_SIZE", "use COATI_AGENT_EXPORT_QUEUE_SPANS"),
    ("PROFILE_PORT", "not supported"),
    ("PROMETHEUS_INSTRUMENTATIONS", HTTP_ONLY),
    ("PROMETHEUS_PATH", "not supported: the path is `/metrics`"),
    ("RENAME_UNRESOLVED_HOSTS", "not supported: addresses stay as they are"),
    ("SERVICE_NAMESPACE", "not supported for all processes: give a rule of `discovery.instrument` a `namespace`"),
    ("SHUTDOWN_TIMEOUT", "not needed: the agent sends what it has and ends within 5 s"),
    ("SKIP_GO_SPECIFIC_TRACERS", "not needed: Go programs are observed as all others"),
    ("SYSTEM_WIDE", "not needed: without rules every process is observed"),
    ("TOPOLOGY_SPANS", "not supported: use the service graph of coati-backend"),
];

/// Variables with a name of their own.
const OTHERS: &[(&str, &str)] = &[
    ("GRAFANA_CLOUD_API_KEY", "not supported: set `export.endpoint` and `export.headers`"),
    ("GRAFANA_CLOUD_INSTANCE_ID", "not supported: set `export.endpoint` and `export.headers`"),
    ("GRAFANA_CLOUD_SUBMIT", "not supported: set `export.endpoint` and `export.headers`"),
    ("GRAFANA_CLOUD_ZONE", "not supported: set `export.endpoint` and `export.headers`"),
];

/// A line for each of them that is set.
pub(super) fn warnings(environment: &Environment<'_>) -> Vec<String> {
    let is_set = |name: &str| (environment.variable)(name).is_some_and(|value| !value.is_empty());
    let prefixed =
        UNSUPPORTED.iter().flat_map(|(name, instead)| PREFIXES.map(|prefix| (format!("{prefix}{name}"), *instead)));
    let others = OTHERS.iter().map(|(name, instead)| ((*name).to_owned(), *instead));
    prefixed
        .chain(others)
        .filter(|(name, _)| is_set(name))
        .map(|(name, instead)| format!("environment variable {name}: {instead}"))
        .collect()
}
