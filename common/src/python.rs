//! What the kernel programs keep of processes that run Python.

/// Where CPython keeps what its threads do, in one process.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct Interpreter {
    /// Address of the pointer to the main interpreter (`_PyRuntime.interpreters.main`).
    pub main: u64,
    /// Address of the type of all contexts (`PyContext_Type`).
    pub context_type: u64,
    /// In an interpreter: the pointer to the newest of its threads' states.
    pub threads: u32,
    /// In such a state: the pointer to the next one.
    pub next: u32,
    /// In it: which thread it is of, as `pthread_self` names it.
    pub thread: u32,
    /// In it: the pointer to the context in which the thread runs.
    pub context: u32,
}

/// A context (`contextvars.Context`) while it lives: where it lies, in a process. The place is used again.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct ContextId {
    /// The process.
    pub tgid: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Its address.
    pub address: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    /// User space reads them as they lie.
    #[test]
    fn there_is_no_padding() {
        assert_eq!(size_of::<Interpreter>(), 2 * 8 + 4 * 4);
        assert_eq!(size_of::<ContextId>(), 4 + 4 + 8);
    }
}
