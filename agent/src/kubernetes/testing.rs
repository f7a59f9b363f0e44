//! What other modules test with: a cluster that is known without a server.

use serde_json::Value;

use super::{GpuUser, Kubernetes, index::Watched as _, object};

/// Knows these pods and services.
pub(crate) fn cluster(pods: &[Value], services: &[Value]) -> Kubernetes {
    let kubernetes = Kubernetes::new(Some("home"));
    for pod in pods {
        set_pod(&kubernetes, pod);
    }
    for service in services {
        set_service(&kubernetes, service);
    }
    kubernetes
}

/// The service is so now.
pub(crate) fn set_service(kubernetes: &Kubernetes, service: &Value) {
    let service: object::Service = serde_json::from_value(service.clone()).unwrap();
    kubernetes.shared.change(|index| service.apply(index));
}

/// The pod is so now.
pub(crate) fn set_pod(kubernetes: &Kubernetes, pod: &Value) {
    let pod: object::Pod = serde_json::from_value(pod.clone()).unwrap();
    kubernetes.shared.change(|index| pod.apply(index));
}

/// The pod is gone.
pub(crate) fn delete_pod(kubernetes: &Kubernetes, pod: &Value) {
    let pod: object::Pod = serde_json::from_value(pod.clone()).unwrap();
    kubernetes.shared.change(|index| object::Pod::delete(pod.metadata.uid.as_deref().unwrap(), index));
}

/// The GPU is a container's.
pub(crate) fn give_gpu(kubernetes: &Kubernetes, id: &str, namespace: &str, pod: &str, container: &str) {
    let user = GpuUser { namespace: namespace.into(), pod: pod.into(), container: container.into() };
    kubernetes.shared.set_gpu_users([(id.into(), user)].into());
}
