//! NVIDIA's management library (NVML) for machines without a GPU: its C symbols, those that the agent calls, answering
//! from a timeline.
//!
//! The timeline is a JSON file: `$COATI_FAKE_NVML`, else the file beside this library with `.json` behind its name.
//! [`timeline`] has its format. Every copy of the library that is loaded has a state of its own.

mod symbols;
pub mod timeline;

use std::{
    ffi::c_uint,
    fs,
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};
use timeline::{Device, Step, Timeline};

/// The variable with the timeline's path.
pub const VARIABLE: &str = "COATI_FAKE_NVML";

/// Return codes of NVML that are used here.
mod code {
    use std::ffi::c_uint;

    pub(super) const SUCCESS: c_uint = 0;
    pub(super) const UNINITIALIZED: c_uint = 1;
    pub(super) const INVALID_ARGUMENT: c_uint = 2;
    pub(super) const NOT_SUPPORTED: c_uint = 3;
    pub(super) const NOT_FOUND: c_uint = 6;
    pub(super) const INSUFFICIENT_SIZE: c_uint = 7;
    pub(super) const DRIVER_NOT_LOADED: c_uint = 9;
    pub(super) const TIMEOUT: c_uint = 10;
    pub(super) const GPU_IS_LOST: c_uint = 15;
    pub(super) const UNKNOWN: c_uint = 999;
}

/// MIG devices have handles from here on: so many for each GPU.
const MIG: usize = 1000;

/// What the library remembers between calls.
struct State {
    timeline: Option<Timeline>,
    /// `nvmlInit` without `nvmlShutdown`.
    users: u32,
    /// XID events that were told, by GPU.
    told: Vec<usize>,
    /// The handle of the device whose events each event set waits for.
    sets: Vec<Option<usize>>,
}

static STATE: Mutex<State> = Mutex::new(State { timeline: None, users: 0, told: Vec::new(), sets: Vec::new() });

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Reads the timeline anew, as a driver that is loaded again does.
    fn initialise(&mut self) -> Result<(), c_uint> {
        let text = fs::read_to_string(path().ok_or(code::UNKNOWN)?).map_err(|_| code::DRIVER_NOT_LOADED)?;
        let timeline: Timeline = serde_json::from_str(&text).map_err(|_| code::UNKNOWN)?;
        if timeline.is_driver_gone(now_ns()) {
            return Err(code::DRIVER_NOT_LOADED);
        }
        self.told.resize(timeline.devices.len(), 0);
        self.timeline = Some(timeline);
        self.users += 1;
        Ok(())
    }

    fn shut_down(&mut self) {
        self.users = self.users.saturating_sub(1);
        if self.users == 0 {
            self.timeline = None;
        }
    }

    /// The timeline of a driver that answers.
    fn timeline(&self) -> Result<&Timeline, c_uint> {
        let timeline = self.timeline.as_ref().ok_or(code::UNINITIALIZED)?;
        if timeline.is_driver_gone(now_ns()) { Err(code::UNINITIALIZED) } else { Ok(timeline) }
    }

    /// The device with a handle.
    fn device(&self, handle: usize) -> Result<&Device, c_uint> {
        let devices = &self.timeline()?.devices;
        let whole = if handle >= MIG { handle / MIG } else { handle };
        let device = devices.get(whole.wrapping_sub(1)).ok_or(code::INVALID_ARGUMENT)?;
        if handle < MIG { Ok(device) } else { device.mig.get(handle % MIG).ok_or(code::INVALID_ARGUMENT) }
    }

    /// The device, and what is true of it now.
    fn now(&self, handle: usize) -> Result<(&Device, &Step), c_uint> {
        let timeline = self.timeline()?;
        let device = self.device(handle)?;
        let step = device.at(timeline.elapsed_ms(now_ns())).ok_or(code::GPU_IS_LOST)?;
        if step.gone { Err(code::GPU_IS_LOST) } else { Ok((device, step)) }
    }

    /// A value of the device now; the code that the timeline has for it, or that it is not supported.
    fn value<T>(&self, handle: usize, name: &str, pick: impl Fn(&Step) -> Option<T>) -> Result<T, c_uint> {
        let (_, step) = self.now(handle)?;
        match step.errors.get(name) {
            Some(code) => Err(*code),
            None => pick(step).ok_or(code::NOT_SUPPORTED),
        }
    }

    /// The next XID event of the device that a set waits for.
    fn next_xid(&mut self, set: usize) -> Option<(usize, u64)> {
        let handle = (*self.sets.get(set.wrapping_sub(1))?)?;
        let timeline = self.timeline().ok()?;
        let elapsed_ms = timeline.elapsed_ms(now_ns());
        let steps = self.device(handle).ok()?.steps.iter().filter(|step| step.at_ms <= elapsed_ms);
        let told = self.told.get(handle.wrapping_sub(1)).copied()?;
        let xid = *steps.flat_map(|step| &step.xids).nth(told)?;
        *self.told.get_mut(handle.wrapping_sub(1))? += 1;
        Some((handle, xid))
    }
}

/// `CLOCK_MONOTONIC`, nanoseconds.
fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// The file with the timeline.
fn path() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        return Some(path.into());
    }
    // The mapping that this function lies in is that of the library's file.
    let here = path as fn() -> Option<PathBuf> as usize;
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let own = maps.lines().find(|line| {
        let range = line.split(' ').next().and_then(|range| range.split_once('-'));
        let [from, to] =
            range.map_or([None, None], |(from, to)| [from, to].map(|at| usize::from_str_radix(at, 16).ok()));
        from.is_some_and(|from| from <= here) && to.is_some_and(|to| here < to)
    })?;
    let file = own.get(own.find('/')?..)?;
    Some(format!("{file}.json").into())
}
