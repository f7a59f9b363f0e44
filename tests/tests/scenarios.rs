//! Guarantee: every scenario of `tests/scenarios` is answered as it says, from memory and from blocks.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use coati_tests::backend::Backend;
use coati_tests::scenario::{self, Scenario, Server};
use rstest::rstest;

/// Fewer would mean that files were not found, or read as empty.
const CASES: usize = 100;

#[rstest]
#[case::in_memory(&["--cut-idle=1h", "--cut-max-age=1h"], false)]
#[case::in_blocks(&["--cut-idle=100ms", "--cut-max-wait=100ms"], true)]
fn every_scenario_is_answered_as_it_says(#[case] flags: &[&str], #[case] in_blocks: bool) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let backend = Backend::start(folder.path(), flags)?;
    let server = Server {
        api: format!("http://{}", backend.api),
        otlp: format!("http://{}", backend.otlp_http),
        is_tempo: false,
        patience: Duration::from_secs(2),
    };
    let files = scenario::files()?;
    let scenarios = files.iter().map(|file| scenario::read(file)).collect::<Result<Vec<Scenario>>>()?;
    let sent = scenarios.iter().map(|scenario| scenario.send(&server)).collect::<Result<Vec<_>>>()?;
    if in_blocks {
        wait_until_memory_is_empty(&backend)?;
    }
    let (mut passed, mut failed) = (0, Vec::new());
    for (file, sent) in files.iter().zip(&sent) {
        let report = sent.ask(&server)?;
        passed += report.passed;
        failed.extend(report.failed.into_iter().map(|wrong| format!("{}: {wrong}", file.display())));
    }
    println!("{passed} cases passed, {} failed", failed.len());
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(passed >= CASES, "only {passed} cases");
    Ok(())
}

fn wait_until_memory_is_empty(backend: &Backend) -> Result<()> {
    let begin = Instant::now();
    while !backend.get("/metrics")?.text().lines().any(|line| line == "tempo_live_store_live_traces 0") {
        ensure!(begin.elapsed() < Duration::from_secs(30), "traces do not leave memory");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
