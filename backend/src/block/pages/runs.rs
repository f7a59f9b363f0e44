//! Small numbers that repeat: levels, and indices into dictionaries. Written as Parquet's hybrid of run lengths and
//! bit-packing.

/// Values of a group of the bit-packed kind.
const GROUP: u32 = 8;

/// Numbers with how often each stands there in a row.
#[derive(Debug, Default)]
pub(super) struct Runs(Vec<(u32, u32)>);

impl Runs {
    /// Adds a number some times.
    #[inline]
    pub(super) fn push(&mut self, number: u32, times: u32) {
        match self.0.last_mut() {
            Some((last, before)) if *last == number => *before += times,
            _ => self.0.push((number, times)),
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Numbers with how often each stands there in a row.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.0.iter().copied()
    }

    /// How many numbers there are.
    pub(super) fn count(&self) -> usize {
        self.iter().map(|(_, times)| times as usize).sum()
    }

    /// Bytes that they take in memory.
    pub(super) fn bytes(&self) -> usize {
        self.0.len() * size_of::<(u32, u32)>()
    }

    /// Writes them, `width` bits each, none of which has more. What is bit-packed is filled up to eight with zeros: readers
    /// know how many values there are.
    pub(super) fn encode(&self, width: u32, out: &mut Vec<u8>) {
        let bytes = Vec::with_capacity(self.0.len() * width as usize / 8);
        let mut packed = Packed { width, bytes, ..Packed::default() };
        for (number, times) in self.iter() {
            // What was begun must be whole groups before a run can follow.
            let missing = packed.missing();
            if times < missing + GROUP {
                packed.push(number, times);
                continue;
            }
            packed.push(number, missing);
            packed.finish(out);
            varint(u64::from(times - missing) << 1, out);
            out.extend(number.to_le_bytes().iter().take(width.div_ceil(u8::BITS) as usize));
        }
        packed.push(0, packed.missing());
        packed.finish(out);
    }
}

/// How many bits a number takes.
pub(super) fn width(largest: u32) -> u32 {
    u32::BITS - largest.leading_zeros()
}

/// Numbers one after the other, `width` bits each.
#[derive(Default)]
struct Packed {
    width: u32,
    bytes: Vec<u8>,
    /// Bits that are no whole word yet.
    bits: u64,
    bit_count: u32,
    count: u32,
}

impl Packed {
    /// How many numbers the last group lacks.
    fn missing(&self) -> u32 {
        self.count.next_multiple_of(GROUP) - self.count
    }

    #[inline]
    fn push(&mut self, number: u32, times: u32) {
        self.count += times;
        for _ in 0..times {
            self.bits |= u64::from(number) << self.bit_count;
            self.bit_count += self.width;
            if self.bit_count >= u32::BITS {
                self.bytes.extend_from_slice(&(self.bits as u32).to_le_bytes());
                self.bits >>= u32::BITS;
                self.bit_count -= u32::BITS;
            }
        }
    }

    /// Writes them, which are whole groups; none are left afterwards.
    fn finish(&mut self, out: &mut Vec<u8>) {
        if self.count == 0 {
            return;
        }
        varint(u64::from(self.count / GROUP) << 1 | 1, out);
        out.append(&mut self.bytes);
        // Groups end with a byte.
        out.extend(self.bits.to_le_bytes().iter().take(self.bit_count.div_ceil(u8::BITS) as usize));
        (self.bits, self.bit_count, self.count) = (0, 0, 0);
    }
}

fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn encoded(width: u32, runs: &[(u32, u32)]) -> Vec<u8> {
        let (mut numbers, mut out) = (Runs::default(), Vec::new());
        for (number, times) in runs {
            numbers.push(*number, *times);
        }
        numbers.encode(width, &mut out);
        out
    }

    /// A decoder by the letter of the specification, bit by bit.
    fn decoded(width: u32, mut bytes: &[u8], count: usize) -> Vec<u32> {
        let mut numbers = Vec::new();
        while numbers.len() < count {
            let (mut header, mut shift) = (0_u64, 0);
            loop {
                let byte = bytes[0];
                bytes = &bytes[1..];
                header |= u64::from(byte & 0x7f) << shift;
                shift += 7;
                if byte < 0x80 {
                    break;
                }
            }
            if header & 1 == 0 {
                let length = width.div_ceil(8) as usize;
                let number = bytes[..length].iter().rev().fold(0, |number, byte| number << 8 | u32::from(*byte));
                bytes = &bytes[length..];
                numbers.extend(std::iter::repeat_n(number, (header >> 1) as usize));
            } else {
                let values = (header >> 1) as usize * 8;
                let bit = |at: usize| u32::from(bytes[at / 8] >> (at % 8) & 1);
                let width = width as usize;
                numbers.extend((0..values).map(|n| (0..width).map(|b| bit(n * width + b) << b).sum::<u32>()));
                bytes = &bytes[values / 8 * width..];
            }
        }
        assert_eq!(bytes, [] as [u8; 0]);
        assert!(numbers.len() < count + 8 && numbers[count..].iter().all(|number| *number == 0));
        numbers.truncate(count);
        numbers
    }

    #[rstest]
    #[case::nothing(3, &[], "")]
    #[case::a_run(3, &[(5, 8)], "1005")]
    #[case::too_short_for_a_run(3, &[(5, 7)], "036ddb16")]
    // The example of the specification: 0 to 7 with three bits.
    #[case::packed(3, &[(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 1), (7, 1)], "0388c6fa")]
    #[case::a_run_after_a_packed_group(1, &[(1, 3), (0, 13), (1, 8)], "03071000" /* 5 of the zeros fill the group */)]
    #[case::no_bits(0, &[(0, 1000)], "d00f")]
    #[case::a_wide_run(17, &[(0x1_0203, 9)], "12030201")]
    fn is_written_as_specified(#[case] width: u32, #[case] runs: &[(u32, u32)], #[case] expected: &str) {
        let hex = encoded(width, runs).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
        // Of the longer ones only how they begin.
        assert!(hex.starts_with(expected) && (hex.len() == expected.len() || hex.len() > 6), "{hex}");
        let numbers: Vec<_> = runs.iter().flat_map(|(n, times)| std::iter::repeat_n(*n, *times as usize)).collect();
        assert_eq!(decoded(width, &encoded(width, runs), numbers.len()), numbers);
    }

    #[test]
    fn widths_are_those_of_the_largest() {
        let widths: Vec<_> = [0, 1, 2, 3, 4, 255, 256, u32::MAX].into_iter().map(width).collect();
        assert_eq!(widths, [0, 1, 2, 2, 3, 8, 9, 32]);
    }

    /// Largest and smallest of each width, in runs about as long as a group.
    #[test]
    fn every_width_keeps_its_bounds() {
        for width in 0..=32 {
            let largest =
                (u64::MAX >> (64 - width.max(1)) << u32::from(width == 0)) as u32 & ((1_u64 << width) - 1) as u32;
            for times in [1, 7, 8, 9, 15, 16, 17, 63, 64, 505, 8_192] {
                let runs = [(largest, times), (0, 3), (largest, 1), (0, times), (largest / 2, times)];
                let numbers: Vec<_> =
                    runs.iter().flat_map(|(n, times)| std::iter::repeat_n(*n, *times as usize)).collect();
                assert_eq!(decoded(width, &encoded(width, &runs), numbers.len()), numbers, "{width} bits, {times}");
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            width in 0_u32..=32,
            runs in prop::collection::vec((any::<u32>(), prop_oneof![Just(1), 1_u32..40, 1_u32..3_000]), 0..80),
        ) {
            let fit = |number: u32| (u64::from(number) & ((1 << width) - 1)) as u32;
            let runs: Vec<_> = runs.into_iter().map(|(number, times)| (fit(number), times)).collect();
            let numbers: Vec<_> = runs.iter().flat_map(|(n, times)| std::iter::repeat_n(*n, *times as usize)).collect();
            prop_assert_eq!(decoded(width, &encoded(width, &runs), numbers.len()), numbers);
        }
    }
}
