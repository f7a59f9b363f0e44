//! What the agent may do (capabilities(7)), and what of it it gives away.
//!
//! Capabilities belong to threads, and a thread begins with those of the one that starts it. So the capture thread is started
//! first, with all that loading programs takes; the others begin with [`LOOKING`] only. Once its programs are attached, the
//! capture thread keeps [`Later::needs`].

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

use crate::ebpf::Programs;

/// What every thread keeps: processes of other users in `/proc`, and files in private folders, of applications and of the
/// agent's configuration.
pub const LOOKING: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// What may be in one of these sets, in words.
const NAMES: [(CapabilitySet, &str); 6] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
    (CapabilitySet::CHECKPOINT_RESTORE, "CAP_CHECKPOINT_RESTORE"),
    (CapabilitySet::SYS_PTRACE, "CAP_SYS_PTRACE"),
    (CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
];

/// Why capabilities could not be given away.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refuses to {what}")]
pub struct PrivilegeError {
    what: &'static str,
    #[source]
    source: io::Error,
}

/// What the capture thread does after its programs are attached, and how this kernel guards it. Asked, not told by the kernel's
/// version: distributions port changes back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Later {
    /// Probes are put into files of programs that start later.
    pub probes: Probes,
    /// Reading a map that is there already takes `CAP_BPF`, as it did until Linux 5.18 where
    /// `kernel.unprivileged_bpf_disabled` is set (`__sys_bpf`, kernel/bpf/syscall.c).
    pub guarded_maps: bool,
}

/// What it takes to put probes into files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Probes {
    /// None are put into any.
    Unwanted,
    /// Nothing any more: the kernel has links of its own for them, which belong to the programs.
    Free,
    /// `CAP_PERFMON`.
    Guarded,
    /// `CAP_SYS_ADMIN`: kernels since 6.16, and updates of older ones, want it for events (`perf_uprobe_event_init`,
    /// kernel/events/core.c), and so do Debian's and Ubuntu's with `kernel.perf_event_paranoid` above 2.
    Forbidden,
}

impl Later {
    /// With these programs on this kernel.
    pub fn of(programs: &mut Programs) -> Result<Self, PrivilegeError> {
        let attached = &programs.attached;
        let wanted = attached.has_tls() || attached.has_go() || attached.has_loops() || attached.has_cuda();
        let guarded_maps = with_only(LOOKING, || programs.maps.losses().is_err())?;
        let probes = if !wanted {
            Probes::Unwanted
        } else if with_only(LOOKING, || !programs.may_not_probe())? {
            Probes::Free
        } else if with_only(LOOKING | CapabilitySet::PERFMON, || !programs.may_not_probe())? {
            Probes::Guarded
        } else {
            Probes::Forbidden
        };
        Ok(Self { probes, guarded_maps })
    }

    /// What of `has` it takes.
    pub fn needs(self, has: CapabilitySet) -> CapabilitySet {
        // It includes the others in the kernel's eyes (`bpf_capable`, `perfmon_capable`: include/linux/capability.h).
        let or_admin = |wanted: CapabilitySet| if has.contains(wanted) { wanted } else { CapabilitySet::SYS_ADMIN };
        let mut needs = LOOKING;
        if self.guarded_maps {
            needs |= or_admin(CapabilitySet::BPF);
        }
        if matches!(self.probes, Probes::Guarded | Probes::Forbidden) {
            needs |= or_admin(CapabilitySet::PERFMON);
        }
        if self.probes != Probes::Unwanted {
            // Files that were replaced since a program has begun are found by `/proc/PID/map_files` only.
            needs |= CapabilitySet::CHECKPOINT_RESTORE;
        }
        if self.probes == Probes::Forbidden {
            needs |= CapabilitySet::SYS_ADMIN;
        }
        needs & has
    }

    /// Whether one who `has` these cannot put probes into files, though they are wanted.
    pub fn lacks_probes(self, has: CapabilitySet) -> bool {
        self.probes == Probes::Forbidden && !has.contains(CapabilitySet::SYS_ADMIN)
    }
}

/// Does something while only these capabilities of this thread are in effect; afterwards all are as before.
fn with_only<T>(capabilities_then: CapabilitySet, act: impl FnOnce() -> T) -> Result<T, PrivilegeError> {
    let refused = |error: rustix::io::Errno| PrivilegeError { what: "lower capabilities", source: error.into() };
    let before = capabilities(None).map_err(refused)?;
    let effective = before.permitted & capabilities_then;
    set_capabilities(None, CapabilitySets { effective, ..before }).map_err(refused)?;
    let done = act();
    set_capabilities(None, before).map_err(refused)?;
    Ok(done)
}

/// What this thread may do now.
pub fn held() -> CapabilitySet {
    capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted)
}

/// Gives away, for this thread and for those that it starts, all but `keep`, for good: neither it nor a program that it starts
/// gets anything back.
pub fn keep_only(keep: CapabilitySet) -> Result<(), PrivilegeError> {
    let refused = |what| move |error: rustix::io::Errno| PrivilegeError { what, source: error.into() };
    set_no_new_privs(true).map_err(refused("set no_new_privs"))?;
    clear_ambient_capability_set().map_err(refused("clear the ambient set"))?;
    let has = capabilities(None).map_err(refused("tell capabilities"))?;
    // Who may not change the bounding set has no use of it either: with no_new_privs no program gets anything out of it.
    if has.effective.contains(CapabilitySet::SETPCAP) {
        for capability in CapabilitySet::all().difference(keep).iter() {
            // An error says that this kernel does not know it.
            if capability_is_in_bounding_set(capability).unwrap_or(false) {
                remove_capability_from_bounding_set(capability).map_err(refused("limit the bounding set"))?;
            }
        }
    }
    let left = has.permitted & keep;
    let sets = CapabilitySets { effective: left, permitted: left, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).map_err(refused("give capabilities away"))
}

/// A set in words, for the log.
pub fn names(set: CapabilitySet) -> String {
    let names = NAMES.iter().filter(|(one, _)| set.contains(*one)).map(|(_, name)| *name);
    names.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use rstest::rstest;

    use super::*;

    const BPF: CapabilitySet = CapabilitySet::BPF;
    const PERFMON: CapabilitySet = CapabilitySet::PERFMON;
    const ADMIN: CapabilitySet = CapabilitySet::SYS_ADMIN;
    const FILES: CapabilitySet = CapabilitySet::CHECKPOINT_RESTORE;

    fn later(probes: Probes, guarded_maps: bool) -> Later {
        Later { probes, guarded_maps }
    }

    #[rstest]
    #[case::without_tls(later(Probes::Unwanted, false), CapabilitySet::all(), LOOKING)]
    #[case::with_tls(later(Probes::Guarded, false), CapabilitySet::all(), LOOKING | PERFMON | FILES)]
    #[case::an_old_kernel_without_tls(later(Probes::Unwanted, true), CapabilitySet::all(), LOOKING | BPF)]
    #[case::an_old_kernel(later(Probes::Guarded, true), CapabilitySet::all(), LOOKING | BPF | PERFMON | FILES)]
    #[case::a_new_kernel(later(Probes::Forbidden, false), CapabilitySet::all(), LOOKING | PERFMON | FILES | ADMIN)]
    #[case::with_links(later(Probes::Free, false), CapabilitySet::all(), LOOKING | FILES)]
    #[case::with_links_in_a_container(later(Probes::Free, false), LOOKING | BPF | PERFMON, LOOKING)]
    #[case::in_a_container(later(Probes::Forbidden, false), LOOKING | BPF | PERFMON, LOOKING | PERFMON)]
    #[case::as_before_5_8(later(Probes::Guarded, true), LOOKING | ADMIN, LOOKING | ADMIN)]
    #[case::without_names(later(Probes::Unwanted, false), BPF | PERFMON, CapabilitySet::empty())]
    fn what_later_work_takes(#[case] later: Later, #[case] has: CapabilitySet, #[case] expected: CapabilitySet) {
        assert_eq!(later.needs(has), expected);
    }

    #[test]
    fn what_is_lowered_is_raised_again() {
        let before = status();
        let effective = |lines: &[(String, String)]| lines.iter().find(|(name, _)| name == "CapEff").cloned();
        let lowered = with_only(CapabilitySet::empty(), status).unwrap();
        assert_eq!(effective(&lowered).unwrap().1, "0".repeat(16));
        assert_eq!(status(), before);
    }

    /// The lines about capabilities of this thread.
    fn status() -> Vec<(String, String)> {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap();
        let lines = text.lines().filter_map(|line| line.split_once(":\t"));
        let wanted = |name: &str| name.starts_with("Cap") || name == "NoNewPrivs";
        lines.filter(|(name, _)| wanted(name)).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn a_thread_keeps_what_it_should_and_so_do_those_that_it_starts() {
        let before = status();
        let limited = thread::spawn(|| {
            let has = held();
            keep_only(LOOKING).unwrap();
            let expected = format!("{:016x}", (has & LOOKING).bits());
            let none = "0".repeat(16);
            for status in [status(), thread::spawn(status).join().unwrap()] {
                for (name, value) in status {
                    match name.as_str() {
                        "CapEff" | "CapPrm" => assert_eq!(value, expected, "{name}"),
                        "CapAmb" | "CapInh" => assert_eq!(value, none, "{name}"),
                        "CapBnd" if has.contains(CapabilitySet::SETPCAP) => {
                            let bounding = u64::from_str_radix(&value, 16).unwrap();
                            assert_eq!(bounding & !LOOKING.bits(), 0, "{name}");
                        }
                        "NoNewPrivs" => assert_eq!(value, "1"),
                        _ => {}
                    }
                }
            }
            // What is given away does not come back.
            let all = CapabilitySets { effective: has, permitted: has, inheritable: has };
            assert_eq!(set_capabilities(None, all).is_err(), has != has & LOOKING);
        });
        limited.join().unwrap();
        assert_eq!(status(), before, "other threads keep theirs");
    }

    #[test]
    fn sets_in_words() {
        assert_eq!(names(LOOKING | PERFMON), "CAP_PERFMON CAP_SYS_PTRACE CAP_DAC_READ_SEARCH");
    }
}
