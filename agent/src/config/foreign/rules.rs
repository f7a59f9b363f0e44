//! Rules of Beyla's `discovery`.

use serde_json::{Map, Value as Json, json};

use super::{
    Translation, beyla,
    tree::{Data, Node},
};
use crate::metrics::Features;

/// Conditions of a rule that are called the same here.
const SAME: [&str; 21] = [
    "cmd_args",
    "container_name",
    "containers_only",
    "exe_path",
    "k8s_container_name",
    "k8s_cronjob_name",
    "k8s_daemonset_name",
    "k8s_deployment_name",
    "k8s_job_name",
    "k8s_namespace",
    "k8s_owner_name",
    "k8s_pod_annotations",
    "k8s_pod_labels",
    "k8s_pod_name",
    "k8s_replicaset_name",
    "k8s_statefulset_name",
    "languages",
    "name",
    "namespace",
    "open_ports",
    "target_pids",
];

/// What Beyla leaves out unless told otherwise, beside programs that carry telemetry.
const LEFT_OUT: &str = "{kube-system,kube-node-lease,local-path-storage,grafana-alloy,cert-manager,monitoring,gke-*}";

/// Appends the rules of a list to one of ours.
pub(super) fn translate(ours: &str, theirs: &str, node: &Node, out: &mut Translation<'_>) {
    let mut rules = Vec::new();
    for (place, rule) in node.list().iter().enumerate() {
        let theirs = format!("{theirs}[{place}]");
        let index = rules.len();
        let place = format!("{ours}[{index}]");
        out.note(place.clone(), theirs.clone(), rule.line);
        let mut translated = Map::new();
        for (key, value) in beyla::entries(&theirs, rule, out) {
            let theirs = format!("{theirs}.{key}");
            let ours = if key == "exe_path_regexp" { "exe_path" } else { key.as_str() };
            out.note(format!("{place}.{ours}"), theirs.clone(), value.line);
            match ours {
                // An empty pattern is none.
                _ if value.text() == Some("") => {}
                _ if SAME.contains(&ours) => {
                    translated.insert(ours.to_owned(), value.json());
                }
                "sampler" => {
                    translated.insert("sampler".to_owned(), sampler(&theirs, value, out));
                }
                "exports" if matches!(value.data, Data::Nothing) => {}
                "exports" => {
                    translated.insert("exports".to_owned(), value.json());
                }
                "routes" => out.warn(&theirs, value.line, "not supported for single services: use `routes.patterns`"),
                "metrics" => {
                    if let Some(features) = metrics(&theirs, value, out) {
                        translated.insert("metrics".to_owned(), features);
                    }
                }
                _ => out.warn(&theirs, value.line, "no such condition is known, so the rule is used without it"),
            }
        }
        rules.push(Json::Object(translated));
    }
    out.set(ours, Json::Array(rules), theirs, node.line);
}

/// `sampler`, of a rule or of the exporter.
fn sampler(theirs: &str, node: &Node, out: &mut Translation<'_>) -> Json {
    let mut sampler = Map::new();
    for (key, value) in beyla::entries(theirs, node, out) {
        match key.as_str() {
            "name" | "arg" => {
                sampler.insert(key.clone(), value.json());
            }
            _ => out.warn(&format!("{theirs}.{key}"), value.line, "no such key is known"),
        }
    }
    Json::Object(sampler)
}

/// `metrics` of a rule: which features it has.
fn metrics(theirs: &str, node: &Node, out: &mut Translation<'_>) -> Option<Json> {
    let mut features = None;
    for (key, value) in beyla::entries(theirs, node, out) {
        let theirs = format!("{theirs}.{key}");
        match key.as_str() {
            "features" => features = Some(beyla::feature_names(&theirs, value, Features::NONE, out)),
            _ => out.warn(&theirs, value.line, "no such key is known"),
        }
    }
    features.map(|features| json!({ "features": features }))
}

/// What Beyla leaves out by itself.
pub(super) fn left_out() -> Json {
    json!([{ "exe_path": crate::config::discovery::CARRIERS }, { "k8s_namespace": LEFT_OUT }])
}
