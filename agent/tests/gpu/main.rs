//! GPUs as NVML shows them, without a GPU: see `tests/fake-nvml`.

#[cfg(test)]
mod sampler;
