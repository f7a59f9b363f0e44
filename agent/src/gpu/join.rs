//! What a device did between two times: pure functions of its samples.
//!
//! A sample speaks for the time since the sample before it, but for no more than `reach` of it, and the newest one also
//! for `reach` after it. Of an interval only the part counts that some sample speaks for; how large that is, is told.
//! An interval that no sample speaks for gives nothing, never a zero.

use std::sync::Arc;

use super::{
    history::{DeviceHistory, History},
    requests::Piece,
    sample::{DeviceInfo, DeviceSample, ProcessSample},
};

/// A sample of a counter may be so many times `reach` away: between two samples a counter can be interpolated, over a
/// pause of the sampler too.
const COUNTER_REACH: u64 = 8;
/// Energy is computed from power only if samples speak for so large a part of the interval.
const ENERGY_COVERAGE: f64 = 0.9;

/// From one time to another, nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Interval {
    /// First.
    pub start_ns: u64,
    /// Last; not before the first.
    pub end_ns: u64,
}

impl Interval {
    const fn length_ns(self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }

    const fn contains(self, time_ns: u64) -> bool {
        self.start_ns <= time_ns && time_ns <= self.end_ns
    }
}

/// How much of a device was the process's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Share {
    /// So much of what all processes used of its multiprocessors, 0 to 1.
    Utilization(f64),
    /// It was alone on the device.
    Alone,
}

impl Share {
    /// As a number, 0 to 1.
    pub const fn ratio(self) -> f64 {
        match self {
            Self::Utilization(ratio) => ratio,
            Self::Alone => 1.0,
        }
    }

    /// The value of `coati.gpu.energy.method`; `is_divided` if other requests got a part of what the process had.
    pub const fn method(self, is_divided: bool) -> &'static str {
        match (self, is_divided) {
            (Self::Utilization(_), false) => "sm_utilization",
            (Self::Utilization(_), true) => "sm_utilization_per_request",
            (Self::Alone, false) => "sole_process",
            (Self::Alone, true) => "sole_process_per_request",
        }
    }
}

/// What one device did in an interval in which the processes in question used it.
#[derive(Clone, Debug, PartialEq)]
pub struct Joined {
    /// Which device.
    pub device: DeviceInfo,
    /// Use of the device, mean over time, 0 to 1.
    pub utilization_mean: Option<f64>,
    /// The highest sample of it.
    pub utilization_max: Option<f64>,
    /// Use of its multiprocessors by the processes, mean over time, 0 to 1.
    pub process_utilization: Option<f64>,
    /// Most bytes of its memory that the processes had at a time.
    pub process_memory: Option<u64>,
    /// Most bytes of its memory that were in use at a time.
    pub device_memory: Option<u64>,
    /// Watts, mean over time.
    pub power: Option<f64>,
    /// Joules of the device over the interval.
    pub energy: Option<f64>,
    /// How much of that was the processes'.
    pub share: Option<Share>,
    /// Highest temperature, degrees Celsius.
    pub temperature: Option<f64>,
    /// When each reason for lower clocks was first seen in the interval.
    pub throttled: Vec<(&'static str, u64)>,
    /// Critical errors of the driver (XID), and when they were read.
    pub xids: Vec<(u64, u64)>,
    /// Other processes that used the device's multiprocessors; where that is not known, that had memory on it.
    pub others: Vec<u32>,
    /// Part of the interval that samples speak for, 0 to 1.
    pub coverage: f64,
    /// Samples that speak for a part of it.
    pub samples: usize,
}

/// A sample, and how much of an interval it speaks for.
#[derive(Clone, Copy)]
struct Part<'a> {
    sample: &'a DeviceSample,
    from_ns: u64,
    weight_ns: u64,
}

impl Part<'_> {
    /// How much of what the device drew then was the processes'. What it drew while nobody computed is everybody's who is on
    /// it.
    fn ratio(&self, pids: &[u32]) -> f64 {
        let (mut own, mut all, mut own_count, mut count) = (0.0, 0.0, 0.0, 0.0);
        for process in self.sample.processes.iter().flatten() {
            let is_own = if pids.contains(&process.pid) { 1.0 } else { 0.0 };
            let sm = process.sm.unwrap_or(0.0);
            (own, all) = (own + sm * is_own, all + sm);
            (own_count, count) = (own_count + is_own, count + 1.0);
        }
        match (all > 0.0, count > 0.0) {
            (true, _) => own / all,
            (false, true) => own_count / count,
            (false, false) => 0.0,
        }
    }
}

/// What each device did in `interval` that one of the processes `pids` used then; the one that they used most first.
pub fn join(history: &History, interval: Interval, pids: &[u32], reach_ns: u64) -> Vec<Joined> {
    let joined = history.devices().iter().filter_map(|device| join_device(device, interval, pids, reach_ns));
    let mut joined: Vec<Joined> = joined.collect();
    let use_of = |joined: &Joined| (joined.process_utilization.unwrap_or(0.0), joined.process_memory.unwrap_or(0));
    joined.sort_by(|a, b| use_of(b).partial_cmp(&use_of(a)).unwrap_or(std::cmp::Ordering::Equal));
    joined
}

/// Joules of all devices that are the processes', divided as `pieces` say, which follow one another. `None` if it is not
/// known of each device that they used.
pub(super) fn energy_of(history: &History, pieces: &[Piece], pids: &[u32], reach_ns: u64) -> Option<f64> {
    let (first, last) = (pieces.first()?, pieces.last()?);
    let interval = Interval { start_ns: first.interval.start_ns, end_ns: last.interval.end_ns };
    let mut devices = history.devices().iter();
    devices.try_fold(0.0, |sum, device| match energy_on(device, interval, pieces, pids, reach_ns) {
        Used::Not => Some(sum),
        Used::Unknown => None,
        Used::Joules(joules) => Some(sum + joules),
    })
}

/// What processes used of a device.
enum Used {
    Not,
    Unknown,
    Joules(f64),
}

fn energy_on(device: &DeviceHistory, interval: Interval, pieces: &[Piece], pids: &[u32], reach_ns: u64) -> Used {
    let parts = parts_of(device, interval, reach_ns);
    let is_own = |part: &Part<'_>| part.sample.processes.iter().flatten().any(|process| pids.contains(&process.pid));
    if !parts.iter().any(is_own) {
        return Used::Not;
    }
    let (Some(whole), Some(share)) = (energy(device, interval, &parts, reach_ns), share(&parts, pids)) else {
        return Used::Unknown;
    };
    let is_counted = energy_between(device, interval, reach_ns).is_some();
    let (mut own, mut all) = (0.0, 0.0);
    for part in &parts {
        let ratio = if share == Share::Alone { 1.0 } else { part.ratio(pids) };
        for piece in pieces {
            let start_ns = piece.interval.start_ns.max(part.from_ns);
            let end_ns = piece.interval.end_ns.min(part.from_ns + part.weight_ns);
            if start_ns < end_ns {
                let within = Interval { start_ns, end_ns };
                let joules = if is_counted {
                    energy_between(device, within, reach_ns).unwrap_or(0.0)
                } else {
                    part.sample.power.unwrap_or(0.0) * within.length_ns() as f64 / 1e9
                };
                all += joules;
                own += joules * ratio * piece.part;
            }
        }
    }
    // What no sample speaks for is taken to be like the rest.
    Used::Joules(if all > 0.0 { whole * own / all } else { 0.0 })
}

/// Joules of the device: by its counter, else by its power, if that is known of nearly the whole time.
fn energy(device: &DeviceHistory, interval: Interval, parts: &[Part<'_>], reach_ns: u64) -> Option<f64> {
    let from_power = || {
        let power = mean(parts, |sample| sample.power)?;
        (coverage(parts, interval) >= ENERGY_COVERAGE).then(|| power * interval.length_ns() as f64 / 1e9)
    };
    energy_between(device, interval, reach_ns).or_else(from_power)
}

/// The part of the interval that samples speak for.
fn coverage(parts: &[Part<'_>], interval: Interval) -> f64 {
    let covered_ns: u64 = parts.iter().map(|part| part.weight_ns).sum();
    if interval.length_ns() == 0 { 1.0 } else { covered_ns as f64 / interval.length_ns() as f64 }
}

fn parts_of(device: &DeviceHistory, interval: Interval, reach_ns: u64) -> Vec<Part<'_>> {
    let first = device.samples.partition_point(|sample| sample.time_ns.saturating_add(reach_ns) < interval.start_ns);
    parts(device.samples.range(first..), interval, reach_ns)
}

fn join_device(device: &DeviceHistory, interval: Interval, pids: &[u32], reach_ns: u64) -> Option<Joined> {
    let parts = parts_of(device, interval, reach_ns);
    let own = |sample: &DeviceSample| -> Option<Vec<ProcessSample>> {
        let processes = sample.processes.as_ref()?.iter().filter(|process| pids.contains(&process.pid));
        Some(processes.cloned().collect())
    };
    if !parts.iter().any(|part| own(part.sample).is_some_and(|own| !own.is_empty())) {
        return None;
    }
    let own_sm = |sample: &DeviceSample| sum(own(sample)?.iter().map(|process| process.sm));
    let own_memory = |sample: &DeviceSample| sum(own(sample)?.iter().map(|process| process.memory.map(|it| it as f64)));
    Some(Joined {
        device: device.info.clone(),
        utilization_mean: mean(&parts, |sample| sample.utilization),
        utilization_max: max(&parts, |sample| sample.utilization),
        process_utilization: mean(&parts, own_sm).map(|ratio| ratio.min(1.0)),
        process_memory: max(&parts, own_memory).map(|bytes| bytes as u64),
        device_memory: max(&parts, |sample| sample.memory_used.map(|bytes| bytes as f64)).map(|bytes| bytes as u64),
        power: mean(&parts, |sample| sample.power),
        energy: energy(device, interval, &parts, reach_ns),
        share: share(&parts, pids),
        temperature: max(&parts, |sample| sample.temperature),
        throttled: throttled(&parts, interval),
        xids: xids(&parts, interval),
        others: others(&parts, pids),
        coverage: coverage(&parts, interval).min(1.0),
        samples: parts.len(),
    })
}

/// The samples that speak for a part of the interval.
fn parts<'a>(samples: impl Iterator<Item = &'a DeviceSample>, interval: Interval, reach_ns: u64) -> Vec<Part<'a>> {
    let mut parts = Vec::new();
    let mut before_ns = 0;
    let mut samples = samples.peekable();
    while let Some(sample) = samples.next() {
        let from_ns = before_ns.max(sample.time_ns.saturating_sub(reach_ns));
        if from_ns > interval.end_ns {
            break;
        }
        let to_ns = if samples.peek().is_none() { sample.time_ns.saturating_add(reach_ns) } else { sample.time_ns };
        before_ns = sample.time_ns;
        let (from_ns, to_ns) = (from_ns.max(interval.start_ns), to_ns.min(interval.end_ns));
        if from_ns < to_ns {
            parts.push(Part { sample, from_ns, weight_ns: to_ns - from_ns });
        } else if from_ns == to_ns && interval.length_ns() == 0 && parts.is_empty() {
            // An interval without length lies in one sample's time.
            parts.push(Part { sample, from_ns, weight_ns: 1 });
        }
    }
    parts
}

fn mean(parts: &[Part<'_>], value: impl Fn(&DeviceSample) -> Option<f64>) -> Option<f64> {
    let (mut total, mut weight) = (0.0, 0.0);
    for part in parts {
        if let Some(value) = value(part.sample) {
            total += value * part.weight_ns as f64;
            weight += part.weight_ns as f64;
        }
    }
    (weight > 0.0).then(|| total / weight)
}

fn max(parts: &[Part<'_>], value: impl Fn(&DeviceSample) -> Option<f64>) -> Option<f64> {
    parts.iter().filter_map(|part| value(part.sample)).reduce(f64::max)
}

/// The sum of what is known; `None` if nothing is, and no process is not a process that is not known.
fn sum(values: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let (mut total, mut unknown, mut known) = (0.0, false, false);
    for value in values {
        match value {
            Some(value) => (total, known) = (total + value, true),
            None => unknown = true,
        }
    }
    (known || !unknown).then_some(total)
}

/// Joules from the device's counter: interpolated at both ends of the interval.
fn energy_between(device: &DeviceHistory, interval: Interval, reach_ns: u64) -> Option<f64> {
    let at = |time_ns: u64| {
        let near_ns = reach_ns.saturating_mul(COUNTER_REACH);
        let index = device.samples.partition_point(|sample| sample.time_ns <= time_ns);
        let after = device.samples.range(index..).find_map(|sample| Some((sample.time_ns, sample.energy?)));
        let before = device.samples.range(..index).rev().find_map(|sample| Some((sample.time_ns, sample.energy?)));
        let before = before.filter(|(before_ns, _)| time_ns - before_ns <= near_ns);
        let after = after.filter(|(after_ns, _)| after_ns - time_ns <= near_ns);
        match (before, after) {
            (Some((at_ns, energy)), _) if at_ns == time_ns => Some(energy),
            // A counter that went back was reset in between.
            (Some((_, from)), Some((_, to))) if to < from => None,
            (Some((from_ns, from)), Some((to_ns, to))) => {
                let part = (time_ns - from_ns) as f64 / (to_ns - from_ns) as f64;
                Some(from + (to - from) * part)
            }
            _ => None,
        }
    };
    let used = at(interval.end_ns)? - at(interval.start_ns)?;
    (used >= 0.0).then_some(used)
}

/// The processes' part of what all processes used of the multiprocessors. While nobody used them, the device's draw is
/// nobody's in particular: then only a process that is alone on the device gets it.
fn share(parts: &[Part<'_>], pids: &[u32]) -> Option<Share> {
    let mut is_alone = true;
    let (mut own, mut all) = (0.0, 0.0);
    let mut is_known = true;
    for part in parts {
        let Some(processes) = &part.sample.processes else {
            is_alone = false;
            continue;
        };
        for process in processes {
            let is_own = pids.contains(&process.pid);
            is_alone &= is_own;
            match process.sm {
                Some(sm) => {
                    let used = sm * part.weight_ns as f64;
                    all += used;
                    own += if is_own { used } else { 0.0 };
                }
                None => is_known = false,
            }
        }
    }
    if is_alone {
        Some(Share::Alone)
    } else if is_known && all > 0.0 {
        Some(Share::Utilization(own / all))
    } else {
        None
    }
}

/// A sample is a reading at one time, so it tells of an event in the interval if it was read in it; if the interval was
/// too short for that, the one that speaks for it does.
fn moment(part: &Part<'_>, interval: Interval) -> u64 {
    if interval.contains(part.sample.time_ns) { part.sample.time_ns } else { interval.end_ns }
}

fn throttled(parts: &[Part<'_>], interval: Interval) -> Vec<(&'static str, u64)> {
    let mut found: Vec<(&'static str, u64)> = Vec::new();
    for part in parts {
        for reason in part.sample.throttle.unwrap_or_default().reasons() {
            if !found.iter().any(|(known, _)| *known == reason) {
                found.push((reason, moment(part, interval)));
            }
        }
    }
    found
}

fn xids(parts: &[Part<'_>], interval: Interval) -> Vec<(u64, u64)> {
    parts.iter().flat_map(|part| part.sample.xids.iter().map(|xid| (*xid, moment(part, interval)))).collect()
}

fn others(parts: &[Part<'_>], pids: &[u32]) -> Vec<u32> {
    let processes = parts.iter().flat_map(|part| part.sample.processes.iter().flatten());
    let used = |process: &&ProcessSample| process.sm.map_or(process.memory.unwrap_or(0) > 0, |sm| sm > 0.0);
    let mut others: Vec<u32> =
        processes.filter(used).map(|process| process.pid).filter(|pid| !pids.contains(pid)).collect();
    others.sort_unstable();
    others.dedup();
    others
}

/// A span that has no GPU of its own says nothing of one.
pub(super) fn primary(joined: &[Joined]) -> Option<&Joined> {
    joined.first()
}

/// Ids of all devices.
pub(super) fn ids(joined: &[Joined]) -> Vec<Arc<str>> {
    joined.iter().map(|joined| Arc::clone(&joined.device.id)).collect()
}
