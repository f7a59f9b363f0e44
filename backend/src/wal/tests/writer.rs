//! What was answered is on the disk, whatever that does meanwhile.

use super::*;

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
