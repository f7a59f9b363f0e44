//! Where probes go in uvloop, an event loop of Python that is made with libuv.
//!
//! Nothing of it is exported, but its wheels have all names.

use std::fs::File;

use crate::{
    discover::elf::Functions,
    ebpf::{LoopCall, ProbePoint},
};

/// What calls back what was received, in two ways, and what is asked to send.
const FUNCTIONS: [(&str, LoopCall); 3] = [
    ("__pyx_f_6uvloop_4loop___uv_stream_on_read", LoopCall::UvloopRead),
    ("__pyx_f_6uvloop_4loop___uv_stream_buffered_on_read", LoopCall::UvloopRead),
    ("__pyx_f_6uvloop_4loop_8UVStream__initiate_write", LoopCall::UvloopWrite),
];

/// `None` if one of them is missing: what is known of half a loop would be wrong.
pub(super) fn points(functions: &Functions<'_, File>) -> Option<Vec<ProbePoint>> {
    let places = functions.local(FUNCTIONS.map(|(name, _)| name));
    let point =
        |((_, call), place): ((&str, LoopCall), Option<u64>)| Some(ProbePoint { call: call.into(), offset: place? });
    FUNCTIONS.into_iter().zip(places).map(point).collect()
}
