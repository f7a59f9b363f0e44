//! The root folder of an image: a program, the C library that it was linked with, certificates, and nothing to log in with.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use coati_tests::tools::workspace;

use crate::commands::output;

const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
const PASSWD: &str = "root:x:0:0:root:/:/sbin/nologin\ncoati:x:65532:65532:coati:/var/lib/coati:/sbin/nologin\n";
const GROUP: &str = "root:x:0:\ncoati:x:65532:\n";
/// Without it the C library would ask services that are not here first.
const NAMES: &str = "hosts: files dns\n";

/// A file of an image.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct File {
    pub(super) mode: u32,
    pub(super) bytes: Vec<u8>,
}

/// Files by their paths, without the first slash.
pub(super) type Files = BTreeMap<String, File>;

/// What an image has.
#[derive(Debug)]
pub(super) struct Root {
    pub(super) files: Files,
    /// Debian's packages that files come from, with their versions.
    pub(super) packages: BTreeMap<String, String>,
}

impl Root {
    /// Of a program.
    pub(super) fn of(name: &str, binary: &Path) -> Result<Self> {
        let mut root = Self { files: Files::new(), packages: BTreeMap::new() };
        let mut add = |path: &str, mode, bytes| root.files.insert(path.to_owned(), File { mode, bytes });
        add(&format!("usr/bin/{name}"), 0o755, fs::read(binary)?);
        add("etc/passwd", 0o644, PASSWD.into());
        add("etc/group", 0o644, GROUP.into());
        add("etc/nsswitch.conf", 0o644, NAMES.into());
        add("usr/share/doc/coati/LICENSE", 0o644, fs::read(workspace().join("LICENSE"))?);
        // What is statically linked says so, and fails.
        let listing = output(Command::new("ldd").arg(binary)).unwrap_or_default();
        for path in libraries(&listing) {
            root.add_of_debian(&path, 0o755)?;
        }
        root.add_of_debian(Path::new(CERTIFICATES), 0o644)?;
        Ok(root)
    }

    fn add_of_debian(&mut self, path: &Path, mode: u32) -> Result<()> {
        let bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let place = path.to_string_lossy().trim_start_matches('/').to_owned();
        self.files.insert(place, File { mode, bytes });
        // The bundle of certificates is made by its package, which does not own it.
        let package = if path == Path::new(CERTIFICATES) { Some("ca-certificates".to_owned()) } else { owner(path) };
        let Some(package) = package else { return Ok(()) };
        let version = output(Command::new("dpkg-query").args(["-W", "-f", "${Version}"]).arg(&package));
        let copyright = format!("/usr/share/doc/{package}/copyright");
        if let Ok(bytes) = fs::read(&copyright) {
            self.files.insert(copyright.trim_start_matches('/').to_owned(), File { mode: 0o644, bytes });
        }
        self.packages.insert(package, version.unwrap_or_default());
        Ok(())
    }

    /// Writes the files below a folder.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        for (path, file) in &self.files {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap_or(folder))?;
            fs::write(&path, &file.bytes)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(file.mode))?;
        }
        Ok(())
    }
}

/// The package that a file is of. Debian's libraries are below `/usr/lib` and known by the name without `/usr`.
fn owner(path: &Path) -> Option<String> {
    let line = output(Command::new("dpkg-query").arg("-S").arg(path))?;
    Some(line.split([':', ',']).next()?.to_owned())
}

/// The files that `ldd` names.
fn libraries(listing: &str) -> Vec<PathBuf> {
    let paths = listing.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    paths.map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_and_the_libraries_are_named() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibgcc_s.so.1 => /lib/x86_64-linux-gnu/libgcc_s.so.1 (0x00007f)\n\
                       \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected =
            ["/lib/x86_64-linux-gnu/libgcc_s.so.1", "/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(libraries(listing), expected.map(PathBuf::from));
        assert!(libraries("\tstatically linked\n").is_empty());
    }
}
