//! Guarantees of the log: what was answered is found again, whatever happens to the file afterwards.

mod faulty_disk;
mod writer;

use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use proptest::prelude::*;
use rstest::rstest;
use tempfile::TempDir;

use self::faulty_disk::{Faults, FaultyDisk};
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
    let (mut found, mut unpacker) = (Vec::new(), Unpacker::default());
    let flow = log.oldest_first(0, |frame| {
        found.push(Stored {
            sequence: frame.sequence,
            received_ns: frame.received_ns,
            tenant: frame.tenant.to_owned(),
            request: unpacker.request(frame).unwrap().to_vec(),
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
