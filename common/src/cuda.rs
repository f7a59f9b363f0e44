//! What the kernel programs count of a process's calls of CUDA's driver library.
//!
//! Counts only grow. So that it can be told later what was called between any two times, the first call of each slot of
//! [`SLOT_NS`] leaves a mark: what was counted before it, and when the call before it was. Between the last call of a slot
//! and the first of the next one nothing is called, so only within a slot the calls' times are not known.

/// Length of a slot, as a power of two of nanoseconds: 8.4 ms.
pub const SLOT_BITS: u32 = 23;

/// Nanoseconds of a slot.
pub const SLOT_NS: u64 = 1 << SLOT_BITS;

/// Marks that are kept: the last half second of a process that is never quiet. The agent reads them ten times a second.
pub const MARKS: usize = 64;

/// [`Mark::time_ns`] of a mark that is being written.
pub const UNFINISHED: u64 = u64::MAX;

/// What was called.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Calls {
    /// Kernels launched.
    pub launches: u64,
    /// Graphs launched.
    pub graph_launches: u64,
    /// Bytes copied from the host to a device.
    pub to_device_bytes: u64,
    /// Bytes copied from a device to the host.
    pub to_host_bytes: u64,
    /// Bytes copied within a device or between devices.
    pub on_device_bytes: u64,
    /// Bytes copied by calls that do not say in which direction.
    pub unspecified_bytes: u64,
    /// Allocations of device memory that were granted.
    pub allocations: u64,
    /// Bytes of them.
    pub allocated_bytes: u64,
    /// Allocations given back.
    pub frees: u64,
    /// Calls that waited for the device, and have returned.
    pub synchronizations: u64,
    /// Nanoseconds in them, of all threads.
    pub blocked_ns: u64,
}

/// The state before the first call of a slot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Mark {
    /// When that call was; 0 if there is no mark, [`UNFINISHED`] while it is being written.
    pub time_ns: u64,
    /// When the call before it was, 0 if there was none.
    pub before_ns: u64,
    /// What had been called.
    pub calls: Calls,
}

/// Value of the `CUDA` map, whose key is the process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Process {
    /// When the last call was.
    pub last_ns: u64,
    /// The slot that it was in.
    pub slot: u64,
    /// What was called so far.
    pub calls: Calls,
    /// Marks, each at the number of its slot modulo [`MARKS`].
    pub marks: [Mark; MARKS],
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    /// User space reads them as they lie.
    #[test]
    fn there_is_no_padding() {
        assert_eq!(size_of::<Calls>(), 11 * 8);
        assert_eq!(size_of::<Mark>(), 13 * 8);
        assert_eq!(size_of::<Process>(), (13 + MARKS * 13) * 8);
        assert!(MARKS.is_power_of_two());
    }
}
