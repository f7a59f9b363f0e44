//! `cargo xtask test`: every check and every test, in the order in which a mistake is cheapest to find; but what is to be
//! installed for it comes meanwhile, and what needs that comes behind the build.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use coati_tests::tools::tools;

use crate::commands::{cargo, execute, output};
use crate::{ebpf, setup, vm};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only the tests whose name contains this (no format, lint or license checks).
    filter: Option<String>,
}

/// Tests make the backend crash at certain places; the same in all steps, so that nothing is compiled twice.
pub(crate) const FEATURES: [&str; 2] = ["--features", "coati-backend/failpoints"];

/// All packages that can be linked: the fuzz targets are only checked, with the lints.
const LINKED: [&str; 3] = ["--workspace", "--exclude", "coati-fuzz"];

/// Times of the steps, for the table at the end.
struct Clock(Vec<(&'static str, Duration)>);

impl Clock {
    fn step(&mut self, name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("── {name}");
        let begin = Instant::now();
        let result = work().with_context(|| format!("step failed: {name}"));
        self.0.push((name, begin.elapsed()));
        result
    }

    fn print(&self) {
        println!("── what took the time");
        for (name, time) in &self.0 {
            println!("{:7.1} s  {name}", time.as_secs_f64());
        }
        let all: Duration = self.0.iter().map(|(_, time)| time).sum();
        println!("{:7.1} s  in all", all.as_secs_f64());
    }
}

/// Runs the checks and the tests; the runner's own closing lines come last.
pub(crate) fn run(options: &Options) -> Result<()> {
    let mut clock = Clock(Vec::new());
    clock.step("setup for the build", || setup::run_for(setup::Need::Build))?;
    // What only tests need comes over the network while the processors compile.
    std::thread::scope(|scope| {
        let setup = scope.spawn(|| setup::run_for(setup::Need::Test));
        check_and_build(options, &mut clock)?;
        clock.step("rest of the setup", || setup.join().map_err(|_| anyhow!("setup panicked"))?)
    })?;
    if options.filter.is_none() {
        clock.step("licenses, bans, sources", || {
            execute(
                cargo()
                    .args(["--quiet", "deny", "--log-level", "error", "check", "bans", "licenses", "sources"])
                    .env("PATH", path()),
            )
        })?;
    }
    warn_of_what_is_not_covered();

    // The figures are printed before the last step's own closing lines, and the last step's time after them would
    // hide those: so the tests' output is shown as it comes, and their closing lines are said once more at the end.
    let begin = Instant::now();
    let mut tests = nextest();
    tests.args(["--cargo-quiet", "--no-tests=fail", "--status-level=slow", "--final-status-level=fail"]);
    tests.env(vm::REQUIRED.0, vm::REQUIRED.1);
    if let Some(filter) = &options.filter {
        tests.arg(filter);
    }
    println!("── tests");
    let summary = closing_lines(&mut tests)?;
    clock.0.push(("tests", begin.elapsed()));
    clock.print();
    println!("{}", summary.text);
    if !summary.success {
        bail!("tests failed");
    }
    Ok(())
}

/// The checks that need no more than the compilers, and the programs and tests.
fn check_and_build(options: &Options, clock: &mut Clock) -> Result<()> {
    if options.filter.is_none() {
        // Those outside the workspace too.
        clock.step("format", || {
            ["Cargo.toml", "agent-ebpf/Cargo.toml"].iter().try_for_each(|manifest| {
                execute(cargo().args(["fmt", "--all", "--check", "--manifest-path", manifest]))
            })
        })?;
    }
    clock.step("kernel programs", ebpf::build)?;
    if options.filter.is_none() {
        clock.step("lints", || {
            let mut clippy = cargo();
            clippy.args(["clippy", "--workspace", "--all-targets", "--quiet"]).args(FEATURES);
            execute(clippy.args(["--", "-D", "warnings"]))
        })?;
    }
    // The programs and their tests at once: what tests alone depend on adds features to what both do, and built apart
    // nearly everything would be compiled twice.
    clock.step("build", || {
        execute(cargo().arg("build").args(LINKED).args(["--bins", "--tests", "--quiet"]).args(FEATURES))
    })
}

/// The runner, for the tests of all packages.
pub(crate) fn nextest() -> Command {
    let mut command = cargo();
    command.args(["nextest", "run"]).args(LINKED).args(FEATURES).env("PATH", path());
    command
}

/// `PATH` with the check tools that `setup` installed.
fn path() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([tools().join("check/bin")]);
    std::env::join_paths(folders.collect::<Vec<PathBuf>>()).unwrap_or(path)
}

struct Summary {
    text: String,
    success: bool,
}

/// Runs the tests with their output on ours, and keeps the runner's summary.
fn closing_lines(command: &mut Command) -> Result<Summary> {
    use std::io::{BufRead, BufReader};
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().context("cannot start cargo nextest")?;
    let mut text = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines() {
            let line = line?;
            eprintln!("{line}");
            if line.contains("Summary [") {
                text.clear();
            }
            text.push(line);
        }
    }
    let success = child.wait()?.success();
    text.retain(|line| line.contains("Summary [") || line.contains(" passed"));
    Ok(Summary { text: text.join("\n"), success })
}

fn warn_of_what_is_not_covered() {
    let root = output(Command::new("id").arg("-u")).is_some_and(|id| id.trim() == "0");
    if !root {
        println!("NOT COVERED: not root, so no kernel program is loaded and the end-to-end tests of the agent fail");
    }
    println!("NOT COVERED here: kernels other than this one, 6.1 and 6.12, a real GPU, the vulnerability database");
}
