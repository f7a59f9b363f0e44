//! Which programs to attach where, from what the kernel has.
//!
//! The ends of connections and the processes are watched in one way on every kernel. The bytes are seen by one of three
//! sets of hooks ([`HookSet`]), which all feed the same state machine; see ADR 0011 for their order.

use crate::kernel::features::{Features, HookSet};

/// One program at one place.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Probe {
    /// Name of the program in the object.
    pub program: &'static str,
    /// Where it goes.
    pub point: Point,
}

/// A place where a program can be attached.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Point {
    /// Entry of a system call.
    Enter(&'static str),
    /// Return of a system call.
    Exit(&'static str),
    /// A raw tracepoint, with the category that its tracepoint is listed under.
    Raw(&'static str, &'static str),
    /// Entry of a kernel function, by a BPF trampoline.
    FunctionEntry(&'static str),
    /// Exit of a kernel function, by a BPF trampoline.
    FunctionExit(&'static str),
    /// Entry or return of a kernel function, by a kprobe.
    Kprobe(&'static str),
    /// Functions in files, which are found later.
    Files,
}

impl Point {
    /// `category/name` of the tracepoint, if it is one.
    pub fn tracepoint(&self) -> Option<String> {
        match self {
            Self::Enter(call) => Some(format!("syscalls/sys_enter_{call}")),
            Self::Exit(call) => Some(format!("syscalls/sys_exit_{call}")),
            Self::Raw(category, name) => Some(format!("{category}/{name}")),
            Self::FunctionEntry(_) | Self::FunctionExit(_) | Self::Kprobe(_) | Self::Files => None,
        }
    }

    /// What `features` lacks of it, if anything.
    fn lacks(&self, features: &Features) -> Option<String> {
        match (self, self.tracepoint()) {
            (_, Some(tracepoint)) => {
                (!features.tracepoints.contains(&tracepoint)).then(|| format!("no tracepoint {tracepoint}"))
            }
            (Self::FunctionEntry(name) | Self::FunctionExit(name) | Self::Kprobe(name), None) => {
                (!features.functions.contains(name)).then(|| format!("no function {name}"))
            }
            (Self::Files, None) => (!features.uprobes).then(|| "no uprobes; they need CONFIG_UPROBE_EVENTS".to_owned()),
            _ => None,
        }
    }
}

/// Probes that belong together: half of them would be worse than none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Group {
    /// What it watches: a system call or a function, or `connections`, `processes`.
    pub name: &'static str,
    /// Whether what is told would be wrong without it.
    pub is_needed: bool,
    /// In the order in which they must be attached.
    pub probes: Vec<Probe>,
}

/// What to attach and what not.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    /// How bytes are seen.
    pub hooks: HookSet,
    /// To be attached before everything else, whatever the hooks: what the others rely on.
    pub base: Vec<Group>,
    /// To be attached, in this order: the hooks.
    pub on: Vec<Group>,
    /// Not to be, and why: parts of the hooks, and whole sets that would have been better.
    pub off: Vec<(&'static str, String)>,
}

/// Nothing useful can be watched on this kernel.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// The kernel lacks something that every program needs.
    #[error("this kernel lacks {what}")]
    Lacks {
        /// What it lacks, and since when kernels have it.
        what: &'static str,
    },
    /// The kernel lacks a tracepoint without which what is seen would be wrong.
    #[error("this kernel has no tracepoint {tracepoint}, which tells {tells}")]
    NoTracepoint {
        /// `category/name`.
        tracepoint: String,
        /// What it is for.
        tells: &'static str,
    },
    /// None of the hooks that may be used can be.
    #[error("this kernel has no hooks that see bytes: {}", list(why))]
    NoHooks {
        /// Each set, and why not.
        why: Vec<(&'static str, String)>,
    },
}

/// `name (why)`, separated by commas.
pub(super) fn list(off: &[(&'static str, String)]) -> String {
    off.iter().map(|(name, why)| format!("{name} ({why})")).collect::<Vec<_>>().join(", ")
}

/// How a system call moves bytes.
#[derive(Clone, Copy)]
enum Way {
    /// It sends; the program for its entry.
    Sends(&'static str),
    /// It receives; the program for its return.
    Receives(&'static str),
    /// It does either; the programs for entry and return.
    Both(&'static str, &'static str),
    /// It ends a Unix socket; the program for its entry.
    Ends(&'static str),
}

/// Every system call that is watched, and whether nothing works without it.
const SYSTEM_CALLS: [(&str, Way, bool); 11] = [
    ("write", Way::Sends("enter_send_buffer"), true),
    ("sendto", Way::Sends("enter_send_buffer"), true),
    ("writev", Way::Sends("enter_send_vector"), false),
    ("sendmsg", Way::Sends("enter_send_message"), false),
    ("sendfile64", Way::Sends("enter_send_file"), false),
    ("splice", Way::Both("enter_splice", "exit_splice"), false),
    ("read", Way::Receives("exit_receive_buffer"), true),
    ("recvfrom", Way::Receives("exit_receive_buffer_flags"), true),
    ("readv", Way::Receives("exit_receive_vector"), false),
    ("recvmsg", Way::Receives("exit_receive_message"), false),
    ("close", Way::Ends("enter_close"), false),
];

/// A function of TCP or of Unix sockets, and the programs for it.
struct Function {
    name: &'static str,
    /// What is told would be wrong without it. Else it may be missing, and only `is_missed` says whether that is a loss.
    is_needed: bool,
    is_missed: bool,
    /// `fentry` and `fexit`, those that it has.
    trampolines: (Option<&'static str>, Option<&'static str>),
    /// Entry, and return if there is one for that.
    kprobes: (&'static str, Option<&'static str>),
}

/// Every function of TCP that is watched.
const FUNCTIONS: [Function; 4] = [
    Function {
        name: "tcp_sendmsg",
        is_needed: true,
        is_missed: true,
        trampolines: (Some("fentry_tcp_sendmsg"), Some("fexit_tcp_sendmsg")),
        kprobes: ("kprobe_tcp_sendmsg", Some("kretprobe_send")),
    },
    // Since Linux 6.5 files and pipes go through tcp_sendmsg.
    Function {
        name: "tcp_sendpage",
        is_needed: false,
        is_missed: false,
        trampolines: (Some("fentry_tcp_sendpage"), Some("fexit_tcp_sendpage")),
        kprobes: ("kprobe_tcp_sendpage", Some("kretprobe_send")),
    },
    Function {
        name: "tcp_recvmsg",
        is_needed: true,
        is_missed: true,
        trampolines: (None, Some("fexit_tcp_recvmsg")),
        kprobes: ("kprobe_tcp_recvmsg", Some("kretprobe_receive")),
    },
    Function {
        name: "tcp_splice_read",
        is_needed: false,
        is_missed: true,
        trampolines: (None, Some("fexit_tcp_splice_read")),
        kprobes: ("kprobe_tcp_splice_read", Some("kretprobe_receive")),
    },
];

/// The functions of Unix stream sockets that belong together.
const UNIX: [Function; 3] = [
    Function {
        name: "unix_release",
        is_needed: false,
        is_missed: true,
        trampolines: (Some("fentry_unix_release"), None),
        kprobes: ("kprobe_unix_release", None),
    },
    Function {
        name: "unix_stream_sendmsg",
        is_needed: false,
        is_missed: true,
        trampolines: (Some("fentry_unix_sendmsg"), Some("fexit_unix_sendmsg")),
        kprobes: ("kprobe_unix_sendmsg", Some("kretprobe_unix_send")),
    },
    Function {
        name: "unix_stream_recvmsg",
        is_needed: false,
        is_missed: true,
        trampolines: (None, Some("fexit_unix_recvmsg")),
        kprobes: ("kprobe_unix_recvmsg", Some("kretprobe_unix_receive")),
    },
];

/// Others, as [`FUNCTIONS`] has them of TCP.
const UNIX_FILES: [Function; 2] = [
    Function {
        name: "unix_stream_sendpage",
        is_needed: false,
        is_missed: false,
        trampolines: (Some("fentry_unix_sendpage"), Some("fexit_unix_sendpage")),
        kprobes: ("kprobe_unix_sendpage", Some("kretprobe_unix_send")),
    },
    Function {
        name: "unix_stream_splice_read",
        is_needed: false,
        is_missed: true,
        trampolines: (None, Some("fexit_unix_splice_read")),
        kprobes: ("kprobe_unix_splice_read", Some("kretprobe_unix_receive")),
    },
];

/// What the group of [`UNIX`] is called.
const UNIX_SOCKETS: &str = "unix_sockets";

const STATES: Probe = Probe { program: "socket_state", point: Point::Raw("sock", "inet_sock_set_state") };
const SOCKETS: Probe = Probe { program: "socket_gone", point: Point::Raw("tcp", "tcp_destroy_sock") };
const EXEC: Probe = Probe { program: "process_exec", point: Point::Raw("sched", "sched_process_exec") };
const EXIT: Probe = Probe { program: "process_exit", point: Point::Raw("sched", "sched_process_exit") };

/// The programs for functions of TLS libraries.
const TLS: [&str; 9] = [
    "tls_written",
    "tls_was_read",
    "tls_shaken",
    "tls_write",
    "tls_write_ex",
    "tls_read",
    "tls_read_ex",
    "tls_handshake",
    "tls_free",
];

/// The programs for functions of Go's `crypto/tls` and `net/http`.
const GO: [&str; 12] = [
    "go_tls_written",
    "go_tls_was_read",
    "go_tls_shaken",
    "go_tls_write",
    "go_tls_read",
    "go_tls_handshake",
    "go_tls_close",
    "go_round_trip",
    "go_round_trip_write",
    "go_ask",
    "go_handle",
    "go_handle_internal",
];

/// The programs for functions of programs with event loops.
const LOOPS: [&str; 5] = ["nginx_send", "node_has_read", "node_read", "uvloop_read", "uvloop_write"];

/// The programs for contexts of Python.
const PYTHON: [&str; 2] = ["python_context_copied", "python_context_made"];

/// The programs for functions of CUDA's driver library.
const CUDA: [&str; 12] = [
    "cuda_returned",
    "cuda_launch",
    "cuda_graph_launch",
    "cuda_copy_to_device",
    "cuda_copy_to_host",
    "cuda_copy_on_device",
    "cuda_copy_peer",
    "cuda_copy",
    "cuda_allocate",
    "cuda_allocate_pitch",
    "cuda_free",
    "cuda_synchronize",
];

/// The sets, best first.
const SETS: [HookSet; 3] = [HookSet::Fentry, HookSet::Syscall, HookSet::Kprobe];

/// Whether the kernel has what every program needs.
pub fn check(features: &Features) -> Result<(), PlanError> {
    let needs = [
        (features.type_information, "/sys/kernel/btf/vmlinux; it needs CONFIG_DEBUG_INFO_BTF"),
        (features.ring_buffer, "BPF ring buffers (Linux 5.8)"),
    ];
    if let Some(&(_, what)) = needs.iter().find(|(has, _)| !has) {
        return Err(PlanError::Lacks { what });
    }
    for (probe, tells) in [
        (STATES, "when connections end"),
        (SOCKETS, "when sockets end"),
        (EXEC, "which programs run"),
        (EXIT, "when processes end"),
    ] {
        if probe.point.lacks(features).is_some() {
            return Err(PlanError::NoTracepoint { tracepoint: probe.point.tracepoint().unwrap_or_default(), tells });
        }
    }
    Ok(())
}

/// Chooses the probes: of the best hooks that the kernel has, or of those that are `wanted`.
///
/// Ends are attached before beginnings: a connection that begins to be followed is seen to close, and a send that is
/// seen to be entered is seen to return. No order suits both ends of a connection, so none is followed before all are there.
pub fn plan(features: &Features, wanted: Option<HookSet>) -> Result<Plan, PlanError> {
    check(features)?;
    let base = vec![
        Group { name: "connections", is_needed: true, probes: vec![SOCKETS, STATES] },
        Group { name: "processes", is_needed: true, probes: vec![EXIT, EXEC] },
    ];
    let mut off = Vec::new();
    for hooks in SETS.into_iter().filter(|&set| wanted.is_none_or(|wanted| wanted == set)) {
        match groups(hooks, features) {
            Ok((on, missing)) => {
                off.extend(missing);
                return Ok(Plan { hooks, base, on, off });
            }
            Err(why) => off.push((hooks.name(), why)),
        }
    }
    Err(PlanError::NoHooks { why: off })
}

/// The programs for functions in files that are wanted.
pub(super) fn file_programs(tls: bool, cuda: bool) -> Vec<&'static str> {
    let is_x86_64 = cfg!(target_arch = "x86_64");
    let wanted = [
        (tls, &TLS[..]),
        (tls && is_x86_64, &GO[..]),
        (tls && is_x86_64, &PYTHON[..]),
        (tls, &LOOPS[..]),
        (cuda, &CUDA[..]),
    ];
    wanted.into_iter().filter(|(is_wanted, _)| *is_wanted).flat_map(|(_, programs)| programs).copied().collect()
}

/// The group of the programs for TLS libraries, or why there is none.
pub(super) fn tls(features: &Features) -> Result<Group, String> {
    in_files("tls", &TLS, features)
}

/// The same for programs written in Go.
pub(super) fn go(features: &Features) -> Result<Group, String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("the registers of Go's functions are known of x86-64 only".to_owned());
    }
    in_files("go", &GO, features)
}

/// The same for programs with event loops.
pub(super) fn loops(features: &Features) -> Result<Group, String> {
    in_files("loops", &LOOPS, features)
}

/// The same for Python.
pub(super) fn python(features: &Features) -> Result<Group, String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("where threads of Python are is known of x86-64 only".to_owned());
    }
    in_files("python", &PYTHON, features)
}

/// The same for CUDA's driver library.
pub(super) fn cuda(features: &Features) -> Result<Group, String> {
    in_files("cuda", &CUDA, features)
}

fn in_files(name: &'static str, programs: &[&'static str], features: &Features) -> Result<Group, String> {
    let probes: Vec<_> = programs.iter().map(|program| Probe { program, point: Point::Files }).collect();
    match probes.iter().find_map(|probe| probe.point.lacks(features)) {
        None => Ok(Group { name, is_needed: false, probes }),
        Some(why) => Err(why),
    }
}

/// Groups, and those that must be left out with the reason.
type Groups = (Vec<Group>, Vec<(&'static str, String)>);

/// The groups of one set, or why it is of no use here.
fn groups(hooks: HookSet, features: &Features) -> Result<Groups, String> {
    if let Some(why) = features.refused.get(&hooks) {
        return Err(why.clone());
    }
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for (group, is_missed) in candidates(hooks, features)? {
        if group.is_of_unix_sockets() && !features.unix_sockets {
            if group.name == UNIX_SOCKETS || group.name == "close" {
                off.push((group.name, "the kernel's Unix sockets are not known".to_owned()));
            }
            continue;
        }
        match group.probes.iter().find_map(|probe| probe.point.lacks(features)) {
            None => on.push(group),
            Some(why) if group.is_needed => return Err(why),
            Some(why) if is_missed => off.push((group.name, why)),
            Some(_) => {}
        }
    }
    Ok((on, off))
}

/// Every group that a set could have, and whether something is lost without it.
fn candidates(hooks: HookSet, features: &Features) -> Result<Vec<(Group, bool)>, String> {
    let has = |is_there: bool, what: &str| if is_there { Ok(()) } else { Err(what.to_owned()) };
    match hooks {
        HookSet::Syscall => {
            has(features.saved_registers, "no BPF helper bpf_task_pt_regs (Linux 5.15)")?;
            Ok(SYSTEM_CALLS
                .map(|(name, way, is_needed)| (Group { name, is_needed, probes: system_call(name, way) }, true))
                .into())
        }
        HookSet::Fentry => {
            has(features.iterators, "the kernel's lists of buffers are not known")?;
            Ok(functions(Function::trampolines))
        }
        HookSet::Kprobe => {
            has(features.iterators, "the kernel's lists of buffers are not known")?;
            has(features.kprobes, "no kprobes; they need CONFIG_KPROBE_EVENTS")?;
            Ok(functions(Function::kprobes))
        }
    }
}

/// The groups of a set on functions, whose probes `of` gives, and whether something is lost without each.
fn functions(of: impl Fn(&Function) -> Vec<Probe>) -> Vec<(Group, bool)> {
    let alone = |it: &Function| (Group { name: it.name, is_needed: it.is_needed, probes: of(it) }, it.is_missed);
    let unix = Group { name: UNIX_SOCKETS, is_needed: false, probes: UNIX.iter().flat_map(&of).collect() };
    FUNCTIONS.iter().map(alone).chain([(unix, true)]).chain(UNIX_FILES.iter().map(alone)).collect()
}

impl Group {
    /// Whether it is of no use where Unix sockets cannot be read.
    fn is_of_unix_sockets(&self) -> bool {
        self.name == UNIX_SOCKETS || self.name == "close" || UNIX_FILES.iter().any(|it| it.name == self.name)
    }
}

fn system_call(call: &'static str, way: Way) -> Vec<Probe> {
    let enter = |program| Probe { program, point: Point::Enter(call) };
    let exit = |program| Probe { program, point: Point::Exit(call) };
    match way {
        Way::Sends(program) => vec![exit("exit_send"), enter(program)],
        Way::Receives(program) => vec![exit(program)],
        Way::Both(first, last) => vec![exit(last), enter(first)],
        Way::Ends(program) => vec![enter(program)],
    }
}

impl Function {
    fn trampolines(&self) -> Vec<Probe> {
        let (entry, exit) = self.trampolines;
        let exit = exit.map(|program| Probe { program, point: Point::FunctionExit(self.name) });
        let entry = entry.map(|program| Probe { program, point: Point::FunctionEntry(self.name) });
        exit.into_iter().chain(entry).collect()
    }

    fn kprobes(&self) -> Vec<Probe> {
        let (entry, exit) = self.kprobes;
        let programs = exit.into_iter().chain([entry]);
        programs.map(|program| Probe { program, point: Point::Kprobe(self.name) }).collect()
    }
}

#[cfg(test)]
mod tests;
