//! The sends that threads and goroutines are in, from entry to return.

use aya_ebpf::maps::HashMap;
use coati_common::event::Connection;
use coati_common::loss::Loss;

use crate::emit;
use crate::exchange::NEW;
use crate::filter::Filter;
use crate::iov::Source;
use crate::maps::CALLS;
use crate::scratch::Slot;
use crate::sock::{Positions, Socket};

/// The send that a thread is in, or was in last: what is kept of one is written over by the next, because to make and to
/// remove an entry of the map costs more than all else that a send does.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Call {
    /// 1 until the call returns.
    pub is_under_way: u64,
    /// Through what it sends.
    pub socket: Socket,
    /// When the call was entered.
    pub time_ns: u64,
    /// What it sends from.
    pub source: Source,
    /// The connection as it was before.
    pub before: Connection,
    /// What its bytes are, a [`Meaning`](coati_common::follow::Meaning); 0 if that is known only when it returns.
    pub meaning: u32,
    /// Where the streams stood.
    pub positions: Positions,
}

/// The place for the call with this key, which is entered; `None`, and counted, if there is no room.
#[inline(always)]
pub fn call_of<K>(slot: Slot, calls: &HashMap<K, Call>, key: &K) -> Option<&'static mut Call> {
    let call = match calls.get_ptr_mut(key) {
        Some(call) => call,
        None => {
            // Not on the stack, as in `exchange::follow`.
            let new = slot.call()?;
            new.is_under_way = 0;
            if calls.insert(key, &*new, NEW).is_err() {
                emit::lost(Loss::CallsFull);
                return None;
            }
            calls.get_ptr_mut(key)?
        }
    };
    // SAFETY: as in `exchange::followed`; the entry belongs to this thread.
    Some(unsafe { &mut *call })
}

/// The call with this key that is under way, which it is no longer.
#[inline(always)]
pub fn under_way<K>(calls: &HashMap<K, Call>, key: &K) -> Option<&'static mut Call> {
    let call = calls.get_ptr_mut(key)?;
    // SAFETY: as in `exchange::followed`; the entry belongs to this thread.
    let call = unsafe { &mut *call };
    if call.is_under_way == 0 {
        return None;
    }
    call.is_under_way = 0;
    Some(call)
}

/// A thread is in no send any more: if it still seems to be in one, then that was never seen to return, and would be given the
/// result of another.
#[inline(always)]
pub fn leaves_send(pid_tgid: u64) {
    if Filter::Sending.may_have(pid_tgid) {
        return_missed(pid_tgid);
    }
}

/// The kernel left out our program when the send returned that a thread was in, if it was in one.
///
/// Exported, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn return_missed(pid_tgid: u64) -> u64 {
    if under_way(&CALLS, &pid_tgid).is_none() {
        return 0;
    }
    Filter::Sending.remove(pid_tgid);
    emit::lost(Loss::ReturnMissed);
    1
}
