//! Guarantee: an agent that was started as root with everything gives away what it does not need once it captures, and goes
//! on: requests, processes that start later, TLS of files that it has not seen before.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::front::Front;
use coati_tests::privileges::assert_given_away;
use coati_tests::process;
use coati_tests::sample::{Sample, Server};
use coati_tests::tools::system;

/// How long a span may take from the end of its exchange until it is found.
const ARRIVES_WITHIN: Duration = Duration::from_secs(10);

#[test]
fn the_agent_keeps_what_it_needs_and_nothing_else() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let mut agent = Agent::start(folder.path(), &format!("http://{}", backend.grpc), &[])?;
    assert_given_away(agent.process.id())?;

    // All of this starts later than that.
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;
    let front = Front::start(folder.path(), sample.address(Server::Go))?;
    // A library that no process had before is looked for some 50 ms after the first one begins.
    let is_probed = |log: &str| log.contains("probes are in a library").then_some(());
    agent.process.wait_for("probes in nginx's library", ARRIVES_WITHIN, is_probed)?;
    let curl = Command::new(system("curl")?)
        .args(["--silent", "--show-error", "--fail", "--cacert"])
        .arg(&front.authority)
        .arg(format!("https://{}/stock/1", front.tls))
        .stdin(Stdio::null())
        .output()?;
    ensure!(curl.status.success(), "curl: {}", String::from_utf8_lossy(&curl.stderr));
    let path = "span.url.path = \"/stock/1\"";
    for (what, query) in [
        ("plain, server", format!("{{ kind = server && {path} && resource.service.name = \"stock\" }}")),
        ("TLS, server", format!("{{ kind = server && {path} && resource.service.name = \"nginx\" }}")),
        (
            "TLS, client",
            "{ kind = client && span.url.full =~ \"https.+/stock/1\" && resource.service.name = \"curl\" }".to_owned(),
        ),
    ] {
        let found = backend.wait_for_count(&query, 1, ARRIVES_WITHIN)?;
        ensure!(found == 1, "{what}: {found} spans:\n{}", agent.process.output());
    }
    assert_given_away(agent.process.id())
}
