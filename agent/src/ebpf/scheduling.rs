//! How the agent's threads share processors with the services that it watches.

use std::io;
use std::mem::size_of;

/// Nanoseconds that a thread runs on before one that has waited may take its processor: the shortest that Linux takes, where
/// it has some milliseconds of its own.
const SLICE_NS: u64 = 100_000;

/// Lets services go first. From now on no thread of the agent takes a processor away because it wakes up, and one that runs gives it up
/// sooner; their share of processors stays what it was.
///
/// For the calling thread, and those that it starts afterwards. Whoever has started the agent with a policy of their choice keeps
/// it. Only since Linux 6.12 has a thread a slice of its own (`__setparam_fair`, kernel/sched/syscalls.c).
pub fn give_way() -> io::Result<()> {
    let mut attributes = attributes()?;
    if attributes.sched_policy == libc::SCHED_OTHER as u32 {
        attributes.sched_policy = libc::SCHED_BATCH as u32;
        attributes.sched_runtime = SLICE_NS;
        // SAFETY: the kernel reads `size` bytes of the attributes, which live until the call is over.
        check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })?;
    }
    Ok(())
}

/// Those of the calling thread.
fn attributes() -> io::Result<libc::sched_attr> {
    let size = size_of::<libc::sched_attr>() as u32;
    let mut attributes = libc::sched_attr {
        size,
        sched_policy: 0,
        sched_flags: 0,
        sched_nice: 0,
        sched_priority: 0,
        sched_runtime: 0,
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: the kernel writes `size` bytes at most to the attributes, which live until the call is over.
    check(unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size, 0) })?;
    Ok(attributes)
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn threads_that_are_started_later_give_way_too() {
        let policy = || attributes().unwrap().sched_policy;
        let before = policy();
        assert_eq!(before, libc::SCHED_OTHER as u32, "that of the tests");
        let of_threads = thread::spawn(move || {
            give_way().unwrap();
            give_way().unwrap();
            [policy(), thread::spawn(policy).join().unwrap()]
        });
        assert_eq!(of_threads.join().unwrap(), [libc::SCHED_BATCH as u32; 2]);
        assert_eq!(policy(), before, "of other threads nothing changes");
    }

    #[test]
    fn who_chose_a_policy_keeps_it() {
        let of_thread = thread::spawn(|| {
            let idle = libc::sched_attr { sched_policy: libc::SCHED_IDLE as u32, ..attributes().unwrap() };
            // SAFETY: as in `give_way`.
            check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const idle, 0) }).unwrap();
            give_way().unwrap();
            attributes().unwrap().sched_policy
        });
        assert_eq!(of_thread.join().unwrap(), libc::SCHED_IDLE as u32);
    }
}
