//! Calls of CUDA's driver library, by uprobes on its functions: how often, how many bytes, how long. Nothing is told call by
//! call.

use aya_ebpf::macros::{uprobe, uretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};

use crate::cuda::{self, pending};

/// `cuLaunchKernel(…)`, `cuLaunchKernelEx(…)`, `cuLaunchCooperativeKernel(…)`
#[uprobe]
pub fn cuda_launch(_ctx: ProbeContext) -> u32 {
    cuda::count(|calls| &raw mut calls.launches, 1);
    0
}

/// `cuGraphLaunch(graph, stream)`
#[uprobe]
pub fn cuda_graph_launch(_ctx: ProbeContext) -> u32 {
    cuda::count(|calls| &raw mut calls.graph_launches, 1);
    0
}

/// `cuMemcpyHtoD(device, host, bytes)`, `cuMemcpyHtoDAsync(device, host, bytes, stream)`
#[uprobe]
pub fn cuda_copy_to_device(ctx: ProbeContext) -> u32 {
    cuda::count(|calls| &raw mut calls.to_device_bytes, ctx.arg(2).unwrap_or(0));
    0
}

/// `cuMemcpyDtoH(host, device, bytes)`, `cuMemcpyDtoHAsync(host, device, bytes, stream)`
#[uprobe]
pub fn cuda_copy_to_host(ctx: ProbeContext) -> u32 {
    cuda::count(|calls| &raw mut calls.to_host_bytes, ctx.arg(2).unwrap_or(0));
    0
}

/// `cuMemcpyDtoD(to, from, bytes)`, `cuMemcpyDtoDAsync(to, from, bytes, stream)`
#[uprobe]
pub fn cuda_copy_on_device(ctx: ProbeContext) -> u32 {
    cuda::count(|calls| &raw mut calls.on_device_bytes, ctx.arg(2).unwrap_or(0));
    0
}

/// `cuMemcpyPeer(to, context, from, context, bytes)`, `cuMemcpyPeerAsync(…)`
#[uprobe]
pub fn cuda_copy_peer(ctx: ProbeContext) -> u32 {
    cuda::count(|calls| &raw mut calls.on_device_bytes, ctx.arg(4).unwrap_or(0));
    0
}

/// `cuMemcpy(to, from, bytes)`, `cuMemcpyAsync(to, from, bytes, stream)`: the addresses alone tell the direction, to who knows
/// them.
#[uprobe]
pub fn cuda_copy(ctx: ProbeContext) -> u32 {
    cuda::count(|calls| &raw mut calls.unspecified_bytes, ctx.arg(2).unwrap_or(0));
    0
}

/// `cuMemAlloc(pointer, bytes)`, and others that have the size there.
#[uprobe]
pub fn cuda_allocate(ctx: ProbeContext) -> u32 {
    cuda::enter(pending::ALLOCATION, ctx.arg(1).unwrap_or(0));
    0
}

/// `cuMemAllocPitch(pointer, pitch, width, height, element)`
#[uprobe]
pub fn cuda_allocate_pitch(ctx: ProbeContext) -> u32 {
    let (width, height) = (ctx.arg::<u64>(2).unwrap_or(0), ctx.arg::<u64>(3).unwrap_or(0));
    cuda::enter(pending::ALLOCATION, width.wrapping_mul(height));
    0
}

/// `cuMemFree(pointer)`, `cuMemFreeAsync(pointer, stream)`, `cuMemRelease(handle)`
#[uprobe]
pub fn cuda_free(_ctx: ProbeContext) -> u32 {
    cuda::count(|calls| &raw mut calls.frees, 1);
    0
}

/// `cuCtxSynchronize()`, `cuStreamSynchronize(stream)`, `cuEventSynchronize(event)`
#[uprobe]
pub fn cuda_synchronize(_ctx: ProbeContext) -> u32 {
    cuda::enter(pending::SYNCHRONIZATION, cuda::now());
    0
}

/// The return of those that allocate or wait.
#[uretprobe]
pub fn cuda_returned(ctx: RetProbeContext) -> u32 {
    cuda::returned(ctx.ret::<u32>());
    0
}
