//! Pods and services as the API server sends them, reduced to what is asked of them.
//!
//! What is not listed here is skipped while it is read: `managedFields`, volumes and conditions are most of a pod. Every
//! field may be absent or null, because one object that cannot be read would make the whole list unreadable.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{
    NamespaceResourceScope,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time},
};
use kube::Resource;
use serde::{Deserialize, Deserializer};

/// A pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    #[serde(deserialize_with = "or_default")]
    pub(super) spec: PodSpec,
    #[serde(deserialize_with = "or_default")]
    pub(super) status: PodStatus,
}

/// What is wanted of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) node_name: Option<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) host_network: bool,
    #[serde(deserialize_with = "or_default")]
    pub(super) containers: Vec<Named>,
    #[serde(deserialize_with = "or_default")]
    pub(super) init_containers: Vec<Named>,
    #[serde(deserialize_with = "or_default")]
    pub(super) ephemeral_containers: Vec<Named>,
}

/// A container of the specification.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Named {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
}

/// How it is.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
    pub(super) start_time: Option<String>,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "or_default")]
    pub(super) pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "or_default")]
    pub(super) container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "or_default")]
    pub(super) init_container_statuses: Vec<ContainerStatus>,
    #[serde(deserialize_with = "or_default")]
    pub(super) ephemeral_container_statuses: Vec<ContainerStatus>,
}

/// One address of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodIp {
    #[serde(deserialize_with = "or_default")]
    pub(super) ip: String,
}

/// A container as it runs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ContainerStatus {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    /// `containerd://ID`; absent until the container has been created.
    #[serde(rename = "containerID")]
    pub(super) container_id: Option<String>,
}

/// A service.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    #[serde(deserialize_with = "metadata")]
    pub(super) metadata: ObjectMeta,
    #[serde(deserialize_with = "or_default")]
    pub(super) spec: ServiceSpec,
}

/// What is wanted of it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceSpec {
    /// An address, or `None` as a word for a headless service.
    #[serde(rename = "clusterIP")]
    pub(super) cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "or_default")]
    pub(super) cluster_ips: Vec<String>,
}

macro_rules! resource {
    ($type:ident, $plural:literal) => {
        impl Resource for $type {
            type DynamicType = ();
            type Scope = NamespaceResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                stringify!($type).into()
            }

            fn group((): &()) -> Cow<'_, str> {
                "".into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(Pod, "pods");
resource!(Service, "services");

fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The parts of `metadata` that are used.
#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let Metadata { name, namespace, uid, resource_version, creation_timestamp, labels, annotations, owner_references } =
        or_default(deserializer)?;
    Ok(ObjectMeta {
        name,
        namespace,
        uid,
        resource_version,
        creation_timestamp,
        labels,
        annotations,
        owner_references,
        ..ObjectMeta::default()
    })
}
