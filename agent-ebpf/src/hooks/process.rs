//! Processes that begin to run another program, and that end.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated};
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use coati_common::event::{Exec, Exit, Header, Kind};
use coati_common::limits::PATH_BYTES;
use coati_common::loss::Loss;
use coati_common::process;

use super::kprobes::Receive;
use crate::call::Call;
use crate::caller::{Caller, skipped_place};
use crate::emit;
use crate::event_loop;
use crate::globals;
use crate::goroutine;
use crate::kread::{Typed, pointer};
use crate::maps::PROCESSES;
use crate::node;
use crate::notes;
use crate::python;
use crate::strand;
use crate::tls;

/// Our own programs: not watched from their first instruction on.
const OWN: [[u8; 16]; 2] = [*b"coati-agent\0\0\0\0\0", *b"coati-backend\0\0\0"];

/// `sched_process_exec(task, old_pid, bprm)`
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn process_exec(ctx: RawTracePointContext) -> i32 {
    let tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
    tls::process_gone(tgid);
    goroutine::process_gone(tgid);
    event_loop::process_gone(tgid);
    node::process_gone(tgid);
    python::process_gone(tgid);
    if let Some(known) = PROCESSES.get_ptr_mut(tgid) {
        // What the new program is, the agent tells.
        // SAFETY: as in `exchange::followed`.
        unsafe { *known &= process::SKIPPED };
    }
    // The thread may have had another number: it is the process's first one now.
    thread_gone(u64::from(tgid) << 32 | u64::from(ctx.arg::<u32>(1)));
    if bpf_get_current_comm().is_ok_and(|comm| OWN.contains(&comm)) {
        let _full_is_noticed_as_own_spans = PROCESSES.insert(tgid, process::SKIPPED, 0);
        if let Some(place) = skipped_place(tgid) {
            // SAFETY: a number of the map, written whole.
            unsafe { place.write_volatile(tgid) };
        }
    }
    let mut record = Exec { header: header(Kind::Exec), tgid, path_len: 0, path: [0; PATH_BYTES] };
    if globals::BINPRM_FILENAME.load() != globals::ABSENT
        && let Some(name) = pointer(ctx.arg(2), globals::BINPRM_FILENAME.load())
    {
        // SAFETY: the helper writes at most `PATH_BYTES` bytes and checks the address.
        let read = unsafe {
            generated::bpf_probe_read_kernel_str(record.path.as_mut_ptr().cast(), PATH_BYTES as u32, name as *const _)
        };
        // The length counts the final zero.
        record.path_len = if read > 0 { read as u32 - 1 } else { 0 };
    }
    emit::plain(&record, Loss::RingFullProcess);
    0
}

/// `sched_process_exit(task)`: of every thread.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn process_exit(_ctx: RawTracePointContext) -> i32 {
    let pid_tgid = bpf_get_current_pid_tgid();
    thread_gone(pid_tgid);
    if is_last_thread(pid_tgid) {
        let tgid = (pid_tgid >> 32) as u32;
        let _none_is_usual = PROCESSES.remove(tgid);
        if let Some(place) = skipped_place(tgid).filter(|_| Caller::any().is_skipped()) {
            // SAFETY: as above.
            unsafe { place.write_volatile(0) };
        }
        tls::process_gone(tgid);
        goroutine::process_gone(tgid);
        event_loop::process_gone(tgid);
        node::process_gone(tgid);
        python::process_gone(tgid);
        emit::plain(&Exit { header: header(Kind::Exit), tgid, reserved: 0 }, Loss::RingFullProcess);
    }
    0
}

/// Forgets what is kept of a thread.
#[inline(always)]
fn thread_gone(pid_tgid: u64) {
    notes::thread_gone::<Call>(pid_tgid);
    notes::thread_gone::<Receive>(pid_tgid);
    strand::thread_gone(pid_tgid);
    event_loop::thread_gone(pid_tgid);
    node::thread_gone(pid_tgid);
    python::thread_gone(pid_tgid);
}

/// No other thread of the process is alive. Without the count of them: the first thread goes, usually as the last.
#[inline(always)]
fn is_last_thread(pid_tgid: u64) -> bool {
    if globals::TASK_SIGNAL.load() == globals::ABSENT || globals::SIGNAL_LIVE.load() == globals::ABSENT {
        return (pid_tgid >> 32) as u32 == pid_tgid as u32;
    }
    Typed::current_task()
        .pointer(globals::TASK_SIGNAL.load())
        .is_some_and(|signal| signal.u32(globals::SIGNAL_LIVE.load()) == 0)
}

#[inline(always)]
fn header(kind: Kind) -> Header {
    // SAFETY: the helper has no requirements.
    emit::header(kind, unsafe { bpf_ktime_get_ns() })
}
