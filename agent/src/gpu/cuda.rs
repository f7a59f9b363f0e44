//! What processes called of CUDA's driver library between two times.
//!
//! The kernel counts, and leaves a mark at the first call of each slot of 8 ms ([`coati_common::cuda`]). From marks and
//! readings comes a line of points for each process. Between the last call of a slot and the first of the next the counts do
//! not change; within a slot they are taken to grow evenly.

use std::collections::VecDeque;

use coati_common::cuda::{Calls, Process};
use foldhash::HashMap;

use super::join::Interval;

/// Points that are kept of a process. When there are more, every second one of the older half goes.
const POINTS: usize = 16_384;
/// How long a process is remembered that is gone: its spans may still be waiting.
const GONE_FOR_NS: u64 = 60_000_000_000;

/// What a process had called at a time, that time's call included.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    time_ns: u64,
    calls: Calls,
}

/// What a process has called, over time.
#[derive(Clone, Debug, Default)]
pub(super) struct Timeline {
    points: VecDeque<Point>,
    /// The newest mark that was taken.
    marked_ns: u64,
}

impl Timeline {
    /// Takes what the kernel has now.
    pub(super) fn take(&mut self, process: &Process) {
        let newest = self.points.back().map_or(Calls::default(), |point| point.calls);
        if process.calls.launches < newest.launches || process.calls.synchronizations < newest.synchronizations {
            // Another process with the same number.
            *self = Self::default();
        }
        let marks = process.marks.iter().filter(|mark| mark.time_ns > self.marked_ns);
        let mut points: Vec<Point> = marks
            // Before the call: what it adds comes with the next point.
            .flat_map(|mark| [mark.before_ns, mark.time_ns].map(|time_ns| Point { time_ns, calls: mark.calls }))
            .collect();
        self.marked_ns = points.iter().map(|point| point.time_ns).fold(self.marked_ns, u64::max);
        points.push(Point { time_ns: process.last_ns, calls: process.calls });
        points.sort_by_key(|point| (point.time_ns, total(&point.calls)));
        for point in points {
            self.push(point);
        }
    }

    fn push(&mut self, point: Point) {
        if let Some(last) = self.points.back() {
            let goes_back = point.time_ns < last.time_ns || total(&point.calls) < total(&last.calls);
            if goes_back || point == *last {
                return;
            }
        }
        if self.points.len() >= POINTS {
            let mut index = 0;
            self.points.retain(|_| {
                index += 1;
                index > POINTS / 2 || index % 2 == 1
            });
        }
        self.points.push_back(point);
    }

    /// What was called in the interval.
    pub(super) fn between(&self, interval: Interval) -> Calls {
        let (start, end) = (self.at(interval.start_ns), self.at(interval.end_ns));
        map(&end, &start, u64::saturating_sub)
    }

    /// What had been called by then.
    fn at(&self, time_ns: u64) -> Calls {
        let index = self.points.partition_point(|point| point.time_ns <= time_ns);
        let before = index.checked_sub(1).and_then(|index| self.points.get(index));
        match (before, self.points.get(index)) {
            (Some(before), Some(after)) => {
                let part = (time_ns - before.time_ns) as f64 / (after.time_ns - before.time_ns) as f64;
                let between =
                    |after: u64, before: u64| before + (after.saturating_sub(before) as f64 * part).round() as u64;
                map(&after.calls, &before.calls, between)
            }
            (Some(before), None) => before.calls,
            // What was counted before the first point was called before it.
            (None, Some(first)) => first.calls,
            (None, None) => Calls::default(),
        }
    }
}

/// Both, field by field.
pub(super) fn map(one: &Calls, other: &Calls, with: impl Fn(u64, u64) -> u64) -> Calls {
    Calls {
        launches: with(one.launches, other.launches),
        graph_launches: with(one.graph_launches, other.graph_launches),
        to_device_bytes: with(one.to_device_bytes, other.to_device_bytes),
        to_host_bytes: with(one.to_host_bytes, other.to_host_bytes),
        on_device_bytes: with(one.on_device_bytes, other.on_device_bytes),
        unspecified_bytes: with(one.unspecified_bytes, other.unspecified_bytes),
        allocations: with(one.allocations, other.allocations),
        allocated_bytes: with(one.allocated_bytes, other.allocated_bytes),
        frees: with(one.frees, other.frees),
        synchronizations: with(one.synchronizations, other.synchronizations),
        blocked_ns: with(one.blocked_ns, other.blocked_ns),
    }
}

/// Grows with every call.
const fn total(calls: &Calls) -> u64 {
    // Each of these is one call; bytes and time come with one.
    calls.launches
        + calls.graph_launches
        + calls.allocations
        + calls.frees
        + calls.synchronizations
        + calls.to_device_bytes
        + calls.to_host_bytes
        + calls.on_device_bytes
        + calls.unspecified_bytes
}

/// A process that calls CUDA.
#[derive(Debug)]
struct Caller {
    timeline: Timeline,
    /// What it had called at the last reading.
    read: Calls,
    /// The processes that started it, the parent first.
    ancestors: Box<[u32]>,
    gone_ns: Option<u64>,
}

/// The processes of the node that call CUDA.
#[derive(Debug, Default)]
pub struct CudaCalls {
    callers: HashMap<u32, Caller>,
}

impl CudaCalls {
    /// The process has the library: its spans wait for what it may have called. `ancestors` is asked when it is new.
    pub fn expect(&mut self, tgid: u32, ancestors: impl FnOnce(u32) -> Vec<u32>) {
        self.caller(tgid, ancestors);
    }

    fn caller(&mut self, tgid: u32, ancestors: impl FnOnce(u32) -> Vec<u32>) -> &mut Caller {
        self.callers.entry(tgid).or_insert_with(|| Caller {
            timeline: Timeline::default(),
            read: Calls::default(),
            ancestors: ancestors(tgid).into(),
            gone_ns: None,
        })
    }

    /// Takes what the kernel has of a process, as above. What was called since the last reading.
    pub fn take(&mut self, tgid: u32, process: &Process, ancestors: impl FnOnce(u32) -> Vec<u32>) -> Calls {
        let caller = self.caller(tgid, ancestors);
        caller.gone_ns = None;
        caller.timeline.take(process);
        let before = std::mem::replace(&mut caller.read, process.calls);
        if total(&process.calls) < total(&before) {
            return process.calls;
        }
        map(&process.calls, &before, u64::saturating_sub)
    }

    /// The process has ended.
    pub fn ended(&mut self, tgid: u32, now_ns: u64) {
        if let Some(caller) = self.callers.get_mut(&tgid) {
            caller.gone_ns.get_or_insert(now_ns);
        }
    }

    /// Forgets processes that ended a while ago; those of which `is_running` says no have ended now.
    pub fn forget(&mut self, now_ns: u64, is_running: impl Fn(u32) -> bool) -> Vec<u32> {
        let mut gone = Vec::new();
        self.callers.retain(|tgid, caller| {
            if let Some(gone_ns) = caller.gone_ns {
                return now_ns.saturating_sub(gone_ns) < GONE_FOR_NS;
            }
            if !is_running(*tgid) {
                caller.gone_ns = Some(now_ns);
                gone.push(*tgid);
            }
            true
        });
        gone
    }

    /// The processes that call it and are `tgid`, or were started by it, directly or not.
    pub(super) fn processes_of(&self, tgid: u32) -> Vec<u32> {
        self.related(tgid).collect()
    }

    /// Whether there are any.
    pub(super) fn has_process_of(&self, tgid: u32) -> bool {
        self.related(tgid).next().is_some()
    }

    fn related(&self, tgid: u32) -> impl Iterator<Item = u32> {
        let is_related = move |(pid, caller): &(&u32, &Caller)| **pid == tgid || caller.ancestors.contains(&tgid);
        self.callers.iter().filter(is_related).map(|(pid, _)| *pid)
    }

    /// What these processes called in the interval; `None` if none of them calls CUDA.
    pub(super) fn between(&self, pids: &[u32], interval: Interval) -> Option<Calls> {
        let calls = pids.iter().filter_map(|pid| Some(self.callers.get(pid)?.timeline.between(interval)));
        calls.reduce(|one, other| map(&one, &other, u64::saturating_add))
    }
}

#[cfg(test)]
mod tests;
