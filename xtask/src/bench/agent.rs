//! What the agent costs: CPU per request, split into its own process and the programs in the kernel, and memory.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::load::{Outcome, Plan, run as load};
use coati_tests::sample::{Sample, Server};
use coati_tests::tools::target;

use crate::table::columns;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Requests per second.
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Requests of each run.
    #[arg(long, default_value_t = 20_000)]
    requests: usize,
    /// The server under load.
    #[arg(long, value_parser = ["nginx", "go", "node", "fastapi"], default_value = "go")]
    server: String,
}

/// Clock ticks per second of `/proc/PID/stat`: fixed by the kernel's user interface on every Linux.
const TICKS: f64 = 100.0;

/// Where the kernel counts the run time of BPF programs when told to.
const BPF_STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

pub(crate) fn run(options: &Options, binaries: &Path) -> Result<()> {
    let folder = target().join("bench/agent");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let sample = Sample::start(&folder.join("sample"))?;
    let (server, path) = match options.server.as_str() {
        "nginx" => (Server::Nginx, "/hello.txt"),
        "node" => (Server::Node, "/health"),
        "fastapi" => (Server::FastApi, "/items/1"),
        _ => (Server::Go, "/stock/1"),
    };
    let plan = Plan {
        address: sample.address(server),
        paths: vec![path.to_owned()],
        requests: options.requests,
        rate: options.rate,
        connections: 8,
    };
    load(&Plan { requests: options.requests / 10, ..plan.clone() })?;
    let without = load(&plan)?;

    let backend = Backend::start_from(binaries, &folder, &[])?;
    let agent = Agent::start_from(binaries, &folder, &format!("http://{}", backend.grpc), &[])?;
    fs::write(BPF_STATS, "1").with_context(|| BPF_STATS.to_owned())?;
    thread::sleep(Duration::from_secs(1));
    let (cpu, probes, captured) =
        (cpu_seconds(agent.process.id())?, probe_seconds(agent.process.id())?, begun(&agent)?);
    let with = load(&plan)?;
    thread::sleep(Duration::from_secs(1));
    let cpu = cpu_seconds(agent.process.id())? - cpu;
    let probes = probe_seconds(agent.process.id())? - probes;
    let captured = begun(&agent)? - captured;
    fs::write(BPF_STATS, "0")?;
    ensure!(with.statuses.iter().all(|status| *status == 200), "not every answer was a 200");

    // The load client is on this node too, so each request gives two exchanges: its own and the server's.
    let requests = options.requests as f64;
    println!("{} requests at {}/s to {}, 8 connections", options.requests, options.rate, options.server);
    println!("exchanges captured: {captured} (server and client side: {} expected)", 2.0 * requests);
    println!("lost: {}", agent.metric("coati_agent_losses_total", &[])?);
    println!(
        "agent CPU per request: {:.2} µs; probes (BPF run time): {:.2} µs",
        cpu / requests * 1e6,
        probes / requests * 1e6
    );
    println!(
        "agent RSS: {:.1} MB now, {:.1} MB at its peak",
        status_mb(agent.process.id(), "VmRSS:")?,
        status_mb(agent.process.id(), "VmHWM:")?
    );
    let row = |name: &str, outcome: &Outcome| {
        let quantiles = [0.5, 0.9, 0.99].map(|q| format!("{:.0}", outcome.latency_us(q)));
        std::iter::once(name.to_owned()).chain(quantiles).collect::<Vec<_>>()
    };
    print!(
        "{}",
        columns(&["latency, µs", "p50", "p90", "p99"], &[row("without the agent", &without), row("with it", &with)])
    );
    Ok(())
}

fn begun(agent: &Agent) -> Result<f64> {
    agent.metric("coati_agent_records_total", &["kind=\"begin\""])
}

/// User and system time of a process so far.
fn cpu_seconds(process: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = text.rsplit_once(") ").context("no command in stat")?.1.split(' ').collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or_default();
    Ok((ticks(11) + ticks(12)) / TICKS)
}

/// Run time of all BPF programs that a process holds, from the kernel's own statistics.
fn probe_seconds(process: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix("run_time_ns:")).map(str::trim);
        nanoseconds += value.and_then(|value| value.parse::<f64>().ok()).unwrap_or_default();
    }
    Ok(nanoseconds / 1e9)
}

fn status_mb(process: u32, key: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| key.to_owned())?;
    Ok(value.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1000.0)
}
