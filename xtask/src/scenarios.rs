//! `cargo xtask scenarios`: the cases of `tests/scenarios` against any server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use coati_tests::backend::Backend;
use coati_tests::scenario::{self, Report, Server};

use crate::commands::{cargo, execute};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Tempo's API of the server, such as <http://127.0.0.1:3200> [default: a backend that is built and started]
    #[arg(long, requires = "otlp")]
    url: Option<String>,
    /// OTLP over HTTP of the server, such as <http://127.0.0.1:4318>
    #[arg(long, requires = "url")]
    otlp: Option<String>,
    /// The server is Tempo: cases that it answers differently on purpose are left out, answers get two minutes
    #[arg(long)]
    tempo: bool,
    /// Files [default: all of tests/scenarios]
    files: Vec<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let files = if options.files.is_empty() { scenario::files()? } else { options.files.clone() };
    let patience = Duration::from_secs(if options.tempo { 120 } else { 2 });
    let mut server = Server { api: String::new(), otlp: String::new(), is_tempo: options.tempo, patience };
    let folder = std::env::temp_dir().join(format!("coati-scenarios-{}", std::process::id()));
    let backend = if let (Some(url), Some(otlp)) = (&options.url, &options.otlp) {
        (server.api, server.otlp) = (url.trim_end_matches('/').to_owned(), otlp.trim_end_matches('/').to_owned());
        None
    } else {
        execute(cargo().args(["build", "--quiet", "-p", "coati-backend", "--bins"]))?;
        let backend = Backend::start(&folder, &[])?;
        (server.api, server.otlp) = (format!("http://{}", backend.api), format!("http://{}", backend.otlp_http));
        Some(backend)
    };
    let mut scenarios = Vec::new();
    for file in &files {
        scenarios.push((file, scenario::read(file)?));
    }
    // All at once, so that a server that is slow to show new spans is waited for once.
    let mut sent = Vec::new();
    for (file, scenario) in &scenarios {
        sent.push((file, scenario, scenario.send(&server).with_context(|| file.display().to_string())?));
    }
    let (mut passed, mut left_out, mut failed) = (0, 0, 0);
    for (file, scenario, sent) in sent {
        let report: Report = sent.ask(&server)?;
        println!("{}: {}", file.display(), scenario.about);
        println!("  {} passed, {} left out, {} failed", report.passed, report.left_out.len(), report.failed.len());
        report.left_out.iter().for_each(|case| println!("  left out: {case}"));
        report.failed.iter().for_each(|case| println!("  FAILED {case}"));
        passed += report.passed;
        left_out += report.left_out.len();
        failed += report.failed.len();
    }
    println!("{passed} passed, {left_out} left out, {failed} failed");
    // It stops, and then its data can go.
    drop(backend);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
    }
    if failed > 0 {
        bail!("{failed} of {} cases have another answer", passed + failed);
    }
    Ok(())
}
