//! What moves on a connection that was switched to WebSocket (RFC 6455): messages are counted, not read.
//!
//! Of every call the first bytes are told. A frame that begins behind them is missed, and with it the place of those that
//! follow: from there on messages are not counted, as a number that is too small is a wrong one. Bytes always are.

use coati_common::event::{Data, direction};

use super::{
    DecodeCounters, Progress, WebSocket, WebSocketSide,
    open::{Ending, Open, Out},
    progress::Recorder,
};

const CLOSE: u8 = 8;

/// One direction.
#[derive(Debug, Default)]
struct Side {
    /// Bytes of the direction that were looked at, the exchange's heads included.
    seen: u64,
    /// Bytes of the heads.
    start: u64,
    /// Messages; meaningless once a frame was missed.
    messages: u64,
    is_missed: bool,
    /// Bytes of the current frame's payload that are still to come.
    left: u64,
    /// The beginning of the next frame, as far as it came.
    header: Vec<u8>,
    /// The code that a close frame gave, 0 for none; `None` before it came.
    closed: Option<u16>,
}

impl Side {
    fn at(start: u64) -> Self {
        Self { seen: start, start, ..Self::default() }
    }

    fn told(&self) -> WebSocketSide {
        let messages = (!self.is_missed).then_some(self.messages);
        WebSocketSide { messages, bytes: self.seen.saturating_sub(self.start) }
    }

    /// Takes a call that moved `len` bytes behind byte `start`.
    fn take(&mut self, start: u64, len: u64, payload: &[u8], counters: &mut DecodeCounters) {
        if start < self.seen {
            return;
        }
        let unseen = start - self.seen;
        self.seen = start.saturating_add(len);
        if !self.skip(unseen) {
            self.miss(counters);
        }
        let (mut left, mut bytes) = (len, payload);
        while !self.is_missed && left > 0 {
            let count = self.left.min(left);
            if count > 0 {
                (self.left, left) = (self.left - count, left - count);
                let known = usize::try_from(count).unwrap_or(usize::MAX);
                bytes = bytes.get(known..).unwrap_or_default();
                continue;
            }
            let Some((byte, rest)) = bytes.split_first() else { return self.miss(counters) };
            (bytes, left) = (rest, left - 1);
            self.header.push(*byte);
            self.end_header();
        }
    }

    /// Bytes moved of which nothing is known; false if a frame began among them.
    fn skip(&mut self, count: u64) -> bool {
        let is_known = count <= self.left;
        self.left = self.left.saturating_sub(count);
        is_known
    }

    fn miss(&mut self, counters: &mut DecodeCounters) {
        counters.websocket_gaps += u64::from(!self.is_missed);
        self.is_missed = true;
    }

    /// Looks whether the header is whole.
    fn end_header(&mut self) {
        let [first, second, rest @ ..] = self.header.as_slice() else { return };
        let (is_final, code) = (first & 0x80 != 0, first & 0x0f);
        let (short, is_masked) = (second & 0x7f, second & 0x80 != 0);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some((length, rest)) = rest.split_at_checked(extended) else { return };
        let length = match short {
            126 | 127 => length.iter().fold(0_u64, |length, byte| length << 8 | u64::from(*byte)),
            short => u64::from(short),
        };
        let Some((mask, rest)) = rest.split_at_checked(if is_masked { 4 } else { 0 }) else { return };
        // A close frame begins with its code.
        let wanted = if code == CLOSE && length >= 2 { 2 } else { 0 };
        let Some(reason) = rest.get(..wanted) else { return };
        if code == CLOSE {
            let plain = |place: usize| {
                let mask = mask.get(place).copied().unwrap_or_default();
                u16::from(reason.get(place).copied().unwrap_or_default() ^ mask)
            };
            self.closed = self.closed.or(Some(if wanted == 2 { plain(0) << 8 | plain(1) } else { 0 }));
        }
        // Others are control frames, and never a part of a message.
        self.messages += u64::from(is_final && code < CLOSE);
        self.left = length - wanted as u64;
        self.header.clear();
    }
}

/// Any bytes as calls of one direction, for the fuzz target `websocket`: bytes that moved, bytes that are told, and those.
///
/// # Panics
///
/// If more messages are counted than bytes have moved.
pub fn fuzz_websocket(bytes: &[u8]) {
    let (mut side, mut counters) = (Side::default(), DecodeCounters::default());
    let (mut start, mut rest) = (0, bytes);
    while let Some(([len, told], behind)) = rest.split_first_chunk() {
        let (payload, behind) = behind.split_at(behind.len().min(usize::from(*told)));
        rest = behind;
        let len = u64::from(*len).max(payload.len() as u64);
        side.take(start, len, payload, &mut counters);
        // Some records are lost.
        start += len + u64::from(len % 17 == 3);
        assert!(side.messages <= start / 2, "a message takes two bytes at least");
    }
}

/// A connection that was switched.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) open: Box<Open>,
    requests: Side,
    responses: Side,
    last_ns: u64,
}

impl Session {
    /// The answer to `open` has switched the connection; its client has sent `request_bytes`, head included.
    pub(super) fn new(open: Box<Open>, request_bytes: u64) -> Self {
        let (requests, responses) = (Side::at(request_bytes), Side::at(open.response.bytes));
        Self { requests, responses, last_ns: open.last_ns, open }
    }

    /// Bytes of the server that came in one call with the head.
    pub(super) fn switched(&mut self, len: u64, payload: &[u8], out: &mut Out<'_>) {
        let start = self.responses.seen;
        self.responses.take(start, len, payload, out.counters);
    }

    /// Takes a record; true if both ends have said that they close.
    pub(super) fn data(&mut self, data: &Data, payload: &[u8], out: &mut Out<'_>) -> bool {
        self.last_ns = self.last_ns.max(data.header.time_ns);
        let (side, total) = if data.direction == direction::REQUEST {
            (&mut self.requests, data.totals.request_bytes)
        } else {
            (&mut self.responses, data.totals.response_bytes)
        };
        side.take(total.saturating_sub(data.len), data.len, payload, out.counters);
        self.requests.closed.is_some() && self.responses.closed.is_some()
    }

    /// When something was last heard of it.
    pub(super) const fn last_ns(&self) -> u64 {
        self.last_ns
    }

    /// Notes how far it has come, if it is time.
    pub(super) fn note_progress(&mut self, now_ns: u64) {
        let [request_bytes, response_bytes] = [&self.requests, &self.responses].map(|side| side.told().bytes);
        let chunks = self.open.chunks;
        Recorder::of(&mut self.open.progress, self.open.first_ns).note(Progress {
            time_ns: now_ns,
            request_bytes,
            response_bytes,
            chunks,
        });
    }

    /// Shows the exchange as if it ended now, if it is time.
    pub(super) fn show(&mut self, after_ns: u64, now_ns: u64, out: &mut Out<'_>) {
        self.open.websocket = Some(self.so_far());
        self.open.show(after_ns, now_ns, None, out);
    }

    /// It is over, at `time_ns`.
    pub(super) fn finish(mut self, time_ns: u64, is_known: bool, out: &mut Out<'_>) {
        self.open.last_ns = self.open.last_ns.max(time_ns);
        self.open.websocket = Some(self.so_far());
        self.open.finish(if is_known { Ending::Framing } else { Ending::Unknown }, out);
    }

    fn so_far(&self) -> WebSocket {
        // Who asks to close says why; the other end repeats it.
        let code = [&self.requests, &self.responses].into_iter().filter_map(|side| side.closed).find(|code| *code > 0);
        WebSocket { requests: self.requests.told(), responses: self.responses.told(), close_code: code }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn frame(first: u8, payload: &[u8], mask: Option<[u8; 4]>) -> Vec<u8> {
        let masked = if mask.is_some() { 0x80 } else { 0 };
        let mut bytes = vec![first];
        match payload.len() {
            short @ 0..126 => bytes.push(masked + short as u8),
            long @ 126..0x1_0000 => bytes.extend([&[masked + 126], &(long as u16).to_be_bytes()[..]].concat()),
            longest => bytes.extend([&[masked + 127], &(longest as u64).to_be_bytes()[..]].concat()),
        }
        bytes.extend(mask.unwrap_or_default().iter().take(if mask.is_some() { 4 } else { 0 }));
        bytes.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask.map_or(0, |mask| mask[at % 4])));
        bytes
    }

    /// Takes `bytes` in calls of `size` bytes, of each of which `room` are told.
    fn take(bytes: &[u8], size: usize, room: usize) -> (Side, DecodeCounters) {
        let (mut flow, mut counters) = (Side::at(100), DecodeCounters::default());
        for (call, start) in bytes.chunks(size).zip((100..).step_by(size)) {
            flow.take(start, call.len() as u64, &call[..call.len().min(room)], &mut counters);
        }
        (flow, counters)
    }

    const MASK: Option<[u8; 4]> = Some([1, 2, 3, 0xff]);

    #[rstest]
    #[case::text(frame(0x81, b"hello", MASK), 1, None)]
    #[case::empty(frame(0x82, b"", None), 1, None)]
    #[case::in_three_frames([frame(0x01, b"a", MASK), frame(0x00, b"b", MASK), frame(0x80, b"c", MASK)].concat(), 1, None)]
    #[case::ping_between([frame(0x01, b"a", None), frame(0x89, b"ping", None), frame(0x80, b"c", None)].concat(), 1, None)]
    #[case::compressed(frame(0xc1, b"hello", MASK), 1, None)]
    #[case::long(frame(0x82, &[7; 300], MASK), 1, None)]
    #[case::longest(frame(0x82, &vec![7; 70_000], None), 1, None)]
    #[case::close(frame(0x88, b"\x03\xe8bye", MASK), 0, Some(1000))]
    #[case::close_without_a_code([frame(0x81, b"x", None), frame(0x88, b"", None)].concat(), 1, Some(0))]
    fn messages_are_counted_however_they_are_cut(
        #[case] bytes: Vec<u8>,
        #[case] messages: u64,
        #[case] closed: Option<u16>,
    ) {
        for size in [1, 2, 3, 7, bytes.len()] {
            let (side, counters) = take(&bytes, size, usize::MAX);
            let told = WebSocketSide { messages: Some(messages), bytes: bytes.len() as u64 };
            assert_eq!((side.told(), side.closed, counters.websocket_gaps), (told, closed, 0), "calls of {size}");
        }
    }

    #[test]
    fn no_prefix_has_more_than_the_whole() {
        let bytes =
            [frame(0x81, b"hello", MASK), frame(0x82, &[7; 200], None), frame(0x88, b"\x03\xe9", MASK)].concat();
        for len in 0..=bytes.len() {
            let (found, counters) = take(&bytes[..len], 5, usize::MAX);
            let begun = u64::from(len >= 6) + u64::from(len >= 11 + 4);
            assert_eq!((found.told().messages, counters.websocket_gaps), (Some(begun), 0), "{len} bytes");
            assert_eq!(found.closed, (len == bytes.len()).then_some(1001), "{len} bytes");
        }
    }

    #[test]
    fn what_is_not_told_is_not_counted() {
        // The content of a message may be missing, the beginning of a frame may not.
        let long = [frame(0x81, &[7; 500], None), frame(0x81, b"next", None)].concat();
        let (whole, counters) = take(&long, 504, 100);
        assert_eq!((whole.told().messages, counters.websocket_gaps), (Some(2), 0));
        let (cut, counters) = take(&long, 510, 100);
        assert_eq!((cut.told(), counters.websocket_gaps), (WebSocketSide { messages: None, bytes: 510 }, 1));
    }

    proptest! {
        /// With every byte told the count is right; at every prefix it is that of the frames that have begun.
        #[test]
        fn counts_are_right_or_missing(
            payloads in prop::collection::vec((any::<bool>(), 0_usize..400), 1..20),
            size in 1_usize..500,
            room in 1_usize..500,
        ) {
            let frames: Vec<_> =
                payloads.iter().map(|(masked, len)| frame(0x81, &vec![9; *len], MASK.filter(|_| *masked))).collect();
            let bytes = frames.concat();
            let (found, _) = take(&bytes, size, room);
            prop_assert!(found.told().messages.is_none_or(|count| count == frames.len() as u64));
            prop_assert_eq!(found.told().bytes, bytes.len() as u64);
            let (whole, _) = take(&bytes, size, usize::MAX);
            prop_assert_eq!(whole.told().messages, Some(frames.len() as u64));
        }

        #[test]
        fn any_bytes_are_taken(calls in prop::collection::vec((0_u64..50, 0_u64..100, any::<Vec<u8>>()), 0..20)) {
            let (mut side, mut counters) = (Side::default(), DecodeCounters::default());
            for (start, len, payload) in calls {
                side.take(start, len, &payload, &mut counters);
                // Two bytes, a length of eight, a mask of four, and the code of a close frame.
                prop_assert!(side.header.len() < 2 + 8 + 4 + 2);
            }
        }
    }
}
