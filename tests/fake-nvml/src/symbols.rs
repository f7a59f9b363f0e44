//! The C symbols, in the versions that the agent's binding calls.

use std::{
    ffi::{c_char, c_uint, c_ulonglong},
    ptr,
};

use nvml_wrapper_sys::bindings::{
    nvmlDevice_t, nvmlEventData_t, nvmlEventSet_t, nvmlMemory_v2_t, nvmlProcessInfo_t, nvmlProcessUtilizationSample_t,
    nvmlReturn_t, nvmlUtilization_t,
};

use crate::{MIG, code, now_ns, state, timeline::Step, unix_us};

/// `nvmlEventTypeXidCriticalError`.
const XID_EVENT: c_ulonglong = 8;
/// "Not known", where NVML has no other way to say so.
const NO_VALUE: c_uint = c_uint::MAX;

fn handle(device: nvmlDevice_t) -> usize {
    device.addr()
}

/// Handles are numbers; nobody but this library looks behind them.
fn device(handle: usize) -> nvmlDevice_t {
    ptr::without_provenance_mut(handle)
}

/// Writes a result to where the caller wants it.
///
/// # Safety
///
/// `to` is null or may be written to.
unsafe fn give<T>(to: *mut T, result: Result<T, c_uint>) -> nvmlReturn_t {
    match result {
        Ok(_) if to.is_null() => code::INVALID_ARGUMENT,
        Ok(value) => {
            // SAFETY: not null, and the caller gave it to be written to.
            unsafe { to.write(value) };
            code::SUCCESS
        }
        Err(code) => code,
    }
}

/// Writes a text with its closing zero.
///
/// # Safety
///
/// `to` has room for `length` bytes.
unsafe fn give_text(to: *mut c_char, length: c_uint, text: Result<String, c_uint>) -> nvmlReturn_t {
    let text = match text {
        Ok(text) => text,
        Err(code) => return code,
    };
    if to.is_null() || text.len() >= length as usize {
        return code::INSUFFICIENT_SIZE;
    }
    // SAFETY: text and zero are no longer than `length`.
    unsafe {
        ptr::copy_nonoverlapping(text.as_ptr().cast(), to, text.len());
        to.add(text.len()).write(0);
    }
    code::SUCCESS
}

/// Writes a list the way that NVML does: without room it tells how much is needed.
///
/// # Safety
///
/// `count` may be read and written, `to` has room for that many.
unsafe fn give_list<T>(to: *mut T, count: *mut c_uint, list: Result<Vec<T>, c_uint>) -> nvmlReturn_t {
    let list = match list {
        Ok(list) => list,
        Err(code) => return code,
    };
    if count.is_null() {
        return code::INVALID_ARGUMENT;
    }
    let length = list.len();
    // SAFETY: not null, and the caller gave it to be read and written.
    let room = unsafe { count.replace(length as c_uint) } as usize;
    if room < length || (to.is_null() && length > 0) {
        return code::INSUFFICIENT_SIZE;
    }
    if !to.is_null() {
        // SAFETY: the caller has room for at least as many.
        unsafe { ptr::copy_nonoverlapping(list.as_ptr(), to, length) };
    }
    code::SUCCESS
}

#[unsafe(no_mangle)]
extern "C" fn nvmlInit_v2() -> nvmlReturn_t {
    state().initialise().err().unwrap_or(code::SUCCESS)
}

#[unsafe(no_mangle)]
extern "C" fn nvmlShutdown() -> nvmlReturn_t {
    state().shut_down();
    code::SUCCESS
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlSystemGetDriverVersion(version: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let text = state().timeline().map(|timeline| timeline.driver_version.clone());
    // SAFETY: as the caller promises.
    unsafe { give_text(version, length, text) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> nvmlReturn_t {
    let result = state().timeline().map(|timeline| timeline.devices.len() as c_uint);
    // SAFETY: as the caller promises.
    unsafe { give(count, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, to: *mut nvmlDevice_t) -> nvmlReturn_t {
    let number = index as usize + 1;
    let result = state().now(number).map(|_| device(number));
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

/// Whole devices are numbered as they are listed.
#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMinorNumber(device: nvmlDevice_t, minor: *mut c_uint) -> nvmlReturn_t {
    let number = handle(device);
    let result = state().now(number).map(|_| number.saturating_sub(1) as c_uint);
    // SAFETY: as the caller promises.
    unsafe { give(minor, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetName(device: nvmlDevice_t, name: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let text = state().now(handle(device)).map(|(device, _)| device.name.clone());
    // SAFETY: as the caller promises.
    unsafe { give_text(name, length, text) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUUID(device: nvmlDevice_t, uuid: *mut c_char, length: c_uint) -> nvmlReturn_t {
    let text = state().now(handle(device)).map(|(device, _)| device.uuid.clone());
    // SAFETY: as the caller promises.
    unsafe { give_text(uuid, length, text) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetUtilizationRates(device: nvmlDevice_t, to: *mut nvmlUtilization_t) -> nvmlReturn_t {
    let result = state().value(handle(device), "utilization", |step| {
        Some(nvmlUtilization_t { gpu: step.utilization?, memory: step.memory_utilization.unwrap_or(0) })
    });
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: nvmlDevice_t, to: *mut nvmlMemory_v2_t) -> nvmlReturn_t {
    if to.is_null() {
        return code::INVALID_ARGUMENT;
    }
    // SAFETY: not null; the caller has set the version.
    let version = unsafe { (*to).version };
    if version as usize != size_of::<nvmlMemory_v2_t>() | 2 << 24 {
        return code::INVALID_ARGUMENT;
    }
    let result = state().value(handle(device), "memory", |step| {
        let (total, used) = (step.memory_total?, step.memory_used?);
        Some(nvmlMemory_v2_t { version, total, reserved: 0, free: total.saturating_sub(used), used })
    });
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

/// Values that are one number of a step.
macro_rules! numbers {
    ($($symbol:ident $name:literal $pick:expr;)*) => {$(
        #[unsafe(no_mangle)]
        unsafe extern "C" fn $symbol(device: nvmlDevice_t, to: *mut c_uint) -> nvmlReturn_t {
            let pick: fn(&Step) -> Option<c_uint> = $pick;
            let result = state().value(handle(device), $name, pick);
            // SAFETY: as the caller promises.
            unsafe { give(to, result) }
        }
    )*};
}

numbers! {
    nvmlDeviceGetPowerUsage "power" |step| step.power_mw;
    nvmlDeviceGetEnforcedPowerLimit "power_limit" |step| step.power_limit_mw;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTotalEnergyConsumption(device: nvmlDevice_t, to: *mut c_ulonglong) -> nvmlReturn_t {
    let state = state();
    let result = state.value(handle(device), "energy", |step| step.power_mw.filter(|_| !step.no_energy));
    let result = result.and_then(|_| {
        let elapsed_us = now_ns().saturating_sub(state.timeline()?.origin_ns) / 1000;
        Ok(state.device(handle(device))?.energy_mj(elapsed_us))
    });
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTemperature(device: nvmlDevice_t, _sensor: c_uint, to: *mut c_uint) -> nvmlReturn_t {
    let result = state().value(handle(device), "temperature", |step| step.temperature);
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetClockInfo(device: nvmlDevice_t, clock: c_uint, to: *mut c_uint) -> nvmlReturn_t {
    // NVML_CLOCK_SM and NVML_CLOCK_MEM.
    let pick = |step: &Step| match clock {
        1 => step.sm_clock,
        2 => step.memory_clock,
        _ => None,
    };
    let result = state().value(handle(device), "clock", pick);
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetCurrentClocksThrottleReasons(
    device: nvmlDevice_t,
    to: *mut c_ulonglong,
) -> nvmlReturn_t {
    let result = state().value(handle(device), "throttle", |step| step.throttle);
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetEncoderUtilization(
    device: nvmlDevice_t,
    to: *mut c_uint,
    period_us: *mut c_uint,
) -> nvmlReturn_t {
    let result = state().value(handle(device), "encoder", |step| step.encoder);
    // SAFETY: as the caller promises.
    unsafe { give(period_us, Ok(167_000)).max(give(to, result)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetDecoderUtilization(
    device: nvmlDevice_t,
    to: *mut c_uint,
    period_us: *mut c_uint,
) -> nvmlReturn_t {
    let result = state().value(handle(device), "decoder", |step| step.decoder);
    // SAFETY: as the caller promises.
    unsafe { give(period_us, Ok(167_000)).max(give(to, result)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetPcieThroughput(
    device: nvmlDevice_t,
    counter: c_uint,
    to: *mut c_uint,
) -> nvmlReturn_t {
    // NVML_PCIE_UTIL_TX_BYTES is 0.
    let pick = |step: &Step| if counter == 0 { step.pcie_transmit } else { step.pcie_receive };
    let result = state().value(handle(device), "pcie", pick);
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetTotalEccErrors(
    device: nvmlDevice_t,
    kind: c_uint,
    _counter: c_uint,
    to: *mut c_ulonglong,
) -> nvmlReturn_t {
    // NVML_MEMORY_ERROR_TYPE_CORRECTED is 0.
    let pick = |step: &Step| if kind == 0 { step.ecc_corrected } else { step.ecc_uncorrected };
    let result = state().value(handle(device), "ecc", pick);
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let result = state().value(handle(device), "processes", |step| {
        let info = |pid, memory| nvmlProcessInfo_t {
            pid,
            usedGpuMemory: memory,
            gpuInstanceId: NO_VALUE,
            computeInstanceId: NO_VALUE,
        };
        Some(step.processes.as_ref()?.iter().map(|process| info(process.pid, process.memory)).collect())
    });
    // SAFETY: as the caller promises.
    unsafe { give_list(to, count, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let result = state().value(handle(device), "processes", |step| step.processes.as_ref().map(|_| Vec::new()));
    // SAFETY: as the caller promises.
    unsafe { give_list(to, count, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMPSComputeRunningProcesses_v3(
    device: nvmlDevice_t,
    count: *mut c_uint,
    to: *mut nvmlProcessInfo_t,
) -> nvmlReturn_t {
    let result = state().value(handle(device), "processes", |step| step.processes.as_ref().map(|_| Vec::new()));
    // SAFETY: as the caller promises.
    unsafe { give_list(to, count, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetProcessUtilization(
    device: nvmlDevice_t,
    to: *mut nvmlProcessUtilizationSample_t,
    count: *mut c_uint,
    since_us: c_ulonglong,
) -> nvmlReturn_t {
    let now_us = unix_us();
    let result = state().value(handle(device), "process_utilization", |step| {
        let processes = step.processes.as_ref()?.iter();
        let at_work = processes.filter(|it| it.sm + it.memory_utilization + it.encoder + it.decoder > 0);
        let sample = |process: &crate::timeline::Process| nvmlProcessUtilizationSample_t {
            pid: process.pid,
            timeStamp: now_us,
            smUtil: process.sm,
            memUtil: process.memory_utilization,
            encUtil: process.encoder,
            decUtil: process.decoder,
        };
        Some(at_work.map(sample).collect::<Vec<_>>())
    });
    let result = match result {
        Ok(samples) if samples.is_empty() || since_us >= now_us => Err(code::NOT_FOUND),
        result => result,
    };
    // SAFETY: as the caller promises.
    unsafe { give_list(to, count, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigMode(
    device: nvmlDevice_t,
    current: *mut c_uint,
    pending: *mut c_uint,
) -> nvmlReturn_t {
    let mode = state().now(handle(device)).map(|(device, _)| c_uint::from(!device.mig.is_empty()));
    // SAFETY: as the caller promises.
    unsafe { give(current, mode).max(give(pending, mode)) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMaxMigDeviceCount(device: nvmlDevice_t, count: *mut c_uint) -> nvmlReturn_t {
    let result = state().now(handle(device)).map(|(device, _)| device.mig.len() as c_uint);
    // SAFETY: as the caller promises.
    unsafe { give(count, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlDeviceGetMigDeviceHandleByIndex(
    whole: nvmlDevice_t,
    index: c_uint,
    to: *mut nvmlDevice_t,
) -> nvmlReturn_t {
    let number = handle(whole) * MIG + index as usize;
    let state = state();
    let exists = state.now(handle(whole)).and_then(|(device, _)| device.mig.get(index as usize).ok_or(code::NOT_FOUND));
    let result = exists.map(|_| device(number));
    // SAFETY: as the caller promises.
    unsafe { give(to, result) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetCreate(set: *mut nvmlEventSet_t) -> nvmlReturn_t {
    let mut state = state();
    state.sets.push(None);
    let number = state.sets.len();
    // SAFETY: as the caller promises.
    unsafe { give(set, Ok(ptr::without_provenance_mut(number))) }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceRegisterEvents(device: nvmlDevice_t, _types: c_ulonglong, set: nvmlEventSet_t) -> nvmlReturn_t {
    let mut state = state();
    if let Err(code) = state.value(handle(device), "events", |_| Some(())) {
        return code;
    }
    match state.sets.get_mut(set.addr().wrapping_sub(1)) {
        Some(place) => {
            *place = Some(handle(device));
            code::SUCCESS
        }
        None => code::INVALID_ARGUMENT,
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn nvmlEventSetWait_v2(
    set: nvmlEventSet_t,
    to: *mut nvmlEventData_t,
    _timeout_ms: c_uint,
) -> nvmlReturn_t {
    let event = state().next_xid(set.addr()).ok_or(code::TIMEOUT);
    let data = event.map(|(number, xid)| nvmlEventData_t {
        device: device(number),
        eventType: XID_EVENT,
        eventData: xid,
        gpuInstanceId: NO_VALUE,
        computeInstanceId: NO_VALUE,
    });
    // SAFETY: as the caller promises.
    unsafe { give(to, data) }
}

#[unsafe(no_mangle)]
extern "C" fn nvmlEventSetFree(set: nvmlEventSet_t) -> nvmlReturn_t {
    if let Some(place) = state().sets.get_mut(set.addr().wrapping_sub(1)) {
        *place = None;
    }
    code::SUCCESS
}
