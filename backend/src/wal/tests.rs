//! Guarantees of the log: what was answered is found again, whatever happens to the file afterwards.

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;

use super::format::{FRAME_OVERHEAD, HEADER_BYTES, Header};
use super::*;
use crate::telemetry::{Metrics, WalMetrics};

const SALT: u32 = 0x5a17_5a17;

#[derive(Clone, Debug, Eq, PartialEq)]
struct Stored {
    sequence: u64,
    received_ns: u64,
    tenant: String,
    request: Vec<u8>,
}

fn stored(sequence: u64, tenant: &str, request: &[u8]) -> Stored {
    Stored { sequence, received_ns: 1_000 + sequence, tenant: tenant.to_owned(), request: request.to_vec() }
}

fn three() -> Vec<Stored> {
    vec![stored(1, "single-tenant", b"first"), stored(2, "a", b""), stored(3, "single-tenant", &[7; 40])]
}

/// A segment with these frames, every second one compressed, and where each frame begins.
fn segment(frames: &[Stored]) -> (Vec<u8>, Vec<usize>) {
    let header =
        Header { salt: SALT, first_sequence: frames.first().map_or(1, |frame| frame.sequence), created_ns: 99 };
    let mut bytes = header.encode();
    let mut starts = Vec::new();
    for (stored, compressed) in frames.iter().zip([false, true].into_iter().cycle()) {
        starts.push(bytes.len());
        let Stored { sequence, received_ns, tenant, request } = stored;
        let payload = if compressed { zstd::bulk::compress(request, 1).unwrap() } else { request.clone() };
        let frame = Frame {
            sequence: *sequence,
            received_ns: *received_ns,
            tenant,
            raw_len: request.len() as u32,
            compressed,
            payload: &payload,
        };
        frame.encode(SALT, &mut bytes);
    }
    (bytes, starts)
}

fn open(dir: &Path) -> Log {
    Log::open(dir, Arc::new(RealDisk), WalMetrics::default()).unwrap()
}

/// Everything in the log, oldest first.
fn read(log: &Log) -> Vec<Stored> {
    let mut found = Vec::new();
    let flow = log.oldest_first(0, |frame| {
        found.push(Stored {
            sequence: frame.sequence,
            received_ns: frame.received_ns,
            tenant: frame.tenant.to_owned(),
            request: frame.request().unwrap(),
        });
        ControlFlow::<()>::Continue(())
    });
    assert!(flow.unwrap().is_continue());
    found
}

fn with_file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0000000000000001.wal");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn a_segment_cut_at_any_length_gives_every_whole_frame() {
    let frames = three();
    let (bytes, starts) = segment(&frames);
    let ends: Vec<usize> = starts.iter().skip(1).copied().chain([bytes.len()]).collect();
    for len in 0..=bytes.len() {
        let (dir, path) = with_file(&bytes[..len]);
        let log = open(dir.path());
        let whole = ends.iter().filter(|end| **end <= len).count();
        assert_eq!(read(&log), frames[..whole], "cut at {len}");
        if whole == 0 {
            assert!(!path.exists(), "cut at {len}: a segment without frames is removed");
        } else {
            assert_eq!(fs::read(&path).unwrap(), bytes[..ends[whole - 1]], "cut at {len}: the torn end is cut off");
            assert_eq!(log.next_sequence(), whole as u64 + 1);
        }
    }
}

#[test]
fn a_flipped_bit_costs_the_frame_that_it_hits_and_no_other() {
    let frames = three();
    let (bytes, starts) = segment(&frames);
    for position in 0..bytes.len() {
        let mut damaged = bytes.clone();
        // Which bit does not matter to a checksum.
        let bit = position % 8;
        damaged[position] ^= 1 << bit;
        let (dir, _) = with_file(&damaged);
        let hit = starts.iter().rposition(|start| *start <= position);
        let mut kept = frames.clone();
        hit.map(|hit| kept.remove(hit));
        assert_eq!(read(&open(dir.path())), kept, "bit {bit} of byte {position}");
    }
}

#[test]
fn damage_is_copied_aside_with_its_position_and_counted() {
    let frames = three();
    let (mut bytes, starts) = segment(&frames);
    bytes[starts[1] + FRAME_OVERHEAD] ^= 0xff;
    let (dir, path) = with_file(&bytes);
    let metrics = WalMetrics::default();
    let log = Log::open(dir.path(), Arc::new(RealDisk), metrics.clone()).unwrap();
    assert_eq!(read(&log), [frames[0].clone(), frames[2].clone()]);
    let copy = dir.path().join("quarantine").join(format!("0000000000000001.wal.{}", starts[1]));
    assert_eq!(fs::read(copy).unwrap(), bytes[starts[1]..starts[2]]);
    assert_eq!(fs::read(path).unwrap(), bytes, "the segment itself stays as it is");
    assert_eq!(metrics.damaged_ranges.get(), 1);
}

#[test]
fn a_segment_without_a_sound_header_is_copied_aside() {
    let (mut bytes, _) = segment(&three());
    bytes[0] ^= 1;
    bytes[HEADER_BYTES / 2] ^= 1;
    let (dir, _) = with_file(&bytes);
    let log = open(dir.path());
    assert_eq!(read(&log), []);
    assert_eq!(fs::read(dir.path().join("quarantine/0000000000000001.wal.0")).unwrap(), bytes);
    assert_eq!(log_files(dir.path()), 0, "once the copy is safe the segment goes");
}

fn log_files(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_file()).count()
}

#[rstest]
#[case::no_room(Faults { room: Some(3), ..Faults::default() })]
#[case::not_created(Faults { failing_creates: 1, ..Faults::default() })]
#[case::not_synced(Faults { failing_syncs: 1, ..Faults::default() })]
fn damage_stays_in_its_file_until_its_copy_is_safe(
    #[case] faults: Faults,
    #[values("end", "only frame", "header")] what: &str,
) {
    let frames = if what == "only frame" { three()[..1].to_vec() } else { three() };
    let (mut bytes, starts) = segment(&frames);
    if what == "header" {
        bytes[0] ^= 1;
        bytes[HEADER_BYTES / 2] ^= 1;
    } else {
        *bytes.last_mut().unwrap() ^= 1;
    }
    let (dir, path) = with_file(&bytes);
    let disk = FaultyDisk::default();
    disk.set(|set| *set = faults);
    Log::open(dir.path(), Arc::new(disk.clone()), WalMetrics::default()).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes, "nothing is cut without a copy");
    disk.set(|set| *set = Faults::default());
    Log::open(dir.path(), Arc::new(disk), WalMetrics::default()).unwrap();
    let start = if what == "header" { 0 } else { *starts.last().unwrap() };
    let copy = dir.path().join(format!("quarantine/0000000000000001.wal.{start}"));
    assert_eq!(fs::read(copy).unwrap(), bytes[start..]);
    assert_eq!(path.exists(), what == "end");
}

#[test]
fn a_newer_version_is_refused() {
    let (mut bytes, _) = segment(&three());
    bytes[8] = 2;
    let checksum = crc32c::crc32c(&bytes[..32]).to_le_bytes();
    bytes[32..36].copy_from_slice(&checksum);
    let (dir, _) = with_file(&bytes);
    let error = Log::open(dir.path(), Arc::new(RealDisk), WalMetrics::default()).err().unwrap();
    assert!(matches!(error, WalError::Version { version: 2, .. }), "{error}");
}

/// The fixture was written by the first version of the format; it must be readable for ever.
#[test]
fn the_golden_segment_is_read_and_written_the_same() {
    let golden = include_bytes!("../../tests/fixtures/wal-v1.wal");
    let (dir, _) = with_file(golden);
    assert_eq!(read(&open(dir.path())), three());
    let (bytes, starts) = segment(&three());
    // The second frame is compressed, and another version of zstd may compress in another way.
    assert_eq!(golden[..starts[1]], bytes[..starts[1]]);
}

proptest! {
    #[test]
    fn frames_are_read_as_written(
        requests in prop::collection::vec(("[a-z]{0,20}", prop::collection::vec(any::<u8>(), 0..300)), 1..20),
    ) {
        let frames: Vec<Stored> = (1..).zip(&requests).map(|(n, (tenant, request))| stored(n, tenant, request)).collect();
        let (dir, _) = with_file(&segment(&frames).0);
        prop_assert_eq!(read(&open(dir.path())), frames);
    }

    #[test]
    fn any_bytes_are_covered_piece_by_piece(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0_usize..400) {
        // With a sound frame somewhere inside, so that there is something to find.
        let frame = Frame { sequence: 9, received_ns: 1, tenant: "t", raw_len: 3, compressed: false, payload: b"abc" };
        let mut encoded = Vec::new();
        frame.encode(SALT, &mut encoded);
        let at = at.min(bytes.len());
        let all: Vec<u8> = bytes[..at].iter().chain(&encoded).chain(&bytes[at..]).copied().collect();
        let mut end = 0;
        let mut found = 0;
        for piece in scan(&all, 0, SALT) {
            match piece {
                Piece::Frame(start, read) => {
                    prop_assert_eq!(start, end);
                    prop_assert_eq!(read, frame);
                    end = start + encoded.len();
                    found += 1;
                }
                Piece::Damaged(range, _) => {
                    prop_assert_eq!(range.start, end);
                    prop_assert!(!range.is_empty());
                    end = range.end;
                }
            }
        }
        prop_assert_eq!(end, all.len());
        prop_assert_eq!(found, 1);
    }
}

// === writer ===

/// A disk that fails on demand.
#[derive(Clone, Default)]
struct FaultyDisk(Arc<Mutex<Faults>>);

#[derive(Default)]
struct Faults {
    /// Bytes that still fit.
    room: Option<usize>,
    failing_syncs: u32,
    failing_truncates: u32,
    failing_creates: u32,
}

struct FaultyFile {
    file: Box<dyn SegmentFile>,
    faults: Arc<Mutex<Faults>>,
}

fn failed(count: &mut u32) -> io::Result<()> {
    if *count == 0 {
        return Ok(());
    }
    *count -= 1;
    Err(io::Error::other("injected"))
}

impl Disk for FaultyDisk {
    fn create(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        failed(&mut self.0.lock().unwrap().failing_creates)?;
        Ok(self.wrap(RealDisk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn SegmentFile>> {
        Ok(self.wrap(RealDisk.open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        RealDisk.remove(path)
    }
}

impl FaultyDisk {
    fn wrap(&self, file: Box<dyn SegmentFile>) -> Box<dyn SegmentFile> {
        Box::new(FaultyFile { file, faults: Arc::clone(&self.0) })
    }

    fn set(&self, change: impl FnOnce(&mut Faults)) {
        change(&mut self.0.lock().unwrap());
    }
}

impl SegmentFile for FaultyFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut faults = self.faults.lock().unwrap();
        let Some(room) = faults.room.as_mut() else { return self.file.append(bytes) };
        let fits = bytes.len().min(*room);
        *room -= fits;
        self.file.append(&bytes[..fits])?;
        if fits == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        failed(&mut self.faults.lock().unwrap().failing_syncs)?;
        self.file.sync()
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        failed(&mut self.faults.lock().unwrap().failing_truncates)?;
        self.file.truncate(len)
    }
}

const CONFIG: WalConfig = WalConfig { segment_bytes: 1 << 20, max_bytes: u64::MAX };

fn start(dir: &Path, disk: &FaultyDisk, config: WalConfig) -> Wal {
    let log = Log::open(dir, Arc::new(disk.clone()), WalMetrics::default()).unwrap();
    Wal::start(log, config).unwrap()
}

fn entry(request: &[u8]) -> Entry {
    Entry {
        tenant: "single-tenant".into(),
        received_ns: 5_000,
        raw_len: request.len() as u32,
        compressed: false,
        payload: Bytes::copy_from_slice(request),
    }
}

fn requests(dir: &Path) -> Vec<(u64, Vec<u8>)> {
    read(&open(dir)).into_iter().map(|stored| (stored.sequence, stored.request)).collect()
}

fn segment_count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().filter(|entry| entry.as_ref().unwrap().path().extension().is_some()).count()
}

#[tokio::test]
async fn what_was_answered_is_read_after_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let mut expected = Vec::new();
    for round in 0..3_u8 {
        let wal = start(dir.path(), &disk, CONFIG);
        for number in 0..4_u8 {
            let sequence = wal.append(entry(&[round, number])).await.unwrap();
            expected.push((sequence, vec![round, number]));
        }
        wal.close();
    }
    assert_eq!(requests(dir.path()), expected);
    assert!(expected.iter().map(|(sequence, _)| *sequence).eq(1..=12));
}

#[tokio::test]
async fn requests_that_wait_together_are_synced_together() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = Metrics::new();
    let log = Log::open(dir.path(), Arc::new(RealDisk), metrics.wal.clone()).unwrap();
    let wal = Arc::new(Wal::start(log, CONFIG).unwrap());
    let waiting: Vec<_> = (0..200_u8)
        .map(|number| {
            let wal = Arc::clone(&wal);
            tokio::spawn(async move { (wal.append(entry(&[number])).await.unwrap(), vec![number]) })
        })
        .collect();
    let mut answered = Vec::new();
    for request in waiting {
        answered.push(request.await.unwrap());
    }
    wal.close();
    answered.sort_unstable();
    assert_eq!(requests(dir.path()), answered, "each got the number under which it is stored");
    let text = metrics.encode().unwrap();
    let commits = text.lines().find_map(|line| line.strip_prefix("coati_backend_wal_commit_seconds_count "));
    let commits: u32 = commits.unwrap().parse().unwrap();
    assert!((1..200).contains(&commits), "{commits} commits");
}

#[rstest]
#[case::nothing_fits(0)]
#[case::part_of_the_fixed_fields_fits(20)]
#[case::all_but_the_last_byte_fits(FRAME_OVERHEAD + "single-tenant".len() + 100 - 1)]
#[tokio::test]
async fn a_full_disk_refuses_and_recovers(#[case] room: usize) {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let wal = start(dir.path(), &disk, CONFIG);
    wal.append(entry(b"before")).await.unwrap();
    disk.set(|faults| faults.room = Some(room));
    let error = wal.append(entry(&[1; 100])).await.unwrap_err();
    assert!(matches!(error, WalError::Full(_)), "{error}");
    disk.set(|faults| faults.room = None);
    wal.append(entry(b"after")).await.unwrap();
    wal.close();
    assert_eq!(requests(dir.path()), [(1, b"before".to_vec()), (2, b"after".to_vec())]);
    assert!(!dir.path().join("quarantine").exists(), "the partial frame was taken back");
}

#[tokio::test]
async fn a_partial_frame_that_cannot_be_taken_back_ends_the_segment() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let wal = start(dir.path(), &disk, CONFIG);
    wal.append(entry(b"before")).await.unwrap();
    disk.set(|faults| (faults.room, faults.failing_truncates) = (Some(30), 1));
    wal.append(entry(b"lost")).await.unwrap_err();
    disk.set(|faults| faults.room = None);
    wal.append(entry(b"after")).await.unwrap();
    wal.close();
    assert_eq!(requests(dir.path()), [(1, b"before".to_vec()), (2, b"after".to_vec())]);
}

#[rstest]
#[case::the_frames_are_taken_back(0)]
#[case::the_frames_stay_in_the_old_segment_too(1)]
#[tokio::test]
async fn a_failed_sync_gives_the_segment_up_and_loses_nothing(#[case] failing_truncates: u32) {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let wal = start(dir.path(), &disk, CONFIG);
    wal.append(entry(b"before")).await.unwrap();
    disk.set(|faults| (faults.failing_syncs, faults.failing_truncates) = (1, failing_truncates));
    assert_eq!(wal.append(entry(b"during")).await.unwrap(), 2);
    assert_eq!(wal.append(entry(b"after")).await.unwrap(), 3);
    wal.close();
    assert_eq!(segment_count(dir.path()), 2);
    assert_eq!(requests(dir.path()), [(1, b"before".to_vec()), (2, b"during".to_vec()), (3, b"after".to_vec())]);
}

#[tokio::test]
async fn a_disk_that_cannot_sync_at_all_refuses_until_it_can() {
    let dir = tempfile::tempdir().unwrap();
    let disk = FaultyDisk::default();
    let wal = start(dir.path(), &disk, CONFIG);
    disk.set(|faults| faults.failing_syncs = u32::MAX);
    for _ in 0..3 {
        let error = wal.append(entry(b"refused")).await.unwrap_err();
        assert!(matches!(error, WalError::Write(_)), "{error}");
    }
    disk.set(|faults| (faults.failing_syncs, faults.failing_creates) = (0, 1));
    wal.append(entry(b"refused")).await.unwrap_err();
    wal.append(entry(b"taken")).await.unwrap();
    wal.close();
    assert_eq!(requests(dir.path()), [(1, b"taken".to_vec())]);
}

#[tokio::test]
async fn a_closed_log_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let wal = start(dir.path(), &FaultyDisk::default(), CONFIG);
    wal.close();
    assert!(matches!(wal.append(entry(b"late")).await, Err(WalError::Closed)));
}

#[tokio::test]
async fn segments_that_are_released_are_deleted_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let config = WalConfig { segment_bytes: 1_000, ..CONFIG };
    let wal = start(dir.path(), &FaultyDisk::default(), config);
    for number in 0..20_u8 {
        wal.append(entry(&[number; 400])).await.unwrap();
    }
    // Three frames a segment: 1–3, 4–6, … Nothing of an age or a size is deleted without being released.
    wal.release(9, u64::MAX / 2);
    wal.append(entry(&[20; 400])).await.unwrap();
    wal.close();
    let kept: Vec<u64> = requests(dir.path()).into_iter().map(|(sequence, _)| sequence).collect();
    assert!(kept.iter().copied().eq(7..=21), "{kept:?}");
}

#[tokio::test]
async fn an_idle_log_becomes_empty_and_its_numbers_go_on() {
    const MINUTE: u64 = 60_000_000_000;
    let dir = tempfile::tempdir().unwrap();
    let wal = start(dir.path(), &FaultyDisk::default(), CONFIG);
    wal.append(entry(b"1")).await.unwrap();
    wal.append(entry(b"2")).await.unwrap();
    wal.release(2, 5_000 + 2 * MINUTE);
    wal.append(entry(b"3")).await.unwrap();
    wal.release(4, 5_000 + MINUTE);
    wal.close();
    assert_eq!(segment_count(dir.path()), 1, "the first is sealed and deleted, the second is too young");
    let wal = start(dir.path(), &FaultyDisk::default(), CONFIG);
    wal.release(4, 0);
    wal.close();
    assert_eq!(segment_count(dir.path()), 0);
    let mut log = open(dir.path());
    log.number_from(4);
    assert_eq!(log.next_sequence(), 4);
    let wal = Wal::start(log, CONFIG).unwrap();
    assert_eq!(wal.append(entry(b"4")).await.unwrap(), 4);
    wal.close();
    assert_eq!(open(dir.path()).next_sequence(), 5);
}

#[tokio::test]
async fn a_log_that_is_not_released_refuses_what_would_make_it_too_large() {
    let dir = tempfile::tempdir().unwrap();
    let wal = start(dir.path(), &FaultyDisk::default(), WalConfig { segment_bytes: 1_000, max_bytes: 3_000 });
    let mut taken = 0;
    let refusal = loop {
        match wal.append(entry(&[1; 400])).await {
            Ok(sequence) => taken = sequence,
            Err(error) => break error,
        }
    };
    assert!(matches!(refusal, WalError::Backlog { bytes: 3_000..3_500, limit: 3_000 }), "{refusal}");
    wal.release(taken + 1, 5_000);
    assert_eq!(wal.append(entry(&[1; 400])).await.unwrap(), taken + 1);
    wal.close();
}

#[tokio::test]
async fn reading_begins_at_the_number_that_is_asked_for_and_skips_whole_segments() {
    let dir = tempfile::tempdir().unwrap();
    let wal = start(dir.path(), &FaultyDisk::default(), WalConfig { segment_bytes: 1_000, ..CONFIG });
    for number in 0..10_u8 {
        wal.append(entry(&[number; 400])).await.unwrap();
    }
    wal.close();
    let log = open(dir.path());
    // Were the first segment read, this would be an error.
    fs::remove_file(&log.segments()[0].path).unwrap();
    let mut seen = Vec::new();
    let flow = log.oldest_first(5, |frame| {
        seen.push(frame.sequence);
        if frame.sequence == 8 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(flow.unwrap().is_break());
    assert_eq!(seen, [5, 6, 7, 8]);
}

#[test]
fn evidence_is_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let metrics = WalMetrics::default();
    let quarantine = dir.path().join("quarantine");
    for round in [1, 1, 2, 3] {
        let (mut bytes, starts) = segment(&[stored(1, "t", &[round; 40]), stored(2, "t", b"second")]);
        bytes[starts[0] + FRAME_OVERHEAD] ^= 0xff;
        fs::write(dir.path().join("0000000000000001.wal"), &bytes).unwrap();
        assert_eq!(read(&Log::open(dir.path(), Arc::new(RealDisk), metrics.clone()).unwrap()).len(), 1);
    }
    let mut copies: Vec<_> = fs::read_dir(&quarantine).unwrap().map(|file| file.unwrap().path()).collect();
    copies.sort_unstable();
    let contents: Vec<u8> = copies.iter().map(|copy| fs::read(copy).unwrap()[FRAME_OVERHEAD + 1]).collect();
    assert_eq!(contents, [1, 2, 3], "{copies:?}");
    let sizes: u64 = copies.iter().map(|copy| fs::metadata(copy).unwrap().len()).sum();
    assert_eq!(metrics.quarantine_bytes.get(), sizes as i64);
}
