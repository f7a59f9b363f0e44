//! Which processes are observed, and what the rules say of them.

use std::collections::BTreeMap;

use super::pattern::Pattern;
use crate::{metrics::Features, span::Sampler};

/// Which processes spans are made of: those that an `include` rule matches (every one if there are no such rules) and
/// no `exclude` rule does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Rules of which one must match, if there are any. The first that does says how the process is called and sampled.
    pub include: Vec<Rule>,
    /// Rules of which none may match.
    pub exclude: Vec<Rule>,
}

/// Conditions that must all hold; a rule without any matches nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rule {
    /// Path of the executable.
    pub exe_path: Option<Pattern>,
    /// The command line behind the program's name, words separated by spaces.
    pub cmd_args: Option<Pattern>,
    /// `telemetry.sdk.language`.
    pub languages: Option<Pattern>,
    /// Ports of which the process listens on one.
    pub open_ports: Option<Ports>,
    /// Process ids of which it has one.
    pub target_pids: Option<Pids>,
    /// It runs in a container.
    pub containers_only: bool,
    /// What is known of its pod and container, by attribute (`k8s.pod.name`).
    pub metadata: Vec<(&'static str, Pattern)>,
    /// Labels of its pod.
    pub labels: BTreeMap<String, Pattern>,
    /// Annotations of its pod.
    pub annotations: BTreeMap<String, Pattern>,
    /// Not a condition: what is done with the processes that it matches.
    pub treatment: Treatment,
}

/// What a rule says of a process that it matches.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Treatment {
    /// `service.name`, instead of what was found out.
    pub name: Option<String>,
    /// `service.namespace`.
    pub namespace: Option<String>,
    /// How its spans are sampled, if not as all others.
    pub sampler: Option<Sampler>,
    /// What is made of its requests.
    pub exports: Exports,
}

/// What is made of the requests of a process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Exports {
    /// Spans.
    pub traces: bool,
    /// Metrics.
    pub metrics: bool,
    /// Which, if not those of all others.
    pub features: Option<Features>,
}

impl Default for Exports {
    fn default() -> Self {
        Self { traces: true, metrics: true, features: None }
    }
}

impl Exports {
    /// Which metrics are made, where `otherwise` are of all others.
    pub fn features(self, otherwise: Features) -> Features {
        if self.metrics { self.features.unwrap_or(otherwise) } else { Features::NONE }
    }

    const fn is_nothing(self) -> bool {
        !self.traces && !self.metrics
    }
}

/// What is known of the pod and the container of a process. Empty where there is none, or nothing is known of it yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodFacts {
    /// By name of the attribute, such as `k8s.pod.name` and `container.name`.
    pub attributes: BTreeMap<String, String>,
    /// Labels of the pod.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
}

/// What rules ask of a process.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    /// Its id.
    pub tgid: u32,
    /// Path of its executable.
    pub executable_path: Box<str>,
    /// Its command line without the program's name.
    pub arguments: Box<str>,
    /// `telemetry.sdk.language`, empty if it is not known.
    pub language: &'static str,
    /// Id of the container that it runs in.
    pub container_id: Option<Box<str>>,
    /// What Docker calls that.
    pub container_name: Option<Box<str>>,
    /// Uid of its pod, as its control group has it.
    pub pod_uid: Option<Box<str>>,
}

impl Selection {
    /// True if rules ask for what may change while a process runs: its ports, or what is known of its pod. What is not
    /// selected now may be later.
    pub fn may_change(&self) -> bool {
        self.include.iter().chain(&self.exclude).any(|rule| {
            let Rule { open_ports, metadata, labels, annotations, .. } = rule;
            open_ports.is_some() || !(metadata.is_empty() && labels.is_empty() && annotations.is_empty())
        })
    }

    /// True if a rule wants metrics of processes and no spans.
    pub fn has_metrics_only(&self) -> bool {
        self.include.iter().any(|rule| !rule.treatment.exports.traces)
    }

    /// What is to be done with a process; `None` if it is not observed. `listening_on` and `pod` are asked only if a rule
    /// needs them.
    pub fn treatment(
        &self,
        subject: &Subject,
        listening_on: impl Fn() -> Vec<u16>,
        pod: impl Fn() -> PodFacts,
    ) -> Option<Treatment> {
        let matches = |rule: &&Rule| rule.matches(subject, &listening_on, &pod);
        let treatment = match &self.include[..] {
            [] => Treatment::default(),
            rules => rules.iter().find(matches)?.treatment.clone(),
        };
        (!treatment.exports.is_nothing() && !self.exclude.iter().any(|rule| matches(&rule))).then_some(treatment)
    }
}

impl Rule {
    fn matches(&self, subject: &Subject, listening_on: &impl Fn() -> Vec<u16>, pod: &impl Fn() -> PodFacts) -> bool {
        let Self {
            exe_path,
            cmd_args,
            languages,
            open_ports,
            target_pids,
            containers_only,
            metadata,
            labels,
            annotations,
            treatment: _,
        } = self;
        let asks_for_pod = !(metadata.is_empty() && labels.is_empty() && annotations.is_empty());
        let texts =
            [(exe_path, &*subject.executable_path), (cmd_args, &*subject.arguments), (languages, subject.language)];
        let has_text = texts.iter().any(|(pattern, _)| pattern.is_some());
        if !has_text && !asks_for_pod && open_ports.is_none() && target_pids.is_none() && !containers_only {
            return false;
        }
        // What costs least first.
        texts.into_iter().all(|(pattern, text)| pattern.as_ref().is_none_or(|pattern| pattern.is_match(text)))
            && target_pids.as_ref().is_none_or(|pids| pids.0.contains(&subject.tgid))
            && (!containers_only || subject.container_id.is_some())
            && (!asks_for_pod || self.matches_pod(&pod()))
            && open_ports.as_ref().is_none_or(|ports| listening_on().into_iter().any(|port| ports.contains(port)))
    }

    /// What is not known matches no pattern.
    fn matches_pod(&self, pod: &PodFacts) -> bool {
        let has = |of: &BTreeMap<String, String>, key: &str, pattern: &Pattern| {
            of.get(key).is_some_and(|value| pattern.is_match(value))
        };
        self.metadata.iter().all(|(key, pattern)| has(&pod.attributes, key, pattern))
            && self.labels.iter().all(|(key, pattern)| has(&pod.labels, key, pattern))
            && self.annotations.iter().all(|(key, pattern)| has(&pod.annotations, key, pattern))
    }
}

/// A set of ports, written `80,443,8000-8999`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ports(Vec<(u16, u16)>);

impl Ports {
    /// Reads the notation, `None` if it is malformed or empty.
    pub fn parse(text: &str) -> Option<Self> {
        let ranges = text.split(',').map(|range| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first <= last).then_some((first, last))
        });
        ranges.collect::<Option<_>>().map(Self)
    }

    /// The notation.
    pub fn text(&self) -> String {
        let range = |(first, last): &(u16, u16)| {
            if first == last { first.to_string() } else { format!("{first}-{last}") }
        };
        self.0.iter().map(range).collect::<Vec<_>>().join(",")
    }

    fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|(first, last)| (*first..=*last).contains(&port))
    }
}

/// A set of process ids, written `17,4711`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pids(Vec<u32>);

impl Pids {
    /// Reads the notation, `None` if it is malformed or empty.
    pub fn parse(text: &str) -> Option<Self> {
        text.split(',').map(|pid| pid.trim().parse().ok().filter(|pid| *pid > 0)).collect::<Option<_>>().map(Self)
    }

    /// The notation.
    pub fn text(&self) -> String {
        self.0.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
#[path = "selection_tests.rs"]
mod tests;
