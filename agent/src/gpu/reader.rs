//! The samples, for who makes no spans but gets them: spans of SDKs on their way through the agent.

use std::{sync::Arc, time::Duration};

use opentelemetry_proto::tonic::trace::v1::Span;

use super::{
    attributes::{self, Found},
    join::{Interval, energy_of, join},
    requests::Piece,
    sampler::{Gpu, Shared},
    spans::{patience, reach},
};
use crate::span::Clock;

/// What the sampler has read. Cheap to clone; it does not keep the sampler alive.
#[derive(Clone, Debug)]
pub struct GpuReader {
    shared: Arc<Shared>,
    interval: Duration,
}

impl GpuReader {
    /// Of the samples of `gpu`.
    pub fn of(gpu: &Gpu) -> Self {
        Self { shared: gpu.shared(), interval: gpu.config().interval }
    }

    /// The processes that use a device now and are `tgid`, or were started by it.
    pub fn processes_of(&self, tgid: u32) -> Vec<u32> {
        self.shared.history().processes_of(tgid)
    }

    /// How long to wait until there is a sample behind `end_ns`, or there will be none; `None` if no longer.
    pub fn wait(&self, end_ns: u64, now_ns: u64) -> Option<Duration> {
        let left_ns = end_ns.saturating_add(patience(self.interval).as_nanos() as u64).checked_sub(now_ns)?;
        let is_read = self.shared.history().newest_ns() >= end_ns;
        // Of a span that ends in times to come there is no sample.
        let left = Duration::from_nanos(left_ns).min(patience(self.interval));
        (!is_read && !left.is_zero()).then(|| left.min(self.interval / 2))
    }

    /// Adds to `span` what the devices did between its start and its end that these processes used. What it says itself stays;
    /// what the processes used is not divided among its requests, as nobody knows which of its spans is one.
    pub fn describe(&self, span: &mut Span, pids: &[u32], clock: Clock, name: &mut dyn FnMut(u32) -> String) {
        let interval = Interval {
            start_ns: clock.monotonic_ns(span.start_time_unix_nano),
            end_ns: clock.monotonic_ns(span.end_time_unix_nano),
        };
        if interval.end_ns < interval.start_ns {
            return;
        }
        let reach_ns = reach(self.interval).as_nanos() as u64;
        let mut found = Found::default();
        {
            let history = self.shared.history();
            found.joined = join(&history, interval, pids, reach_ns);
            found.energy = energy_of(&history, &[Piece { interval, part: 1.0 }], pids, reach_ns);
        }
        let others = found.joined.first().map(|first| first.others.clone()).unwrap_or_default();
        found.others = others.into_iter().map(name).collect();
        let mut new = Span::default();
        attributes::add(&mut new, &found, clock);
        new.attributes.retain(|new| !span.attributes.iter().any(|said| said.key == new.key));
        span.attributes.extend(new.attributes);
        span.events.extend(new.events);
    }
}
