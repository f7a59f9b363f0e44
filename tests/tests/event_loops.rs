//! Guarantee: in programs that answer many requests at once on one thread, the calls of a request are below that request.
//!
//! Each request has a number of its own, which is passed on in its path, 64 at once: so a link that is wrong is seen.

#![expect(clippy::print_stdout, reason = "how many links there are is worth a line")]

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::asking;
use coati_tests::backend::Backend;
use coati_tests::certificate::certificate;
use coati_tests::process::{self, Running, free_port};
use coati_tests::sample::go_program;
use coati_tests::seen::{Seen, spans_of};
use coati_tests::tools::{system, workspace};

const REQUESTS: usize = 100;
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// Requests with a path of their own.
#[derive(Clone, Copy, Debug)]
struct Case {
    path: &'static str,
    is_tls: bool,
    is_http1: bool,
    /// Calls that each makes at least, and how many of them arrive at the server at the end.
    calls: usize,
    served: usize,
    /// How many of a hundred calls are linked; none is linked wrongly.
    linked: usize,
}

impl Case {
    const fn new(path: &'static str, [calls, served]: [usize; 2], linked: usize) -> Self {
        Self { path, is_tls: false, is_http1: true, calls, served, linked }
    }
}

const NGINX: [Case; 6] = [
    // Over connections that are kept, and new ones.
    Case::new("plain", [1, 1], 99),
    // A subrequest asks first whether it may, and some wait for their turn.
    Case::new("guarded", [2, 2], 99),
    // Half of them are sent to a server that closes the connection, and then to another one.
    Case::new("retried", [1, 1], 99),
    // Asked by HTTPS, from one nginx to the next.
    Case::new("secure", [2, 1], 99),
    Case { is_tls: true, ..Case::new("encrypted", [1, 1], 99) },
    // All on one connection.
    Case { is_tls: true, is_http1: false, ..Case::new("streams", [1, 1], 99) },
];

const NODE: [Case; 9] = [
    // Over connections that are kept, and new ones.
    Case::new("agent", [1, 1], 99),
    Case::new("fetch", [1, 1], 99),
    Case { is_tls: true, ..Case::new("secure", [1, 1], 99) },
    // One after the other: over a connection that is free again, another one, or a new one.
    // While others wait for new connections it is not certain whose turn it is.
    Case::new("twice", [2, 2], 70),
    Case::new("awaits", [3, 3], 60),
    Case::new("fetches", [3, 3], 34),
    // Most wait for a connection that another request has: they are sent when that is answered.
    Case::new("few", [1, 1], 0),
    // All wait for the same answer first, and nobody knows which of them goes on.
    Case::new("shared", [1, 1], 0),
    // What is done later is not known.
    Case::new("immediate", [1, 1], 0),
];

#[test]
fn calls_of_nginx_are_below_their_requests() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let (_back, back) = server(folder.path())?;
    let (_nginx, plain, tls) = nginx(folder.path(), back)?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    // It is looked into when it asks.
    ask(NGINX[0], plain, "first", 1)?;
    let is_probed = |output: &str| (probed(output, "/sbin/nginx") == 1).then_some(());
    agent.process.wait_for("the probe in nginx", STARTS_WITHIN, is_probed)?;
    for case in NGINX {
        ask(case, if case.is_tls { tls } else { plain }, case.path, REQUESTS)?;
    }
    wait(&backend, &NGINX)?;
    for case in NGINX {
        assert_linked(case, &spans_of(&backend, &with_path(case, ""))?, "nginx")?;
    }
    Ok(())
}

#[test]
fn calls_of_node_are_below_their_requests() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let (_back, back) = server(folder.path())?;
    let (_node, plain, tls) = node(folder.path(), back)?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    // It is looked into when it asks.
    ask(NODE[0], plain, "agent", 1)?;
    // The executable has a TLS library, too, which was found before; or both are in libraries of their own.
    let is_probed = |output: &str| (probed(output, "/node") == 2 || probed(output, "/libnode.so") == 1).then_some(());
    agent.process.wait_for("the probes in Node", STARTS_WITHIN, is_probed)?;
    for case in NODE {
        ask(case, if case.is_tls { tls } else { plain }, case.path, REQUESTS)?;
    }
    wait(&backend, &NODE)?;
    for case in NODE {
        assert_linked(case, &spans_of(&backend, &with_path(case, ""))?, "asks")?;
    }
    Ok(())
}

/// How often the agent has put probes into a file whose path ends so, or goes on with a version.
fn probed(output: &str, path: &str) -> usize {
    let is_it = |line: &&str| {
        let rest = line.split_once("probes are in a library").and_then(|(_, rest)| rest.split_once(path));
        rest.is_some_and(|(_, rest)| rest.starts_with(['"', '.']))
    };
    output.lines().filter(is_it).count()
}

/// Until the spans of the server at the end are there.
fn wait(backend: &Backend, cases: &[Case]) -> Result<()> {
    for case in cases {
        let all = (case.served * REQUESTS) as u64;
        backend.wait_for_count(&with_path(*case, "chain-stripped"), all, Duration::from_secs(10))?;
    }
    Ok(())
}

/// The requests of a case that services have answered whose names begin so.
fn with_path(case: Case, service: &str) -> String {
    format!(
        "{{ kind = server && resource.service.name =~ `{service}.*` && span.url.path =~ `(/auth)?/{}/.*` }}",
        case.path
    )
}

/// Every call of the service is below the request with its number, or has no parent.
fn assert_linked(case: Case, spans: &[Seen], service: &str) -> Result<()> {
    let by_id: BTreeMap<&str, &Seen> = spans.iter().map(|span| (span.span_id.as_str(), span)).collect();
    let number = |span: &Seen| span.path().rsplit('/').next().unwrap_or_default().to_owned();
    let calls: Vec<_> = spans.iter().filter(|it| it.kind == "SPAN_KIND_CLIENT" && it.service() == service).collect();
    ensure!(calls.len() >= case.calls * REQUESTS, "{case:?}: {} calls, such as {:?}", calls.len(), calls.first());
    let mut linked = 0;
    for call in &calls {
        let Some(parent) = by_id.get(call.parent_span_id.as_str()) else { continue };
        let is_right =
            parent.kind == "SPAN_KIND_SERVER" && parent.service() == service && number(parent) == number(call);
        ensure!(is_right, "{case:?}: {} is below {} {}", call.path(), parent.kind, parent.path());
        linked += 1;
    }
    println!("{}: {linked} of {} calls are linked", case.path, calls.len());
    ensure!(linked * 100 >= calls.len() * case.linked, "{case:?}: {linked} links of {}", calls.len());
    Ok(())
}

/// Asks a service `count` times.
fn ask(case: Case, service: SocketAddr, path: &str, count: usize) -> Result<()> {
    let scheme = if case.is_tls { "https" } else { "http" };
    asking::ask(&format!("{scheme}://{service}/{path}"), case.is_http1, count).with_context(|| format!("{case:?}"))
}

/// The server at the end, which takes its time.
fn server(folder: &Path) -> Result<(Running, SocketAddr)> {
    let listens = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut command = Command::new(go_program("chain", true)?);
    command.args(["-listen", &listens.to_string(), "-work", "10ms"]);
    let mut running = Running::start("back", folder, &mut command)?;
    running.wait_for_port(listens, STARTS_WITHIN)?;
    Ok((running, listens))
}

/// A service written for Node.js in front of `back`: where it listens, and where it does with TLS.
fn node(folder: &Path, back: SocketAddr) -> Result<(Running, SocketAddr, SocketAddr)> {
    let ([plain, tls], [certificate, key]) = ([free_port()?, free_port()?], certificate(folder)?);
    let mut command = Command::new(system("node")?);
    command.arg(workspace().join("tests/sample/asks.js")).env("SAMPLE_BACK", format!("http://{back}"));
    command.env("SAMPLE_PORT", plain.to_string()).env("SAMPLE_TLS_PORT", tls.to_string());
    command.env("SAMPLE_CERTIFICATE", certificate).env("SAMPLE_KEY", key);
    let mut running = Running::start("node", folder, &mut command)?;
    let [plain, tls] = [plain, tls].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    for address in [plain, tls] {
        running.wait_for_port(address, STARTS_WITHIN)?;
    }
    Ok((running, plain, tls))
}

/// nginx in front of `back`: where it listens, and where it does with TLS.
fn nginx(folder: &Path, back: SocketAddr) -> Result<(Running, SocketAddr, SocketAddr)> {
    let ports = [free_port()?, free_port()?, free_port()?];
    let [plain, tls, closes] = ports.map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let ([certificate, key], at) = (certificate(folder)?, folder.display());
    let text = format!(
        "daemon off; worker_processes 1; pid {at}/nginx.pid; error_log {at}/nginx.log;\n\
         events {{ }}\n\
         http {{\n\
           access_log off; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
           client_body_temp_path {at}/body; proxy_temp_path {at}/proxy; fastcgi_temp_path {at}/fastcgi;\n\
           uwsgi_temp_path {at}/uwsgi; scgi_temp_path {at}/scgi;\n\
           ssl_certificate {certificate}; ssl_certificate_key {key};\n\
           limit_req_zone $server_name zone=turns:1m rate=500r/s;\n\
           upstream back {{ server {back}; keepalive 16; }}\n\
           upstream unsure {{ server {closes} max_fails=0; server {back} max_fails=0; keepalive 16; }}\n\
           upstream again {{ server {tls}; keepalive 16; }}\n\
           server {{ listen {closes}; return 444; }}\n\
           server {{ listen {tls} ssl http2; location / {{ proxy_pass http://back; }} }}\n\
           server {{\n\
             listen {plain};\n\
             location / {{ proxy_pass http://back; }}\n\
             location = /auth {{ internal; proxy_pass http://back/auth$request_uri; }}\n\
             location /guarded/ {{ auth_request /auth; limit_req zone=turns burst=1000; proxy_pass http://back; }}\n\
             location /retried/ {{ proxy_pass http://unsure; }}\n\
             location /secure/ {{ proxy_pass https://again; }}\n\
           }}\n\
         }}\n"
    );
    let config = folder.join("nginx.conf");
    fs::write(&config, text)?;
    let mut command = Command::new(system("nginx")?);
    command.arg("-c").arg(&config).arg("-p").arg(folder);
    let mut running = Running::start("nginx", folder, &mut command)?;
    for address in [plain, tls, closes] {
        running.wait_for_port(address, STARTS_WITHIN)?;
    }
    Ok((running, plain, tls))
}
