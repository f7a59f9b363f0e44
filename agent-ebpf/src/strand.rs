//! Who calls a TLS library: a thread, or a goroutine, which may go on on another thread in the middle of a call.

use core::mem::size_of;

use aya_ebpf::macros::map;
use aya_ebpf::maps::HashMap;
use coati_common::go::{CALL_BYTES, GoroutineId, SEND_BYTES};
use coati_common::limits;

use crate::call::Call;
use crate::exchange::Caller;
use crate::globals;
use crate::kread::{Typed, user};
use crate::maps::NO_PREALLOC;
use crate::notes::Note;
use crate::tls::Thread;

/// `runtime.g.stack.hi`, where the stack of a goroutine begins: the second word of every goroutine there ever was.
const STACK_HIGH: u64 = 8;
/// What a depth is taken from, so that the innermost call has the lowest number, as with stack pointers.
const DEEPEST: u64 = 1 << 47;

/// Threads that have called a TLS library, by `pid_tgid`.
#[map]
static THREADS: HashMap<u64, Thread> = HashMap::with_max_entries(limits::CALLS, NO_PREALLOC);

/// Sends under way on TLS sessions, by thread.
#[map]
static SENDS: HashMap<u64, Note<Call>> = HashMap::with_max_entries(limits::CALLS, NO_PREALLOC);

/// Goroutines in a call of `crypto/tls`: each connection without a request has one that waits for it.
#[map]
static GOROUTINES: HashMap<GoroutineId, Thread> = HashMap::with_max_entries(limits::GOROUTINES, NO_PREALLOC);

/// Their sends.
#[map]
static GO_SENDS: HashMap<GoroutineId, Note<Call>> = HashMap::with_max_entries(limits::CALLS, NO_PREALLOC);

// User space removes what killed processes leave.
const _: () = assert!(size_of::<Thread>() == CALL_BYTES && size_of::<Note<Call>>() == SEND_BYTES);

/// Who calls.
pub trait Strand {
    /// Names it.
    type Key: 'static;

    fn key(&self) -> &Self::Key;

    /// The calls that all of its kind are in.
    fn calls() -> &'static HashMap<Self::Key, Thread>;

    /// Their sends.
    fn sends() -> &'static HashMap<Self::Key, Note<Call>>;

    /// Where its stack stands.
    fn stack(&self) -> u64;

    /// How much higher it stands when a call has returned than when that was entered.
    fn return_slot() -> u64;

    /// Whether what it received outside of calls says something: not with a library that moves all bytes itself. Then nothing
    /// is kept of it between calls.
    const HAS_OUTSIDE: bool;
}

/// A thread.
pub struct ByThread(pub u64);

impl Strand for ByThread {
    type Key = u64;

    const HAS_OUTSIDE: bool = true;

    #[inline(always)]
    fn key(&self) -> &u64 {
        &self.0
    }

    #[inline(always)]
    fn calls() -> &'static HashMap<u64, Thread> {
        &THREADS
    }

    #[inline(always)]
    fn sends() -> &'static HashMap<u64, Note<Call>> {
        &SENDS
    }

    #[inline(always)]
    fn stack(&self) -> u64 {
        if globals::REGS_STACK.load() == globals::ABSENT {
            return u64::MAX / 2;
        }
        Typed::current_task().saved_registers().u64(globals::REGS_STACK.load())
    }

    #[inline(always)]
    fn return_slot() -> u64 {
        u64::from(globals::RETURN_SLOT.load())
    }
}

/// A goroutine.
pub struct ByGoroutine {
    id: GoroutineId,
    stack: u64,
}

impl ByGoroutine {
    /// The one at `g`, whose stack pointer this is.
    #[inline(always)]
    pub fn new(caller: Caller, g: u64, stack_pointer: u64) -> Option<Self> {
        // The runtime moves stacks, so a pointer into one is compared with its beginning.
        let high = user::<u64>(g.wrapping_add(STACK_HIGH))?;
        let stack = DEEPEST.wrapping_sub(high.wrapping_sub(stack_pointer));
        Some(Self { id: goroutine(caller, g), stack })
    }
}

/// Names the goroutine at `g`, while it lives.
#[inline(always)]
const fn goroutine(caller: Caller, g: u64) -> GoroutineId {
    GoroutineId { tgid: caller.tgid(), reserved: 0, address: g }
}

impl Strand for ByGoroutine {
    type Key = GoroutineId;

    const HAS_OUTSIDE: bool = false;

    #[inline(always)]
    fn key(&self) -> &GoroutineId {
        &self.id
    }

    #[inline(always)]
    fn calls() -> &'static HashMap<GoroutineId, Thread> {
        &GOROUTINES
    }

    #[inline(always)]
    fn sends() -> &'static HashMap<GoroutineId, Note<Call>> {
        &GO_SENDS
    }

    #[inline(always)]
    fn stack(&self) -> u64 {
        self.stack
    }

    /// The program runs before the return does.
    #[inline(always)]
    fn return_slot() -> u64 {
        0
    }
}

/// Address of the goroutine that the thread was running when it entered the kernel, if it runs goroutines; 0 where it is not
/// known where they are. Compiled code has it in a register (`r14`), also when it makes a system call.
#[inline(always)]
pub fn goroutine_address() -> u64 {
    if globals::REGS_GOROUTINE.load() == globals::ABSENT {
        return 0;
    }
    Typed::current_task().saved_registers().u64(globals::REGS_GOROUTINE.load())
}

/// The call that the calling thread is in, or was; or the goroutine that it runs.
#[inline(always)]
pub fn call_of(caller: Caller) -> Option<*mut Thread> {
    if let Some(thread) = THREADS.get_ptr_mut(caller.pid_tgid()) {
        return Some(thread);
    }
    let g = goroutine_address();
    if g == 0 {
        return None;
    }
    GOROUTINES.get_ptr_mut(goroutine(caller, g))
}

/// The call that the calling thread itself is in, or was.
#[inline(always)]
pub fn thread_call(caller: Caller) -> Option<*mut Thread> {
    THREADS.get_ptr_mut(caller.pid_tgid())
}

/// The thread has ended.
#[inline(always)]
pub fn thread_gone(pid_tgid: u64) {
    let _none_is_usual = THREADS.remove(pid_tgid);
    let _none_is_usual = SENDS.remove(pid_tgid);
}
