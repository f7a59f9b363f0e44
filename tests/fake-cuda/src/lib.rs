//! CUDA's driver library for machines without a GPU: the C symbols of the calls that the agent counts, with CUDA's arguments.
//!
//! Nothing is computed and nothing is copied. What waits for the device sleeps: streams and events are numbers here, of
//! milliseconds. Memory is granted below [`TOO_MUCH`].

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void},
    ptr,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

/// Bytes that no device has.
pub const TOO_MUCH: usize = 1 << 40;

const SUCCESS: c_uint = 0;
const OUT_OF_MEMORY: c_uint = 2;
const NOT_FOUND: c_uint = 500;

type Pointer = *mut c_void;
type Device = usize;

fn wait(milliseconds: usize) -> c_uint {
    thread::sleep(Duration::from_millis(milliseconds as u64));
    SUCCESS
}

const fn grant(bytes: usize) -> c_uint {
    if bytes < TOO_MUCH { SUCCESS } else { OUT_OF_MEMORY }
}

/// The functions, and the table in which `cuGetProcAddress` finds them. Each counts its calls, so that no two are the same
/// code: a linker would make one of them.
macro_rules! functions {
    ($($name:ident($($argument:ident: $type:ty),*) => $result:expr;)*) => {
        $(
            #[doc = concat!("`", stringify!($name), "`")]
            #[unsafe(no_mangle)]
            pub extern "C" fn $name($($argument: $type),*) -> c_uint {
                static CALLS: AtomicU64 = AtomicU64::new(0);
                CALLS.fetch_add(1, Ordering::Relaxed);
                $(let _ = $argument;)*
                $result
            }
        )*

        fn address(name: &str) -> Option<Pointer> {
            match name {
                $(stringify!($name) => Some($name as *const () as Pointer),)*
                _ => None,
            }
        }
    };
}

functions! {
    cuLaunchKernel(function: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: usize, parameters: Pointer, extra: Pointer) => SUCCESS;
    cuLaunchKernel_ptsz(function: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: usize, parameters: Pointer, extra: Pointer) => SUCCESS;
    cuLaunchKernelEx(config: usize, function: usize, parameters: Pointer, extra: Pointer) => SUCCESS;
    cuLaunchCooperativeKernel(function: usize, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint, stream: usize, parameters: Pointer) => SUCCESS;
    cuGraphLaunch(graph: usize, stream: usize) => SUCCESS;
    cuMemcpyHtoD_v2(to: Device, from: Pointer, bytes: usize) => SUCCESS;
    cuMemcpyHtoDAsync_v2(to: Device, from: Pointer, bytes: usize, stream: usize) => SUCCESS;
    cuMemcpyDtoH_v2(to: Pointer, from: Device, bytes: usize) => SUCCESS;
    cuMemcpyDtoHAsync_v2(to: Pointer, from: Device, bytes: usize, stream: usize) => SUCCESS;
    cuMemcpyDtoHAsync_v2_ptsz(to: Pointer, from: Device, bytes: usize, stream: usize) => SUCCESS;
    cuMemcpyDtoD_v2(to: Device, from: Device, bytes: usize) => SUCCESS;
    cuMemcpyDtoDAsync_v2(to: Device, from: Device, bytes: usize, stream: usize) => SUCCESS;
    cuMemcpyPeerAsync(to: Device, there: usize, from: Device, here: usize, bytes: usize, stream: usize) => SUCCESS;
    cuMemcpyAsync(to: Device, from: Device, bytes: usize, stream: usize) => SUCCESS;
    cuMemAlloc_v2(pointer: Pointer, bytes: usize) => grant(bytes);
    cuMemAllocAsync(pointer: Pointer, bytes: usize, stream: usize) => grant(bytes);
    cuMemAllocPitch_v2(pointer: Pointer, pitch: Pointer, width: usize, height: usize, element: c_uint) => grant(width.saturating_mul(height));
    cuMemCreate(handle: Pointer, bytes: usize, properties: Pointer, flags: c_ulonglong) => grant(bytes);
    cuMemFree_v2(pointer: Device) => SUCCESS;
    cuMemFreeAsync(pointer: Device, stream: usize) => SUCCESS;
    cuMemRelease(handle: c_ulonglong) => SUCCESS;
    cuCtxSynchronize() => wait(1);
    cuStreamSynchronize(stream: usize) => wait(stream);
    cuStreamSynchronize_ptsz(stream: usize) => wait(stream);
    cuEventSynchronize(event: usize) => wait(event);
    // Not counted.
    cuMemsetD8_v2(to: Device, value: u8, count: usize) => SUCCESS;
}

/// `cuGetProcAddress`: how CUDA's runtime, and so most programs, come to the functions.
///
/// # Safety
///
/// `symbol` is a text with a closing zero, `to` may be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    to: *mut Pointer,
    _version: c_int,
    _flags: c_ulonglong,
    _status: *mut c_int,
) -> c_uint {
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(symbol) };
    let found = name.to_str().ok().and_then(|name| address(&format!("{name}_v2")).or_else(|| address(name)));
    // SAFETY: the caller's promise.
    unsafe { to.write(found.unwrap_or(ptr::null_mut())) };
    if found.is_some() { SUCCESS } else { NOT_FOUND }
}
