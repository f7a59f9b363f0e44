//! Which spans get the state of a GPU, and when.
//!
//! A span of a process that uses a GPU does, or of one that started such a process, or whose own calls are answered by
//! one: `ollama` starts `llama-server` and calls it. It waits for the sample behind its end; other spans pass at once.
//!
//! A process uses a GPU if the driver lists it, or if it calls CUDA. What it used is divided among the requests that it
//! served at the time ([`super::requests`]); a span above them gets what the requests below it got.

use std::{collections::VecDeque, time::Duration};

use foldhash::HashMap;

use super::{
    GpuConfig,
    attributes::{self, Found},
    cuda::CudaCalls,
    join::{Interval, energy_of, join},
    requests::{Piece, Request, Requests},
    sampler::Gpu,
};
use crate::{
    decode::{ExchangeId, Origin, Role},
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
/// Requests below a span that are added up.
const WORKS: usize = 64;
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
    /// The process served it.
    pub is_served: bool,
    /// It is a request to a model.
    pub is_model: bool,
    /// It was counted among the requests of its process: what [`GpuSpans::ended`] said.
    pub is_counted: bool,
}

/// A request, and the processes that worked on it.
#[derive(Clone, Debug, PartialEq)]
struct Work {
    request: Request,
    pids: Vec<u32>,
}

/// A span that waits.
#[derive(Debug)]
struct Held {
    span: FinishedSpan,
    finished: Finished,
    pids: Vec<u32>,
    works: Vec<Work>,
}

/// A span below another one used a GPU.
#[derive(Debug)]
struct Called {
    pids: Vec<u32>,
    works: Vec<Work>,
    levels: u8,
    time_ns: u64,
}

/// A request under way that will want samples.
#[derive(Clone, Copy, Debug)]
struct Open {
    tgid: u32,
    began_ns: u64,
    is_model: bool,
    /// It is one of those that its process serves.
    is_counted: bool,
}

/// Gives spans the state of GPUs. Times are nanoseconds of `CLOCK_MONOTONIC`.
#[derive(Debug, Default)]
pub struct GpuSpans {
    gpu: Option<Gpu>,
    cuda: CudaCalls,
    requests: Requests,
    /// Requests under way that will want samples.
    open: HashMap<ExchangeId, Open>,
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

    /// What processes call of CUDA: to be fed.
    pub const fn cuda(&mut self) -> &mut CudaCalls {
        &mut self.cuda
    }

    /// The processes that the driver lists.
    pub fn listed(&self) -> Vec<u32> {
        let Some(gpu) = &self.gpu else { return Vec::new() };
        gpu.history().relatives().iter().map(|relative| relative.pid).collect()
    }

    /// A request has begun; `may_use` if it looks like one that needs a GPU.
    pub fn began(&mut self, origin: &Origin, may_use: bool) {
        if may_use || self.users.contains_key(&origin.tgid) || self.is_user(origin.tgid) {
            let is_counted = origin.role == Role::Server;
            let open = Open { tgid: origin.tgid, began_ns: origin.begin_ns, is_model: may_use, is_counted };
            if self.open.insert(origin.id, open).is_none() && is_counted {
                self.requests.began(open.tgid, open.began_ns, open.is_model);
            }
            if let Some(gpu) = &self.gpu {
                gpu.want(origin.begin_ns);
            }
        }
    }

    /// A request is over, or, without an end, is none or is no request any more. True if it was counted.
    pub fn ended(&mut self, id: ExchangeId, end_ns: Option<u64>) -> bool {
        let Some(open) = self.open.remove(&id).filter(|open| open.is_counted) else { return false };
        match end_ns {
            Some(end_ns) => self.requests.ended(open.tgid, end_ns, open.is_model),
            None => self.requests.dropped(open.tgid, open.began_ns, open.is_model),
        }
        true
    }

    /// Whether a span of the process, with this id, has anything to wait for: else [`Self::take`] gives it back as it is.
    pub fn concerns(&self, tgid: u32, span_id: [u8; 8]) -> bool {
        self.called.contains_key(&span_id[..]) || self.is_user(tgid)
    }

    /// Takes a finished span, and gives it back if it has nothing to wait for.
    pub fn take(&mut self, span: FinishedSpan, finished: Finished) -> Option<FinishedSpan> {
        let Finished { tgid, interval, is_model, .. } = finished;
        let own = self.processes_of(tgid);
        let below = self.called.remove(&span.span.span_id);
        let itself = || vec![Work { request: Request { tgid, interval, is_model }, pids: own.clone() }];
        let (pids, works, levels) = match (own.is_empty(), below) {
            // The call of a process that uses a GPU, to another one.
            (false, Some(below)) if !finished.is_served => (own, below.works, LEVELS),
            (false, _) => (own.clone(), itself(), LEVELS),
            (true, Some(below)) => (below.pids, below.works, below.levels),
            (true, None) => return Some(span),
        };
        if finished.is_served && !finished.is_counted && works.iter().any(|work| work.request.tgid == tgid) {
            // It was not known yet that the process uses a GPU.
            self.requests.began(tgid, interval.start_ns, is_model);
            self.requests.ended(tgid, interval.end_ns, is_model);
        }
        self.users.insert(tgid, interval.end_ns);
        if levels > 0 && !span.span.parent_span_id.is_empty() && self.called.len() < CALLED {
            let above = self.called.entry(span.span.parent_span_id.clone()).or_insert_with(|| Called {
                pids: Vec::new(),
                works: Vec::new(),
                levels: levels - 1,
                time_ns: interval.end_ns,
            });
            above.pids.extend_from_slice(&pids);
            above.pids.sort_unstable();
            above.pids.dedup();
            above.works.extend_from_slice(&works);
            above.works.truncate(WORKS);
        }
        if self.held.len() >= HELD {
            return Some(span);
        }
        self.held.push_back(Held { span, finished, pids, works });
        None
    }

    /// The processes that use a GPU and are `tgid`, or were started by it.
    fn processes_of(&self, tgid: u32) -> Vec<u32> {
        let mut pids = self.cuda.processes_of(tgid);
        if let Some(gpu) = &self.gpu {
            pids.extend(gpu.history().processes_of(tgid));
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Whether there are any. Asked for every request.
    fn is_user(&self, tgid: u32) -> bool {
        self.cuda.has_process_of(tgid) || self.gpu.as_ref().is_some_and(|gpu| gpu.history().has_process_of(tgid))
    }

    /// Lets go of the spans whose samples are there, or will not come: at `u64::MAX`, of all. To be called several
    /// times a second.
    pub fn tick(&mut self, now_ns: u64, clock: Clock, processes: &mut Processes, emit: &mut dyn FnMut(FinishedSpan)) {
        if !self.open.is_empty()
            && let Some(gpu) = &self.gpu
        {
            gpu.want(now_ns);
        }
        self.called.retain(|_, called| now_ns.saturating_sub(called.time_ns) < CALLED_FOR_NS);
        self.users.retain(|_, used_ns| now_ns.saturating_sub(*used_ns) < USER_FOR_NS);
        let newest_ns = self.gpu.as_ref().map(|gpu| gpu.history().newest_ns());
        let patience_ns = patience(self.interval()).as_nanos() as u64;
        let is_due = |held: &Held| {
            let end_ns = held.finished.interval.end_ns;
            // Without samples there is nothing to wait for: what was called was read just now.
            newest_ns.is_none_or(|newest_ns| newest_ns >= end_ns) || now_ns >= end_ns.saturating_add(patience_ns)
        };
        let (due, held): (VecDeque<_>, VecDeque<_>) = self.held.drain(..).partition(is_due);
        self.held = held;
        for held in due {
            emit(self.complete(held, clock, processes));
        }
        if now_ns < u64::MAX {
            self.requests.forget(now_ns);
        }
    }

    fn complete(&self, held: Held, clock: Clock, processes: &mut Processes) -> FinishedSpan {
        let Held { mut span, finished, pids, works } = held;
        let calls = self.cuda.between(&pids, finished.interval);
        let mut found = Found { calls, output_tokens: finished.output_tokens, ..Found::default() };
        if let Some(gpu) = &self.gpu {
            let (history, reach_ns) = (gpu.history(), reach(self.interval()).as_nanos() as u64);
            found.joined = join(&history, finished.interval, &pids, reach_ns);
            found.energy = self.energy(&works, |pieces, pids| energy_of(&history, pieces, pids, reach_ns));
            found.requests = works.iter().map(|work| self.requests.most(work.request)).max();
        }
        let others = found.joined.first().map(|first| &first.others[..]).unwrap_or_default();
        let name = |pid: &u32| processes.get(*pid, finished.interval.end_ns).service_name.clone();
        found.others = others.iter().map(name).collect();
        attributes::add(&mut span.span, &found, clock);
        span
    }

    /// Joules of all that was done, if it is known of each.
    fn energy(&self, works: &[Work], of: impl Fn(&[Piece], &[u32]) -> Option<f64>) -> Option<f64> {
        works.iter().map(|work| of(&self.requests.pieces(work.request), &work.pids)).sum()
    }

    fn interval(&self) -> Duration {
        self.gpu.as_ref().map_or_else(|| GpuConfig::default().interval, |gpu| gpu.config().interval)
    }
}

/// For how long a sample speaks at most.
pub(super) fn reach(interval: Duration) -> Duration {
    interval * 5 / 2
}

/// How long a span waits for its sample.
pub(super) fn patience(interval: Duration) -> Duration {
    interval * 2 + Duration::from_millis(100)
}

#[cfg(test)]
mod tests;
