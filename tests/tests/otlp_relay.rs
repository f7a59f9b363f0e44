//! Guarantee: spans of an OpenTelemetry SDK go through the agent to the backend, with what the SDK did not say of its process,
//! and a service that traces itself is not traced twice.
//!
//! A Python service with the real SDK calls the sample's Go server, which has none: the Go server's span, which the agent
//! makes, is below the SDK's client span.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::http;
use coati_tests::nodes::Pod;
use coati_tests::process::{self, Running, free_port};
use coati_tests::sample::{Sample, Server};
use coati_tests::seen::{Seen, spans_of};
use coati_tests::tools::{tool, workspace};
use rstest::rstest;

const REQUESTS: u32 = 20;
const ARRIVES_WITHIN: Duration = Duration::from_secs(15);

#[rstest]
#[case::grpc_with_a_name("grpc", Some("shop-sdk"), "shop-sdk")]
#[case::http_without_a_name("http/protobuf", None, "self_traced")]
fn spans_of_an_sdk_go_through_the_agent(
    #[case] protocol: &str,
    #[case] said: Option<&str>,
    #[case] expected: &str,
) -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let sample = Sample::start_only(&folder.path().join("sample"), &[Server::Go])?;
    let otlp = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let variables = [("COATI_AGENT_RECEIVE_LISTEN", otlp.to_string())];
    let mut agent = Agent::start_with(folder.path(), &format!("http://{}", backend.grpc), &[], &variables)?;

    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut command = Command::new(tool("python/bin/python")?);
    command.arg(workspace().join("tests/clients/self_traced.py"));
    command.args([protocol, &format!("http://{otlp}"), &address.port().to_string(), &sample.url(Server::Go)]);
    command.env("PYTHONDONTWRITEBYTECODE", "1").env_remove("OTEL_SERVICE_NAME");
    command.envs(said.map(|name| ("OTEL_SERVICE_NAME", name)));
    let mut service = Running::start("self_traced", folder.path(), &mut command)?;
    service.wait_for_port(address, Duration::from_secs(30))?;
    let pid = service.id();

    // The first spans tell the agent that the service traces itself.
    http::get(&format!("http://{address}/stock/1"))?;
    backend.wait_for_count(
        "{ name = \"GET /stock/1\" && kind = server && resource.telemetry.sdk.name = \"opentelemetry\" }",
        1,
        ARRIVES_WITHIN,
    )?;
    std::thread::sleep(Duration::from_millis(500));
    for number in 100..100 + REQUESTS {
        let answer = http::get(&format!("http://{address}/stock/{number}"))?;
        ensure!(answer.status == 200, "status {}: {}", answer.status, answer.text());
    }
    let of_go = format!(
        "{{ kind = server && resource.service.name = \"{}\" && span.url.path =~ \"/stock/1[0-9][0-9]\" }}",
        Server::Go.service_name()
    );
    backend.wait_for_count(&of_go, REQUESTS.into(), ARRIVES_WITHIN)?;
    let of_sdk = format!("{{ name = \"call\" && resource.service.name = \"{expected}\" }}");
    backend.wait_for_count(&of_sdk, u64::from(REQUESTS) + 1, ARRIVES_WITHIN)?;
    ensure!(service.stop()?.success(), "the service did not end well:\n{}", service.output());
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());

    // Neighbours are joined: the SDK's two spans and the one that the agent made of the Go server's end.
    for number in 100..100 + REQUESTS {
        let spans = spans_of(
            &backend,
            &format!("{{ name = \"GET /stock/{number}\" && resource.telemetry.sdk.name = \"opentelemetry\" }}"),
        )?;
        ensure!(spans.len() == 3, "{} spans: {spans:#?}", spans.len());
        let find = |kind: &str, sdk: &str| -> Result<&Seen> {
            let is_it = |span: &&Seen| {
                span.kind == kind && span.resource.get("telemetry.sdk.name").is_some_and(|name| name == sdk)
            };
            spans.iter().find(is_it).with_context(|| format!("no {kind} of {sdk}: {spans:#?}"))
        };
        let (server, client) = (find("SPAN_KIND_SERVER", "opentelemetry")?, find("SPAN_KIND_CLIENT", "opentelemetry")?);
        let go = find("SPAN_KIND_SERVER", "coati")?;
        ensure!(server.parent_span_id.is_empty() && client.parent_span_id == server.span_id, "{spans:#?}");
        ensure!(go.parent_span_id == client.span_id, "{spans:#?}");
        // What the SDK did not say.
        ensure!(server.service() == expected && server.pid() == Some(pid), "{server:#?}");
        for key in ["host.name", "process.executable.path", "service.instance.id"] {
            ensure!(server.resource.contains_key(key), "no {key}: {server:#?}");
        }
    }
    // Not traced twice, and neither are its exports.
    let twice =
        "{ resource.telemetry.sdk.name = \"coati\" && kind = client && span.url.full =~ \".*/stock/1[0-9][0-9]\" }";
    let of_callers = spans_of(&backend, twice)?;
    ensure!(of_callers.iter().all(|span| span.pid() != Some(pid)), "{of_callers:#?}");
    let own = format!("{{ resource.telemetry.sdk.name = \"coati\" && resource.process.pid = {pid} }}");
    let own: Vec<_> = spans_of(&backend, &own)?
        .into_iter()
        .filter(|span| {
            span.pid() == Some(pid) && span.resource.get("telemetry.sdk.name").is_some_and(|name| name == "coati")
        })
        .collect();
    // At most the first request's two: the agent did not know better then.
    ensure!(own.len() <= 2 && own.iter().all(|span| span.path() == "/stock/1"), "{own:#?}");
    Ok(())
}

/// Sends a span with the name in its arguments, and says which process it is.
const SENDER: &str = r#"
import json, os, sys, time, urllib.request
span = {"traceId": os.urandom(16).hex(), "spanId": os.urandom(8).hex(), "name": sys.argv[2], "kind": 1}
span["startTimeUnixNano"] = span["endTimeUnixNano"] = str(time.time_ns())
body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": [span]}]}]}
request = urllib.request.Request(sys.argv[1] + "/v1/traces", json.dumps(body).encode(), {"content-type": "application/json"})
print(urllib.request.urlopen(request).status, os.getpid())
"#;

/// As from a pod to its node: by the node's address, by that of a service, which no socket has, and by way of a gateway that
/// hides who sends.
#[test]
fn a_sender_in_another_network_namespace_is_found() -> Result<()> {
    let folder = process::folder()?;
    let backend = Backend::start(folder.path(), &[])?;
    let port = free_port()?;
    let pod = Pod::new(port)?;
    let variables = [("COATI_AGENT_RECEIVE_LISTEN", format!("{}:{port}", Pod::NODE))];
    let mut agent = Agent::start_with(folder.path(), &format!("http://{}", backend.grpc), &[], &variables)?;
    let python = tool("python/bin/python")?;
    for (name, address, is_found) in [
        ("node", format!("{}:{port}", Pod::NODE), true),
        ("service", format!("{}:4317", Pod::SERVICE), true),
        ("gateway", format!("{}:4318", Pod::SERVICE), false),
    ] {
        let mut sender = pod.command(&python);
        sender.args(["-c", SENDER, &format!("http://{address}"), name]);
        let output = sender.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let pid = said.trim().strip_prefix("200 ").with_context(|| format!("{name}: {output:?}"))?;
        let query = format!("{{ name = \"{name}\" }}");
        ensure!(backend.wait_for_count(&query, 1, ARRIVES_WITHIN)? == 1, "{name}: no span");
        let spans = spans_of(&backend, &query)?;
        let [span] = &spans[..] else { anyhow::bail!("{name}: {} spans", spans.len()) };
        let found = span.pid().map(|pid| pid.to_string());
        ensure!(found.as_deref() == is_found.then_some(pid), "{name}: process {found:?}, not {pid}: {span:#?}");
        // What is not known is left out, and not made up of who else is there.
        ensure!(is_found || span.resource.is_empty(), "{name}: {span:#?}");
    }
    ensure!(agent.stop()?.success(), "the agent did not end well:\n{}", agent.process.output());
    Ok(())
}
