use super::*;
use crate::kernel::features;
use rstest::rstest;
use std::collections::BTreeMap;

fn everything() -> Features {
    let calls = SYSTEM_CALLS.iter().flat_map(|&(call, way, _)| system_call(call, way));
    let probes = calls.chain([STATES, SOCKETS, EXEC, EXIT]);
    Features {
        type_information: true,
        ring_buffer: true,
        saved_registers: true,
        tracepoints: probes.filter_map(|probe| probe.point.tracepoint()).collect(),
        functions: features::FUNCTIONS.into(),
        iterators: true,
        unix_sockets: true,
        kprobes: true,
        uprobes: true,
        refused: BTreeMap::new(),
    }
}

fn without_tracepoints(tracepoints: &[&str]) -> Features {
    let mut features = everything();
    features.tracepoints.retain(|it| !tracepoints.contains(&it.as_str()));
    features
}

fn without_functions(functions: &[&str]) -> Features {
    let mut features = everything();
    features.functions.retain(|it| !functions.contains(it));
    features
}

fn refusing(sets: &[HookSet]) -> Features {
    let refused = sets.iter().map(|&set| (set, "not permitted".to_owned()));
    Features { refused: refused.collect(), ..everything() }
}

fn text(plan: &Plan) -> String {
    let groups = plan.base.iter().chain(&plan.on);
    let lines = groups.map(|group| {
        let probes = group.probes.iter().map(|Probe { program, point }| match (point, point.tracepoint()) {
            (_, Some(tracepoint)) => format!(" {program}@{tracepoint}"),
            (Point::FunctionEntry(name) | Point::FunctionExit(name) | Point::Kprobe(name), _) => {
                format!(" {program}@{name}")
            }
            _ => unreachable!(),
        });
        format!("{}{}:{}", group.name, if group.is_needed { "" } else { "?" }, probes.collect::<String>())
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_best_hooks_are_trampolines() {
    let plan = plan(&everything(), None).unwrap();
    assert_eq!((plan.hooks, plan.off.as_slice()), (HookSet::Fentry, [].as_slice()));
    insta::assert_snapshot!(text(&plan), @"
    connections: socket_gone@tcp/tcp_destroy_sock socket_state@sock/inet_sock_set_state
    processes: process_exit@sched/sched_process_exit process_exec@sched/sched_process_exec
    tcp_sendmsg: fexit_tcp_sendmsg@tcp_sendmsg fentry_tcp_sendmsg@tcp_sendmsg
    tcp_sendpage?: fexit_tcp_sendpage@tcp_sendpage fentry_tcp_sendpage@tcp_sendpage
    tcp_recvmsg: fexit_tcp_recvmsg@tcp_recvmsg
    tcp_splice_read?: fexit_tcp_splice_read@tcp_splice_read
    unix_sockets?: fentry_unix_release@unix_release fexit_unix_sendmsg@unix_stream_sendmsg fentry_unix_sendmsg@unix_stream_sendmsg fexit_unix_recvmsg@unix_stream_recvmsg
    unix_stream_sendpage?: fexit_unix_sendpage@unix_stream_sendpage fentry_unix_sendpage@unix_stream_sendpage
    unix_stream_splice_read?: fexit_unix_splice_read@unix_stream_splice_read
    ");
}

#[test]
fn kprobes_can_be_wanted() {
    let plan = plan(&everything(), Some(HookSet::Kprobe)).unwrap();
    assert_eq!((plan.hooks, plan.off.as_slice()), (HookSet::Kprobe, [].as_slice()));
    insta::assert_snapshot!(text(&plan), @"
    connections: socket_gone@tcp/tcp_destroy_sock socket_state@sock/inet_sock_set_state
    processes: process_exit@sched/sched_process_exit process_exec@sched/sched_process_exec
    tcp_sendmsg: kretprobe_send@tcp_sendmsg kprobe_tcp_sendmsg@tcp_sendmsg
    tcp_sendpage?: kretprobe_send@tcp_sendpage kprobe_tcp_sendpage@tcp_sendpage
    tcp_recvmsg: kretprobe_receive@tcp_recvmsg kprobe_tcp_recvmsg@tcp_recvmsg
    tcp_splice_read?: kretprobe_receive@tcp_splice_read kprobe_tcp_splice_read@tcp_splice_read
    unix_sockets?: kprobe_unix_release@unix_release kretprobe_unix_send@unix_stream_sendmsg kprobe_unix_sendmsg@unix_stream_sendmsg kretprobe_unix_receive@unix_stream_recvmsg kprobe_unix_recvmsg@unix_stream_recvmsg
    unix_stream_sendpage?: kretprobe_unix_send@unix_stream_sendpage kprobe_unix_sendpage@unix_stream_sendpage
    unix_stream_splice_read?: kretprobe_unix_receive@unix_stream_splice_read kprobe_unix_splice_read@unix_stream_splice_read
    ");
}

#[test]
fn system_calls_can_be_wanted() {
    let plan = plan(&everything(), Some(HookSet::Syscall)).unwrap();
    assert_eq!((plan.hooks, plan.off.as_slice()), (HookSet::Syscall, [].as_slice()));
    insta::assert_snapshot!(text(&plan), @"
    connections: socket_gone@tcp/tcp_destroy_sock socket_state@sock/inet_sock_set_state
    processes: process_exit@sched/sched_process_exit process_exec@sched/sched_process_exec
    write: exit_send@syscalls/sys_exit_write enter_send_buffer@syscalls/sys_enter_write
    sendto: exit_send@syscalls/sys_exit_sendto enter_send_buffer@syscalls/sys_enter_sendto
    writev?: exit_send@syscalls/sys_exit_writev enter_send_vector@syscalls/sys_enter_writev
    sendmsg?: exit_send@syscalls/sys_exit_sendmsg enter_send_message@syscalls/sys_enter_sendmsg
    sendfile64?: exit_send@syscalls/sys_exit_sendfile64 enter_send_file@syscalls/sys_enter_sendfile64
    splice?: exit_splice@syscalls/sys_exit_splice enter_splice@syscalls/sys_enter_splice
    read: exit_receive_buffer@syscalls/sys_exit_read
    recvfrom: exit_receive_buffer_flags@syscalls/sys_exit_recvfrom
    readv?: exit_receive_vector@syscalls/sys_exit_readv
    recvmsg?: exit_receive_message@syscalls/sys_exit_recvmsg
    close?: enter_close@syscalls/sys_enter_close
    ");
}

/// What a kernel has, and which hooks it gets; `off` says why not the better ones.
#[rstest]
#[case::everything(everything(), HookSet::Fentry, "")]
#[case::trampolines_refused(refusing(&[HookSet::Fentry]), HookSet::Syscall, "fentry (not permitted)")]
#[case::system_calls_refused_too(
    refusing(&[HookSet::Fentry, HookSet::Syscall]),
    HookSet::Kprobe,
    "fentry (not permitted), syscall (not permitted)"
)]
#[case::no_lists_of_buffers(
    Features { iterators: false, ..everything() },
    HookSet::Syscall,
    "fentry (the kernel's lists of buffers are not known)"
)]
#[case::tcp_merged_into_others(without_functions(&["tcp_recvmsg"]), HookSet::Syscall, "fentry (no function tcp_recvmsg)")]
#[case::no_kprobes(Features { kprobes: false, ..everything() }, HookSet::Fentry, "")]
#[case::no_saved_registers(Features { saved_registers: false, ..everything() }, HookSet::Fentry, "")]
#[case::no_saved_registers_nor_trampolines(
    Features { saved_registers: false, ..refusing(&[HookSet::Fentry]) },
    HookSet::Kprobe,
    "fentry (not permitted), syscall (no BPF helper bpf_task_pt_regs (Linux 5.15))"
)]
#[case::since_6_5(without_functions(&["tcp_sendpage"]), HookSet::Fentry, "")]
#[case::unix_sockets_of_a_module(
    Features { unix_sockets: false, ..everything() },
    HookSet::Fentry,
    "unix_sockets (the kernel's Unix sockets are not known)"
)]
#[case::unix_functions_merged_into_others(
    without_functions(&["unix_release"]),
    HookSet::Fentry,
    "unix_sockets (no function unix_release)"
)]
#[case::no_splice(
    without_functions(&["tcp_splice_read"]),
    HookSet::Fentry,
    "tcp_splice_read (no function tcp_splice_read)"
)]
#[case::part_of_the_system_calls(
    Features { iterators: false, ..without_tracepoints(&["syscalls/sys_enter_writev"]) },
    HookSet::Syscall,
    "fentry (the kernel's lists of buffers are not known), writev (no tracepoint syscalls/sys_enter_writev)"
)]
fn a_kernel_gets_the_best_it_has(#[case] features: Features, #[case] hooks: HookSet, #[case] off: &str) {
    let plan = plan(&features, None).unwrap();
    assert_eq!((plan.hooks, list(&plan.off).as_str()), (hooks, off));
}

#[rstest]
#[case::type_information(Features { type_information: false, ..everything() }, "this kernel lacks /sys/kernel/btf/vmlinux; it needs CONFIG_DEBUG_INFO_BTF")]
#[case::ring_buffer(Features { ring_buffer: false, ..everything() }, "this kernel lacks BPF ring buffers (Linux 5.8)")]
#[case::states(without_tracepoints(&["sock/inet_sock_set_state"]), "this kernel has no tracepoint sock/inet_sock_set_state, which tells when connections end")]
#[case::exec(without_tracepoints(&["sched/sched_process_exec"]), "this kernel has no tracepoint sched/sched_process_exec, which tells which programs run")]
#[case::no_hooks(
    Features { iterators: false, ..without_tracepoints(&["syscalls/sys_exit_read"]) },
    "this kernel has no hooks that see bytes: fentry (the kernel's lists of buffers are not known), syscall (no \
     tracepoint syscalls/sys_exit_read), kprobe (the kernel's lists of buffers are not known)"
)]
fn what_is_needed_is_named(#[case] features: Features, #[case] message: &str) {
    assert_eq!(plan(&features, None).unwrap_err().to_string(), message);
}

/// What is asked for is used, or nothing.
#[rstest]
#[case::refused(refusing(&[HookSet::Fentry]), HookSet::Fentry, "fentry (not permitted)")]
#[case::no_kprobes(
    Features { kprobes: false, ..everything() },
    HookSet::Kprobe,
    "kprobe (no kprobes; they need CONFIG_KPROBE_EVENTS)"
)]
#[case::no_system_calls(
    without_tracepoints(&["syscalls/sys_exit_sendto"]),
    HookSet::Syscall,
    "syscall (no tracepoint syscalls/sys_exit_sendto)"
)]
fn no_other_hooks_than_wanted_are_used(#[case] features: Features, #[case] wanted: HookSet, #[case] why: &str) {
    let error = plan(&features, Some(wanted)).unwrap_err();
    assert_eq!(error.to_string(), format!("this kernel has no hooks that see bytes: {why}"));
}

/// Half of a pair: the whole call is off, and no other.
#[rstest]
#[case::entry("syscalls/sys_enter_writev", "writev")]
#[case::return_of_a_send("syscalls/sys_exit_sendmsg", "sendmsg")]
#[case::return_of_a_receive("syscalls/sys_exit_recvmsg", "recvmsg")]
fn a_missing_tracepoint_costs_its_call_only(#[case] tracepoint: &str, #[case] call: &'static str) {
    let plan = plan(&without_tracepoints(&[tracepoint]), Some(HookSet::Syscall)).unwrap();
    assert_eq!(plan.off, [(call, format!("no tracepoint {tracepoint}"))]);
    assert_eq!(plan.on.len(), SYSTEM_CALLS.len() - 1);
    assert!(plan.on.iter().all(|group| group.name != call));
}

#[test]
fn the_entry_of_a_receive_is_not_needed() {
    let features = without_tracepoints(&["syscalls/sys_enter_read"]);
    assert_eq!(plan(&features, Some(HookSet::Syscall)).unwrap().off, []);
}

#[test]
fn tls_libraries_take_uprobes() {
    let group = tls(&everything()).unwrap();
    assert_eq!((group.name, group.is_needed, group.probes.len()), ("tls", false, TLS.len()));
    let without = Features { uprobes: false, ..everything() };
    assert_eq!(tls(&without).unwrap_err(), "no uprobes; they need CONFIG_UPROBE_EVENTS");
}
