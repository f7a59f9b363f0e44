//! Guarantee: a backend needs nothing but its bucket, and `coati-backend blocks …` works on one as on a directory.
#![expect(clippy::unwrap_used, reason = "these are tests, helpers included")]

#[path = "../store/buckets.rs"]
mod buckets;
#[path = "../../benches/corpus/mod.rs"]
mod corpus;
mod front;
mod tools;
mod whole;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use coati_backend::config::S3Config;

use crate::buckets::Server;

/// A file with the settings for a bucket.
pub(crate) fn settings(folder: &Path, s3: &S3Config) -> PathBuf {
    let S3Config { bucket, prefix, endpoint, insecure, access_key, secret_key, .. } = s3;
    let (access_key, secret_key) = (access_key.expose(), secret_key.expose());
    let tls_ca_path = s3.tls_ca_path.as_deref().map(Path::display).map(|path| path.to_string()).unwrap_or_default();
    let text = format!(
        "storage:\n  backend: s3\n  s3:\n    bucket: {bucket}\n    prefix: {prefix:?}\n    endpoint: {endpoint}\n    \
         insecure: {insecure}\n    access_key: {access_key}\n    secret_key: {secret_key}\n    tls_ca_path: {tls_ca_path:?}\n    \
         forcepathstyle: {}\n",
        match s3.forcepathstyle {
            coati_backend::config::PathStyle::VirtualHost => "false",
            _ => "true",
        }
    );
    let path = folder.join("backend.yaml");
    fs::write(&path, text).unwrap();
    path
}

/// `coati-backend` with these words; what it printed, and whether it ended with 0.
pub(crate) fn run(words: &[&str], settings: &Path, variables: &[(&str, &str)]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_coati-backend"))
        .args(words)
        .arg("--config")
        .arg(settings)
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// A new folder, and settings for a part of the bucket of a server.
pub(crate) fn part(server: &Server, prefix: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings(folder.path(), &server.config(prefix));
    (folder, settings)
}
