//! What the agent costs: CPU per request, split into its own process and the programs in the kernel, and memory.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use coati_tests::agent::{Agent, sum};
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
    /// A new connection for each request.
    #[arg(long)]
    close: bool,
}

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
        keep_alive: !options.close,
    };
    load(&Plan { requests: options.requests / 10, ..plan.clone() })?;
    let without = load(&plan)?;

    let backend = Backend::start_from(binaries, &folder, &[])?;
    let agent = Agent::start_from(binaries, &folder, &format!("http://{}", backend.grpc), &[])?;
    let (with, cost) = measure(&plan, &agent)?;

    // The load client is on this node too, so each request gives two exchanges: its own and the server's.
    let connections = if options.close { "a connection each" } else { "8 connections" };
    println!("{} requests at {}/s to {}, {connections}", options.requests, options.rate, options.server);
    println!("exchanges captured: {} (server and client side: {} expected)", cost.captured, 2 * options.requests);
    println!("lost: {}", cost.lost);
    for cause in &cost.causes {
        println!("  {cause}");
    }
    println!("agent CPU per request: {:.2} µs; probes (BPF run time): {:.2} µs", cost.agent_us, cost.probes_us);
    println!("agent RSS: {:.1} MB now, {:.1} MB at its peak", cost.resident_mb, cost.peak_mb);
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

/// What capturing a load cost.
pub(super) struct Cost {
    /// Exchanges that the kernel programs saw begin.
    pub(super) captured: f64,
    /// Losses of any cause, since the agent's start.
    pub(super) lost: f64,
    /// Those causes, where there were any.
    pub(super) causes: Vec<String>,
    /// CPU time per request of the agent's process.
    pub(super) agent_us: f64,
    /// The same of the kernel programs.
    pub(super) probes_us: f64,
    /// Resident memory.
    pub(super) resident_mb: f64,
    /// The same at its peak.
    pub(super) peak_mb: f64,
}

/// Runs a load while `agent` watches.
pub(super) fn measure(plan: &Plan, agent: &Agent) -> Result<(Outcome, Cost)> {
    let process = agent.process.id();
    fs::write(BPF_STATS, "1").with_context(|| BPF_STATS.to_owned())?;
    thread::sleep(Duration::from_secs(1));
    let before = (cpu_seconds(process)?, probe_seconds(process)?, begun(agent)?);
    let outcome = load(plan)?;
    thread::sleep(Duration::from_secs(1));
    let after = (cpu_seconds(process)?, probe_seconds(process)?, begun(agent)?);
    fs::write(BPF_STATS, "0")?;
    ensure!(outcome.statuses.iter().all(|status| *status == 200), "not every answer was a 200");
    let per_request = |seconds: f64| seconds / plan.requests as f64 * 1e6;
    let page = agent.metrics()?;
    let losses = page.lines().filter(|line| line.starts_with("coati_agent_losses_total{") && !line.ends_with(" 0"));
    let cost = Cost {
        captured: after.2 - before.2,
        lost: sum(&page, "coati_agent_losses_total", &[]),
        causes: losses.map(str::to_owned).collect(),
        agent_us: per_request(after.0 - before.0),
        probes_us: per_request(after.1 - before.1),
        resident_mb: status_mb(process, "VmRSS:")?,
        peak_mb: status_mb(process, "VmHWM:")?,
    };
    Ok((outcome, cost))
}

fn begun(agent: &Agent) -> Result<f64> {
    agent.metric("coati_agent_records_total", &["kind=\"begin\""])
}

/// User and system time of all threads of a process so far.
pub(super) fn cpu_seconds(process: u32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        // One that has just ended.
        let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
        nanoseconds +=
            text.split(' ').next().and_then(|run| run.parse::<f64>().ok()).context("no time in schedstat")?;
    }
    Ok(nanoseconds / 1e9)
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

/// A line of `/proc/PID/status` that is in kB, in MB.
pub(super) fn status_mb(process: u32, key: &str) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{process}/status"))?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)).with_context(|| key.to_owned())?;
    Ok(value.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1000.0)
}
