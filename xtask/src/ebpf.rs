//! Builds the kernel programs: another compiler, another target, another lock file than the workspace's.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use coati_tests::tools::{tools, workspace};

use crate::commands::execute;

/// Debian's compiler comes with the sources of `core`, and its LLVM is the one that bpf-linker is built with.
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const OBJCOPY: &str = "/usr/lib/llvm-22/bin/llvm-objcopy";
const TARGET: &str = "bpfel-unknown-none";

/// Where the agent's build script finds the object.
pub(crate) fn object() -> PathBuf {
    workspace().join("target/bpf/coati")
}

/// Builds `agent-ebpf` and puts the object into its place, if it changed.
pub(crate) fn build() -> Result<()> {
    let folder = workspace().join("agent-ebpf");
    let mut command = Command::new(CARGO);
    command
        .current_dir(&folder)
        .args(["build", "--release", "--locked", "--target", TARGET, "-Z", "build-std=core"])
        .env("PATH", path_with_linker())
        .env("RUSTC", RUSTC)
        // Debian's compiler is a stable one; build-std and the BPF target need unstable options.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_TARGET_DIR", folder.join("target"))
        .env("CARGO_ENCODED_RUSTFLAGS", ["-Clinker=bpf-linker", "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\x1f"));
    // rustup sets these for `cargo xtask`; they would lead Debian's cargo back to rustup's compiler.
    for variable in ["RUSTUP_TOOLCHAIN", "RUSTUP_HOME", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO"] {
        command.env_remove(variable);
    }
    execute(&mut command)?;
    let built = folder.join("target").join(TARGET).join("release/coati-agent-ebpf");
    // The linker makes BTF from the debug information; only BTF is of use to the kernel, and it is a fifth of the size.
    let stripped = built.with_extension("stripped");
    execute(Command::new(OBJCOPY).arg("--strip-debug").arg(&built).arg(&stripped))?;
    let bytes = fs::read(&stripped).with_context(|| stripped.display().to_string())?;
    let object = object();
    // The same bytes keep their date, so that the agent is not built again for nothing.
    if fs::read(&object).ok().as_deref() != Some(&bytes) {
        if let Some(parent) = object.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&object, &bytes).with_context(|| object.display().to_string())?;
    }
    println!("ebpf: {} ({} bytes)", object.display(), bytes.len());
    Ok(())
}

fn path_with_linker() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(tools().join("bin")).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).unwrap_or(path)
}
