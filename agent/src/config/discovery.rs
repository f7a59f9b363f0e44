//! Section `discovery`: which processes are observed.

use std::{borrow::Cow, collections::BTreeMap, fmt, marker::PhantomData};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::{
    Config,
    schema::{Of, OneOrMany},
    spans::SamplerConfig,
    value::{self, Value},
};
use crate::{
    discover::{Exports, Pattern, Pids, Ports, Rule, Selection, Treatment},
    metrics::Features,
};

/// Programs that carry telemetry: what they do is not what the node's services do.
pub(super) const CARRIERS: &str =
    "{coati-agent,coati-backend,beyla,ebpf-instrument,alloy,otelcol*,prometheus-config-reloader}";

/// Section `discovery`. The rules of `services` and `exclude_services` are regular expressions, all others shell patterns.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoveryConfig {
    /// Observe only processes that one of these rules, or of `services`, matches; every one if there are none.
    #[serde(alias = "include")]
    pub instrument: Vec<RuleConfig<Globs>>,
    /// The same with regular expressions that match anywhere in the text.
    pub services: Vec<RuleConfig<Regexes>>,
    /// Do not observe processes that one of these rules matches.
    #[serde(alias = "exclude")]
    pub exclude_instrument: Vec<RuleConfig<Globs>>,
    /// The same with regular expressions.
    pub exclude_services: Vec<RuleConfig<Regexes>>,
    /// The same again, for what nobody wants to see unless they say so: programs that carry telemetry.
    #[serde(alias = "default_exclude")]
    pub default_exclude_instrument: Vec<RuleConfig<Globs>>,
    /// Make no spans of processes that are seen to export spans by OTLP themselves.
    #[serde(with = "value::text")]
    #[schemars(with = "Of<bool>")]
    pub exclude_otel_instrumented_services: bool,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        let carriers = RuleConfig { exe_path: Executable::from_text(CARRIERS), ..RuleConfig::default() };
        Self {
            instrument: Vec::new(),
            services: Vec::new(),
            exclude_instrument: Vec::new(),
            exclude_services: Vec::new(),
            default_exclude_instrument: vec![carriers],
            exclude_otel_instrumented_services: true,
        }
    }
}

/// One rule; all its conditions must hold. What is not known of a process matches no pattern.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields, bound = "N: Notation")]
#[schemars(bound = "N: Notation + JsonSchema")]
pub struct RuleConfig<N: Notation> {
    /// `service.name` of the processes that it matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Their `service.namespace`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Path of the executable; a shell pattern without a slash is meant for its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exe_path: Option<Executable<N>>,
    /// Command line behind the program's name, words separated by spaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd_args: Option<Text<N>>,
    /// Language: `go`, `java`, `python`, `nodejs`, `ruby`, `php`, `dotnet`, `rust`, `cpp`, `generic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub languages: Option<Text<N>>,
    /// Ports of which the process listens on one.
    #[serde(with = "value::joined", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<OneOrMany<Ports>>")]
    pub open_ports: Option<Ports>,
    /// Process ids of which it has one.
    #[serde(with = "value::joined", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<OneOrMany<Pids>>")]
    pub target_pids: Option<Pids>,
    /// Only processes in containers.
    #[serde(with = "value::text", skip_serializing_if = "is_false")]
    #[schemars(with = "Of<bool>")]
    pub containers_only: bool,
    /// Name of the container in Docker.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_name: Option<Text<N>>,
    /// Namespace of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_namespace: Option<Text<N>>,
    /// Name of the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_pod_name: Option<Text<N>>,
    /// Name of the pod's Deployment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_deployment_name: Option<Text<N>>,
    /// Name of its `ReplicaSet`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_replicaset_name: Option<Text<N>>,
    /// Name of its `DaemonSet`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_daemonset_name: Option<Text<N>>,
    /// Name of its `StatefulSet`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_statefulset_name: Option<Text<N>>,
    /// Name of its Job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_job_name: Option<Text<N>>,
    /// Name of its `CronJob`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_cronjob_name: Option<Text<N>>,
    /// Name of its topmost owner, whatever that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_owner_name: Option<Text<N>>,
    /// Name of the container in the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub k8s_container_name: Option<Text<N>>,
    /// Labels of the pod; all must match.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub k8s_pod_labels: BTreeMap<String, Text<N>>,
    /// Annotations of the pod; all must match.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub k8s_pod_annotations: BTreeMap<String, Text<N>>,
    /// How spans of the processes that it matches are sampled, instead of as `spans.sampling.sampler` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampler: Option<SamplerConfig>,
    /// What is made of their requests: `traces`, `metrics`. With neither they are not observed. Absent, both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exports: Option<Vec<Export>>,
    /// Which metrics are made of their requests, instead of those of all others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metrics: Option<RuleMetricsConfig>,
}

/// Section `metrics` of a rule.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RuleMetricsConfig {
    /// As `metrics.features`.
    #[serde(with = "value::list")]
    #[schemars(with = "OneOrMany<Features>")]
    pub features: Features,
}

/// What is made of a process.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Export {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
}

impl<N: Notation> Default for RuleConfig<N> {
    fn default() -> Self {
        Self {
            name: None,
            namespace: None,
            exe_path: None,
            cmd_args: None,
            languages: None,
            open_ports: None,
            target_pids: None,
            containers_only: false,
            container_name: None,
            k8s_namespace: None,
            k8s_pod_name: None,
            k8s_deployment_name: None,
            k8s_replicaset_name: None,
            k8s_daemonset_name: None,
            k8s_statefulset_name: None,
            k8s_job_name: None,
            k8s_cronjob_name: None,
            k8s_owner_name: None,
            k8s_container_name: None,
            k8s_pod_labels: BTreeMap::new(),
            k8s_pod_annotations: BTreeMap::new(),
            sampler: None,
            exports: None,
            metrics: None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
const fn is_false(flag: &bool) -> bool {
    !*flag
}

impl<N: Notation> RuleConfig<N> {
    fn exports(&self) -> Exports {
        let has = |export| self.exports.as_ref().is_none_or(|all| all.contains(&export));
        let features = self.metrics.map(|metrics| metrics.features);
        Exports { traces: has(Export::Traces), metrics: has(Export::Metrics), features }
    }

    fn rule(&self) -> Rule {
        let pattern = |text: &Option<Text<N>>| text.as_ref().map(|text| text.pattern.clone());
        let metadata = [
            ("container.name", &self.container_name),
            ("k8s.namespace.name", &self.k8s_namespace),
            ("k8s.pod.name", &self.k8s_pod_name),
            ("k8s.deployment.name", &self.k8s_deployment_name),
            ("k8s.replicaset.name", &self.k8s_replicaset_name),
            ("k8s.daemonset.name", &self.k8s_daemonset_name),
            ("k8s.statefulset.name", &self.k8s_statefulset_name),
            ("k8s.job.name", &self.k8s_job_name),
            ("k8s.cronjob.name", &self.k8s_cronjob_name),
            ("k8s.owner.name", &self.k8s_owner_name),
            ("k8s.container.name", &self.k8s_container_name),
        ];
        let patterns = |texts: &BTreeMap<String, Text<N>>| {
            texts.iter().map(|(key, text)| (key.clone(), text.pattern.clone())).collect()
        };
        Rule {
            exe_path: self.exe_path.as_ref().map(|path| path.pattern.clone()),
            cmd_args: pattern(&self.cmd_args),
            languages: pattern(&self.languages),
            open_ports: self.open_ports.clone(),
            target_pids: self.target_pids.clone(),
            containers_only: self.containers_only,
            metadata: metadata.into_iter().filter_map(|(key, text)| Some((key, pattern(text)?))).collect(),
            labels: patterns(&self.k8s_pod_labels),
            annotations: patterns(&self.k8s_pod_annotations),
            treatment: Treatment {
                name: self.name.clone(),
                namespace: self.namespace.clone(),
                sampler: self.sampler.map(SamplerConfig::sampler),
                exports: self.exports(),
            },
        }
    }
}

impl Config {
    /// Which processes are observed.
    pub fn selection(&self) -> Selection {
        fn rules<N: Notation>(rules: &[RuleConfig<N>]) -> impl Iterator<Item = Rule> {
            rules.iter().map(RuleConfig::rule)
        }
        let DiscoveryConfig {
            instrument,
            services,
            exclude_instrument,
            exclude_services,
            default_exclude_instrument,
            exclude_otel_instrumented_services: _,
        } = &self.discovery;
        Selection {
            include: rules(instrument).chain(rules(services)).collect(),
            exclude: rules(exclude_instrument)
                .chain(rules(exclude_services))
                .chain(rules(default_exclude_instrument))
                .collect(),
        }
    }
}

/// How patterns are written.
pub trait Notation: Clone + fmt::Debug + PartialEq + 'static {
    /// What a message says is expected.
    const EXPECTED: &'static str;
    /// `format` in the schema.
    const FORMAT: &'static str;

    /// A pattern of the path of an executable.
    fn executable(text: &str) -> Option<Pattern>;

    /// A pattern of any other text.
    fn text(text: &str) -> Option<Pattern>;
}

/// Shell patterns.
#[derive(Clone, Debug, JsonSchema, PartialEq)]
pub struct Globs;

/// Regular expressions.
#[derive(Clone, Debug, JsonSchema, PartialEq)]
pub struct Regexes;

impl Notation for Globs {
    const EXPECTED: &'static str = "a shell pattern such as `nginx`, `/usr/bin/python*` or `*{ollama,immich}*`";
    const FORMAT: &'static str = "glob";

    fn executable(text: &str) -> Option<Pattern> {
        Pattern::executable(text)
    }

    fn text(text: &str) -> Option<Pattern> {
        Pattern::glob(text)
    }
}

impl Notation for Regexes {
    const EXPECTED: &'static str = "a regular expression such as `nginx`, `/python3?$` or `ollama|immich`";
    const FORMAT: &'static str = "regex";

    fn executable(text: &str) -> Option<Pattern> {
        Pattern::regex(text)
    }

    fn text(text: &str) -> Option<Pattern> {
        Pattern::regex(text)
    }
}

/// A pattern of the path of an executable.
#[derive(Clone, Debug, PartialEq)]
pub struct Executable<N> {
    pattern: Pattern,
    notation: PhantomData<N>,
}

/// A pattern of any other text.
#[derive(Clone, Debug, PartialEq)]
pub struct Text<N> {
    pattern: Pattern,
    notation: PhantomData<N>,
}

impl<N: Notation> Value for Executable<N> {
    const EXPECTED: &'static str = N::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        Some(Self { pattern: N::executable(text)?, notation: PhantomData })
    }

    fn to_text(&self) -> String {
        self.pattern.to_string()
    }

    fn schema() -> Json {
        json!({ "type": "string", "format": N::FORMAT })
    }
}

impl<N: Notation> Value for Text<N> {
    const EXPECTED: &'static str = N::EXPECTED;

    fn from_text(text: &str) -> Option<Self> {
        Some(Self { pattern: N::text(text)?, notation: PhantomData })
    }

    fn to_text(&self) -> String {
        self.pattern.to_string()
    }

    fn schema() -> Json {
        json!({ "type": "string", "format": N::FORMAT })
    }
}

/// Both are read and written as scalars.
macro_rules! scalar {
    ($name:ident) => {
        impl<'de, N: Notation> Deserialize<'de> for $name<N> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                value::text::deserialize(deserializer)
            }
        }

        impl<N: Notation> Serialize for $name<N> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                value::text::serialize(self, serializer)
            }
        }

        impl<N: Notation> JsonSchema for $name<N> {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                Of::<Self>::json_schema(generator)
            }
        }
    };
}

scalar!(Executable);
scalar!(Text);

impl<N> Text<N> {
    /// The pattern.
    pub(super) const fn pattern(&self) -> &Pattern {
        &self.pattern
    }
}

impl Value for Ports {
    const EXPECTED: &'static str = "ports such as `80`, `80,443` or `8000-8999`";

    fn from_text(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn to_text(&self) -> String {
        self.text()
    }
}

impl Value for Pids {
    const EXPECTED: &'static str = "process ids such as `17` or `17,4711`";

    fn from_text(text: &str) -> Option<Self> {
        Self::parse(text)
    }

    fn to_text(&self) -> String {
        self.text()
    }
}
