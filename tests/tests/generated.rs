//! Guarantee: files that are made of others are what those say. `cargo xtask generate` writes them.

use std::fs;

use anyhow::{Context, Result, ensure};
use coati_tests::dashboards::generated;
use coati_tests::metrics_page::{HOW, WRITE};

#[test]
fn dashboards_and_alerts_are_made_of_their_sources() -> Result<()> {
    let mut wrong = Vec::new();
    let files = generated()?;
    ensure!(files.len() >= 7, "{} files", files.len());
    for (path, text) in files {
        if std::env::var_os(WRITE).is_some() {
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        } else if fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(path.display().to_string());
        }
    }
    ensure!(wrong.is_empty(), "not as their sources say, {HOW}:\n{}", wrong.join("\n"));
    Ok(())
}
