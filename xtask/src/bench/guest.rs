//! What the agent costs, counted: in a guest whose time is the number of its instructions, whatever else this machine does.
//!
//! This very program is started in the guest too (`--inside`): it runs the server, the agent and the load there.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use coati_tests::agent::Agent;
use coati_tests::backend::Backend;
use coati_tests::guest::{self, Files, Processors};
use coati_tests::load::{Outcome, Plan, run as load};
use coati_tests::process::{Running, free_port};
use coati_tests::sample::{Sample, Server};
use coati_tests::tools::target;

use super::agent::{cpu_seconds, measure};
use super::programs::{self, programs};
use crate::setup;
use crate::table::columns;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Kernel of the guest.
    #[arg(long, value_parser = ["6.1", "6.12"], default_value = "6.12")]
    kernel: String,
    /// Hooks, each in a guest of its own.
    #[arg(long, value_delimiter = ',', default_value = "fentry,kprobe,syscall")]
    hooks: Vec<String>,
    /// Requests of each run, at 1,000 a second.
    #[arg(long, default_value_t = 3000)]
    requests: usize,
    /// Shows where the agent spends its time, or its kernel programs do, by functions, instead of how much it is: by `perf`,
    /// whose samples cost something.
    #[arg(long, value_name = "OF")]
    profile: Option<Profiled>,
    /// Folder of agent and backend, if they are not to be built.
    #[arg(long)]
    binaries: Option<PathBuf>,
    /// Run the load here.
    #[arg(long, hide = true)]
    inside: bool,
}

/// What is profiled.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Profiled {
    Agent,
    Probes,
}

/// Interpreting a run takes a minute or two when there is a processor for it.
const PATIENCE: Duration = Duration::from_mins(30);

/// How long the server may take until it listens.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

pub(super) const PERF: &str = "/usr/bin/perf";
/// Instructions from one sample to the next.
pub(super) const SAMPLE_EVERY: &str = "10000";
/// Functions with a smaller share, percent, are not shown.
const SHOWN_FROM: &str = "0.3";

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.inside {
        return inside(options);
    }
    setup::run_for(setup::Need::Test)?;
    let binaries = if let Some(binaries) = &options.binaries {
        binaries.clone()
    } else {
        super::build()?;
        target().join("release")
    };
    let image = guest::kernel(&options.kernel)?;
    // Starting it builds it.
    Sample::start_only(&target().join("bench/guest"), &[Server::Go])?;
    for hooks in &options.hooks {
        let Options { kernel, requests, .. } = options;
        let profile = match options.profile {
            Some(Profiled::Agent) => "--profile agent",
            Some(Profiled::Probes) => "--profile probes",
            None => "",
        };
        let script = format!(
            "mkdir /tmp/bench\nmount -t tracefs tracefs /sys/kernel/tracing\n\
             /bin/xtask bench guest --inside --kernel {kernel} --hooks {hooks} --requests {requests} {profile}\n"
        );
        let mut files = Files::new(&script)?;
        files.program("bin/xtask", &std::env::current_exe()?)?;
        files.program("bin/coati-backend", &binaries.join("coati-backend"))?;
        files.program_with_symbols("bin/coati-agent", &binaries.join("coati-agent"))?;
        if options.profile.is_some() {
            files.program(PERF.trim_start_matches('/'), Path::new(PERF))?;
        }
        files.program("bin/stock", &target().join("sample/stock"))?;
        print!("{}", guest::run(&image, files, Processors::Counted, PATIENCE)?);
    }
    Ok(())
}

/// In the guest: the load without an agent, with one that watches the server only, and with one that watches both ends.
fn inside(options: &Options) -> Result<()> {
    let folder = Path::new("/tmp/bench");
    let hooks = options.hooks.first().context("no hooks")?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
    let mut stock = Command::new("/bin/stock");
    let mut server = Running::start("stock", folder, stock.env("SAMPLE_LISTEN", address.to_string()))?;
    server.wait_for_port(address, STARTS_WITHIN)?;
    let backend = Backend::start_from(Path::new("/bin"), folder, &[])?;
    let endpoint = format!("http://{}", backend.grpc);
    let paths = vec!["/stock/1".to_owned()];
    let plan = Plan { address, paths, requests: options.requests, rate: 1000.0, connections: 8, keep_alive: true };
    load(&Plan { requests: options.requests / 10, ..plan.clone() })?;

    let before = cpu_seconds(server.id())?;
    let without = load(&plan)?;
    let alone = (cpu_seconds(server.id())? - before) / options.requests as f64 * 1e9;

    // Of no process, of the server only, of all.
    let selections = [
        ("neither end", Some("exe_path: no-such-program")),
        ("the server", Some("exe_path: stock")),
        ("both ends", None),
    ];
    let mut rows = vec![row("no agent", [const { String::new() }; 4], &without)];
    let mut by_program = String::new();
    for (name, selection) in selections {
        let mut arguments = vec!["--hooks", hooks];
        let file = folder.join("selection.yaml");
        let path = file.to_string_lossy();
        if let Some(selection) = selection {
            fs::write(&file, format!("discovery:\n  include:\n    - {selection}\n"))?;
            arguments.extend(["--config", &path]);
        }
        let mut agent = Agent::start_from(Path::new("/bin"), folder, &endpoint, &arguments)?;
        // Processes that no rule selects are known by their first requests.
        load(&Plan { requests: options.requests / 10, ..plan.clone() })?;
        match options.profile {
            Some(Profiled::Agent) => profile(&agent, &plan)?,
            Some(Profiled::Probes) => programs::profile(&plan)?,
            None => {
                let before = programs(agent.process.id())?;
                let (with, cost) = measure(&plan, &agent)?;
                let after = programs(agent.process.id())?;
                let figures = [
                    format!("{:.0} ({:.0} lost)", cost.captured, cost.lost),
                    // A microsecond of this guest is a thousand instructions.
                    format!("{:.1}", cost.agent_us),
                    format!("{:.1}", cost.probes_us),
                    format!("{:.1} / {:.1}", cost.resident_mb, cost.peak_mb),
                ];
                rows.push(row(name, figures, &with));
                let table = programs::table(&before, &after, options.requests);
                by_program += "\nwatched: ";
                by_program += name;
                by_program += "\n";
                by_program += &table;
            }
        }
        agent.stop()?;
    }
    println!("{} requests at 1,000/s on {} connections, hooks: {hooks}", options.requests, plan.connections);
    println!("the server itself: {:.1} thousand instructions a request", alone / 1000.0);
    let heads =
        ["watched", "exchanges", "agent, 1000 instr./request", "probes", "RSS now / peak, MB", "p50, µs", "p99, µs"];
    print!("{}{by_program}", columns(&heads, &rows));
    Ok(())
}

/// Prints where the agent spends its time under the load.
fn profile(agent: &Agent, plan: &Plan) -> Result<()> {
    let record = ["record", "--event", "cpu-clock", "--count", SAMPLE_EVERY, "--output", "/tmp/bench/samples"];
    let mut recording = Command::new(PERF);
    recording.args(record).arg("--pid").arg(agent.process.id().to_string());
    let mut recording = Running::start("perf", Path::new("/tmp/bench"), &mut recording)?;
    std::thread::sleep(Duration::from_secs(1));
    load(plan)?;
    recording.stop()?;
    let report = ["report", "--stdio", "--input", "/tmp/bench/samples", "--percent-limit", SHOWN_FROM, "--sort"];
    for by in ["comm,dso", "comm,dso,symbol"] {
        let output = Command::new(PERF).args(report).arg(by).output().context(PERF)?;
        println!("{}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

fn row(name: &str, figures: [String; 4], outcome: &Outcome) -> Vec<String> {
    let latencies = [0.5, 0.99].map(|q| format!("{:.0}", outcome.latency_us(q)));
    std::iter::once(name.to_owned()).chain(figures).chain(latencies).collect()
}
