//! Programs for functions in files that the kernel attaches by links of its own (`uprobe_multi`, Linux 6.6).
//!
//! Probes by `perf_event_open` take `CAP_SYS_ADMIN` since 6.16 (`perf_uprobe_event_init`, kernel/events/core.c), and on Debian and
//! Ubuntu with `kernel.perf_event_paranoid` above 2. A link takes no more than its program, which took `CAP_BPF` and `CAP_PERFMON`
//! (`bpf_uprobe_multi_link_attach`, `kernel/trace/bpf_trace.c`). The kernel has to be told when the program is loaded, which
//! aya 0.14 does not do; so these are loaded here, from the same object and with the same maps.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::Map;
use aya_obj::btf::BtfError;
use aya_obj::generated::bpf_func_info;
use aya_obj::relocation::EbpfRelocationError;
use aya_obj::{Function, Object, ParseError, Program, ProgramSection};

use super::load::Cost;
use super::told;

/// Of `bpf(2)`, include/uapi/linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const BTF_LOAD: libc::c_int = 18;
const LINK_CREATE: libc::c_int = 28;
const PROG_TYPE_KPROBE: u32 = 2;
const TRACE_UPROBE_MULTI: u32 = 48;
const UPROBE_MULTI_RETURN: u32 = 1;

/// How often the kernel is asked again that was interrupted in the middle of a verification.
const TRIES: usize = 5;

/// Programs that are loaded, by name.
#[derive(Debug)]
pub(super) struct Linked {
    programs: HashMap<&'static str, LinkedProgram>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct LinkedProgram {
    fd: OwnedFd,
    /// It runs when the function returns.
    is_return: bool,
}

/// Why programs cannot be loaded this way.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkedError {
    /// The object is damaged.
    #[error("the object cannot be read")]
    Object(#[from] ParseError),
    /// Its type information is damaged.
    #[error("the object's type information cannot be read")]
    Types(#[from] BtfError),
    /// The kernel refuses that.
    #[error("the kernel refuses the object's type information")]
    TypesRefused(#[source] io::Error),
    /// It refers to what is not there.
    #[error("the object cannot be linked")]
    Relocation(#[from] EbpfRelocationError),
    /// It has no such program.
    #[error("no program {name} for functions in files")]
    NoProgram {
        /// The program.
        name: &'static str,
    },
    /// The kernel refuses it.
    #[error("the kernel refuses {name}")]
    Refused {
        /// The program.
        name: &'static str,
        /// What it says.
        #[source]
        source: io::Error,
    },
    /// The kernel has no such links.
    #[error("the kernel has no links for functions in files")]
    NoLinks(#[source] io::Error),
}

impl Linked {
    /// Loads the programs with these names from the object that `ebpf` was made of, while that has all its maps.
    pub(super) fn load(object: &[u8], ebpf: &Ebpf, names: &[&'static str]) -> Result<Self, LinkedError> {
        let mut object = Object::parse(object)?;
        let types = types(&mut object)?;
        let maps = std::mem::take(&mut object.maps);
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let fds = maps.iter().filter_map(|(name, map)| Some((name.as_str(), fd(ebpf.map(name)?)?, map)));
        object.relocate_maps(fds, &sections)?;
        object.relocate_calls(&sections)?;
        let mut programs = HashMap::new();
        for &name in names {
            match LinkedProgram::load(&object, types.as_ref(), name) {
                Ok(program) => {
                    programs.insert(name, program);
                }
                // It is tried in the older way, which tells why.
                Err(error @ LinkedError::Refused { .. }) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::debug!(error, "a program for functions in files cannot be loaded for links");
                }
                Err(error) => return Err(error),
            }
        }
        // Older kernels load such programs all the same. One that knows such links looks for the file.
        let nowhere = Path::new("/proc/self/no-such-file");
        match programs.values().next().map(|program| program.attach(nowhere, &[0])) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(LinkedError::NoLinks(error)),
            _ => Ok(Self { programs }),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&LinkedProgram> {
        self.programs.get(name)
    }

    /// How often the kernel left one out, as [`super::Programs::skipped`].
    pub(super) fn skipped(&self) -> u64 {
        self.programs.values().map(|program| told::recursion_misses(program.fd.as_fd())).sum()
    }

    /// The kernel's account of each.
    pub(super) fn costs(&self) -> impl Iterator<Item = Cost> {
        self.programs.iter().map(|(name, program)| Cost {
            program: (*name).to_owned(),
            runs: program.told("run_cnt"),
            time: Duration::from_nanos(program.told("run_time_ns")),
            verified: program.told("verified_insns").try_into().unwrap_or(u32::MAX),
        })
    }
}

impl LinkedProgram {
    fn load(object: &Object, types: Option<&OwnedFd>, name: &'static str) -> Result<Self, LinkedError> {
        let missing = || LinkedError::NoProgram { name };
        let program = object.programs.get(name).ok_or_else(missing)?;
        let is_return = match program.section {
            ProgramSection::UProbe { .. } => false,
            ProgramSection::URetProbe { .. } => true,
            _ => return Err(missing()),
        };
        let function = object.functions.get(&program.function_key()).ok_or_else(missing)?;
        let fd = load(name, program, function, types).map_err(|source| LinkedError::Refused { name, source })?;
        Ok(Self { fd, is_return })
    }

    /// Attaches it to the functions that begin there in the file, in whichever process they are called, until the link is
    /// dropped. The kernel waits once for each link that goes, however many places it has.
    pub(super) fn attach(&self, path: &Path, offsets: &[u64]) -> io::Result<OwnedFd> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let attributes = LinkCreate {
            prog_fd: self.fd.as_raw_fd() as u32,
            attach_type: TRACE_UPROBE_MULTI,
            path: path.as_ptr() as u64,
            offsets: offsets.as_ptr() as u64,
            count: u32::try_from(offsets.len()).map_err(io::Error::other)?,
            multi_flags: if self.is_return { UPROBE_MULTI_RETURN } else { 0 },
            ..LinkCreate::default()
        };
        // SAFETY: the path and the offsets live until the call is over.
        unsafe { bpf(LINK_CREATE, &attributes) }
    }

    /// A number of the kernel's text about it (`bpf_prog_show_fdinfo`, kernel/bpf/syscall.c); 0 where it does not tell.
    fn told(&self, key: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd())).unwrap_or_default();
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')?.trim().parse().ok());
        value.unwrap_or(0)
    }
}

/// The beginning of the kernel's `union bpf_attr` for `BPF_PROG_LOAD`: what is not there is zero.
#[derive(Debug, Default)]
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_count: u32,
    line_info_rec_size: u32,
}

/// The same for `BPF_BTF_LOAD`.
#[derive(Debug, Default)]
#[repr(C)]
struct BtfLoad {
    btf: u64,
    log_buf: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    rest: u32,
}

/// The same for `BPF_LINK_CREATE` of this kind.
#[derive(Debug, Default)]
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    path: u64,
    offsets: u64,
    ref_ctr_offsets: u64,
    cookies: u64,
    count: u32,
    multi_flags: u32,
    pid: u32,
    rest: u32,
}

/// Loads the object's type information. It tells the verifier which functions are global: those it looks at once, and not for
/// each of their calls, which would be too much.
fn types(object: &mut Object) -> Result<Option<OwnedFd>, LinkedError> {
    let Some(features) = aya::features().btf() else { return Ok(None) };
    let Some(types) = object.fixup_and_sanitize_btf(features)? else { return Ok(None) };
    let bytes = types.to_bytes();
    let attributes = BtfLoad { btf: bytes.as_ptr() as u64, size: bytes.len() as u32, ..BtfLoad::default() };
    // SAFETY: the bytes live until the call is over.
    unsafe { bpf(BTF_LOAD, &attributes) }.map(Some).map_err(LinkedError::TypesRefused)
}

fn load(name: &str, program: &Program, function: &Function, types: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        prog_type: PROG_TYPE_KPROBE,
        insn_count: function.instructions.len() as u32,
        insns: function.instructions.as_ptr() as u64,
        license: program.license.as_ptr() as u64,
        expected_attach_type: TRACE_UPROBE_MULTI,
        ..ProgLoad::default()
    };
    if let Some(types) = types {
        let functions = &function.func_info.func_info;
        attributes.prog_btf_fd = types.as_raw_fd() as u32;
        attributes.func_info_rec_size = size_of::<bpf_func_info>() as u32;
        attributes.func_info = functions.as_ptr() as u64;
        attributes.func_info_count = functions.len() as u32;
    }
    // The last byte ends it.
    let [room @ .., _] = &mut attributes.prog_name;
    room.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    for _ in 1..TRIES {
        // SAFETY: the program and its license live until the call is over.
        match unsafe { bpf(PROG_LOAD, &attributes) } {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            loaded => return loaded,
        }
    }
    // SAFETY: as above.
    unsafe { bpf(PROG_LOAD, &attributes) }
}

/// Asks the kernel for something that has a file descriptor.
///
/// # Safety
///
/// The command must be one that returns a new file descriptor, `T` the beginning of what it takes, and what that points to
/// must live.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told, and what they point to.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_ref(attributes), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is new, so nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// The file descriptor of a map of one of the kinds that the object has.
fn fd(map: &Map) -> Option<RawFd> {
    let (Map::Array(data)
    | Map::HashMap(data)
    | Map::LruHashMap(data)
    | Map::PerCpuArray(data)
    | Map::PerCpuHashMap(data)
    | Map::PerCpuLruHashMap(data)
    | Map::PerfEventArray(data)
    | Map::RingBuf(data)) = map
    else {
        return None;
    };
    Some(data.fd().as_fd().as_raw_fd())
}
