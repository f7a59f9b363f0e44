//! What the kernel programs keep of programs written in Go.

/// A goroutine while it lives: where the runtime keeps it, in a process. The runtime uses the place again.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct GoroutineId {
    /// The process.
    pub tgid: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Address of its `runtime.g`.
    pub address: u64,
}

/// A goroutine, by the number that the runtime gives to it and never to another one of the process.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct Goroutine {
    /// The process.
    pub tgid: u32,
    /// Reserved, 0.
    pub reserved: u32,
    /// Its number.
    pub number: u64,
}

/// Where `runtime.g` has two of its fields, in the version of Go that a process was written in.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct Layout {
    /// `goid`, its number.
    pub number: u32,
    /// `parentGoid`, the number of the goroutine that has started it; 0 where there is none.
    pub creator: u32,
}

/// Bytes of what is kept of a goroutine's call of `crypto/tls`.
pub const CALL_BYTES: usize = 72;

/// Bytes of what is kept of a goroutine's send.
pub const SEND_BYTES: usize = 224;

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    /// User space reads them as they lie.
    #[test]
    fn there_is_no_padding() {
        assert_eq!(size_of::<GoroutineId>(), 4 + 4 + 8);
        assert_eq!(size_of::<Goroutine>(), 4 + 4 + 8);
        assert_eq!(size_of::<Layout>(), 4 + 4);
    }
}
