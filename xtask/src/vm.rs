//! `cargo xtask vm`: the capture tests on other kernels, with what they print.
//!
//! They are ordinary tests, which `cargo xtask test` runs with all others (`agent/tests/native_capture/guest.rs`); this
//! runs them alone.

use anyhow::Result;
use clap::Args;

use crate::commands::execute;
use crate::test::nextest;
use crate::{ebpf, setup};

/// Tells the tests that a guest that cannot be started is a failure.
pub(crate) const REQUIRED: (&str, &str) = ("COATI_TEST_GUESTS", "1");

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only guests whose name contains this: `linux_6_1_`, `linux_6_12`, `fentry`, `kprobe`, `syscall`.
    filter: Option<String>,
}

/// Builds what is needed and runs the guests.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run_for(setup::Need::Test)?;
    ebpf::build()?;
    let filter = options.filter.as_ref().map_or_else(String::new, |name| format!(" & test({name})"));
    let filter = format!("package(coati-agent) & test(guest::){filter}");
    let mut guests = nextest();
    guests.args(["--no-capture", "--no-tests=fail", "--filterset"]).arg(filter).env(REQUIRED.0, REQUIRED.1);
    execute(&mut guests)
}
