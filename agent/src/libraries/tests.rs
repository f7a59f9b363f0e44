use std::{
    collections::HashSet,
    fmt::Write as _,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use aya::programs::ProgramError;
use coati_common::{event::Connection, go::Layout, python::Interpreter};

use super::*;
use crate::{
    capture::{CaptureError, Health, Record},
    discover::elf::{library, program},
    ebpf::{GoCall, LibraryCall, LoopCall, ProbePoint, PythonCall, TlsCall, UprobeError},
};

const SECOND: u64 = 1_000_000_000;

/// A kernel that lets probes into files, or not.
#[derive(Default)]
struct Kernel {
    probed: Vec<(PathBuf, Vec<ProbePoint>)>,
    refuses: bool,
    layouts: Vec<(u32, Layout)>,
    nginx: Vec<(u32, u32)>,
    node: Vec<(u32, u32)>,
    interpreters: Vec<(u32, Interpreter)>,
}

impl Source for Kernel {
    fn drain(&mut self, _: Duration, _: &mut Vec<Record>) -> Result<(), CaptureError> {
        Ok(())
    }

    fn drain_all(&mut self, _: &mut Vec<Record>) -> Result<(), CaptureError> {
        Ok(())
    }

    fn connection(&self, _: u64, _: u64) -> Result<Option<Connection>, CaptureError> {
        Ok(None)
    }

    fn skip(&mut self, _: u32) -> Result<(), CaptureError> {
        Ok(())
    }

    fn unskip(&mut self, _: u32) {}

    fn attach_probes(&mut self, path: &Path, points: &[ProbePoint]) -> Result<Attachment, UprobeError> {
        if self.refuses {
            let source = ProgramError::NotLoaded;
            return Err(UprobeError::Refused { program: "tls_read", offset: 1, source });
        }
        self.probed.push((path.to_owned(), points.to_vec()));
        Ok(Attachment::default())
    }

    fn watch_goroutines(&mut self, tgid: u32, layout: Layout) {
        self.layouts.push((tgid, layout));
    }

    fn watch_nginx(&mut self, tgid: u32, stream: u32) {
        self.nginx.push((tgid, stream));
    }

    fn watch_node(&mut self, tgid: u32, async_id: u32) {
        self.node.push((tgid, async_id));
    }

    fn watch_python(&mut self, tgid: u32, interpreter: Interpreter) {
        self.interpreters.push((tgid, interpreter));
    }

    fn forget_tls(&mut self, _: &HashSet<u32>) -> Result<Vec<Connection>, CaptureError> {
        Ok(Vec::new())
    }

    fn cuda(&self) -> Vec<(u32, coati_common::cuda::Process)> {
        Vec::new()
    }

    fn forget_cuda(&mut self, _: u32) {}

    fn health(&self) -> Result<Health, CaptureError> {
        Ok(Health::default())
    }
}

/// A directory that looks like `/proc`.
struct Node {
    proc: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        Self { proc: tempfile::tempdir().unwrap() }
    }

    fn libraries(&self) -> Libraries {
        let wanted = Wanted { tls: true, cuda: true, go: true, loops: true, python: true };
        Libraries::new(ProcTree::new(self.proc.path()), wanted)
    }

    /// A process that runs code from these files, each with its inode number and its content.
    fn process(&self, tgid: u32, executable: &str, files: &[(u32, &str, &[u8])]) {
        let folder = self.proc.path().join(tgid.to_string());
        let mappings = folder.join("map_files");
        fs::create_dir_all(&mappings).unwrap();
        let _ = symlink(executable, folder.join("exe"));
        let mut maps = String::new();
        for (inode, path, content) in files {
            writeln!(maps, "{inode:x}000-{inode:x}fff r-xp 00000000 fd:01 {inode} {path}").unwrap();
            fs::write(mappings.join(format!("{inode:x}000-{inode:x}fff")), content).unwrap();
        }
        fs::write(folder.join("maps"), maps).unwrap();
    }

    fn end(&self, tgid: u32) {
        fs::remove_dir_all(self.proc.path().join(tgid.to_string())).unwrap();
    }
}

fn tls(counters: FileCounters) -> LibraryCounters {
    LibraryCounters { tls: counters, ..LibraryCounters::default() }
}

const LIBRARY: &str = "/usr/lib/libssl.so.3";

#[test]
fn a_file_gets_its_probes_once() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    let library = library();
    node.process(10, "/usr/sbin/nginx", &[(1, "/usr/sbin/nginx", b"x"), (2, LIBRARY, &library)]);
    node.process(11, "/usr/sbin/nginx", &[(1, "/usr/sbin/nginx", b"x"), (2, LIBRARY, &library)]);
    let mut libraries = node.libraries();
    libraries.look_at_all(SECOND, &mut kernel, &mut |_| true);
    let points = [(TlsCall::Write, 0x480), (TlsCall::Read, 0x440)]
        .map(|(call, offset)| ProbePoint { call: call.into(), offset });
    assert_eq!(kernel.probed.len(), 1);
    assert!(kernel.probed[0].0.ends_with("map_files/2000-2fff"), "{:?}", kernel.probed);
    assert_eq!(kernel.probed[0].1, points);
    assert_eq!(libraries.counters(), tls(FileCounters { files: 1, ..FileCounters::default() }));
}

/// The kernel is told of each process written in Go; probes are put into the program when it asks another or speaks TLS.
#[test]
fn processes_written_in_go_are_told_of() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    // A check of the stack, and a return.
    let code = b"\x49\x3b\x66\x10\x76\x00\xc3";
    let functions = [
        ("crypto/tls.(*Conn).Read", &code[..]),
        ("crypto/tls.(*Conn).Write", code),
        ("net/http.(*persistConn).roundTrip", code),
        ("net/http.persistConnWriter.Write", code),
    ];
    let program = program(&functions);
    node.process(10, "/usr/bin/ntfy", &[(1, "/usr/bin/ntfy", &program)]);
    let mut libraries = node.libraries();
    libraries.look_at_all(SECOND, &mut kernel, &mut |_| true);
    assert_eq!((kernel.probed.len(), kernel.layouts.len()), (0, 1));
    libraries.asks(10, SECOND);
    libraries.asks(10, SECOND);
    libraries.tick(SECOND, &mut kernel, &mut |_| true);
    node.process(11, "/usr/bin/ntfy", &[(1, "/usr/bin/ntfy", &program)]);
    libraries.started(11, SECOND);
    libraries.tick(2 * SECOND, &mut kernel, &mut |_| true);
    let calls = |kernel: &Kernel| {
        let points = kernel.probed.iter().flat_map(|(_, points)| points);
        points.map(|point| point.call).collect::<Vec<_>>()
    };
    let asking = [GoCall::RoundTrip, GoCall::RoundTripWrite].map(LibraryCall::from);
    assert_eq!(calls(&kernel), asking);
    // The other functions, once.
    libraries.speaks(11, 3 * SECOND);
    libraries.tick(3 * SECOND, &mut kernel, &mut |_| true);
    libraries.speaks(10, 3 * SECOND);
    libraries.tick(4 * SECOND, &mut kernel, &mut |_| true);
    let tls_calls = [GoCall::TlsWasRead, GoCall::TlsRead, GoCall::TlsWritten, GoCall::TlsWrite].map(LibraryCall::from);
    assert_eq!(calls(&kernel), [&asking[..], &tls_calls].concat());
    let told: HashSet<_> = kernel.layouts.into_iter().collect();
    assert_eq!(told, [10, 11].map(|tgid| (tgid, Layout { number: 152, creator: 280 })).into());
    assert_eq!(libraries.counters(), tls(FileCounters { files: 1, ..FileCounters::default() }));
}

#[test]
fn what_no_observed_process_has_gets_no_probes() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    let mut libraries = node.libraries();
    node.process(10, "/usr/bin/curl", &[(1, "/usr/bin/curl", b"x"), (2, LIBRARY, &library())]);
    libraries.look_at_all(0, &mut kernel, &mut |_| false);
    libraries.started(10, 0);
    libraries.tick(SECOND, &mut kernel, &mut |_| false);
    assert_eq!(kernel.probed.len(), 0);
    // It may be observed later, by its port, its pod or other rules.
    libraries.tick(5 * SECOND, &mut kernel, &mut |tgid| tgid == 10);
    libraries.look_at_all(6 * SECOND, &mut kernel, &mut |_| true);
    assert_eq!(kernel.probed.len(), 1);
}

#[test]
fn a_process_is_looked_at_when_it_has_loaded_its_libraries() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    let mut libraries = node.libraries();
    node.process(10, "/usr/bin/curl", &[(1, "/usr/bin/curl", b"x")]);
    libraries.started(10, SECOND);
    libraries.tick(SECOND, &mut kernel, &mut |_| true);
    node.process(10, "/usr/bin/curl", &[(1, "/usr/bin/curl", b"x"), (2, LIBRARY, &library())]);
    libraries.tick(SECOND + 49_000_000, &mut kernel, &mut |_| true);
    assert_eq!(kernel.probed.len(), 0);
    libraries.tick(SECOND + 50_000_000, &mut kernel, &mut |_| true);
    assert_eq!(kernel.probed.len(), 1);
}

/// A library that is loaded late is found by one of the later looks, or when the process speaks TLS.
#[rstest::rstest]
#[case::a_second(SECOND, false)]
#[case::five_seconds(5 * SECOND, false)]
#[case::half_a_minute(30 * SECOND, false)]
#[case::an_hour(3600 * SECOND, true)]
fn a_library_that_is_loaded_late_is_found(#[case] after: u64, #[case] speaks: bool) {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    let mut libraries = node.libraries();
    node.process(10, "/usr/bin/python3", &[(1, "/usr/bin/python3", b"x")]);
    libraries.started(10, 0);
    libraries.tick(after - 1, &mut kernel, &mut |_| true);
    for now in [50_000_000, SECOND, 5 * SECOND, 30 * SECOND] {
        libraries.tick(now.min(after - 1), &mut kernel, &mut |_| true);
    }
    node.process(10, "/usr/bin/python3", &[(1, "/usr/bin/python3", b"x"), (2, LIBRARY, &library())]);
    if speaks {
        libraries.tick(after, &mut kernel, &mut |_| true);
        assert_eq!(kernel.probed.len(), 0);
        libraries.speaks(10, after);
    }
    libraries.tick(after, &mut kernel, &mut |_| true);
    assert_eq!(kernel.probed.len(), 1);
}

#[test]
fn probes_are_taken_out_some_time_after_the_last_process_is_gone() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    let library = library();
    for tgid in [10, 11] {
        node.process(tgid, "/usr/bin/curl", &[(2, LIBRARY, &library)]);
    }
    let mut libraries = node.libraries();
    libraries.look_at_all(0, &mut kernel, &mut |_| true);
    libraries.ended(10, SECOND);
    node.end(10);
    libraries.forget_unused(1000 * SECOND);
    assert_eq!(libraries.counters().tls.files, 1);
    assert_eq!(libraries.take_gone(), HashSet::from([10]));

    // The record of the second one's end was lost.
    node.end(11);
    libraries.forget_unused(2000 * SECOND);
    assert_eq!(libraries.counters().tls.files, 1);
    assert_eq!(libraries.take_gone(), HashSet::from([11]));
    libraries.forget_unused(2299 * SECOND);
    assert_eq!(libraries.counters().tls.files, 1);
    libraries.forget_unused(2300 * SECOND);
    assert_eq!(libraries.counters().tls.files, 0);
}

/// Meanwhile another process has begun to use it.
#[test]
fn a_file_that_is_used_again_keeps_its_probes() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    node.process(10, "/usr/bin/curl", &[(2, LIBRARY, &library())]);
    let mut libraries = node.libraries();
    libraries.look_at_all(0, &mut kernel, &mut |_| true);
    libraries.ended(10, SECOND);
    libraries.started(10, 2 * SECOND);
    libraries.tick(3 * SECOND, &mut kernel, &mut |_| true);
    libraries.forget_unused(10_000 * SECOND);
    assert_eq!((libraries.counters().tls.files, kernel.probed.len()), (1, 1));
}

/// A copy of the same build, as another container has it, is not searched again.
#[test]
fn another_copy_of_a_build_gets_the_same_probes() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    let library = library();
    let mut copy = library.clone();
    // Without its hash table nothing would be found in it.
    let table = copy.windows(16).position(|it| it == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    copy[table..table + 16].fill(0xff);
    node.process(10, "/usr/bin/curl", &[(2, LIBRARY, &library)]);
    node.process(11, "/usr/bin/curl", &[(3, LIBRARY, &copy)]);
    let mut libraries = node.libraries();
    for tgid in [10, 11] {
        libraries.speaks(tgid, u64::from(tgid));
        libraries.tick(u64::from(tgid), &mut kernel, &mut |_| true);
    }
    assert_eq!(kernel.probed.len(), 2);
    assert_eq!(kernel.probed[0].1, kernel.probed[1].1);
}

#[test]
fn what_gets_no_probes_is_counted_by_cause() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    let mut other = library();
    let name = other.windows(9).position(|it| it == b"SSL_write").unwrap();
    other[name] = b'X';
    node.process(10, "/usr/bin/a", &[(2, LIBRARY, b"no file of that kind"), (3, "/usr/bin/a", b"x")]);
    node.process(11, "/usr/bin/a", &[(4, LIBRARY, &other)]);
    let mut libraries = node.libraries();
    libraries.look_at_all(0, &mut kernel, &mut |_| true);
    kernel.refuses = true;
    node.process(12, "/usr/bin/a", &[(5, "/opt/libssl.so.1.1", &library())]);
    libraries.speaks(12, 1);
    for now in [1, 2 * SECOND, 9 * SECOND] {
        libraries.tick(now, &mut kernel, &mut |_| true);
    }
    let expected = tls(FileCounters { files: 0, unreadable: 1, no_functions: 1, refused: 1 });
    assert_eq!(libraries.counters(), expected);
}

/// What an executable exports for TLS is probed once, whatever its processes are found to do later.
#[test]
fn an_executable_that_asks_later_gets_its_probes_once() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    node.process(10, "/usr/bin/node", &[(1, "/usr/bin/node", &library())]);
    let mut libraries = node.libraries();
    libraries.look_at_all(0, &mut kernel, &mut |_| true);
    libraries.asks(10, SECOND);
    libraries.tick(SECOND, &mut kernel, &mut |_| true);
    libraries.speaks(10, 2 * SECOND);
    libraries.tick(2 * SECOND, &mut kernel, &mut |_| true);
    assert_eq!((kernel.probed.len(), kernel.probed[0].1.len()), (1, 2));
}

/// nginx has its TLS from a shared library; its executable is looked into when it asks.
#[test]
fn processes_that_run_nginx_are_told_of() {
    let path = "/usr/sbin/nginx";
    let Ok(nginx) = fs::read(path) else {
        println!("SKIPPED: no {path}; not covered: where the probe goes in nginx");
        return;
    };
    let (node, mut kernel) = (Node::new(), Kernel::default());
    node.process(10, path, &[(1, path, &nginx), (2, LIBRARY, &library())]);
    node.process(11, path, &[(1, path, &nginx), (2, LIBRARY, &library())]);
    let mut libraries = node.libraries();
    libraries.look_at_all(0, &mut kernel, &mut |_| true);
    assert_eq!((kernel.probed.len(), kernel.nginx.len()), (1, 0));
    for tgid in [10, 11, 10] {
        libraries.asks(tgid, SECOND);
        libraries.tick(SECOND, &mut kernel, &mut |_| true);
    }
    let calls: Vec<_> = kernel.probed[1].1.iter().map(|point| point.call).collect();
    assert_eq!((kernel.probed.len(), calls), (2, vec![LoopCall::NginxSend.into()]));
    let [(10, stream), (11, other)] = kernel.nginx[..] else { panic!("{:?}", kernel.nginx) };
    assert!(stream > 0 && stream == other, "{stream:#x} {other:#x}");
}

/// Executables are searched for what they export, and for other names only if they speak TLS.
#[test]
fn an_executable_that_speaks_tls_is_searched_to_the_end() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    let mut executable = library();
    // Exports nothing; its table of all symbols is whole.
    let table = executable.windows(16).position(|it| it == [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    executable[table..table + 4].fill(0);
    node.process(10, "/usr/bin/envoy", &[(1, "/usr/bin/envoy", &executable)]);
    let mut libraries = node.libraries();
    libraries.look_at_all(0, &mut kernel, &mut |_| true);
    assert_eq!((kernel.probed.len(), libraries.counters()), (0, LibraryCounters::default()));
    libraries.speaks(10, SECOND);
    libraries.tick(SECOND, &mut kernel, &mut |_| true);
    assert_eq!(kernel.probed.len(), 1);
    assert_eq!(kernel.probed[0].1.iter().map(|point| point.offset).collect::<Vec<_>>(), [0x488, 0x448]);
}

/// Debian's Python is looked into once a process of it makes calls while it answers several requests; others that use it are told
/// of then as well.
#[test]
fn python_is_probed_when_it_is_crowded() {
    let Ok(path) = fs::canonicalize("/usr/bin/python3") else {
        println!("SKIPPED: no /usr/bin/python3; not covered: that a real Python is probed");
        return;
    };
    let (node, mut kernel) = (Node::new(), Kernel::default());
    let (path, program) = (path.to_string_lossy(), fs::read(&path).unwrap());
    for tgid in [10, 11] {
        node.process(tgid, &path, &[(1, &path, &program), (2, LIBRARY, &library())]);
    }
    let mut libraries = node.libraries();
    libraries.look_at_all(SECOND, &mut kernel, &mut |_| true);
    libraries.asks(10, SECOND);
    libraries.tick(SECOND, &mut kernel, &mut |_| true);
    assert_eq!((kernel.probed.len(), kernel.interpreters.len()), (1, 0));
    for _ in 0..2 {
        libraries.is_crowded(10, SECOND);
        libraries.tick(SECOND, &mut kernel, &mut |_| true);
    }
    let copies = |point: &ProbePoint| point.call == LibraryCall::Python(PythonCall::ContextCopied);
    assert_eq!(kernel.probed.len(), 2);
    assert!(kernel.probed[1].1.iter().any(copies), "{:?}", kernel.probed[1]);
    assert_eq!(kernel.interpreters.len(), 1);
    libraries.asks(11, SECOND);
    libraries.tick(2 * SECOND, &mut kernel, &mut |_| true);
    assert_eq!((kernel.probed.len(), kernel.interpreters.last().unwrap().0), (2, 11));
}

/// Contexts whose making is not seen are not believed.
#[test]
fn python_is_not_watched_where_probes_are_refused() {
    let Ok(path) = fs::canonicalize("/usr/bin/python3") else { return };
    let (node, mut kernel) = (Node::new(), Kernel { refuses: true, ..Kernel::default() });
    let (path, program) = (path.to_string_lossy(), fs::read(&path).unwrap());
    node.process(10, &path, &[(1, &path, &program)]);
    let mut libraries = node.libraries();
    libraries.is_crowded(10, SECOND);
    libraries.tick(SECOND, &mut kernel, &mut |_| true);
    assert_eq!((libraries.counters().tls.refused, kernel.interpreters.len()), (1, 0));
}

/// One that exports OpenSSL and sends requests gets its probes once, whatever else becomes known of it.
#[test]
fn an_executable_gets_the_probes_of_its_exported_library_once() {
    let (node, mut kernel) = (Node::new(), Kernel::default());
    node.process(10, "/usr/bin/node", &[(1, "/usr/bin/node", &library())]);
    let mut libraries = node.libraries();
    libraries.look_at_all(SECOND, &mut kernel, &mut |_| true);
    libraries.asks(10, SECOND);
    libraries.tick(SECOND, &mut kernel, &mut |_| true);
    libraries.is_crowded(10, SECOND);
    libraries.tick(SECOND, &mut kernel, &mut |_| true);
    assert_eq!(kernel.probed.len(), 1, "{:?}", kernel.probed);
}
