//! Guarantee: a client for Tempo that somebody else wrote works with the backend: Perses' one, from npm.

mod otlp;

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use coati_tests::backend::Backend;
use coati_tests::tools::{system, tool, workspace};
use opentelemetry_proto::tonic::trace::v1::Status;
use serde_json::{Value, json};

const TRACE: u128 = 0x0a1b_0203_0405_0607_0809_0a0b_0c0d_0e0f;

#[test]
fn perses_searches_and_reads_traces_and_tags() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let backend = Backend::start(folder.path(), &[])?;
    let root = otlp::span(TRACE, 1, "GET /");
    let mut child = otlp::span(TRACE, 2, "buy");
    child.parent_span_id = root.span_id.clone();
    child.status = Some(Status { code: 2, message: "no stock".to_owned() });
    otlp::store(&backend, &otlp::request("perses-web", vec![root]))?;
    otlp::store(&backend, &otlp::request("perses-shop", vec![child]))?;

    let api = format!("http://{}", backend.api);
    let seen = ask(&api, "{ status = error }", "resource.service.name")?;
    let stats = json!({ "perses-web": { "spanCount": 1 }, "perses-shop": { "spanCount": 1, "errorCount": 1 } });
    let found = &seen["found"]["traces"];
    ensure!(found.as_array().is_some_and(|traces| traces.len() == 1), "{seen}");
    // As Tempo prints it, without the zero.
    ensure!(found[0]["traceID"] == "a1b02030405060708090a0b0c0d0e0f", "{found}");
    ensure!(found[0]["rootServiceName"] == "perses-web" && found[0]["rootTraceName"] == "GET /", "{found}");
    ensure!(found[0]["serviceStats"] == stats, "{found}");
    ensure!(found[0]["spanSets"][0]["matched"] == 1, "{found}");
    // The client's own count of the spans that it read, status codes by name included.
    ensure!(seen["counted"]["traces"][0]["serviceStats"] == stats, "{}", seen["counted"]);

    let batches = seen["traces"][0]["batches"].as_array().context("no batches")?;
    let spans = batches.iter().flat_map(|batch| list(&batch["scopeSpans"])).flat_map(|scope| list(&scope["spans"]));
    let mut names: Vec<_> = spans.filter_map(|span| span["name"].as_str()).collect();
    names.sort_unstable();
    ensure!(names == ["GET /", "buy"], "{names:?}");

    let scopes = list(&seen["tags"]["scopes"]);
    let resource = scopes.iter().find(|scope| scope["name"] == "resource").context("no resource scope")?;
    ensure!(list(&resource["tags"]).iter().any(|tag| tag == "service.name"), "{resource}");
    let value = |name: &str| json!({ "type": "string", "value": name });
    ensure!(seen["values"]["tagValues"] == json!([value("perses-shop"), value("perses-web")]), "{}", seen["values"]);
    ensure!(seen["valuesOfQuery"]["tagValues"] == json!([value("perses-shop")]), "{}", seen["valuesOfQuery"]);
    let error = seen["error"].as_str().context("a wrong query is no error")?;
    ensure!(error.contains("did you mean \"name\"?"), "{error}");
    Ok(())
}

fn ask(api: &str, query: &str, tag: &str) -> Result<Value> {
    let output = Command::new(system("node")?)
        .arg(workspace().join("tests/clients/perses.js"))
        .args([api, query, tag])
        .env("NODE_PATH", tool("perses/node_modules")?)
        .stdin(Stdio::null())
        .output()
        .context("perses.js")?;
    ensure!(output.status.success(), "perses.js: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("what the script printed")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}
