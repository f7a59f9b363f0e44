//! `cargo xtask`: everything that is done with this repository besides editing it.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool that talks to a person")]

mod bench;
mod commands;
mod demo;
mod dist;
mod ebpf;
mod generate;
mod scenarios;
mod setup;
mod table;
mod test;
mod vm;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Builds, runs, tests and measures Coati.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs what this machine lacks: the eBPF compiler and linker, the test servers. Does nothing the second time.
    Setup,
    /// Builds the kernel programs into target/bpf/coati.
    Ebpf,
    /// Runs Coati on this machine, with a small sample system and traffic, and prints what it sees.
    Demo(demo::Options),
    /// Builds what is released: binaries, their parts lists, images, checksums.
    Dist(dist::Options),
    /// Writes the files that are made of others: dashboards, alerts, docs/metrics.md.
    Generate,
    /// Runs every check and every test.
    Test(test::Options),
    /// Asks a server with Tempo's API what tests/scenarios says; without --url a backend of its own.
    Scenarios(scenarios::Options),
    /// Runs the capture tests in virtual machines with Debian's kernels, with each set of hooks.
    Vm(vm::Options),
    /// Measures; the results belong into docs/benchmarks.md.
    Bench(bench::Options),
}

fn main() -> Result<()> {
    match Arguments::parse().command {
        Task::Setup => setup::run(),
        Task::Ebpf => setup::run_for(setup::Need::Build).and_then(|()| ebpf::build()),
        Task::Demo(options) => demo::run(&options),
        Task::Dist(options) => dist::run(&options),
        Task::Generate => generate::run(),
        Task::Test(options) => test::run(&options),
        Task::Scenarios(options) => scenarios::run(&options),
        Task::Vm(options) => vm::run(&options),
        Task::Bench(options) => bench::run(&options),
    }
}
