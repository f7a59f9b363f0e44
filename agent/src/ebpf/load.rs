//! Loading the object that `agent-ebpf` is built into.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use aya_log::EbpfLogger;
use coati_common::limits;

use super::attach::{self, Attached};
use super::linked::Linked;
use super::maps::{Maps, MapsError};
use super::plan::{PlanError, check, file_programs};
use super::told;
use super::uprobes::{self, Attachment, ProbePoint, UprobeError};
use crate::kernel::btf::{Btf, BtfError};
use crate::kernel::features::{BTF_PATH, FeatureError, Features, HookSet};
use crate::kernel::offsets::{OffsetError, Offsets};

/// The object, empty in a build without the programs.
static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/coati.bpf"));

/// Maps that are of no use without the probes for TLS libraries, Go, event loops and Python.
const OF_TLS: [&str; 20] = [
    "SESSIONS",
    "SOCKETS",
    "THREADS",
    "SENDS",
    "GOROUTINES",
    "GO_SENDS",
    "GO_PROCESSES",
    "WORK",
    "ROUND_TRIPS",
    "TURNS",
    "NGINX_PROCESSES",
    "CALLBACKS",
    "CONNECTED",
    "ASKED",
    "NODE_PROCESSES",
    "QUEUED",
    "PYTHON_PROCESSES",
    "PYTHON_THREADS",
    "CONTEXTS",
    "READERS",
];

/// How the programs are to be set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// The process that is not watched: the agent's own. `None` watches every process.
    pub own_tgid: Option<u32>,
    /// Processes that are not watched either.
    pub skip: Vec<u32>,
    /// Bytes of the ring buffer: a power of two, at least a page.
    pub ring_bytes: u32,
    /// How bytes are seen; `None` takes the best way that this kernel has.
    pub hooks: Option<HookSet>,
    /// Whether probes can be attached to TLS libraries.
    pub tls: bool,
    /// Whether probes can be attached to CUDA's driver library.
    pub cuda: bool,
    /// Lets the programs write debug lines to the log.
    pub debug: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            own_tgid: Some(std::process::id()),
            skip: Vec::new(),
            ring_bytes: limits::RING_BYTES,
            hooks: None,
            tls: true,
            cuda: true,
            debug: false,
        }
    }
}

/// Why the programs do not run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Built without them.
    #[error("this agent was built without its kernel programs (COATI_EBPF_SKIP=1)")]
    NoObject,
    /// The size of the ring buffer is refused.
    #[error("{bytes} bytes are no size for the ring buffer: a power of two from 4096 is")]
    RingBytes {
        /// The size.
        bytes: u32,
    },
    /// What the kernel can do is not known.
    #[error(transparent)]
    Features(#[from] FeatureError),
    /// The kernel cannot do enough.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel's type information cannot be opened.
    #[error("the kernel's type information {BTF_PATH} cannot be read")]
    ReadBtf {
        /// What the file system says.
        #[source]
        source: std::io::Error,
    },
    /// The kernel's type information makes no sense.
    #[error("the kernel's type information {BTF_PATH} is not understood")]
    Btf {
        /// What is wrong with it.
        #[source]
        source: BtfError,
    },
    /// A field is not there.
    #[error(transparent)]
    Offsets(#[from] OffsetError),
    /// The kernel refuses the maps, or the object is damaged.
    #[error("the kernel programs cannot be loaded; this takes root, or the capabilities CAP_BPF and CAP_PERFMON")]
    Load {
        /// What the loader says.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// A map is not as the agent expects it.
    #[error(transparent)]
    Maps(#[from] MapsError),
    /// The kernel refuses programs that the others are no use without.
    #[error("the kernel refuses the programs for {what}: {why}")]
    Refused {
        /// What they watch.
        what: &'static str,
        /// What the kernel says.
        why: String,
    },
    /// The debug lines cannot be read.
    #[error("the debug lines of the kernel programs cannot be read")]
    Log {
        /// What the reader says.
        #[source]
        source: aya_log::Error,
    },
}

/// What a program costs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cost {
    /// Name of the program.
    pub program: String,
    /// How often it ran; 0 unless `kernel.bpf_stats_enabled` is 1.
    pub runs: u64,
    /// How long it ran altogether; 0 unless `kernel.bpf_stats_enabled` is 1.
    pub time: Duration,
    /// Instructions that the verifier went through: the kernel refuses programs above a million. 0 if unknown.
    pub verified: u32,
}

/// Programs that run in the kernel, for as long as this value lives.
pub struct Programs {
    /// What they share with the agent.
    pub maps: Maps,
    /// What is watched and what is not.
    pub attached: Attached,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    /// Detaches and unloads when dropped.
    ebpf: Ebpf,
    /// Those for functions in files, where the kernel has links for them.
    linked: Option<Linked>,
}

impl Programs {
    /// Loads and attaches what this kernel can run, and says so in the log.
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        if !options.ring_bytes.is_power_of_two() || options.ring_bytes < 4096 {
            return Err(LoadError::RingBytes { bytes: options.ring_bytes });
        }
        let mut features = Features::detect()?;
        check(&features)?;
        let offsets = offsets(&mut features)?;
        let mut ebpf = ebpf(options, &offsets)?;
        let logger = if options.debug {
            Some(EbpfLogger::init(&mut ebpf).map_err(|source| LoadError::Log { source })?)
        } else {
            None
        };
        let linked = linked(&ebpf, options);
        let mut maps = Maps::take(&mut ebpf)?;
        for &tgid in &options.skip {
            maps.skip(tgid)?;
        }
        let attached = attach::attach(&mut ebpf, linked.as_ref(), features, options)?;
        maps.follow()?;
        attached.log(&offsets.missing);
        Ok(Self { maps, attached, logger, ebpf, linked })
    }

    /// Attaches the programs for libraries to functions of the file at `path`.
    pub fn attach_probes(&mut self, path: &Path, points: &[ProbePoint]) -> Result<Attachment, UprobeError> {
        uprobes::attach(&mut self.ebpf, self.linked.as_ref(), path, points)
    }

    /// Whether the kernel forbids this thread to put probes into any file.
    pub fn may_not_probe(&mut self) -> bool {
        uprobes::is_forbidden(&mut self.ebpf, self.linked.as_ref())
    }

    /// Hands debug lines to the log, if there are any.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// How often the kernel left out a program because it was in the middle of the same one, or of one that excludes
    /// it; 0 where it does not tell.
    pub fn skipped(&self) -> u64 {
        let fds = self.ebpf.programs().filter_map(|(_, program)| program.fd().ok().map(|fd| fd.as_fd()));
        let linked = self.linked.as_ref().map_or(0, Linked::skipped);
        linked + fds.map(told::recursion_misses).sum::<u64>()
    }

    /// The kernel's account of each program that is loaded, by name.
    pub fn costs(&self) -> Vec<Cost> {
        let mut costs: Vec<_> = self
            .ebpf
            .programs()
            .filter_map(|(name, program)| {
                let info = program.info().ok()?;
                Some(Cost {
                    program: name.to_owned(),
                    runs: info.run_count(),
                    time: info.run_time(),
                    verified: info.verified_instruction_count().unwrap_or(0),
                })
            })
            .chain(self.linked.iter().flat_map(Linked::costs))
            .collect();
        costs.sort_by(|one, other| one.program.cmp(&other.program));
        costs
    }
}

/// The programs for functions in files, if the kernel has links for them; without, they are attached in the older way.
fn linked(ebpf: &Ebpf, options: &Options) -> Option<Linked> {
    let names = file_programs(options.tls, options.cuda);
    if names.is_empty() {
        return None;
    }
    Linked::load(OBJECT, ebpf, &names)
        .inspect_err(|error| {
            let error: &dyn std::error::Error = error;
            tracing::debug!(error, "no links for functions in files");
        })
        .ok()
}

/// Asks the kernel's type information, for the programs and for the plan.
fn offsets(features: &mut Features) -> Result<Offsets, LoadError> {
    let bytes = fs::read(BTF_PATH).map_err(|source| LoadError::ReadBtf { source })?;
    let btf = Btf::parse(&bytes).map_err(|source| LoadError::Btf { source })?;
    let offsets = Offsets::find(&btf)?;
    features.describe(&btf, &offsets);
    Ok(offsets)
}

fn ebpf(options: &Options, offsets: &Offsets) -> Result<Ebpf, LoadError> {
    let own_tgid = options.own_tgid.unwrap_or(0);
    // At a quarter the agent is late: it looks more often than the ring fills, unless there is a burst.
    let wake_at = options.ring_bytes / 4;
    let debug = u8::from(options.debug);
    let return_slot: u32 = if cfg!(target_arch = "x86_64") { 8 } else { 0 };
    let mut loader = EbpfLoader::new();
    // Nothing in the object refers to the kernel's types.
    loader.btf(None);
    for (global, value) in &offsets.globals {
        loader.override_global(global, value, true);
    }
    loader
        .override_global("OWN_TGID", &own_tgid, true)
        .override_global("WAKE_AT", &wake_at, true)
        .override_global("RETURN_SLOT", &return_slot, true)
        .override_global("DEBUG", &debug, true)
        .map_max_entries("RECORDS", options.ring_bytes);
    if !options.tls {
        // Each bucket of these takes memory, used or not.
        for map in OF_TLS {
            loader.map_max_entries(map, 1);
        }
    }
    if !options.cuda {
        for map in ["CUDA", "CUDA_CALLS"] {
            loader.map_max_entries(map, 1);
        }
    }
    loader.load(OBJECT).map_err(|source| LoadError::Load { source: Box::new(source) })
}
