//! Probes in functions of this very program that have the arguments of CUDA's: what needs no library, and runs in the guests
//! too.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use coati_agent::capture::Source;
use coati_agent::ebpf::{CudaCall, ProbePoint};
use coati_common::cuda::{Calls, Process, SLOT_BITS};
use coati_common::loss::Loss;

use crate::uprobes::{Probes, file_offset};
use crate::watch::Watch;

// As CUDA's, as far as arguments and results matter. Each has a number of its own in it, or they would be one function.

extern "C" fn launch(function: usize) -> u32 {
    black_box(function ^ 1);
    0
}

extern "C" fn copy_to_device(_to: usize, _from: usize, bytes: usize) -> u32 {
    black_box(bytes ^ 2);
    0
}

extern "C" fn copy_peer(_to: usize, _there: usize, _from: usize, _here: usize, bytes: usize) -> u32 {
    black_box(bytes ^ 3);
    0
}

/// Refuses a terabyte.
extern "C" fn allocate(_pointer: usize, bytes: usize) -> u32 {
    if black_box(bytes) >= 1 << 40 { 2 } else { 0 }
}

extern "C" fn allocate_pitch(_pointer: usize, _pitch: usize, width: usize, height: usize) -> u32 {
    black_box(width ^ height ^ 4);
    0
}

/// Waits for so many milliseconds.
extern "C" fn synchronize(stream: usize) -> u32 {
    thread::sleep(Duration::from_millis(black_box(stream) as u64));
    0
}

const LAUNCH: extern "C" fn(usize) -> u32 = launch;
const TO_DEVICE: extern "C" fn(usize, usize, usize) -> u32 = copy_to_device;
const PEER: extern "C" fn(usize, usize, usize, usize, usize) -> u32 = copy_peer;
const ALLOCATE: extern "C" fn(usize, usize) -> u32 = allocate;
const PITCH: extern "C" fn(usize, usize, usize, usize) -> u32 = allocate_pitch;
const SYNCHRONIZE: extern "C" fn(usize) -> u32 = synchronize;

fn own(watch: &Watch) -> Option<Process> {
    watch.capture().cuda().into_iter().find(|(tgid, _)| *tgid == std::process::id()).map(|(_, process)| process)
}

/// What was called is counted, from several threads at once, and each slot of time has its mark.
#[test]
fn calls_are_counted() {
    let covers = "calls of CUDA";
    let Some(mut watch) = Watch::start_with_tls(covers) else { return };
    let attached = &watch.capture().programs().attached;
    if !attached.has_cuda() {
        assert!(crate::watch::hooks().is_none(), "in a guest it must be possible: {:?}", attached.off);
        println!("SKIPPED: this kernel lets no probes into libraries ({:?}); not covered: {covers}", attached.off);
        return;
    }
    let functions = [
        (CudaCall::Launch, LAUNCH as usize),
        (CudaCall::CopyToDevice, TO_DEVICE as usize),
        (CudaCall::CopyPeer, PEER as usize),
        (CudaCall::Allocate, ALLOCATE as usize),
        (CudaCall::AllocatePitch, PITCH as usize),
        (CudaCall::Synchronize, SYNCHRONIZE as usize),
    ];
    let points = functions.map(|(call, address)| ProbePoint { call: call.into(), offset: file_offset(address) });
    let program = std::env::current_exe().unwrap();
    let _probes = Probes(Some(watch.source().attach_probes(&program, &points).unwrap()));
    assert_eq!(own(&watch), None);

    let begin = Instant::now();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            thread::spawn(|| {
                for number in 0..1000 {
                    black_box(LAUNCH)(1);
                    black_box(TO_DEVICE)(0, 0, 100);
                    if number % 100 == 0 {
                        black_box(SYNCHRONIZE)(3);
                    }
                }
                black_box(PEER)(0, 0, 0, 0, 7);
                black_box(ALLOCATE)(0, 1 << 20);
                black_box(ALLOCATE)(0, 1 << 40);
                black_box(PITCH)(0, 0, 512, 16);
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    let took = begin.elapsed();

    let process = own(&watch).unwrap();
    let Calls { blocked_ns, .. } = process.calls;
    let expected = Calls {
        launches: 4000,
        to_device_bytes: 400_000,
        on_device_bytes: 28,
        allocations: 8,
        allocated_bytes: 4 * ((1 << 20) + 512 * 16),
        synchronizations: 40,
        blocked_ns,
        ..Calls::default()
    };
    assert_eq!(process.calls, expected);
    let waited = Duration::from_nanos(blocked_ns);
    assert!(waited >= Duration::from_millis(40 * 3) && waited <= took * 4, "{waited:?} of {took:?}");
    let mut marks: Vec<_> = process.marks.iter().filter(|mark| mark.time_ns > 0).collect();
    marks.sort_by_key(|mark| mark.time_ns);
    assert!(marks.len() >= 3, "at least ten times 3 ms: {marks:?}");
    for pair in marks.windows(2) {
        assert!(pair[0].time_ns >> SLOT_BITS < pair[1].time_ns >> SLOT_BITS, "one of each slot");
        assert!(pair[1].before_ns >= pair[0].time_ns && pair[0].calls.launches <= pair[1].calls.launches);
    }
    assert_eq!(watch.capture().health().unwrap().losses[Loss::CudaFull as usize], 0);

    // What a call costs, for who reads the output.
    for (name, count) in [("with a probe", 2000_u32), ("with two, at entry and return", 2000)] {
        let begin = Instant::now();
        for _ in 0..count {
            if name == "with a probe" {
                black_box(LAUNCH)(1)
            } else {
                black_box(ALLOCATE)(0, 1)
            };
        }
        println!("a call {name} takes {:?}", begin.elapsed() / count);
    }
    watch.source().forget_cuda(std::process::id());
    assert_eq!(own(&watch), None);
}
