use proptest::prelude::*;

use super::*;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    [&[a, b, c, kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

/// Frames as text, content of DATA frames as lengths.
#[derive(Default)]
struct Seen {
    lines: Vec<String>,
    data: u64,
}

impl Seen {
    fn see(&mut self, found: Found<'_>) {
        match found {
            Found::Data(header, count, is_last) => {
                self.data += count;
                if is_last {
                    self.lines.push(format!("data {} {} at {}", header.stream, self.data, header.at));
                    self.data = 0;
                }
            }
            Found::Frame(header, payload) => {
                self.lines.push(format!("{} {} {payload:?} at {}", header.kind, header.stream, header.at));
            }
            Found::Gap => {
                self.data = 0;
                self.lines.push("gap".to_owned());
            }
        }
    }
}

/// What is found if the calls move `sizes` bytes each, of which the kernel tells all but those in `lost`.
fn read(bytes: &[u8], sizes: &[usize], lost: &[usize], room: usize) -> (Seen, u64) {
    let (mut reader, mut frames) = (FrameReader::at_frame(0), Frames::HEADER);
    let (mut seen, mut missed, mut start) = (Seen::default(), 0, 0);
    for (index, size) in sizes.iter().cycle().enumerate() {
        let Some(piece) = bytes.get(start..bytes.len().min(start + size)).filter(|it| !it.is_empty()) else {
            break;
        };
        let mark = frames.mark();
        let payload = testing::told(&mut frames, piece, room);
        if !lost.contains(&index) {
            let call = Call { start: start as u64, len: piece.len() as u64, payload: &payload, mark: Some(mark) };
            missed += reader.take(&call, &mut |found| seen.see(found));
        }
        start += piece.len();
    }
    (seen, missed)
}

fn example() -> Vec<u8> {
    [
        frame(4, 0, 0, &[0, 3, 0, 0, 0, 100]),
        frame(1, 4, 1, b"block"),
        frame(0, 0, 1, &[7; 40]),
        frame(8, 0, 0, &[0, 0, 1, 0]),
        frame(0, 1, 1, b""),
        frame(1, 5, 3, b"other"),
    ]
    .concat()
}

const LINES: [&str; 6] = [
    "4 0 [0, 3, 0, 0, 0, 100] at 0",
    "1 1 [98, 108, 111, 99, 107] at 15",
    "data 1 40 at 29",
    "8 0 [0, 0, 1, 0] at 78",
    "data 1 0 at 91",
    "1 3 [111, 116, 104, 101, 114] at 100",
];

#[test]
fn frames_are_found_however_they_are_cut() {
    let bytes = example();
    for size in 1..=bytes.len() {
        let (seen, missed) = read(&bytes, &[size], &[], usize::MAX);
        assert_eq!((seen.lines.as_slice(), missed), (LINES.map(str::to_owned).as_slice(), 0), "calls of {size}");
    }
}

/// Every beginning gives a beginning of what all of it gives.
#[test]
fn no_beginning_gives_what_is_not_there() {
    let bytes = example();
    for len in 0..bytes.len() {
        let (seen, _) = read(&bytes[..len], &[bytes.len()], &[], usize::MAX);
        assert_eq!(seen.lines, LINES[..seen.lines.len()], "{len} bytes");
    }
}

#[test]
fn a_lost_record_is_a_gap_and_the_next_one_says_where_it_stands() {
    // SETTINGS and half of HEADERS; the rest of it and the start of DATA; more DATA; all the rest.
    let sizes = [20, 20, 20, 1000];
    let lines = |lost: &[usize]| read(&example(), &sizes, lost, usize::MAX);
    let (seen, missed) = lines(&[1]);
    assert_eq!(seen.lines, [LINES[0], "gap", LINES[3], LINES[4], LINES[5]]);
    assert_eq!(missed, 20);
    // Only the content of a DATA frame: nothing is missing.
    let (seen, missed) = lines(&[2]);
    assert_eq!((seen.lines.as_slice(), missed), (LINES.map(str::to_owned).as_slice(), 0));
}

#[test]
fn what_the_kernel_has_no_room_for_is_a_gap() {
    let (seen, missed) = read(&example(), &[60, 1000], &[], 20);
    assert_eq!(seen.lines, [LINES[0], "gap", "gap", LINES[3], "gap"]);
    // Behind SETTINGS, and behind WINDOW_UPDATE: of the header that follows each only a part is told.
    assert_eq!(missed, 45 + 23);
}

/// Type and flags of a frame, its payload, and the part of a header block in that.
type Part<'a> = (u8, u8, &'a [u8], Option<&'a [u8]>);

#[test]
fn padding_and_priority_are_no_part_of_a_block() {
    let header = |kind, flags| FrameHeader { kind, flags, ..FrameHeader::default() };
    let cases: [Part<'_>; 8] = [
        (kind::HEADERS, 0, b"block", Some(b"block")),
        (kind::HEADERS, flag::PADDED, b"\x02block\0\0", Some(b"block")),
        (kind::HEADERS, flag::PRIORITY, b"12345block", Some(b"block")),
        (kind::HEADERS, flag::PADDED | flag::PRIORITY, b"\x0112345block\0", Some(b"block")),
        (kind::PUSH_PROMISE, 0, b"1234block", Some(b"block")),
        (kind::CONTINUATION, flag::PADDED, b"block", Some(b"block")),
        (kind::HEADERS, flag::PADDED, b"\x06block", None),
        (kind::HEADERS, flag::PRIORITY, b"1234", None),
    ];
    for (kind, flags, payload, expected) in cases {
        assert_eq!(header(kind, flags).block(payload), expected, "{kind} {flags} {payload:?}");
    }
}

proptest! {
    /// Whatever is lost: frames that are told of are frames that were sent, in their order.
    #[test]
    fn nothing_is_made_up(
        kinds in prop::collection::vec((0_u8..11, 0_u32..4, prop::collection::vec(any::<u8>(), 0..60)), 1..30),
        sizes in prop::collection::vec(1_usize..90, 1..20),
        lost in prop::collection::vec(0_usize..40, 0..6),
        room in prop_oneof![Just(usize::MAX), 1_usize..60],
    ) {
        let bytes: Vec<u8> = kinds.iter().flat_map(|(kind, stream, payload)| frame(*kind, 0, *stream, payload)).collect();
        let (whole, _) = read(&bytes, &[bytes.len()], &[], usize::MAX);
        let (seen, missed) = read(&bytes, &sizes, &lost, room);
        let mut sent = whole.lines.iter();
        for line in seen.lines.iter().filter(|line| *line != "gap") {
            prop_assert!(sent.any(|it| it == line || it.starts_with("data") && line.starts_with("data")), "{}", line);
        }
        if lost.is_empty() && room == usize::MAX {
            prop_assert_eq!((&seen.lines, missed), (&whole.lines, 0));
        }
    }

    #[test]
    fn any_bytes_are_taken(calls in prop::collection::vec((0_u64..100, 0_u64..100, any::<Vec<u8>>(), any::<Option<[u8; 8]>>()), 0..20)) {
        let mut reader = FrameReader::new();
        for (start, len, payload, mark) in calls {
            reader.take(&Call { start, len, payload: &payload, mark }, &mut |_| {});
        }
    }
}
