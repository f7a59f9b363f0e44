use insta::assert_snapshot;

use super::*;
use crate::telemetry::{DropCause, Telemetry};

fn findings(trial: Trial, agent: Result<Agent, AgentError>) -> Findings {
    Findings {
        kernel: "Linux 6.1.0 x86_64".to_owned(),
        processors: 2,
        privileges: Privileges::of("CapEff:\t000001ffffffffff"),
        kept: "CAP_PERFMON CAP_SYS_PTRACE".to_owned(),
        types: Types::Usable(5 << 20, vec![]),
        wanted: None,
        trial,
        listen: "127.0.0.1:9400".parse().unwrap(),
        agent,
    }
}

fn refused() -> AgentError {
    AgentError::Ask { path: "/metrics", source: std::io::ErrorKind::ConnectionRefused.into() }
}

#[test]
fn a_node_where_all_is_well() {
    let off = vec![("fentry", "no function tcp_recvmsg".to_owned())];
    let trial = Trial::Attached(HookSet::Syscall, vec!["connections", "processes", "write", "read"], off);
    let report = report(&findings(trial, Err(refused())));
    assert!(report.works);
    assert_snapshot!(report.text, @r"
    kernel      Linux 6.1.0 x86_64, processors: 2
    privileges  all that are needed
                kept when programs are attached: CAP_PERFMON CAP_SYS_PTRACE
    types       /sys/kernel/btf/vmlinux, 5120 KiB
    hooks       syscall (the best were asked for; they were attached and taken out again)
                on: connections processes write read
                off: fentry, because no function tcp_recvmsg
    ring        4096 KiB, 65536 connections, 32768 threads
    agent       none that answers at 127.0.0.1:9400: no answer to GET /metrics: connection refused
    verdict     capture works here
    ");
}

#[test]
fn a_node_where_nothing_is() {
    let trial = Trial::Failed("this kernel lacks BPF ring buffers (Linux 5.8)".to_owned());
    let report = report(&Findings {
        privileges: Privileges::of("CapEff:\t0000000000000004"),
        kept: String::new(),
        types: Types::Unusable("No such file or directory (os error 2)".to_owned()),
        wanted: Some(HookSet::Fentry),
        ..findings(trial, Err(refused()))
    });
    assert!(!report.works);
    assert_snapshot!(report.text, @r"
    kernel      Linux 6.1.0 x86_64, processors: 2
    privileges  not all that are needed
                missing: CAP_BPF, for loading programs
                missing: CAP_PERFMON, for attaching them
                missing: CAP_SYS_PTRACE, for names of services of other users
                kept when programs are attached: none
    types       /sys/kernel/btf/vmlinux cannot be used: No such file or directory (os error 2)
    hooks       none (only fentry were asked for): this kernel lacks BPF ring buffers (Linux 5.8)
    ring        4096 KiB, 65536 connections, 32768 threads
    agent       none that answers at 127.0.0.1:9400: no answer to GET /metrics: connection refused
    verdict     capture does not work here
    ");
}

#[test]
fn an_agent_that_has_lost_something() {
    let telemetry = Telemetry::default();
    telemetry.exchanges.inc_by(1000);
    telemetry.spans.inc_by(990);
    telemetry.spans_exported.inc_by(980);
    telemetry.open_exchanges.set(3);
    telemetry.losses("ring_full_data").inc_by(7);
    telemetry.spans_dropped(DropCause::QueueFull).inc_by(10);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &telemetry.registry()).unwrap();
    let mut agent = Agent::read(&text);
    agent.ready = "ready".to_owned();
    let trial = Trial::Attached(HookSet::Fentry, vec!["connections"], vec![]);
    let report = report(&findings(trial, Ok(agent)));
    let of_agent: Vec<_> =
        report.text.lines().skip_while(|line| !line.starts_with("agent")).skip(1).map(str::trim_start).collect();
    assert_snapshot!(of_agent.join("\n"), @r"
    requests 1000, spans 990, delivered 980, open now 3
    lost: ring_full_data 7
    dropped: queue_full 10
    odd: nothing
    verdict     capture works here
    ");
}

/// On whatever machine the tests run: there is a verdict, and it is that of the trial.
#[test]
fn this_node_is_examined() {
    let config = Config { listen: "127.0.0.1:1".parse().unwrap(), ..Config::default() };
    let Report { text, works } = examine(&config);
    assert_eq!(works, text.contains("capture works here"), "{text}");
    assert_eq!(works, !text.contains("hooks       none"), "{text}");
    assert!(text.contains("none that answers at 127.0.0.1:1"), "{text}");
}
