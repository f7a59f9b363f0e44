//! What runs on the capture thread: records are decoded, and [`Exchanges`] makes spans of what comes of them.

use coati_common::{
    event::{Connection, End, Header, Kind, end_reason, role},
    loss::Loss,
};
use foldhash::{HashSet, HashSetExt as _};
use prometheus_client::metrics::counter::Counter;

use super::exchanges::{Exchanges, Out};
use crate::{
    capture::{CaptureError, Record, Source},
    config::Reload,
    decode::Decoder,
    discover::Processes,
    gpu::GpuSpans,
    inference::InferenceConfig,
    libraries::{FileCounters, Libraries},
    span::{Clock, SpanBuilder},
    stitch::Stitcher,
    telemetry::{RECORD_KINDS, mirror},
};

/// How often the stages look at the time.
const TICK_NS: u64 = 100_000_000;
/// How often the kernel's counters are read and old things forgotten.
const SLOW_TICK_NS: u64 = 1_000_000_000;

/// The stages between the kernel and the queue. One thread has them, so they need no locks.
#[derive(Debug)]
pub struct Stages {
    decoder: Decoder,
    exchanges: Exchanges,
    /// Absent if no library is probed.
    libraries: Option<Libraries>,
    /// Processes that the driver lists, and that were looked at because of that.
    listed: HashSet<u32>,
    records: [Counter; RECORD_KINDS.len()],
    /// Records without a trace at the last look; see [`Stages::count_kernel`].
    unaccounted: u64,
    /// What the stages count was shown.
    has_counted: bool,
    ticked_ns: u64,
    ticked_slowly_ns: u64,
    /// Processes that the kernel leaves alone because no rule selects them.
    skipped: HashSet<u32>,
    /// The first process that could not be skipped was worth a line; the others are like it.
    told_of_skip: bool,
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
        let exchanges = Exchanges::new(stitcher, processes, spans, gpu, out, since_ns);
        Self {
            decoder,
            exchanges,
            libraries: None,
            listed: HashSet::new(),
            records,
            unaccounted: 0,
            has_counted: false,
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
        self.exchanges.spans.set_config(spans);
        self.exchanges.processes.set_selection(selection);
        // A rule may select them now. If none does, their next request has them skipped again.
        self.exchanges.unselected.clear();
        for tgid in self.skipped.drain() {
            source.unskip(tgid);
        }
        if let Some(libraries) = &mut self.libraries {
            let (processes, now_ns) = (&mut self.exchanges.processes, self.ticked_ns);
            libraries.look_at_all(now_ns, source, &mut |tgid| processes.is_selected(tgid, now_ns));
        }
    }

    /// Whether no spans are made of processes that export their own; at first none are.
    pub fn exclude_self_traced(&mut self, is_on: bool) {
        self.exchanges.self_traced.set_on(is_on);
    }

    /// Has libraries probed from now on.
    pub fn watch_libraries(&mut self, libraries: Libraries) {
        self.libraries = Some(libraries);
    }

    /// How requests to models are looked at.
    pub const fn set_inference(&mut self, config: InferenceConfig) {
        self.exchanges.inference = config;
    }

    /// Takes records, in the order of their times, and leaves `records` empty.
    pub fn take(&mut self, records: &mut Vec<Record>, source: &mut dyn Source) -> Result<(), CaptureError> {
        for record in records.drain(..) {
            let [begin, data, tail, end, exec, exit, http2, tls, unix] = &self.records;
            match &record {
                Record::Begin(it, _) if it.header.kind == Kind::Http2 as u32 => http2,
                Record::Begin(..) => begin,
                Record::Data(..) => data,
                Record::Tail(..) => tail,
                Record::End(_) => end,
                Record::Exec(..) => exec,
                Record::Exit(_) => exit,
                Record::Tls(_) => tls,
                Record::Unix(..) => unix,
            }
            .inc();
            match &record {
                Record::Exec(header, tgid, path) => {
                    self.exchanges.processes.executed(*tgid, &String::from_utf8_lossy(path));
                    self.exchanges.self_traced.forget(*tgid);
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
                    self.exchanges.processes.ended(exit.tgid, exit.header.time_ns);
                    self.exchanges.self_traced.forget(exit.tgid);
                    self.exchanges.unselected.retain(|tgid| *tgid != exit.tgid);
                    self.skipped.remove(&exit.tgid);
                    source.unskip(exit.tgid);
                }
                Record::Begin(begin, _) => {
                    if begin.role == role::CLIENT
                        && let Some(libraries) = &mut self.libraries
                    {
                        libraries.asks(begin.tgid, begin.header.time_ns);
                    }
                }
                Record::Data(..) | Record::Tail(..) | Record::End(_) | Record::Unix(..) => {}
            }
            let exchanges = &mut self.exchanges;
            self.decoder.record(record, &mut |event| exchanges.event(event));
        }
        let crowded = self.exchanges.stitcher.take_crowded();
        if let Some(libraries) = &mut self.libraries {
            for tgid in crowded {
                libraries.is_crowded(tgid, self.ticked_ns);
            }
        }
        self.skip_unselected(source);
        self.exchanges.flush();
        Ok(())
    }

    /// Has the kernel leave the processes alone that no rule selects: an economy, so where it fails they are watched on
    /// and their exchanges ignored here.
    fn skip_unselected(&mut self, source: &mut dyn Source) {
        for tgid in self.exchanges.unselected.drain(..) {
            // One that is gone would keep its place in the kernel's small map: its exit has been there already.
            if !self.exchanges.processes.is_running(tgid) {
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
            let processes = &mut self.exchanges.processes;
            libraries.tick(now_ns, source, &mut |tgid| processes.is_selected(tgid, now_ns));
            for tgid in libraries.take_cuda_users() {
                self.exchanges.gpu.cuda().expect(tgid, |tgid| processes.ancestors(tgid));
            }
        }
        if now_ns.saturating_sub(self.ticked_ns) < TICK_NS {
            return Ok(());
        }
        self.ticked_ns = now_ns;
        let Self { decoder, exchanges, .. } = self;
        let long: Vec<_> = decoder.long_running().collect();
        for exchange in long {
            let state = source.connection(exchange.socket, exchange.connection)?;
            decoder.progress(exchange.connection, state.as_ref(), now_ns, &mut |event| exchanges.event(event));
        }
        decoder.tick(now_ns, &mut |event| exchanges.event(event));
        exchanges.read_cuda(now_ns, source);
        exchanges.release(now_ns);
        exchanges.flush();
        self.count();
        if now_ns.saturating_sub(self.ticked_slowly_ns) >= SLOW_TICK_NS {
            self.ticked_slowly_ns = now_ns;
            self.exchanges.spans.set_clock(clock);
            self.exchanges.stitcher.tick(now_ns);
            self.exchanges.processes.forget_ended(now_ns);
            self.exchanges.out.telemetry.requests.expire(now_ns);
            self.forget_cuda(now_ns, source);
            self.look_at_listed(now_ns);
            self.forget_libraries(now_ns, source)?;
            self.count_kernel(source)?;
        }
        Ok(())
    }

    /// Forgets what processes have called of CUDA that are gone.
    fn forget_cuda(&mut self, now_ns: u64, source: &mut dyn Source) {
        let Exchanges { gpu, processes, .. } = &mut self.exchanges;
        for tgid in gpu.cuda().forget(now_ns, |tgid| processes.is_running(tgid)) {
            source.forget_cuda(tgid);
        }
    }

    /// Looks for the libraries of processes that have come to use a GPU: some load them with their first request.
    fn look_at_listed(&mut self, now_ns: u64) {
        let Some(libraries) = &mut self.libraries else { return };
        for tgid in self.exchanges.gpu.listed() {
            if self.listed.insert(tgid) {
                libraries.uses_gpu(tgid, now_ns);
            }
        }
    }

    /// Ends the TLS sessions of processes that are gone, as far as no socket has ended them, and lets go of libraries.
    fn forget_libraries(&mut self, now_ns: u64, source: &mut dyn Source) -> Result<(), CaptureError> {
        let Self { decoder, exchanges, libraries: Some(libraries), .. } = self else { return Ok(()) };
        libraries.forget_unused(now_ns);
        let gone = libraries.take_gone();
        let left = if gone.is_empty() { Vec::new() } else { source.forget_tls(&gone)? };
        for Connection { connection, exchange, totals, .. } in left {
            let header = Header { kind: Kind::End as u32, time_ns: now_ns, ..Header::default() };
            let end = End { header, connection, exchange, reason: end_reason::CLOSED, totals };
            decoder.record(Record::End(end), &mut |event| exchanges.event(event));
        }
        Ok(())
    }

    /// The libraries that are watched, to take their probes out.
    pub fn take_libraries(&mut self) -> Option<Libraries> {
        self.libraries.take()
    }

    /// Ends what is open, as far as it is known, and lets the exporter know that nothing more comes.
    pub fn finish(&mut self, source: &mut dyn Source) -> Result<(), CaptureError> {
        let Self { decoder, exchanges, .. } = self;
        decoder.finish(&mut |event| exchanges.event(event));
        exchanges.read_cuda(self.ticked_ns, source);
        // No sample will come any more.
        exchanges.release(u64::MAX);
        exchanges.flush();
        self.count();
        self.count_kernel(source)
    }

    /// Shows what the stages count for themselves. Of what never happens the 0 is shown once: to find a series costs more than to
    /// set it.
    fn count(&mut self) {
        let is_first = !std::mem::replace(&mut self.has_counted, true);
        let is_shown = |(_, total): &(&str, u64)| is_first || *total > 0;
        let telemetry = &self.exchanges.out.telemetry;
        let decoded = self.decoder.counters();
        mirror(&telemetry.exchanges, decoded.exchanges);
        mirror(&telemetry.parse_failures, decoded.request_malformed + decoded.response_malformed);
        for (cause, total) in decoded.causes().into_iter().filter(is_shown) {
            mirror(&telemetry.anomalies(cause), total);
        }
        // The causes by which a whole exchange is lost that nobody else counts.
        for (cause, total) in [
            ("request_unreadable", decoded.request_unreadable),
            ("evicted", decoded.evicted),
            ("pipelined", decoded.pipelined),
            ("pipelined_unseen", decoded.pipelined_unseen),
            ("http2_gap", decoded.http2_gaps),
        ]
        .into_iter()
        .filter(is_shown)
        {
            mirror(&telemetry.losses(cause), total);
        }
        let stitched = self.exchanges.stitcher.counters();
        for (by, total) in [
            ("header", stitched.by_header),
            ("position", stitched.by_position),
            ("program", stitched.by_program),
            ("thread", stitched.by_thread),
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
        telemetry.processes.set(self.exchanges.processes.len() as i64);
    }

    /// Shows what the kernel counts.
    fn count_kernel(&mut self, source: &dyn Source) -> Result<(), CaptureError> {
        let health = source.health()?;
        let telemetry = &self.exchanges.out.telemetry;
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
