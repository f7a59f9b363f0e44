//! From exchanges to finished spans: what the decoder tells of each, in the order of the stages behind it.

use std::{fmt, io::Write};

use foldhash::{HashMap, HashMapExt as _};

use super::self_traced::SelfTraced;
use crate::{
    capture::Source,
    decode::{Event, Exchange, ExchangeId, Role},
    discover::{Process, Processes},
    export::SpanQueue,
    gpu::{Finished, GpuSpans, Interval},
    inference::{Inference, InferenceConfig},
    metrics::{Peers, Request},
    print::Printer,
    span::{AttributeFilter, Clock, FinishedSpan, IgnoreMode, RequestSpan, SpanBuilder, Verdict},
    stitch::{Ids, Stitcher},
    telemetry::{DropCause, Telemetry},
};

/// Exchanges that are shown while they run at once.
const MAX_SHOWN: usize = 65_536;

/// Where spans go.
pub struct Out {
    /// To be exported.
    pub queue: SpanQueue,
    /// To be printed.
    pub printer: Option<Printer<Box<dyn Write>>>,
    /// Where they are counted.
    pub telemetry: Telemetry,
}

/// The stages behind the decoder, and what they know of exchanges.
pub(super) struct Exchanges {
    pub(super) stitcher: Stitcher,
    pub(super) processes: Processes,
    pub(super) spans: SpanBuilder,
    pub(super) gpu: GpuSpans,
    pub(super) inference: InferenceConfig,
    /// Who is at the other end, for the service graph.
    peers: Peers,
    pub(super) out: Out,
    /// What spans of exchanges that are not over were sent with: their last ones must start at the same time, whatever the
    /// wall clock does meanwhile.
    shown: HashMap<ExchangeId, Clock>,
    pub(super) self_traced: SelfTraced,
    /// Processes that the rules do not select: the kernel is told to leave them alone.
    pub(super) unselected: Vec<u32>,
    since_ns: u64,
}

/// What is known of an exchange that is over, beside itself.
#[derive(Clone, Copy)]
struct End {
    /// What spans of it were sent with while it ran, if some were.
    shown: Option<Clock>,
    /// The process at the other end, if it is on this node.
    peer: Option<u32>,
    /// Its process sends a span itself, or there is to be none.
    is_self_traced: bool,
    /// It had a share of its process' energy.
    is_counted: bool,
}

impl fmt::Debug for Exchanges {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Exchanges").finish_non_exhaustive()
    }
}

impl Exchanges {
    /// None is known yet. What began before `since_ns` makes no span.
    pub(super) fn new(
        stitcher: Stitcher,
        processes: Processes,
        spans: SpanBuilder,
        gpu: GpuSpans,
        out: Out,
        since_ns: u64,
    ) -> Self {
        Self {
            stitcher,
            processes,
            spans,
            gpu,
            inference: InferenceConfig::default(),
            peers: Peers::default(),
            out,
            shown: HashMap::new(),
            self_traced: SelfTraced::new(),
            unselected: Vec::new(),
            since_ns,
        }
    }

    /// Something has become of an exchange.
    pub(super) fn event(&mut self, event: Event<'_>) {
        let (origin, now_ns) = match event {
            Event::Opened(origin) | Event::Began(origin, _) | Event::Upgraded(origin) | Event::Dropped(origin) => {
                (origin, origin.begin_ns)
            }
            Event::Answered(origin, first_ns) => (origin, first_ns),
            Event::Running(exchange) | Event::Ended(exchange) => (&exchange.origin, exchange.end_ns),
        };
        // What is left out on purpose is counted as well, or nobody could tell it from a loss.
        let is_last = matches!(event, Event::Ended(_) | Event::Dropped(_));
        let shown = if is_last { self.shown.remove(&origin.id) } else { None };
        if origin.begin_ns < self.since_ns {
            self.out.telemetry.ignored_exchanges.inc_by(u64::from(is_last));
            return;
        }
        // Asked for with the first event already: a process of short life can still be looked at then.
        if !self.processes.is_selected(origin.tgid, now_ns) {
            if !self.processes.may_be_selected_later() && !self.unselected.contains(&origin.tgid) {
                self.unselected.push(origin.tgid);
            }
            self.out.telemetry.ignored_exchanges.inc_by(u64::from(is_last));
            return;
        }
        let is_counted = match &event {
            Event::Ended(exchange) => self.gpu.ended(origin.id, Some(exchange.end_ns)),
            // What was switched to another protocol is no request any more, and may stay open for days.
            Event::Dropped(_) | Event::Upgraded(_) => self.gpu.ended(origin.id, None),
            Event::Opened(_) | Event::Began(..) | Event::Answered(..) | Event::Running(_) => false,
        };
        let mut peer = None;
        if self.out.telemetry.requests.wants_peers() {
            if let Event::Began(origin, _) = event {
                self.peers.began(origin);
            }
            if is_last {
                peer = self.peers.ended(origin);
            }
        }
        // What was shown while it ran needs its last span, whatever has become known of its process meanwhile.
        let makes_none = self.self_traced.has(origin.tgid) || self.processes.has_metrics_only(origin.tgid, now_ns);
        let is_self_traced = makes_none && shown.is_none() && !self.shown.contains_key(&origin.id);
        match event {
            // Its span comes from the SDK, and wants samples as well.
            Event::Began(origin, head) if is_self_traced => {
                self.gpu.began(origin, self.inference.enabled && head.model.is_some());
            }
            // Nobody will see a span of it, so it may be no parent of others'. What its SDK puts into headers still is.
            Event::Opened(_) | Event::Answered(..) | Event::Upgraded(_) | Event::Running(_) if is_self_traced => {}
            Event::Dropped(origin) if is_self_traced => self.stitcher.forget(origin),
            Event::Opened(origin) => self.stitcher.opened(origin),
            Event::Began(origin, head) => {
                self.stitcher.began(origin, head);
                self.gpu.began(origin, self.inference.enabled && head.model.is_some());
            }
            Event::Answered(origin, first_ns) => self.stitcher.answered(origin, first_ns),
            Event::Upgraded(origin) => self.stitcher.upgraded(origin),
            Event::Dropped(origin) => self.stitcher.dropped(origin),
            Event::Running(exchange) => self.show(exchange),
            Event::Ended(exchange) => self.ended(exchange, End { shown, peer, is_self_traced, is_counted }),
        }
    }

    /// An exchange is over: measures it, and makes its span if there is to be one.
    fn ended(&mut self, exchange: &Exchange, end: End) {
        let End { shown, peer, is_self_traced, is_counted } = end;
        let origin = &exchange.origin;
        let process = self.processes.get(origin.tgid, exchange.end_ns);
        let ids = if is_self_traced {
            self.stitcher.forget(origin);
            None
        } else {
            Some(self.stitcher.ended(exchange))
        };
        if exchange.request.exports_telemetry() {
            if exchange.request.exports_traces() {
                self.self_traced.exported(exchange);
            }
            self.out.telemetry.ignored_exchanges.inc();
            return;
        }
        let ignored = self.spans.ignored(&exchange.request);
        let inference = Inference::of(exchange, &process, self.inference);
        let has_metric = !ignored.is_some_and(IgnoreMode::has_no_metric);
        let has_metric = has_metric && process.exports.metrics;
        let is_measured = has_metric && (self.out.telemetry.requests.is_on() || inference.is_some());
        let kept = self.keeps(exchange, ids, &process, ignored, shown.is_some());
        let is_kept = kept.is_some();
        if !is_kept && !is_measured {
            return;
        }
        // What is only measured is in no trace.
        let ids = kept.unwrap_or(Ids::NONE);
        let clock = shown.unwrap_or_else(|| self.spans.clock());
        let span = self.spans.describe(exchange, ids, &process, clock);
        if is_measured {
            let peer = peer.map(|tgid| self.processes.get(tgid, exchange.end_ns));
            let (requests, request) = (&self.out.telemetry.requests, Request::of(&span));
            requests.count(&request, &process, exchange.end_ns, is_kept, peer.as_ref());
            if let Some(inference) = &inference {
                requests.count_inference(inference, origin.role, &request, &process, exchange.end_ns, is_kept);
            }
        }
        if !is_kept {
            return;
        }
        // Nearly all: nobody wants to see it, or to add something.
        if inference.is_none() && self.out.printer.is_none() && !self.gpu.concerns(origin.tgid, span.ids.span_id) {
            return self.out.push_request(&span, self.spans.filter());
        }
        let mut span = span.finished();
        if let Some(inference) = &inference {
            inference.describe(&mut span.span);
            for phase in inference.phases(&span, clock) {
                self.out.push(self.spans.select(phase));
            }
        }
        let interval = Interval { start_ns: origin.begin_ns, end_ns: exchange.end_ns };
        let finished = Finished {
            tgid: origin.tgid,
            interval,
            output_tokens: inference.and_then(|it| it.output_tokens()),
            is_served: origin.role == Role::Server,
            is_model: self.inference.enabled && exchange.request.model.is_some(),
            is_counted,
        };
        if let Some(span) = self.gpu.take(span, finished) {
            self.out.push(self.spans.select(span));
        }
    }

    /// Sends what is known of an exchange that is not over. It counts nowhere: its last span does.
    fn show(&mut self, exchange: &Exchange) {
        let origin = &exchange.origin;
        let is_left_out = exchange.request.exports_telemetry()
            || self.spans.ignored(&exchange.request).is_some_and(IgnoreMode::has_no_span);
        if is_left_out || (self.shown.len() >= MAX_SHOWN && !self.shown.contains_key(&origin.id)) {
            return;
        }
        let Some(ids) = self.stitcher.running(origin.id) else { return };
        let process = self.processes.get(origin.tgid, exchange.end_ns);
        let clock = match self.shown.get(&origin.id) {
            Some(clock) => *clock,
            None if self.spans.verdict(exchange, &ids, &process) == Verdict::Kept => {
                *self.shown.entry(origin.id).or_insert(self.spans.clock())
            }
            // It may be later: it takes longer then, and others less room.
            None => return,
        };
        let mut span = self.spans.describe(exchange, ids, &process, clock).finished();
        if let Some(inference) = Inference::of(exchange, &process, self.inference) {
            inference.describe(&mut span.span);
        }
        let mut span = self.spans.select(span);
        span.mark_partial();
        self.out.push_partial(span);
    }

    /// The ids of a request whose span is sent; counts those whose is not. Without ids it is sent by its own process.
    fn keeps(
        &mut self,
        exchange: &Exchange,
        ids: Option<Ids>,
        process: &Process,
        ignored: Option<IgnoreMode>,
        is_shown: bool,
    ) -> Option<Ids> {
        let telemetry = &self.out.telemetry;
        let Some(ids) = ids.filter(|_| !ignored.is_some_and(IgnoreMode::has_no_span)) else {
            telemetry.ignored_exchanges.inc();
            return None;
        };
        match self.spans.verdict(exchange, &ids, process) {
            Verdict::Kept => return Some(ids),
            // It was kept while it ran, and without this one it would seem to run for ever.
            _ if is_shown => return Some(ids),
            Verdict::SampledOut => telemetry.spans_sampled_out.inc(),
            Verdict::TooMany => telemetry.spans_dropped(DropCause::RateLimit).inc(),
        };
        None
    }

    /// Reads what processes have called of CUDA.
    pub(super) fn read_cuda(&mut self, now_ns: u64, source: &dyn Source) {
        let Self { gpu, processes, out, .. } = self;
        for (tgid, process) in source.cuda() {
            let new = gpu.cuda().take(tgid, &process, |tgid| processes.ancestors(tgid));
            out.telemetry.cuda.count(&processes.get(tgid, now_ns).service_name, &new);
        }
    }

    /// Lets go of the spans that waited for a sample of their GPU.
    pub(super) fn release(&mut self, now_ns: u64) {
        let Self { gpu, processes, spans, out, .. } = self;
        gpu.tick(now_ns, spans.clock(), processes, &mut |span| out.push(spans.select(span)));
    }

    /// Lets go what was printed and put into the queue. To be called when the records at hand are taken.
    pub(super) fn flush(&mut self) {
        self.out.queue.flush();
        let result = self.out.printer.as_mut().map_or(Ok(()), Printer::flush);
        self.out.give_up_printing_on(result);
    }
}

impl Out {
    fn push(&mut self, span: FinishedSpan) {
        self.telemetry.spans.inc();
        self.send(span);
    }

    fn push_request(&mut self, span: &RequestSpan<'_>, filter: Option<&mut AttributeFilter>) {
        self.telemetry.spans.inc();
        self.queue.push_request(span, filter);
    }

    fn push_partial(&mut self, span: FinishedSpan) {
        self.telemetry.spans_partial.inc();
        self.send(span);
    }

    fn send(&mut self, span: FinishedSpan) {
        let result = self.printer.as_mut().map_or(Ok(()), |printer| printer.print(&span));
        self.give_up_printing_on(result);
        self.queue.push(span);
    }

    /// Whoever read standard output may have gone; the export goes on.
    fn give_up_printing_on(&mut self, result: std::io::Result<()>) {
        if let Err(error) = result {
            tracing::warn!(%error, "spans are no longer printed");
            self.printer = None;
        }
    }
}
