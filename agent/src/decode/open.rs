//! An exchange that is not over, and what is made of it when it is.

use std::sync::Arc;

use coati_common::event::Totals;

use super::{
    Bodies, DecodeCounters, Event, Exchange, Failure, Incomplete, Origin, Progress, WebSocket,
    body::Moved,
    http1::{Head, HeadError},
    message::{LastAnswer, RequestStream, ResponseStream},
    method::Method,
    progress::{Notes, Recorder, Showings},
};

/// Where results go.
pub(super) struct Out<'a> {
    pub(super) counters: &'a mut DecodeCounters,
    pub(super) emit: &'a mut dyn FnMut(Event<'_>),
    /// Headers that are not needed here are wanted all the same.
    pub(super) keeps_headers: bool,
}

/// What was told of an exchange so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Announced {
    Nothing,
    Opened,
    Began,
}

/// How it is known that no more bytes of a response come.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// The framing says so.
    Framing,
    /// The next request came.
    NextRequest,
    /// The connection ended.
    Closed { time_ns: u64, failure: Failure },
    /// It is not known.
    Unknown,
}

/// When bytes moved.
#[derive(Clone, Copy)]
pub(super) struct Moment<'a> {
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    /// System calls, 0 if it is not known how many.
    pub(super) calls: u32,
    /// What the kernel has counted up to then.
    pub(super) totals: Option<&'a Totals>,
}

/// An exchange that is not over.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) origin: Origin,
    pub(super) unix_path: Option<Arc<str>>,
    announced: Announced,
    pub(super) request: RequestStream,
    pub(super) response: ResponseStream,
    /// Last byte of the request.
    pub(super) request_last_ns: u64,
    /// First byte of the final response, 0 before it came.
    pub(super) first_ns: u64,
    /// Last byte of the response.
    pub(super) last_ns: u64,
    pub(super) chunks: u32,
    longest_gap_ns: u64,
    /// First byte behind the response's head, 0 before it came.
    body_first_ns: u64,
    /// Calls that moved what is kept of the response's start.
    response_calls: Vec<(usize, u64)>,
    /// The end of the response so far, where it is wanted.
    response_end: Vec<u8>,
    pub(super) progress: Notes,
    pub(super) showings: Showings,
    pub(super) websocket: Option<WebSocket>,
}

/// Bytes of the end of a response that are kept.
const END_BYTES: usize = 2048;

impl Open {
    pub(super) fn new(origin: Origin, unix_path: Option<Arc<str>>) -> Self {
        Self {
            origin,
            unix_path,
            announced: Announced::Nothing,
            request: RequestStream::default(),
            response: ResponseStream::default(),
            request_last_ns: origin.begin_ns,
            first_ns: 0,
            last_ns: 0,
            chunks: 0,
            longest_gap_ns: 0,
            body_first_ns: 0,
            response_calls: Vec::new(),
            response_end: Vec::new(),
            progress: Notes::default(),
            showings: Showings::default(),
            websocket: None,
        }
    }

    /// Notes how far the response has come, if it is time; of one that is alone on its connection the kernel may have
    /// counted more.
    pub(super) fn note_progress(&mut self, now_ns: u64, counted: Option<&Totals>) {
        if self.first_ns == 0 || self.response.is_complete() {
            return;
        }
        let mut progress = Progress {
            time_ns: now_ns,
            request_bytes: self.request.bytes,
            response_bytes: self.response.bytes,
            chunks: self.chunks,
        };
        if let Some(totals) = counted {
            progress.request_bytes = progress.request_bytes.max(totals.request_bytes);
            progress.response_bytes = progress.response_bytes.max(totals.response_bytes);
            progress.chunks = progress.chunks.max(totals.response_chunks);
        }
        Recorder::of(&mut self.progress, self.first_ns).note(progress);
    }

    /// Shows the exchange as if it ended now, if it is time; of one that is alone on its connection the kernel may have
    /// counted more.
    pub(super) fn show(&mut self, after_ns: u64, now_ns: u64, counted: Option<&Totals>, out: &mut Out<'_>) {
        if self.announced != Announced::Began || !self.showings.is_due(self.origin.begin_ns, after_ns, now_ns) {
            return;
        }
        let mut so_far = self.clone();
        if let Some(totals) = counted {
            so_far.request.bytes = so_far.request.bytes.max(totals.request_bytes);
            so_far.response.bytes = so_far.response.bytes.max(totals.response_bytes);
            so_far.chunks = so_far.chunks.max(totals.response_chunks);
            so_far.longest_gap_ns = so_far.longest_gap_ns.max(totals.longest_gap_ns);
            so_far.last_ns = so_far.last_ns.max(totals.response_last_ns);
        }
        // A WebSocket is over with its connection, however long that is silent.
        let ends_with_bytes = so_far.response.has_begun() && so_far.websocket.is_none();
        let end_ns = if ends_with_bytes { so_far.last_ns } else { now_ns };
        so_far.showings.end_ns = so_far.showings.end_ns.max(end_ns);
        self.showings = so_far.showings;
        if let Some(exchange) = so_far.exchange(end_ns, None, None) {
            (out.emit)(Event::Running(&exchange));
        }
    }

    pub(super) fn announce(&mut self, out: &mut Out<'_>) {
        match (&self.request.head, self.announced) {
            (Some(head), Announced::Nothing | Announced::Opened) => {
                if self.origin.is_unix {
                    self.origin.set_request(head.fingerprint());
                }
                (out.emit)(Event::Began(&self.origin, head));
                self.announced = Announced::Began;
            }
            (None, Announced::Nothing) => {
                (out.emit)(Event::Opened(&self.origin));
                self.announced = Announced::Opened;
            }
            _ => {}
        }
    }

    pub(super) fn method(&self) -> Method {
        self.request.head.as_ref().map_or(Method::Other, |head| head.method)
    }

    /// Bytes of the response. `last` is of the connection.
    pub(super) fn take_response(
        &mut self,
        moved: &mut Moved<'_>,
        at: Moment<'_>,
        is_alone: bool,
        last: &mut LastAnswer,
        out: &mut Out<'_>,
    ) {
        let before = moved.len();
        if self.request.kept.is_some() && self.response.kept.is_none() {
            self.response.kept = Some(Vec::new());
        }
        self.response.keeps_headers = out.keeps_headers;
        let kept = self.response.kept.as_ref().map_or(0, Vec::len);
        let interim = self.response.take(moved, self.method(), last);
        if self.body_first_ns == 0 && self.response.has_body() {
            self.body_first_ns = at.first_ns;
        }
        if self.response.kept.as_ref().is_some_and(|it| it.len() > kept) {
            self.response_calls.push((kept, at.first_ns));
        }
        if interim {
            (self.first_ns, self.chunks) = (0, 0);
        }
        if moved.len() == before || !self.response.has_begun() {
            return;
        }
        if self.first_ns == 0 {
            self.first_ns = at.first_ns;
            // Of what is over there is no need to tell that it has begun.
            if !self.response.is_complete() {
                (out.emit)(Event::Answered(&self.origin, self.first_ns));
            }
        } else {
            self.longest_gap_ns = self.longest_gap_ns.max(at.first_ns.saturating_sub(self.last_ns));
        }
        self.last_ns = self.last_ns.max(at.last_ns);
        self.chunks = self.chunks.saturating_add(at.calls);
        if let Some(totals) = at.totals.filter(|_| is_alone) {
            self.chunks = self.chunks.max(totals.response_chunks);
            self.longest_gap_ns = self.longest_gap_ns.max(totals.longest_gap_ns);
        }
    }

    /// The last bytes of what the next record tells of, or of what no record told of.
    pub(super) fn take_end(&mut self, bytes: &[u8]) {
        if self.request.kept.is_none() {
            return;
        }
        self.response_end.extend_from_slice(bytes);
        let surplus = self.response_end.len().saturating_sub(END_BYTES);
        self.response_end.drain(..surplus);
    }

    fn bodies(&mut self) -> Option<Box<Bodies>> {
        let request = self.request.kept.take()?.into();
        let response: Box<[u8]> = self.response.kept.take().unwrap_or_default().into();
        // A response whose start is all of it has no other end.
        let response_end = if self.response_end.is_empty() {
            response.clone()
        } else {
            let start = response.len().min(END_BYTES.saturating_sub(self.response_end.len()));
            let start = response.get(response.len() - start..).unwrap_or_default();
            [start, &self.response_end].concat().into()
        };
        let response_first_ns = (self.body_first_ns > 0).then_some(self.body_first_ns);
        let response_calls = std::mem::take(&mut self.response_calls);
        Some(Box::new(Bodies { request, response, response_end, response_first_ns, response_calls }))
    }

    pub(super) fn give_up(self: Box<Self>, out: &mut Out<'_>) {
        if self.announced != Announced::Nothing {
            (out.emit)(Event::Dropped(&self.origin));
        }
    }

    pub(super) fn refuse(self: Box<Self>, error: HeadError, out: &mut Out<'_>) {
        match error {
            HeadError::Malformed { .. } => out.counters.request_malformed += 1,
            HeadError::Unreadable { .. } => out.counters.request_unreadable += 1,
        }
        self.give_up(out);
    }

    /// Reads what there is of the request's head, as no more of it will come.
    pub(super) fn cut_request(&mut self, out: &mut Out<'_>) -> Result<(), HeadError> {
        if self.request.head.is_none() {
            self.request.cut()?;
            self.announce(out);
        }
        Ok(())
    }

    pub(super) fn finish(mut self: Box<Self>, ending: Ending, out: &mut Out<'_>) {
        if let Err(error) = self.cut_request(out) {
            return self.refuse(error, out);
        }
        let (incomplete, failure) = self.judge(ending);
        if self.response.is_malformed {
            out.counters.response_malformed += 1;
        } else if self.response.is_headless() {
            out.counters.response_missing += 1;
        }
        let end_ns = match ending {
            _ if self.response.has_begun() => self.last_ns,
            Ending::Closed { time_ns, .. } => time_ns,
            _ => self.request_last_ns,
        };
        let Some(exchange) = self.exchange(end_ns, incomplete, failure) else {
            return self.refuse(HeadError::Unreadable { len: 0 }, out);
        };
        out.counters.ended += 1;
        (out.emit)(Event::Ended(&exchange));
    }

    /// The exchange, if its head was read.
    fn exchange(&mut self, end_ns: u64, incomplete: Option<Incomplete>, failure: Option<Failure>) -> Option<Exchange> {
        let request = self.request.head.take()?;
        let is_cut = request.cut.then_some(Incomplete::Head);
        let request_body_bytes = if request.cut {
            request.framing.content_length
        } else {
            Some(self.request.bytes.saturating_sub(request.size() as u64))
        };
        Some(Exchange {
            origin: self.origin,
            unix_path: self.unix_path.clone(),
            request_body_bytes,
            response_body_bytes: self.response.body_bytes(),
            request,
            response: self.response.head.take(),
            end_ns: end_ns.max(self.origin.begin_ns).max(self.showings.end_ns),
            response_first_ns: (self.first_ns > 0).then_some(self.first_ns),
            response_chunks: self.chunks,
            longest_gap_ns: self.longest_gap_ns,
            grpc: None,
            websocket: self.websocket,
            progress: std::mem::take(&mut self.progress.all),
            incomplete: incomplete.max(is_cut),
            failure,
            bodies: self.bodies(),
        })
    }

    /// What is not known, and what went wrong.
    fn judge(&mut self, ending: Ending) -> (Option<Incomplete>, Option<Failure>) {
        let is_cut_short = self.response.is_surely_incomplete();
        let method = self.method();
        match ending {
            Ending::Framing => (None, None),
            Ending::Closed { failure, .. } if !self.response.has_begun() => (None, Some(failure)),
            Ending::Closed { failure, .. } => {
                self.response.cut(method);
                let headless = self.response.is_headless().then_some(Incomplete::Response);
                (headless, is_cut_short.then_some(failure))
            }
            Ending::NextRequest | Ending::Unknown => {
                self.response.cut(method);
                let is_end_known = matches!(ending, Ending::NextRequest) && !is_cut_short;
                match &self.response.head {
                    None => (Some(Incomplete::Response), None),
                    Some(_) if is_end_known => (None, None),
                    Some(_) => (Some(Incomplete::End), None),
                }
            }
        }
    }
}
