//! What the devices do, and when.

use std::{collections::BTreeMap, ffi::c_uint};

use serde::{Deserialize, Serialize};

/// A timeline; its times are milliseconds behind its origin.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeline {
    /// `CLOCK_MONOTONIC` at its start, nanoseconds.
    pub origin_ns: u64,
    /// Version of the driver.
    pub driver_version: String,
    /// From when to when the driver is not loaded.
    pub driver_gone_ms: Vec<(u64, u64)>,
    /// The devices, in NVML's order.
    pub devices: Vec<Device>,
}

/// A device, or a part of one.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Device {
    /// `GPU-…` or `MIG-…`.
    pub uuid: String,
    /// Product name.
    pub name: String,
    /// What it does, in the order of time.
    pub steps: Vec<Step>,
    /// The MIG devices that it is divided into; none, MIG is off.
    pub mig: Vec<Device>,
}

/// What is true of a device from a time on. What is absent the device does not support.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Step {
    /// From when on.
    pub at_ms: u64,
    /// It has fallen off the bus.
    pub gone: bool,
    /// Percent.
    pub utilization: Option<c_uint>,
    /// Percent.
    pub memory_utilization: Option<c_uint>,
    /// Bytes.
    pub memory_used: Option<u64>,
    /// Bytes.
    pub memory_total: Option<u64>,
    /// Milliwatts; the energy counter is their sum over time.
    pub power_mw: Option<c_uint>,
    /// Milliwatts.
    pub power_limit_mw: Option<c_uint>,
    /// The device has no energy counter.
    pub no_energy: bool,
    /// Degrees Celsius.
    pub temperature: Option<c_uint>,
    /// Megahertz.
    pub sm_clock: Option<c_uint>,
    /// Megahertz.
    pub memory_clock: Option<c_uint>,
    /// NVML's bits.
    pub throttle: Option<u64>,
    /// Percent.
    pub encoder: Option<c_uint>,
    /// Percent.
    pub decoder: Option<c_uint>,
    /// Kilobytes per second.
    pub pcie_transmit: Option<c_uint>,
    /// Kilobytes per second.
    pub pcie_receive: Option<c_uint>,
    /// Errors.
    pub ecc_corrected: Option<u64>,
    /// Errors.
    pub ecc_uncorrected: Option<u64>,
    /// Critical errors that happen at the start of this step.
    pub xids: Vec<u64>,
    /// Processes on it.
    pub processes: Option<Vec<Process>>,
    /// Return codes instead of values, by the names of these fields.
    pub errors: BTreeMap<String, c_uint>,
}

/// A process on a device.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Process {
    /// Process id.
    pub pid: c_uint,
    /// Bytes.
    pub memory: u64,
    /// Percent of the multiprocessors.
    pub sm: c_uint,
    /// Percent of the memory's bandwidth.
    pub memory_utilization: c_uint,
    /// Percent.
    pub encoder: c_uint,
    /// Percent.
    pub decoder: c_uint,
}

impl Timeline {
    /// Milliseconds since the origin, 0 before it.
    pub fn elapsed_ms(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.origin_ns) / 1_000_000
    }

    /// Whether the driver is away now.
    pub fn is_driver_gone(&self, now_ns: u64) -> bool {
        let elapsed_ms = self.elapsed_ms(now_ns);
        self.driver_gone_ms.iter().any(|(from_ms, to_ms)| (*from_ms..*to_ms).contains(&elapsed_ms))
    }
}

impl Device {
    /// What is true at a time; the first step before its time too.
    pub fn at(&self, elapsed_ms: u64) -> Option<&Step> {
        self.steps.iter().rev().find(|step| step.at_ms <= elapsed_ms).or_else(|| self.steps.first())
    }

    /// Millijoules since the origin.
    pub fn energy_mj(&self, elapsed_us: u64) -> u64 {
        let mut total_nj = 0_u64;
        for (index, step) in self.steps.iter().enumerate() {
            let from_us = if index == 0 { 0 } else { step.at_ms * 1000 };
            let to_us = self.steps.get(index + 1).map_or(u64::MAX, |next| next.at_ms * 1000).min(elapsed_us);
            // A milliwatt is a nanojoule a microsecond.
            total_nj += to_us.saturating_sub(from_us) * u64::from(step.power_mw.unwrap_or(0));
        }
        total_nj / 1_000_000
    }
}
