//! Where trace and span ids come from.

use std::borrow::Cow;

use coati_common::stitch::{self, mix};

use crate::decode::Key;

/// Ids of a span, as they are sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ids {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The span.
    pub span_id: [u8; 8],
    /// The span's parent; `None` makes it a root.
    pub parent_span_id: Option<[u8; 8]>,
    /// `tracestate` of the request that was continued.
    pub trace_state: Cow<'static, str>,
    /// W3C trace flags of the request that was continued, else `sampled`.
    pub flags: u8,
    /// Whether the parent is a span of another process, where that is known.
    pub is_parent_remote: Option<bool>,
    /// The trace began with somebody else's `traceparent`, here or above, so [`Self::flags`] are what its sender decided.
    pub is_continued: bool,
}

impl Ids {
    /// Those of a span that is in no trace.
    pub const NONE: Self = Self {
        trace_id: [0; 16],
        span_id: [0; 8],
        parent_span_id: None,
        trace_state: Cow::Borrowed(""),
        flags: 0,
        is_parent_remote: None,
        is_continued: false,
    };
}

/// Span id of the client span of the exchange at `key`; `None` if that says nothing of it.
pub const fn caller_id(key: Key) -> Option<[u8; 8]> {
    match key {
        Key::Tcp { client_position, server_position } => Some(stitch::client_span_id(client_position, server_position)),
        Key::Unix { .. } => None,
    }
}

/// Only keeps the state of a generator from being all zeros for the most likely wrong seed, zeros.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator of ids: xoshiro256++ by Blackman and Vigna. Ids need to be unlike, not secret; a state of 256 bits keeps
/// the agents of many nodes apart.
#[derive(Clone, Debug)]
pub struct RandomIds([u64; 4]);

impl RandomIds {
    /// A generator that gives the same ids for the same seed.
    pub const fn new(seed: [u64; 4]) -> Self {
        // A seed with few bits set would give a row of similar ids first.
        let [a, b, c, d] = seed;
        Self([mix(a ^ GOLDEN), mix(b ^ GOLDEN), mix(c ^ GOLDEN), mix(d ^ GOLDEN)])
    }

    /// A trace id, never 0.
    pub fn trace_id(&mut self) -> [u8; 16] {
        let id = u128::from(self.next()) << 64 | u128::from(self.next());
        id.max(1).to_be_bytes()
    }

    /// A span id, never 0.
    pub fn span_id(&mut self) -> [u8; 8] {
        self.next().max(1).to_be_bytes()
    }

    const fn next(&mut self) -> u64 {
        let [a, b, c, d] = self.0;
        let value = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.0 = [a ^ d, b ^ c, c ^ b << 17, d.rotate_left(45)];
        value
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// The first numbers of the reference implementation for this seed.
    #[test]
    fn is_xoshiro256_plus_plus() {
        let mut ids = RandomIds([1, 2, 3, 4]);
        let expected = [41_943_041, 58_720_359, 3_588_806_011_781_223, 3_591_011_842_654_386];
        assert_eq!(expected, std::array::from_fn(|_| ids.next()));
    }

    #[test]
    fn a_seed_of_zeros_gives_ids() {
        let mut ids = RandomIds::new([0; 4]);
        let distinct: HashSet<_> = (0..1000).map(|_| ids.span_id()).collect();
        assert_eq!(distinct.len(), 1000);
    }

    proptest! {
        #[test]
        fn keys_do_not_share_ids(a: (u32, u32), b: (u32, u32)) {
            let key = |(client_position, server_position)| Key::Tcp { client_position, server_position };
            prop_assert_eq!(caller_id(key(a)) == caller_id(key(b)), a == b);
            prop_assert_ne!(caller_id(key(a)), Some([0; 8]));
        }
    }
}
