use std::path::Path;

use proptest::prelude::*;
use rstest::rstest;

use super::{
    format::{Header, Piece, decode_cursor},
    *,
};

fn settings(folder: &Path, max_bytes: u64) -> QueueSettings {
    QueueSettings { directory: folder.to_owned(), max_bytes, fsync: Fsync::Never }
}

fn open(folder: &Path, max_bytes: u64) -> DiskQueue {
    DiskQueue::open(Folder::lock(folder.join("queue")).unwrap(), &settings(folder, max_bytes)).unwrap()
}

fn request(sequence: u64, bytes: usize) -> Encoded {
    let mut body = sequence.to_le_bytes().to_vec();
    // Not compressible, so that lengths are what they look like.
    let mut random = fastrand::Rng::with_seed(sequence);
    body.extend(std::iter::repeat_with(|| random.u8(..)).take(bytes));
    Encoded { sequence, spans: sequence % 7 + 1, body: body.into() }
}

fn spans(requests: &[Encoded]) -> u64 {
    requests.iter().map(|request| request.spans).sum()
}

/// Everything that waits, taken out.
fn drain(queue: &mut DiskQueue) -> Vec<Encoded> {
    let mut all = Vec::new();
    while let Some(request) = queue.oldest().unwrap() {
        assert!(queue.done(request.sequence).unwrap());
        all.push(request);
    }
    all
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = fs::read_dir(folder.join("queue"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "queue"))
        .collect();
    files.sort();
    files
}

#[test]
fn requests_come_back_in_order_and_leave_no_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(folder.path(), 1 << 20);
    let requests: Vec<_> = (0..50).map(|sequence| request(sequence, 5000)).collect();
    for request in &requests {
        queue.append(request).unwrap();
    }
    assert_eq!(queue.spans(), spans(&requests));
    assert!(segments(folder.path()).len() > 1);
    assert_eq!(drain(&mut queue), requests);
    assert!(queue.is_empty() && queue.spans() == 0 && queue.bytes() == 0);
    assert_eq!(segments(folder.path()), [] as [PathBuf; 0]);
    assert_eq!(queue.take_losses(), Losses::default());
}

#[test]
fn a_new_agent_goes_on_where_the_killed_one_was() {
    let folder = tempfile::tempdir().unwrap();
    let requests: Vec<_> = (0..40).map(|sequence| request(sequence, 3000)).collect();
    let mut queue = open(folder.path(), 1 << 20);
    for request in &requests[..30] {
        queue.append(request).unwrap();
    }
    for request in &requests[..11] {
        assert_eq!(queue.oldest().unwrap().as_ref(), Some(request));
        queue.done(request.sequence).unwrap();
    }
    drop(queue);
    let mut queue = open(folder.path(), 1 << 20);
    assert_eq!((queue.next_sequence(), queue.spans()), (30, spans(&requests[11..30])));
    for request in &requests[30..] {
        queue.append(request).unwrap();
    }
    assert_eq!(drain(&mut queue), &requests[11..]);
    drop(queue);
    // Also when nothing is left the numbers go on: the cursor knows them.
    assert_eq!(open(folder.path(), 1 << 20).next_sequence(), 40);
}

#[rstest]
#[case::lost(None)]
#[case::damaged(Some(&[7; 24][..]))]
#[case::torn(Some(&[1, 2, 3][..]))]
fn without_its_cursor_a_queue_repeats_one_segment_at_most(#[case] cursor: Option<&[u8]>) {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(folder.path(), 1 << 20);
    for sequence in 0..100 {
        queue.append(&request(sequence, 5000)).unwrap();
    }
    for sequence in 0..60 {
        queue.oldest().unwrap();
        queue.done(sequence).unwrap();
    }
    drop(queue);
    let path = folder.path().join("queue/cursor");
    match cursor {
        None => fs::remove_file(path).unwrap(),
        Some(bytes) => fs::write(path, bytes).unwrap(),
    }
    let again = drain(&mut open(folder.path(), 1 << 20));
    let first = again[0].sequence;
    assert!((60 - 26..=60).contains(&first), "{first}");
    assert_eq!(again, (first..100).map(|sequence| request(sequence, 5000)).collect::<Vec<_>>());
}

#[test]
fn over_the_bound_the_oldest_are_given_up_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let max_bytes = 200_000;
    let mut queue = open(folder.path(), max_bytes);
    let requests: Vec<_> = (0..100).map(|sequence| request(sequence, 9000)).collect();
    let first = queue.append(&requests[0]);
    first.unwrap();
    queue.oldest().unwrap();
    for request in &requests[1..] {
        queue.append(request).unwrap();
        let files: u64 = segments(folder.path()).iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert!(files <= max_bytes && files == queue.bytes(), "{files}");
    }
    assert!(!queue.done(0).unwrap(), "it was under way when it was given up");
    let lost = queue.take_losses().given_up_spans;
    let kept = drain(&mut queue);
    assert!(kept.len() > 100_000 / 9000, "{}", kept.len());
    assert_eq!(kept, &requests[100 - kept.len()..]);
    assert_eq!(lost, spans(&requests) - spans(&kept));
    // What can never fit is given up itself.
    queue.append(&request(100, 300_000)).unwrap();
    assert_eq!(queue.take_losses().given_up_spans, request(100, 0).spans);
    assert!(queue.is_empty());
}

#[test]
fn a_smaller_bound_holds_from_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(folder.path(), 1 << 20);
    for sequence in 0..100 {
        queue.append(&request(sequence, 9000)).unwrap();
    }
    drop(queue);
    let queue = open(folder.path(), 300_000);
    assert!(queue.bytes() <= 300_000, "{}", queue.bytes());
}

#[test]
fn an_end_that_was_never_written_is_cut_off_wherever_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(folder.path(), 1 << 20);
    for sequence in 0..3 {
        queue.append(&request(sequence, 40)).unwrap();
    }
    drop(queue);
    let path = &segments(folder.path())[0];
    let whole = fs::read(path).unwrap();
    let frame = (whole.len() - HEADER_BYTES) / 3;
    for length in 0..=whole.len() {
        fs::write(path, &whole[..length]).unwrap();
        let mut queue = open(folder.path(), 1 << 20);
        let sound = length.saturating_sub(HEADER_BYTES) / frame;
        if length > HEADER_BYTES {
            assert_eq!(fs::metadata(path).unwrap().len() as usize, HEADER_BYTES + sound * frame, "{length}");
        }
        // What comes then is behind it.
        queue.append(&request(9, 40)).unwrap();
        let sequences: Vec<_> = drain(&mut queue).iter().map(|request| request.sequence).collect();
        let expected: Vec<_> = (0..sound as u64).chain([9]).collect();
        assert_eq!(sequences, expected, "{length}");
        assert_eq!(queue.take_losses(), Losses::default(), "{length}");
        drop(queue);
        fs::remove_file(folder.path().join("queue/cursor")).unwrap();
    }
}

#[test]
fn a_bad_frame_is_set_aside_and_counted_and_the_others_are_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(folder.path(), 1 << 20);
    for sequence in 0..3 {
        queue.append(&request(sequence, 40)).unwrap();
    }
    drop(queue);
    let path = &segments(folder.path())[0];
    let whole = fs::read(path).unwrap();
    let frame = (whole.len() - HEADER_BYTES) / 3;
    let second = HEADER_BYTES + frame..HEADER_BYTES + 2 * frame;
    for byte in second.clone() {
        let mut bytes = whole.clone();
        bytes[byte] ^= 0x40;
        fs::write(path, &bytes).unwrap();
        let mut queue = open(folder.path(), 1 << 20);
        let sequences: Vec<_> = drain(&mut queue).iter().map(|request| request.sequence).collect();
        assert_eq!(sequences, [0, 2], "{byte}");
        assert_eq!(queue.take_losses().damaged_ranges, 1, "{byte}");
        let aside = folder.path().join(format!("queue/damaged/0000000000000001.{}", second.start));
        assert_eq!(fs::read(&aside).unwrap(), &bytes[second.clone()]);
        drop(queue);
        fs::remove_dir_all(folder.path().join("queue/damaged")).unwrap();
        fs::remove_file(folder.path().join("queue/cursor")).unwrap();
    }
}

#[test]
fn damage_that_happens_while_the_agent_runs_is_counted_in_spans() {
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(folder.path(), 1 << 20);
    for sequence in 0..3 {
        queue.append(&request(sequence, 40)).unwrap();
    }
    let path = &segments(folder.path())[0];
    let mut bytes = fs::read(path).unwrap();
    bytes[HEADER_BYTES + 50] ^= 1;
    fs::write(path, &bytes).unwrap();
    assert_eq!(drain(&mut queue).len(), 2);
    let Losses { given_up_spans, damaged_spans, damaged_ranges } = queue.take_losses();
    assert_eq!((given_up_spans, damaged_spans, damaged_ranges), (0, request(0, 0).spans, 1));
}

#[rstest]
#[case::garbage(&[9; 100])]
#[case::of_a_later_version(&later_version())]
fn a_file_that_cannot_be_read_is_kept_aside(#[case] bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("queue");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("0000000000000003.queue"), bytes).unwrap();
    let mut queue = open(folder.path(), 1 << 20);
    assert_eq!(queue.take_losses().damaged_ranges, 1);
    assert_eq!(queue.oldest().unwrap(), None);
    assert_eq!(fs::read(path.join("damaged/0000000000000003.0")).unwrap(), bytes);
    queue.append(&request(0, 10)).unwrap();
    assert_eq!(drain(&mut queue).len(), 1);
}

fn later_version() -> Vec<u8> {
    let mut bytes = Header { salt: 1, created_ns: 2 }.encode();
    bytes[8] = 2;
    let checksum = crc32c::crc32c(&bytes[..24]);
    bytes[24..].copy_from_slice(&checksum.to_le_bytes());
    bytes.extend([0; 10]);
    bytes
}

#[test]
fn two_agents_cannot_share_a_queue() {
    let folder = tempfile::tempdir().unwrap();
    let queue = open(folder.path(), 1 << 20);
    let error = Folder::lock(folder.path().join("queue")).unwrap_err();
    assert!(error.to_string().ends_with("queue belongs to another agent that runs"), "{error}");
    drop(queue);
    Folder::lock(folder.path().join("queue")).unwrap();
}

#[test]
fn nobody_else_can_read_what_waits() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let mut queue = open(folder.path(), 1 << 20);
    queue.append(&request(0, 10)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&folder.path().join("queue")), 0o700);
    assert_eq!(mode(&segments(folder.path())[0]), 0o600);
}

/// Written by the first version; every later one must read it.
#[test]
fn files_of_version_1_are_read() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/export-queue-v1");
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("queue")).unwrap();
    for name in ["0000000000000001.queue", "cursor"] {
        fs::copy(fixture.join(name), folder.path().join("queue").join(name)).unwrap();
    }
    let mut queue = open(folder.path(), 1 << 20);
    let all = drain(&mut queue);
    // The first of three was sent; one is compressed and one is not.
    assert_eq!(all.iter().map(|request| (request.sequence, request.spans)).collect::<Vec<_>>(), [(1, 3), (2, 4)]);
    assert_eq!(all[0].body, "x".repeat(1000).as_bytes());
    assert_eq!(all[1].body, &b"short"[..]);
    assert_eq!(queue.take_losses(), Losses::default());
}

#[test]
fn the_fixture_is_what_is_written() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/export-queue-v1");
    let mut bytes = Header { salt: 0x5eed, created_ns: 1_700_000_000_000_000_000 }.encode();
    for (sequence, body) in [(0, "sent".to_owned()), (1, "x".repeat(1000)), (2, "short".to_owned())] {
        let request = Encoded { sequence, spans: sequence + 2, body: body.into_bytes().into() };
        let mut frame = encode_frame(&request, 1_700_000_000_000_000_001 + sequence);
        seal_frame(&mut frame, 0x5eed);
        bytes.extend(frame);
    }
    if std::env::var_os("COATI_WRITE_FIXTURES").is_some() {
        fs::create_dir_all(&fixture).unwrap();
        fs::write(fixture.join("0000000000000001.queue"), &bytes).unwrap();
        fs::write(fixture.join("cursor"), encode_cursor(1)).unwrap();
    }
    assert_eq!(fs::read(fixture.join("0000000000000001.queue")).unwrap(), bytes);
    assert_eq!(decode_cursor(&fs::read(fixture.join("cursor")).unwrap()), Ok(1));
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Send,
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => (0..3000_usize).prop_map(Step::Append),
        4 => Just(Step::Send),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A queue that is large enough is a list, however often the agent is killed.
    #[test]
    fn nothing_is_lost_repeated_or_out_of_order(steps in steps()) {
        let folder = tempfile::tempdir().unwrap();
        let mut queue = open(folder.path(), 1 << 20);
        let mut model = VecDeque::new();
        let mut next = 0;
        for step in steps {
            match step {
                Step::Append(bytes) => {
                    let request = request(next, bytes);
                    next += 1;
                    queue.append(&request).unwrap();
                    model.push_back(request);
                }
                Step::Send => {
                    let oldest = queue.oldest().unwrap();
                    prop_assert_eq!(&oldest, &model.pop_front());
                    if let Some(oldest) = oldest {
                        prop_assert!(queue.done(oldest.sequence).unwrap());
                    }
                }
                Step::Restart => {
                    drop(queue);
                    queue = open(folder.path(), 1 << 20);
                    prop_assert_eq!(queue.next_sequence(), next);
                }
            }
            prop_assert_eq!(queue.spans(), model.iter().map(|request| request.spans).sum::<u64>());
        }
        prop_assert_eq!(drain(&mut queue), Vec::from(model));
        prop_assert_eq!(queue.take_losses(), Losses::default());
    }

    #[test]
    fn takes_any_bytes_as_a_segment(bytes: Vec<u8>) {
        fuzz(&bytes);
        let mut segment = Header { salt: 3, created_ns: 0 }.encode();
        segment.extend(bytes);
        fuzz(&segment);
    }

    /// Frames between garbage are found, all of them and nothing else.
    #[test]
    fn sound_frames_are_found_between_garbage(
        garbage in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 1..6),
    ) {
        let salt = 77;
        let mut bytes = Vec::new();
        for (sequence, garbage) in garbage.iter().enumerate() {
            bytes.extend(garbage);
            let mut frame = encode_frame(&request(sequence as u64, 30), 0);
            seal_frame(&mut frame, salt);
            bytes.extend(frame);
        }
        let found: Vec<_> = scan(&bytes, 0, salt)
            .filter_map(|piece| match piece {
                Piece::Frame(head) => Some(head.sequence),
                Piece::Damaged(..) => None,
            })
            .collect();
        prop_assert_eq!(found, (0..garbage.len() as u64).collect::<Vec<_>>());
    }
}
