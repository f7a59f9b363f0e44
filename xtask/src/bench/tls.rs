//! What probes in a TLS library cost the server that calls it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::process::{Running, free_port};
use coati_tests::sample::go_program;
use coati_tests::tools::{system, target};

use super::agent::cpu_seconds;
use crate::commands::execute;
use crate::table::columns;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Requests of each run, on one keep-alive connection.
    #[arg(long, default_value_t = 5000)]
    requests: usize,
    /// Rounds; each has a run without an agent, one with `tls: off` and one with `tls: auto`.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Who answers: `nginx`, or `go`, which asks another such server each time, over the same protocol.
    #[arg(long, value_parser = ["nginx", "go"], default_value = "nginx")]
    server: String,
    /// The protocol of `go`.
    #[arg(long, value_parser = ["http", "https1", "https2"], default_value = "https2")]
    protocol: String,
    /// Folder of binaries that were built before; without, they are built for release.
    #[arg(long)]
    pub(super) binaries: Option<PathBuf>,
}

/// How long nginx may take until it listens.
const STARTS_WITHIN: Duration = Duration::from_secs(10);
/// What the agent may take to see the libraries of processes that run already, and to read its last records.
const SETTLES: Duration = Duration::from_secs(2);

pub(crate) fn run(options: &Options, binaries: &Path) -> Result<()> {
    let folder = target().join("bench/tls");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let port = free_port()?;
    let is_go = options.server == "go";
    let (scheme, version) = match options.protocol.as_str() {
        "http" if is_go => ("http", "--http1.1"),
        "https2" if is_go => ("https", "--http2"),
        _ => ("https", "--http1.1"),
    };
    certificate(&folder)?;
    let (server, _asked) = if is_go {
        let asked_port = free_port()?;
        let asked = go(&folder, asked_port, &options.protocol, &[])?;
        let next = format!("{scheme}://127.0.0.1:{asked_port}");
        (go(&folder, port, &options.protocol, &["-next", &next])?, Some(asked))
    } else {
        (nginx(&folder, port)?, None)
    };
    let curl = |requests: usize| {
        let url = format!("{scheme}://127.0.0.1:{port}/n/[1-{requests}]");
        execute(Command::new(system("curl")?).args(["-sk", version, "-o", "/dev/null", &url]))
    };
    curl(options.requests / 10)?;

    let backend = Backend::start_from(binaries, &folder, &[])?;
    let endpoint = format!("http://{}", backend.grpc);
    let mut rows = Vec::new();
    for _ in 0..options.rounds {
        for tls in [None, Some("off"), Some("auto")] {
            let agent = tls.map(|tls| {
                let file = folder.join("agent.yaml");
                fs::write(&file, format!("tls: {tls}\n"))?;
                Agent::start_from(binaries, &folder, &endpoint, &["--config", &file.to_string_lossy()])
            });
            let agent = agent.transpose()?;
            std::thread::sleep(SETTLES);
            let before = cpu_seconds(server.id())?;
            curl(options.requests)?;
            let cost = cpu_seconds(server.id())? - before;
            std::thread::sleep(SETTLES);
            let captured = agent.as_ref().map(|agent| agent.metric("coati_agent_exchanges_total", &[])).transpose()?;
            rows.push(vec![
                tls.map_or_else(|| "no agent".to_owned(), |tls| format!("tls: {tls}")),
                format!("{:.1}", cost / options.requests as f64 * 1e6),
                captured.map_or_else(String::new, |captured| format!("{captured:.0}")),
            ]);
        }
    }
    println!("each run: {} requests, {} exchanges each", options.requests, if is_go { 4 } else { 2 });
    let head = format!("{}, us CPU/request", options.server);
    print!("{}", columns(&["", &head, "exchanges of the node"], &rows));
    Ok(())
}

/// The server of the tests that is written in Go.
fn go(folder: &Path, port: u16, protocol: &str, arguments: &[&str]) -> Result<Running> {
    let mut command = Command::new(go_program("chain", false)?);
    command.args(["-listen", &format!("127.0.0.1:{port}")]).args(arguments);
    if protocol != "http" {
        command.arg("-certificate").arg(folder.join("certificate.pem")).arg("-key").arg(folder.join("key.pem"));
    }
    if protocol != "https2" {
        command.arg("-http1");
    }
    let mut server = Running::start(&format!("go-{port}"), folder, &mut command)?;
    server.wait_for_port(([127, 0, 0, 1], port).into(), STARTS_WITHIN)?;
    Ok(server)
}

fn certificate(folder: &Path) -> Result<()> {
    let path = folder.display();
    let (key, certificate) = (format!("{path}/key.pem"), format!("{path}/certificate.pem"));
    let mut openssl = Command::new(system("openssl")?);
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-subj", "/CN=127.0.0.1", "-keyout", &key, "-out", &certificate]);
    execute(openssl.stderr(std::process::Stdio::null()))
}

/// One worker that answers a few bytes.
fn nginx(folder: &Path, port: u16) -> Result<Running> {
    let path = folder.display();
    let (key, certificate) = (format!("{path}/key.pem"), format!("{path}/certificate.pem"));
    let configuration = format!(
        "daemon off; master_process off; pid {path}/pid; error_log stderr error;\nevents {{ }}\n\
         http {{ access_log off; keepalive_requests 1000000; client_body_temp_path {path}/b; proxy_temp_path {path}/p;\n\
         fastcgi_temp_path {path}/f; uwsgi_temp_path {path}/u; scgi_temp_path {path}/s;\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {key};\n\
         location / {{ return 200 hello; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration)?;
    let mut server = Running::start("nginx", folder, Command::new(system("nginx")?).arg("-c").arg(&file))?;
    server.wait_for_port(([127, 0, 0, 1], port).into(), STARTS_WITHIN)?;
    Ok(server)
}
