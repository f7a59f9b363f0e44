//! The `traceparent` header, read strictly by the W3C Trace Context recommendation.

/// What a valid `traceparent` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TraceParent {
    /// The trace.
    pub trace_id: [u8; 16],
    /// The caller's span.
    pub parent_id: [u8; 8],
    /// Trace flags; bit 0 is `sampled`.
    pub flags: u8,
}

impl TraceParent {
    /// Reads `version-traceid-parentid-flags`. `None` for everything that the recommendation calls invalid: then the
    /// request is treated as one without the header.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_matches([' ', '\t']).as_bytes();
        let version = hex::<1>(text.get(..2)?)?;
        // Later versions may only append fields, 0xff is forbidden.
        let is_version_valid = match version {
            [0] => text.len() == 55,
            [0xff] => false,
            _ => text.len() == 55 || text.get(55) == Some(&b'-'),
        };
        let is_separated = [2, 35, 52].into_iter().all(|at| text.get(at) == Some(&b'-'));
        let trace_id = hex::<16>(text.get(3..35)?)?;
        let parent_id = hex::<8>(text.get(36..52)?)?;
        let [flags] = hex::<1>(text.get(53..55)?)?;
        let is_valid = is_version_valid && is_separated && trace_id != [0; 16] && parent_id != [0; 8];
        is_valid.then_some(Self { trace_id, parent_id, flags })
    }
}

/// Lower-case hexadecimal digits.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        for digit in digits {
            let value = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                _ => return None,
            };
            *byte = *byte << 4 | value;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn reads_every_field() {
        let expected = TraceParent {
            trace_id: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736_u128.to_be_bytes(),
            parent_id: 0x00f0_67aa_0ba9_02b7_u64.to_be_bytes(),
            flags: 1,
        };
        assert_eq!(TraceParent::parse(VALID), Some(expected));
    }

    #[rstest]
    #[case::spaces_around("  00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00\t", true)]
    #[case::other_flags("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff", true)]
    #[case::later_version("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", true)]
    #[case::later_version_with_more("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what", true)]
    #[case::later_version_badly_continued("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what", false)]
    #[case::version_0_with_more("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what", false)]
    #[case::forbidden_version("ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false)]
    #[case::upper_case("00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01", false)]
    #[case::upper_case_version("0A-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false)]
    #[case::no_trace("00-00000000000000000000000000000000-00f067aa0ba902b7-01", false)]
    #[case::no_parent("00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01", false)]
    #[case::no_hexadecimal("00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01", false)]
    #[case::separator("00_4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", false)]
    #[case::last_separator("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7.01", false)]
    #[case::empty("", false)]
    #[case::not_ascii("00-4bf92f3577b34da6a3ce929d0e0e47é-00f067aa0ba902b7-01", false)]
    fn validity(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(TraceParent::parse(text).is_some(), expected);
    }

    #[test]
    fn every_prefix_is_invalid() {
        for end in 0..VALID.len() {
            assert_eq!(VALID.get(..end).and_then(TraceParent::parse), None, "{end} bytes");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace: u128, parent: u64, flags: u8) {
            let text = format!("00-{trace:032x}-{parent:016x}-{flags:02x}");
            let expected = TraceParent { trace_id: trace.to_be_bytes(), parent_id: parent.to_be_bytes(), flags };
            prop_assert_eq!(TraceParent::parse(&text), (trace != 0 && parent != 0).then_some(expected));
        }

        #[test]
        fn any_text_is_taken(text: String) {
            let _ = TraceParent::parse(&text);
        }
    }
}
