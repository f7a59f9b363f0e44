//! Which files have a library in them that is probed, and where its functions lie.

use std::fs::File;

use coati_common::go::Layout;

use super::{
    Habits, go,
    maps::Mapped,
    nginx, node,
    python::{self, Python},
    uvloop,
};
use crate::{
    discover::elf::{Functions, Toolchain, toolchain},
    ebpf::{CudaCall, LibraryCall, ProbePoint, TlsCall},
};

/// Functions that probes are attached to.
const CALLS: [TlsCall; 6] =
    [TlsCall::Write, TlsCall::WriteEx, TlsCall::Read, TlsCall::ReadEx, TlsCall::Handshake, TlsCall::Free];
/// Their names in OpenSSL and `BoringSSL`.
const OPENSSL: [&str; 6] = ["SSL_write", "SSL_write_ex", "SSL_read", "SSL_read_ex", "SSL_do_handshake", "SSL_free"];
/// Their names in `GnuTLS`, which returns how much moved.
const GNUTLS: [&str; 6] = ["gnutls_record_send", "", "gnutls_record_recv", "", "gnutls_handshake", "gnutls_deinit"];

/// Functions of CUDA's driver library. What ends with `_ptsz` or `_ptds` is the same for programs that were built with a
/// default stream for each thread. The runtime and other libraries call through pointers that they ask the driver for; these
/// point to the same functions.
const CUDA: [(CudaCall, &str); 45] = [
    (CudaCall::Launch, "cuLaunchKernel"),
    (CudaCall::Launch, "cuLaunchKernel_ptsz"),
    (CudaCall::Launch, "cuLaunchKernelEx"),
    (CudaCall::Launch, "cuLaunchKernelEx_ptsz"),
    (CudaCall::Launch, "cuLaunchCooperativeKernel"),
    (CudaCall::Launch, "cuLaunchCooperativeKernel_ptsz"),
    (CudaCall::GraphLaunch, "cuGraphLaunch"),
    (CudaCall::GraphLaunch, "cuGraphLaunch_ptsz"),
    (CudaCall::CopyToDevice, "cuMemcpyHtoD_v2"),
    (CudaCall::CopyToDevice, "cuMemcpyHtoD_v2_ptds"),
    (CudaCall::CopyToDevice, "cuMemcpyHtoDAsync_v2"),
    (CudaCall::CopyToDevice, "cuMemcpyHtoDAsync_v2_ptsz"),
    (CudaCall::CopyToHost, "cuMemcpyDtoH_v2"),
    (CudaCall::CopyToHost, "cuMemcpyDtoH_v2_ptds"),
    (CudaCall::CopyToHost, "cuMemcpyDtoHAsync_v2"),
    (CudaCall::CopyToHost, "cuMemcpyDtoHAsync_v2_ptsz"),
    (CudaCall::CopyOnDevice, "cuMemcpyDtoD_v2"),
    (CudaCall::CopyOnDevice, "cuMemcpyDtoD_v2_ptds"),
    (CudaCall::CopyOnDevice, "cuMemcpyDtoDAsync_v2"),
    (CudaCall::CopyOnDevice, "cuMemcpyDtoDAsync_v2_ptsz"),
    (CudaCall::CopyPeer, "cuMemcpyPeer"),
    (CudaCall::CopyPeer, "cuMemcpyPeer_ptds"),
    (CudaCall::CopyPeer, "cuMemcpyPeerAsync"),
    (CudaCall::CopyPeer, "cuMemcpyPeerAsync_ptsz"),
    (CudaCall::Copy, "cuMemcpy"),
    (CudaCall::Copy, "cuMemcpy_ptds"),
    (CudaCall::Copy, "cuMemcpyAsync"),
    (CudaCall::Copy, "cuMemcpyAsync_ptsz"),
    (CudaCall::Allocate, "cuMemAlloc_v2"),
    (CudaCall::Allocate, "cuMemAllocManaged"),
    (CudaCall::Allocate, "cuMemAllocAsync"),
    (CudaCall::Allocate, "cuMemAllocAsync_ptsz"),
    (CudaCall::Allocate, "cuMemAllocFromPoolAsync"),
    (CudaCall::Allocate, "cuMemAllocFromPoolAsync_ptsz"),
    (CudaCall::Allocate, "cuMemCreate"),
    (CudaCall::AllocatePitch, "cuMemAllocPitch_v2"),
    (CudaCall::Free, "cuMemFree_v2"),
    (CudaCall::Free, "cuMemFreeAsync"),
    (CudaCall::Free, "cuMemFreeAsync_ptsz"),
    (CudaCall::Free, "cuMemRelease"),
    (CudaCall::Synchronize, "cuCtxSynchronize"),
    (CudaCall::Synchronize, "cuCtxSynchronize_v2"),
    (CudaCall::Synchronize, "cuStreamSynchronize"),
    (CudaCall::Synchronize, "cuStreamSynchronize_ptsz"),
    (CudaCall::Synchronize, "cuEventSynchronize"),
];

/// What is looked for in processes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a group of probes, and any of them may be missing")]
pub struct Wanted {
    /// TLS libraries.
    pub tls: bool,
    /// CUDA's driver library.
    pub cuda: bool,
    /// TLS in programs written in Go, and for which request they ask others.
    pub go: bool,
    /// For which request programs with event loops ask others.
    pub loops: bool,
    /// The same of Python.
    pub python: bool,
}

impl Wanted {
    /// Whether it matters that a process asks another.
    pub(super) const fn asking(self) -> bool {
        self.go || self.loops || self.python
    }
}

/// What a file is expected to have in it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    /// OpenSSL, or `BoringSSL`.
    OpenSsl,
    /// `GnuTLS`.
    GnuTls,
    /// Node.js.
    Node,
    /// Whatever a program was linked with.
    Executable,
    /// CUDA's driver.
    Cuda,
    /// CPython as a library.
    Python,
    /// uvloop, an event loop of Python.
    Uvloop,
}

impl Kind {
    /// Whether it depends on what its processes do what it is probed for.
    pub(super) const fn depends_on_habits(self) -> bool {
        matches!(self, Self::Executable | Self::Python | Self::Uvloop)
    }

    const fn is_wanted(self, wanted: Wanted) -> bool {
        match self {
            Self::OpenSsl | Self::GnuTls => wanted.tls,
            Self::Node => wanted.loops,
            Self::Executable => wanted.tls || wanted.asking(),
            Self::Cuda => wanted.cuda,
            Self::Python | Self::Uvloop => wanted.python,
        }
    }
}

/// What is done with a file.
#[derive(Clone, Debug, Default)]
pub(super) struct Probes {
    /// Where its probes go.
    pub(super) points: Vec<ProbePoint>,
    /// What the kernel programs are to know of the processes that run it.
    pub(super) runtime: Option<Runtime>,
}

/// How a program keeps for which request it works.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Runtime {
    /// It is written in Go, and its goroutines have their numbers there.
    Go(Layout),
    /// It is nginx, and a request has its HTTP/2 stream there; 0 if that is not known.
    Nginx { stream: u32 },
    /// It is Node.js, and an object has its async id there; 0 if that is not known.
    Node { async_id: u32 },
    /// It is CPython.
    Python(Python),
}

/// Why a file gets no probes.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Unusable {
    /// It cannot be opened, or is no ELF file.
    #[error("the file cannot be read")]
    Unreadable,
    /// It has none of the functions.
    #[error("the file has none of the library's functions")]
    NoFunctions,
}

/// Of the files from which a process runs code, those that may have a library in them that is wanted: by their names, and
/// the executable if there is no shared OpenSSL, or if the process asks others, as for Node.js and Python.
pub(super) fn candidates(
    files: &[Mapped],
    executable: Option<&str>,
    asks: bool,
    wanted: Wanted,
) -> Vec<(Mapped, Kind)> {
    let mut found: Vec<_> = files.iter().filter_map(|file| Some((file.clone(), shared(&file.path)?))).collect();
    found.retain(|(_, kind)| *kind != Kind::Node || asks);
    let has_openssl = found.iter().any(|(_, kind)| *kind == Kind::OpenSsl);
    if (!has_openssl || asks && wanted.asking())
        && let Some(file) = files.iter().find(|file| Some(file.path.as_str()) == executable)
    {
        found.push((file.clone(), Kind::Executable));
    }
    found.retain(|(_, kind)| kind.is_wanted(wanted));
    found
}

/// Whether a library has the interpreter in it, as `libpython3.11.so.1.0` has; `libpython3.so` refers to that only.
fn is_python(name: &str) -> bool {
    name.strip_prefix("libpython3.").is_some_and(|rest| rest.starts_with(|it: char| it.is_ascii_digit()))
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
    } else if is_library && is_named("libnode") {
        Some(Kind::Node)
    } else if name == "libcuda.so" || name.starts_with("libcuda.so.") {
        Some(Kind::Cuda)
    } else if is_library && is_python(name) {
        Some(Kind::Python)
    } else if is_library && name.starts_with("loop.") && path.ends_with(&format!("/uvloop/{name}")) {
        Some(Kind::Uvloop)
    } else {
        None
    }
}

/// A file that may have a TLS library in it.
pub(super) struct Library<'a> {
    file: &'a File,
    path: &'a str,
    functions: Functions<'a, File>,
    kind: Kind,
}

impl<'a> Library<'a> {
    pub(super) fn of(file: &'a File, path: &'a str, kind: Kind) -> Result<Self, Unusable> {
        let functions = Functions::of(file).ok_or(Unusable::Unreadable)?;
        Ok(Self { file, path, functions, kind })
    }

    /// What the linker has named this build.
    pub(super) fn build_id(&self) -> Option<Vec<u8>> {
        self.functions.build_id()
    }

    /// Where the functions lie. Names that are not exported are looked for in an executable that speaks TLS; one written in Go
    /// has a library of its own, which is looked for if it speaks TLS or asks others: there are many such programs that do
    /// neither, and each probe takes the kernel long to take out. What is exported for TLS is given once (`is_first`), whatever
    /// else the processes do later.
    pub(super) fn probes(&self, habits: Habits, is_first: bool, wanted: Wanted) -> Result<Probes, Unusable> {
        let points = match self.kind {
            Kind::Cuda => cuda_points(&self.functions.exported(CUDA.map(|(_, name)| name)))?,
            Kind::OpenSsl => points(self.functions.exported(OPENSSL)).ok_or(Unusable::NoFunctions)?,
            Kind::GnuTls => points(self.functions.exported(GNUTLS)).ok_or(Unusable::NoFunctions)?,
            Kind::Node => return node::probes(self.file, &self.functions).ok_or(Unusable::NoFunctions),
            // What it has is not asked for, or not known.
            Kind::Python => return Ok(self.of_python(habits, wanted).unwrap_or_default()),
            Kind::Uvloop if !habits.is_crowded => return Ok(Probes::default()),
            Kind::Uvloop => uvloop::points(&self.functions).ok_or(Unusable::NoFunctions)?,
            Kind::Executable => return self.of_executable(habits, is_first, wanted),
        };
        Ok(Probes { points, runtime: None })
    }

    /// Of CPython, where that is wanted.
    fn of_python(&self, habits: Habits, wanted: Wanted) -> Option<Probes> {
        let is_asked_for = wanted.python && habits.is_crowded;
        let (points, python) = is_asked_for.then(|| python::probes(&self.functions, self.path)).flatten()?;
        Some(Probes { points, runtime: Some(Runtime::Python(python)) })
    }

    fn of_executable(&self, habits: Habits, is_first: bool, wanted: Wanted) -> Result<Probes, Unusable> {
        let is_go = toolchain(self.file) == Some(Toolchain::Go);
        if is_go && wanted.go {
            return go::probes(self.file, &self.functions, habits);
        }
        let asks = habits.asks && wanted.loops;
        let nginx = if asks { nginx::probes(self.file, &self.functions) } else { None };
        let mut probes = nginx.unwrap_or_default();
        if let Some(python) = self.of_python(habits, wanted) {
            probes.points.extend(python.points);
            probes.runtime = python.runtime;
        }
        if asks && let Some(node) = node::probes(self.file, &self.functions) {
            probes.points.extend(node.points);
            probes.runtime = probes.runtime.or(node.runtime);
        }
        if wanted.tls {
            let exported = points(self.functions.exported(OPENSSL));
            let tls = match exported {
                Some(exported) => is_first.then_some(exported),
                None if habits.speaks_tls && !is_go => points(self.functions.local(OPENSSL)),
                None => None,
            };
            probes.points.extend(tls.into_iter().flatten());
        }
        if probes.points.is_empty() { Err(Unusable::NoFunctions) } else { Ok(probes) }
    }
}

/// Each place once: a function may have several names, and each call is to be counted once.
fn cuda_points(offsets: &[Option<u64>]) -> Result<Vec<ProbePoint>, Unusable> {
    let mut points: Vec<ProbePoint> = Vec::new();
    for ((call, _), offset) in CUDA.into_iter().zip(offsets) {
        if let Some(offset) = *offset
            && !points.iter().any(|point| point.offset == offset)
        {
            points.push(ProbePoint { call: call.into(), offset });
        }
    }
    if points.is_empty() { Err(Unusable::NoFunctions) } else { Ok(points) }
}

/// `None` without both directions: half of an exchange is none.
fn points(offsets: [Option<u64>; 6]) -> Option<Vec<ProbePoint>> {
    let points: Vec<_> = CALLS
        .into_iter()
        .zip(offsets)
        .filter_map(|(call, offset)| Some(ProbePoint { call: call.into(), offset: offset? }))
        .collect();
    let has = |call: TlsCall| points.iter().any(|point| point.call == LibraryCall::Tls(call));
    (has(TlsCall::Write) && has(TlsCall::Read)).then_some(points)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::libraries::maps;

    const ALL: Wanted = Wanted { tls: true, cuda: true, go: true, loops: true, python: true };

    #[rstest]
    #[case::openssl("/usr/lib/x86_64-linux-gnu/libssl.so.3", Some(Kind::OpenSsl))]
    #[case::old("/usr/lib/libssl.so.1.1", Some(Kind::OpenSsl))]
    #[case::of_a_wheel("/app/psycopg2_binary.libs/libssl-28bef1ac.so.1.1", Some(Kind::OpenSsl))]
    #[case::gnutls("/usr/lib/x86_64-linux-gnu/libgnutls.so.30.34.3", Some(Kind::GnuTls))]
    #[case::of_nss("/usr/lib/libssl3.so", None)]
    #[case::wrapper("/usr/lib/libgnutlsxx.so.28", None)]
    #[case::node("/usr/lib/x86_64-linux-gnu/libnode.so.108", Some(Kind::Node))]
    #[case::cuda("/usr/lib/x86_64-linux-gnu/libcuda.so.580.65.06", Some(Kind::Cuda))]
    #[case::cuda_by_its_link("/usr/local/cuda/compat/libcuda.so.1", Some(Kind::Cuda))]
    #[case::cuda_runtime("/app/lib/libcudart.so.12", None)]
    #[case::cuda_debugger("/usr/lib/libcudadebugger.so.1", None)]
    #[case::python("/usr/local/lib/libpython3.12.so.1.0", Some(Kind::Python))]
    #[case::python_of_old("/usr/lib/libpython3.7m.so.1.0", Some(Kind::Python))]
    #[case::python_without_its_version("/usr/lib/libpython3.so", None)]
    #[case::uvloop("/app/site-packages/uvloop/loop.cpython-312-x86_64-linux-gnu.so", Some(Kind::Uvloop))]
    #[case::another_loop("/app/site-packages/game/loop.cpython-312-x86_64-linux-gnu.so", None)]
    #[case::other("/usr/lib/libc.so.6", None)]
    #[case::no_library("/usr/bin/libssl.txt", None)]
    fn libraries_are_known_by_their_names(#[case] path: &str, #[case] expected: Option<Kind>) {
        assert_eq!(shared(path), expected);
    }

    #[test]
    fn the_executable_is_a_candidate_without_a_shared_openssl_or_if_it_asks() {
        let line = |inode: u32, path: &str| format!("1000-2000 r-xp 00000000 fd:01 {inode} {path}\n");
        let kinds = |paths: &[&str], asks| {
            let maps: String = paths.iter().zip(1..).map(|(path, inode)| line(inode, path)).collect();
            let found = candidates(&maps::files(maps.as_bytes()), Some("/usr/bin/node"), asks, ALL);
            found.into_iter().map(|(_, kind)| kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(&["/usr/bin/node", "/lib/libc.so.6"], false), [Kind::Executable]);
        assert_eq!(kinds(&["/usr/bin/node", "/lib/libgnutls.so.30"], false), [Kind::GnuTls, Kind::Executable]);
        assert_eq!(kinds(&["/usr/bin/node", "/lib/libssl.so.3"], false), [Kind::OpenSsl]);
        assert_eq!(kinds(&["/usr/bin/node", "/lib/libssl.so.3"], true), [Kind::OpenSsl, Kind::Executable]);
        assert_eq!(kinds(&["/usr/bin/other"], true), []);
    }

    /// It has OpenSSL in a library, and is looked into all the same.
    #[test]
    fn python_is_a_candidate() {
        let maps = "1000-2000 r-xp 0 fd:01 1 /usr/bin/python3.11\n3000-4000 r-xp 0 fd:01 2 /usr/lib/libssl.so.3\n";
        let found = candidates(&maps::files(maps.as_bytes()), Some("/usr/bin/python3.11"), true, ALL);
        let kinds: Vec<_> = found.into_iter().map(|(_, kind)| kind).collect();
        assert_eq!(kinds, [Kind::OpenSsl, Kind::Executable]);
    }

    #[rstest]
    #[case::both([Some(1), None, Some(2), None, None, None], Some(2))]
    #[case::all([Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)], Some(6))]
    #[case::one_direction([Some(1), Some(2), None, None, None, Some(5)], None)]
    #[case::none([None; 6], None)]
    fn both_directions_must_be_there(#[case] offsets: [Option<u64>; 6], #[case] count: Option<usize>) {
        assert_eq!(points(offsets).map(|points| points.len()), count);
    }

    #[test]
    fn only_what_is_wanted_is_a_candidate() {
        let maps = "1000-2000 r-xp 0 fd:01 1 /usr/bin/node\n3000-4000 r-xp 0 fd:01 2 /usr/lib/libcuda.so.1\n";
        let kinds = |tls, cuda| {
            let wanted = Wanted { tls, cuda, go: false, loops: false, python: false };
            let found = candidates(&maps::files(maps.as_bytes()), Some("/usr/bin/node"), true, wanted);
            found.into_iter().map(|(_, kind)| kind).collect::<Vec<_>>()
        };
        assert_eq!(kinds(true, true), [Kind::Cuda, Kind::Executable]);
        assert_eq!(kinds(false, true), [Kind::Cuda]);
        assert_eq!(kinds(true, false), [Kind::Executable]);
        assert_eq!(kinds(false, false), []);
    }

    /// `cuMemcpyAsync` and its variant for threads may be one function.
    #[test]
    fn a_function_with_two_names_is_probed_once() {
        let mut offsets = [None; CUDA.len()];
        (offsets[0], offsets[1], offsets[6]) = (Some(0x40), Some(0x40), Some(0x80));
        let points = cuda_points(&offsets).unwrap();
        let expected = [(CudaCall::Launch, 0x40), (CudaCall::GraphLaunch, 0x80)];
        assert_eq!(points, expected.map(|(call, offset)| ProbePoint { call: call.into(), offset }));
        assert_eq!(cuda_points(&[None; CUDA.len()]), Err(Unusable::NoFunctions));
    }
}
