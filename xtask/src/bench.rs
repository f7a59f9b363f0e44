//! `cargo xtask bench`: measures, and prints what belongs into docs/benchmarks.md.

use anyhow::Result;
use clap::{Args, Subcommand};
use coati_tests::tools::target;

use crate::commands::{cargo, execute};
use crate::{ebpf, setup};

mod agent;
mod chain;
mod crowd;
mod guest;
mod outage;
mod programs;
mod tls;

#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// CPU per request and memory of the agent, beside an nginx under an open-loop load.
    Agent(agent::Options),
    /// Share of requests through four services on two nodes that become one trace each, and links that are wrong.
    Chain(chain::Options),
    /// Memory of the agent on a node with many processes and pods.
    Crowd(crowd::Options),
    /// A server of `crowd`.
    #[command(hide = true)]
    Serve {
        /// Port of 127.0.0.1.
        port: u16,
    },
    /// Instructions per request of the agent, in guests where they can be counted, with each set of hooks.
    Guest(guest::Options),
    /// What comes of the spans of an SDK and of requests while the backend is away and the agent is killed.
    Outage(outage::Options),
    /// What probes in a TLS library, or in a program written in Go, cost the server, with the agent's `tls` off and on.
    Tls(tls::Options),
    /// CPU per span of the backend's whole ingest path, to the committed block, next to prost's decode of the same bytes.
    Ingest,
    /// CPU per span of the metrics that are made of them, and memory with many series.
    Generator,
    /// Bytes per span of blocks, share of each column, CPU of writing, compacting and decoding them; replay, start, memory.
    Storage,
    /// CPU per million spans of each kind of query over blocks; traces by id.
    Query,
}

/// Builds for release and measures.
pub(crate) fn run(options: &Options) -> Result<()> {
    match &options.what {
        What::Agent(options) => {
            build()?;
            agent::run(options, &target().join("release"))
        }
        What::Chain(options) => {
            if let Some(binaries) = &options.binaries {
                return chain::run(options, binaries);
            }
            build()?;
            chain::run(options, &target().join("release"))
        }
        What::Crowd(options) => {
            if let Some(binaries) = &options.binaries {
                return crowd::run(options, binaries);
            }
            build()?;
            crowd::run(options, &target().join("release"))
        }
        What::Serve { port } => crowd::serve(*port),
        What::Guest(options) => guest::run(options),
        What::Outage(options) => {
            if let Some(binaries) = &options.binaries {
                return outage::run(options, binaries);
            }
            build()?;
            outage::run(options, &target().join("release"))
        }
        What::Tls(options) => {
            if let Some(binaries) = &options.binaries {
                return tls::run(options, binaries);
            }
            build()?;
            tls::run(options, &target().join("release"))
        }
        What::Ingest => bench("ingest"),
        What::Generator => bench("generator"),
        What::Storage => bench("storage"),
        What::Query => bench("query"),
    }
}

fn build() -> Result<()> {
    setup::run_for(setup::Need::Demo)?;
    ebpf::build()?;
    let packages = ["-p", "coati-agent", "-p", "coati-backend"];
    execute(cargo().args(["build", "--release", "--quiet", "--bins"]).args(packages))
}

fn bench(name: &str) -> Result<()> {
    setup::run_for(setup::Need::Demo)?;
    execute(cargo().args(["bench", "--quiet", "-p", "coati-backend", "--bench", name]))
}
