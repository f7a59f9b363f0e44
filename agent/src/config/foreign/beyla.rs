//! Beyla's YAML, key by key.

mod keys;

use std::time::Duration;

use serde_json::{Map, Value as Json, json};

use super::{
    Translation, rules,
    tree::{Data, Node},
};
use crate::{
    config::{metrics::BeylaFeatures, value::Value},
    metrics::Features,
};
pub(super) use keys::{KEYS, Meaning, SECTIONS};

/// Why some labels are not chosen.
const OF_SERVICE: &str =
    "labels that name the service, its pod and its node are not chosen: all of its metrics have them";

/// Translates the whole file.
pub(super) fn translate(root: &Node, out: &mut Translation<'_>) {
    section("", root, out);
    single(root, out);
    plain_endpoint(root, out);
    if out.has("discovery.instrument") && out.has("discovery.services") {
        let line = root.get("discovery").and_then(|node| node.get("services")).map_or(1, |node| node.line);
        out.warn("discovery.services", line, "unlike in Beyla it counts too, although there is `discovery.instrument`");
    }
    if !out.has("discovery.default_exclude_instrument") {
        out.set("discovery.default_exclude_instrument", rules::left_out(), "discovery", 1);
    }
    if !out.has("routes.wildcard_char") {
        out.set("routes.wildcard_char", json!("*"), "routes", 1);
    }
}

fn section(prefix: &str, node: &Node, out: &mut Translation<'_>) {
    for (key, value) in node.map() {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let meaning = KEYS.iter().find(|(known, _)| *known == path).map(|(_, meaning)| meaning);
        match meaning {
            // As good as not there.
            Some(_) if value.data == Data::Nothing => {}
            Some(Meaning::Section) => {
                entries(&path, value, out);
                section(&path, value, out);
            }
            Some(Meaning::Same(ours)) => out.set(ours, value.json(), &path, value.line),
            Some(Meaning::Time(ours)) => out.set(ours, time(value), &path, value.line),
            Some(Meaning::With(with)) => with(&path, value, out),
            Some(Meaning::Instead(instead)) => out.warn(&path, value.line, instead),
            None => out.warn(&path, value.line, "no such key of Beyla is known, so it is ignored"),
        }
    }
}

/// The entries of a section. What is none is said.
pub(super) fn entries<'n>(key: &str, node: &'n Node, out: &mut Translation<'_>) -> &'n [(String, Node)] {
    if !matches!(node.data, Data::Map(_)) {
        out.warn(key, node.line, "expected a section, so it is ignored");
    }
    node.map()
}

/// A time in Go's notation, `1m30s` or `250ms`, in ours. What is none is left as it is: our reader says what is expected.
fn time(node: &Node) -> Json {
    match node.text().and_then(duration) {
        Some(duration) => Json::String(duration.to_text()),
        None => node.json(),
    }
}

/// A time in Go's notation.
pub(in crate::config) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let (number, behind) = rest.split_at_checked(rest.find(|letter: char| letter.is_ascii_alphabetic())?)?;
        let end = behind.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at_checked(end)?;
        let unit = match unit {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = behind;
    }
    // Our notation has no less than a millisecond.
    let ms = Duration::try_from_secs_f64(seconds).ok()?.as_millis();
    Some(Duration::from_millis(u64::try_from(ms).ok()?.max(1)))
}

fn printer(key: &str, node: &Node, out: &mut Translation<'_>) {
    match node.text() {
        Some("counter") => out.warn(key, node.line, "`counter` is not supported: `/metrics` counts spans"),
        Some("json_indent") => {
            out.set("print", json!("json"), key, node.line);
            out.warn(key, node.line, "`json_indent` is not supported: it is `json`");
        }
        _ => out.set("print", node.json(), key, node.line),
    }
}

/// `true` is `auto` too: there the agent runs on if there is no API server to ask.
fn kubernetes(key: &str, node: &Node, out: &mut Translation<'_>) {
    match node.text() {
        Some("true" | "autodetect") | None => {}
        _ => out.set("kubernetes.enabled", node.json(), key, node.line),
    }
}

/// Part of the rule that [`single`] makes.
fn later(_: &str, _: &Node, _: &mut Translation<'_>) {}

/// `executable_name` and `open_port`: one rule, behind all others, and how its processes are called.
fn single(root: &Node, out: &mut Translation<'_>) {
    let parts = [
        ("executable_name", "exe_path"),
        ("open_port", "open_ports"),
        ("service_name", "name"),
        ("service_namespace", "namespace"),
    ];
    let is_set = |node: &&Node| node.data != Data::Nothing && node.text() != Some("");
    let has_condition = ["executable_name", "open_port"].iter().any(|key| root.get(key).as_ref().is_some_and(is_set));
    let parts = parts.into_iter().filter_map(|(theirs, ours)| Some((theirs, ours, root.get(theirs).filter(is_set)?)));
    if !has_condition {
        for (theirs, ours, node) in parts {
            let instead =
                format!("names the one service that is observed: give a rule of `discovery.instrument` a `{ours}`");
            out.warn(theirs, node.line, &instead);
        }
        return;
    }
    let discovery = out.ours.entry("discovery").or_insert_with(|| json!({}));
    let Some(services) =
        discovery.as_object_mut().map(|discovery| discovery.entry("services").or_insert_with(|| json!([])))
    else {
        return;
    };
    let Some(services) = services.as_array_mut() else { return };
    let place = services.len();
    services.push(parts.clone().map(|(_, ours, node)| (ours.to_owned(), node.json())).collect::<Map<_, _>>().into());
    for (theirs, ours, node) in parts {
        out.note(format!("discovery.services[{place}].{ours}"), theirs.to_owned(), node.line);
    }
}

/// Where no TLS is spoken, what is said of it means nothing.
fn plain_endpoint(root: &Node, out: &mut Translation<'_>) {
    let Some(export) = out.ours.get_mut("export").and_then(Json::as_object_mut) else { return };
    let is_plain = export.get("endpoint").and_then(Json::as_str).is_some_and(|url| url.starts_with("http://"));
    let is_meaningless = is_plain && export.remove("tls").is_some();
    if is_meaningless {
        let node = root.get("otel_traces_export").and_then(|export| export.get("insecure_skip_verify"));
        out.warn(
            "otel_traces_export.insecure_skip_verify",
            node.map_or(1, |node| node.line),
            "not used: the endpoint is one without TLS",
        );
    }
}

fn instrument(key: &str, node: &Node, out: &mut Translation<'_>) {
    rules::translate("discovery.instrument", key, node, out);
}

fn services(key: &str, node: &Node, out: &mut Translation<'_>) {
    rules::translate("discovery.services", key, node, out);
}

fn exclude_instrument(key: &str, node: &Node, out: &mut Translation<'_>) {
    rules::translate("discovery.exclude_instrument", key, node, out);
}

fn exclude_services(key: &str, node: &Node, out: &mut Translation<'_>) {
    rules::translate("discovery.exclude_services", key, node, out);
}

fn default_exclude(key: &str, node: &Node, out: &mut Translation<'_>) {
    rules::translate("discovery.default_exclude_instrument", key, node, out);
}

fn default_exclude_regexes(key: &str, node: &Node, out: &mut Translation<'_>) {
    let instead =
        "not supported as regular expressions: use `discovery.default_exclude_instrument` or `exclude_services`";
    out.warn(key, node.line, instead);
}

fn propagation(key: &str, node: &Node, out: &mut Translation<'_>) {
    if !matches!(node.text(), Some("disabled" | "false" | "")) {
        let instead = "not supported: nothing is put into requests; traces are linked by TCP positions and headers that are there";
        out.warn(key, node.line, instead);
    }
}

fn track_headers(key: &str, node: &Node, out: &mut Translation<'_>) {
    if node.text() != Some("true") {
        out.warn(key, node.line, "not supported: `traceparent` is always read, and always wins");
    }
}

/// Of spans some attributes can be left out; what Beyla adds at wish we do not have. Metrics have the labels that are chosen.
fn select(key: &str, node: &Node, out: &mut Translation<'_>) {
    let mut labels = Vec::new();
    for (signal, choice) in entries(key, node, out) {
        let key = format!("{key}.{signal}");
        let is_of_spans = signal == "traces";
        let mut of_metrics = Map::new();
        for (part, patterns) in entries(&key, choice, out) {
            let key = format!("{key}.{part}");
            let texts = || Json::Array(patterns.list().iter().map(Node::json).collect());
            match part.as_str() {
                "exclude" if is_of_spans => out.set("spans.attributes.exclude", texts(), &key, patterns.line),
                "include" if is_of_spans => out.warn(&key, patterns.line, "not needed: spans have all attributes that there are; `spans.attributes.include` would leave out all others"),
                "include" | "exclude" => {
                    if patterns.list().iter().filter_map(Node::text).any(is_of_service) {
                        out.warn(&key, patterns.line, OF_SERVICE);
                    }
                    of_metrics.insert(part.clone(), texts());
                }
                _ => out.warn(&key, patterns.line, "no such key is known"),
            }
        }
        if !of_metrics.is_empty() {
            let metrics = if signal == "global" { "*" } else { signal.as_str() };
            of_metrics.insert("metrics".to_owned(), json!(metrics));
            labels.push((metrics == "*", Json::Object(of_metrics)));
        }
    }
    if !labels.is_empty() {
        // What is said of all is said first.
        labels.sort_by_key(|(is_of_all, _)| !is_of_all);
        let labels = labels.into_iter().map(|(_, labels)| labels).collect();
        out.set("metrics.labels", Json::Array(labels), key, node.line);
    }
}

/// Names of labels that all metrics of a service have.
fn is_of_service(name: &str) -> bool {
    ["k8s", "service", "host", "instance", "job"].iter().any(|start| name.starts_with(start))
}

/// `url_path: { not_match: … }` leaves requests out; nothing else does here.
fn filter(key: &str, node: &Node, out: &mut Translation<'_>) {
    for (attribute, condition) in entries(key, node, out) {
        let key = format!("{key}.{attribute}");
        for (kind, pattern) in entries(&key, condition, out) {
            let is_path = matches!(attribute.as_str(), "url_path" | "url.path") && kind == "not_match";
            let as_route = pattern.text().filter(|text| is_route(text)).filter(|_| is_path);
            let key = format!("{key}.{kind}");
            match as_route {
                Some(text) if !out.has("routes.ignored_patterns") => {
                    out.set("routes.ignored_patterns", json!([text]), &key, pattern.line);
                }
                Some(text) => {
                    let ignored = out.ours.get_mut("routes").and_then(|routes| routes.get_mut("ignored_patterns"));
                    if let Some(ignored) = ignored.and_then(Json::as_array_mut) {
                        ignored.push(json!(text));
                    }
                }
                None => out.warn(
                    &key,
                    pattern.line,
                    "not supported: use `discovery`, and `routes.ignored_patterns` for paths",
                ),
            }
        }
    }
}

/// A pattern of a whole path, or of all below one.
fn is_route(text: &str) -> bool {
    let plain = text.strip_suffix('*').unwrap_or(text);
    let is_open = plain.len() == text.len() || plain.ends_with('/');
    text.starts_with('/') && is_open && !plain.contains(['*', '?', '[', '{'])
}

/// Beyla's `/metrics` can be asked from other machines.
fn port(key: &str, node: &Node, out: &mut Translation<'_>) {
    if node.text() != Some("0") {
        let address = format!("0.0.0.0:{}", node.text().unwrap_or("?"));
        out.set("listen", Json::String(address), key, node.line);
    }
}

fn internal_port(key: &str, node: &Node, out: &mut Translation<'_>) {
    if out.has("listen") {
        out.warn(key, node.line, "all metrics of the agent are on one port: `listen`");
    } else {
        port(key, node, out);
    }
}

fn internal_exporter(key: &str, node: &Node, out: &mut Translation<'_>) {
    match node.text() {
        Some("prometheus" | "disabled") => {}
        _ => out.warn(key, node.line, "use `telemetry.otlp_metrics.enabled`"),
    }
}

fn metrics_path(key: &str, node: &Node, out: &mut Translation<'_>) {
    if node.text() != Some("/metrics") {
        out.warn(key, node.line, "not supported: the path is `/metrics`");
    }
}

fn traces_endpoint(key: &str, node: &Node, out: &mut Translation<'_>) {
    out.set("export.endpoint", node.json(), key, node.line);
    let uri: Option<http::Uri> = node.text().and_then(|text| text.parse().ok());
    let Some(uri) = uri else { return };
    if !out.has("export.protocol") {
        // As Beyla guesses it, unless the file says it below.
        let is_grpc = uri.port_u16().is_some_and(|port| port.to_string().ends_with("4317"));
        let guess = if is_grpc { "grpc" } else { "http/protobuf" };
        out.set("export.protocol", json!(guess), key, node.line);
    }
    if !matches!(uri.path(), "" | "/") && !uri.path().ends_with("/v1/traces") {
        out.warn(
            key,
            node.line,
            "`/v1/traces` is added to this path: set OTEL_EXPORTER_OTLP_TRACES_ENDPOINT for a whole address",
        );
    }
}

/// Without TLS there is nothing to verify.
fn skip_verify(key: &str, node: &Node, out: &mut Translation<'_>) {
    if node.text() == Some("true") {
        out.set("export.tls.insecure_skip_verify", json!("true"), key, node.line);
    }
}

/// As [`traces_endpoint`].
fn metrics_endpoint(key: &str, node: &Node, out: &mut Translation<'_>) {
    out.set("telemetry.otlp_metrics.endpoint", node.json(), key, node.line);
    out.set("telemetry.otlp_metrics.enabled", json!("true"), key, node.line);
    if !out.has("telemetry.otlp_metrics.protocol") {
        let uri: Option<http::Uri> = node.text().and_then(|text| text.parse().ok());
        let is_grpc = uri.and_then(|uri| uri.port_u16()).is_some_and(|port| port.to_string().ends_with("4317"));
        let guess = if is_grpc { "grpc" } else { "http/protobuf" };
        out.set("telemetry.otlp_metrics.protocol", json!(guess), key, node.line);
    }
}

fn metrics_skip_verify(key: &str, node: &Node, out: &mut Translation<'_>) {
    if node.text() == Some("true") {
        out.set("telemetry.otlp_metrics.tls.insecure_skip_verify", json!("true"), key, node.line);
    }
}

/// Beyla has one list for each way out; here all that are in one of them are made.
fn features(key: &str, node: &Node, out: &mut Translation<'_>) {
    let before = out.get("metrics.features").and_then(Json::as_array).cloned().unwrap_or_default();
    let before = BeylaFeatures::of(before.iter().filter_map(Json::as_str)).features;
    let names = feature_names(key, node, before, out);
    out.set("metrics.features", names, key, node.line);
}

/// The features of a list, and those that there are already.
pub(super) fn feature_names(key: &str, node: &Node, before: Features, out: &mut Translation<'_>) -> Json {
    let texts = node.list().iter().filter_map(Node::text).flat_map(|text| text.split(','));
    let BeylaFeatures { features, others } = BeylaFeatures::of(texts);
    if !others.is_empty() {
        let others = others.join(", ");
        out.warn(key, node.line, &format!("not supported: {others}; docs/configuration.md lists what is"));
    }
    let mut names: Vec<_> = before.and(features).iter().map(|feature| json!(feature.name())).collect();
    if names.is_empty() {
        names.push(json!("none"));
    }
    Json::Array(names)
}

fn buckets(key: &str, node: &Node, out: &mut Translation<'_>) {
    for (name, bounds) in entries(key, node, out) {
        let key = format!("{key}.{name}");
        match name.as_str() {
            "duration_histogram" | "request_size_histogram" | "response_size_histogram" => {
                let bounds_of = Json::Array(bounds.list().iter().map(Node::json).collect());
                out.set(&format!("metrics.buckets.{name}"), bounds_of, &key, bounds.line);
            }
            _ => out.warn(&key, bounds.line, "no such key is known"),
        }
    }
}

fn self_references(key: &str, node: &Node, out: &mut Translation<'_>) {
    if node.text() == Some("true") {
        out.warn(key, node.line, "not supported: what calls itself is in no service graph");
    }
}

fn sampler(key: &str, node: &Node, out: &mut Translation<'_>) {
    for (part, value) in entries(key, node, out) {
        let key = format!("{key}.{part}");
        match part.as_str() {
            "name" => out.set("spans.sampling.sampler", value.json(), &key, value.line),
            "arg" => out.set("spans.sampling.ratio", value.json(), &key, value.line),
            _ => out.warn(&key, value.line, "no such key is known"),
        }
    }
    // There all errors are sampled as all else is.
    out.set("spans.sampling.keep_errors", json!("false"), key, node.line);
}

fn instrumentations(key: &str, node: &Node, out: &mut Translation<'_>) {
    let others: Vec<&str> = node
        .list()
        .iter()
        .filter_map(Node::text)
        .filter(|name| !matches!(*name, "*" | "all" | "http" | "grpc" | "genai"))
        .collect();
    if !others.is_empty() {
        out.warn(key, node.line, &format!("only HTTP and gRPC are observed, not {}", others.join(", ")));
    }
}
