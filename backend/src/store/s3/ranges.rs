//! Which requests fetch some ranges of an object.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

/// Bytes between two ranges that cost less to fetch than another request.
const GAP_BYTES: u64 = 256 << 10;

/// Requests that fetch some ranges together.
pub(super) struct Plan {
    /// In the order of their beginning, without overlap.
    pieces: Vec<Range<u64>>,
}

impl Plan {
    /// Pieces of at most `piece_bytes` that cover all ranges.
    pub(super) fn new(ranges: &[Range<u64>], piece_bytes: u64) -> Self {
        let mut sorted: Vec<Range<u64>> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
        sorted.sort_unstable_by_key(|range| range.start);
        let mut pieces: Vec<Range<u64>> = Vec::new();
        for mut range in sorted {
            if let Some(last) = pieces.last_mut()
                && range.start <= last.end.saturating_add(GAP_BYTES)
            {
                let end = range.end.min(last.start.saturating_add(piece_bytes)).max(last.end);
                // A gap is fetched only together with what is behind it.
                if end > range.start {
                    last.end = end;
                    range.start = range.start.max(end);
                }
            }
            while !range.is_empty() {
                let end = range.end.min(range.start.saturating_add(piece_bytes));
                pieces.push(range.start..end);
                range.start = end;
            }
        }
        Self { pieces }
    }

    /// What is to be fetched.
    pub(super) fn pieces(&self) -> &[Range<u64>] {
        &self.pieces
    }

    /// One of the ranges, from the pieces' contents.
    pub(super) fn cut(&self, range: &Range<u64>, contents: &[Bytes]) -> Bytes {
        if range.is_empty() {
            return Bytes::new();
        }
        let first = self.pieces.partition_point(|piece| piece.end <= range.start);
        let cover = self.pieces.iter().zip(contents).skip(first).take_while(|(piece, _)| piece.start < range.end);
        let mut parts = cover.map(|(piece, content)| {
            let begin = range.start.saturating_sub(piece.start) as usize;
            let end = (range.end.min(piece.end) - piece.start) as usize;
            content.slice(begin.min(content.len())..end.min(content.len()))
        });
        let Some(part) = parts.next() else { return Bytes::new() };
        if part.len() as u64 == range.end - range.start {
            return part;
        }
        let mut whole = BytesMut::from(part);
        parts.for_each(|part| whole.extend_from_slice(&part));
        whole.freeze()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn near_ranges_are_fetched_together() {
        let plan = |ranges: &[Range<u64>]| Plan::new(ranges, 8 << 20).pieces;
        assert_eq!(plan(&[900..1_000, 2 << 20..3 << 20, 0..10]), [0..1_000, 2 << 20..3 << 20]);
        assert_eq!(plan(&[0..10, 1 << 20..(1 << 20) + 1]), [0..10, 1 << 20..(1 << 20) + 1]);
        assert_eq!(plan(&[0..20 << 20, 7..9]), [0..8 << 20, 8 << 20..16 << 20, 16 << 20..20 << 20]);
        assert_eq!(plan(&[5..5, 9..9]), [0..0; 0]);
    }

    proptest! {
        #[test]
        fn every_range_comes_back(
            ranges in vec((0_u64..2_000_000, 0_u64..900_000), 0..20),
            piece_bytes in 100_000_u64..3_000_000,
        ) {
            let object: Vec<u8> = (0..3_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let ranges: Vec<Range<u64>> = ranges.into_iter().map(|(start, len)| start..start + len).collect();
            let plan = Plan::new(&ranges, piece_bytes);
            let of = |range: &Range<u64>| Bytes::copy_from_slice(&object[range.start as usize..range.end as usize]);
            let contents: Vec<Bytes> = plan.pieces().iter().map(of).collect();
            for range in &ranges {
                prop_assert!(plan.cut(range, &contents) == of(range), "{range:?}");
            }
            prop_assert!(plan.pieces().iter().all(|piece| !piece.is_empty() && piece.end - piece.start <= piece_bytes));
            prop_assert!(plan.pieces().windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }
}
