//! Where probes go in Node.js, in its executable or in `libnode.so`, which export its functions for native modules.

use std::fs::File;

use crate::{
    discover::elf::Functions,
    ebpf::{LoopCall, ProbePoint},
};

/// `node::LibuvStreamWrap::OnUvRead(ssize_t, const uv_buf_t *)`, which calls back what was received.
const READ: &str = "_ZN4node15LibuvStreamWrap8OnUvReadElPK8uv_buf_t";

/// `None` if it is not Node.js.
pub(super) fn point(functions: &Functions<'_, File>) -> Option<ProbePoint> {
    let [read] = functions.exported([READ]);
    Some(ProbePoint { call: LoopCall::NodeRead.into(), offset: read? })
}
