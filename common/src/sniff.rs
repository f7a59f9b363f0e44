//! Recognising HTTP from the first bytes that one system call moves.
//!
//! The kernel programs call this, so it is branches on two words and no loop over bytes.

#![expect(clippy::inline_always, reason = "called by kernel programs: a call costs stack and a frame of the verifier")]

/// Bytes that are looked at: enough for the longest method and for a status line's three digits.
pub const SNIFF_BYTES: usize = 16;

/// Whether one of `$method` passes `$test`. Written out, as a loop over a table is one that the verifier walks.
macro_rules! any {
    ($sniff:ident.$test:ident: $($method:literal)*) => {
        $($sniff.$test(const { Method::new($method) }))||*
    };
}

/// The methods of RFC 9110 and RFC 5789.
macro_rules! any_common {
    ($sniff:ident.$test:ident) => {
        any!($sniff.$test: b"GET " b"POST " b"PUT " b"HEAD " b"PATCH " b"DELETE " b"OPTIONS " b"CONNECT " b"TRACE ")
    };
}

/// `WebDAV` with its extensions (calendars, versions, searches, links), `QUERY`, and what caches are purged with. Other
/// words are not taken for methods: FTP and its like have commands of the same form.
macro_rules! any_other {
    ($sniff:ident.$test:ident) => {
        any!($sniff.$test:
            b"PROPFIND " b"PROPPATCH " b"MKCOL " b"COPY " b"MOVE " b"LOCK " b"UNLOCK " b"REPORT " b"SEARCH " b"QUERY "
            b"PURGE " b"BAN " b"ACL " b"LINK " b"UNLINK " b"MERGE " b"CHECKOUT " b"MKACTIVITY " b"MKCALENDAR ")
    };
}

/// `HTTP/1.` and then any minor version.
const VERSION: u64 = word(*b"HTTP/1.\0");

/// Bytes of the header of an HTTP/2 frame.
const FRAME_HEADER: u32 = 9;

/// Bytes of the header of a TLS record.
const TLS_HEADER: u32 = 5;
/// Bytes of a TLS record's content at most (RFC 8446 §5.2, RFC 5246 §6.2.3).
const TLS_RECORD: u64 = 16_384 + 2048;

const fn word(bytes: [u8; 8]) -> u64 {
    u64::from_be_bytes(bytes)
}

/// A method and the space that ends it, as two big-endian words with zeros behind.
#[derive(Clone, Copy)]
struct Method {
    first: u64,
    second: u64,
    len: u32,
}

impl Method {
    const fn new(text: &[u8]) -> Self {
        let mut both = 0_u128;
        let mut rest = text;
        while let [byte, behind @ ..] = rest {
            both = both << 8 | *byte as u128;
            rest = behind;
        }
        both <<= 8 * (SNIFF_BYTES - text.len());
        Self { first: (both >> 64) as u64, second: both as u64, len: text.len() as u32 }
    }
}

/// What the first line of a response says of it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// An interim response (1xx, not 101): the answer is yet to come.
    Interim,
    /// `101 Switching Protocols`.
    Switching,
    /// Anything else, and bytes that are no status line.
    Final,
}

/// What a TLS record is, as far as it says: since TLS 1.3 most of the handshake looks like data.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TlsKind {
    /// Of a handshake.
    Handshake,
    /// What the application sends.
    Data,
    /// Alerts, and changes of the cipher.
    Other,
}

/// The header of a TLS record.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TlsRecord {
    /// What is in it.
    pub kind: TlsKind,
    /// Bytes behind the header.
    pub length: u32,
}

/// The first bytes that a system call moves, as two big-endian words; zeros where there are none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Sniff {
    first: u64,
    second: u64,
    len: u32,
}

impl Sniff {
    /// From the bytes as they lie in memory, the first `len` of which moved; the others must be zeros.
    #[inline(always)]
    pub const fn new(words: [u64; 2], len: u32) -> Self {
        let [first, second] = words;
        Self { first: u64::from_be(first), second: u64::from_be(second), len }
    }

    /// The bytes begin with an HTTP method and the space after it.
    #[inline(always)]
    pub fn is_method(&self) -> bool {
        any_common!(self.begins_with) || any_other!(self.begins_with)
    }

    /// The bytes are all of them the beginning of a method, and fewer than eight.
    ///
    /// Servers that wait for the next request with a read of one byte (Go's `net/http` does) cut it there.
    #[inline(always)]
    pub fn is_method_prefix(&self) -> bool {
        any_common!(self.begins) || any_other!(self.begins)
    }

    /// A connection's first request may begin here: a method, or all that has come of a common one (a request can come
    /// byte by byte). With all of them, most capital letters that another protocol sends would begin a connection.
    #[inline(always)]
    pub fn may_begin(&self) -> bool {
        self.is_method() || any_common!(self.begins)
    }

    /// A connection's first request may begin here, and a response may not: a lone `H` may be either's.
    #[inline(always)]
    pub fn begins_no_response(&self) -> bool {
        // Nearly all that are asked about begin one.
        self.first >> 8 != VERSION >> 8 && self.first != word(*b"H\0\0\0\0\0\0\0") && self.may_begin()
    }

    #[inline(always)]
    const fn begins_with(&self, method: Method) -> bool {
        if method.len <= 8 {
            let unused = 64 - 8 * method.len;
            return self.first >> unused == method.first >> unused;
        }
        let unused = 128 - 8 * method.len;
        self.first == method.first && self.second >> unused == method.second >> unused
    }

    #[inline(always)]
    const fn begins(&self, method: Method) -> bool {
        if self.len == 0 || self.len >= 8 || self.len >= method.len {
            return false;
        }
        let unused = 64 - 8 * self.len;
        self.first >> unused == method.first >> unused
    }

    /// The bytes begin with the first line of the preface that a client of HTTP/2 sends (RFC 9113 §3.4).
    #[inline(always)]
    pub const fn is_preface(&self) -> bool {
        self.first == word(*b"PRI * HT") && self.second == word(*b"TP/2.0\r\n")
    }

    /// The bytes look like the header of an HTTP/2 frame (RFC 9113 §4.1): a type that there is, flags and a stream that
    /// it may have, and no more bytes than nobody has to ask for.
    #[inline(always)]
    pub const fn is_frame(&self) -> bool {
        if self.len < FRAME_HEADER {
            return false;
        }
        let length = self.first >> 40;
        let kind = self.first >> 32 & 0xff;
        let flags = self.first >> 24 & 0xff;
        // The reserved bit is 0, and so are the next seven: connections with that many streams are rare.
        let stream = (self.first & 0xff_ffff) << 8 | self.second >> 56;
        if length > 16_384 || stream >> 24 != 0 {
            return false;
        }
        let (known_flags, is_size, is_stream) = match kind {
            0 => (0x09, true, stream != 0),
            1 => (0x2d, true, stream != 0),
            2 => (0, length == 5, stream != 0),
            3 => (0, length == 4, stream != 0),
            4 => (0x01, length.is_multiple_of(6), stream == 0),
            5 => (0x0c, length >= 4, stream != 0),
            6 => (0x01, length == 8, stream == 0),
            7 => (0, length >= 8, stream == 0),
            8 => (0, length == 4, true),
            9 => (0x04, true, stream != 0),
            _ => return false,
        };
        flags & !known_flags == 0 && is_size && is_stream
    }

    /// The bytes look like a HEADERS frame that is a whole request: what begins to be seen of a connection that is
    /// older than the agent. Of its first header field it must be `:method`, `:path`, `:scheme` or `:authority`.
    #[inline(always)]
    pub const fn is_request_frame(&self) -> bool {
        const END_HEADERS: u64 = 0x04;
        const PADDED: u64 = 0x08;
        const PRIORITY: u64 = 0x20;
        let kind = self.first >> 32 & 0xff;
        let flags = self.first >> 24 & 0xff;
        let is_odd = self.second >> 56 & 1 == 1;
        if self.len < SNIFF_BYTES as u32 || !self.is_frame() || kind != 1 || flags & END_HEADERS == 0 || !is_odd {
            return false;
        }
        let before = if flags & PADDED != 0 { 8 } else { 0 } + if flags & PRIORITY != 0 { 40 } else { 0 };
        let field = (self.second << 8 << before) >> 56;
        matches!(field, 0x82..=0x87 | 0x01 | 0x04 | 0x11 | 0x14 | 0x41 | 0x44)
    }

    /// The bytes begin with the header of a TLS record: its type, if they do. Of versions SSL 3.0 to TLS 1.3, which writes
    /// the number of 1.2, or in its first record of 1.0.
    #[inline(always)]
    pub const fn tls_record(&self) -> Option<TlsRecord> {
        let version = self.first >> 40 & 0xffff;
        let length = self.first >> 24 & 0xffff;
        if self.len < TLS_HEADER || version < 0x0300 || version > 0x0304 || length == 0 || length > TLS_RECORD {
            return None;
        }
        let kind = match self.first >> 56 {
            20 | 21 => TlsKind::Other,
            22 => TlsKind::Handshake,
            23 => TlsKind::Data,
            _ => return None,
        };
        Some(TlsRecord { kind, length: length as u32 })
    }

    /// What the bytes say if they are the beginning of a response.
    #[inline(always)]
    pub const fn status(&self) -> Status {
        if self.first >> 8 != VERSION >> 8 || self.second >> 48 != 0x2031 {
            return Status::Final;
        }
        if (self.second >> 32) & 0xffff == 0x3031 { Status::Switching } else { Status::Interim }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::string::String;
    use std::vec::Vec;

    fn sniff(bytes: &[u8]) -> Sniff {
        let mut padded = [0_u8; SNIFF_BYTES];
        let len = bytes.len().min(SNIFF_BYTES);
        padded[..len].copy_from_slice(&bytes[..len]);
        let (first, second) = padded.split_at(8);
        let words = [first, second].map(|half| u64::from_ne_bytes(half.try_into().unwrap()));
        Sniff::new(words, len as u32)
    }

    const COMMON: [&str; 9] = ["GET", "POST", "PUT", "HEAD", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
    #[rustfmt::skip]
    const OTHERS: [&str; 19] = [
        "PROPFIND", "PROPPATCH", "MKCOL", "COPY", "MOVE", "LOCK", "UNLOCK", "REPORT", "SEARCH", "QUERY", "PURGE", "BAN",
        "ACL", "LINK", "UNLINK", "MERGE", "CHECKOUT", "MKACTIVITY", "MKCALENDAR",
    ];

    #[test]
    fn every_method_is_recognised() {
        for name in COMMON.into_iter().chain(OTHERS) {
            let line = [name, " / HTTP/1.1\r\n"].concat();
            assert!(sniff(line.as_bytes()).is_method(), "{name}");
            assert!(sniff([name, " "].concat().as_bytes()).is_method(), "{name} alone");
        }
    }

    #[test]
    fn what_is_no_method_is_not_recognised() {
        let others: [&[u8]; 13] = [
            b"",
            b"PROPFIND",
            b"PROPFINDS /",
            b"PROPFIN /",
            b"RETR /file",
            b"GET",
            b"GETS /",
            b"get / HTTP/1.1",
            b" GET /",
            b"HTTP/1.1 200 OK",
            b"PRI * HTTP/2.0",
            b"\x16\x03\x01",
            &[0; 16],
        ];
        for bytes in others {
            assert!(!sniff(bytes).is_method(), "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn tls_records_are_recognised_by_their_headers() {
        let record = |bytes: &[u8]| sniff(bytes).tls_record().map(|record| (record.kind, record.length));
        assert_eq!(record(b"\x16\x03\x01\x02\x00\x01"), Some((TlsKind::Handshake, 512)));
        assert_eq!(record(b"\x17\x03\x03\x00\x20"), Some((TlsKind::Data, 32)));
        assert_eq!(record(b"\x17\x03\x03\x48\x00"), Some((TlsKind::Data, 18_432)));
        assert_eq!(record(b"\x14\x03\x03\x00\x01\x01"), Some((TlsKind::Other, 1)));
        assert_eq!(record(b"\x15\x03\x03\x00\x1a"), Some((TlsKind::Other, 26)));
        let others: [&[u8]; 8] = [
            b"",
            b"\x17\x03\x03\x00",
            b"\x17\x03\x03\x00\x00",
            b"\x17\x03\x03\x48\x01",
            b"\x17\x03\x05\x00\x20",
            b"\x17\x02\xff\x00\x20",
            b"\x18\x03\x03\x00\x20",
            b"GET / HTTP/1.1\r\n",
        ];
        for bytes in others {
            assert_eq!(record(bytes), None, "{bytes:?}");
        }
    }

    /// At every length: a prefix is a prefix until the space, and then it is a method.
    #[test]
    fn a_method_is_prefix_and_then_method() {
        for name in COMMON.into_iter().chain(OTHERS) {
            let line = [name, " / HTTP/1.1\r\n"].concat();
            for len in 0..line.len() {
                let cut = sniff(&line.as_bytes()[..len]);
                assert_eq!(cut.is_method_prefix(), (1..=name.len().min(7)).contains(&len), "{name} cut at {len}");
                assert_eq!(cut.is_method(), len > name.len(), "{name} cut at {len}");
            }
        }
    }

    #[test]
    fn a_connection_begins_with_a_method_or_with_bytes_of_a_common_one() {
        for name in COMMON.into_iter().chain(OTHERS) {
            assert!(sniff([name, " /"].concat().as_bytes()).may_begin(), "{name}");
        }
        for (bytes, expected) in [(&b"G"[..], true), (b"PAT", true), (b"L", false), (b"PROPF", false)] {
            assert_eq!(sniff(bytes).may_begin(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn other_short_reads_are_no_prefix() {
        for bytes in [&b"x"[..], b"g", b"GX", b"LX", b"\r\n", b"0\r\n\r\n", b"\0"] {
            assert!(!sniff(bytes).is_method_prefix(), "{bytes:?}");
        }
    }

    #[test]
    fn the_preface_is_recognised_at_its_full_length_only() {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        for len in 0..=preface.len() {
            assert_eq!(sniff(&preface[..len]).is_preface(), len >= SNIFF_BYTES, "{len} bytes");
        }
        assert!(!sniff(b"PRI * HTTP/1.1\r\n").is_preface());
        assert!(!sniff(preface).may_begin() && !sniff(preface).is_frame());
    }

    #[test]
    fn frames_are_told_from_other_bytes() {
        let cases: [(&[u8], bool); 15] = [
            (b"\0\0\x12\x04\0\0\0\0\0", true),
            (b"\0\0\0\x04\x01\0\0\0\0", true),
            (b"\0\x40\0\0\0\0\0\0\x01", true),
            (b"\0\0\x04\x08\0\0\0\0\0", true),
            (b"\0\0\x08\x06\x01\0\0\0\0abcdefgh", true),
            (b"\0\0\x04\x03\0\0\0\0\x07\0\0\0\x08", true),
            // Cut; too long; an unknown type; a flag that SETTINGS do not have; SETTINGS of a stream.
            (b"\0\0\x12\x04\0\0\0\0", false),
            (b"\0\x40\x01\0\0\0\0\0\x01", false),
            (b"\0\0\x12\x0a\0\0\0\0\0", false),
            (b"\0\0\x12\x04\x02\0\0\0\0", false),
            (b"\0\0\x12\x04\0\0\0\0\x01", false),
            // SETTINGS of no whole number; DATA of no stream; the reserved bit; all zeros.
            (b"\0\0\x11\x04\0\0\0\0\0", false),
            (b"\0\0\x05\0\0\0\0\0\0", false),
            (b"\0\0\x05\0\0\x80\0\0\x01", false),
            (&[0; 16], false),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sniff(bytes).is_frame(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn requests_are_told_from_other_header_blocks() {
        let cases: [(&[u8], bool); 9] = [
            (b"\0\0\x20\x01\x05\0\0\0\x01\x82\x86\x84\x41\x8c\xf1\xe3", true),
            (b"\0\0\x20\x01\x04\0\0\0\x03\x83\x86\x44\x41\x8c\xf1\xe3", true),
            (b"\0\0\x20\x01\x25\0\0\0\x03\x80\0\0\0\x0f\x82\x86", true),
            (b"\0\0\x20\x01\x2d\0\0\0\x03\x05\0\0\0\0\x0f\x82", true),
            // A response; trailers of a dynamic name; no END_HEADERS; an even stream; too few bytes.
            (b"\0\0\x20\x01\x04\0\0\0\x01\x88\x86\x84\x41\x8c\xf1\xe3", false),
            (b"\0\0\x20\x01\x05\0\0\0\x01\xbe\x86\x84\x41\x8c\xf1\xe3", false),
            (b"\0\0\x20\x01\x01\0\0\0\x01\x82\x86\x84\x41\x8c\xf1\xe3", false),
            (b"\0\0\x20\x01\x05\0\0\0\x02\x82\x86\x84\x41\x8c\xf1\xe3", false),
            (b"\0\0\x20\x01\x05\0\0\0\x01\x82\x86\x84\x41\x8c\xf1", false),
        ];
        for (bytes, expected) in cases {
            assert_eq!(sniff(bytes).is_request_frame(), expected, "{bytes:?}");
        }
    }

    #[test]
    fn status_lines_are_told_apart() {
        let cases: [(&[u8], Status); 10] = [
            (b"HTTP/1.1 200 OK\r\n", Status::Final),
            (b"HTTP/1.1 100 Continue\r\n", Status::Interim),
            (b"HTTP/1.0 103 Early\r\n", Status::Interim),
            (b"HTTP/1.1 101 Switching", Status::Switching),
            (b"HTTP/1.1 1", Status::Interim),
            (b"HTTP/1.1 ", Status::Final),
            (b"HTTP/2.0 100 ", Status::Final),
            (b"HTTP/1.1  100", Status::Final),
            (b"", Status::Final),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Status::Final),
        ];
        let found: Vec<_> = cases.iter().map(|(bytes, _)| sniff(bytes).status()).collect();
        let expected: Vec<_> = cases.iter().map(|&(_, status)| status).collect();
        assert_eq!(found, expected);
    }
}
