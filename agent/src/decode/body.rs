//! Where a message body ends, although most of its bytes are only counted.

use super::framing::Framing;
use super::http1::{RequestHead, ResponseHead};
use super::method::Method;

/// The bytes that one system call moved, as far as they are known: a known start, a number of unknown bytes, and the
/// last few bytes. What a message has used is taken off the front.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved<'a> {
    payload: &'a [u8],
    gap: u64,
    last: &'a [u8],
}

impl<'a> Moved<'a> {
    /// What a call that moved `len` bytes says of them. `last` ends with the last byte; zeros in it are unknown.
    pub(super) fn new(len: u64, payload: &'a [u8], last: &'a [u8; 8]) -> Self {
        let payload = usize::try_from(len).ok().and_then(|len| payload.get(..len)).unwrap_or(payload);
        let rest = len - payload.len() as u64;
        let unknown = last.iter().take_while(|byte| **byte == 0).count();
        let known = last.len() - unknown;
        let taken = usize::try_from(rest).map_or(known, |rest| rest.min(known));
        let last = last.get(last.len() - taken..).unwrap_or_default();
        Self { payload, gap: rest - last.len() as u64, last }
    }

    /// Bytes of which nothing is known.
    pub(super) const fn unknown(len: u64) -> Self {
        Self { payload: &[], gap: len, last: &[] }
    }

    /// Bytes that are left.
    pub(super) const fn len(&self) -> u64 {
        self.payload.len() as u64 + self.gap + self.last.len() as u64
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The known bytes at the front; empty if the next byte is unknown.
    pub(super) const fn known(&self) -> &'a [u8] {
        if self.payload.is_empty() && self.gap == 0 { self.last } else { self.payload }
    }

    /// The bytes end with an empty line; `None` if their end is unknown.
    pub(super) fn ends_with_empty_line(&self) -> Option<bool> {
        let end = if self.last.is_empty() && self.gap == 0 { self.payload } else { self.last };
        (!end.is_empty()).then(|| end.ends_with(b"\r\n\r\n"))
    }

    /// Takes `count` of the [`known`](Self::known) bytes off the front.
    pub(super) fn skip_known(&mut self, count: usize) {
        let front = if self.payload.is_empty() && self.gap == 0 { &mut self.last } else { &mut self.payload };
        *front = front.get(count..).unwrap_or_default();
    }
}

/// The last bytes of a message so far; zeros where unknown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Tail([u8; 8]);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        if let Some(last) = bytes.last_chunk() {
            self.0 = *last;
            return;
        }
        self.0.rotate_left(bytes.len());
        let kept = self.0.len() - bytes.len();
        if let Some(new) = self.0.get_mut(kept..) {
            new.copy_from_slice(bytes);
        }
    }

    fn forget(&mut self) {
        self.0 = [0; 8];
    }

    /// The bytes end with an empty line, as every chunked body and every head does.
    pub(super) fn ends_with_empty_line(self) -> bool {
        self.0.ends_with(b"\r\n\r\n")
    }

    /// Nothing is known of the last bytes.
    pub(super) fn is_unknown(self) -> bool {
        self.0 == [0; 8]
    }

    /// The bytes end like a chunked body without trailers. Data that ends a chunk with a line `0` looks the same, so
    /// this is only asked where the framing could not be followed.
    fn ends_with_last_chunk(self) -> bool {
        self.0.ends_with(b"\r\n0\r\n\r\n") || self.0.ends_with(b"\x000\r\n\r\n")
    }
}

/// The body of a message, and how much of it is still to come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Body {
    /// So many bytes are missing; complete at 0.
    Length(u64),
    /// Chunked.
    Chunked(Chunked),
    /// Ends with the connection.
    UntilClose,
    /// The message's head is cut and its body is empty: it ends with the head's empty line.
    RestOfHead,
    /// The message's head is cut, its body has a length: it ends somewhere after so many bytes of the message.
    AtLeast(u64),
    /// Where it ends cannot be known.
    Unknown,
}

impl Body {
    /// The body that follows a request's head.
    pub(super) fn of_request(head: &RequestHead) -> Self {
        match Self::declared(head.framing, Self::Length(0)) {
            _ if head.cut => Self::Unknown,
            body => body,
        }
    }

    /// The body that follows the head of a final response to `method` (RFC 9112 §6.3).
    pub(super) fn of_response(head: &ResponseHead, method: Method, captured: u64) -> Self {
        let empty = method == Method::Head
            || matches!(head.status, 100..=199 | 204 | 304)
            || (method == Method::Connect && matches!(head.status, 200..=299));
        let whole = if empty { Self::Length(0) } else { Self::declared(head.framing, Self::UntilClose) };
        if !head.cut {
            return whole;
        }
        match whole {
            Self::Length(_) if empty => Self::RestOfHead,
            Self::Length(length) => Self::AtLeast(captured.saturating_add(length)),
            Self::Chunked(_) => Self::Chunked(Chunked::lost()),
            // The header that would tell may be among those that were cut off.
            _ => Self::Unknown,
        }
    }

    fn declared(framing: Framing, otherwise: Self) -> Self {
        match framing.content_length {
            _ if framing.chunked => Self::Chunked(Chunked::default()),
            _ if framing.contradictory => Self::Unknown,
            Some(length) => Self::Length(length),
            None => otherwise,
        }
    }

    /// Takes the bytes of `moved` that belong to the body.
    pub(super) fn take(&mut self, moved: &mut Moved<'_>, tail: &mut Tail) {
        while !moved.is_empty() {
            let before = moved.len();
            let known = moved.known();
            if known.is_empty() {
                let used = self.take_unknown(moved.gap);
                moved.gap -= used;
                if used > 0 {
                    tail.forget();
                }
            } else {
                let used = self.take_known(known, tail);
                moved.skip_known(used);
            }
            if moved.len() == before {
                return;
            }
        }
    }

    fn take_known(&mut self, bytes: &[u8], tail: &mut Tail) -> usize {
        let used = match self {
            Self::Length(left) => {
                let used = usize::try_from(*left).map_or(bytes.len(), |left| left.min(bytes.len()));
                *left -= used as u64;
                used
            }
            Self::Chunked(chunked) => chunked.take_known(bytes),
            Self::UntilClose | Self::RestOfHead | Self::AtLeast(_) | Self::Unknown => bytes.len(),
        };
        tail.push(bytes.get(..used).unwrap_or_default());
        used
    }

    fn take_unknown(&mut self, count: u64) -> u64 {
        match self {
            Self::Length(left) => {
                let used = count.min(*left);
                *left -= used;
                used
            }
            Self::Chunked(chunked) => chunked.take_unknown(count),
            Self::UntilClose | Self::RestOfHead | Self::AtLeast(_) | Self::Unknown => count,
        }
    }

    /// The last byte has been taken, asked at the end of a system call.
    pub(super) fn is_complete(&self, tail: Tail) -> bool {
        match self {
            Self::Length(left) => *left == 0,
            Self::Chunked(chunked) => match chunked.state {
                ChunkState::Done => true,
                ChunkState::Lost => tail.ends_with_last_chunk(),
                _ => false,
            },
            Self::RestOfHead => tail.ends_with_empty_line(),
            Self::UntilClose | Self::AtLeast(_) | Self::Unknown => false,
        }
    }

    /// More bytes must come, or the message was cut short.
    pub(super) fn is_surely_incomplete(&self, tail: Tail) -> bool {
        match self {
            Self::Length(left) => *left > 0,
            Self::Chunked(chunked) => match chunked.state {
                ChunkState::Done => false,
                ChunkState::Lost => !tail.is_unknown() && !tail.ends_with_empty_line(),
                _ => true,
            },
            Self::UntilClose | Self::RestOfHead | Self::AtLeast(_) | Self::Unknown => false,
        }
    }

    /// So many bytes are still to come, where that is known.
    pub(super) const fn left(&self) -> Option<u64> {
        match self {
            Self::Length(left) => Some(*left),
            _ => None,
        }
    }
}

/// Follows chunked framing (RFC 9112 §7.1) through known bytes, and through unknown ones inside a chunk's data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Chunked {
    state: ChunkState,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum ChunkState {
    /// In the digits of a chunk's size.
    Size { value: u64, digits: u8 },
    /// Behind the size, up to the end of the line.
    SizeLine { value: u64 },
    /// So many bytes of data are missing.
    Data { left: u64 },
    /// In the line end behind the data.
    DataEnd,
    /// In a line of the trailer section; the empty one ends the body.
    Trailer { empty: bool },
    /// The body has ended.
    Done,
    /// Bytes of the framing are unknown.
    Lost,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { state: ChunkState::Size { value: 0, digits: 0 } }
    }
}

impl Chunked {
    const fn lost() -> Self {
        Self { state: ChunkState::Lost }
    }

    fn take_known(&mut self, bytes: &[u8]) -> usize {
        let mut used = 0;
        while let Some(rest) = bytes.get(used..).filter(|rest| !rest.is_empty()) {
            match self.state {
                ChunkState::Done => return used,
                ChunkState::Lost => return bytes.len(),
                ChunkState::Data { .. } => used += self.take_unknown(rest.len() as u64) as usize,
                _ => {
                    if let Some(byte) = rest.first() {
                        self.state = self.state.after(*byte);
                    }
                    used += 1;
                }
            }
        }
        used
    }

    fn take_unknown(&mut self, count: u64) -> u64 {
        match self.state {
            ChunkState::Done => 0,
            ChunkState::Data { left } if count < left => {
                self.state = ChunkState::Data { left: left - count };
                count
            }
            ChunkState::Data { left } => {
                self.state = ChunkState::DataEnd;
                left
            }
            _ => {
                self.state = ChunkState::Lost;
                count
            }
        }
    }
}

impl ChunkState {
    /// The state after a byte of the framing.
    fn after(self, byte: u8) -> Self {
        match (self, byte) {
            (Self::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                match value.checked_mul(16) {
                    Some(value) => Self::Size { value: value | u64::from(digit), digits: digits.saturating_add(1) },
                    None => Self::Lost,
                }
            }
            (Self::Size { digits: 0, .. }, _) => Self::Lost,
            (Self::Size { value: 0, .. } | Self::SizeLine { value: 0 }, b'\n') => Self::Trailer { empty: true },
            (Self::Size { value, .. } | Self::SizeLine { value }, b'\n') => Self::Data { left: value },
            (Self::Size { value, .. }, b';' | b' ' | b'\t' | b'\r') | (Self::SizeLine { value }, _) => {
                Self::SizeLine { value }
            }
            (Self::DataEnd, b'\r') => Self::DataEnd,
            (Self::DataEnd, b'\n') => Self::Size { value: 0, digits: 0 },
            (Self::Trailer { empty: true }, b'\n') => Self::Done,
            (Self::Trailer { .. }, b'\n') => Self::Trailer { empty: true },
            (Self::Trailer { empty }, b'\r') => Self::Trailer { empty },
            (Self::Trailer { .. }, _) => Self::Trailer { empty: false },
            _ => Self::Lost,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::Index};
    use rstest::rstest;

    use super::*;

    /// Bytes of a body as one call after the other moves them, of which only `seen` at the start of each are known.
    fn take(body: &mut Body, calls: &[&[u8]], seen: usize) -> (bool, u64) {
        let mut tail = Tail::default();
        let mut left = 0;
        for call in calls {
            let mut last = [0; 8];
            let known = call.len().min(8);
            last[8 - known..].copy_from_slice(&call[call.len() - known..]);
            let mut moved = Moved::new(call.len() as u64, &call[..call.len().min(seen)], &last);
            assert_eq!(moved.len(), call.len() as u64);
            body.take(&mut moved, &mut tail);
            left += moved.len();
        }
        (body.is_complete(tail), left)
    }

    fn chunked() -> Body {
        Body::Chunked(Chunked::default())
    }

    #[rstest]
    #[case::one_chunk(b"5\r\nhello\r\n0\r\n\r\n", true, 0)]
    #[case::two_chunks(b"1\r\na\r\nA\r\n0123456789\r\n0\r\n\r\n", true, 0)]
    #[case::empty(b"0\r\n\r\n", true, 0)]
    #[case::leading_zeros(b"0005\r\nhello\r\n000\r\n\r\n", true, 0)]
    #[case::extension(b"5;a=\"b\"\r\nhello\r\n0;c\r\n\r\n", true, 0)]
    #[case::space_behind_the_size(b"5 \r\nhello\r\n0\r\n\r\n", true, 0)]
    #[case::trailers(b"0\r\nA: b\r\nC: d\r\n\r\n", true, 0)]
    #[case::line_feeds(b"5\nhello\n0\n\n", true, 0)]
    #[case::more_behind(b"0\r\n\r\nHTTP", true, 4)]
    #[case::data_like_the_end(b"9\r\nx\r\n0\r\n\r\n\r\n", false, 0)]
    #[case::no_end(b"5\r\nhello\r\n0\r\n", false, 0)]
    #[case::in_the_data(b"5\r\nhel", false, 0)]
    #[case::no_chunks_ends_like_one(b"zzz\r\n0\r\n\r\n", true, 0)]
    #[case::no_chunks(b"zzz\r\n", false, 0)]
    #[case::size_too_large(b"fffffffffffffffff\r\nx", false, 0)]
    fn chunked_framing(#[case] bytes: &[u8], #[case] complete: bool, #[case] left: u64) {
        let at_once = take(&mut chunked(), &[bytes], usize::MAX);
        assert_eq!(at_once, (complete, left));
        let singly: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(take(&mut chunked(), &singly, usize::MAX), (complete, left));
    }

    #[test]
    fn a_chunked_body_ends_at_its_last_byte_only() {
        let bytes = b"5\r\nhello\r\n3;x\r\nabc\r\n0\r\nA: b\r\n\r\n";
        for end in 0..bytes.len() {
            assert_eq!(take(&mut chunked(), &[&bytes[..end]], usize::MAX), (false, 0), "{end} bytes");
        }
    }

    #[rstest]
    #[case::data_in_the_gap(30, true)]
    #[case::framing_in_the_gap_but_a_plain_end(0, true)]
    fn unknown_bytes(#[case] seen: usize, #[case] complete: bool) {
        let bytes = [b"400\r\n", &[b'x'; 1024][..], b"\r\n0\r\n\r\n"].concat();
        assert_eq!(take(&mut chunked(), &[&bytes], seen).0, complete);
    }

    #[test]
    fn the_end_may_come_in_pieces_behind_unknown_bytes() {
        let chunk = [b"400\r\n", &[b'x'; 1024][..], b"\r\n"].concat();
        let calls: [&[u8]; 4] = [&chunk, &chunk, b"0\r\n\r", b"\n"];
        assert_eq!(take(&mut chunked(), &calls[..3], 0), (false, 0));
        assert_eq!(take(&mut chunked(), &calls, 0), (true, 0));
    }

    #[rstest]
    #[case::whole(5, b"hello", true, 0)]
    #[case::short(5, b"hel", false, 0)]
    #[case::more_behind(5, b"hello you", true, 4)]
    #[case::none(0, b"", true, 0)]
    fn counted(#[case] length: u64, #[case] bytes: &[u8], #[case] complete: bool, #[case] left: u64) {
        for seen in 0..=bytes.len() {
            assert_eq!(take(&mut Body::Length(length), &[bytes], seen), (complete, left), "{seen} bytes seen");
        }
    }

    #[test]
    fn a_length_ends_in_the_middle_of_unknown_bytes() {
        let mut moved = Moved::unknown(10);
        let mut body = Body::Length(4);
        body.take(&mut moved, &mut Tail::default());
        assert_eq!((body, moved.len(), moved.known()), (Body::Length(0), 6, &b""[..]));
    }

    proptest! {
        #[test]
        fn framing_that_is_seen_is_followed_exactly(
            sizes in proptest::collection::vec(1_usize..2000, 0..6),
            cuts in proptest::collection::vec(any::<Index>(), 0..8),
        ) {
            let mut bytes = Vec::new();
            for size in &sizes {
                bytes.extend(format!("{size:x}\r\n").bytes());
                // Data that could be taken for the end of the body.
                bytes.extend(b"\r\n0\r\n\r\n".iter().cycle().take(*size));
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let calls: Vec<&[u8]> = cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
            for end in 1..calls.len() {
                let is_whole = calls[end..].iter().all(|call| call.is_empty());
                prop_assert_eq!(take(&mut chunked(), &calls[..end], usize::MAX), (is_whole, 0));
            }
            prop_assert_eq!(take(&mut chunked(), &calls, usize::MAX), (true, 0));
        }
    }
}
