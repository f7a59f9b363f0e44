//! The Huffman code of HPACK (RFC 7541 §5.2, appendix B).
//!
//! The code is canonical: it follows from the lengths of its words alone. Among words of one length, those of smaller
//! symbols come first.

/// Bits of the word of each byte, and of the end of the string, which never occurs in one.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];
/// The longest word, bits.
const LONGEST: usize = 30;
/// The symbol that ends a string.
const END: u16 = 256;
/// Bits at a string's end that are no word, at most: with more there would be room for a byte.
const PADDING: u32 = 7;

/// Words of one length.
#[derive(Clone, Copy)]
struct Words {
    /// The first of them.
    first: u32,
    /// How many there are.
    count: u32,
    /// Where their symbols begin among all.
    start: u32,
}

/// The symbols by the length of their words, and the words of each length.
const CODE: ([u16; 257], [Words; LONGEST + 1]) = code();

#[expect(clippy::indexing_slicing, reason = "computed by the compiler, which checks it")]
const fn code() -> ([u16; 257], [Words; LONGEST + 1]) {
    let mut symbols = [0; 257];
    let mut words = [Words { first: 0, count: 0, start: 0 }; LONGEST + 1];
    let (mut next, mut first, mut length) = (0, 0, 1);
    while length <= LONGEST {
        let start = next;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                symbols[next as usize] = symbol as u16;
                next += 1;
            }
            symbol += 1;
        }
        words[length] = Words { first, count: next - start, start };
        first = (first + next - start) << 1;
        length += 1;
    }
    (symbols, words)
}

/// The bytes that `coded` stands for; `None` if it stands for none.
pub(super) fn decode(coded: &[u8]) -> Option<Vec<u8>> {
    let (symbols, words) = &CODE;
    // The shortest words have five bits.
    let mut bytes = Vec::with_capacity(coded.len() * 8 / 5);
    let (mut word, mut length) = (0_u32, 0_u32);
    for byte in coded {
        for bit in (0..8).rev() {
            word = word << 1 | u32::from(byte >> bit & 1);
            length += 1;
            let Words { first, count, start } = *words.get(length as usize)?;
            let Some(place) = word.checked_sub(first).filter(|place| *place < count) else { continue };
            let symbol = *symbols.get((start + place) as usize)?;
            if symbol == END {
                return None;
            }
            bytes.push(symbol as u8);
            (word, length) = (0, 0);
        }
    }
    // The rest is the beginning of the word that ends a string: ones.
    (length <= PADDING && word == (1 << length) - 1).then_some(bytes)
}

/// The code of `bytes`.
#[cfg(test)]
pub(super) fn encode(bytes: &[u8]) -> Vec<u8> {
    let (symbols, words) = &CODE;
    let (mut coded, mut held, mut count) = (Vec::new(), 0_u64, 0_u32);
    for byte in bytes {
        let length = u32::from(LENGTHS[usize::from(*byte)]);
        let Words { first, start, .. } = words[length as usize];
        let place = symbols.iter().position(|symbol| *symbol == u16::from(*byte)).unwrap() as u32;
        (held, count) = (held << length | u64::from(first + place - start), count + length);
        while count >= 8 {
            count -= 8;
            coded.push((held >> count) as u8);
        }
    }
    if count > 0 {
        coded.push((held << (8 - count)) as u8 | 0xff >> count);
    }
    coded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::authority(b"www.example.com", b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff")]
    #[case::no_cache(b"no-cache", b"\xa8\xeb\x10\x64\x9c\xbf")]
    #[case::number(b"302", b"\x64\x02")]
    #[case::nothing(b"", b"")]
    fn examples_of_the_standard(#[case] text: &[u8], #[case] coded: &[u8]) {
        assert_eq!(decode(coded).unwrap(), text);
        assert_eq!(encode(text), coded);
    }

    #[rstest]
    #[case::a_byte_of_padding(b"\x64\x02\xff")]
    #[case::padding_of_zeros(b"\x18")]
    #[case::the_end_is_written_out(b"\xff\xff\xff\xff")]
    fn what_is_no_string(#[case] coded: &[u8]) {
        assert_eq!(decode(coded), None);
    }

    /// Every word is there once: the code has no holes and no doubles (Kraft's sum is 1).
    #[test]
    fn the_code_is_complete() {
        let sum: u64 = LENGTHS.iter().map(|length| 1 << (LONGEST - usize::from(*length))).sum();
        assert_eq!(sum, 1 << LONGEST);
    }

    proptest! {
        #[test]
        fn all_bytes_come_back(bytes: Vec<u8>) {
            prop_assert_eq!(decode(&encode(&bytes)), Some(bytes));
        }

        #[test]
        fn any_bytes_are_taken(bytes: Vec<u8>) {
            if let Some(text) = decode(&bytes) {
                prop_assert_eq!(encode(&text), bytes);
            }
        }
    }
}
