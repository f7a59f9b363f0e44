//! Where programs are found: Coati's own binaries and what `cargo xtask setup` installed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The workspace's root folder.
pub fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().map_or_else(|| package.to_path_buf(), Path::to_path_buf)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// Folder into which `cargo xtask setup` installs what no package manager of the system has.
pub fn tools() -> PathBuf {
    workspace().join("target/tools")
}

/// Folder of Coati's binaries: `$COATI_BIN_DIR`, else that of the debug build.
pub fn binaries() -> PathBuf {
    std::env::var_os("COATI_BIN_DIR").map_or_else(|| target().join("debug"), PathBuf::from)
}

/// One of Coati's binaries.
pub fn binary(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if !path.is_file() {
        bail!("{} does not exist: run `cargo xtask test`, or build it and set COATI_BIN_DIR", path.display());
    }
    Ok(path)
}

/// A program that `cargo xtask setup` installed, by its path below [`tools`].
pub fn tool(path: &str) -> Result<PathBuf> {
    let path = tools().join(path);
    if !path.exists() {
        bail!("{} does not exist: run `cargo xtask setup`", path.display());
    }
    Ok(path)
}

/// A program of the system, from `PATH` and the folders of the administrator's programs.
pub fn system(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
        .with_context(|| format!("`{name}` is not installed: run `cargo xtask setup`"))
}
