//! Which container the kubelet has given a GPU to.
//!
//! `v1.PodResourcesLister` on a socket of the node (`staging/src/k8s.io/kubelet/pkg/apis/podresources/v1/api.proto` of
//! Kubernetes). Only what is asked of it is declared here; protobuf skips the rest.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use http::{Uri, uri::PathAndQuery};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{Request, Status, client::Grpc, transport::Endpoint};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::Shared;

/// How often the kubelet is asked; it does not tell by itself.
const INTERVAL: Duration = Duration::from_secs(15);
/// How long it may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);
const LIST: &str = "/v1.PodResourcesLister/List";

/// A container of a pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GpuUser {
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub pod: Arc<str>,
    /// Name of the container.
    pub container: Arc<str>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ListRequest {}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ListResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) pod_resources: Vec<PodResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct PodResources {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) namespace: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) containers: Vec<ContainerResources>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ContainerResources {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) devices: Vec<ContainerDevices>,
    /// From Kubernetes 1.34 on, 1.27 behind a feature gate.
    #[prost(message, repeated, tag = "5")]
    pub(super) dynamic_resources: Vec<DynamicResource>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ContainerDevices {
    #[prost(string, tag = "1")]
    pub(super) resource_name: String,
    #[prost(string, repeated, tag = "2")]
    pub(super) device_ids: Vec<String>,
}

/// What a claim of the pod has been given.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct DynamicResource {
    #[prost(message, repeated, tag = "4")]
    pub(super) claim_resources: Vec<ClaimResource>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct ClaimResource {
    #[prost(string, tag = "2")]
    pub(super) driver_name: String,
    #[prost(string, tag = "4")]
    pub(super) device_name: String,
}

/// NVIDIA's driver of dynamic resources. It calls a whole GPU by its minor number: `gpu-0`.
const DRIVER: &str = "gpu.nvidia.com";

/// Asks now and then, for ever, while there is a socket and a GPU.
pub(super) async fn follow(socket: PathBuf, has_gpu: impl Fn() -> bool, shared: Arc<Shared>) {
    let mut is_away = false;
    loop {
        if has_gpu() && socket.exists() {
            match list(&socket).await {
                Ok(response) => {
                    is_away = false;
                    shared.set_gpu_users(gpu_users(response));
                }
                Err(status) => {
                    if !std::mem::replace(&mut is_away, true) {
                        tracing::warn!(%status, "the kubelet does not say whose GPUs are, tried again");
                    }
                }
            }
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// All that the kubelet has given to containers.
pub(super) async fn list(socket: &Path) -> Result<ListResponse, Status> {
    let path = socket.to_owned();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // A name has to be there; the socket is what is connected to.
    let channel = Endpoint::from_static("http://localhost").timeout(TIMEOUT).connect_with_connector_lazy(connector);
    let mut client = Grpc::new(channel);
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static(LIST);
    let codec = ProstCodec::<ListRequest, ListResponse>::default();
    Ok(client.unary(Request::new(ListRequest {}), path, codec).await?.into_inner())
}

/// What a GPU that a claim was given is called among users.
pub(super) fn claimed(minor: u32) -> String {
    format!("gpu-{minor}")
}

/// Who has each GPU, by its UUID, or by its [`claimed`] name. One that several containers share has no single user and is left out; the processes on it
/// tell whose they are.
pub(super) fn gpu_users(response: ListResponse) -> HashMap<Box<str>, GpuUser> {
    let mut users: HashMap<Box<str>, Option<GpuUser>> = HashMap::new();
    for PodResources { name, namespace, containers } in response.pod_resources {
        for container in containers {
            let user = GpuUser {
                namespace: namespace.as_str().into(),
                pod: name.as_str().into(),
                container: container.name.as_str().into(),
            };
            let devices = container.devices.iter().filter(|it| it.resource_name.starts_with("nvidia.com/"));
            let claims = container.dynamic_resources.iter().flat_map(|it| &it.claim_resources);
            let claimed = claims.filter(|it| it.driver_name == DRIVER).map(|it| &it.device_name);
            for id in devices.flat_map(|it| &it.device_ids).chain(claimed) {
                let before = users.insert(gpu(id).into(), Some(user.clone()));
                if before.is_some_and(|before| before.as_ref() != Some(&user)) {
                    users.insert(gpu(id).into(), None);
                }
            }
        }
    }
    users.into_iter().filter_map(|(id, user)| Some((id, user?))).collect()
}

/// The UUID of a replica by time-slicing, `GPU-…::3`.
fn gpu(id: &str) -> &str {
    id.split_once("::").map_or(id, |(id, _)| id)
}
