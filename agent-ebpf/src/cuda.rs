//! What processes call of CUDA's driver library, counted for each.
//!
//! Counts are added atomically, because a process calls on several CPUs at once. The first call of a slot of time leaves a
//! mark (see [`coati_common::cuda`]); who is first is told by an exchange of the slot's number.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap};
use coati_common::cuda::{Calls, MARKS, Process, SLOT_BITS, UNFINISHED};
use coati_common::limits;
use coati_common::loss::Loss;

use crate::emit;
pub use crate::exchange::now;
use crate::maps::NO_PREALLOC;

/// What a thread's call that has not returned is for.
pub mod pending {
    /// Memory.
    pub const ALLOCATION: u64 = 1;
    /// To wait for the device.
    pub const SYNCHRONIZATION: u64 = 2;
}

/// A call that has not returned.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Pending {
    /// One of [`pending`].
    kind: u64,
    /// Bytes that it asks for, or when it was entered.
    value: u64,
}

/// Processes that have called the library.
#[map]
static CUDA: HashMap<u32, Process> = HashMap::with_max_entries(limits::CUDA_PROCESSES, NO_PREALLOC);

/// What a process begins with, as it is too large for the stack: always zero.
#[map]
static CUDA_NEW: Array<Process> = Array::with_max_entries(1, 0);

/// Calls of threads that have not returned.
#[map]
static CUDA_CALLS: LruHashMap<u64, Pending> = LruHashMap::with_max_entries(limits::CUDA_CALLS, 0);

const NO_EXIST: u64 = 1;

/// Adds to a count of this process.
#[inline(always)]
pub fn count(field: impl Fn(&mut Calls) -> *mut u64, value: u64) {
    let _full = process().map(|process| {
        add(&mut process.calls, &field, value);
    });
}

/// A call was entered whose return matters. Of calls within a call only the innermost is known.
#[inline(always)]
pub fn enter(kind: u64, value: u64) {
    let _full_drops_the_oldest = CUDA_CALLS.insert(bpf_get_current_pid_tgid(), Pending { kind, value }, 0);
}

/// It has returned `result`, 0 if it succeeded.
#[inline(always)]
pub fn returned(result: u32) {
    let _nothing_to_do = (|| {
        let thread = bpf_get_current_pid_tgid();
        // SAFETY: only this thread changes the entry, and it is copied at once.
        let Pending { kind, value } = *unsafe { CUDA_CALLS.get(thread) }?;
        let _gone = CUDA_CALLS.remove(thread);
        if kind == pending::ALLOCATION {
            if result == 0 {
                let process = process()?;
                add(&mut process.calls, &|calls: &mut Calls| &raw mut calls.allocations, 1);
                add(&mut process.calls, &|calls: &mut Calls| &raw mut calls.allocated_bytes, value);
            }
            return Some(());
        }
        let blocked_ns = now() - value;
        let process = process()?;
        add(&mut process.calls, &|calls: &mut Calls| &raw mut calls.synchronizations, 1);
        add(&mut process.calls, &|calls: &mut Calls| &raw mut calls.blocked_ns, blocked_ns);
        Some(())
    })();
}

#[inline(always)]
fn add(calls: &mut Calls, field: &impl Fn(&mut Calls) -> *mut u64, value: u64) {
    // SAFETY: the field is one of the entry, which lasts as long as the program runs.
    unsafe { emit::fetch_add(field(calls), value) };
}

/// What is known of this process, which is calling now.
#[inline(always)]
fn process() -> Option<&'static mut Process> {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    let entry = match CUDA.get_ptr_mut(tgid) {
        Some(entry) => entry,
        None => {
            let new = CUDA_NEW.get_ptr(0)?;
            // SAFETY: the cell is never written to, and lasts as long as the program runs.
            let _another_thread_was_first = CUDA.insert(tgid, unsafe { &*new }, NO_EXIST);
            let Some(entry) = CUDA.get_ptr_mut(tgid) else {
                emit::lost(Loss::CudaFull);
                return None;
            };
            entry
        }
    };
    // SAFETY: the entry lasts as long as the program runs. Other threads change its numbers by atomic operations; a mark that two
    // write at once, half a second apart, is at worst wrong.
    let process = unsafe { &mut *entry };
    called(process, now());
    Some(process)
}

/// Notes that a call was at this time, and leaves a mark if it is the first one of its slot.
///
/// Neither time goes back: a thread that was interrupted after it had read the clock comes behind others.
#[inline(always)]
fn called(process: &mut Process, now_ns: u64) {
    let is_first = advance(&raw mut process.slot, now_ns >> SLOT_BITS);
    let before_ns = process.last_ns;
    advance(&raw mut process.last_ns, now_ns);
    if is_first {
        mark(process, before_ns, now_ns);
    }
}

/// Raises a number; whether this call did it, and no other thread's.
#[inline(always)]
fn advance(cell: *mut u64, value: u64) -> bool {
    // SAFETY: a field of an entry of the map.
    unsafe {
        let before = core::ptr::read_volatile(cell);
        before < value && emit::compare_exchange(cell, before, value) == before
    }
}

/// Leaves a mark of a slot's first call, unless another slot has begun before it is written: what was called in that one
/// would be in it.
#[inline(always)]
fn mark(process: &mut Process, before_ns: u64, now_ns: u64) {
    let slot = now_ns >> SLOT_BITS;
    let Some(mark) = process.marks.get_mut(slot as usize & (MARKS - 1)) else { return };
    // The agent may read it at any time: what it reads behind this is not to be trusted.
    // SAFETY: fields of the entry; volatile, so that reads and writes stay in this order.
    unsafe {
        core::ptr::write_volatile(&raw mut mark.time_ns, UNFINISHED);
        mark.before_ns = before_ns;
        mark.calls = process.calls;
        let is_over = core::ptr::read_volatile(&raw const process.slot) != slot;
        core::ptr::write_volatile(&raw mut mark.time_ns, if is_over { 0 } else { now_ns });
    }
}
