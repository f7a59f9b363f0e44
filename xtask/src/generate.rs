//! `cargo xtask generate`: files that are made of others. The tests that compare them write them when told so.

use anyhow::Result;
use coati_tests::metrics_page::WRITE;

use crate::commands::{cargo, execute};
use crate::test::FEATURES;

/// The tests that compare.
const TESTS: [&str; 2] = ["made_of_their_sources", "the_page_of_metrics_is"];

/// Writes Grafana's dashboards and alerts, the operator's rules, and docs/metrics.md.
pub(crate) fn run() -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--quiet", "-p", "coati-tests", "-p", "coati-agent", "-p", "coati-backend", "--lib"]);
    command.args(["--test", "generated"]).args(FEATURES).arg("--").args(TESTS);
    execute(command.env(WRITE, "1"))
}
