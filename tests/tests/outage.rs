//! Guarantee: an outage of the backend in which the agent is killed loses nothing that the agent had queued.
//!
//! `cargo xtask bench outage` does the same for ten minutes.

use std::time::Duration;

use anyhow::{Result, ensure};
use coati_tests::outage::{Plan, run};
use coati_tests::process;
use coati_tests::tools::binaries;

#[test]
fn what_a_killed_agent_had_queued_arrives() -> Result<()> {
    let folder = process::folder()?;
    let outcome = run(&binaries(), folder.path(), &Plan { outage: Duration::from_secs(8), rate: 1000, requests: 50 })?;
    outcome.check()?;
    ensure!(outcome.acknowledged > 2000 && outcome.queued_bytes > 0.0, "{outcome:?}");
    ensure!(outcome.seen > 50, "{outcome:?}");
    Ok(())
}
