//! A pod as it is kept, and what its processes are called after it.

use std::{collections::BTreeMap, net::IpAddr};

use coati_common::wellknown::resource as names;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::object;

/// Annotations with this prefix are attributes of the resource.
const DECLARED: &str = "resource.opentelemetry.io/";
/// Such annotations of one pod at most: every span's resource has them.
const MAX_DECLARED: usize = 64;

/// Seconds before the time in the name of a job, and after it, in which its pods are created. The name has the scheduled
/// time; a pod comes later if its job was late, suspended or tried again.
const JOB_EARLY: i64 = 3_600;
const JOB_LATE: i64 = 30 * 86_400;

/// A pod, as far as processes are named after it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pod {
    pub(super) uid: Box<str>,
    pub(super) namespace: Box<str>,
    pub(super) name: Box<str>,
    node: Option<Box<str>>,
    start_time: Option<Box<str>>,
    /// From the one that made the pod to the topmost.
    owners: Box<[Owner]>,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// `resource.opentelemetry.io/…` without the prefix.
    declared: Box<[(Box<str>, Box<str>)]>,
    /// The only container that it can have; set if there is no other.
    pub(super) only_container: Option<Box<str>>,
    /// Another name of its control group: the kubelet names those of static pods by this hash.
    pub(super) config_hash: Option<Box<str>>,
}

/// Who made a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Owner {
    kind: Box<str>,
    name: Box<str>,
}

/// What changes of a pod while it lives: where it is found.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Places {
    /// Id and name of the containers that have been created.
    pub(super) containers: Vec<(Box<str>, Box<str>)>,
    /// Its addresses, unless they are the node's or were given back.
    pub(super) addresses: Vec<IpAddr>,
}

impl Pod {
    /// What is kept of `pod`, `None` if it has no identity.
    pub(super) fn of(pod: &object::Pod) -> Option<Self> {
        let object::Pod { metadata, spec, status } = pod;
        let name: Box<str> = metadata.name.as_deref()?.into();
        let annotations = || metadata.annotations.iter().flatten();
        let mut containers =
            [&spec.containers, &spec.init_containers, &spec.ephemeral_containers].into_iter().flatten();
        let only_container = containers.next().filter(|_| containers.next().is_none());
        Some(Self {
            uid: metadata.uid.as_deref()?.into(),
            namespace: metadata.namespace.as_deref()?.into(),
            node: spec.node_name.as_deref().map(Into::into),
            start_time: status.start_time.as_deref().map(Into::into),
            owners: owners(metadata, &name, spec.node_name.as_deref()).into(),
            labels: metadata.labels.iter().flatten().map(pair).collect(),
            declared: annotations()
                .filter_map(|(key, value)| Some((key.strip_prefix(DECLARED)?.into(), value.as_str().into())))
                .filter(|(key, value): &(Box<str>, Box<str>)| !key.is_empty() && !value.is_empty())
                .take(MAX_DECLARED)
                .collect(),
            only_container: only_container.map(|container| container.name.as_str().into()),
            config_hash: annotations()
                .find(|(key, _)| *key == "kubernetes.io/config.hash")
                .map(|(_, hash)| hash.as_str().into()),
            name,
        })
    }

    /// `service.name`: what an annotation says, else the labels of the application's instance or name, else the topmost
    /// owner, which a pod without one is itself.
    pub(super) fn service_name(&self) -> &str {
        self.declared(names::SERVICE_NAME)
            .or_else(|| self.label("app.kubernetes.io/instance"))
            .or_else(|| self.label("app.kubernetes.io/name"))
            .unwrap_or_else(|| self.top_owner().1)
    }

    /// `service.namespace`: what an annotation says, else the label of the application that this is a part of, else the
    /// namespace.
    pub(super) fn service_namespace(&self) -> &str {
        self.declared(names::SERVICE_NAMESPACE)
            .or_else(|| self.label("app.kubernetes.io/part-of"))
            .unwrap_or(&self.namespace)
    }

    /// Every attribute of a process in `container` of this pod; annotations first, so that they win.
    pub(super) fn attributes(&self, container: Option<&str>, sink: &mut dyn FnMut(&str, &str)) {
        for (key, value) in &self.declared {
            sink(key, value);
        }
        sink(names::SERVICE_NAMESPACE, self.service_namespace());
        let version = self.label("app.kubernetes.io/version");
        let Self { uid, namespace, name, .. } = self;
        let instance = container
            .map_or_else(|| format!("{namespace}.{name}"), |container| format!("{namespace}.{name}.{container}"));
        sink(names::SERVICE_INSTANCE_ID, &instance);
        sink(names::K8S_NAMESPACE_NAME, namespace);
        sink(names::K8S_POD_NAME, name);
        sink(names::K8S_POD_UID, uid);
        let (kind, owner) = self.top_owner();
        let optional = [
            (names::SERVICE_VERSION, version),
            (names::K8S_POD_START_TIME, self.start_time.as_deref()),
            (names::K8S_CONTAINER_NAME, container),
            (names::K8S_NODE_NAME, self.node.as_deref()),
            (names::K8S_OWNER_NAME, Some(owner)),
            (names::K8S_KIND, Some(kind)),
        ];
        let owners = self.owners.iter().filter_map(|owner| Some((owner.attribute()?, Some(&*owner.name))));
        for (key, value) in optional.into_iter().chain(owners) {
            if let Some(value) = value {
                sink(key, value);
            }
        }
    }

    /// Its labels.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        self.labels.iter().map(|(key, value)| (key.as_ref().to_owned(), value.as_ref().to_owned())).collect()
    }

    /// The annotations that are kept: `resource.opentelemetry.io/…`.
    pub(super) fn annotations(&self) -> BTreeMap<String, String> {
        self.declared.iter().map(|(key, value)| (format!("{DECLARED}{key}"), value.as_ref().to_owned())).collect()
    }

    fn declared(&self, key: &str) -> Option<&str> {
        find(&self.declared, key)
    }

    /// An empty label says nothing.
    fn label(&self, key: &str) -> Option<&str> {
        find(&self.labels, key).filter(|value| !value.is_empty())
    }

    /// Kind and name.
    fn top_owner(&self) -> (&str, &str) {
        self.owners.last().map_or(("Pod", &*self.name), |owner| (&*owner.kind, &*owner.name))
    }
}

impl Owner {
    fn new(kind: &str, name: &str) -> Self {
        Self { kind: kind.into(), name: name.into() }
    }

    fn attribute(&self) -> Option<&'static str> {
        Some(match &*self.kind {
            "Deployment" => names::K8S_DEPLOYMENT_NAME,
            "ReplicaSet" => names::K8S_REPLICASET_NAME,
            "StatefulSet" => names::K8S_STATEFULSET_NAME,
            "DaemonSet" => names::K8S_DAEMONSET_NAME,
            "Job" => names::K8S_JOB_NAME,
            "CronJob" => names::K8S_CRONJOB_NAME,
            _ => return None,
        })
    }
}

impl Places {
    /// Where the processes and connections of `pod` are found.
    pub(super) fn of(pod: &object::Pod) -> Self {
        let object::Pod { spec, status, .. } = pod;
        let statuses =
            [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
        let containers = statuses
            .into_iter()
            .flatten()
            .filter_map(|it| Some((container_id(it.container_id.as_deref()?)?.into(), it.name.as_str().into())))
            .collect();
        let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let mut addresses = Vec::new();
        // The node's address is everybody's, and that of a pod that is over may be another pod's by now.
        if !spec.host_network && !is_over {
            let all = status.pod_ip.as_deref().into_iter().chain(status.pod_ips.iter().map(|it| it.ip.as_str()));
            addresses.extend(all.filter_map(|text| text.parse::<IpAddr>().ok()));
            addresses.sort_unstable();
            addresses.dedup();
        }
        Self { containers, addresses }
    }
}

/// The id in `containerd://ID`, `cri-o://ID`, `docker://ID`.
fn container_id(text: &str) -> Option<&str> {
    text.split_once("://").map(|(_, id)| id).filter(|id| !id.is_empty())
}

/// The owners of a pod. Only the one that made it is in the pod; who made that one is told by the names that
/// Kubernetes gives to what it makes, and only believed where something else in the pod agrees.
fn owners(metadata: &ObjectMeta, pod: &str, node: Option<&str>) -> Vec<Owner> {
    let references = metadata.owner_references.as_deref().unwrap_or_default();
    let controller = references.iter().find(|it| it.controller == Some(true)).or_else(|| references.first());
    let Some(controller) = controller else { return Vec::new() };
    let name = controller.name.as_str();
    let label = |key: &str| metadata.labels.as_ref()?.get(key);
    let without_hash = |key: &str| name.strip_suffix(label(key)?.as_str())?.strip_suffix('-');
    let first = Owner::new(&controller.kind, name);
    let above = match controller.kind.as_str() {
        // A static pod, of a file on the node: the kubelet adds the node's name to that in the file.
        "Node" => {
            let name = node.and_then(|node| pod.strip_suffix(node)?.strip_suffix('-')).unwrap_or(pod);
            return vec![Owner::new("Pod", name)];
        }
        "ReplicaSet" => without_hash("pod-template-hash")
            .map(|name| Owner::new("Deployment", name))
            // Argo Rollouts.
            .or_else(|| without_hash("rollouts-pod-template-hash").map(|name| Owner::new("Rollout", name))),
        "Job" => {
            let created = metadata.creation_timestamp.as_ref().map(|time| time.0.as_second());
            cron_job(name, created).map(|name| Owner::new("CronJob", name))
        }
        _ => None,
    };
    [Some(first), above].into_iter().flatten().collect()
}

/// The cron job whose job is called so: `NAME-MINUTES`, of the time for which it was scheduled (before Kubernetes 1.21
/// in seconds), a little before its pod was created.
fn cron_job(job: &str, created: Option<i64>) -> Option<&str> {
    let (name, number) = job.rsplit_once('-')?;
    let scheduled: i64 = number.bytes().all(|digit| digit.is_ascii_digit()).then(|| number.parse().ok())??;
    let scheduled = if number.len() < 10 { scheduled * 60 } else { scheduled };
    let late = created?.checked_sub(scheduled)?;
    (!name.is_empty() && (-JOB_EARLY..JOB_LATE).contains(&late)).then_some(name)
}

fn pair((key, value): (&String, &String)) -> (Box<str>, Box<str>) {
    (key.as_str().into(), value.as_str().into())
}

fn find<'a>(pairs: &'a [(Box<str>, Box<str>)], key: &str) -> Option<&'a str> {
    pairs.iter().find(|(candidate, _)| **candidate == *key).map(|(_, value)| &**value)
}
