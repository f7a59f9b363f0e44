//! Section `kubernetes`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    ConfigError,
    environment::Environment,
    schema::Of,
    value::{self, Value},
};
use crate::kubernetes::{Enabled, KubernetesConfig};

/// Section `kubernetes`.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct KubernetesSection {
    /// Whether processes are named after their pods.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<Enabled>")]
    pub enabled: Enabled,
    /// Name of this node in Kubernetes; absent, that of the node on which the agent's own pod is.
    #[serde(with = "value::optional", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<Of<NodeName>>")]
    pub node_name: Option<NodeName>,
    /// `k8s.cluster.name` of everything; absent, there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_name: Option<String>,
    /// Socket on which the kubelet says whose GPUs are.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<PathBuf>")]
    pub pod_resources: PathBuf,
}

impl Default for KubernetesSection {
    fn default() -> Self {
        let KubernetesConfig { enabled, node_name: _, cluster_name, pod_resources } = KubernetesConfig::default();
        Self { enabled, node_name: None, cluster_name, pod_resources }
    }
}

/// Name of a node.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct NodeName(String);

impl KubernetesSection {
    /// Applies the variables that are set.
    pub(super) fn apply(&mut self, environment: &Environment<'_>) -> Result<(), ConfigError> {
        environment.set(
            &mut self.enabled,
            &["COATI_AGENT_KUBERNETES", "OTEL_EBPF_KUBE_METADATA_ENABLE", "BEYLA_KUBE_METADATA_ENABLE"],
        )?;
        // The last two are what manifests call what the downward API gives.
        let names = ["COATI_AGENT_KUBERNETES_NODE_NAME", "K8S_NODE_NAME", "NODE_NAME"];
        if let Some(name) = environment.get(&names)? {
            self.node_name = Some(name);
        }
        let names = ["COATI_AGENT_KUBERNETES_CLUSTER_NAME", "OTEL_EBPF_KUBE_CLUSTER_NAME", "BEYLA_KUBE_CLUSTER_NAME"];
        if let Some(Text(name)) = environment.get(&names)? {
            self.cluster_name = Some(name);
        }
        environment.set(&mut self.pod_resources, &["COATI_AGENT_KUBERNETES_POD_RESOURCES"])?;
        Ok(())
    }

    /// How Kubernetes is asked.
    pub(super) fn config(&self) -> KubernetesConfig {
        let Self { enabled, node_name, cluster_name, pod_resources } = self.clone();
        KubernetesConfig { enabled, node_name: node_name.map(|NodeName(name)| name), cluster_name, pod_resources }
    }
}

impl Value for Enabled {
    const EXPECTED: &'static str = "`auto`, `true` or `false`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" | "autodetect" => Some(Self::Auto),
            "true" => Some(Self::Yes),
            "false" => Some(Self::No),
            _ => None,
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Auto => "auto",
            Self::Yes => "true",
            Self::No => "false",
        }
        .to_owned()
    }
}

impl Value for NodeName {
    const EXPECTED: &'static str = "a node's name in Kubernetes, of small letters, digits, `-` and `.`";

    /// Nothing that would mean something in a field selector.
    fn from_text(text: &str) -> Option<Self> {
        let is_allowed = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || "-.".contains(letter);
        (!text.is_empty() && text.len() <= 253 && text.chars().all(is_allowed)).then(|| Self(text.to_owned()))
    }

    fn to_text(&self) -> String {
        self.0.clone()
    }
}

/// Anything.
struct Text(String);

impl Value for Text {
    const EXPECTED: &'static str = "a text";

    fn from_text(text: &str) -> Option<Self> {
        Some(Self(text.to_owned()))
    }

    fn to_text(&self) -> String {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use rstest::rstest;

    use super::*;

    fn of(variables: &[(&str, &str)]) -> Result<KubernetesConfig, String> {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        let variable = |name: &str| variables.get(name).map(|value| (*value).to_owned());
        let mut section = KubernetesSection::default();
        section.apply(&Environment { variable: &variable }).map_err(|error| error.to_string())?;
        Ok(section.config())
    }

    #[rstest]
    #[case::nothing(&[], Enabled::Auto, None, None)]
    #[case::own(
        &[("COATI_AGENT_KUBERNETES", "false"), ("COATI_AGENT_KUBERNETES_NODE_NAME", "a"), ("COATI_AGENT_KUBERNETES_CLUSTER_NAME", "c")],
        Enabled::No, Some("a"), Some("c")
    )]
    #[case::beyla(
        &[("BEYLA_KUBE_METADATA_ENABLE", "autodetect"), ("BEYLA_KUBE_CLUSTER_NAME", "home")],
        Enabled::Auto, None, Some("home")
    )]
    #[case::downward_api(&[("NODE_NAME", "node-1.example")], Enabled::Auto, Some("node-1.example"), None)]
    #[case::own_first(&[("NODE_NAME", "b"), ("COATI_AGENT_KUBERNETES_NODE_NAME", "a")], Enabled::Auto, Some("a"), None)]
    fn reads_variables(
        #[case] variables: &[(&str, &str)],
        #[case] enabled: Enabled,
        #[case] node: Option<&str>,
        #[case] cluster: Option<&str>,
    ) {
        let expected = KubernetesConfig {
            enabled,
            node_name: node.map(str::to_owned),
            cluster_name: cluster.map(str::to_owned),
            ..KubernetesConfig::default()
        };
        assert_eq!(of(variables).unwrap(), expected);
    }

    #[rstest]
    #[case::selector("node,spec.nodeName!=x")]
    #[case::capitals("Node")]
    #[case::too_long(&"a".repeat(254))]
    fn a_name_that_no_node_has_is_refused(#[case] name: &str) {
        let error = of(&[("NODE_NAME", name)]).unwrap_err();
        assert!(error.starts_with("environment variable NODE_NAME: expected a node's name"), "{error}");
    }
}
