use coati_common::cuda::{MARKS, Mark, SLOT_BITS, SLOT_NS};
use proptest::prelude::*;
use rstest::rstest;

use super::*;

const MS: u64 = 1_000_000;
/// Some time after the machine was started.
const START: u64 = 5_000 * MS;

fn none() -> Process {
    Process { last_ns: 0, slot: 0, calls: Calls::default(), marks: [Mark::default(); MARKS] }
}

/// A call, as the kernel programs count it.
fn call(process: &mut Process, time_ns: u64, add: impl Fn(&mut Calls)) {
    let slot = time_ns >> SLOT_BITS;
    if process.slot != slot {
        process.slot = slot;
        process.marks[slot as usize % MARKS] = Mark { time_ns, before_ns: process.last_ns, calls: process.calls };
    }
    process.last_ns = time_ns;
    add(&mut process.calls);
}

fn launch(calls: &mut Calls) {
    calls.launches += 1;
}

fn between(timeline: &Timeline, start_ms: u64, end_ms: u64) -> u64 {
    let interval = Interval { start_ns: START + start_ms * MS, end_ns: START + end_ms * MS };
    timeline.between(interval).launches
}

/// Requests with a pause between them that is longer than a slot get exactly what they called, however short they are and
/// whenever the kernel is asked.
#[rstest]
#[case::asked_once_at_the_end(&[100])]
#[case::asked_in_the_middle_of_each(&[1, 41, 100])]
#[case::asked_often(&[0, 10, 20, 30, 40, 43, 44, 50, 60, 70, 80, 90, 100])]
fn requests_with_pauses_between_them_get_what_they_called(#[case] asked_ms: &[u64]) {
    let (mut process, mut timeline) = (none(), Timeline::default());
    let mut asked = asked_ms.iter().map(|at| START + at * MS).peekable();
    for (from, to, count) in [(0, 2, 7), (40, 45, 100), (70, 99, 13)] {
        for number in 0..count {
            let time_ns = START + from * MS + (to - from) * MS * number / count + 1;
            while asked.next_if(|at| *at < time_ns).is_some() {
                timeline.take(&process);
            }
            call(&mut process, time_ns, launch);
        }
    }
    timeline.take(&process);
    let found = [(0, 2), (40, 45), (70, 99), (2, 39), (0, 99)].map(|(start, end)| between(&timeline, start, end));
    assert_eq!(found, [7, 100, 13, 0, 120]);
    assert_eq!(between(&timeline, 100, 200), 0);
}

#[test]
fn what_was_called_before_the_first_reading_belongs_to_no_interval() {
    let (mut process, mut timeline) = (none(), Timeline::default());
    process.calls.launches = 1000;
    process.last_ns = START;
    timeline.take(&process);
    assert_eq!(between(&timeline, 0, 10), 0);
}

#[test]
fn another_process_with_the_same_number_begins_anew() {
    let (mut process, mut timeline) = (none(), Timeline::default());
    (0..50).for_each(|number| call(&mut process, START + number * MS, launch));
    timeline.take(&process);
    let mut process = none();
    call(&mut process, START + 100 * MS, launch);
    timeline.take(&process);
    assert_eq!(between(&timeline, 90, 110), 1);
}

#[test]
fn points_are_bounded() {
    let (mut process, mut timeline) = (none(), Timeline::default());
    let slots = 40_000;
    for number in 0..slots {
        call(&mut process, START + number * SLOT_NS, launch);
        if number % 10 == 0 {
            timeline.take(&process);
        }
    }
    timeline.take(&process);
    assert!(timeline.points.len() <= POINTS);
    let end_ns = START + slots * SLOT_NS;
    // What is old is known less exactly.
    let half = Interval { start_ns: START + slots / 2 * SLOT_NS, end_ns };
    assert!(timeline.between(half).launches.abs_diff(slots / 2) < 10);
    // A call at the very start is before it.
    let last = Interval { start_ns: end_ns - 100 * SLOT_NS - 1, end_ns };
    assert_eq!(timeline.between(last).launches, 100);
}

#[test]
fn processes_are_added_up_and_forgotten() {
    let mut cuda = CudaCalls::default();
    let mut process = none();
    call(&mut process, START, launch);
    call(&mut process, START + MS, |calls| calls.to_host_bytes += 5);
    cuda.expect(30, |_| vec![20]);
    assert_eq!(cuda.processes_of(20), [30], "before its first call");
    for tgid in [30, 31] {
        let new = cuda.take(tgid, &process, |_| vec![20]);
        assert_eq!((new.launches, new.to_host_bytes), (1, 5));
        assert_eq!(cuda.take(tgid, &process, |_| panic!("known")), Calls::default());
    }
    let mut of = cuda.processes_of(20);
    of.sort_unstable();
    assert_eq!((of, cuda.processes_of(31), cuda.processes_of(9)), (vec![30, 31], vec![31], vec![]));
    let interval = Interval { start_ns: START - MS, end_ns: START + 2 * MS };
    let both = cuda.between(&[30, 31, 9], interval).unwrap();
    assert_eq!((both.launches, both.to_host_bytes), (2, 10));
    assert_eq!(cuda.between(&[9], interval), None);
    assert_eq!(cuda.forget(2 * START, |tgid| tgid == 31), [30]);
    assert!(cuda.forget(2 * START + GONE_FOR_NS, |_| true).is_empty());
    assert_eq!(cuda.processes_of(20), [31]);
}

proptest! {
    /// What neighbouring intervals called is what was called in all, and none is wrong by more than what was called in the
    /// slots in which it begins and ends.
    #[test]
    fn neighbours_add_up(
        gaps_us in prop::collection::vec(0_u64..30_000, 1..300),
        asked in prop::collection::vec(any::<bool>(), 300),
        mut cuts_ms in prop::collection::vec(0_u64..6_000, 1..8),
    ) {
        let (mut process, mut timeline) = (none(), Timeline::default());
        let (mut time_ns, mut times) = (START, Vec::new());
        let mut asked_ns = 0;
        for (gap_us, asked) in gaps_us.iter().zip(asked) {
            time_ns += gap_us * 1000;
            // The agent asks ten times a second.
            if asked || time_ns - asked_ns > 100 * MS {
                timeline.take(&process);
                asked_ns = time_ns;
            }
            call(&mut process, time_ns, launch);
            times.push(time_ns);
        }
        timeline.take(&process);
        cuts_ms.sort_unstable();
        let cuts: Vec<u64> = cuts_ms.iter().map(|ms| START + ms * MS).collect();
        let mut sum = 0;
        for pair in cuts.windows(2) {
            let interval = Interval { start_ns: pair[0], end_ns: pair[1] };
            let found = timeline.between(interval).launches;
            sum += found;
            let exact = times.iter().filter(|time| **time > interval.start_ns && **time <= interval.end_ns).count() as u64;
            let slots = [interval.start_ns >> SLOT_BITS, interval.end_ns >> SLOT_BITS];
            let unsure = times.iter().filter(|time| slots.contains(&(**time >> SLOT_BITS))).count() as u64;
            prop_assert!(found.abs_diff(exact) <= unsure, "{} not {} ± {}", found, exact, unsure);
        }
        let all = Interval { start_ns: cuts[0], end_ns: *cuts.last().unwrap() };
        prop_assert_eq!(timeline.between(all).launches, sum);
    }
}
