//! One stream: a request and its response.

use std::sync::Arc;

use super::{
    super::{
        Event, Exchange, Failure, Grpc, Incomplete, Origin, Progress,
        exchange::By,
        http1::{RequestHead, ResponseHead},
        open::Out,
        progress::{self, Notes, Recorder, Showings},
    },
    head::Fields,
};

/// When bytes moved, and who moved them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) first_ns: u64,
    pub(super) last_ns: u64,
    /// Who makes the call.
    pub(super) by: By,
}

/// How it is known that nothing more comes on a stream.
#[derive(Clone, Copy, Debug)]
pub(in crate::decode) enum StreamEnd {
    /// The server said so.
    Complete,
    /// It came to an end before.
    Failed { time_ns: u64, failure: Failure },
    /// It is not known.
    Unknown,
}

/// An exchange that is not over.
#[derive(Clone, Debug)]
pub(super) struct Stream {
    pub(super) origin: Origin,
    unix_path: Option<Arc<str>>,
    request: Arc<RequestHead>,
    response: Option<ResponseHead>,
    /// Content of DATA frames; `None` once some may have been missed.
    request_bytes: Option<u64>,
    response_bytes: Option<u64>,
    request_last_ns: u64,
    /// First byte of the final response, 0 before it came.
    first_ns: u64,
    last_ns: u64,
    /// Frames of the response.
    chunks: u32,
    longest_gap_ns: u64,
    is_grpc: bool,
    grpc_status: Option<u32>,
    progress: Notes,
    showings: Showings,
    /// Its end may have been missed.
    pub(super) is_end_uncertain: bool,
    /// A header block of the response was missed, or could not be read.
    is_block_missing: bool,
}

impl Stream {
    pub(super) fn new(
        origin: Origin,
        unix_path: Option<Arc<str>>,
        request: Arc<RequestHead>,
        request_bytes: Option<u64>,
        request_last_ns: u64,
        is_grpc: bool,
    ) -> Self {
        Self {
            origin,
            unix_path,
            request,
            response: None,
            request_bytes,
            response_bytes: Some(0),
            request_last_ns,
            first_ns: 0,
            last_ns: 0,
            chunks: 0,
            longest_gap_ns: 0,
            is_grpc,
            grpc_status: None,
            progress: Notes::default(),
            showings: Showings::default(),
            is_end_uncertain: false,
            is_block_missing: false,
        }
    }

    /// When something was last heard of it.
    pub(super) fn heard_ns(&self) -> u64 {
        self.last_ns.max(self.request_last_ns)
    }

    /// Notes how far the response has come, if it is time.
    pub(super) fn note_progress(&mut self, now_ns: u64) {
        if self.first_ns > 0 {
            Recorder::of(&mut self.progress, self.first_ns).note(Progress {
                time_ns: now_ns,
                request_bytes: self.request_bytes.unwrap_or_default(),
                response_bytes: self.response_bytes.unwrap_or_default(),
                chunks: self.chunks,
            });
        }
    }

    /// Shows the exchange as if it ended now, if it is time.
    pub(super) fn show(&mut self, after_ns: u64, now_ns: u64, out: &mut Out<'_>) {
        if !self.showings.is_due(self.origin.begin_ns, after_ns, now_ns) {
            return;
        }
        let end_ns = if self.first_ns > 0 { self.last_ns } else { now_ns };
        self.showings.end_ns = self.showings.end_ns.max(end_ns);
        let incomplete = self.request.cut.then_some(Incomplete::Head);
        (out.emit)(Event::Running(&self.clone().exchange(end_ns, incomplete, None)));
    }

    /// The response has run for long.
    pub(super) const fn is_long(&self, now_ns: u64) -> bool {
        progress::is_long(self.first_ns, now_ns)
    }

    /// Bytes of the request's body.
    pub(super) fn request_data(&mut self, bytes: u64, at: Moment) {
        self.request_bytes = self.request_bytes.map(|before| before.saturating_add(bytes));
        self.request_last_ns = self.request_last_ns.max(at.last_ns);
    }

    /// Bytes of the response's body, and whether they are the last of their frame.
    pub(super) fn response_data(&mut self, bytes: u64, is_last: bool, at: Moment) {
        self.response_bytes = self.response_bytes.map(|before| before.saturating_add(bytes));
        self.moved(at);
        self.chunks += u32::from(is_last);
    }

    /// A header block of a response: interim, final, or trailers. `None` if it could not be read.
    pub(super) fn response_block(&mut self, fields: Option<&Fields>, is_end: bool, at: Moment, out: &mut Out<'_>) {
        let Some(fields) = fields else {
            self.is_block_missing = true;
            return self.moved(at);
        };
        let head = fields.response(out.keeps_headers);
        if head.as_ref().is_some_and(ResponseHead::is_interim) {
            return;
        }
        self.is_block_missing |= self.response.is_none() && head.is_none();
        self.is_grpc |= fields.is_grpc();
        self.grpc_status = fields.grpc_status().or(self.grpc_status);
        if self.response.is_none() {
            self.response = head;
        }
        let is_first = self.first_ns == 0;
        self.moved(at);
        self.chunks += 1;
        // Of what is over there is no need to tell that it has begun.
        if is_first && !is_end {
            (out.emit)(Event::Answered(&self.origin, self.first_ns));
        }
    }

    fn moved(&mut self, at: Moment) {
        if self.first_ns == 0 {
            self.first_ns = at.first_ns;
        } else {
            self.longest_gap_ns = self.longest_gap_ns.max(at.first_ns.saturating_sub(self.last_ns));
        }
        self.last_ns = self.last_ns.max(at.last_ns);
        // Who speaks has not ended before.
        self.is_end_uncertain = false;
    }

    /// Frames of the client were missed.
    pub(super) const fn miss_request(&mut self) {
        self.request_bytes = None;
        // A reset may have been among them.
        self.is_end_uncertain = true;
    }

    /// Frames of the server were missed.
    pub(super) const fn miss_response(&mut self) {
        self.response_bytes = None;
        self.is_end_uncertain = true;
        self.is_block_missing = true;
    }

    /// Makes the exchange.
    pub(super) fn finish(self, end: StreamEnd, out: &mut Out<'_>) {
        let is_answered = self.first_ns > 0;
        let (failure, end_ns) = match end {
            StreamEnd::Failed { time_ns, failure } => (Some(failure), time_ns.max(self.last_ns)),
            _ if is_answered => (None, self.last_ns),
            _ => (None, self.request_last_ns),
        };
        let is_response_lost = self.response.is_none() && (failure.is_none() || self.is_block_missing);
        let incomplete = [
            self.request.cut.then_some(Incomplete::Head),
            matches!(end, StreamEnd::Unknown).then_some(Incomplete::End),
            is_response_lost.then_some(Incomplete::Response),
        ];
        out.counters.response_missing += u64::from(is_response_lost);
        let exchange = self.exchange(end_ns, incomplete.into_iter().flatten().max(), failure);
        out.counters.ended += 1;
        (out.emit)(Event::Ended(&exchange));
    }

    fn exchange(self, end_ns: u64, incomplete: Option<Incomplete>, failure: Option<Failure>) -> Exchange {
        let has_response = self.response.is_some();
        Exchange {
            end_ns: end_ns.max(self.origin.begin_ns).max(self.showings.end_ns),
            origin: self.origin,
            unix_path: self.unix_path,
            request: self.request,
            response: self.response,
            response_first_ns: (self.first_ns > 0).then_some(self.first_ns),
            response_chunks: self.chunks,
            longest_gap_ns: self.longest_gap_ns,
            request_body_bytes: self.request_bytes,
            response_body_bytes: self.response_bytes.filter(|_| has_response),
            websocket: None,
            progress: self.progress.all,
            grpc: self.is_grpc.then_some(Grpc { status: self.grpc_status }),
            incomplete,
            failure,
            // The content of DATA frames is not captured.
            bodies: None,
        }
    }
}
