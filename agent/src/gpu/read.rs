//! Reads devices through NVML.
//!
//! Whatever a device, its driver or the permission does not give is `None`: a function that the library lacks, too. Only
//! an error that says that the device or the driver is gone ends the reading.

use std::{path::Path, sync::Arc};

use foldhash::{HashMap, HashMapExt as _};
use nvml_wrapper::{
    Device, Nvml,
    bitmasks::event::EventTypes,
    enum_wrappers::device::{Clock, EccCounter, MemoryError, PcieUtilCounter, TemperatureSensor},
    enums::{device::UsedGpuMemory, event::XidError},
    error::NvmlError,
    event::EventSet,
    struct_wrappers::device::{ProcessInfo, ProcessUtilizationSample},
};

use super::sample::{DeviceInfo, DeviceSample, ProcessSample, Throttle};

/// Use of a device by a process is told by the driver a few times a second: what is older tells nothing of now.
const USE_WITHIN_US: u64 = 1_000_000;
/// XID events that are taken at once.
const EVENTS: usize = 16;

/// The device, or the driver, does not answer any more.
#[derive(Debug, thiserror::Error)]
#[error("the GPU does not answer")]
pub(super) struct Lost {
    #[source]
    source: NvmlError,
}

/// When something is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// `CLOCK_MONOTONIC`, nanoseconds.
    pub(super) time_ns: u64,
    /// Unix time, microseconds: the clock of NVML's own samples.
    pub(super) unix_us: u64,
    /// Whether what is slow to read is read too.
    pub(super) is_thorough: bool,
}

/// Loads the library and initialises it.
pub(super) fn open(library: &Path) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(library.as_os_str()).init()
}

/// A device that is read.
#[derive(Debug)]
pub(super) struct Handle<'nvml> {
    device: Device<'nvml>,
    pub(super) info: DeviceInfo,
    /// The processes are on the devices that it is divided into.
    is_divided: bool,
    events: Option<EventSet<'nvml>>,
    read_us: u64,
}

/// The devices that answer, MIG devices behind the GPU that they are a part of; and how many there are.
pub(super) fn devices(nvml: &Nvml) -> Result<(Vec<Handle<'_>>, u32), NvmlError> {
    let count = nvml.device_count()?;
    let driver: Option<Arc<str>> = nvml.sys_driver_version().ok().map(Into::into);
    let mut handles = Vec::new();
    for index in 0..count {
        let Ok(device) = nvml.device_by_index(index) else { continue };
        let Some(mut whole) = Handle::new(device, index, driver.clone(), None) else { continue };
        let parts = whole.parts();
        whole.is_divided = !parts.is_empty();
        handles.push(whole);
        handles.extend(parts);
    }
    Ok((handles, count))
}

impl<'nvml> Handle<'nvml> {
    fn new(device: Device<'nvml>, index: u32, driver: Option<Arc<str>>, parent: Option<Arc<str>>) -> Option<Self> {
        let info = DeviceInfo {
            id: device.uuid().ok()?.into(),
            name: device.name().ok().map(Into::into),
            index,
            minor: if parent.is_none() { device.minor_number().ok() } else { None },
            parent,
            driver,
        };
        let events = if info.parent.is_none() { watch(&device) } else { None };
        Some(Self { device, info, is_divided: false, events, read_us: 0 })
    }

    /// The MIG devices that the GPU is divided into.
    fn parts(&self) -> Vec<Self> {
        if !self.device.mig_mode().is_ok_and(|mode| mode.current == 1) {
            return Vec::new();
        }
        let DeviceInfo { index, driver, id, .. } = &self.info;
        let part = |number| {
            let device = self.device.mig_device_by_index(number).ok()?;
            Self::new(device, *index, driver.clone(), Some(Arc::clone(id)))
        };
        (0..self.device.mig_device_count().unwrap_or(0)).filter_map(part).collect()
    }

    /// Everything that can be known of the device now.
    pub(super) fn read(&mut self, at: Moment) -> Result<DeviceSample, Lost> {
        let device = &self.device;
        let millis = |value: Option<u32>| value.map(|value| f64::from(value) / 1e3);
        let clock = |clock| Ok(known(device.clock_info(clock))?.map(|megahertz| f64::from(megahertz) * 1e6));
        // What changes fastest first: the sample's time is theirs.
        let energy = known(device.total_energy_consumption())?.map(|millijoules| millijoules as f64 / 1e3);
        let use_of = known(device.utilization_rates())?;
        let power = millis(known(device.power_usage())?);
        let memory = known(device.memory_info())?;
        let mut sample = DeviceSample {
            time_ns: at.time_ns,
            utilization: use_of.as_ref().map(|it| ratio(it.gpu)),
            memory_utilization: use_of.as_ref().map(|it| ratio(it.memory)),
            memory_used: memory.as_ref().map(|it| it.used),
            memory_total: memory.as_ref().map(|it| it.total),
            power,
            power_limit: millis(known(device.enforced_power_limit())?),
            energy,
            temperature: known(device.temperature(TemperatureSensor::Gpu))?.map(f64::from),
            sm_clock: clock(Clock::SM)?,
            memory_clock: clock(Clock::Memory)?,
            throttle: known(device.current_throttle_reasons())?.map(|reasons| Throttle(reasons.bits())),
            encoder: known(device.encoder_utilization())?.map(|it| ratio(it.utilization)),
            decoder: known(device.decoder_utilization())?.map(|it| ratio(it.utilization)),
            processes: if self.is_divided { None } else { self.processes(at)? },
            xids: self.xids(),
            ..DeviceSample::default()
        };
        if at.is_thorough {
            let errors = |kind| known(device.total_ecc_errors(kind, EccCounter::Volatile));
            sample.ecc_corrected = errors(MemoryError::Corrected)?;
            sample.ecc_uncorrected = errors(MemoryError::Uncorrected)?;
            let kilobytes = |counter| Ok(known(device.pcie_throughput(counter))?.map(|it| f64::from(it) * 1e3));
            sample.pcie_transmit = kilobytes(PcieUtilCounter::Send)?;
            sample.pcie_receive = kilobytes(PcieUtilCounter::Receive)?;
        }
        self.read_us = at.unix_us;
        Ok(sample)
    }

    /// Who uses the device: those that have memory on it, and those that the driver has seen at work.
    fn processes(&self, at: Moment) -> Result<Option<Vec<ProcessSample>>, Lost> {
        let lists = [
            known(self.device.running_compute_processes())?,
            known(self.device.running_graphics_processes())?,
            known(self.device.mps_running_compute_processes())?,
        ];
        let uses = match self.device.process_utilization_stats(at.unix_us.saturating_sub(USE_WITHIN_US)) {
            // Nobody has used it lately.
            Err(NvmlError::NotFound) => Some(Vec::new()),
            uses => known(uses)?,
        };
        if lists.iter().all(Option::is_none) && uses.is_none() {
            return Ok(None);
        }
        Ok(Some(processes(lists.into_iter().flatten().flatten(), uses.as_deref(), self.read_us)))
    }

    fn xids(&self) -> Vec<u64> {
        let Some(events) = &self.events else { return Vec::new() };
        let next = || match events.wait(0).ok()?.event_data {
            Some(XidError::Value(xid)) => Some(xid),
            Some(XidError::Unknown) => Some(0),
            None => None,
        };
        std::iter::from_fn(next).take(EVENTS).collect()
    }
}

/// Puts together what the lists say of processes. `uses` are those of the last second; those since `read_us` count, or,
/// if there are none of a process, its newest one.
fn processes(
    listed: impl Iterator<Item = ProcessInfo>,
    uses: Option<&[ProcessUtilizationSample]>,
    read_us: u64,
) -> Vec<ProcessSample> {
    let mut found: HashMap<u32, ProcessSample> = HashMap::new();
    for info in listed {
        let process = found.entry(info.pid).or_insert_with(|| ProcessSample { pid: info.pid, ..Default::default() });
        if let UsedGpuMemory::Used(bytes) = info.used_gpu_memory {
            process.memory = process.memory.max(Some(bytes));
        }
    }
    // Only processes that did something are told of: of the others it is known that they did not.
    if let Some(uses) = uses {
        for pid in uses.iter().map(|it| it.pid) {
            found.entry(pid).or_insert_with(|| ProcessSample { pid, ..ProcessSample::default() });
        }
        for process in found.values_mut() {
            let own = || uses.iter().filter(|it| it.pid == process.pid);
            let newest_us = own().map(|it| it.timestamp).max().unwrap_or(0);
            let since_us = read_us.min(newest_us.saturating_sub(1));
            let counted: Vec<_> = own().filter(|it| it.timestamp > since_us).collect();
            let mean = |value: fn(&ProcessUtilizationSample) -> u32| {
                let percent: u32 = counted.iter().map(|it| value(it).min(100)).sum();
                Some(f64::from(percent) / 100.0 / counted.len().max(1) as f64)
            };
            process.sm = mean(|it| it.sm_util);
            process.memory_utilization = mean(|it| it.mem_util);
            process.encoder = mean(|it| it.enc_util);
            process.decoder = mean(|it| it.dec_util);
        }
    }
    let mut processes: Vec<_> = found.into_values().collect();
    processes.sort_unstable_by_key(|process| process.pid);
    processes
}

/// A set of the device's critical errors, if it tells of them.
fn watch<'nvml>(device: &Device<'nvml>) -> Option<EventSet<'nvml>> {
    let set = device.nvml().create_event_set().ok()?;
    device.register_events(EventTypes::CRITICAL_XID_ERROR, set).ok()
}

/// What is not known is nothing; a device that is gone is an error.
fn known<T>(result: Result<T, NvmlError>) -> Result<Option<T>, Lost> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(
            source @ (NvmlError::GpuLost
            | NvmlError::ResetRequired
            | NvmlError::Uninitialized
            | NvmlError::DriverNotLoaded
            | NvmlError::LibRmVersionMismatch),
        ) => Err(Lost { source }),
        Err(_) => Ok(None),
    }
}

fn ratio(percent: u32) -> f64 {
    f64::from(percent.min(100)) / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(pid: u32, timestamp: u64, sm_util: u32) -> ProcessUtilizationSample {
        ProcessUtilizationSample { pid, timestamp, sm_util, mem_util: 1, enc_util: 2, dec_util: 3 }
    }

    fn listed(pid: u32, used_gpu_memory: UsedGpuMemory) -> ProcessInfo {
        ProcessInfo { pid, used_gpu_memory, gpu_instance_id: None, compute_instance_id: None }
    }

    #[test]
    fn a_process_in_several_lists_is_one() {
        let lists = [
            listed(2, UsedGpuMemory::Used(10)),
            listed(1, UsedGpuMemory::Unavailable),
            listed(2, UsedGpuMemory::Used(30)),
        ];
        let found = processes(lists.into_iter(), None, 0);
        let memory: Vec<_> = found.iter().map(|it| (it.pid, it.memory, it.sm)).collect();
        assert_eq!(memory, [(1, None, None), (2, Some(30), None)]);
    }

    #[test]
    fn uses_since_the_last_reading_count_else_the_newest() {
        let uses = [used(1, 100, 80), used(1, 200, 25), used(1, 300, 75), used(2, 90, 50), used(2, 95, 60)];
        let found = processes([listed(3, UsedGpuMemory::Used(1))].into_iter(), Some(&uses), 150);
        let sm: Vec<_> = found.iter().map(|it| (it.pid, it.sm)).collect();
        assert_eq!(sm, [(1, Some(0.5)), (2, Some(0.6)), (3, Some(0.0))]);
    }
}
