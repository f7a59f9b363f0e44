//! What is read of a GPU at one time.

use std::sync::Arc;

/// What does not change of a device while it is there.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DeviceInfo {
    /// UUID as NVML gives it, `GPU-…` or `MIG-…`: the value of `hw.id`.
    pub id: Arc<str>,
    /// Product name.
    pub name: Option<Arc<str>>,
    /// NVML's index; of a MIG device that of its GPU.
    pub index: u32,
    /// The number in the name of its device file; none of a MIG device.
    pub minor: Option<u32>,
    /// UUID of the GPU that a MIG device is a part of.
    pub parent: Option<Arc<str>>,
    /// Version of the driver.
    pub driver: Option<Arc<str>>,
}

/// A device at one time. What the device, the driver or the permission does not give is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeviceSample {
    /// When it was read, nanoseconds of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Share of the last driver period in which a kernel ran, 0 to 1.
    pub utilization: Option<f64>,
    /// Share of that period in which device memory was read or written, 0 to 1.
    pub memory_utilization: Option<f64>,
    /// Bytes of device memory in use, by anybody.
    pub memory_used: Option<u64>,
    /// Bytes of device memory.
    pub memory_total: Option<u64>,
    /// Watts.
    pub power: Option<f64>,
    /// Watts that the device may draw.
    pub power_limit: Option<f64>,
    /// Joules since the driver was loaded.
    pub energy: Option<f64>,
    /// Degrees Celsius.
    pub temperature: Option<f64>,
    /// Hertz of the streaming multiprocessors.
    pub sm_clock: Option<f64>,
    /// Hertz of the memory.
    pub memory_clock: Option<f64>,
    /// Why clocks are lower than they could be.
    pub throttle: Option<Throttle>,
    /// Use of the video encoder, 0 to 1.
    pub encoder: Option<f64>,
    /// Use of the video decoder, 0 to 1.
    pub decoder: Option<f64>,
    /// Bytes per second to the host; read once a second only, because reading takes 20 ms.
    pub pcie_transmit: Option<f64>,
    /// Bytes per second from the host; as above.
    pub pcie_receive: Option<f64>,
    /// Memory errors that were corrected since the driver was loaded; read once a second.
    pub ecc_corrected: Option<u64>,
    /// Memory errors that were not.
    pub ecc_uncorrected: Option<u64>,
    /// Critical errors of the driver (XID) since the sample before.
    pub xids: Vec<u64>,
    /// Processes that use the device; `None` if they cannot be listed.
    pub processes: Option<Vec<ProcessSample>>,
}

/// A process on a device at one time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessSample {
    /// Process id, as the agent sees it.
    pub pid: u32,
    /// Bytes of device memory.
    pub memory: Option<u64>,
    /// Use of the streaming multiprocessors, 0 to 1.
    pub sm: Option<f64>,
    /// Use of the memory's bandwidth, 0 to 1.
    pub memory_utilization: Option<f64>,
    /// Use of the encoder, 0 to 1.
    pub encoder: Option<f64>,
    /// Use of the decoder, 0 to 1.
    pub decoder: Option<f64>,
}

/// Reasons for lower clocks, NVML's bits.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Throttle(pub u64);

impl Throttle {
    /// Those that cost speed, with their names. An idle GPU and clocks that somebody chose are none.
    const SLOWDOWNS: [(u64, &'static str); 6] = [
        (0x04, "sw_power_cap"),
        (0x08, "hw_slowdown"),
        (0x10, "sync_boost"),
        (0x20, "sw_thermal_slowdown"),
        (0x40, "hw_thermal_slowdown"),
        (0x80, "hw_power_brake_slowdown"),
    ];

    /// The names of the reasons that cost speed.
    pub fn reasons(self) -> impl Iterator<Item = &'static str> {
        Self::SLOWDOWNS.into_iter().filter(move |(bit, _)| self.0 & bit != 0).map(|(_, name)| name)
    }
}
