//! Whose requests are counted: services, told apart by what is shown of them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use coati_common::wellknown::resource as key;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};

use super::labels::{Labels, OF_TARGET, SOURCE, add_to_text, attribute};
use crate::discover::{Host, Process};

/// Attributes of the resource that are labels on `/metrics` too. What is another one with every restart, such as a pod's UID,
/// is left to traces.
const LABELS: [&str; 14] = [
    key::SERVICE_NAMESPACE,
    key::K8S_NAMESPACE_NAME,
    key::K8S_POD_NAME,
    key::K8S_CONTAINER_NAME,
    key::K8S_NODE_NAME,
    key::K8S_DEPLOYMENT_NAME,
    key::K8S_STATEFULSET_NAME,
    key::K8S_DAEMONSET_NAME,
    key::K8S_REPLICASET_NAME,
    key::K8S_JOB_NAME,
    key::K8S_CRONJOB_NAME,
    key::K8S_CLUSTER_NAME,
    key::K8S_OWNER_NAME,
    key::K8S_KIND,
];

/// Attributes that the processes of one service do not share: its metrics are of all of them.
const OF_ONE_PROCESS: [&str; 5] = [
    key::PROCESS_PID,
    key::PROCESS_EXECUTABLE_NAME,
    key::PROCESS_EXECUTABLE_PATH,
    key::PROCESS_COMMAND,
    key::CONTAINER_ID,
];

/// A service on this node, in a pod if there is one; or the node itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) k8s_namespace: String,
    pub(crate) k8s_cluster: String,
    /// Its labels on `/metrics`, without braces.
    pub(crate) text: String,
    /// Its labels in metrics of spans.
    pub(crate) span_text: String,
    /// Its resource in OTLP.
    pub(crate) resource: Vec<KeyValue>,
    /// The labels of `target_info`.
    pub(crate) info: Arc<Labels>,
}

/// A service and its number, which no other service has ever had.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) id: u64,
    pub(super) service: Arc<Service>,
}

/// The services of the processes that have been seen.
#[derive(Debug, Default)]
pub(super) struct Services {
    /// By where the process lies in memory: it stays there as long as it is in here.
    of_process: HashMap<usize, (Arc<Process>, Known), foldhash::fast::RandomState>,
    by_text: HashMap<String, Known>,
    last_id: u64,
}

impl Services {
    /// The service of this process.
    pub(super) fn of(&mut self, process: &Arc<Process>) -> Known {
        let address = Arc::as_ptr(process) as usize;
        if let Some((_, known)) = self.of_process.get(&address) {
            return known.clone();
        }
        let service = Service::of(process);
        let known = self.by_text.entry(service.text.clone()).or_insert_with(|| {
            self.last_id += 1;
            Known { id: self.last_id, service: Arc::new(service) }
        });
        self.of_process.insert(address, (Arc::clone(process), known.clone()));
        known.clone()
    }

    /// The processes, with their services.
    pub(super) fn processes(&self) -> impl Iterator<Item = (Arc<Process>, Arc<Service>)> {
        self.of_process.values().map(|(process, known)| (Arc::clone(process), Arc::clone(&known.service)))
    }

    /// All of which there are processes or series.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.by_text.values().map(|known| &known.service)
    }

    /// Forgets processes and services that nobody else knows any more.
    pub(super) fn forget_unused(&mut self) {
        self.of_process.retain(|_, (process, _)| Arc::strong_count(process) > 1);
        let used: HashSet<u64> = self.of_process.values().map(|(_, known)| known.id).collect();
        self.by_text.retain(|_, known| Arc::strong_count(&known.service) > 1 || used.contains(&known.id));
    }
}

impl Service {
    /// The node, of which there is what has no service: what the agent tells of itself too.
    pub(crate) fn node(host: &Host) -> Self {
        let mut resource = vec![
            attribute(key::SERVICE_NAME, Value::StringValue("coati-agent".to_owned())),
            attribute(key::SERVICE_VERSION, Value::StringValue(env!("CARGO_PKG_VERSION").to_owned())),
        ];
        for (name, value) in
            [(key::SERVICE_INSTANCE_ID, host.name()), (key::HOST_NAME, host.name()), (key::HOST_ID, host.id())]
        {
            resource.extend(value.map(|value| attribute(name, Value::StringValue(value.to_owned()))));
        }
        Self { resource, ..Self::default() }
    }

    fn of(process: &Process) -> Self {
        let all = &process.resource.attributes;
        let find = |name: &str| process.attribute(name);
        let name = process.service_name.as_str();
        let namespace = find(key::SERVICE_NAMESPACE);
        let instance = instance(process, find(key::SERVICE_INSTANCE_ID), find(key::HOST_NAME));
        let job = if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") };
        let mut shown = String::new();
        // The last two are what Prometheus makes of the resource of what it gets by OTLP.
        let labels = [(key::SERVICE_NAME, name)]
            .into_iter()
            .chain(LABELS.map(|name| (name, find(name))))
            .chain([("instance", instance), ("job", &*job)]);
        for (name, value) in labels.filter(|(_, value)| !value.is_empty()) {
            add_to_text(&mut shown, name, value);
        }
        let mut span_text = shown.clone();
        let mut info = Labels { text: shown.clone(), attributes: Vec::new() };
        for (name, value) in [("telemetry.sdk.language", find(key::TELEMETRY_SDK_LANGUAGE)), ("source", SOURCE)] {
            if !value.is_empty() {
                add_to_text(&mut span_text, name, value);
                add_to_text(&mut info.text, name, value);
            }
        }
        for name in OF_TARGET {
            if !find(name).is_empty() {
                add_to_text(&mut info.text, name, find(name));
            }
        }
        let mut resource: Vec<KeyValue> = all
            .iter()
            .filter(|it| it.key != key::SERVICE_INSTANCE_ID && !OF_ONE_PROCESS.contains(&it.key.as_str()))
            .cloned()
            .collect();
        if !instance.is_empty() {
            resource.push(attribute(key::SERVICE_INSTANCE_ID, Value::StringValue(instance.to_owned())));
        }
        info.attributes.clone_from(&resource);
        Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            k8s_namespace: find(key::K8S_NAMESPACE_NAME).to_owned(),
            k8s_cluster: find(key::K8S_CLUSTER_NAME).to_owned(),
            text: shown,
            span_text,
            resource,
            info: Arc::new(info),
        }
    }
}

/// `service.instance.id`, but without the process's number, which is added where nothing else tells instances apart: a
/// server with many workers is one instance, and a command that is run every minute does not become a new one each time.
fn instance<'a>(process: &Process, instance: &'a str, host: &'a str) -> &'a str {
    let number = process.tgid.to_string();
    match instance.strip_suffix(&number) {
        Some("") => host,
        Some(rest) if rest.strip_suffix(':') == Some(host) => host,
        _ => instance,
    }
}
