//! Which programs to attach where, from what the kernel has.

use crate::kernel::features::Features;

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
}

impl Point {
    /// `category/name` of the tracepoint.
    pub fn tracepoint(&self) -> String {
        match self {
            Self::Enter(call) => format!("syscalls/sys_enter_{call}"),
            Self::Exit(call) => format!("syscalls/sys_exit_{call}"),
            Self::Raw(category, name) => format!("{category}/{name}"),
        }
    }
}

/// Probes that belong together: half of them would be worse than none.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Group {
    /// What it watches: a system call, or `connections`, `processes`.
    pub name: &'static str,
    /// In the order in which they must be attached.
    pub probes: Vec<Probe>,
}

/// What to attach and what not.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Plan {
    /// To be attached, in this order.
    pub on: Vec<Group>,
    /// Not to be, and why.
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
    /// No system call can be watched in one of the directions.
    #[error(
        "this kernel has tracepoints for none of the system calls that {direction} bytes; it needs CONFIG_FTRACE_SYSCALLS"
    )]
    NoSystemCalls {
        /// `send` or `receive`.
        direction: &'static str,
    },
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
}

/// Every system call that is watched.
const SYSTEM_CALLS: [(&str, Way); 10] = [
    ("write", Way::Sends("enter_send_buffer")),
    ("sendto", Way::Sends("enter_send_buffer")),
    ("writev", Way::Sends("enter_send_vector")),
    ("sendmsg", Way::Sends("enter_send_message")),
    ("sendfile64", Way::Sends("enter_send_file")),
    ("splice", Way::Both("enter_splice", "exit_splice")),
    ("read", Way::Receives("exit_receive_buffer")),
    ("recvfrom", Way::Receives("exit_receive_buffer_flags")),
    ("readv", Way::Receives("exit_receive_vector")),
    ("recvmsg", Way::Receives("exit_receive_message")),
];

const STATES: Probe = Probe { program: "socket_state", point: Point::Raw("sock", "inet_sock_set_state") };
const SOCKETS: Probe = Probe { program: "socket_gone", point: Point::Raw("tcp", "tcp_destroy_sock") };
const EXEC: Probe = Probe { program: "process_exec", point: Point::Raw("sched", "sched_process_exec") };
const EXIT: Probe = Probe { program: "process_exit", point: Point::Raw("sched", "sched_process_exit") };

/// Chooses the probes.
///
/// Ends are attached before beginnings: a connection that begins to be followed is seen to close, and a send that is
/// seen to be entered is seen to return.
pub fn plan(features: &Features) -> Result<Plan, PlanError> {
    let needs = [
        (features.type_information, "/sys/kernel/btf/vmlinux; it needs CONFIG_DEBUG_INFO_BTF"),
        (features.ring_buffer, "BPF ring buffers (Linux 5.8)"),
        (features.saved_registers, "the BPF helper bpf_task_pt_regs (Linux 5.15)"),
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
        let tracepoint = probe.point.tracepoint();
        if !features.tracepoints.contains(&tracepoint) {
            return Err(PlanError::NoTracepoint { tracepoint, tells });
        }
    }

    let mut plan = Plan {
        on: vec![
            Group { name: "connections", probes: vec![SOCKETS, STATES] },
            Group { name: "processes", probes: vec![EXIT, EXEC] },
        ],
        off: Vec::new(),
    };
    let (mut sends, mut receives) = (false, false);
    for (call, way) in SYSTEM_CALLS {
        let probes = probes(call, way);
        let missing = probes.iter().map(|probe| probe.point.tracepoint()).find(|it| !features.tracepoints.contains(it));
        if let Some(tracepoint) = missing {
            plan.off.push((call, format!("no tracepoint {tracepoint}")));
            continue;
        }
        sends |= matches!(way, Way::Sends(_));
        receives |= matches!(way, Way::Receives(_));
        plan.on.push(Group { name: call, probes });
    }
    match (sends, receives) {
        (true, true) => Ok(plan),
        (false, _) => Err(PlanError::NoSystemCalls { direction: "send" }),
        (true, false) => Err(PlanError::NoSystemCalls { direction: "receive" }),
    }
}

fn probes(call: &'static str, way: Way) -> Vec<Probe> {
    let enter = |program| Probe { program, point: Point::Enter(call) };
    let exit = |program| Probe { program, point: Point::Exit(call) };
    match way {
        Way::Sends(program) => vec![exit("exit_send"), enter(program)],
        Way::Receives(program) => vec![exit(program)],
        Way::Both(first, last) => vec![exit(last), enter(first)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn everything() -> Features {
        let calls = SYSTEM_CALLS.iter().flat_map(|&(call, way)| probes(call, way));
        let probes = calls.chain([STATES, SOCKETS, EXEC, EXIT]);
        Features {
            type_information: true,
            ring_buffer: true,
            saved_registers: true,
            tracepoints: probes.map(|probe| probe.point.tracepoint()).collect(),
        }
    }

    fn without(tracepoints: &[&str]) -> Features {
        let mut features = everything();
        features.tracepoints.retain(|it| !tracepoints.contains(&it.as_str()));
        features
    }

    #[test]
    fn a_kernel_with_everything_gets_everything() {
        let plan = plan(&everything()).unwrap();
        assert_eq!(plan.off, []);
        let lines: Vec<_> = plan
            .on
            .iter()
            .map(|group| {
                let probes = group.probes.iter().map(|it| format!(" {}@{}", it.program, it.point.tracepoint()));
                format!("{}:{}", group.name, probes.collect::<String>())
            })
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        connections: socket_gone@tcp/tcp_destroy_sock socket_state@sock/inet_sock_set_state
        processes: process_exit@sched/sched_process_exit process_exec@sched/sched_process_exec
        write: exit_send@syscalls/sys_exit_write enter_send_buffer@syscalls/sys_enter_write
        sendto: exit_send@syscalls/sys_exit_sendto enter_send_buffer@syscalls/sys_enter_sendto
        writev: exit_send@syscalls/sys_exit_writev enter_send_vector@syscalls/sys_enter_writev
        sendmsg: exit_send@syscalls/sys_exit_sendmsg enter_send_message@syscalls/sys_enter_sendmsg
        sendfile64: exit_send@syscalls/sys_exit_sendfile64 enter_send_file@syscalls/sys_enter_sendfile64
        splice: exit_splice@syscalls/sys_exit_splice enter_splice@syscalls/sys_enter_splice
        read: exit_receive_buffer@syscalls/sys_exit_read
        recvfrom: exit_receive_buffer_flags@syscalls/sys_exit_recvfrom
        readv: exit_receive_vector@syscalls/sys_exit_readv
        recvmsg: exit_receive_message@syscalls/sys_exit_recvmsg
        ");
    }

    #[rstest]
    #[case::type_information(Features { type_information: false, ..everything() }, "this kernel lacks /sys/kernel/btf/vmlinux; it needs CONFIG_DEBUG_INFO_BTF")]
    #[case::ring_buffer(Features { ring_buffer: false, ..everything() }, "this kernel lacks BPF ring buffers (Linux 5.8)")]
    #[case::registers(Features { saved_registers: false, ..everything() }, "this kernel lacks the BPF helper bpf_task_pt_regs (Linux 5.15)")]
    #[case::states(without(&["sock/inet_sock_set_state"]), "this kernel has no tracepoint sock/inet_sock_set_state, which tells when connections end")]
    #[case::exec(without(&["sched/sched_process_exec"]), "this kernel has no tracepoint sched/sched_process_exec, which tells which programs run")]
    fn what_is_needed_is_named(#[case] features: Features, #[case] message: &str) {
        assert_eq!(plan(&features).unwrap_err().to_string(), message);
    }

    /// Half of a pair: the whole call is off, and no other.
    #[rstest]
    #[case::entry("syscalls/sys_enter_writev", "writev")]
    #[case::return_of_a_send("syscalls/sys_exit_sendmsg", "sendmsg")]
    #[case::return_of_a_receive("syscalls/sys_exit_recvmsg", "recvmsg")]
    fn a_missing_tracepoint_costs_its_call_only(#[case] tracepoint: &str, #[case] call: &'static str) {
        let plan = plan(&without(&[tracepoint])).unwrap();
        assert_eq!(plan.off, [(call, format!("no tracepoint {tracepoint}"))]);
        assert_eq!(plan.on.len(), SYSTEM_CALLS.len() + 1);
        assert!(plan.on.iter().all(|group| group.name != call));
    }

    #[test]
    fn the_entry_of_a_receive_is_not_needed() {
        assert_eq!(plan(&without(&["syscalls/sys_enter_read"])).unwrap().off, []);
    }

    #[test]
    fn no_system_calls_at_all_is_an_error() {
        let mut features = everything();
        features.tracepoints.retain(|it| !it.starts_with("syscalls/"));
        assert_eq!(plan(&features).unwrap_err(), PlanError::NoSystemCalls { direction: "send" });
    }
}
