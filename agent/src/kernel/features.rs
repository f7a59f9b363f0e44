//! What the running kernel can do. Tried, never derived from its version: distributions port features back.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};
use rustix::mount::{MountFlags, mount};

use super::btf::Btf;
use super::offsets::Offsets;

/// Where the kernel describes its own types.
pub const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// The kind of event that kprobes are.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";

/// The kind of event that uprobes are.
const UPROBES: &str = "/sys/bus/event_source/devices/uprobe";

/// Where the tracing file system is mounted, or can be.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// A set of hooks that sees the bytes of connections: one of them is used.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum HookSet {
    /// Entry and exit of TCP's functions by BPF trampolines.
    Fentry,
    /// Entry and return of TCP's functions by kprobes.
    Kprobe,
    /// Tracepoints of system calls.
    Syscall,
}

impl HookSet {
    /// As on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Syscall => "syscall",
        }
    }
}

/// What the programs could use. [`crate::ebpf::plan`] decides from it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one thing that a kernel has or not")]
pub struct Features {
    /// `/sys/kernel/btf/vmlinux` is there.
    pub type_information: bool,
    /// Ring buffers, since Linux 5.8.
    pub ring_buffer: bool,
    /// A program can find the saved registers of a system call, since Linux 5.15.
    pub saved_registers: bool,
    /// Tracepoints as `category/name`.
    pub tracepoints: BTreeSet<String>,
    /// Those of the [`FUNCTIONS`] that are there by that name, and not merged into others.
    pub functions: BTreeSet<&'static str>,
    /// The kernel's lists of buffers (`struct iov_iter`) can be read.
    pub iterators: bool,
    /// Unix sockets can be read.
    pub unix_sockets: bool,
    /// Kprobes, `CONFIG_KPROBE_EVENTS`.
    pub kprobes: bool,
    /// Uprobes, `CONFIG_UPROBE_EVENTS`.
    pub uprobes: bool,
    /// Hook sets that the kernel turned out to refuse, and what it said.
    pub refused: BTreeMap<HookSet, String>,
}

/// Functions of TCP and of Unix sockets that programs can be attached to.
pub const FUNCTIONS: [&str; 9] = [
    "tcp_sendmsg",
    "tcp_recvmsg",
    "tcp_sendpage",
    "tcp_splice_read",
    "unix_release",
    "unix_stream_sendmsg",
    "unix_stream_recvmsg",
    "unix_stream_sendpage",
    "unix_stream_splice_read",
];

/// Why the tracing file system cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FeatureError {
    /// It is not mounted, and cannot be.
    #[error("the tracing file system is not at {} and cannot be mounted there; as root: `mount -t tracefs tracefs {}`", path.display(), path.display())]
    Tracefs {
        /// Where it belongs.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
}

impl Features {
    /// Asks the running kernel. Mounts the tracing file system where it is not.
    pub fn detect() -> Result<Self, FeatureError> {
        Ok(Self {
            type_information: Path::new(BTF_PATH).exists(),
            ring_buffer: is_map_supported(MapType::RingBuf).unwrap_or(false),
            saved_registers: is_helper_supported(ProgramType::TracePoint, BpfHelper::BPF_FUNC_task_pt_regs)
                .unwrap_or(false),
            tracepoints: tracepoints(&tracefs()?.join("events")),
            kprobes: Path::new(KPROBES).exists(),
            uprobes: Path::new(UPROBES).exists(),
            ..Self::default()
        })
    }

    /// Adds what the kernel's type information tells.
    pub fn describe(&mut self, btf: &Btf<'_>, offsets: &Offsets) {
        self.functions = FUNCTIONS.into_iter().filter(|name| btf.has_function(name)).collect();
        self.iterators = offsets.has_iterators;
        self.unix_sockets = offsets.has_unix_sockets;
    }
}

/// Where the tracing file system is; mounts it at the usual place if it is nowhere.
fn tracefs() -> Result<PathBuf, FeatureError> {
    let mounted = |path: &&Path| path.join("events").is_dir();
    if let Some(path) = TRACEFS.iter().map(Path::new).find(mounted) {
        return Ok(path.to_owned());
    }
    let path = Path::new(TRACEFS[0]);
    match mount("tracefs", path, "tracefs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, None) {
        Ok(()) => Ok(path.to_owned()),
        Err(error) => Err(FeatureError::Tracefs { path: path.to_owned(), source: error.into() }),
    }
}

/// Tracepoints below `events`, of the categories that the programs use.
fn tracepoints(events: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for category in ["syscalls", "sock", "tcp", "sched"] {
        for entry in fs::read_dir(events.join(category)).into_iter().flatten().flatten() {
            if let Some(name) = entry.file_name().to_str()
                && entry.path().is_dir()
            {
                found.insert(format!("{category}/{name}"));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tracepoints_are_the_folders_of_known_categories() {
        let events = tempfile::tempdir().unwrap();
        for folder in ["syscalls/sys_enter_read", "sock/inet_sock_set_state", "net/other"] {
            fs::create_dir_all(events.path().join(folder)).unwrap();
        }
        fs::write(events.path().join("syscalls/enable"), "0").unwrap();
        let found: Vec<_> = tracepoints(events.path()).into_iter().collect();
        assert_eq!(found, ["sock/inet_sock_set_state", "syscalls/sys_enter_read"]);
    }

    #[test]
    fn no_folder_is_no_tracepoint() {
        assert_eq!(tracepoints(Path::new("/nonexistent")), BTreeSet::new());
    }
}
