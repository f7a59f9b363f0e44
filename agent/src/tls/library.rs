//! Which files have a TLS library in them, and where its functions lie.

use std::fs::File;

use super::maps::Mapped;
use crate::{
    discover::elf::{Functions, Toolchain, toolchain},
    ebpf::{TlsCall, TlsPoint},
};

/// Functions that probes are attached to.
const CALLS: [TlsCall; 6] =
    [TlsCall::Write, TlsCall::WriteEx, TlsCall::Read, TlsCall::ReadEx, TlsCall::Handshake, TlsCall::Free];
/// Their names in OpenSSL and `BoringSSL`.
const OPENSSL: [&str; 6] = ["SSL_write", "SSL_write_ex", "SSL_read", "SSL_read_ex", "SSL_do_handshake", "SSL_free"];
/// Their names in `GnuTLS`, which returns how much moved.
const GNUTLS: [&str; 6] = ["gnutls_record_send", "", "gnutls_record_recv", "", "gnutls_handshake", "gnutls_deinit"];

/// What a file is expected to have in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// OpenSSL, or `BoringSSL`.
    OpenSsl,
    /// `GnuTLS`.
    GnuTls,
    /// Whatever a program was linked with.
    Executable,
}

/// Why a file gets no probes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unusable {
    /// It cannot be opened, or is no ELF file.
    #[error("the file cannot be read")]
    Unreadable,
    /// It has none of the functions.
    #[error("the file has no functions of a TLS library")]
    NoFunctions,
}

/// Of the files from which a process runs code, those that may have a TLS library in them: by their names, and the
/// executable if there is no shared OpenSSL.
pub(super) fn candidates(files: &[Mapped], executable: Option<&str>) -> Vec<(Mapped, Kind)> {
    let mut found: Vec<_> = files.iter().filter_map(|file| Some((file.clone(), shared(&file.path)?))).collect();
    if !found.iter().any(|(_, kind)| *kind == Kind::OpenSsl)
        && let Some(file) = files.iter().find(|file| Some(file.path.as_str()) == executable)
    {
        found.push((file.clone(), Kind::Executable));
    }
    found
}

/// What a shared library is by its name. Packages bring copies with names of their own, such as `libssl-1a2b3c.so.1.1`.
fn shared(path: &str) -> Option<Kind> {
    let name = path.rsplit('/').next()?;
    let is_library = name.contains(".so");
    let is_named = |start: &str| name.strip_prefix(start).is_some_and(|rest| rest.starts_with(['.', '-', '_']));
    if is_library && is_named("libssl") {
        Some(Kind::OpenSsl)
    } else if is_library && is_named("libgnutls") {
        Some(Kind::GnuTls)
    } else {
        None
    }
}

/// A file that may have a TLS library in it.
pub(super) struct Library<'a> {
    file: &'a File,
    functions: Functions<'a, File>,
    kind: Kind,
}

impl<'a> Library<'a> {
    pub(super) fn of(file: &'a File, kind: Kind) -> Result<Self, Unusable> {
        let functions = Functions::of(file).ok_or(Unusable::Unreadable)?;
        Ok(Self { file, functions, kind })
    }

    /// What the linker has named this build.
    pub(super) fn build_id(&self) -> Option<Vec<u8>> {
        self.functions.build_id()
    }

    /// Where the functions lie. Names that are not exported are looked for in an executable that `speaks` TLS; one of Go
    /// has a library of its own.
    pub(super) fn points(&self, speaks: bool) -> Result<Vec<TlsPoint>, Unusable> {
        let names = if self.kind == Kind::GnuTls { GNUTLS } else { OPENSSL };
        let exported = points(self.functions.exported(names));
        if exported.is_some() || self.kind != Kind::Executable {
            return exported.ok_or(Unusable::NoFunctions);
        }
        if !speaks || toolchain(self.file) == Some(Toolchain::Go) {
            return Err(Unusable::NoFunctions);
        }
        points(self.functions.local(names)).ok_or(Unusable::NoFunctions)
    }
}

/// `None` without both directions: half of an exchange is none.
fn points(offsets: [Option<u64>; 6]) -> Option<Vec<TlsPoint>> {
    let points: Vec<_> =
        CALLS.into_iter().zip(offsets).filter_map(|(call, offset)| Some(TlsPoint { call, offset: offset? })).collect();
    let has = |call| points.iter().any(|point| point.call == call);
    (has(TlsCall::Write) && has(TlsCall::Read)).then_some(points)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::tls::maps;

    #[rstest]
    #[case::openssl("/usr/lib/x86_64-linux-gnu/libssl.so.3", Some(Kind::OpenSsl))]
    #[case::old("/usr/lib/libssl.so.1.1", Some(Kind::OpenSsl))]
    #[case::of_a_wheel("/app/psycopg2_binary.libs/libssl-28bef1ac.so.1.1", Some(Kind::OpenSsl))]
    #[case::gnutls("/usr/lib/x86_64-linux-gnu/libgnutls.so.30.34.3", Some(Kind::GnuTls))]
    #[case::of_nss("/usr/lib/libssl3.so", None)]
    #[case::wrapper("/usr/lib/libgnutlsxx.so.28", None)]
    #[case::other("/usr/lib/libc.so.6", None)]
    #[case::no_library("/usr/bin/libssl.txt", None)]
    fn libraries_are_known_by_their_names(#[case] path: &str, #[case] expected: Option<Kind>) {
        assert_eq!(shared(path), expected);
    }

    #[test]
    fn the_executable_is_a_candidate_without_a_shared_openssl() {
        let line = |inode: u32, path: &str| format!("1000-2000 r-xp 00000000 fd:01 {inode} {path}\n");
        let kinds = |paths: &[&str]| {
            let maps: String = paths.iter().zip(1..).map(|(path, inode)| line(inode, path)).collect();
            let found = candidates(&maps::files(maps.as_bytes()), Some("/usr/bin/node"));
            found.into_iter().map(|(_, kind)| kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&["/usr/bin/node", "/lib/libc.so.6"]), [Kind::Executable]);
        assert_eq!(kinds(&["/usr/bin/node", "/lib/libgnutls.so.30"]), [Kind::GnuTls, Kind::Executable]);
        assert_eq!(kinds(&["/usr/bin/node", "/lib/libssl.so.3"]), [Kind::OpenSsl]);
        assert_eq!(kinds(&["/usr/bin/other"]), []);
    }

    #[rstest]
    #[case::both([Some(1), None, Some(2), None, None, None], Some(2))]
    #[case::all([Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)], Some(6))]
    #[case::one_direction([Some(1), Some(2), None, None, None, Some(5)], None)]
    #[case::none([None; 6], None)]
    fn both_directions_must_be_there(#[case] offsets: [Option<u64>; 6], #[case] count: Option<usize>) {
        assert_eq!(points(offsets).map(|points| points.len()), count);
    }
}
