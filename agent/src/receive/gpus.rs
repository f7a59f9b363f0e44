//! The state of the GPUs on spans that come from SDKs.

use std::time::Duration;

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    trace::v1::{Span, span::SpanKind},
};

use crate::{gpu::GpuReader, span::Clock};

/// The devices of this node, and what time it is.
#[derive(Clone, Debug)]
pub struct Gpus {
    reader: GpuReader,
    /// What `CLOCK_MONOTONIC` means, and what it reads.
    clock: fn() -> (Clock, u64),
}

/// The same, for the spans of a process that uses them.
#[derive(Debug)]
pub(super) struct OfSender<'a> {
    gpus: &'a Gpus,
    pids: Vec<u32>,
}

impl Gpus {
    /// Of what `reader` has; `clock` is read for each request.
    pub const fn new(reader: GpuReader, clock: fn() -> (Clock, u64)) -> Self {
        Self { reader, clock }
    }

    /// For spans of `tgid`, if it, or what it has started, uses a device.
    pub(super) fn of(&self, tgid: u32) -> Option<OfSender<'_>> {
        let pids = self.reader.processes_of(tgid);
        (!pids.is_empty()).then_some(OfSender { gpus: self, pids })
    }
}

impl OfSender<'_> {
    /// Waits until the samples are there that speak for the request's spans, a few sample periods at most.
    pub(super) async fn wait(&self, request: &ExportTraceServiceRequest) {
        let spans = request.resource_spans.iter().flat_map(|it| &it.scope_spans).flat_map(|it| &it.spans);
        let Some(end_unix_ns) = spans.map(|span| span.end_time_unix_nano).max() else { return };
        loop {
            let (clock, now_ns) = (self.gpus.clock)();
            // A sender's clock that is fast is not waited for.
            let end_ns = clock.monotonic_ns(end_unix_ns).min(now_ns);
            let Some(wait) = self.gpus.reader.wait(end_ns, now_ns) else { return };
            tokio::time::sleep(wait.max(Duration::from_millis(1))).await;
        }
    }

    /// Adds what the devices did to spans of requests and of work, not to those of messages. `name` names processes.
    pub(super) fn describe(&self, spans: &mut [Span], name: &mut dyn FnMut(u32) -> String) {
        let (clock, _) = (self.gpus.clock)();
        let kinds = [SpanKind::Server, SpanKind::Client, SpanKind::Internal].map(i32::from);
        for span in spans.iter_mut().filter(|span| kinds.contains(&span.kind)) {
            self.gpus.reader.describe(span, &self.pids, clock, name);
        }
    }
}
