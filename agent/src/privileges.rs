//! What the agent may do (capabilities(7)), and what of it it gives away.
//!
//! Capabilities belong to threads, and a thread begins with those of the one that starts it. So the capture thread is started
//! first, with all that loading programs takes; the others begin with [`LOOKING`] only. Once its programs are attached, the
//! capture thread keeps [`Later::needs`].

use std::fs;
use std::io;

use rustix::system::uname;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities, set_no_new_privs,
};

/// What every thread keeps: processes of other users in `/proc`, and files in private folders, of applications and of the
/// agent's configuration.
pub const LOOKING: CapabilitySet = CapabilitySet::SYS_PTRACE.union(CapabilitySet::DAC_READ_SEARCH);

/// What may be in one of these sets, in words.
const NAMES: [(CapabilitySet, &str); 5] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
    (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
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

/// What the capture thread does after its programs are attached, and how this kernel guards it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Later {
    /// Probes are put into files of programs that start later.
    pub probes: bool,
    /// Reading a map that is there already takes `CAP_BPF`.
    pub guarded_maps: bool,
    /// `perf_event_open`, which probes take, is for `CAP_SYS_ADMIN` only: Debian's and Ubuntu's `kernel.perf_event_paranoid`
    /// above 2.
    pub guarded_events: bool,
}

impl Later {
    /// On this kernel.
    pub fn here(probes: bool) -> Self {
        let setting = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok());
        let release = uname().release().to_string_lossy().into_owned();
        // Without the file the kernel guards nothing, or cannot be asked: then the more careful answer is the safe one.
        let disabled: i32 = setting("/proc/sys/kernel/unprivileged_bpf_disabled").unwrap_or(1);
        let paranoid: i32 = setting("/proc/sys/kernel/perf_event_paranoid").unwrap_or(2);
        Self { probes, guarded_maps: disabled != 0 && guards_maps(&release), guarded_events: paranoid > 2 }
    }

    /// What of `has` it takes.
    pub fn needs(self, has: CapabilitySet) -> CapabilitySet {
        // Either includes the other in the kernel's eyes (`bpf_capable`, `perfmon_capable`: include/linux/capability.h).
        let or_admin = |wanted: CapabilitySet| if has.contains(wanted) { wanted } else { CapabilitySet::SYS_ADMIN };
        let mut needs = LOOKING;
        if self.guarded_maps {
            needs |= or_admin(CapabilitySet::BPF);
        }
        if self.probes {
            needs |= or_admin(CapabilitySet::PERFMON);
            if self.guarded_events {
                needs |= CapabilitySet::SYS_ADMIN;
            }
        }
        needs & has
    }
}

/// Until Linux 5.18 every command of `bpf()` takes `CAP_BPF` where `kernel.unprivileged_bpf_disabled` is set; since 5.19 only
/// those that make maps and load programs do (`__sys_bpf`, kernel/bpf/syscall.c).
fn guards_maps(release: &str) -> bool {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) < (5_u32, 19_u32),
        _ => true,
    }
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
    use std::thread;

    use rstest::rstest;

    use super::*;

    const BPF: CapabilitySet = CapabilitySet::BPF;
    const PERFMON: CapabilitySet = CapabilitySet::PERFMON;
    const ADMIN: CapabilitySet = CapabilitySet::SYS_ADMIN;

    fn later(probes: bool, guarded_maps: bool, guarded_events: bool) -> Later {
        Later { probes, guarded_maps, guarded_events }
    }

    #[rstest]
    #[case::a_new_kernel_without_tls(later(false, false, false), CapabilitySet::all(), LOOKING)]
    #[case::a_new_kernel(later(true, false, false), CapabilitySet::all(), LOOKING | PERFMON)]
    #[case::an_old_kernel_without_tls(later(false, true, false), CapabilitySet::all(), LOOKING | BPF)]
    #[case::an_old_kernel(later(true, true, false), CapabilitySet::all(), LOOKING | BPF | PERFMON)]
    #[case::debian(later(true, false, true), CapabilitySet::all(), LOOKING | PERFMON | ADMIN)]
    #[case::debian_without_tls(later(false, false, true), CapabilitySet::all(), LOOKING)]
    #[case::debian_in_a_container(later(true, false, true), LOOKING | BPF | PERFMON, LOOKING | PERFMON)]
    #[case::as_before_5_8(later(true, true, false), LOOKING | ADMIN, LOOKING | ADMIN)]
    #[case::without_names(later(false, false, false), BPF | PERFMON, CapabilitySet::empty())]
    fn what_later_work_takes(#[case] later: Later, #[case] has: CapabilitySet, #[case] expected: CapabilitySet) {
        assert_eq!(later.needs(has), expected);
    }

    #[rstest]
    #[case("5.15.0-91-generic", true)]
    #[case("5.18.19", true)]
    #[case("5.19.0", false)]
    #[case("6.1.0-18-amd64", false)]
    #[case("6.12", false)]
    #[case("4.18.0-553.el8", true)]
    #[case("unknown", true)]
    fn kernels_that_guard_maps(#[case] release: &str, #[case] expected: bool) {
        assert_eq!(guards_maps(release), expected);
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
