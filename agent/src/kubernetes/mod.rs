//! What Kubernetes calls the processes of this node and the addresses that they speak to.
//!
//! ```text
//! tokio:             API server → follow (pods of the node, services) → Index (bounded)
//! thread `capture`:  process → container, control group → Kubernetes::find → resource
//!                    address of a peer → Kubernetes::peer → span
//! ```
//!
//! Looking something up takes a lock that the other side holds for one object. Outside a cluster there is no
//! [`Kubernetes`], and nothing of this costs anything. docs/kubernetes.md says what is watched and what comes of it.

mod connect;
mod index;
mod metrics;
mod object;
mod pod;
mod pod_resources;
mod watch;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kube::{Api, Client, runtime::watcher};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch as signal;

use crate::discover::PodFacts;
use index::Index;
pub use index::Peer;
pub use metrics::KubernetesMetrics;
use pod::Pod;
pub use pod_resources::GpuUser;

/// How Kubernetes is asked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct KubernetesConfig {
    /// Whether it is.
    pub enabled: Enabled,
    /// Name of this node in Kubernetes; absent, that of the node on which the agent's own pod is.
    pub node_name: Option<String>,
    /// `k8s.cluster.name`: nothing in a cluster knows it.
    pub cluster_name: Option<String>,
    /// Socket on which the kubelet says whose GPUs are.
    pub pod_resources: PathBuf,
}

impl Default for KubernetesConfig {
    fn default() -> Self {
        let pod_resources = PathBuf::from("/var/lib/kubelet/pod-resources/kubelet.sock");
        Self { enabled: Enabled::Auto, node_name: None, cluster_name: None, pod_resources }
    }
}

/// Whether Kubernetes is asked.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Enabled {
    /// If the agent has a service account or `KUBECONFIG` is set.
    #[default]
    Auto,
    /// Yes; without either the agent does not start.
    Yes,
    /// No.
    No,
}

/// Why Kubernetes cannot be asked at all. That it does not answer is no reason: it may later.
#[derive(Debug, thiserror::Error)]
pub enum KubernetesError {
    /// It is wanted and there is nothing to ask it with.
    #[error("kubernetes.enabled is true, but there is neither a service account nor KUBECONFIG")]
    NoCredentials,
    /// The service account cannot be used.
    #[error("cannot use the service account")]
    ServiceAccount(#[from] kube::config::InClusterError),
    /// The file that `KUBECONFIG` names cannot be used.
    #[error("cannot use the file that KUBECONFIG names")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// They make no client.
    #[error("cannot speak to the API server")]
    Client(#[from] kube::Error),
}

/// Seconds after which a watch is ended by the server and begun again where it was; one that has said nothing for a
/// little longer is taken for dead. Bookmarks come every minute.
const WATCH_SECONDS: u32 = 110;
/// Objects of one page of a list: it is in memory as text and as objects at the same time.
const PAGE: u32 = 250;

/// What is known of the node's pods and the cluster's services. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Kubernetes {
    shared: Arc<Shared>,
}

/// What the watches write and the others read.
#[derive(Debug)]
struct Shared {
    index: RwLock<Index>,
    /// Grows with each change of the index.
    generation: AtomicU64,
    /// Who has been given a GPU, by its UUID.
    gpu_users: RwLock<HashMap<Box<str>, GpuUser>>,
    cluster_name: Option<Box<str>>,
    pods: WatchCounters,
    services: WatchCounters,
    misses: Counter,
}

/// How a watch does.
#[derive(Debug, Default)]
struct WatchCounters {
    restarts: Counter,
    /// Unix seconds.
    synced: AtomicU64,
    /// Whether all there was has been listed once.
    listed: signal::Sender<bool>,
}

/// The pod and container of a process.
#[derive(Clone, Debug)]
pub struct Found {
    pod: Arc<Pod>,
    container: Option<Arc<str>>,
    cluster_name: Option<Box<str>>,
}

impl Kubernetes {
    /// Begins to watch, on the runtime that this is called on; `None` if Kubernetes is not to be asked or not there.
    pub async fn start(config: &KubernetesConfig) -> Result<Option<Self>, KubernetesError> {
        let client = match connect::client(config.enabled).await {
            Ok(client) => client,
            Err(error) if config.enabled == Enabled::Auto => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(error, "pods are not named: Kubernetes cannot be asked");
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let Some(client) = client else { return Ok(None) };
        let kubernetes = Self::new(config.cluster_name.as_deref());
        let shared = Arc::clone(&kubernetes.shared);
        let node = config.node_name.clone();
        tokio::spawn(async move {
            let node = if let Some(node) = node {
                node
            } else {
                let backoff = watcher::DefaultBackoff::default();
                connect::node_name(&client, &connect::own_name(), backoff).await
            };
            shared.follow(client, &node).await;
        });
        Ok(Some(kubernetes))
    }

    /// Knows nothing yet.
    fn new(cluster_name: Option<&str>) -> Self {
        let shared = Shared {
            index: RwLock::default(),
            generation: AtomicU64::new(0),
            gpu_users: RwLock::default(),
            cluster_name: cluster_name.map(Into::into),
            pods: WatchCounters::default(),
            services: WatchCounters::default(),
            misses: Counter::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Asks the kubelet at `socket` whose GPUs are, on the runtime that this is called on, while `has_gpu`.
    pub fn follow_gpus(&self, socket: PathBuf, has_gpu: impl Fn() -> bool + Send + 'static) {
        tokio::spawn(pod_resources::follow(socket, has_gpu, Arc::clone(&self.shared)));
    }

    /// Waits until the pods are known, but no longer than `at_most`.
    pub async fn listed(&self, at_most: Duration) {
        let mut listed = self.shared.pods.listed.subscribe();
        // The sender lives as long as `self`; too late is as good as now.
        let _ = tokio::time::timeout(at_most, listed.wait_for(|listed| *listed)).await;
    }

    /// Whose a process is, by the id of its container and what its control group says of its pod's uid.
    pub(crate) fn find(&self, container: Option<&str>, pod_uid: Option<&str>) -> Option<Found> {
        let found = self.shared.index().find(container, pod_uid);
        if found.is_none() {
            self.shared.misses.inc();
        }
        let (pod, container) = found?;
        Some(Found { pod, container, cluster_name: self.shared.cluster_name.clone() })
    }

    /// Who has this address: a service, or a pod of this node.
    pub(crate) fn peer(&self, address: IpAddr) -> Option<Peer> {
        self.shared.index().peer(address).cloned()
    }

    /// The pod of this node that has this address.
    pub(crate) fn pod_at(&self, address: IpAddr) -> Option<Found> {
        let (pod, container) = self.shared.index().pod_at(address)?;
        Some(Found { pod, container, cluster_name: self.shared.cluster_name.clone() })
    }

    /// The only container that the GPU has been given to, by its UUID or, in a claim, by its minor number.
    pub(crate) fn gpu_user(&self, id: &str, minor: Option<u32>) -> Option<GpuUser> {
        let users = self.shared.gpu_users.read().unwrap_or_else(PoisonError::into_inner);
        let claimed = || users.get(pod_resources::claimed(minor?).as_str());
        users.get(id).or_else(claimed).cloned()
    }

    /// The pod of a container, without counting it as missed if there is none: for what is shown again and again.
    pub(crate) fn container(&self, id: &str) -> Option<GpuUser> {
        let (pod, container) = self.shared.index().find(Some(id), None)?;
        let (namespace, name) = (pod.namespace.as_ref().into(), pod.name.as_ref().into());
        Some(GpuUser { namespace, pod: name, container: container? })
    }

    /// Another number than before if anything is known that was not.
    pub(crate) fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }
}

impl Shared {
    /// Follows the pods of `node` and all services, for ever.
    async fn follow(&self, client: Client, node: &str) {
        tracing::info!(node, "processes are named after the pods of this node");
        let (pods, services) = watched(node);
        let backoff = watcher::DefaultBackoff::default;
        tokio::join!(
            watch::follow(Api::<object::Pod>::all(client.clone()), pods, self, backoff()),
            watch::follow(Api::<object::Service>::all(client), services, self, backoff()),
        );
    }

    fn set_gpu_users(&self, users: HashMap<Box<str>, GpuUser>) {
        *self.gpu_users.write().unwrap_or_else(PoisonError::into_inner) = users;
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        // A thread that panicked while it wrote has left out a part of one object at worst.
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Index) -> bool) {
        let changed = change(&mut self.index.write().unwrap_or_else(PoisonError::into_inner));
        if changed {
            self.generation.fetch_add(1, Ordering::Release);
        }
    }
}

/// What is asked for: the pods of a node, and all services.
fn watched(node: &str) -> (watcher::Config, watcher::Config) {
    let mut pods =
        watcher::Config::default().fields(&format!("spec.nodeName={node}")).any_semantic().timeout(WATCH_SECONDS);
    // "Any" is a list of version 0, which the server answers from its memory, where it has the pods of a node by the node's
    // name: it is what the kubelet asks for too. Such lists have no pages, and this one is short.
    pods.page_size = None;
    (pods, watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE))
}

impl Found {
    /// Whether nothing more is to be found out.
    pub(crate) fn is_complete(&self) -> bool {
        self.container.is_some()
    }

    /// What rules of discovery may ask for.
    pub(crate) fn facts(&self) -> PodFacts {
        let mut facts = PodFacts::default();
        self.attributes(&mut |key, value| {
            facts.attributes.entry(key.to_owned()).or_insert_with(|| value.to_owned());
        });
        (facts.labels, facts.annotations) = (self.pod.labels(), self.pod.annotations());
        facts
    }

    /// `service.name`, unless the process has been given one.
    pub(crate) fn service_name(&self) -> &str {
        self.pod.service_name()
    }

    /// All that is known, as attributes of a resource.
    pub(crate) fn resource(&self) -> Vec<KeyValue> {
        let mut resource = Vec::new();
        let mut add = |key: &str, value: &str| {
            if !resource.iter().any(|known: &KeyValue| known.key == key) {
                let value = Some(AnyValue { value: Some(Value::StringValue(value.to_owned())) });
                resource.push(KeyValue { key: key.to_owned(), value, ..KeyValue::default() });
            }
        };
        add(coati_common::wellknown::resource::SERVICE_NAME, self.service_name());
        self.attributes(&mut add);
        resource
    }

    /// Keys and values; those that come first win.
    pub(crate) fn attributes(&self, sink: &mut dyn FnMut(&str, &str)) {
        self.pod.attributes(self.container.as_deref(), sink);
        if let Some(cluster_name) = &self.cluster_name {
            sink(coati_common::wellknown::resource::K8S_CLUSTER_NAME, cluster_name);
        }
    }
}
