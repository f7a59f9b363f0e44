//! The last samples of every device.

use std::{collections::VecDeque, sync::Arc};

use super::sample::{DeviceInfo, DeviceSample, ProcessSample};

/// Samples that are kept of a device: ten minutes at ten a second.
const SAMPLES: usize = 6000;
/// Processes that are kept of a sample.
const PROCESSES: usize = 256;
/// Devices that are kept, those that are gone included.
const DEVICES: usize = 128;

/// A device and its samples, the oldest first.
#[derive(Clone, Debug)]
pub struct DeviceHistory {
    /// Which device.
    pub info: DeviceInfo,
    /// Its samples; times never decrease.
    pub samples: VecDeque<DeviceSample>,
    /// The device answered when it was last asked.
    pub is_present: bool,
    /// Critical errors (XID) since the agent started.
    pub xids: u64,
}

impl DeviceHistory {
    /// The newest sample, of a device that is there.
    pub fn current(&self) -> Option<&DeviceSample> {
        self.samples.back().filter(|_| self.is_present)
    }

    /// The newest value that `pick` finds within the last `samples`: for what is not read every time.
    pub fn latest<T>(&self, samples: usize, pick: impl Fn(&DeviceSample) -> Option<T>) -> Option<T> {
        self.current()?;
        self.samples.iter().rev().take(samples).find_map(pick)
    }
}

/// A process that uses a device, and whose it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Relative {
    /// The process on the device.
    pub pid: u32,
    /// Its ancestors, the parent first, without the first process of the node.
    pub ancestors: Arc<[u32]>,
    /// Its container, 64 hexadecimal digits.
    pub container: Option<Arc<str>>,
}

/// What was read of the node's GPUs. Bounded: old samples make room for new ones.
#[derive(Clone, Debug, Default)]
pub struct History {
    devices: Vec<DeviceHistory>,
    relatives: Vec<Relative>,
    newest_ns: u64,
}

impl History {
    /// Adds a sample; a device that is new is added too.
    pub fn push(&mut self, info: &DeviceInfo, mut sample: DeviceSample) {
        if let Some(processes) = &mut sample.processes {
            processes.truncate(PROCESSES);
        }
        self.newest_ns = self.newest_ns.max(sample.time_ns);
        let index = self.devices.iter().position(|device| device.info.id == info.id).unwrap_or(self.devices.len());
        if index == self.devices.len() && index < DEVICES {
            let (info, samples) = (info.clone(), VecDeque::new());
            self.devices.push(DeviceHistory { info, samples, is_present: true, xids: 0 });
        }
        let Some(device) = self.devices.get_mut(index) else { return };
        if device.samples.back().is_some_and(|last| last.time_ns > sample.time_ns) {
            return;
        }
        device.info = info.clone();
        device.is_present = true;
        device.xids += sample.xids.len() as u64;
        if device.samples.len() >= SAMPLES {
            device.samples.pop_front();
        }
        device.samples.push_back(sample);
    }

    /// The device does not answer any more. Its samples stay: spans that end now ran on it.
    pub fn lose(&mut self, id: &str) {
        for device in self.devices.iter_mut().filter(|device| &*device.info.id == id) {
            device.is_present = false;
        }
    }

    /// No device answers any more.
    pub fn lose_all(&mut self) {
        self.devices.iter_mut().for_each(|device| device.is_present = false);
    }

    /// Says who the processes are that use devices now.
    pub fn set_relatives(&mut self, relatives: Vec<Relative>) {
        self.relatives = relatives;
    }

    /// The processes that use devices now.
    pub fn relatives(&self) -> &[Relative] {
        &self.relatives
    }

    /// Every device.
    pub fn devices(&self) -> &[DeviceHistory] {
        &self.devices
    }

    /// When the newest sample was read, 0 before the first one.
    pub const fn newest_ns(&self) -> u64 {
        self.newest_ns
    }

    /// The processes on devices that are `tgid` or were started by it, directly or not.
    pub fn processes_of(&self, tgid: u32) -> Vec<u32> {
        self.related(tgid).collect()
    }

    /// Whether there are any.
    pub fn has_process_of(&self, tgid: u32) -> bool {
        self.related(tgid).next().is_some()
    }

    fn related(&self, tgid: u32) -> impl Iterator<Item = u32> {
        let is_related = move |relative: &&Relative| relative.pid == tgid || relative.ancestors.contains(&tgid);
        self.relatives.iter().filter(is_related).map(|relative| relative.pid)
    }

    /// The newest sample of each process on each device.
    pub fn current_processes(&self) -> impl Iterator<Item = (&DeviceInfo, &ProcessSample)> {
        self.devices.iter().flat_map(|device| {
            let processes = device.current().and_then(|sample| sample.processes.as_deref()).unwrap_or_default();
            processes.iter().map(|process| (&device.info, process))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tests::info;

    fn at(time_ns: u64) -> DeviceSample {
        DeviceSample { time_ns, ..DeviceSample::default() }
    }

    #[test]
    fn old_samples_make_room() {
        let mut history = History::default();
        for time_ns in 0..SAMPLES as u64 + 10 {
            history.push(&info("GPU-1"), at(time_ns));
        }
        let device = &history.devices()[0];
        assert_eq!((device.samples.len(), device.samples[0].time_ns), (SAMPLES, 10));
    }

    #[test]
    fn time_does_not_go_back() {
        let mut history = History::default();
        for time_ns in [5, 3, 5, 9] {
            history.push(&info("GPU-1"), at(time_ns));
        }
        let times: Vec<_> = history.devices()[0].samples.iter().map(|sample| sample.time_ns).collect();
        assert_eq!(times, [5, 5, 9]);
    }

    #[test]
    fn a_lost_device_has_no_present_and_keeps_its_past() {
        let mut history = History::default();
        history.push(&info("GPU-1"), at(1));
        history.lose("GPU-1");
        assert!(history.devices()[0].current().is_none());
        assert_eq!(history.devices()[0].samples.len(), 1);
        history.push(&info("GPU-1"), at(2));
        assert!(history.devices()[0].current().is_some(), "it is back");
    }

    #[test]
    fn processes_are_found_by_their_ancestors() {
        let mut history = History::default();
        let relative = |pid, ancestors: &[u32]| Relative { pid, ancestors: ancestors.into(), container: None };
        history.set_relatives(vec![relative(30, &[20, 10]), relative(31, &[20]), relative(40, &[])]);
        for (tgid, expected) in [(30, &[30][..]), (20, &[30, 31]), (10, &[30]), (40, &[40]), (1, &[])] {
            assert_eq!(history.processes_of(tgid), expected, "{tgid}");
        }
    }
}
