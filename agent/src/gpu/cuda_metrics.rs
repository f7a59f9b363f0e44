//! What services call of CUDA, on `/metrics`.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use coati_common::cuda::Calls;
use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::{Registry, Unit},
};

/// Services that get series of their own.
const SERVICES: usize = 100;

type Labels = Vec<(&'static str, String)>;

/// Counters of calls; every clone counts into the same cells.
#[derive(Clone, Debug, Default)]
pub struct CudaMetrics {
    calls: Family<Labels, Counter>,
    copied: Family<Labels, Counter>,
    allocated: Family<Labels, Counter>,
    blocked: Family<Labels, Counter<f64, AtomicU64>>,
    services: Arc<Mutex<HashSet<String>>>,
}

impl CudaMetrics {
    /// Adds the metrics to what `/metrics` shows.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Calls of CUDA's driver: kernels and graphs launched, allocations, and waits for the device";
        registry.register("coati_gpu_cuda_calls", help, self.calls.clone());
        let help = "Bytes that calls of CUDA's driver copied";
        registry.register_with_unit("coati_gpu_cuda_copied", help, Unit::Bytes, self.copied.clone());
        let help = "Bytes of device memory that CUDA's driver was asked for and gave";
        registry.register_with_unit("coati_gpu_cuda_allocated", help, Unit::Bytes, self.allocated.clone());
        let help = "Time that threads waited for the device in calls of CUDA's driver";
        registry.register_with_unit("coati_gpu_cuda_synchronization", help, Unit::Seconds, self.blocked.clone());
    }

    /// Adds what a service has called.
    pub fn count(&self, service: &str, calls: &Calls) {
        if *calls == Calls::default() {
            return;
        }
        let service = vec![("service_name", self.service(service))];
        let with = |key, value: &str| [&service[..], &[(key, value.to_owned())]].concat();
        for (call, count) in [
            ("launch", calls.launches),
            ("graph_launch", calls.graph_launches),
            ("allocate", calls.allocations),
            ("free", calls.frees),
            ("synchronize", calls.synchronizations),
        ] {
            self.calls.get_or_create(&with("call", call)).inc_by(count);
        }
        for (direction, bytes) in [
            ("host_to_device", calls.to_device_bytes),
            ("device_to_host", calls.to_host_bytes),
            ("device_to_device", calls.on_device_bytes),
            ("unspecified", calls.unspecified_bytes),
        ] {
            self.copied.get_or_create(&with("direction", direction)).inc_by(bytes);
        }
        self.allocated.get_or_create(&service).inc_by(calls.allocated_bytes);
        self.blocked.get_or_create(&service).inc_by(calls.blocked_ns as f64 / 1e9);
    }

    fn service(&self, name: &str) -> String {
        let mut services = self.services.lock().unwrap_or_else(PoisonError::into_inner);
        if services.contains(name) || services.len() < SERVICES && services.insert(name.to_owned()) {
            name.to_owned()
        } else {
            "other".to_owned()
        }
    }
}
