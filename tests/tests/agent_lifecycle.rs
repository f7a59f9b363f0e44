//! Guarantee: the agent starts or says in one line why not, waits for a backend that is not there, tells how it is, and
//! on SIGTERM hands over everything that it captured and ends within five seconds.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::http;
use coati_tests::load::{self, Plan};
use coati_tests::process::{self, free_port};
use coati_tests::sample::{Sample, Server};
use coati_tests::tools::{binaries, binary};
use rstest::rstest;

/// How long a span may take from the end of its exchange until it is found.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

/// Sends requests to the Go server, at 1,000/s.
fn send(sample: &Sample, requests: usize) -> Result<()> {
    let address = sample.address(Server::Go);
    load::run(&Plan {
        address,
        paths: vec!["/stock/1".to_owned()],
        requests,
        rate: 1000.0,
        connections: 4,
        keep_alive: true,
    })?;
    Ok(())
}

/// TraceQL for the spans of the Go server.
fn server_spans(sample: &Sample) -> String {
    let (service, port) = (Server::Go.service_name(), sample.address(Server::Go).port());
    format!("{{ kind = server && resource.service.name = \"{service}\" && span.server.port = {port} }}")
}

#[test]
fn sigterm_hands_over_everything_and_ends_well_within_five_seconds() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    send(&sample, 1000)?;
    let begin = Instant::now();
    let status = agent.stop()?;
    let taken = begin.elapsed();
    ensure!(status.code() == Some(0), "it ended with {status}:\n{}", agent.process.output());
    ensure!(taken < Duration::from_secs(5), "it took {taken:?}");
    let found = backend.count(&server_spans(&sample))?;
    ensure!(found == 1000, "{found} of 1000 spans were handed over:\n{}", agent.process.output());
    Ok(())
}

/// Also with nobody to hand anything to, and while it tries to.
#[test]
fn sigterm_ends_it_in_time_without_a_backend() -> Result<()> {
    let folder = process::folder()?;
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;
    let mut agent = Agent::start(folder.path(), &format!("http://127.0.0.1:{}", free_port()?), &[])?;
    send(&sample, 100)?;
    let begin = Instant::now();
    let status = agent.stop()?;
    let taken = begin.elapsed();
    ensure!(status.code() == Some(0), "it ended with {status}:\n{}", agent.process.output());
    ensure!(taken < Duration::from_secs(5), "it took {taken:?}");
    Ok(())
}

#[rstest]
#[case::unknown_flag(&["--bogus"], "", &["--bogus"])]
#[case::bad_address(&["--listen", "nowhere"], "", &["--listen", "nowhere"])]
#[case::bad_protocol(&["--otlp-protocol", "carrier-pigeon"], "", &["--otlp-protocol", "carrier-pigeon"])]
#[case::bad_hooks(&["--hooks", "wishes"], "", &["--hooks", "wishes"])]
#[case::bad_format(&["--print", "xml"], "", &["--print", "xml"])]
#[case::no_value(&["--listen"], "", &["--listen"])]
#[case::no_such_file(&["--config", "/nonexistent/agent.yaml"], "", &["/nonexistent/agent.yaml"])]
#[case::unknown_key(&[], "log_level: info\nlog_levle: warn\n", &["FILE:2", "log_levle"])]
#[case::unknown_key_in_a_section(&[], "export:\n  endpoint: http://127.0.0.1:1\n  protocoll: grpc\n", &["FILE:3", "protocoll"])]
#[case::bad_value(&[], "\nexport:\n  protocol: carrier-pigeon\n", &["FILE:3", "export.protocol", "carrier-pigeon"])]
#[case::wrong_type(&[], "listen: [1]\n", &["FILE:1", "listen"])]
#[case::not_yaml(&[], "listen: 127.0.0.1:1\n  - [unclosed\n", &["FILE:"])]
fn a_wrong_configuration_is_one_line_and_exit_code_two(
    #[case] arguments: &[&str],
    #[case] content: &str,
    #[case] says: &[&str],
) -> Result<()> {
    let folder = process::folder()?;
    let file = folder.path().join("agent.yaml");
    let mut command = Command::new(binary(&binaries(), "coati-agent")?);
    command.args(arguments).stdin(Stdio::null());
    if !content.is_empty() {
        fs::write(&file, content)?;
        command.arg("--config").arg(&file);
    }
    let begin = Instant::now();
    let output = command.output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(2), "{} instead of exit code 2:\n{text}", output.status);
    ensure!(text.trim().lines().count() == 1, "not one line:\n{text}");
    for word in says {
        let word = word.replace("FILE", &file.to_string_lossy());
        ensure!(text.contains(&word), "does not say {word:?}: {text}");
    }
    ensure!(begin.elapsed() < Duration::from_secs(2), "it took {:?}", begin.elapsed());
    Ok(())
}

#[test]
fn a_port_in_use_is_one_line() -> Result<()> {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, free_port()?))?;
    let address = taken.local_addr()?.to_string();
    let output = Command::new(binary(&binaries(), "coati-agent")?)
        .args(["--listen", &address, "--otlp-endpoint", &format!("http://127.0.0.1:{}", free_port()?)])
        .stdin(Stdio::null())
        .output()?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(1), "{} instead of exit code 1:\n{text}", output.status);
    let lines: Vec<_> = text.lines().filter(|line| !line.is_empty() && !line.contains("INFO")).collect();
    ensure!(lines.len() == 1 && text.contains(&address), "not one line with {address}:\n{text}");
    Ok(())
}

/// What waits on disk outlives the agent.
#[test]
fn an_agent_that_is_killed_in_an_outage_loses_nothing_that_was_queued() -> Result<()> {
    let folder = process::folder()?;
    let addresses: [SocketAddr; 3] =
        [free_port()?, free_port()?, free_port()?].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let [_, grpc, _] = addresses;
    let endpoint = format!("http://{grpc}");
    let file = folder.path().join("agent.yaml");
    fs::write(&file, format!("export:\n  queue:\n    directory: {}\n", folder.path().join("queue").display()))?;
    let config = file.to_string_lossy().into_owned();
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;

    let mut queued = 0.0;
    for _kill in 0..2 {
        let mut agent = Agent::start(folder.path(), &endpoint, &["--config", &config])?;
        send(&sample, 300)?;
        // Both ends of each request.
        queued += 600.0;
        let begin = Instant::now();
        while agent.metric("coati_agent_export_disk_spans", &[])? < queued {
            ensure!(begin.elapsed() < ARRIVES_WITHIN, "{queued} spans are not on disk:\n{}", agent.metrics()?);
        }
        agent.process.kill()?;
    }
    let backend = Backend::start_at(&binaries(), folder.path(), &[], addresses)?;
    let mut agent = Agent::start(folder.path(), &endpoint, &["--config", &config])?;
    let found = backend.wait_for_count(&server_spans(&sample), 600, Duration::from_secs(35))?;
    ensure!(found == 600, "{found} of 600 spans came:\n{}", agent.metrics()?);
    ensure!(agent.stop()?.code() == Some(0), "{}", agent.process.output());
    ensure!(backend.count(&server_spans(&sample))? == 600, "spans came twice");
    Ok(())
}

#[test]
fn spans_wait_for_a_backend_that_comes_later() -> Result<()> {
    let folder = process::folder()?;
    let addresses: [SocketAddr; 3] =
        [free_port()?, free_port()?, free_port()?].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let [_, grpc, _] = addresses;
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;
    let mut agent = Agent::start(folder.path(), &format!("http://{grpc}"), &[])?;
    send(&sample, 300)?;
    // Both ends of each request wait.
    let begin = Instant::now();
    while agent.metric("coati_agent_export_queue_length", &[])? < 600.0 {
        ensure!(begin.elapsed() < ARRIVES_WITHIN, "600 spans do not wait:\n{}", agent.metrics()?);
    }
    ensure!(agent.metric("coati_agent_spans_exported_total", &[])? == 0.0, "exported to nobody");

    let backend = Backend::start_at(&binaries(), folder.path(), &[], addresses)?;
    let found = backend.wait_for_count(&server_spans(&sample), 300, Duration::from_secs(35))?;
    ensure!(found == 300, "{found} of 300 spans came:\n{}", agent.metrics()?);
    let metrics = agent.metrics()?;
    let sum = |name: &str, labels: &[&str]| coati_tests::agent::sum(&metrics, name, labels);
    ensure!(sum("coati_agent_spans_exported_total", &[]) >= 600.0, "{metrics}");
    ensure!(sum("coati_agent_spans_dropped_total", &[]) == 0.0, "{metrics}");
    ensure!(sum("coati_agent_export_requests_total", &["outcome=\"retried\""]) >= 1.0, "{metrics}");
    ensure!(agent.stop()?.code() == Some(0), "{}", agent.process.output());
    ensure!(backend.count(&server_spans(&sample))? == 300, "spans came twice");
    Ok(())
}

#[test]
fn it_tells_how_it_is() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    for path in ["/healthz", "/readyz"] {
        let answer = http::get(&format!("http://{}{path}", agent.listen))?;
        ensure!(answer.status == 200, "{path}: {} {}", answer.status, answer.text());
    }
    let metrics = agent.metrics()?;
    for name in [
        "coati_agent_records_total",
        "coati_agent_losses_total",
        "coati_agent_parse_failures_total",
        "coati_agent_spans_total",
        "coati_agent_spans_exported_total",
        "coati_agent_spans_dropped_total",
        "coati_agent_export_queue_length",
        "process_resident_memory_bytes",
    ] {
        ensure!(metrics.lines().any(|line| line.starts_with(name)), "no {name}:\n{metrics}");
    }
    // Every cause is there from the start, so that an alert on it can be tried.
    for cause in ["ring_full_begin", "connections_full", "calls_full", "payload_unreadable"] {
        ensure!(metrics.contains(&format!("coati_agent_losses_total{{cause=\"{cause}\"}} 0")), "{metrics}");
    }
    ensure!(http::get(&format!("http://{}/nothing", agent.listen))?.status == 404, "/nothing is found");
    Ok(())
}

#[rstest]
#[case::grpc("grpc")]
#[case::http_protobuf("http/protobuf")]
fn it_captures_again_after_a_restart(#[case] protocol: &str) -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;
    let endpoint = if protocol == "grpc" { backend.grpc } else { backend.otlp_http };
    for round in 1..=2 {
        let mut agent = Agent::start(folder.path(), &format!("http://{endpoint}"), &["--otlp-protocol", protocol])?;
        send(&sample, 200)?;
        let found = backend.wait_for_count(&server_spans(&sample), 200 * round, ARRIVES_WITHIN)?;
        ensure!(found == 200 * round, "{found} of {} spans:\n{}", 200 * round, agent.process.output());
        // The second time without a chance to clean up.
        if round == 1 {
            agent.process.kill()?;
        } else {
            ensure!(agent.stop()?.code() == Some(0), "{}", agent.process.output());
        }
    }
    Ok(())
}
