//! From records to finished spans: what runs on the capture thread.

use std::{fmt, io::Write};

use coati_common::{
    event::{Connection, End, Header, Kind, end_reason},
    loss::Loss,
};
use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};
use prometheus_client::metrics::counter::Counter;

use super::self_traced::SelfTraced;
use crate::{
    capture::{CaptureError, Record, Source},
    config::Reload,
    decode::{Decoder, Event, Exchange, ExchangeId, Role},
    discover::{Process, Processes},
    export::SpanQueue,
    gpu::{Finished, GpuSpans, Interval},
    inference::{Inference, InferenceConfig, recognise},
    libraries::{FileCounters, Libraries},
    metrics::Peers,
    print::Printer,
    span::{Clock, FinishedSpan, IgnoreMode, SpanBuilder, Verdict},
    stitch::{Ids, Stitcher},
    telemetry::{DropCause, RECORD_KINDS, Telemetry, mirror},
};

/// How often the stages look at the time.
const TICK_NS: u64 = 100_000_000;
/// Exchanges that are shown while they run at once.
const MAX_SHOWN: usize = 65_536;
/// How often the kernel's counters are read and old things forgotten.
const SLOW_TICK_NS: u64 = 1_000_000_000;

/// The stages between the kernel and the queue. One thread has them, so they need no locks.
#[derive(Debug)]
pub struct Stages {
    decoder: Decoder,
    rest: Rest,
    /// Absent if no library is probed.
    libraries: Option<Libraries>,
    /// Processes that the driver lists, and that were looked at because of that.
    listed: HashSet<u32>,
    records: [Counter; RECORD_KINDS.len()],
    /// Records without a trace at the last look; see [`Stages::count_kernel`].
    unaccounted: u64,
    ticked_ns: u64,
    ticked_slowly_ns: u64,
    /// Processes that the kernel leaves alone because no rule selects them.
    skipped: HashSet<u32>,
    /// The first process that could not be skipped was worth a line; the others are like it.
    told_of_skip: bool,
}

/// Where spans go.
pub struct Out {
    /// To be exported.
    pub queue: SpanQueue,
    /// To be printed.
    pub printer: Option<Printer<Box<dyn Write>>>,
    /// Where they are counted.
    pub telemetry: Telemetry,
}

/// What an event of the decoder needs.
struct Rest {
    stitcher: Stitcher,
    processes: Processes,
    spans: SpanBuilder,
    gpu: GpuSpans,
    inference: InferenceConfig,
    /// Who is at the other end, for the service graph.
    peers: Peers,
    out: Out,
    /// What spans of exchanges that are not over were sent with: their last ones must start at the same time, whatever the
    /// wall clock does meanwhile.
    shown: HashMap<ExchangeId, Clock>,
    self_traced: SelfTraced,
    /// Processes that the rules do not select: the kernel is told to leave them alone.
    unselected: Vec<u32>,
    since_ns: u64,
}

impl fmt::Debug for Rest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Rest").finish_non_exhaustive()
    }
}

impl Stages {
    /// Wires the stages.
    ///
    /// What began before `since_ns` makes no span: kernel programs are attached one after the other, and before the last
    /// one some see requests whose responses none sees.
    pub fn new(
        decoder: Decoder,
        stitcher: Stitcher,
        processes: Processes,
        spans: SpanBuilder,
        gpu: GpuSpans,
        out: Out,
        since_ns: u64,
    ) -> Self {
        let records = RECORD_KINDS.map(|kind| out.telemetry.records(kind));
        let rest = Rest {
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
        };
        Self {
            decoder,
            rest,
            libraries: None,
            listed: HashSet::new(),
            records,
            unaccounted: 0,
            ticked_ns: 0,
            ticked_slowly_ns: 0,
            skipped: HashSet::new(),
            told_of_skip: false,
        }
    }

    /// Another configuration, between two batches of records.
    pub fn reload(&mut self, reload: Reload, source: &mut dyn Source) {
        let Reload { selection, excludes_self_traced, spans } = reload;
        self.exclude_self_traced(excludes_self_traced);
        self.decoder.set_keeps_headers(spans.headers.wants_any());
        self.decoder.set_show_after(spans.partial_after);
        self.rest.spans.set_config(spans);
        self.rest.processes.set_selection(selection);
        // A rule may select them now. If none does, their next request has them skipped again.
        self.rest.unselected.clear();
        for tgid in self.skipped.drain() {
            source.unskip(tgid);
        }
        if let Some(libraries) = &mut self.libraries {
            let (processes, now_ns) = (&mut self.rest.processes, self.ticked_ns);
            libraries.look_at_all(now_ns, source, &mut |tgid| processes.is_selected(tgid, now_ns));
        }
    }

    /// Whether no spans are made of processes that export their own; at first none are.
    pub fn exclude_self_traced(&mut self, is_on: bool) {
        self.rest.self_traced.set_on(is_on);
    }

    /// Has libraries probed from now on.
    pub fn watch_libraries(&mut self, libraries: Libraries) {
        self.libraries = Some(libraries);
    }

    /// How requests to models are looked at.
    pub const fn set_inference(&mut self, config: InferenceConfig) {
        self.rest.inference = config;
    }

    /// Takes records, in the order of their times, and leaves `records` empty.
    pub fn take(&mut self, records: &mut Vec<Record>, source: &mut dyn Source) -> Result<(), CaptureError> {
        for record in records.drain(..) {
            let [begin, data, tail, end, exec, exit, http2, tls] = &self.records;
            match &record {
                Record::Begin(it, _) if it.header.kind == Kind::Http2 as u32 => http2,
                Record::Begin(..) => begin,
                Record::Data(..) => data,
                Record::Tail(..) => tail,
                Record::End(_) => end,
                Record::Exec(..) => exec,
                Record::Exit(_) => exit,
                Record::Tls(_) => tls,
            }
            .inc();
            match &record {
                Record::Exec(header, tgid, path) => {
                    self.rest.processes.executed(*tgid, &String::from_utf8_lossy(path));
                    self.rest.self_traced.forget(*tgid);
                    if let Some(libraries) = &mut self.libraries {
                        libraries.started(*tgid, header.time_ns);
                    }
                }
                Record::Tls(speaker) => {
                    if let Some(libraries) = &mut self.libraries {
                        libraries.speaks(speaker.tgid, speaker.header.time_ns);
                    }
                }
                Record::Exit(exit) => {
                    if let Some(libraries) = &mut self.libraries {
                        libraries.ended(exit.tgid, exit.header.time_ns);
                    }
                    self.listed.remove(&exit.tgid);
                    self.rest.processes.ended(exit.tgid, exit.header.time_ns);
                    self.rest.self_traced.forget(exit.tgid);
                    self.rest.unselected.retain(|tgid| *tgid != exit.tgid);
                    self.skipped.remove(&exit.tgid);
                    source.unskip(exit.tgid);
                }
                Record::Begin(..) | Record::Data(..) | Record::Tail(..) | Record::End(_) => {}
            }
            let rest = &mut self.rest;
            self.decoder.record(record, &mut |event| rest.event(event));
        }
        self.skip_unselected(source);
        self.rest.flush_printer();
        Ok(())
    }

    /// Has the kernel leave the processes alone that no rule selects: an economy, so where it fails they are watched on
    /// and their exchanges ignored here.
    fn skip_unselected(&mut self, source: &mut dyn Source) {
        for tgid in self.rest.unselected.drain(..) {
            // One that is gone would keep its place in the kernel's small map: its exit has been there already.
            if !self.rest.processes.is_running(tgid) {
                continue;
            }
            match source.skip(tgid) {
                Ok(()) => {
                    self.skipped.insert(tgid);
                }
                Err(error) if !self.told_of_skip => {
                    self.told_of_skip = true;
                    tracing::warn!(%error, tgid, "a process that no rule selects stays watched");
                }
                Err(_) => {}
            }
        }
    }

    /// Looks at the time; to be called often, usually does nothing. `clock` is what the time means now.
    pub fn tick(&mut self, now_ns: u64, clock: Clock, source: &mut dyn Source) -> Result<(), CaptureError> {
        // Not held back: a process that has just begun may make its only request soon.
        if let Some(libraries) = &mut self.libraries {
            let processes = &mut self.rest.processes;
            libraries.tick(now_ns, source, &mut |tgid| processes.is_selected(tgid, now_ns));
            for tgid in libraries.take_cuda_users() {
                self.rest.gpu.cuda().expect(tgid, |tgid| processes.ancestors(tgid));
            }
        }
        if now_ns.saturating_sub(self.ticked_ns) < TICK_NS {
            return Ok(());
        }
        self.ticked_ns = now_ns;
        let Self { decoder, rest, .. } = self;
        let long: Vec<_> = decoder.long_running().collect();
        for exchange in long {
            let state = source.connection(exchange.socket, exchange.connection)?;
            decoder.progress(exchange.connection, state.as_ref(), now_ns, &mut |event| rest.event(event));
        }
        decoder.tick(now_ns, &mut |event| rest.event(event));
        rest.read_cuda(now_ns, source);
        rest.release(now_ns);
        rest.flush_printer();
        self.count();
        if now_ns.saturating_sub(self.ticked_slowly_ns) >= SLOW_TICK_NS {
            self.ticked_slowly_ns = now_ns;
            self.rest.spans.set_clock(clock);
            self.rest.stitcher.tick(now_ns);
            self.rest.processes.forget_ended(now_ns);
            self.rest.out.telemetry.requests.expire(now_ns);
            self.forget_cuda(now_ns, source);
            self.look_at_listed(now_ns);
            self.forget_libraries(now_ns, source)?;
            self.count_kernel(source)?;
        }
        Ok(())
    }

    /// Forgets what processes have called of CUDA that are gone.
    fn forget_cuda(&mut self, now_ns: u64, source: &mut dyn Source) {
        let Rest { gpu, processes, .. } = &mut self.rest;
        for tgid in gpu.cuda().forget(now_ns, |tgid| processes.is_running(tgid)) {
            source.forget_cuda(tgid);
        }
    }

    /// Looks for the libraries of processes that have come to use a GPU: some load them with their first request.
    fn look_at_listed(&mut self, now_ns: u64) {
        let Some(libraries) = &mut self.libraries else { return };
        for tgid in self.rest.gpu.listed() {
            if self.listed.insert(tgid) {
                libraries.uses_gpu(tgid, now_ns);
            }
        }
    }

    /// Ends the TLS sessions of processes that are gone, as far as no socket has ended them, and lets go of libraries.
    fn forget_libraries(&mut self, now_ns: u64, source: &mut dyn Source) -> Result<(), CaptureError> {
        let Self { decoder, rest, libraries: Some(libraries), .. } = self else { return Ok(()) };
        libraries.forget_unused(now_ns);
        let gone = libraries.take_gone();
        let left = if gone.is_empty() { Vec::new() } else { source.forget_tls(&gone)? };
        for Connection { connection, exchange, totals, .. } in left {
            let header = Header { kind: Kind::End as u32, time_ns: now_ns, ..Header::default() };
            let end = End { header, connection, exchange, reason: end_reason::CLOSED, totals };
            decoder.record(Record::End(end), &mut |event| rest.event(event));
        }
        Ok(())
    }

    /// Ends what is open, as far as it is known, and lets the exporter know that nothing more comes.
    pub fn finish(&mut self, source: &mut dyn Source) -> Result<(), CaptureError> {
        let Self { decoder, rest, .. } = self;
        decoder.finish(&mut |event| rest.event(event));
        rest.read_cuda(self.ticked_ns, source);
        // No sample will come any more.
        rest.release(u64::MAX);
        rest.flush_printer();
        self.count();
        self.count_kernel(source)
    }

    /// Shows what the stages count for themselves.
    fn count(&self) {
        let telemetry = &self.rest.out.telemetry;
        let decoded = self.decoder.counters();
        mirror(&telemetry.exchanges, decoded.exchanges);
        mirror(&telemetry.parse_failures, decoded.request_malformed + decoded.response_malformed);
        for (cause, total) in decoded.causes() {
            mirror(&telemetry.anomalies(cause), total);
        }
        // The causes by which a whole exchange is lost that nobody else counts.
        for (cause, total) in [
            ("request_unreadable", decoded.request_unreadable),
            ("evicted", decoded.evicted),
            ("pipelined", decoded.pipelined),
            ("pipelined_unseen", decoded.pipelined_unseen),
            ("http2_gap", decoded.http2_gaps),
        ] {
            mirror(&telemetry.losses(cause), total);
        }
        let stitched = self.rest.stitcher.counters();
        for (by, total) in [
            ("header", stitched.by_header),
            ("position", stitched.by_position),
            ("process", stitched.in_process),
            ("provisional", stitched.provisional),
            ("none", stitched.roots),
        ] {
            mirror(&telemetry.links(by), total);
        }
        if let Some(libraries) = &self.libraries {
            let counters = libraries.counters();
            telemetry.tls_files.set(counters.tls.files as i64);
            telemetry.cuda_files.set(counters.cuda.files as i64);
            for (cause, total) in failures(counters.tls) {
                mirror(&telemetry.tls_failures(cause), total);
            }
            for (cause, total) in failures(counters.cuda) {
                mirror(&telemetry.cuda_failures(cause), total);
            }
        }
        telemetry.open_exchanges.set(self.decoder.open_exchanges() as i64);
        telemetry.open_streams.set(self.decoder.long_streams() as i64);
        telemetry.processes.set(self.rest.processes.len() as i64);
    }

    /// Shows what the kernel counts.
    fn count_kernel(&mut self, source: &dyn Source) -> Result<(), CaptureError> {
        let health = source.health()?;
        let telemetry = &self.rest.out.telemetry;
        for (loss, total) in Loss::ALL.into_iter().zip(health.losses) {
            mirror(&telemetry.losses(loss.name()), total);
        }
        mirror(&telemetry.losses("record_malformed"), health.malformed);
        mirror(&telemetry.exchanges_begun, health.begun);
        // Records that are being written are not missing: only what is missing twice is.
        let missing = health.unaccounted.min(self.unaccounted).max(telemetry.sequence_gaps.get());
        self.unaccounted = health.unaccounted;
        mirror(&telemetry.sequence_gaps, missing);
        Ok(())
    }
}

/// Files that got no probes, by cause.
const fn failures(counters: FileCounters) -> [(&'static str, u64); 3] {
    let FileCounters { files: _, unreadable, no_functions, refused } = counters;
    [("unreadable", unreadable), ("no_functions", no_functions), ("refused", refused)]
}

impl Rest {
    fn event(&mut self, event: Event<'_>) {
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
        let is_shown = shown.is_some() || self.shown.contains_key(&origin.id);
        let is_self_traced = self.self_traced.has(origin.tgid) && !is_shown;
        match event {
            // Nobody will see a span of it, so it may be no parent of others'. What its SDK puts into headers still is.
            Event::Opened(_) | Event::Began(..) | Event::Answered(..) | Event::Upgraded(_) | Event::Running(_)
                if is_self_traced => {}
            Event::Dropped(origin) if is_self_traced => self.stitcher.forget(origin),
            Event::Opened(origin) => self.stitcher.opened(origin),
            Event::Began(origin, head) => {
                self.stitcher.began(origin, head);
                self.gpu.began(origin, self.inference.enabled && recognise(head).is_some());
            }
            Event::Answered(origin, first_ns) => self.stitcher.answered(origin, first_ns),
            Event::Upgraded(origin) => self.stitcher.upgraded(origin),
            Event::Dropped(origin) => self.stitcher.dropped(origin),
            Event::Running(exchange) => self.show(exchange),
            Event::Ended(exchange) => {
                let process = self.processes.get(origin.tgid, now_ns);
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
                let is_measured = has_metric && (self.out.telemetry.requests.is_on() || inference.is_some());
                let kept = self.keeps(exchange, ids, &process, ignored, shown.is_some());
                let is_kept = kept.is_some();
                if !is_kept && !is_measured {
                    return;
                }
                // What is only measured is in no trace.
                let ids = kept.unwrap_or(Ids::NONE);
                let clock = shown.unwrap_or_else(|| self.spans.clock());
                let mut span = self.spans.build(exchange, ids, &process, clock);
                if is_measured {
                    let peer = peer.map(|tgid| self.processes.get(tgid, exchange.end_ns));
                    let requests = &self.out.telemetry.requests;
                    requests.count(&span, exchange.end_ns, is_kept, peer.as_ref());
                    if let Some(inference) = &inference {
                        requests.count_inference(inference, origin.role, &span, exchange.end_ns, is_kept);
                    }
                }
                if !is_kept {
                    return;
                }
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
                    is_model: self.inference.enabled && recognise(&exchange.request).is_some(),
                    is_counted,
                };
                if let Some(span) = self.gpu.take(span, finished) {
                    self.out.push(self.spans.select(span));
                }
            }
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
        let mut span = self.spans.build(exchange, ids, &process, clock);
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
    fn read_cuda(&mut self, now_ns: u64, source: &dyn Source) {
        let Self { gpu, processes, out, .. } = self;
        for (tgid, process) in source.cuda() {
            let new = gpu.cuda().take(tgid, &process, |tgid| processes.ancestors(tgid));
            out.telemetry.cuda.count(&processes.get(tgid, now_ns).service_name, &new);
        }
    }

    /// Lets go of the spans that waited for a sample of their GPU.
    fn release(&mut self, now_ns: u64) {
        let Self { gpu, processes, spans, out, .. } = self;
        gpu.tick(now_ns, spans.clock(), processes, &mut |span| out.push(spans.select(span)));
    }

    fn flush_printer(&mut self) {
        let result = self.out.printer.as_mut().map_or(Ok(()), Printer::flush);
        self.out.give_up_printing_on(result);
    }
}

impl Out {
    fn push(&mut self, span: FinishedSpan) {
        self.telemetry.spans.inc();
        self.send(span);
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
