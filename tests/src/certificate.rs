//! A certificate for servers of tests.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// A certificate for 127.0.0.1 that nobody has signed, and its key: files in PEM, in `folder`.
pub fn certificate(folder: &Path) -> Result<[String; 2]> {
    let files = ["certificate.pem", "key.pem"].map(|name| folder.join(name).to_string_lossy().into_owned());
    let [certificate, key] = &files;
    let arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1";
    let made = Command::new("openssl").args(arguments.split(' ')).args(["-keyout", key, "-out", certificate]).output();
    let made = made.context("cannot start openssl")?;
    ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    Ok(files)
}
