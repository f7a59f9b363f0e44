//! Frames of HTTP/2 (RFC 9113 §4), out of the bytes that records tell.

use coati_common::event::{Frames, frame_state};

/// Bytes of a frame's header.
const HEADER_BYTES: usize = 9;
/// Bytes of the preface of a client.
const PREFACE_BYTES: u64 = 24;
/// Bytes of a frame's payload that are kept, the most that an endpoint takes unless it says otherwise, and some more.
const PAYLOAD_LIMIT: usize = 64 * 1024;

/// Types of frames.
pub(super) mod kind {
    pub(in super::super) const DATA: u8 = 0;
    pub(in super::super) const HEADERS: u8 = 1;
    pub(in super::super) const RST_STREAM: u8 = 3;
    pub(in super::super) const PUSH_PROMISE: u8 = 5;
    pub(in super::super) const GOAWAY: u8 = 7;
    pub(in super::super) const CONTINUATION: u8 = 9;
}

/// Flags of frames.
pub(super) mod flag {
    pub(in super::super) const END_STREAM: u8 = 0x01;
    pub(in super::super) const END_HEADERS: u8 = 0x04;
    pub(in super::super) const PADDED: u8 = 0x08;
    pub(in super::super) const PRIORITY: u8 = 0x20;
}

/// What a frame begins with.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct FrameHeader {
    pub(super) length: u32,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
    /// Where it lies in its direction.
    pub(super) at: u64,
}

impl FrameHeader {
    fn parse(bytes: [u8; HEADER_BYTES], at: u64) -> Self {
        let [length @ .., kind, flags, _, _, _, _] = bytes;
        let [high, middle, low] = length;
        let [.., one, two, three, four] = bytes;
        // The first bit of the stream is reserved.
        let stream = u32::from_be_bytes([one & 0x7f, two, three, four]);
        Self { length: u32::from_be_bytes([0, high, middle, low]), kind, flags, stream, at }
    }

    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// What is left of a payload without its padding, and without what comes before a header block; `None` if the
    /// frame makes no sense.
    pub(super) fn block<'a>(&self, payload: &'a [u8]) -> Option<&'a [u8]> {
        let is_first = self.kind != kind::CONTINUATION;
        let (padding, payload) = if is_first && self.has(flag::PADDED) {
            let (padding, payload) = payload.split_first()?;
            (usize::from(*padding), payload)
        } else {
            (0, payload)
        };
        let before = match self.kind {
            kind::HEADERS if self.has(flag::PRIORITY) => 5,
            // The stream that is promised.
            kind::PUSH_PROMISE => 4,
            _ => 0,
        };
        payload.get(before..payload.len().checked_sub(padding)?)
    }
}

/// What is found among the bytes of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Found<'a> {
    /// Bytes of the content of a DATA frame moved; whether they were its last.
    Data(FrameHeader, u64, bool),
    /// Another frame is there as a whole.
    Frame(FrameHeader, &'a [u8]),
    /// Frames are missing: from here on nothing is known until the next record says where it stands.
    Gap,
}

/// The bytes that one call moved in one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call<'a> {
    /// Bytes of the direction that moved before it.
    pub(super) start: u64,
    /// Bytes that it moved.
    pub(super) len: u64,
    /// What is known of them.
    pub(super) payload: &'a [u8],
    /// Where they begin; `None` where the kernel does not follow the frames, and the payload is just their start.
    pub(super) mark: Option<[u8; 8]>,
}

/// What the next byte is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Next {
    /// Not known.
    Unknown,
    /// Of a frame's header, of which so many bytes are there.
    Header(usize),
    /// Of the payload of a frame, so many bytes before its end.
    Payload(FrameHeader, u64),
    /// Of the payload of a frame whose header was missed; whether it is told.
    Rest(u64, bool),
}

/// Puts the frames of one direction together.
#[derive(Debug)]
pub(super) struct FrameReader {
    next: Next,
    header: [u8; HEADER_BYTES],
    /// Where the current frame's header begins.
    at: u64,
    /// The payload of the current frame, if that is not DATA.
    payload: Vec<u8>,
    /// Bytes of the direction that were looked at.
    seen: u64,
}

impl FrameReader {
    /// At the first byte of a direction.
    pub(super) const fn new() -> Self {
        Self { next: Next::Unknown, header: [0; HEADER_BYTES], at: 0, payload: Vec::new(), seen: 0 }
    }

    /// Where a frame begins, at byte `seen` of the direction.
    pub(super) fn at_frame(seen: u64) -> Self {
        Self { next: Next::Header(0), seen, ..Self::new() }
    }

    /// Where the client's preface begins.
    pub(super) fn preface() -> Self {
        Self { next: Next::Rest(PREFACE_BYTES, true), ..Self::new() }
    }

    /// The kernel counts the bytes of the direction from 0 again.
    pub(super) const fn recount(&mut self) {
        self.seen = 0;
    }

    /// Takes the bytes of a call; gives how many bytes of the direction were missed before or in it.
    pub(super) fn take(&mut self, call: &Call<'_>, each: &mut dyn FnMut(Found<'_>)) -> u64 {
        if call.start < self.seen {
            // Told before.
            return 0;
        }
        let missed = self.catch_up(call, each);
        self.seen = call.start.saturating_add(call.len);
        missed + self.walk(call, each)
    }

    /// Bytes up to the call moved without a record: the content of a DATA frame, or records are missing.
    fn catch_up(&mut self, call: &Call<'_>, each: &mut dyn FnMut(Found<'_>)) -> u64 {
        let unseen = call.start - self.seen;
        let left = match &mut self.next {
            Next::Payload(FrameHeader { kind: kind::DATA, .. }, left) | Next::Rest(left, false) => Some(left),
            _ => None,
        };
        let mut is_known = unseen == 0;
        if let Some(left) = left.filter(|left| unseen < **left) {
            *left -= unseen;
            is_known = true;
        }
        if is_known
            && unseen > 0
            && let Next::Payload(header, _) = self.next
        {
            each(Found::Data(header, unseen, false));
        }
        let Some(mark) = call.mark.map(Frames::of_mark) else {
            if !is_known {
                self.lose(each);
            }
            return if is_known { 0 } else { unseen };
        };
        if is_known && self.is_at(&mark) {
            return 0;
        }
        // Nothing is missing where nothing was known, before the first byte.
        if self.seen > 0 || unseen > 0 {
            each(Found::Gap);
        }
        self.payload.clear();
        self.next = match mark.state {
            frame_state::HEADER if mark.have == 0 => Next::Header(0),
            frame_state::DATA => Next::Rest(u64::from(mark.left), false),
            frame_state::OTHER => Next::Rest(u64::from(mark.left), true),
            // The first bytes of a header are missing, so how long its frame is.
            _ => Next::Unknown,
        };
        unseen
    }

    fn is_at(&self, mark: &Frames) -> bool {
        let (state, left, have) = match self.next {
            Next::Unknown => return mark.state == frame_state::UNKNOWN,
            Next::Header(have) => return mark.state == frame_state::HEADER && usize::from(mark.have) == have,
            Next::Payload(FrameHeader { kind: kind::DATA, .. }, left) | Next::Rest(left, false) => {
                (frame_state::DATA, left, 0)
            }
            Next::Payload(_, left) | Next::Rest(left, true) => (frame_state::OTHER, left, 0),
        };
        (mark.state, u64::from(mark.left), mark.have) == (state, left, have)
    }

    fn walk(&mut self, call: &Call<'_>, each: &mut dyn FnMut(Found<'_>)) -> u64 {
        let is_told = call.mark.is_none();
        let (mut left, mut bytes) = (call.len, call.payload);
        while left > 0 {
            match self.next {
                Next::Unknown => return left,
                Next::Header(have) => {
                    if have == 0 {
                        self.at = call.start + (call.len - left);
                    }
                    let wanted = (HEADER_BYTES - have).min(usize::try_from(left).unwrap_or(usize::MAX));
                    let Some((taken, rest)) = bytes.split_at_checked(wanted) else {
                        self.lose(each);
                        return left;
                    };
                    (bytes, left) = (rest, left - wanted as u64);
                    if let Some(place) = self.header.get_mut(have..have + wanted) {
                        place.copy_from_slice(taken);
                    }
                    self.next = Next::Header(have + wanted);
                    if have + wanted == HEADER_BYTES {
                        let header = FrameHeader::parse(self.header, self.at);
                        self.payload.clear();
                        self.next = Next::Payload(header, header.length.into());
                        self.end_frame(each);
                    }
                }
                Next::Payload(header, missing) if header.kind == kind::DATA => {
                    let count = missing.min(left);
                    left -= count;
                    if is_told {
                        let known = usize::try_from(count).unwrap_or(usize::MAX).min(bytes.len());
                        bytes = bytes.get(known..).unwrap_or_default();
                    }
                    self.next = Next::Payload(header, missing - count);
                    if missing > count {
                        each(Found::Data(header, count, false));
                    } else {
                        self.next = Next::Header(0);
                        each(Found::Data(header, count, true));
                    }
                }
                Next::Payload(header, missing) => {
                    let count = missing.min(left);
                    let known = usize::try_from(count).unwrap_or(usize::MAX);
                    let Some((taken, rest)) = bytes.split_at_checked(known) else {
                        self.lose(each);
                        return left;
                    };
                    let room = PAYLOAD_LIMIT.saturating_sub(self.payload.len());
                    self.payload.extend_from_slice(taken.get(..room).unwrap_or(taken));
                    (bytes, left) = (rest, left - count);
                    self.next = Next::Payload(header, missing - count);
                    self.end_frame(each);
                }
                Next::Rest(missing, is_copied) => {
                    let count = missing.min(left);
                    left -= count;
                    if is_copied {
                        let known = usize::try_from(count).unwrap_or(usize::MAX);
                        let Some(rest) = bytes.get(known..) else {
                            self.lose(each);
                            return left;
                        };
                        bytes = rest;
                    }
                    self.next = if missing > count { Next::Rest(missing - count, is_copied) } else { Next::Header(0) };
                }
            }
        }
        0
    }

    /// Tells of the current frame if its payload is whole.
    fn end_frame(&mut self, each: &mut dyn FnMut(Found<'_>)) {
        let Next::Payload(header, 0) = self.next else { return };
        self.next = Next::Header(0);
        if header.kind == kind::DATA {
            each(Found::Data(header, 0, true));
        } else {
            each(Found::Frame(header, &self.payload));
        }
    }

    fn lose(&mut self, each: &mut dyn FnMut(Found<'_>)) {
        self.next = Next::Unknown;
        self.payload.clear();
        each(Found::Gap);
    }
}

/// For tests: what the kernel programs tell of bytes.
#[cfg(test)]
pub(super) mod testing {
    use coati_common::event::{Frames, frame_state};

    /// The payload of a record about `bytes`, and where they end; nothing beyond `room` is copied.
    pub(in crate::decode) fn told(frames: &mut Frames, bytes: &[u8], room: usize) -> Vec<u8> {
        let mut payload = Vec::new();
        for byte in bytes {
            if frames.state == frame_state::HEADER {
                payload.push(*byte);
                let mut header = [0; 9];
                header[..8].copy_from_slice(&frames.header);
                header[usize::from(frames.have)] = *byte;
                frames.have += 1;
                frames.header.copy_from_slice(&header[..8]);
                if frames.have == 9 {
                    let left = u32::from_be_bytes([0, header[0], header[1], header[2]]);
                    let state = if header[3] == 0 { frame_state::DATA } else { frame_state::OTHER };
                    *frames = Frames { left, state, ..Frames::HEADER };
                }
            } else {
                if frames.state == frame_state::OTHER {
                    payload.push(*byte);
                }
                frames.left -= 1;
            }
            if frames.state != frame_state::HEADER && frames.left == 0 {
                *frames = Frames::HEADER;
            }
        }
        payload.truncate(room);
        payload
    }
}

#[cfg(test)]
#[path = "frames_tests.rs"]
mod tests;
