//! For which request a context of Python works (PEP 567), as an SDK would find it by a context variable: everything that an event
//! loop runs it runs in a context, and who starts something gives it a copy of its own.
//!
//! Which context a thread runs in is read from the interpreter's own state of the thread when it reads or sends a request;
//! probed is only where contexts are made. See ADR 0032.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{HashMap, LruHashMap};
use coati_common::event::Served;
use coati_common::limits;
use coati_common::process;
use coati_common::python::{ContextId, Interpreter};

use crate::emit;
use crate::exchange::Caller;
use crate::globals;
use crate::kread::{Typed, user};
use crate::maps::NO_PREALLOC;
use crate::node;
use crate::scratch::Slot;

/// Processes that run Python; they are marked in [`crate::maps::PROCESSES`], too.
#[map]
static PYTHON_PROCESSES: HashMap<u32, Interpreter> = HashMap::with_max_entries(limits::PYTHON_PROCESSES, NO_PREALLOC);

/// The interpreter's states of their threads, by `pid_tgid`.
#[map]
static PYTHON_THREADS: HashMap<u64, u64> = HashMap::with_max_entries(limits::PYTHON_THREADS, NO_PREALLOC);

/// Contexts, by where they lie. Of those that are freed nothing tells, so the oldest make room.
#[map]
static CONTEXTS: LruHashMap<ContextId, Context> = LruHashMap::with_max_entries(limits::PYTHON_CONTEXTS, 0);

/// The latest request of the only connection of which requests were read in contexts that come from this one; see [`Context::up`].
#[map]
static READERS: LruHashMap<u64, Served> = LruHashMap::with_max_entries(limits::PYTHON_READERS, 0);

/// What stands there for the connection if there were several.
const SEVERAL: u64 = u64::MAX;

/// What is known of a context.
#[derive(Clone, Copy)]
#[repr(C)]
struct Context {
    /// A number of its own.
    id: u64,
    /// Of the context that it is a copy of, and of the one that that was a copy of; 0 where that is not known.
    ///
    /// Some servers (aiohttp, `asyncio.start_server`) have a task for each connection that is there before its first request. Then
    /// the task's context and the one in which the connection is read come from the context in which it was accepted.
    up: [u64; 2],
    /// The request that it works for; zeros if that is not known by itself.
    served: Served,
}

impl Context {
    #[inline(always)]
    fn new() -> Self {
        Self { id: emit::new_connection(), up: [0; 2], served: Served::NONE }
    }

    /// The request that it works for now.
    #[inline(always)]
    fn works_for(&self) -> Served {
        if self.served.connection != 0 {
            return self.served;
        }
        let [parent, its] = self.up;
        for id in [self.id, parent, its] {
            if let Some(served) = READERS.get_ptr(id) {
                // SAFETY: as in `exchange::followed`.
                let served = unsafe { *served };
                return if served.connection == SEVERAL { Served::NONE } else { served };
            }
        }
        Served::NONE
    }
}

/// A request was read in a context that comes from the one with this number.
#[inline(always)]
fn read_below(id: u64, served: Served) {
    if id == 0 {
        return;
    }
    let Some(known) = READERS.get_ptr_mut(id) else {
        let _old_ones_make_room = READERS.insert(id, served, 0);
        return;
    };
    // SAFETY: as above.
    let known = unsafe { &mut *known };
    if known.connection == served.connection {
        known.exchange = served.exchange;
    } else {
        known.connection = SEVERAL;
    }
}

/// What [`context_in`] gives if it is not known in what the thread runs, or if it does not run Python.
const UNKNOWN: u64 = 0;
/// If it runs Python outside of all contexts.
pub const OUTSIDE: u64 = 1;

/// `PyObject.ob_type`, and `PyContext.ctx_entered` (Include/internal/pycore_context.h), the same in CPython 3.7 to 3.14.
const TYPE: u64 = 8;
const ENTERED: u64 = 40;
/// Threads' states that are looked through for that of a thread. New ones come first.
const STATES: u32 = 256;

/// The context in which the current thread runs Python, which is one of the process of which this is known: its address, [`OUTSIDE`]
/// or [`UNKNOWN`].
#[inline(always)]
pub fn context_in(process: u8) -> u64 {
    if process & process::PYTHON != 0 { python_context() } else { UNKNOWN }
}

/// The context in which the current thread runs Python: its address, [`OUTSIDE`] or [`UNKNOWN`].
///
/// Exported, so that the verifier checks it once for all calls.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn python_context() -> u64 {
    context(Caller::any()).unwrap_or(UNKNOWN)
}

#[inline(always)]
fn context(caller: Caller) -> Option<u64> {
    if globals::TASK_THREAD_BASE.load() == globals::ABSENT {
        return None;
    }
    let interpreter = PYTHON_PROCESSES.get_ptr(caller.tgid())?;
    // SAFETY: as in `exchange::followed`.
    let interpreter = unsafe { &*interpreter };
    let state = state(caller, interpreter)?;
    let context = user::<u64>(state.wrapping_add(interpreter.context.into()))?;
    if context == 0 {
        return Some(OUTSIDE);
    }
    // The layout of another version would lead to something else.
    if user::<u64>(context.wrapping_add(TYPE))? != interpreter.context_type {
        return None;
    }
    // Each thread has one that nobody has entered, once it has set a variable; and greenlets take turns with theirs.
    let is_entered = user::<u32>(context.wrapping_add(ENTERED))? != 0;
    Some(if is_entered { context } else { OUTSIDE })
}

/// Where the interpreter keeps its state of the current thread, which it knows by the address that the thread has for its
/// own data.
#[inline(always)]
fn state(caller: Caller, interpreter: &Interpreter) -> Option<u64> {
    let thread = Typed::current_task().u64(globals::TASK_THREAD_BASE.load());
    let at = u64::from(interpreter.thread);
    if let Some(known) = PYTHON_THREADS.get_ptr(caller.pid_tgid()) {
        // SAFETY: as above.
        let known = unsafe { *known };
        // A thread of C may have had several, one after the other.
        if user::<u64>(known.wrapping_add(at)) == Some(thread) {
            return Some(known);
        }
    }
    let main = user::<u64>(interpreter.main)?;
    let mut state = user::<u64>(main.wrapping_add(interpreter.threads.into()))?;
    for _ in 0..STATES {
        if state == 0 {
            return None;
        }
        if user::<u64>(state.wrapping_add(at))? == thread {
            let _full = PYTHON_THREADS.insert(caller.pid_tgid(), state, 0);
            return Some(state);
        }
        state = user::<u64>(state.wrapping_add(interpreter.next.into()))?;
    }
    None
}

/// Finds the request that the context works for; it is left in the slot, where there is one. Exported for the same reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn find_served_in(slot: u64, context: u64) -> u64 {
    let Some(served) = Slot::numbered(slot).served() else { return 0 };
    let found = served_in(Caller::any(), context);
    if found.connection != 0 {
        *served = found;
    }
    1
}

/// The request that the context works for; zeros if there is none.
#[inline(always)]
pub fn served_in(caller: Caller, context: u64) -> Served {
    match CONTEXTS.get_ptr(id(caller, context)) {
        // SAFETY: as above.
        Some(context) => unsafe { &*context }.works_for(),
        None => Served::NONE,
    }
}

/// In the context this request was read. Exported for the same reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn serves_in(context: u64, connection: u64, exchange: u64) -> u64 {
    let (id, served) = (id(Caller::any(), context), Served { connection, exchange: exchange as u32, place: 0 });
    match CONTEXTS.get_ptr_mut(id) {
        Some(context) => {
            // SAFETY: as above.
            let context = unsafe { &mut *context };
            context.served = served;
            let [parent, its] = context.up;
            read_below(parent, served);
            read_below(its, served);
        }
        None => {
            let _old_ones_make_room = CONTEXTS.insert(id, Context { served, ..Context::new() }, 0);
        }
    }
    0
}

/// Whether this is the address of a context.
#[inline(always)]
pub const fn is_context(context: u64) -> bool {
    context > OUTSIDE
}

/// A copy of the current context was made: it works for the same.
#[inline(always)]
pub fn copied(caller: Caller, copy: u64) -> Option<()> {
    let interpreter = PYTHON_PROCESSES.get_ptr(caller.tgid())?;
    // SAFETY: as above. What returns may have failed, or return something else.
    if user::<u64>(copy.wrapping_add(TYPE))? != unsafe { (*interpreter).context_type } {
        return None;
    }
    let mut new = Context::new();
    let current = python_context();
    if is_context(current)
        && let Some(known) = CONTEXTS.get_ptr(id(caller, current))
    {
        // SAFETY: as above.
        let known = unsafe { &*known };
        new.served = known.works_for();
        let [parent, _] = known.up;
        new.up = [known.id, parent];
    }
    // Under uvloop the context in which a request is called back is that of all connections of a server.
    let called_back = node::called_back(caller);
    if called_back.connection != 0 {
        new.served = called_back;
    }
    // Another one may have been there.
    CONTEXTS.insert(id(caller, copy), new, 0).ok()
}

/// An empty context was made: it works for nothing, unless that is done while a request is called back.
#[inline(always)]
pub fn made(caller: Caller, context: u64) -> Option<()> {
    let served = node::called_back(caller);
    if served.connection != 0 {
        return CONTEXTS.insert(id(caller, context), Context { served, ..Context::new() }, 0).ok();
    }
    CONTEXTS.remove(id(caller, context)).ok()
}

#[inline(always)]
const fn id(caller: Caller, address: u64) -> ContextId {
    ContextId { tgid: caller.tgid(), reserved: 0, address }
}

/// The thread has ended.
#[inline(always)]
pub fn thread_gone(pid_tgid: u64) {
    let _none_is_usual = PYTHON_THREADS.remove(pid_tgid);
}

/// The process has ended, or runs another program.
#[inline(always)]
pub fn process_gone(tgid: u32) {
    let _none_is_usual = PYTHON_PROCESSES.remove(tgid);
}
