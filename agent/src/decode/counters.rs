//! What was decoded, and what was not and why.

/// Counters of the decoder. `exchanges = ended + dropped() + open` holds at any time.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct DecodeCounters {
    /// Requests that were seen.
    pub exchanges: u64,
    /// Of these: pipelined requests that the kernel did not tell from the one before.
    pub followers: u64,
    /// Exchanges that were handed on.
    pub ended: u64,
    /// Dropped: what began like a request is not HTTP/1.
    pub request_malformed: u64,
    /// Dropped: not even method and target of the request were captured.
    pub request_unreadable: u64,
    /// Dropped: there were more connections than the table holds, and this one was silent the longest.
    pub evicted: u64,
    /// Dropped: pipelined requests whose responses could not be told apart.
    pub pipelined: u64,
    /// Not seen: bytes behind a request that were not captured; at least one pipelined request is missing.
    pub pipelined_unseen: u64,
    /// Not seen: the `Begin` record is missing although later records of its exchange came. Where the ring was full
    /// the kernel has counted the same exchange.
    pub begin_missing: u64,
    /// Not used: `Begin` records that came behind those of a later exchange.
    pub begin_late: u64,
    /// Not requests: `Begin` records of bytes that belong to the body of an upload.
    pub begin_in_body: u64,
    /// Flagged `response`: what began like a response is not HTTP/1.
    pub response_malformed: u64,
    /// Flagged `response`: no record has the start of the response.
    pub response_missing: u64,
    /// Flagged `end`: the socket is gone, its `End` record never came.
    pub end_missing: u64,
    /// Not used: records of exchanges that were already over.
    pub data_late: u64,
    /// Places where frames of HTTP/2 are missing: a record was lost, or a call moved more of them than are told. Header
    /// blocks may have been among them, so later fields may be unknown, and streams may have ended unseen.
    pub http2_gaps: u64,
    /// Bytes of HTTP/2 connections that were not followed: before a frame was recognised, and in those gaps.
    pub http2_missed_bytes: u64,
    /// Connections that were taken for HTTP/2 by one frame, and are not.
    pub http2_refused: u64,
    /// Places where frames of WebSocket are missing: from there on messages are not counted.
    pub websocket_gaps: u64,
    /// Bytes moved behind a response that was taken for complete: its end may be wrong.
    pub response_excess: u64,
}

impl DecodeCounters {
    /// Exchanges that were seen and then lost.
    pub const fn dropped(&self) -> u64 {
        self.request_malformed + self.request_unreadable + self.evicted + self.pipelined
    }

    /// Everything that was lost or is flawed, each with its value for the `cause` label.
    pub fn causes(&self) -> [(&'static str, u64); 17] {
        [
            ("request_malformed", self.request_malformed),
            ("request_unreadable", self.request_unreadable),
            ("evicted", self.evicted),
            ("pipelined", self.pipelined),
            ("pipelined_unseen", self.pipelined_unseen),
            ("begin_missing", self.begin_missing),
            ("begin_late", self.begin_late),
            ("begin_in_body", self.begin_in_body),
            ("response_malformed", self.response_malformed),
            ("response_missing", self.response_missing),
            ("end_missing", self.end_missing),
            ("data_late", self.data_late),
            ("response_excess", self.response_excess),
            ("http2_gap", self.http2_gaps),
            ("http2_missed_bytes", self.http2_missed_bytes),
            ("http2_refused", self.http2_refused),
            ("websocket_gap", self.websocket_gaps),
        ]
    }
}
