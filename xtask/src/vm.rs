//! `cargo xtask vm`: the capture tests on other kernels, with what they print.
//!
//! They are ordinary tests, which `cargo xtask test` runs with all others (`agent/tests/native_capture/guest.rs`); this
//! runs them alone.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::commands::execute;
use crate::test::nextest;
use crate::{ebpf, setup};

/// Tells the tests which kernel to start, if it is none of Debian's that `setup` has put there.
const KERNEL: &str = "COATI_TEST_KERNEL";

/// Tells the tests that a guest that cannot be started is a failure.
pub(crate) const REQUIRED: (&str, &str) = ("COATI_TEST_GUESTS", "1");

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only guests whose name contains this: `linux_6_1_`, `linux_6_12`, `fentry`, `kprobe`, `syscall`.
    filter: Option<String>,
    /// Another kernel instead: an image (`vmlinuz`), or a Debian package that has one.
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
}

/// Builds what is needed and runs the guests.
pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run_for(setup::Need::Test)?;
    ebpf::build()?;
    let filter = options.filter.as_ref().map_or_else(String::new, |name| format!(" & test({name})"));
    let unpacked = tempfile::tempdir()?;
    let mut guests = nextest();
    guests.args(["--no-capture", "--no-tests=fail", "--filterset"]);
    match &options.kernel {
        None => guests.arg(format!("package(coati-agent) & test(guest::the_tests_pass){filter}")),
        Some(file) => guests
            .arg(format!("package(coati-agent) & test(guest::on_a_kernel){filter}"))
            .args(["--run-ignored", "only"])
            .env(KERNEL, image(file, unpacked.path())?),
    };
    execute(guests.env(REQUIRED.0, REQUIRED.1))
}

/// The kernel's image that `file` is, or has in it, which is unpacked into `folder` then.
fn image(file: &Path, folder: &Path) -> Result<PathBuf> {
    if file.extension().is_none_or(|extension| extension != "deb") {
        return file.canonicalize().with_context(|| file.display().to_string());
    }
    execute(Command::new("dpkg-deb").arg("--extract").arg(file).arg(folder))?;
    // In `boot`, or, of newer packages, in `usr/lib/modules/VERSION`.
    let is_image = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"));
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if is_image(&entry.path()) {
                return Ok(entry.path());
            }
        }
    }
    anyhow::bail!("no kernel in {}", file.display())
}
