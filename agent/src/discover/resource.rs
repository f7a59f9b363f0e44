//! The resource that the spans of a process are sent under.

use std::collections::HashSet;

use coati_common::wellknown::resource as names;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, KeyValue, any_value::Value},
    resource::v1::Resource,
};

use super::{
    Process,
    name::{self, Invocation},
    proc_tree::{Facts, ProcTree, file_name},
    selection::Treatment,
};
use crate::kubernetes::Found;

/// What all processes of the node share.
#[derive(Clone, Debug)]
pub struct Host {
    name: Option<String>,
    id: Option<String>,
}

impl Host {
    /// The node whose `/proc` this is.
    pub fn of(tree: &ProcTree) -> Self {
        Self { name: tree.host_name(), id: tree.host_id() }
    }

    /// `host.id`, if it could be read.
    pub fn id(&self) -> Option<&str> {
        self.id.as_deref()
    }

    /// `host.name`, if it could be read.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }
}

/// The process as its spans present it.
///
/// `service.name` is that of the rule that selects it, else `OTEL_SERVICE_NAME`, else that of `OTEL_RESOURCE_ATTRIBUTES`, else
/// what its pod is called, else what Docker calls it, else what the command line tells, or the systemd service where that tells
/// nothing. Other attributes
/// of `OTEL_RESOURCE_ATTRIBUTES` win over those of the pod, and both over what was found out, but not over who made the
/// telemetry.
pub(super) fn describe(host: &Host, tgid: u32, facts: &Facts, pod: Option<&Found>, treatment: &Treatment) -> Process {
    let executable_name = facts.executable_path.as_deref().map(file_name).filter(|name| !name.is_empty());
    let docker = facts.docker.as_ref().filter(|_| pod.is_none());
    let service_name = treatment
        .name
        .clone()
        .or_else(|| declared_name(facts))
        .or_else(|| pod.map(|pod| pod.service_name().to_owned()))
        .or_else(|| docker.map(|container| container.service_name().to_owned()))
        .or_else(|| executable_name.map(|executable_name| own_name(executable_name, facts)))
        .or_else(|| facts.comm.clone())
        .unwrap_or_else(|| UNKNOWN.to_owned());

    let mut attributes = Attributes::default();
    attributes.text(names::SERVICE_NAME, &service_name);
    attributes.optional(names::SERVICE_NAMESPACE, treatment.namespace.as_deref());
    attributes.text(names::TELEMETRY_SDK_LANGUAGE, facts.language.as_str());
    attributes.text(names::TELEMETRY_SDK_NAME, "coati");
    attributes.text(names::TELEMETRY_SDK_VERSION, env!("CARGO_PKG_VERSION"));
    for (key, value) in &facts.declared.attributes {
        attributes.text(key, value);
    }
    if let Some(pod) = pod {
        pod.attributes(&mut |key, value| attributes.text(key, value));
    }
    if let Some(container) = docker {
        attributes.optional(names::SERVICE_NAMESPACE, container.project.as_deref());
        attributes.text(names::CONTAINER_NAME, &container.name);
        attributes.optional(names::CONTAINER_IMAGE_NAME, container.image.as_deref());
    }
    attributes.of_process(host, tgid);
    attributes.optional(names::PROCESS_EXECUTABLE_NAME, executable_name);
    attributes.optional(names::PROCESS_EXECUTABLE_PATH, facts.executable_path.as_deref());
    // A process that sets its title puts all of it into the first argument, passwords of its command line included.
    let command = facts.arguments.first().and_then(|argument| argument.split_whitespace().next());
    attributes.optional(names::PROCESS_COMMAND, command);
    attributes.optional(names::CONTAINER_ID, facts.group.container_id.as_deref());
    Process {
        tgid,
        service_name,
        resource: attributes.into_resource(),
        sampler: treatment.sampler,
        exports: treatment.exports,
    }
}

/// A process that was gone before it could be looked at; `executable_path` is what it was started from, if that is known.
pub(super) fn describe_gone(host: &Host, tgid: u32, executable_path: Option<&str>, treatment: &Treatment) -> Process {
    let executable_name = executable_path.map(file_name).filter(|name| !name.is_empty());
    let service_name = treatment.name.as_deref().or(executable_name).unwrap_or(UNKNOWN).to_owned();
    let mut attributes = Attributes::default();
    attributes.text(names::SERVICE_NAME, &service_name);
    attributes.optional(names::SERVICE_NAMESPACE, treatment.namespace.as_deref());
    attributes.text(names::TELEMETRY_SDK_NAME, "coati");
    attributes.text(names::TELEMETRY_SDK_VERSION, env!("CARGO_PKG_VERSION"));
    attributes.of_process(host, tgid);
    attributes.optional(names::PROCESS_EXECUTABLE_NAME, executable_name);
    attributes.optional(names::PROCESS_EXECUTABLE_PATH, executable_path);
    Process {
        tgid,
        service_name,
        resource: attributes.into_resource(),
        sampler: treatment.sampler,
        exports: treatment.exports,
    }
}

/// `service.name` of a process of which nothing is known.
const UNKNOWN: &str = "unknown";

/// What the program itself is called.
fn own_name(executable_name: &str, facts: &Facts) -> String {
    let Facts { arguments, directory, group, .. } = facts;
    let name = name::service_name(Invocation { executable_name, arguments, directory: directory.as_deref() });
    match &group.unit {
        Some(unit) if name::is_dull(&name, executable_name) => unit.clone(),
        _ => name,
    }
}

fn declared_name(facts: &Facts) -> Option<String> {
    let declared = &facts.declared;
    let of_attributes =
        || declared.attributes.iter().rfind(|(key, value)| key == names::SERVICE_NAME && !value.is_empty());
    declared.service_name.clone().or_else(|| of_attributes().map(|(_, value)| value.clone()))
}

/// Attributes with unique keys: the first value of a key stays.
#[derive(Default)]
struct Attributes {
    keys: HashSet<String>,
    list: Vec<KeyValue>,
}

impl Attributes {
    fn add(&mut self, key: &str, value: Value) {
        if self.keys.insert(key.to_owned()) {
            self.list.push(KeyValue {
                key: key.to_owned(),
                value: Some(AnyValue { value: Some(value) }),
                ..KeyValue::default()
            });
        }
    }

    fn text(&mut self, key: &str, value: &str) {
        self.add(key, Value::StringValue(value.to_owned()));
    }

    fn optional(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn of_process(&mut self, host: &Host, tgid: u32) {
        let instance = host.name.as_ref().map_or_else(|| tgid.to_string(), |host| format!("{host}:{tgid}"));
        self.text(names::SERVICE_INSTANCE_ID, &instance);
        self.optional(names::HOST_NAME, host.name.as_deref());
        self.optional(names::HOST_ID, host.id.as_deref());
        self.text(names::OS_TYPE, "linux");
        self.add(names::PROCESS_PID, Value::IntValue(tgid.into()));
    }

    fn into_resource(self) -> Resource {
        Resource { attributes: self.list, ..Resource::default() }
    }
}
