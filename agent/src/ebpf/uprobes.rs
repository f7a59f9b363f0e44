//! Probes in files: in the functions of TLS libraries, and of CUDA's driver library.

use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::{mem, thread};

use aya::Ebpf;
use aya::programs::uprobe::{UProbeLink, UProbeScope};
use aya::programs::{Program, ProgramError};
use aya::sys::SyscallError;

use super::linked::Linked;

/// A function of a TLS library, by what it does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TlsCall {
    /// Takes plaintext; returns how much.
    Write,
    /// Takes plaintext; tells how much through its fourth argument.
    WriteEx,
    /// Gives plaintext; returns how much.
    Read,
    /// Gives plaintext; tells how much through its fourth argument.
    ReadEx,
    /// Does a handshake, or a step of one.
    Handshake,
    /// Ends a session.
    Free,
}

impl TlsCall {
    /// The programs for it, in the order in which they must be attached: a call that is seen to be entered is seen to
    /// return.
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Write => &["tls_written", "tls_write"],
            Self::WriteEx => &["tls_written", "tls_write_ex"],
            Self::Read => &["tls_was_read", "tls_read"],
            Self::ReadEx => &["tls_was_read", "tls_read_ex"],
            Self::Handshake => &["tls_shaken", "tls_handshake"],
            Self::Free => &["tls_free"],
        }
    }
}

/// A function of CUDA's driver library, by what it does.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum CudaCall {
    /// Launches a kernel.
    Launch,
    /// Launches a graph.
    GraphLaunch,
    /// Copies from the host to a device; the third argument is how much, as in the next two.
    CopyToDevice,
    /// Copies from a device to the host.
    CopyToHost,
    /// Copies within a device, or between two of one context.
    CopyOnDevice,
    /// Copies between devices; the fifth argument is how much.
    CopyPeer,
    /// Copies in a direction that only the addresses tell; the third argument is how much.
    Copy,
    /// Allocates device memory; the second argument is how much.
    Allocate,
    /// Allocates rows; the third and the fourth argument are their length and number.
    AllocatePitch,
    /// Gives device memory back.
    Free,
    /// Waits for the device.
    Synchronize,
}

impl CudaCall {
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Launch => &["cuda_launch"],
            Self::GraphLaunch => &["cuda_graph_launch"],
            Self::CopyToDevice => &["cuda_copy_to_device"],
            Self::CopyToHost => &["cuda_copy_to_host"],
            Self::CopyOnDevice => &["cuda_copy_on_device"],
            Self::CopyPeer => &["cuda_copy_peer"],
            Self::Copy => &["cuda_copy"],
            Self::Allocate => &["cuda_returned", "cuda_allocate"],
            Self::AllocatePitch => &["cuda_returned", "cuda_allocate_pitch"],
            Self::Free => &["cuda_free"],
            Self::Synchronize => &["cuda_returned", "cuda_synchronize"],
        }
    }
}

/// A place in a program written in Go.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum GoCall {
    /// `crypto/tls.(*Conn).Write` begins.
    TlsWrite,
    /// It returns.
    TlsWritten,
    /// `crypto/tls.(*Conn).Read` begins.
    TlsRead,
    /// It returns.
    TlsWasRead,
    /// `crypto/tls.(*Conn).serverHandshake` begins.
    TlsHandshake,
    /// It returns.
    TlsShaken,
    /// `crypto/tls.(*Conn).Close` begins.
    TlsClose,
    /// `net/http.(*persistConn).roundTrip` begins.
    RoundTrip,
    /// `net/http.persistConnWriter.Write` begins.
    RoundTripWrite,
    /// A request of HTTP/2 is asked for.
    Ask,
    /// A request of HTTP/2 is to be answered.
    Handle,
    /// The same in the package that has it since Go 1.27.
    HandleInternal,
}

impl GoCall {
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::TlsWrite => &["go_tls_write"],
            Self::TlsWritten => &["go_tls_written"],
            Self::TlsRead => &["go_tls_read"],
            Self::TlsWasRead => &["go_tls_was_read"],
            Self::TlsHandshake => &["go_tls_handshake"],
            Self::TlsShaken => &["go_tls_shaken"],
            Self::TlsClose => &["go_tls_close"],
            Self::RoundTrip => &["go_round_trip"],
            Self::RoundTripWrite => &["go_round_trip_write"],
            Self::Ask => &["go_ask"],
            Self::Handle => &["go_handle"],
            Self::HandleInternal => &["go_handle_internal"],
        }
    }
}

/// A function of a program with an event loop.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LoopCall {
    /// nginx sends to an upstream server.
    NginxSend,
    /// Node.js calls back what it has received.
    NodeRead,
    /// uvloop does.
    UvloopRead,
    /// uvloop is given something to send.
    UvloopWrite,
}

impl LoopCall {
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::NginxSend => &["nginx_send"],
            Self::NodeRead => &["node_has_read", "node_read"],
            Self::UvloopRead => &["node_has_read", "uvloop_read"],
            Self::UvloopWrite => &["uvloop_write"],
        }
    }
}

/// A place in CPython.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PythonCall {
    /// What returns a copy of the current context, or of another.
    ContextCopied,
    /// What returns an empty one.
    ContextMade,
}

impl PythonCall {
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::ContextCopied => &["python_context_copied"],
            Self::ContextMade => &["python_context_made"],
        }
    }
}

/// A function of a library that is probed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LibraryCall {
    /// Of a TLS library.
    Tls(TlsCall),
    /// Of CUDA's driver library.
    Cuda(CudaCall),
    /// Of a program written in Go.
    Go(GoCall),
    /// Of a program with an event loop.
    Loop(LoopCall),
    /// Of CPython.
    Python(PythonCall),
}

impl LibraryCall {
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Tls(call) => call.programs(),
            Self::Cuda(call) => call.programs(),
            Self::Go(call) => call.programs(),
            Self::Loop(call) => call.programs(),
            Self::Python(call) => call.programs(),
        }
    }
}

impl From<TlsCall> for LibraryCall {
    fn from(call: TlsCall) -> Self {
        Self::Tls(call)
    }
}

impl From<CudaCall> for LibraryCall {
    fn from(call: CudaCall) -> Self {
        Self::Cuda(call)
    }
}

impl From<PythonCall> for LibraryCall {
    fn from(call: PythonCall) -> Self {
        Self::Python(call)
    }
}

impl From<GoCall> for LibraryCall {
    fn from(call: GoCall) -> Self {
        Self::Go(call)
    }
}

impl From<LoopCall> for LibraryCall {
    fn from(call: LoopCall) -> Self {
        Self::Loop(call)
    }
}

/// A function in a file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct ProbePoint {
    /// What it does.
    pub call: LibraryCall,
    /// Where in the file it begins, or the instruction lies.
    pub offset: u64,
}

/// Bytes of the stack of a thread that takes a probe out.
const DETACH_STACK: usize = 64 << 10;

/// Probes in a file, for as long as this value lives, and for a moment longer: the kernel waits for whoever may be in a
/// program, for each probe anew and up to a tenth of a second (`uprobe_unregister_sync`, kernel/events/uprobes.c), so
/// threads of their own take them out, all at once: their waits are one, and the agent's end does not take seconds.
#[derive(Debug, Default)]
pub struct Attachment {
    /// Each detaches when dropped.
    links: Vec<Link>,
}

/// One probe; it is taken out by what is in it.
#[derive(Debug)]
enum Link {
    /// By `perf_event_open`.
    Event { _link: UProbeLink },
    /// By a link of the kernel's.
    Linked { _link: OwnedFd },
}

impl Attachment {
    /// Begins to take the probes out.
    pub fn detach(mut self) -> Detaching {
        self.start_to_detach()
    }

    /// These and others in the same file.
    #[must_use]
    pub fn with(mut self, mut others: Self) -> Self {
        self.links.append(&mut others.links);
        self
    }

    /// Leaves the probes to the end of the process.
    pub fn leave(mut self) {
        mem::take(&mut self.links).into_iter().for_each(mem::forget);
    }

    fn start_to_detach(&mut self) -> Detaching {
        let (links, lives) = (mem::take(&mut self.links), Arc::new(()));
        let detaching = Detaching(Arc::downgrade(&lives));
        for link in links {
            let lives = Arc::clone(&lives);
            let detach = move || {
                drop(link);
                drop(lives);
            };
            let thread = thread::Builder::new().name("detach".to_owned()).stack_size(DETACH_STACK);
            // Without a thread it is taken out here.
            let _ended_with_the_process = thread.spawn(detach);
        }
        detaching
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.start_to_detach();
    }
}

/// Probes on their way out. While they are, the same file must not get others: each call would be told twice.
#[derive(Debug)]
pub struct Detaching(Weak<()>);

impl Detaching {
    /// Whether they are out.
    pub fn is_over(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// Why a file got no probes. Then it has none at all.
#[derive(Debug, thiserror::Error)]
pub enum UprobeError {
    /// The programs were not loaded.
    #[error("the kernel program {program} is not there")]
    NoProgram {
        /// The program.
        program: &'static str,
    },
    /// The kernel refuses.
    #[error("the kernel refuses {program} at {offset:#x}")]
    Refused {
        /// The program.
        program: &'static str,
        /// Where in the file it was to go.
        offset: u64,
        /// What the kernel says.
        #[source]
        source: ProgramError,
    },
}

/// Whether the kernel forbids this thread to put probes into any file. It says so before it looks for the file, so it is asked
/// for one that is not there (`perf_uprobe_event_init`, kernel/events/core.c).
pub(super) fn is_forbidden(ebpf: &mut Ebpf, linked: Option<&Linked>) -> bool {
    // Of these programs some may not be loaded.
    let calls: [LibraryCall; 2] = [TlsCall::Free.into(), CudaCall::Free.into()];
    let nowhere = Path::new("/proc/self/no-such-file");
    calls.into_iter().any(|call| match attach(ebpf, linked, nowhere, &[ProbePoint { call, offset: 0 }]) {
        Err(UprobeError::Refused { source, .. }) => is_denied(&source),
        Ok(_) | Err(UprobeError::NoProgram { .. }) => false,
    })
}

/// Whether the caller's privileges are the cause.
fn is_denied(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let refused = error.downcast_ref::<io::Error>();
        if refused.is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Attaches the programs to functions of the file at `path`, in whichever process they are called.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    linked: Option<&Linked>,
    path: &Path,
    points: &[ProbePoint],
) -> Result<Attachment, UprobeError> {
    let mut links = Vec::new();
    for (name, offsets) in by_program(points) {
        let refused = |offset, source| UprobeError::Refused { program: name, offset, source };
        if let Some(program) = linked.and_then(|linked| linked.get(name)) {
            let first = offsets.first().copied().unwrap_or_default();
            let refused = |io_error| refused(first, SyscallError { call: "bpf_link_create", io_error }.into());
            links.push(Link::Linked { _link: program.attach(path, &offsets).map_err(refused)? });
            continue;
        }
        let Some(Program::UProbe(program)) = ebpf.program_mut(name) else {
            return Err(UprobeError::NoProgram { program: name });
        };
        for offset in offsets {
            let refused = |source| refused(offset, source);
            let link = program.attach(offset, path, UProbeScope::AllProcesses).map_err(refused)?;
            links.push(Link::Event { _link: program.take_link(link).map_err(refused)? });
        }
    }
    Ok(Attachment { links })
}

/// The programs in the order in which they must be attached, each with all of its places.
fn by_program(points: &[ProbePoint]) -> Vec<(&'static str, Vec<u64>)> {
    let mut programs: Vec<(&'static str, Vec<u64>)> = Vec::new();
    for point in points {
        for &name in point.call.programs() {
            match programs.iter_mut().find(|(found, _)| *found == name) {
                Some((_, offsets)) => offsets.push(point.offset),
                None => programs.push((name, vec![point.offset])),
            }
        }
    }
    programs
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever sees returns comes before who sees entries, with all places at once.
    #[test]
    fn each_program_is_attached_once() {
        let calls: [(LibraryCall, u64); 4] = [
            (TlsCall::Write.into(), 1),
            (TlsCall::WriteEx.into(), 2),
            (GoCall::TlsWasRead.into(), 3),
            (GoCall::TlsWasRead.into(), 4),
        ];
        let points = calls.map(|(call, offset)| ProbePoint { call, offset });
        let expected = [
            ("tls_written", vec![1, 2]),
            ("tls_write", vec![1]),
            ("tls_write_ex", vec![2]),
            ("go_tls_was_read", vec![3, 4]),
        ];
        assert_eq!(by_program(&points), expected);
    }
}
