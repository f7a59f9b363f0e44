//! Who makes a call, and what is known of its process.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use coati_common::process;

use crate::globals;
use crate::maps::{PROCESSES, SKIPPED};

/// The calling thread.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Caller {
    pid_tgid: u64,
}

impl Caller {
    /// The current thread, if its process may be watched.
    #[inline(always)]
    pub fn watched() -> Option<Self> {
        let caller = Self::any();
        (caller.tgid() != globals::OWN_TGID.load()).then_some(caller)
    }

    /// The current thread, whatever it is.
    #[inline(always)]
    pub fn any() -> Self {
        Self { pid_tgid: bpf_get_current_pid_tgid() }
    }

    #[inline(always)]
    pub const fn pid_tgid(self) -> u64 {
        self.pid_tgid
    }

    #[inline(always)]
    pub const fn tgid(self) -> u32 {
        (self.pid_tgid >> 32) as u32
    }

    #[inline(always)]
    pub const fn tid(self) -> u32 {
        self.pid_tgid as u32
    }

    /// Whether its process is one of those that are found not to be watched without a hash map.
    #[inline(always)]
    pub fn is_skipped(self) -> bool {
        // SAFETY: a number of the map, read whole.
        skipped_place(self.tgid()).is_some_and(|tgid| unsafe { tgid.read_volatile() } == self.tgid())
    }

    /// What is known of its process: of [`coati_common::process`].
    ///
    /// Asked only where nothing is followed, and when an exchange begins: every other call does without the look-up.
    #[inline(always)]
    pub fn process(self) -> u8 {
        if self.is_skipped() {
            return process::SKIPPED;
        }
        // SAFETY: as in `exchange::followed`.
        PROCESSES.get_ptr(self.tgid()).map_or(0, |known| unsafe { *known })
    }
}

/// Where the number of a process lies if it is not watched.
#[inline(always)]
pub fn skipped_place(tgid: u32) -> Option<*mut u32> {
    SKIPPED.get_ptr_mut(process::skipped_place(tgid))
}
