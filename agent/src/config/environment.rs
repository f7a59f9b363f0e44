//! The environment: the agent's own variables, those of OpenTelemetry, and Beyla's where they mean the same.

use std::time::Duration;

use globset::GlobMatcher;
use percent_encoding::percent_decode_str;

use super::{Config, ConfigError, Endpoint, RuleConfig, value::Value};
use crate::discover::Ports;

/// Applies the variables that are set and not empty.
pub(super) fn apply(config: &mut Config, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
    let environment = Environment { variable };
    let Config { log_level, listen, hooks, print, kernel_debug, export, discovery, spans, routes: _, gpu, telemetry } =
        config;

    environment.set(log_level, &["COATI_AGENT_LOG_LEVEL", "OTEL_EBPF_LOG_LEVEL", "BEYLA_LOG_LEVEL"])?;
    environment.set(listen, &["COATI_AGENT_LISTEN"])?;
    environment.set(hooks, &["COATI_AGENT_HOOKS"])?;
    environment.set(print, &["COATI_AGENT_PRINT", "OTEL_EBPF_TRACE_PRINTER", "BEYLA_TRACE_PRINTER"])?;
    environment.set(kernel_debug, &["COATI_AGENT_KERNEL_DEBUG", "OTEL_EBPF_BPF_DEBUG", "BEYLA_BPF_DEBUG"])?;

    let own = environment.get::<Endpoint>(&["COATI_AGENT_OTLP_ENDPOINT"])?;
    // OTLP adds no path to the address of one signal.
    let of_traces = environment
        .get(&["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])?
        .map(|endpoint: Endpoint| Endpoint { is_whole: true, ..endpoint });
    let of_all = environment.get(&["OTEL_EXPORTER_OTLP_ENDPOINT"])?;
    if let Some(endpoint) = own.or(of_traces).or(of_all) {
        export.endpoint = Some(endpoint);
    }
    environment.set(
        &mut export.protocol,
        &["COATI_AGENT_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"],
    )?;
    environment.set(
        &mut export.compression,
        &["COATI_AGENT_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "OTEL_EXPORTER_OTLP_COMPRESSION"],
    )?;
    let headers = ["COATI_AGENT_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"];
    if let Some(Headers(headers)) = environment.get(&headers)? {
        export.headers = headers.into_iter().collect();
    }
    let timeouts = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
    if let Some(Milliseconds(timeout)) = environment.get(&timeouts)? {
        export.timeout = timeout;
    }
    environment.set(&mut export.timeout, &["COATI_AGENT_OTLP_TIMEOUT"])?;
    environment.set(&mut export.queue_spans, &["COATI_AGENT_EXPORT_QUEUE_SPANS"])?;

    let executables = ["COATI_AGENT_INCLUDE_EXE_PATH", "OTEL_EBPF_AUTO_TARGET_EXE", "BEYLA_AUTO_TARGET_EXE"];
    let exe_path = environment.get::<GlobMatcher>(&executables)?;
    let part_of_path = environment.get::<PartOfPath>(&["OTEL_EBPF_EXECUTABLE_NAME", "BEYLA_EXECUTABLE_NAME"])?;
    let exe_path = exe_path.or(part_of_path.map(|PartOfPath(pattern)| pattern));
    let open_ports =
        environment.get::<Ports>(&["COATI_AGENT_INCLUDE_OPEN_PORTS", "OTEL_EBPF_OPEN_PORT", "BEYLA_OPEN_PORT"])?;
    if exe_path.is_some() || open_ports.is_some() {
        discovery.include = vec![RuleConfig { exe_path, open_ports }];
    }
    if let Some(pattern) = environment.get::<GlobMatcher>(&["COATI_AGENT_EXCLUDE_EXE_PATH"])? {
        discovery.exclude = vec![RuleConfig { exe_path: Some(pattern), open_ports: None }];
    }

    environment.set(&mut spans.redact_query, &["COATI_AGENT_REDACT_QUERY"])?;
    environment.set(&mut spans.across_nodes, &["COATI_AGENT_ACROSS_NODES"])?;

    environment.set(&mut gpu.enabled, &["COATI_AGENT_GPU"])?;
    environment.set(&mut gpu.library, &["COATI_AGENT_GPU_LIBRARY"])?;
    environment.set(&mut gpu.interval, &["COATI_AGENT_GPU_INTERVAL"])?;
    environment.set(&mut gpu.idle_interval, &["COATI_AGENT_GPU_IDLE_INTERVAL"])?;
    environment.set(&mut gpu.dcgm_names, &["COATI_AGENT_GPU_DCGM_NAMES"])?;

    let metrics = &mut telemetry.otlp_metrics;
    if let Some(endpoint) = environment.get(&["OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"])? {
        metrics.endpoint = Some(endpoint);
        metrics.enabled = true;
    }
    environment.set(&mut metrics.enabled, &["COATI_AGENT_OTLP_METRICS"])?;
    if let Some(Milliseconds(interval)) = environment.get(&["OTEL_METRIC_EXPORT_INTERVAL"])? {
        metrics.interval = interval;
    }
    Ok(())
}

struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Environment<'_> {
    /// The value of the first of these variables that is set.
    fn get<T: Value>(&self, names: &[&str]) -> Result<Option<T>, ConfigError> {
        // OpenTelemetry wants an empty variable to be one that is not set.
        let set = names.iter().find_map(|name| Some((name, (self.variable)(name).filter(|text| !text.is_empty())?)));
        let Some((name, text)) = set else { return Ok(None) };
        let value = T::from_text(&text).ok_or_else(|| ConfigError::Value {
            place: format!("environment variable {name}"),
            expected: T::EXPECTED,
            found: T::shown(&text),
        })?;
        Ok(Some(value))
    }

    fn set<T: Value>(&self, target: &mut T, names: &[&str]) -> Result<(), ConfigError> {
        if let Some(value) = self.get(names)? {
            *target = value;
        }
        Ok(())
    }
}

/// `key1=value1,key2=value2`, percent-encoded.
struct Headers(Vec<(String, String)>);

impl Value for Headers {
    const EXPECTED: &'static str = "headers such as `X-Scope-OrgID=home,Authorization=Basic%20abc`";

    fn from_text(text: &str) -> Option<Self> {
        let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=')?;
            let value = percent_decode_str(value.trim()).decode_utf8().ok()?;
            (!name.trim().is_empty()).then(|| (name.trim().to_owned(), value.into_owned()))
        });
        pairs.collect::<Option<_>>().map(Self)
    }

    /// Headers hold tokens.
    fn shown(_: &str) -> String {
        "***".to_owned()
    }
}

/// Times in variables of OpenTelemetry have no unit.
struct Milliseconds(Duration);

impl Value for Milliseconds {
    const EXPECTED: &'static str = "a whole number of milliseconds, at least 1";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|milliseconds| *milliseconds > 0).map(Duration::from_millis).map(Self)
    }
}

/// Beyla has a regular expression here, which matches anywhere in the path; a plain word means the same as a pattern.
struct PartOfPath(GlobMatcher);

impl Value for PartOfPath {
    const EXPECTED: &'static str = "a part of an executable's path (for a pattern use COATI_AGENT_INCLUDE_EXE_PATH)";

    fn from_text(text: &str) -> Option<Self> {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '/' | '_' | '-');
        if text.chars().all(is_plain) { GlobMatcher::from_text(&format!("*{text}*")).map(Self) } else { None }
    }
}
