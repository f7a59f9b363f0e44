//! Whose GPUs are, from a kubelet that speaks gRPC on a socket.

use std::{convert::Infallible, sync::Arc};

use http::{Request as HttpRequest, Response as HttpResponse};
use prost::Message as _;
use rstest::rstest;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    server::{Grpc, NamedService, UnaryService},
};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::kubernetes::{
    pod_resources::{
        ClaimResource, ContainerDevices, ContainerResources, DynamicResource, GpuUser, ListRequest, ListResponse,
        PodResources, gpu_users, list,
    },
    testing::cluster,
};

/// `ids` stand apart by spaces.
fn pod(name: &str, container: &str, resource: &str, ids: &str) -> PodResources {
    let devices = vec![ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: ids.split(' ').map(str::to_owned).collect(),
    }];
    let containers = vec![ContainerResources { name: container.to_owned(), devices, dynamic_resources: Vec::new() }];
    PodResources { name: name.to_owned(), namespace: "ml".to_owned(), containers }
}

/// With devices of a claim.
fn claiming(name: &str, driver: &str, devices: &[&str]) -> PodResources {
    let claim_resources = devices
        .iter()
        .map(|device| ClaimResource { driver_name: driver.to_owned(), device_name: (*device).to_owned() })
        .collect();
    let dynamic_resources = vec![DynamicResource { claim_resources }];
    let containers = vec![ContainerResources { name: "main".to_owned(), devices: Vec::new(), dynamic_resources }];
    PodResources { name: name.to_owned(), namespace: "ml".to_owned(), containers }
}

/// The user of the GPU with minor number 1.
#[rstest]
#[case::whole(vec![claiming("ollama", "gpu.nvidia.com", &["gpu-0", "gpu-1"])], Some("ollama"))]
#[case::shared(vec![claiming("a", "gpu.nvidia.com", &["gpu-1"]), claiming("b", "gpu.nvidia.com", &["gpu-1"])], None)]
#[case::part(vec![claiming("a", "gpu.nvidia.com", &["gpu-1-mig-9-4-4"])], None)]
#[case::another_driver(vec![claiming("a", "nic.example", &["gpu-1"])], None)]
fn a_claim_has_gpus_by_their_numbers(#[case] pod_resources: Vec<PodResources>, #[case] expected: Option<&str>) {
    let kubernetes = cluster(&[], &[]);
    kubernetes.shared.set_gpu_users(gpu_users(ListResponse { pod_resources }));
    let user = |minor| kubernetes.gpu_user("GPU-a", minor).map(|user| user.pod.to_string());
    assert_eq!(user(Some(1)).as_deref(), expected);
    assert_eq!((user(None), user(Some(11))), (None, None));
}

/// The user of `GPU-a`, as `POD/CONTAINER`.
#[rstest]
#[case::whole(&[("ollama", "main", "nvidia.com/gpu", "GPU-a")], Some("ollama/main"))]
#[case::mig(&[("ollama", "main", "nvidia.com/mig-1g.5gb", "GPU-a")], Some("ollama/main"))]
#[case::slices_of_one(&[("ollama", "main", "nvidia.com/gpu", "GPU-a::0 GPU-a::1")], Some("ollama/main"))]
#[case::slices_of_two(
    &[("ollama", "main", "nvidia.com/gpu", "GPU-a::0"), ("immich", "main", "nvidia.com/gpu", "GPU-a::1")],
    None
)]
#[case::three(
    &[("a", "m", "nvidia.com/gpu", "GPU-a::0"), ("b", "m", "nvidia.com/gpu", "GPU-a::1"), ("a", "m", "nvidia.com/gpu", "GPU-a::2")],
    None
)]
#[case::another_device(&[("x", "main", "vendor.example/fpga", "GPU-a")], None)]
#[case::another_gpu(&[("x", "main", "nvidia.com/gpu", "GPU-b")], None)]
fn a_gpu_has_a_user_if_it_has_only_one(#[case] pods: &[(&str, &str, &str, &str)], #[case] expected: Option<&str>) {
    let pods = pods.iter().map(|(name, container, resource, ids)| pod(name, container, resource, ids)).collect();
    let users = gpu_users(ListResponse { pod_resources: pods });
    let user = users.get("GPU-a").map(|user| format!("{}/{}", user.pod, user.container));
    assert_eq!(user.as_deref(), expected);
}

#[test]
fn any_bytes_are_an_answer_or_none() {
    let bytes = ListResponse { pod_resources: vec![pod("ollama", "main", "nvidia.com/gpu", "GPU-a")] }.encode_to_vec();
    for length in 0..=bytes.len() {
        if let Ok(response) = ListResponse::decode(&bytes[..length]) {
            assert_eq!(gpu_users(response).contains_key("GPU-a"), length == bytes.len(), "{length}");
        }
    }
}

#[derive(Clone)]
struct Kubelet;

impl UnaryService<ListRequest> for Kubelet {
    type Response = ListResponse;
    type Future = std::future::Ready<Result<Response<ListResponse>, Status>>;

    fn call(&mut self, _: Request<ListRequest>) -> Self::Future {
        let pod_resources = vec![pod("ollama", "main", "nvidia.com/gpu", "GPU-a")];
        std::future::ready(Ok(Response::new(ListResponse { pod_resources })))
    }
}

#[derive(Clone)]
struct Named<S>(S);

impl<S> NamedService for Named<S> {
    const NAME: &'static str = "v1.PodResourcesLister";
}

impl<S: tower::Service<HttpRequest<Body>>> tower::Service<HttpRequest<Body>> for Named<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: HttpRequest<Body>) -> S::Future {
        self.0.call(request)
    }
}

#[tokio::test]
async fn the_kubelet_is_asked_on_its_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("kubelet.sock");
    assert!(list(&socket).await.is_err());

    let listener = UnixListener::bind(&socket).unwrap();
    let service = service_fn(|request: HttpRequest<Body>| async move {
        assert_eq!(request.uri().path(), "/v1.PodResourcesLister/List");
        let response: HttpResponse<Body> = Grpc::new(ProstCodec::default()).unary(Kubelet, request).await;
        Ok::<_, Infallible>(response)
    });
    let server = tonic::transport::Server::builder().add_service(Named(service));
    tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    let users = gpu_users(list(&socket).await.unwrap());
    let expected = GpuUser { namespace: Arc::from("ml"), pod: Arc::from("ollama"), container: Arc::from("main") };
    assert_eq!(users.get("GPU-a"), Some(&expected));
}
