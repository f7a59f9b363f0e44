//! What an outage of the backend costs in which the agent is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use coati_tests::outage::{Outcome, Plan};
use coati_tests::tools::target;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Seconds that the backend is away; the agent is killed in the middle.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Spans per second that an SDK sends.
    #[arg(long, default_value_t = 1000)]
    rate: u64,
    /// Requests per second that the agent sees itself.
    #[arg(long, default_value_t = 10)]
    requests: u64,
    /// Folder of binaries that were built before; without, they are built for release.
    #[arg(long)]
    pub(super) binaries: Option<PathBuf>,
}

pub(crate) fn run(options: &Options, binaries: &Path) -> Result<()> {
    let folder = target().join("bench/outage");
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder)?;
    let plan = Plan { outage: Duration::from_secs(options.seconds), rate: options.rate, requests: options.requests };
    let outcome = coati_tests::outage::run(binaries, &folder, &plan)?;
    let Outcome { acknowledged, arrived, missing, seen, not_seen, twice, queued_bytes, restarted_in, drained_in } =
        &outcome;
    println!(
        "backend away for {} s, {} spans/s from an SDK, {} requests/s seen",
        options.seconds, options.rate, options.requests
    );
    println!("acknowledged: {acknowledged} spans; arrived: {arrived}; more than once: {twice}");
    let lost: u64 = missing.iter().map(|(spans, _)| spans).sum();
    let earliest = missing.iter().map(|(_, before)| *before).max().unwrap_or_default();
    println!("not arrived: {lost} spans, acknowledged {} ms before the kill at the earliest", earliest.as_millis());
    println!("requests seen by an agent that could queue them: {seen}; without a span: {}", not_seen.len());
    println!(
        "on disk when the backend came back: {:.1} MB; agent ready {:.1} s after its kill",
        queued_bytes / 1e6,
        restarted_in.as_secs_f64()
    );
    println!("all sent {:.1} s after the backend was ready", drained_in.as_secs_f64());
    outcome.check()
}
