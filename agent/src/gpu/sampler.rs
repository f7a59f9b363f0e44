//! The thread that reads the devices.

use std::{
    io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nvml_wrapper::{Nvml, error::NvmlError};
use rustix::time::{ClockId, clock_gettime};

use super::{
    GpuConfig,
    history::{History, Relative},
    locate,
    read::{self, Handle, Lost, Moment},
};
use crate::discover::ProcTree;

/// How long after the last request of a process that uses a GPU samples are still taken often.
const LINGER: Duration = Duration::from_secs(3);
/// How often what is slow to read is read, and devices are counted.
const THOROUGH: Duration = Duration::from_secs(1);
/// Waits before a driver or a device that went away is looked for again, doubled each time.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(1));
/// How often a node without the library is looked at again: drivers are installed while it runs.
const LOOK_AGAIN: Duration = Duration::from_mins(1);
/// After so long without a loss the waits begin anew.
const HEALTHY: Duration = Duration::from_mins(1);

/// Why GPUs are not looked at.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// No thread for the sampler.
    #[error("cannot start the thread that reads the GPUs")]
    Thread(#[source] io::Error),
}

/// The sampler's end that the other threads hold. Ends the sampler when it is dropped.
#[derive(Debug)]
pub struct Gpu {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    config: GpuConfig,
}

/// What the threads share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    history: Mutex<History>,
    /// When somebody last wanted samples often.
    wanted_ns: AtomicU64,
    stop: AtomicBool,
}

impl Shared {
    /// The samples so far. Short to hold: both sides only copy.
    pub(super) fn history(&self) -> MutexGuard<'_, History> {
        // A thread that panicked while it added a sample leaves at worst one out.
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gpu {
    /// Starts the sampler; `tree` tells who the processes on the devices are.
    pub fn start(config: &GpuConfig, tree: ProcTree) -> Result<Self, GpuError> {
        let shared = Arc::new(Shared::default());
        let sampler = Sampler { config: config.clone(), tree, shared: Arc::clone(&shared) };
        let thread = thread::Builder::new().name("gpu".to_owned()).spawn(move || sampler.run());
        let thread = thread.map_err(GpuError::Thread)?;
        Ok(Self { shared, thread: Some(thread), config: config.clone() })
    }

    /// What somebody else has read.
    #[cfg(test)]
    pub(super) fn of(history: History, config: &GpuConfig) -> Self {
        let shared = Shared { history: Mutex::new(history), ..Shared::default() };
        Self { shared: Arc::new(shared), thread: None, config: config.clone() }
    }

    /// What was read so far.
    pub fn history(&self) -> MutexGuard<'_, History> {
        self.shared.history()
    }

    /// Samples are wanted often, from now on and for a while.
    pub fn want(&self, now_ns: u64) {
        let before_ns = self.shared.wanted_ns.swap(now_ns, Ordering::Relaxed);
        if now_ns.saturating_sub(before_ns) >= LINGER.as_nanos() as u64
            && let Some(thread) = self.thread()
        {
            thread.unpark();
        }
    }

    /// How it was told to look at GPUs.
    pub const fn config(&self) -> &GpuConfig {
        &self.config
    }

    /// Asks whether there is a device, now or at any time later.
    pub fn is_there(&self) -> impl Fn() -> bool + Send + use<> {
        let shared = self.shared();
        move || !shared.history().devices().is_empty()
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn thread(&self) -> Option<&Thread> {
        self.thread.as_ref().map(JoinHandle::thread)
    }
}

impl Drop for Gpu {
    /// The thread may be in a call of the driver that takes long, so it is not waited for.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread() {
            thread.unpark();
        }
    }
}

/// How a session ended.
struct Ended {
    lived: Duration,
    /// Some devices still answered.
    is_partial: bool,
}

struct Sampler {
    config: GpuConfig,
    tree: ProcTree,
    shared: Arc<Shared>,
}

impl Sampler {
    fn run(self) {
        let mut told = Told::default();
        let mut wait = RETRY.0;
        while !self.is_stopped() {
            let pause = match self.open() {
                Ok(nvml) => {
                    let Ended { lived, is_partial } = self.session(&nvml, wait, &mut told);
                    wait = if lived >= HEALTHY { RETRY.0 } else { (wait * 2).min(RETRY.1) };
                    if is_partial {
                        // Devices that do answer are not left alone for longer than opening takes.
                        continue;
                    }
                    self.shared.history().lose_all();
                    wait
                }
                Err(None) => {
                    told.once("NVIDIA's management library is not on this node: spans have no GPU attributes");
                    LOOK_AGAIN
                }
                Err(Some(error)) => {
                    told.once(&format!("the NVIDIA driver does not answer ({error}): spans have no GPU attributes"));
                    wait = (wait * 2).min(RETRY.1);
                    wait
                }
            };
            self.sleep(pause);
        }
    }

    /// The library, initialised; `None` if there is none.
    fn open(&self) -> Result<Nvml, Option<NvmlError>> {
        let roots = [Path::new("/"), Path::new("/proc/1/root")];
        let mut failure = None;
        for path in locate::candidates(self.config.library.as_deref(), &roots) {
            match read::open(&path) {
                Ok(nvml) => return Ok(nvml),
                // One that cannot be loaded may be of another machine type.
                Err(error) => failure = Some(error),
            }
        }
        Err(failure)
    }

    /// Reads until the driver is gone, or until a device has been gone for `patience`, as it may be back then.
    fn session(&self, nvml: &Nvml, patience: Duration, told: &mut Told) -> Ended {
        let begin_ns = monotonic_ns();
        let ended = |is_partial| Ended { lived: Duration::from_nanos(monotonic_ns() - begin_ns), is_partial };
        let (mut handles, count) = match read::devices(nvml) {
            Ok(found) => found,
            Err(error) => {
                told.once(&format!("the NVIDIA driver does not answer ({error}): spans have no GPU attributes"));
                return ended(false);
            }
        };
        let names: Vec<_> = handles.iter().filter_map(|handle| handle.info.name.as_deref()).collect();
        told.once(&format!("GPUs: {}", if names.is_empty() { "none".to_owned() } else { names.join(", ") }));
        let mut thorough_ns = 0;
        let mut relatives = Vec::new();
        let mut reopen_ns = if (handles.len() as u32) < count { Some(begin_ns) } else { None };
        while !self.is_stopped() && !handles.is_empty() {
            let now_ns = monotonic_ns();
            let is_thorough = now_ns.saturating_sub(thorough_ns) >= THOROUGH.as_nanos() as u64;
            if is_thorough {
                thorough_ns = now_ns;
                let is_other = nvml.device_count().map_or(true, |now| now != count);
                reopen_ns = reopen_ns.or(is_other.then_some(now_ns));
            }
            let lost = self.read(&mut handles, is_thorough);
            for (id, error) in lost {
                let reason = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                tracing::warn!(%id, reason, "a GPU does not answer any more");
                reopen_ns = reopen_ns.or(Some(now_ns));
            }
            self.know_relatives(&mut relatives);
            if reopen_ns.is_some_and(|since_ns| now_ns.saturating_sub(since_ns) >= patience.as_nanos() as u64) {
                break;
            }
            let took = Duration::from_nanos(monotonic_ns().saturating_sub(now_ns));
            self.sleep(self.pace(now_ns).saturating_sub(took));
        }
        ended(!handles.is_empty())
    }

    /// One sample of every device; the devices that do not answer leave `handles`.
    fn read(&self, handles: &mut Vec<Handle<'_>>, is_thorough: bool) -> Vec<(Arc<str>, Lost)> {
        let mut lost = Vec::new();
        handles.retain_mut(|handle| {
            let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let at = Moment { time_ns: monotonic_ns(), unix_us: unix.as_micros() as u64, is_thorough };
            let result = handle.read(at);
            let mut history = self.shared.history();
            match result {
                Ok(sample) => history.push(&handle.info, sample),
                Err(error) => {
                    history.lose(&handle.info.id);
                    lost.push((Arc::clone(&handle.info.id), error));
                    return false;
                }
            }
            true
        });
        lost
    }

    /// Looks at the processes that have come to use a device since the last time.
    fn know_relatives(&self, known: &mut Vec<Relative>) {
        let mut pids: Vec<u32> = self.shared.history().current_processes().map(|(_, process)| process.pid).collect();
        pids.sort_unstable();
        pids.dedup();
        if known.iter().map(|relative| relative.pid).eq(pids.iter().copied()) {
            return;
        }
        let find = |pid: &u32| known.iter().find(|relative| relative.pid == *pid).cloned();
        let relatives: Vec<Relative> = pids
            .iter()
            .map(|pid| {
                find(pid).unwrap_or_else(|| Relative {
                    pid: *pid,
                    ancestors: self.tree.ancestors(*pid).into(),
                    container: self.tree.container_of(*pid).map(Into::into),
                })
            })
            .collect();
        known.clone_from(&relatives);
        self.shared.history().set_relatives(relatives);
    }

    fn pace(&self, now_ns: u64) -> Duration {
        let wanted_ns = self.shared.wanted_ns.load(Ordering::Relaxed);
        pace(&self.config, now_ns, wanted_ns)
    }

    fn is_stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// Ends early when somebody wants samples or the agent ends.
    fn sleep(&self, duration: Duration) {
        if !self.is_stopped() {
            thread::park_timeout(duration);
        }
    }
}

/// Time from one sample to the next.
fn pace(config: &GpuConfig, now_ns: u64, wanted_ns: u64) -> Duration {
    let is_wanted = wanted_ns > 0 && now_ns.saturating_sub(wanted_ns) < LINGER.as_nanos() as u64;
    if is_wanted { config.interval } else { config.idle_interval.max(config.interval) }
}

/// What was said last: an unchanged state is not worth another line.
#[derive(Default)]
struct Told(String);

impl Told {
    fn once(&mut self, line: &str) {
        if self.0 != line {
            tracing::info!("{line}");
            line.clone_into(&mut self.0);
        }
    }
}

/// The clock of the records.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::never_wanted(0, 1000)]
    #[case::wanted_now(10_000, 100)]
    #[case::wanted_a_moment_ago(7_001, 100)]
    #[case::wanted_a_while_ago(7_000, 1000)]
    fn samples_are_taken_often_only_while_somebody_wants_them(#[case] wanted_ms: u64, #[case] expected_ms: u64) {
        let pace = pace(&GpuConfig::default(), 10_000_000_000, wanted_ms * 1_000_000);
        assert_eq!(pace, Duration::from_millis(expected_ms));
    }
}
