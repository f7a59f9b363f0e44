//! Recognising HTTP/1 from the first bytes that one system call moves.
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
