//! Writing records, numbering them and counting those that are lost.

use core::mem::size_of;

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ringbuf_output};
use aya_ebpf::maps::PerCpuArray;
use coati_common::counter;
use coati_common::event::{Header, Kind, Tail};
use coati_common::limits::{PAYLOAD_BYTES, TAIL_BYTES};
use coati_common::loss::Loss;

use crate::globals;
use crate::kread::at_most;
use crate::maps::{COUNTERS, LOSSES, RECORDS};
use crate::scratch::Record;
use crate::tail::Half;

const RING_AVAILABLE: u64 = 0;
const RING_NO_WAKEUP: u64 = 1;
const RING_FORCE_WAKEUP: u64 = 2;

/// Adds one to a cell of this CPU; what it was before.
#[inline(always)]
fn add_one(cells: &PerCpuArray<u64>, index: u32) -> u64 {
    add(cells, index, 1)
}

/// Adds to a cell of this CPU; what it was before.
///
/// Atomically, because an interrupt on this CPU may do the same in between.
#[inline(always)]
pub fn add(cells: &PerCpuArray<u64>, index: u32, value: u64) -> u64 {
    match cells.get_ptr_mut(index) {
        // SAFETY: a cell of the map.
        Some(cell) => unsafe { fetch_add(cell, value) },
        None => 0,
    }
}

/// Adds to a number in a map, which all CPUs may change; what it was before. (The compiler offers no atomic operation for
/// this target.)
///
/// # Safety
///
/// `cell` is a number of a map, and aligned.
#[inline(always)]
pub unsafe fn fetch_add(cell: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: one instruction, on a cell of the map.
    unsafe {
        core::arch::asm!("{0} = atomic_fetch_add((u64 *)({1} + 0), {0})", inout(reg) value, in(reg) cell);
    }
    value
}

/// Puts another value in the place of such a number; what it was before.
///
/// # Safety
///
/// As of [`fetch_add`].
#[inline(always)]
pub unsafe fn exchange(cell: *mut u64, value: u64) -> u64 {
    let mut value = value;
    // SAFETY: one instruction, on a cell of the map.
    unsafe {
        core::arch::asm!("{0} = xchg_64({1} + 0, {0})", inout(reg) value, in(reg) cell);
    }
    value
}

/// Puts another value in the place of such a number if it is the one that is expected; what it was before.
///
/// # Safety
///
/// As of [`fetch_add`].
#[inline(always)]
pub unsafe fn compare_exchange(cell: *mut u64, expected: u64, value: u64) -> u64 {
    let mut before = expected;
    // SAFETY: one instruction, on a cell of the map.
    unsafe {
        core::arch::asm!("r0 = cmpxchg_64({0} + 0, r0, {1})", in(reg) cell, in(reg) value, inout("r0") before);
    }
    before
}

/// Counts a loss.
#[inline(always)]
pub fn lost(cause: Loss) {
    add_one(&LOSSES, cause as u32);
}

/// Counts an exchange that begins.
#[inline(always)]
pub fn begun() {
    add_one(&COUNTERS, counter::BEGUN);
}

/// An identity for a connection that no other will have while the programs are loaded.
#[inline(always)]
pub fn new_connection() -> u64 {
    let number = add_one(&COUNTERS, counter::CONNECTIONS);
    u64::from(cpu()) << 48 | (number + 1)
}

/// The start of a record; takes the CPU's next number.
#[inline(always)]
pub fn header(kind: Kind, time_ns: u64) -> Header {
    Header { kind: kind as u32, cpu: cpu(), cpu_seq: add_one(&COUNTERS, counter::RECORDS), time_ns }
}

/// Writes a record with `payload_len` bytes of its payload.
#[inline(always)]
pub fn record<H>(record: &Record<H>, payload_len: u64, cause: Loss) {
    let len = size_of::<H>() as u64 + at_most::<{ PAYLOAD_BYTES as u64 }>(payload_len);
    write((&raw const *record).cast(), len, cause);
}

/// Writes a record of the end of a response, with `payload_len` bytes of it.
#[inline(always)]
pub fn kept(record: &Half, payload_len: u64, cause: Loss) {
    let len = size_of::<Tail>() as u64 + at_most::<{ TAIL_BYTES as u64 }>(payload_len);
    write((&raw const *record).cast(), len, cause);
}

/// Writes a record without payload.
#[inline(always)]
pub fn plain<T>(record: &T, cause: Loss) {
    write((&raw const *record).cast(), size_of::<T>() as u64, cause);
}

#[inline(always)]
fn write(from: *const u8, len: u64, cause: Loss) {
    let ring = (&raw const RECORDS).cast_mut().cast();
    // A wake-up costs more than a record, and the agent looks every few milliseconds anyway.
    let flags = if RECORDS.query(RING_AVAILABLE) < u64::from(globals::WAKE_AT.load()) {
        RING_NO_WAKEUP
    } else {
        RING_FORCE_WAKEUP
    };
    // SAFETY: `from` points to `len` initialised bytes of a record; the verifier checks the bound once more.
    if unsafe { bpf_ringbuf_output(ring, from.cast_mut().cast(), len, flags) } != 0 {
        lost(cause);
    }
}

#[inline(always)]
fn cpu() -> u32 {
    // SAFETY: the helper has no requirements.
    unsafe { bpf_get_smp_processor_id() }
}
