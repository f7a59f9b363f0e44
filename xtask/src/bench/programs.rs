//! The kernel programs one by one: how often each ran and for how long, and where they spend it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use coati_tests::load::{Plan, run as load};
use coati_tests::process::Running;

use super::guest::{PERF, SAMPLE_EVERY};
use crate::table::columns;

/// What the kernel counted of the programs, by name: how often each ran, and for how many nanoseconds.
pub(super) type Programs = BTreeMap<String, [f64; 2]>;

/// Lets the kernel tell the names of what is compiled.
const SHOW_NAMES: &str = "/proc/sys/net/core/bpf_jit_kallsyms";
/// What the names of compiled programs begin with; then comes a hash, as their file descriptors tell it.
const PREFIX: &str = "bpf_prog_";
/// Functions with a smaller share of the samples, percent, are not shown.
const SHOWN_FROM: f64 = 0.5;

/// The programs that a process holds, from the kernel's own statistics.
pub(super) fn programs(process: u32) -> Result<Programs> {
    fs::write(SHOW_NAMES, "1").with_context(|| SHOW_NAMES.to_owned())?;
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let symbols = symbols.lines().filter_map(|line| line.split_whitespace().nth(2)?.strip_prefix(PREFIX));
    let names: HashMap<&str, &str> = symbols.filter_map(|symbol| symbol.split_once('_')).collect();
    let mut programs = Programs::new();
    for entry in fs::read_dir(format!("/proc/{process}/fdinfo"))? {
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
        let number = |key: &str| value(key).and_then(|value| value.parse::<f64>().ok());
        let (Some(tag), Some(runs), Some(nanoseconds)) =
            (value("prog_tag:"), number("run_cnt:"), number("run_time_ns:"))
        else {
            continue;
        };
        let name = names.get(tag).copied().unwrap_or(tag);
        let [all_runs, all_nanoseconds] = programs.entry(name.to_owned()).or_default();
        *all_runs += runs;
        *all_nanoseconds += nanoseconds;
    }
    Ok(programs)
}

/// A table of what ran between two readings, during which there were so many requests; the most expensive first. A nanosecond
/// of the guest is an instruction.
pub(super) fn table(before: &Programs, after: &Programs, requests: usize) -> String {
    let mut ran: Vec<(&str, f64, f64)> = after
        .iter()
        .map(|(name, [runs, nanoseconds])| {
            let [earlier_runs, earlier_nanoseconds] = before.get(name).copied().unwrap_or_default();
            (name.as_str(), runs - earlier_runs, nanoseconds - earlier_nanoseconds)
        })
        .filter(|(_, runs, _)| *runs > 0.0)
        .collect();
    ran.sort_by(|(.., one), (.., other)| other.total_cmp(one));
    let requests = requests as f64;
    let row = |(name, runs, instructions): (&str, f64, f64)| {
        let figures = [runs / requests, instructions / runs, instructions / requests];
        let [runs, each, all] = figures;
        vec![name.to_owned(), format!("{runs:.2}"), format!("{each:.0}"), format!("{all:.0}")]
    };
    let rows: Vec<Vec<String>> = ran.into_iter().map(row).collect();
    columns(&["program", "runs/request", "instr./run", "instr./request"], &rows)
}

/// Prints where the programs spend their time under the load: which of their functions, and which of the kernel's.
pub(super) fn profile(plan: &Plan) -> Result<()> {
    let samples = "/tmp/bench/probes";
    let mut recording = Command::new(PERF);
    let record = ["record", "--all-cpus", "--call-graph", "fp", "--event", "cpu-clock", "--count", SAMPLE_EVERY];
    recording.args(record).args(["--output", samples]);
    let mut recording = Running::start("perf", Path::new("/tmp/bench"), &mut recording)?;
    thread::sleep(Duration::from_secs(1));
    load(plan)?;
    recording.stop()?;
    let output =
        Command::new(PERF).args(["script", "--input", samples, "--fields", "ip,sym"]).output().context(PERF)?;
    print!("{}", shares(&String::from_utf8_lossy(&output.stdout)));
    Ok(())
}

/// Shares of the samples that are within a program, of a text that has the frames of each, the innermost first, and an empty
/// line behind.
fn shares(script: &str) -> String {
    let mut counts: HashMap<(String, String), f64> = HashMap::new();
    let mut all = 0.0;
    for sample in script.split("\n\n") {
        let frames: Vec<&str> =
            sample.lines().filter_map(|line| line.trim().split_once(' ')).map(|(_, symbol)| symbol).collect();
        let Some(at) = frames.iter().position(|symbol| symbol.starts_with(PREFIX)) else { continue };
        let function = frames.get(at).and_then(|symbol| symbol.strip_prefix(PREFIX)?.split_once('_'));
        let callee = at.checked_sub(1).and_then(|index| frames.get(index)).unwrap_or(&"itself");
        let key = (function.map_or("", |(_, name)| name).to_owned(), (*callee).to_owned());
        *counts.entry(key).or_default() += 1.0;
        all += 1.0;
    }
    let mut shares: Vec<_> = counts.into_iter().map(|(key, count)| (key, count / all * 100.0)).collect();
    shares.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    let rows: Vec<Vec<String>> = shares
        .into_iter()
        .filter(|(_, share)| *share >= SHOWN_FROM)
        .map(|((function, callee), share)| vec![function, callee, format!("{share:.1}")])
        .collect();
    columns(&["function", "calls", "% of the samples in programs"], &rows)
}
