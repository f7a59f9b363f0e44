//! Contexts of Python, by uprobes on the instructions with which the functions return that make them: a replaced return address
//! would be wrong where greenlets change the stack.

use aya_ebpf::macros::uprobe;
use aya_ebpf::programs::ProbeContext;

use super::go::{RAX, register};
use crate::exchange::Caller;
use crate::python;

/// `PyObject *PyContext_CopyCurrent(void)` returns, or `PyContext_Copy`.
#[uprobe]
pub fn python_context_copied(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| python::copied(Caller::watched()?, register(&ctx, RAX)))();
    0
}

/// `PyObject *PyContext_New(void)` returns.
#[uprobe]
pub fn python_context_made(ctx: ProbeContext) -> u32 {
    let _nothing_to_do = (|| python::made(Caller::watched()?, register(&ctx, RAX)))();
    0
}
