//! Which spans get the state of a GPU, and when.
//!
//! A span of a process that uses a GPU does, or of one that started such a process, or whose own calls are answered by
//! one: `ollama` starts `llama-server` and calls it. It waits for the sample behind its end; other spans pass at once.

use std::{collections::VecDeque, time::Duration};

use foldhash::{HashMap, HashSet};

use super::{
    attributes,
    join::{Interval, join},
    sampler::Gpu,
};
use crate::{
    decode::{ExchangeId, Origin},
    discover::Processes,
    span::{Clock, FinishedSpan},
};

/// From a process that uses a GPU this many spans up: its caller's client span, and the server span of that caller.
const LEVELS: u8 = 2;
/// Spans that are remembered for their callers, and how long.
const CALLED: usize = 8192;
const CALLED_FOR_NS: u64 = 600_000_000_000;
/// Spans that wait for their sample at most.
const HELD: usize = 8192;
/// How long after its last such span a process is taken for one whose requests use a GPU.
const USER_FOR_NS: u64 = 600_000_000_000;

/// What is known of a finished exchange beside its span.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Finished {
    /// Its process.
    pub tgid: u32,
    /// When it ran.
    pub interval: Interval,
    /// Tokens that were generated for it.
    pub output_tokens: Option<u64>,
}

/// A span that waits.
#[derive(Debug)]
struct Held {
    span: FinishedSpan,
    finished: Finished,
    pids: Vec<u32>,
}

/// A span below another one used a GPU.
#[derive(Debug)]
struct Called {
    pids: Vec<u32>,
    levels: u8,
    time_ns: u64,
}

/// Gives spans the state of GPUs. Times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Default)]
pub struct GpuSpans {
    gpu: Option<Gpu>,
    /// Requests under way that will want samples.
    open: HashSet<ExchangeId>,
    /// Processes whose requests have used a GPU, and when.
    users: HashMap<u32, u64>,
    /// What spans below used, by the id of the span above.
    called: HashMap<Vec<u8>, Called>,
    held: VecDeque<Held>,
}

impl GpuSpans {
    /// Looks at the samples of `gpu`; without one every span passes.
    pub fn new(gpu: Option<Gpu>) -> Self {
        Self { gpu, ..Self::default() }
    }

    /// A request has begun; `may_use` if it looks like one that needs a GPU.
    pub fn began(&mut self, origin: &Origin, may_use: bool) {
        let Some(gpu) = &self.gpu else { return };
        if may_use || self.users.contains_key(&origin.tgid) || !gpu.history().processes_of(origin.tgid).is_empty() {
            self.open.insert(origin.id);
            gpu.want(origin.begin_ns);
        }
    }

    /// A request is over.
    pub fn ended(&mut self, id: ExchangeId) {
        self.open.remove(&id);
    }

    /// Takes a finished span, and gives it back if it has nothing to wait for.
    pub fn take(&mut self, span: FinishedSpan, finished: Finished) -> Option<FinishedSpan> {
        let Some(gpu) = &self.gpu else { return Some(span) };
        let end_ns = finished.interval.end_ns;
        let own = gpu.history().processes_of(finished.tgid);
        let below = self.called.remove(&span.span.span_id);
        let (pids, levels) = match (own.is_empty(), below) {
            (false, _) => (own, LEVELS),
            (true, Some(below)) => (below.pids, below.levels),
            (true, None) => return Some(span),
        };
        self.users.insert(finished.tgid, end_ns);
        if levels > 0 && !span.span.parent_span_id.is_empty() && self.called.len() < CALLED {
            let above = self.called.entry(span.span.parent_span_id.clone());
            let above = above.or_insert_with(|| Called { pids: Vec::new(), levels: levels - 1, time_ns: end_ns });
            above.pids.extend_from_slice(&pids);
            above.pids.sort_unstable();
            above.pids.dedup();
        }
        if self.held.len() >= HELD {
            return Some(span);
        }
        self.held.push_back(Held { span, finished, pids });
        None
    }

    /// Lets go of the spans whose samples are there, or will not come: at `u64::MAX`, of all. To be called several
    /// times a second.
    pub fn tick(&mut self, now_ns: u64, clock: Clock, processes: &mut Processes, emit: &mut dyn FnMut(FinishedSpan)) {
        let Some(gpu) = &self.gpu else { return };
        if !self.open.is_empty() {
            gpu.want(now_ns);
        }
        self.called.retain(|_, called| now_ns.saturating_sub(called.time_ns) < CALLED_FOR_NS);
        self.users.retain(|_, used_ns| now_ns.saturating_sub(*used_ns) < USER_FOR_NS);
        let patience_ns = patience(gpu.config().interval).as_nanos() as u64;
        let newest_ns = gpu.history().newest_ns();
        let is_due = |held: &Held| {
            let end_ns = held.finished.interval.end_ns;
            newest_ns >= end_ns || now_ns >= end_ns.saturating_add(patience_ns)
        };
        let (due, held): (VecDeque<_>, VecDeque<_>) = self.held.drain(..).partition(is_due);
        self.held = held;
        for held in due {
            emit(self.complete(held, clock, processes));
        }
    }

    fn complete(&self, held: Held, clock: Clock, processes: &mut Processes) -> FinishedSpan {
        let Held { mut span, finished, pids } = held;
        let Some(gpu) = &self.gpu else { return span };
        let reach_ns = reach(gpu.config().interval).as_nanos() as u64;
        let joined = join(&gpu.history(), finished.interval, &pids, reach_ns);
        let others = joined.first().map(|first| &first.others[..]).unwrap_or_default();
        let name = |pid: &u32| processes.get(*pid, finished.interval.end_ns).service_name.clone();
        let others: Vec<String> = others.iter().map(name).collect();
        attributes::add(&mut span.span, &joined, &others, finished.output_tokens, clock);
        span
    }
}

/// For how long a sample speaks at most.
pub(super) fn reach(interval: Duration) -> Duration {
    interval * 5 / 2
}

/// How long a span waits for its sample.
fn patience(interval: Duration) -> Duration {
    interval * 2 + Duration::from_millis(100)
}

#[cfg(test)]
mod tests;
