//! What the GPUs of the node did while a request ran.
//!
//! ```text
//! thread `gpu`:      NVML → sampler → History (bounded)
//! kernel programs:   calls of CUDA, counted → CudaCalls
//! thread `capture`:  finished span → GpuSpans → join(history, start, end, process), CudaCalls → attributes
//! relay:             span of an SDK → GpuReader → join(history, …) → attributes
//! /metrics:          History → hw_*, DCGM's names
//! ```
//!
//! Samples carry the clock of the records, so that a span's interval needs no conversion. A node without NVIDIA's
//! library costs one line in the log and a look for the library every minute. docs/gpu.md lists the attributes and
//! says how each is computed.

mod attributes;
mod cuda;
mod cuda_metrics;
mod history;
mod join;
mod locate;
mod metrics;
mod read;
mod reader;
mod requests;
mod sample;
mod sampler;
mod spans;

#[cfg(test)]
pub(crate) mod tests;

use std::{path::PathBuf, time::Duration};

pub use cuda::CudaCalls;
pub use cuda_metrics::CudaMetrics;
pub use history::History;
pub use join::{Interval, Joined, Share, join};
pub use metrics::GpuMetrics;
pub use reader::GpuReader;
pub use sample::{DeviceInfo, DeviceSample, ProcessSample, Throttle};
pub use sampler::{Gpu, GpuError};
pub use spans::{Finished, GpuSpans};

/// How GPUs are looked at.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GpuConfig {
    /// Whether they are.
    pub enabled: bool,
    /// NVIDIA's management library; absent, it is looked for where drivers put it.
    pub library: Option<PathBuf>,
    /// Time between two samples while a request runs in a process that uses a GPU.
    pub interval: Duration,
    /// The same while none does.
    pub idle_interval: Duration,
    /// Whether `/metrics` also has the names of NVIDIA's DCGM exporter.
    pub dcgm_names: bool,
}

impl Default for GpuConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            library: None,
            interval: Duration::from_millis(100),
            idle_interval: Duration::from_secs(1),
            dcgm_names: false,
        }
    }
}
