//! What a process uses, as `/proc` says.

use procfs::{WithCurrentSystemInfo as _, process::Process};

use super::ProcTree;

/// What a process has used since it began, and has now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Seconds of processor time in programs.
    pub user_seconds: f64,
    /// Seconds of processor time in the kernel.
    pub system_seconds: f64,
    /// Bytes of memory that are resident.
    pub resident_bytes: u64,
    /// Bytes of address space.
    pub virtual_bytes: u64,
    /// Bytes that were read from disks and written to them; `None` where the agent may not know.
    pub disk: Option<(u64, u64)>,
}

impl ProcTree {
    /// What a process uses; `None` if it is gone.
    pub(crate) fn usage(&self, tgid: u32) -> Option<Usage> {
        let process = Process::new_with_root(self.directory(tgid)).ok()?;
        let stat = process.stat().ok()?;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Some(Usage {
            user_seconds: seconds(stat.utime),
            system_seconds: seconds(stat.stime),
            resident_bytes: stat.rss_bytes().get(),
            virtual_bytes: stat.vsize,
            disk: process.io().ok().map(|io| (io.read_bytes, io.write_bytes)),
        })
    }
}
