//! The environment: the agent's own variables, those of OpenTelemetry, and Beyla's where they mean the same.

mod beyla;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use percent_encoding::percent_decode_str;

use super::{
    Config, ConfigError, Endpoint, ExportConfig, QueueConfig, RuleConfig,
    discovery::{Executable, Globs, Regexes, Text},
    value::Value,
};
use crate::{
    discover::{Pids, Ports},
    export::Proxies,
    print::Format,
    span::{Ratio, SamplerName},
};

/// Applies the variables that are set and not empty.
pub(super) fn apply(config: &mut Config, variable: &dyn Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
    let environment = Environment { variable };
    let Config {
        log_level,
        listen,
        hooks,
        tls,
        cuda,
        print,
        kernel_debug,
        export,
        receive,
        discovery,
        spans,
        routes: _,
        gpu,
        inference,
        kubernetes,
        metrics,
        telemetry,
        warnings,
        file: _,
    } = config;
    warnings.extend(beyla::warnings(&environment));

    environment.set(log_level, &["COATI_AGENT_LOG_LEVEL", "OTEL_EBPF_LOG_LEVEL", "BEYLA_LOG_LEVEL"])?;
    let ports = [
        "OTEL_EBPF_INTERNAL_METRICS_PROMETHEUS_PORT",
        "BEYLA_INTERNAL_METRICS_PROMETHEUS_PORT",
        "OTEL_EBPF_PROMETHEUS_PORT",
        "BEYLA_PROMETHEUS_PORT",
    ];
    // The metrics of the services win over those of the agent: there is one port for both.
    for name in ports {
        if let Some(Port(port)) = environment.get(&[name])? {
            *listen = SocketAddr::from(([0, 0, 0, 0], port));
        }
    }
    environment.set(listen, &["COATI_AGENT_LISTEN"])?;
    environment.set(hooks, &["COATI_AGENT_HOOKS"])?;
    environment.set(tls, &["COATI_AGENT_TLS"])?;
    environment.set(cuda, &["COATI_AGENT_CUDA"])?;
    if let Some((name, Printer(format))) = environment.named(&["OTEL_EBPF_TRACE_PRINTER", "BEYLA_TRACE_PRINTER"])? {
        match format.as_str() {
            "counter" => {
                warnings.push(format!("environment variable {name}: `counter` is not supported: see `/metrics`"));
            }
            "json_indent" => {
                *print = Some(Format::Json);
                warnings.push(format!("environment variable {name}: `json_indent` is not supported: it is `json`"));
            }
            _ => *print = Value::from_text(&format).unwrap_or_default(),
        }
    }
    environment.set(print, &["COATI_AGENT_PRINT"])?;
    environment.set(kernel_debug, &["COATI_AGENT_KERNEL_DEBUG", "OTEL_EBPF_BPF_DEBUG", "BEYLA_BPF_DEBUG"])?;

    let own = environment.get::<Endpoint>(&["COATI_AGENT_OTLP_ENDPOINT"])?;
    // OTLP adds no path to the address of one signal.
    let of_traces = environment
        .get(&["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"])?
        .map(|endpoint: Endpoint| Endpoint { is_whole: true, ..endpoint });
    let of_all = environment.get(&["OTEL_EXPORTER_OTLP_ENDPOINT"])?;
    if let Some(endpoint) = own.or(of_traces).or(of_all) {
        export.endpoint = Some(endpoint);
        // What is more specific than the file names all there is.
        export.endpoints.clear();
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
        export.headers = headers.into_iter().map(|(name, value)| (name, value.into())).collect();
    }
    let timeouts = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
    if let Some(Milliseconds(timeout)) = environment.get(&timeouts)? {
        export.timeout = timeout;
    }
    environment.set(&mut export.timeout, &["COATI_AGENT_OTLP_TIMEOUT"])?;
    environment.set(&mut export.queue_spans, &["COATI_AGENT_EXPORT_QUEUE_SPANS"])?;
    apply_tls(export, &environment, warnings)?;
    if !export.endpoints.is_empty() && export.has_own_endpoint() {
        let unused = "export: `endpoint`, `headers`, `tls` and `auth` are not used, as each of `endpoints` has its own";
        warnings.push(unused.to_owned());
    }
    apply_queue(&mut export.queue, &environment)?;
    export.proxies = Proxies::of(variable);

    let executables = [
        "COATI_AGENT_INCLUDE_EXE_PATH",
        "OTEL_EBPF_AUTO_TARGET_EXE",
        "BEYLA_AUTO_TARGET_EXE",
        "OTEL_GO_AUTO_TARGET_EXE",
    ];
    let languages = ["OTEL_EBPF_AUTO_TARGET_LANGUAGE", "BEYLA_AUTO_TARGET_LANGUAGE"];
    let part_of_path = ["OTEL_EBPF_EXECUTABLE_NAME", "BEYLA_EXECUTABLE_NAME"];
    let names = ["OTEL_EBPF_SERVICE_NAME", "BEYLA_SERVICE_NAME", "OTEL_SERVICE_NAME"];
    let exe_path = environment.get::<Executable<Globs>>(&executables)?;
    let languages = environment.get::<Text<Globs>>(&languages)?;
    let open_ports =
        environment.get::<Ports>(&["COATI_AGENT_INCLUDE_OPEN_PORTS", "OTEL_EBPF_OPEN_PORT", "BEYLA_OPEN_PORT"])?;
    let target_pids = environment.get::<Pids>(&["OTEL_EBPF_TARGET_PID", "BEYLA_TARGET_PID"])?;
    let regex = environment.get::<Executable<Regexes>>(&part_of_path)?;
    let name = environment.named::<String>(&names)?;
    let is_target = exe_path.is_some() || languages.is_some() || open_ports.is_some() || target_pids.is_some();
    if is_target || regex.is_some() {
        discovery.instrument.clear();
        discovery.services.clear();
        let name = name.map(|(_, name)| name);
        // Both notations can only be in rules of their own: a path is asked for by one of them.
        match (exe_path, regex) {
            (None, Some(regex)) => {
                if let Some(languages) = languages {
                    let instead = "not used together with a regular expression of the executable";
                    warnings.push(format!(
                        "environment variable BEYLA_AUTO_TARGET_LANGUAGE={}: {instead}",
                        languages.to_text()
                    ));
                }
                let exe_path = Some(regex);
                let rule = RuleConfig { name, exe_path, open_ports, target_pids, ..RuleConfig::default() };
                discovery.services.push(rule);
            }
            (exe_path, _) => {
                let rule = RuleConfig { name, exe_path, languages, open_ports, target_pids, ..RuleConfig::default() };
                discovery.instrument.push(rule);
            }
        }
    } else if let Some((name, _)) = name {
        let instead = "names the one service that is observed: give a rule of `discovery.instrument` a `name`";
        warnings.push(format!("environment variable {name}: {instead}"));
    }
    if let Some(pattern) = environment.get::<Executable<Globs>>(&["COATI_AGENT_EXCLUDE_EXE_PATH"])? {
        discovery.exclude_instrument = vec![RuleConfig { exe_path: Some(pattern), ..RuleConfig::default() }];
    }

    environment.set(
        &mut discovery.exclude_otel_instrumented_services,
        &[
            "COATI_AGENT_EXCLUDE_OTEL_INSTRUMENTED_SERVICES",
            "OTEL_EBPF_EXCLUDE_OTEL_INSTRUMENTED_SERVICES",
            "BEYLA_EXCLUDE_OTEL_INSTRUMENTED_SERVICES",
        ],
    )?;

    let sampling = &mut spans.sampling;
    environment.set(&mut sampling.sampler, &["COATI_AGENT_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER"])?;
    // OpenTelemetry's argument is one of OpenTelemetry's sampler.
    let is_sampler_set = environment.get::<SamplerName>(&["OTEL_TRACES_SAMPLER"])?.is_some();
    if is_sampler_set {
        environment.set(&mut sampling.ratio, &["OTEL_TRACES_SAMPLER_ARG"])?;
    } else if environment.get::<String>(&["OTEL_TRACES_SAMPLER_ARG"])?.is_some() {
        warnings.push("environment variable OTEL_TRACES_SAMPLER_ARG: not used without OTEL_TRACES_SAMPLER".to_owned());
    }
    environment.set(&mut sampling.ratio, &["COATI_AGENT_TRACES_SAMPLER_ARG"])?;
    if !sampling.sampler.has_ratio() && sampling.ratio != Ratio::ALL {
        let name = sampling.sampler.as_str();
        warnings.push(format!("spans.sampling.ratio: not used by the sampler `{name}`"));
    }
    environment.set(&mut spans.redact_query, &["COATI_AGENT_REDACT_QUERY"])?;
    environment.set(&mut spans.across_nodes, &["COATI_AGENT_ACROSS_NODES"])?;
    environment.set(&mut spans.partial_after, &["COATI_AGENT_PARTIAL_AFTER"])?;

    environment.set(&mut inference.enabled, &["COATI_AGENT_INFERENCE"])?;
    environment.set(&mut inference.record_content, &["COATI_AGENT_INFERENCE_RECORD_CONTENT"])?;
    environment.set(&mut gpu.enabled, &["COATI_AGENT_GPU"])?;
    environment.set(&mut gpu.library, &["COATI_AGENT_GPU_LIBRARY"])?;
    environment.set(&mut gpu.interval, &["COATI_AGENT_GPU_INTERVAL"])?;
    environment.set(&mut gpu.idle_interval, &["COATI_AGENT_GPU_IDLE_INTERVAL"])?;
    environment.set(&mut gpu.dcgm_names, &["COATI_AGENT_GPU_DCGM_NAMES"])?;

    kubernetes.apply(&environment)?;
    receive.apply(&environment)?;
    metrics.apply(&environment, warnings)?;
    telemetry.otlp_metrics.apply(&environment)
}

/// OpenTelemetry's names of the files, and Beyla's switch. Where no TLS is spoken they mean nothing, as in SDKs.
fn apply_tls(
    export: &mut ExportConfig,
    environment: &Environment<'_>,
    warnings: &mut Vec<String>,
) -> Result<(), ConfigError> {
    let file = |traces, all| environment.named::<PathBuf>(&[traces, all]);
    let ca_file = file("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE")?;
    let cert_file = file("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE")?;
    let key_file = file("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "OTEL_EXPORTER_OTLP_CLIENT_KEY")?;
    let skips = ["OTEL_EBPF_OTEL_INSECURE_SKIP_VERIFY", "BEYLA_OTEL_INSECURE_SKIP_VERIFY"];
    let skip = environment.named::<bool>(&skips)?.filter(|(_, skip)| *skip);
    let names = [&ca_file, &cert_file, &key_file].map(|file| file.as_ref().map(|(name, _)| *name));
    let names: Vec<&str> = names.into_iter().chain([skip.map(|(name, _)| name)]).flatten().collect();
    if names.is_empty() {
        return Ok(());
    }
    if !export.endpoint.as_ref().is_some_and(Endpoint::is_secure) {
        warnings.push(format!("environment variable {}: not used, as `export.endpoint` has no TLS", names.join(", ")));
        return Ok(());
    }
    let tls = export.tls.get_or_insert_default();
    tls.ca_file = ca_file.map(|(_, file)| file).or(tls.ca_file.take());
    tls.cert_file = cert_file.map(|(_, file)| file).or(tls.cert_file.take());
    tls.key_file = key_file.map(|(_, file)| file).or(tls.key_file.take());
    tls.insecure_skip_verify |= skip.is_some();
    Ok(())
}

fn apply_queue(queue: &mut QueueConfig, environment: &Environment<'_>) -> Result<(), ConfigError> {
    environment.set(&mut queue.max_bytes, &["COATI_AGENT_EXPORT_QUEUE_MAX_BYTES"])?;
    environment.set(&mut queue.fsync, &["COATI_AGENT_EXPORT_QUEUE_FSYNC"])?;
    if let Some(directory) = environment.get(&["COATI_AGENT_EXPORT_QUEUE_DIRECTORY"])? {
        queue.directory = Some(directory);
    }
    if queue.directory.is_none() {
        // systemd's, of a unit with `StateDirectory=`; several are separated by colons.
        let state = (environment.variable)("STATE_DIRECTORY").unwrap_or_default();
        let first = state.split(':').next().map(Path::new).filter(|path| path.is_absolute());
        queue.directory = first.map(|path| path.join("export-queue"));
    }
    Ok(())
}

/// Where variables come from.
pub(super) struct Environment<'a> {
    pub(super) variable: &'a dyn Fn(&str) -> Option<String>,
}

impl Environment<'_> {
    /// The value of the first of these variables that is set.
    pub(super) fn get<T: Value>(&self, names: &[&str]) -> Result<Option<T>, ConfigError> {
        Ok(self.named(names)?.map(|(_, value)| value))
    }

    /// The same, and which one that is.
    pub(super) fn named<'n, T: Value>(&self, names: &[&'n str]) -> Result<Option<(&'n str, T)>, ConfigError> {
        // OpenTelemetry wants an empty variable to be one that is not set.
        let set = names.iter().find_map(|name| Some((*name, (self.variable)(name).filter(|text| !text.is_empty())?)));
        let Some((name, text)) = set else { return Ok(None) };
        let value = T::from_text(&text).ok_or_else(|| ConfigError::Value {
            place: format!("environment variable {name}"),
            expected: T::EXPECTED,
            found: T::shown(&text),
        })?;
        Ok(Some((name, value)))
    }

    /// Sets `target` to it, if there is one.
    pub(super) fn set<T: Value>(&self, target: &mut T, names: &[&str]) -> Result<(), ConfigError> {
        if let Some(value) = self.get(names)? {
            *target = value;
        }
        Ok(())
    }
}

/// `key1=value1,key2=value2`, percent-encoded.
pub(super) struct Headers(pub(super) Vec<(String, String)>);

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

    fn to_text(&self) -> String {
        String::new()
    }

    /// Headers hold tokens.
    fn shown(_: &str) -> String {
        "***".to_owned()
    }
}

/// Times in variables of OpenTelemetry have no unit.
pub(super) struct Milliseconds(pub(super) Duration);

impl Value for Milliseconds {
    const EXPECTED: &'static str = "a whole number of milliseconds, at least 1";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().filter(|milliseconds| *milliseconds > 0).map(Duration::from_millis).map(Self)
    }

    fn to_text(&self) -> String {
        self.0.as_millis().to_string()
    }
}

/// A port, 0 for none in Beyla.
struct Port(u16);

impl Value for Port {
    const EXPECTED: &'static str = "a port";

    fn from_text(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }

    fn to_text(&self) -> String {
        self.0.to_string()
    }
}

/// How Beyla prints spans.
struct Printer(String);

impl Value for Printer {
    const EXPECTED: &'static str = "`text`, `json`, `json_indent`, `counter` or `disabled`";

    fn from_text(text: &str) -> Option<Self> {
        matches!(text, "text" | "json" | "json_indent" | "counter" | "disabled").then(|| Self(text.to_owned()))
    }

    fn to_text(&self) -> String {
        self.0.clone()
    }
}

/// A name.
impl Value for String {
    const EXPECTED: &'static str = "a text";

    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn to_text(&self) -> String {
        self.clone()
    }
}
