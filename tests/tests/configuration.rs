//! Guarantee: a configuration of Beyla is taken as it is, what it asks for and is not done is said, and the agent
//! observes what its rules select; a changed file takes effect while the agent runs, and a bad one changes nothing.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use coati_tests::{
    agent::Agent,
    http,
    process::{self, free_port},
    tools::{binaries, binary, workspace},
};
use rstest::rstest;

/// The port that the sample has a rule for, on an address that nobody else listens on.
const SAMPLE_PORT: ([u8; 4], u16) = ([127, 0, 0, 77], 11434);
/// A changed file is noticed within two seconds.
const RELOADED_WITHIN: Duration = Duration::from_secs(10);

/// Answers every request on `address` until the test ends.
fn serve(address: impl Into<SocketAddr>) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address.into())?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 1024];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        }
    });
    Ok(address)
}

fn ask(address: SocketAddr, path: &str, times: usize) -> Result<()> {
    for _ in 0..times {
        ensure!(http::get(&format!("http://{address}{path}"))?.status == 200);
    }
    Ok(())
}

fn fixture(name: &str) -> Result<String> {
    Ok(fs::read_to_string(workspace().join("agent/src/config/foreign/fixtures").join(name))?)
}

fn start(folder: &Path, file: &Path) -> Result<Agent> {
    let nobody = format!("http://127.0.0.1:{}", free_port()?);
    Agent::start(folder, &nobody, &["--config", &file.to_string_lossy(), "--print", "text"])
}

/// Waits for the agent to have said this.
fn wait_for_line(agent: &mut Agent, line: &str) -> Result<()> {
    agent.process.wait_for(line, RELOADED_WITHIN, |output| output.contains(line).then_some(()))
}

/// Waits until so many exchanges are over, and gives how many spans were made of them, and not made.
fn spans_of(agent: &Agent, exchanges: f64) -> Result<(f64, f64)> {
    let begin = Instant::now();
    loop {
        let spans = agent.metric("coati_agent_spans_total", &[])?;
        let sampled_out = agent.metric("coati_agent_spans_sampled_out_total", &[])?;
        if spans + sampled_out >= exchanges {
            return Ok((spans, sampled_out));
        }
        ensure!(begin.elapsed() < RELOADED_WITHIN, "{spans} + {sampled_out}:\n{}", agent.metrics()?);
        thread::sleep(Duration::from_millis(50));
    }
}

/// The process of this test serves and asks: both ends of each request are its.
#[test]
fn the_sample_of_beyla_runs_as_it_is() -> Result<()> {
    let folder = process::folder()?;
    let file = folder.path().join("beyla.yaml");
    fs::write(&file, fixture("beyla.yaml")?)?;
    let server = serve(SAMPLE_PORT)?;
    let mut agent = start(folder.path(), &file)?;
    for warning in ["beyla.yaml:15: ebpf.high_request_volume: not needed", "beyla.yaml:38: network: not supported"] {
        wait_for_line(&mut agent, warning)?;
    }

    // Its rule for port 11434 samples a tenth; both ends of a request are of one trace.
    ask(server, "/api/chat", 200)?;
    let (spans, sampled_out) = spans_of(&agent, 400.0)?;
    ensure!(spans > 0.0 && spans < 200.0, "{spans} spans, {sampled_out} sampled out");
    // Ignored paths make none.
    ask(server, "/healthz", 10)?;
    ask(server, "/internal/check", 10)?;
    let status = agent.stop()?;
    ensure!(status.code() == Some(0), "it ended with {status}:\n{}", agent.process.output());
    ensure!(!agent.process.output().contains("/healthz"), "{}", agent.process.output());
    Ok(())
}

#[test]
fn a_changed_file_takes_effect() -> Result<()> {
    let folder = process::folder()?;
    let file = folder.path().join("agent.yaml");
    let server = serve(([127, 0, 0, 1], 0))?;
    let select = |port: u16| format!("discovery:\n  instrument:\n    - open_ports: {port}\n      name: chosen\n");
    // A port that nobody listens on: nothing is observed.
    fs::write(&file, select(1))?;
    let mut agent = start(folder.path(), &file)?;
    ask(server, "/before", 20)?;
    fs::write(&file, format!("{}      exe: x\n", select(server.port())))?;
    wait_for_line(&mut agent, "agent.yaml:5: discovery.instrument[0].exe: unknown field `exe`")?;
    ensure!(agent.metric("coati_agent_spans_total", &[])? == 0.0, "{}", agent.process.output());

    fs::write(&file, format!("{}log_level: debug\n", select(server.port())))?;
    wait_for_line(&mut agent, "the configuration was read again, and is in force")?;
    wait_for_line(&mut agent, "what has changed in these needs a restart keys=\"log_level\"")?;
    ask(server, "/behind", 20)?;
    wait_for_line(&mut agent, "/behind")?;
    agent.stop()?;
    let output = agent.process.output();
    ensure!(output.contains("chosen") && output.contains("/behind") && !output.contains("/before"), "{output}");
    Ok(())
}

fn agent(arguments: &[&str], file: &Path) -> Result<Output> {
    let arguments = arguments.iter().map(|word| word.replace("FILE", &file.to_string_lossy()));
    Ok(Command::new(binary(&binaries(), "coati-agent")?).args(arguments).stdin(Stdio::null()).output()?)
}

#[rstest]
#[case::good("agent.yaml", "listen: 127.0.0.1:1\n", &["config", "check", "FILE"], 0, "FILE: fine", "")]
#[case::bad(
    "agent.yaml",
    "spans:\n  sampling: {ratio: 7}\n",
    &["config", "check", "FILE"],
    2,
    "",
    "coati-agent: FILE:2: spans.sampling.ratio: expected a number from 0 to 1, found `7`"
)]
#[case::missing("agent.yaml", "", &["config", "check", "FILE.gone"], 2, "", "FILE.gone: No such file or directory (os error 2)\n")]
#[case::no_command("agent.yaml", "", &["config"], 2, "", "coati-agent: config: expected `check ")]
#[case::printed(
    "agent.yaml",
    "export: {headers: {authorization: Bearer abc}}\n",
    &["config", "print", "FILE"],
    0,
    "authorization: \"***\"",
    ""
)]
#[case::schema("agent.yaml", "", &["config", "schema"], 0, "https://json-schema.org/draft/2020-12/schema", "")]
#[case::of_beyla(
    "beyla.yaml",
    "open_port: 8080\nprofile_port: 6060\n",
    &["config", "from-beyla", "FILE"],
    0,
    "- open_ports: \"8080\"",
    "warning: FILE:2: profile_port: not supported"
)]
#[case::of_alloy(
    "node.alloy",
    "beyla.ebpf \"a\" {\n  open_port = \"8080\"\n  output { }\n}\n",
    &["config", "from-alloy", "FILE"],
    0,
    "- open_ports: \"8080\"",
    ""
)]
fn config_commands(
    #[case] name: &str,
    #[case] content: &str,
    #[case] arguments: &[&str],
    #[case] code: i32,
    #[case] stdout: &str,
    #[case] stderr: &str,
) -> Result<()> {
    let folder = process::folder()?;
    let file = folder.path().join(name);
    fs::write(&file, content)?;
    let output = agent(arguments, &file)?;
    let expected = |text: &str| text.replace("FILE", &file.to_string_lossy());
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.code() == Some(code), "{}: {out}{err}", output.status);
    ensure!(out.contains(&expected(stdout)) && !out.contains("abc"), "{out}");
    ensure!(err.contains(&expected(stderr)) && stderr.is_empty() == err.is_empty(), "{err}");
    Ok(())
}
