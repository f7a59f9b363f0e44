//! What the agent takes on a node with many processes in many pods.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::kubernetes::{ApiServer, Group, pod, service, uid};
use coati_tests::process::{Running, free_port};
use coati_tests::tools::target;
use serde_json::json;

use super::agent::{cpu_seconds, status_mb};
use crate::table::columns;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Servers, each a process of its own.
    #[arg(long, default_value_t = 500)]
    processes: usize,
    /// Pods that they are in; as many services are known.
    #[arg(long, default_value_t = 300)]
    pods: usize,
    /// Requests to each server.
    #[arg(long, default_value_t = 20)]
    requests: usize,
    /// Folder of binaries that were built before; without, they are built for release.
    #[arg(long)]
    pub(super) binaries: Option<PathBuf>,
}

const NODE: &str = "node-1";
const TOKEN: &str = "token-of-the-bench";
/// How long a server may take until it listens.
const STARTS_WITHIN: Duration = Duration::from_secs(20);
/// How long spans may take until they are found.
const ARRIVES_WITHIN: Duration = Duration::from_secs(20);
/// What an idle agent is watched for.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) fn run(options: &Options, binaries: &Path) -> Result<()> {
    ensure!(options.processes > 0 && options.pods > 0, "nothing to measure");
    let folder = target().join("bench/crowd");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let api = ApiServer::start()?;
    api.require(TOKEN);
    let groups = (0..options.pods).map(|number| known(&api, number)).collect::<Result<Vec<_>>>()?;
    let ports = (0..options.processes).map(|_| free_port()).collect::<Result<Vec<_>>>()?;
    let mut servers = Vec::new();
    for (port, group) in ports.iter().zip(groups.iter().cycle()) {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "serve", &port.to_string()]);
        let server = Running::start("server", &folder, &mut command)?;
        group.add(server.id())?;
        servers.push(server);
    }
    for (server, port) in servers.iter_mut().zip(&ports) {
        server.wait_for_port(local(*port), STARTS_WITHIN)?;
    }

    let backend = Backend::start_from(binaries, &folder, &[])?;
    let file = ApiServer::kubeconfig(&folder, &format!("http://{}", api.address), TOKEN, None)?;
    let variables = [("KUBECONFIG", file.display().to_string()), ("NODE_NAME", NODE.to_owned())];
    let endpoint = format!("http://{}", backend.grpc);
    let agent = Agent::start_from_with(binaries, &folder, &endpoint, &[], &variables)?;
    let process = agent.process.id();
    let mut rows = Vec::new();
    let mut tell = |when: &str| -> Result<()> {
        let memory = ["VmRSS:", "RssAnon:", "RssFile:", "VmHWM:"].map(|key| status_mb(process, key));
        let memory = memory.into_iter().collect::<Result<Vec<_>>>()?;
        rows.push(std::iter::once(when.to_owned()).chain(memory.iter().map(|mb| format!("{mb:.1}"))).collect());
        Ok(())
    };
    thread::sleep(Duration::from_secs(2));
    tell("started")?;
    for _ in 0..options.requests {
        ports.iter().try_for_each(|port| ask(*port))?;
    }
    let expected = options.processes * options.requests;
    let found = backend.wait_for_count("{ kind = server }", expected as u64, ARRIVES_WITHIN)?;
    tell("after the requests")?;
    let before = cpu_seconds(process)?;
    thread::sleep(IDLE);
    let idle = (cpu_seconds(process)? - before) / IDLE.as_secs_f64();
    tell("idle")?;

    let in_pods = backend.get("/api/search/tag/k8s.pod.name/values")?.json()?;
    let in_pods = in_pods.get("tagValues").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
    println!("{} processes in {} pods, {} requests to each", options.processes, options.pods, options.requests);
    println!("server spans: {found} of {expected}; lost: {}", agent.metric("coati_agent_losses_total", &[])?);
    println!("pods that the agent knows: {}; in spans: {in_pods}", agent.metric("coati_agent_kubernetes_pods", &[])?);
    println!("CPU of the idle agent: {:.2} % of a core", idle * 100.0);
    print!("{}", columns(&["agent, MB", "resident", "anonymous", "of files", "peak"], &rows));
    Ok(())
}

/// Tells the API server of a pod as a deployment makes it, and of a service; gives the control group of its container.
fn known(api: &ApiServer, number: usize) -> Result<Group> {
    let (namespace, app) = (format!("team-{}", number % 20), format!("service-{number}"));
    let (set, name) = (format!("{app}-6d5f8c9b7"), format!("{app}-6d5f8c9b7-x2x4z"));
    let container = format!("{number:064x}");
    let (high, low) = (number / 250, number % 250 + 2);
    let mut object = pod(&namespace, &name, NODE, &container, &format!("10.42.{high}.{low}"));
    let metadata =
        object.get_mut("metadata").and_then(serde_json::Value::as_object_mut).context("a pod has metadata")?;
    let labels = json!({
        "app.kubernetes.io/name": app, "app.kubernetes.io/instance": format!("{app}-prod"),
        "app.kubernetes.io/version": "1.2.3", "app.kubernetes.io/part-of": "shop", "pod-template-hash": "6d5f8c9b7",
    });
    metadata.insert("labels".to_owned(), labels);
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": "1", "controller": true}]);
    metadata.insert("ownerReferences".to_owned(), owner);
    api.set("pods", object);
    api.set("services", service(&namespace, &app, &format!("10.43.{high}.{low}")));
    Group::new(&uid(&namespace, &name), &container)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// One request on a connection of its own.
fn ask(port: u16) -> Result<()> {
    let mut stream = TcpStream::connect(local(port))?;
    stream.write_all(b"GET /items/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// A server that takes next to nothing: one thread, one answer for every request.
pub(crate) fn serve(port: u16) -> Result<()> {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
    let listener = TcpListener::bind(local(port))?;
    for stream in listener.incoming() {
        let mut stream = stream?;
        let mut request = [0; 1024];
        // A client that only looks whether there is a server says nothing.
        if stream.read(&mut request)? > 0 {
            stream.write_all(ANSWER)?;
        }
    }
    Ok(())
}
