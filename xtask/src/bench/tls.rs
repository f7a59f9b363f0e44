//! What probes in a TLS library cost the server that calls it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::process::{Running, free_port};
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
    let server = nginx(&folder, port)?;
    let curl = |requests: usize| {
        let url = format!("https://127.0.0.1:{port}/n/[1-{requests}]");
        execute(Command::new(system("curl")?).args(["-sk", "--http1.1", "-o", "/dev/null", &url]))
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
    println!("each run: {} requests, two exchanges each", options.requests);
    print!("{}", columns(&["", "nginx, us CPU/request", "exchanges of the node"], &rows));
    Ok(())
}

/// One worker that answers a few bytes.
fn nginx(folder: &Path, port: u16) -> Result<Running> {
    let path = folder.display();
    let (key, certificate) = (format!("{path}/key.pem"), format!("{path}/certificate.pem"));
    let mut openssl = Command::new(system("openssl")?);
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    openssl.args(["-subj", "/CN=127.0.0.1", "-keyout", &key, "-out", &certificate]);
    execute(openssl.stderr(std::process::Stdio::null()))?;
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
