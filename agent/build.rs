//! Puts the kernel programs, which another compiler builds, where `ebpf` embeds them from.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::exit;

/// Path of the object, if it is not where `cargo xtask ebpf` puts it.
const OBJECT: &str = "COATI_EBPF_OBJECT";
/// `1`: build without the programs. Loading them then fails; everything else works.
const SKIP: &str = "COATI_EBPF_SKIP";

fn main() {
    println!("cargo:rerun-if-env-changed={OBJECT}");
    println!("cargo:rerun-if-env-changed={SKIP}");
    if let Err(reason) = embed() {
        println!("cargo:error={reason}");
        exit(1);
    }
}

fn embed() -> Result<(), String> {
    let variable = |name: &str| env::var_os(name).ok_or_else(|| format!("{name} is not set"));
    let embedded = PathBuf::from(variable("OUT_DIR")?).join("coati.bpf");
    let object = match env::var_os(OBJECT) {
        Some(path) => PathBuf::from(path),
        None => Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../target/bpf/coati"),
    };
    println!("cargo:rerun-if-changed={}", object.display());
    let write = |bytes: &[u8]| fs::write(&embedded, bytes).map_err(|error| format!("{}: {error}", embedded.display()));
    if env::var_os(SKIP).is_some_and(|value| value == "1") {
        return write(&[]);
    }
    match fs::read(&object) {
        Ok(bytes) => write(&bytes),
        Err(error) => Err(format!(
            "the kernel programs cannot be read from {}: {error}; run `cargo xtask ebpf`, or set {SKIP}=1 to build without them",
            object.display()
        )),
    }
}
