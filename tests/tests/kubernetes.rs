//! Guarantee: spans of a process in a pod carry the names of the pod, and its peers those that Kubernetes has for them.
//!
//! The process is a real server in a real control group, called as the kubelet calls that of a container; the API server is
//! one of the tests, behind TLS, and wants a token.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::front::Front;
use coati_tests::http;
use coati_tests::kubernetes::{ApiServer, Group, pod, service, uid};
use coati_tests::process::{self, Running, free_port};
use coati_tests::seen::{Seen, spans_of};
use coati_tests::tools::system;

const CONTAINER: &str = "3f1a9c0e5b7d2468ace013579bdf02468ace13579bdf02468ace13579bdf0246";
const TOKEN: &str = "token-of-the-test";
const NODE: &str = "node-1";
/// How long a span may take until it is found, and a name until it is known.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);

fn server(folder: &Path, port: u16) -> Result<Running> {
    let mut command = Command::new(system("python3")?);
    command.args(["-m", "http.server", "--bind", "127.0.0.1", &port.to_string()]).current_dir(folder);
    let mut server = Running::start("server", folder, &mut command)?;
    server.wait_for_port(([127, 0, 0, 1], port).into(), Duration::from_secs(20))?;
    Ok(server)
}

/// Asks until a span of `path` has this value.
fn wait_for(backend: &Backend, port: u16, path: &str, key: &str, value: &str) -> Result<Seen> {
    let begin = std::time::Instant::now();
    let mut last = Vec::new();
    while begin.elapsed() < ARRIVES_WITHIN {
        http::get(&format!("http://127.0.0.1:{port}{path}"))?;
        std::thread::sleep(Duration::from_millis(300));
        last = spans_of(
            backend,
            &format!("{{ kind = server && span.url.path = \"{path}\" && span.server.port = {port} }}"),
        )?;
        if let Some(seen) = last.iter().find(|seen| seen.resource.get(key).is_some_and(|found| found == value)) {
            return Ok(seen.clone());
        }
    }
    bail!("no span of {path} with {key} = {value}: {last:#?}")
}

#[test]
fn spans_carry_the_names_of_their_pod() -> Result<()> {
    let folder = process::folder()?;
    let api = ApiServer::start()?;
    api.require(TOKEN);
    api.set("services", service("kube-system", "loopback", "127.0.0.1"));
    let front = Front::start(folder.path(), api.address)?;
    let url = format!("https://{}", front.tls);
    let file = ApiServer::kubeconfig(folder.path(), &url, TOKEN, Some(&front.authority))?;

    let group = Group::new(&uid("shop", "cart-6d5f8c9b7-x2x4z"), CONTAINER)?;
    let backend = Backend::start(folder.path(), &[])?;
    let port = free_port()?;
    let server = server(folder.path(), port)?;
    group.add(server.id())?;

    let variables = [("KUBECONFIG", file.display().to_string()), ("NODE_NAME", NODE.to_owned())];
    let mut agent = Agent::start_with(folder.path(), &format!("http://{}", backend.grpc), &[], &variables)?;
    // The pod is not known yet: its process has the name that it has without Kubernetes.
    let before = wait_for(&backend, port, "/before", "service.name", "http.server")?;
    ensure!(!before.resource.contains_key("k8s.pod.name"), "{before:?}");
    ensure!(before.attribute("service.peer.name") == "loopback", "{before:?}");

    let mut known = pod("shop", "cart-6d5f8c9b7-x2x4z", NODE, CONTAINER, "10.42.0.7");
    if let Some(metadata) = known.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
        metadata.insert("labels".to_owned(), serde_json::json!({"pod-template-hash": "6d5f8c9b7"}));
        let owner = serde_json::json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart-6d5f8c9b7", "uid": "1", "controller": true}]);
        metadata.insert("ownerReferences".to_owned(), owner);
    }
    api.set("pods", known);
    let after = wait_for(&backend, port, "/after", "service.name", "cart")?;
    for (key, expected) in [
        ("service.namespace", "shop"),
        ("service.instance.id", "shop.cart-6d5f8c9b7-x2x4z.main"),
        ("k8s.namespace.name", "shop"),
        ("k8s.pod.name", "cart-6d5f8c9b7-x2x4z"),
        ("k8s.pod.uid", uid("shop", "cart-6d5f8c9b7-x2x4z").as_str()),
        ("k8s.pod.start_time", "2026-11-28T08:59:56Z"),
        ("k8s.container.name", "main"),
        ("k8s.deployment.name", "cart"),
        ("k8s.replicaset.name", "cart-6d5f8c9b7"),
        ("k8s.node.name", NODE),
        ("container.id", CONTAINER),
    ] {
        ensure!(after.resource.get(key).is_some_and(|found| found == expected), "{key} is not {expected}: {after:#?}");
    }

    ensure!(agent.metric("coati_agent_kubernetes_pods", &[])? > 0.5, "{}", agent.metrics()?);
    ensure!(agent.metric("coati_agent_kubernetes_services", &[])? > 0.5, "{}", agent.metrics()?);
    for resource in ["resource=\"pods\"", "resource=\"services\""] {
        ensure!(agent.metric("coati_agent_kubernetes_last_sync_timestamp_seconds", &[resource])? > 1e9);
        ensure!(agent.metric("coati_agent_kubernetes_watch_restarts_total", &[resource])? < 0.5);
    }
    ensure!(agent.metric("coati_agent_kubernetes_lookup_misses_total", &[])? > 0.5, "the pod was not known at first");

    // The pod goes, its process answers once more.
    api.delete("pods", "shop", "cart-6d5f8c9b7-x2x4z")?;
    wait_for(&backend, port, "/last", "k8s.pod.name", "cart-6d5f8c9b7-x2x4z")?;
    ensure!(agent.stop()?.code() == Some(0), "{}", agent.process.output());
    drop(server);
    drop(group);
    Ok(())
}
