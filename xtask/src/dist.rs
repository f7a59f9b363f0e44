//! `cargo xtask dist`: what is released, without a Docker engine.
//!
//! `target/dist` has the two programs, for each a list of its parts (`CycloneDX`) and an image (an OCI layout as a folder and
//! as a tar file), and `SHA256SUMS` of the files.

mod oci;
mod root;
mod sbom;

use std::fmt::Write;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use coati_tests::tools::{target, workspace};
use sha2::{Digest, Sha256};

use crate::commands::{cargo, execute, output};
use crate::{ebpf, setup};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where to put it; what is there is replaced.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Also the root folder of each image, for a build of images that copies it (deploy/docker).
    #[arg(long)]
    roots: bool,
}

/// A program that is released.
struct Program {
    name: &'static str,
    /// User and group in its image.
    user: &'static str,
    ports: &'static [&'static str],
    /// Other workspaces whose code is in it.
    more: &'static [&'static str],
}

const PROGRAMS: [Program; 2] = [
    // Root, with the few capabilities that deploy/kubernetes gives to it.
    Program { name: "coati-agent", user: "0:0", ports: &["9400/tcp"], more: &["agent-ebpf/Cargo.toml"] },
    Program { name: "coati-backend", user: "65532:65532", ports: &["3200/tcp", "4317/tcp", "4318/tcp"], more: &[] },
];

const OBJCOPY: &str = "/usr/lib/llvm-22/bin/llvm-objcopy";

pub(crate) fn run(options: &Options) -> Result<()> {
    setup::run_for(setup::Need::Build)?;
    ebpf::build()?;
    let git = |arguments: &[&str]| {
        let text = output(Command::new("git").args(arguments).current_dir(workspace())).unwrap_or_default();
        text.trim().to_owned()
    };
    let mut build = cargo();
    build.args(["build", "--release", "--locked", "-p", "coati-agent", "-p", "coati-backend", "--bins"]);
    build.env("COATI_REVISION", git(&["rev-parse", "HEAD"]));
    execute(&mut build)?;

    let out = options.out.clone().unwrap_or_else(|| target().join("dist"));
    let _ = fs::remove_dir_all(&out);
    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    // The same commit gives the same bytes, as far as the compiler does.
    let created = git(&["log", "-1", "--format=%cI"]);
    let created = if created.is_empty() { "1970-01-01T00:00:00Z".to_owned() } else { created };
    for program in &PROGRAMS {
        release(program, &out, &created, options.roots).with_context(|| program.name.to_owned())?;
    }
    let sums = sums(&out)?;
    fs::write(out.join("SHA256SUMS"), &sums)?;
    print!("{sums}");
    println!("dist: {}", out.display());
    Ok(())
}

fn release(program: &Program, out: &Path, created: &str, with_root: bool) -> Result<()> {
    let Program { name, .. } = program;
    let binary = out.join(name);
    let built = target().join("release").join(name);
    execute(Command::new(OBJCOPY).arg("--strip-debug").arg(&built).arg(&binary))?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755))?;

    let root = root::Root::of(name, &binary)?;
    let workspaces = [&["Cargo.toml"], program.more].concat();
    let metadata = workspaces.iter().map(|manifest| sbom::metadata(manifest)).collect::<Result<Vec<_>>>()?;
    let parts = sbom::document(name, env!("CARGO_PKG_VERSION"), created, &metadata, &root.packages)?;
    fs::write(out.join(format!("{name}.cdx.json")), serde_json::to_string_pretty(&parts)? + "\n")?;

    let image = oci::Image {
        name,
        version: env!("CARGO_PKG_VERSION"),
        created,
        architecture: architecture(),
        user: program.user,
        entrypoint: &format!("/usr/bin/{name}"),
        ports: program.ports,
    };
    let layout = out.join(format!("{name}.oci"));
    oci::write(&image, &root.files, &layout)?;
    oci::pack(&layout, &out.join(format!("{name}.oci.tar")))?;
    if with_root {
        root.write(&out.join(format!("{name}.root")))?;
    }
    Ok(())
}

/// As Go, and so images, call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Digests of the files of a folder, in the format of `sha256sum`.
fn sums(folder: &Path) -> Result<String> {
    let mut paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.is_file());
    paths.sort();
    let line = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(format!("{}  {name}\n", digest(&fs::read(path)?)))
    };
    paths.iter().map(line).collect()
}

/// SHA-256 in hexadecimal.
fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b"), "abc").unwrap();
        fs::write(folder.path().join("a"), "").unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        let expected = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  a\n\
                        ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  b\n";
        assert_eq!(sums(folder.path()).unwrap(), expected);
    }
}
