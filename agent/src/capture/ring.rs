//! The ring buffer that the kernel programs write to.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use coati_common::cuda;
use coati_common::event::Connection;
use coati_common::go::Layout;
use coati_common::loss::Loss;
use coati_common::python::Interpreter;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::time::{ClockId, clock_gettime};

use super::order::Order;
use super::record::Record;
use super::sequence::Sequence;
use super::{RecordError, Source};
use crate::ebpf::{Attachment, LibraryCall, MapsError, ProbePoint, Programs, UprobeError};

/// How long records are held back, so that those of other CPUs can come before them: much longer than a system call
/// that does not wait takes.
const HOLD: Duration = Duration::from_millis(5);

/// Records that are read before the caller may look at the time, and whether it is meant to stop: under load the ring
/// buffer is never empty.
const READ_AT_ONCE: usize = 16_384;

/// How often as many are read at the end; more than any ring buffer holds.
const READS_AT_THE_END: usize = 256;

/// Why records cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Waiting for the ring buffer failed.
    #[error("cannot wait for records of the kernel programs")]
    Wait {
        /// What the kernel says.
        #[source]
        source: std::io::Error,
    },
    /// A map cannot be read or written.
    #[error(transparent)]
    Maps(#[from] MapsError),
}

/// Counters since the start.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Health {
    /// What was lost, in the order of [`Loss::ALL`].
    pub losses: [u64; Loss::ALL.len()],
    /// Exchanges that the kernel programs saw begin, told or lost.
    pub begun: u64,
    /// Records read.
    pub records: u64,
    /// Records that were numbered, but neither read nor counted as lost: 0, or something is wrong. While records are
    /// being written, one or two may be on their way.
    pub unaccounted: u64,
    /// Records that could not be parsed: 0, or agent and kernel programs do not fit together.
    pub malformed: u64,
}

/// Records of the running kernel.
pub struct Capture {
    programs: Programs,
    order: Order,
    sequence: Sequence,
    malformed: u64,
    /// Functions of CUDA's driver have probes, or had.
    watches_cuda: bool,
}

impl Capture {
    /// Takes the records of `programs`, which stay attached for as long as this value lives.
    pub fn new(programs: Programs) -> Self {
        let hold_ns = HOLD.as_nanos() as u64;
        Self { programs, order: Order::new(hold_ns), sequence: Sequence::default(), malformed: 0, watches_cuda: false }
    }

    /// The programs, for what they cost.
    pub const fn programs(&self) -> &Programs {
        &self.programs
    }

    /// The programs, for what is asked of the kernel through them.
    pub const fn programs_mut(&mut self) -> &mut Programs {
        &mut self.programs
    }

    /// Reads `most` records that the ring buffer holds, or all. Gives how many there were.
    fn read(&mut self, most: usize) -> usize {
        let mut read = 0;
        while read < most
            && let Some(item) = self.programs.maps.records.next()
        {
            read += 1;
            match Record::parse(&item) {
                Ok(record) => {
                    let header = record.header();
                    self.sequence.see(header.cpu, header.cpu_seq);
                    self.order.push(record);
                }
                Err(error) => {
                    malformed(error, self.malformed);
                    self.malformed += 1;
                }
            }
        }
        self.programs.flush_log();
        read
    }

    fn wait(&self, timeout: Duration) -> Result<(), CaptureError> {
        let wait = |source| CaptureError::Wait { source };
        let ring = self.programs.maps.records.as_fd();
        let mut ready = [PollFd::new(&ring, PollFlags::IN)];
        let timeout = Timespec::try_from(timeout).map_err(|error| wait(std::io::Error::other(error)))?;
        match poll(&mut ready, Some(&timeout)) {
            // A signal: the caller looks whether it is meant to stop.
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(wait(error.into())),
        }
    }
}

impl Source for Capture {
    fn drain(&mut self, timeout: Duration, sink: &mut Vec<Record>) -> Result<(), CaptureError> {
        self.wait(timeout)?;
        let is_behind = self.read(READ_AT_ONCE) == READ_AT_ONCE;
        // What is left was written after what was read, but maybe long before now.
        let now_ns = if is_behind { self.order.newest_ns() } else { monotonic_ns() };
        self.order.release(now_ns, sink);
        Ok(())
    }

    fn drain_all(&mut self, sink: &mut Vec<Record>) -> Result<(), CaptureError> {
        // Without end, if the programs that are still attached write faster than this reads.
        for _ in 0..READS_AT_THE_END {
            if self.read(READ_AT_ONCE) < READ_AT_ONCE {
                break;
            }
        }
        self.order.release(u64::MAX, sink);
        Ok(())
    }

    fn connection(&self, socket: u64, connection: u64) -> Result<Option<Connection>, CaptureError> {
        let found = self.programs.maps.connection(socket)?;
        // Another one may have taken its place.
        Ok(found.filter(|it| it.connection == connection))
    }

    fn skip(&mut self, tgid: u32) -> Result<(), CaptureError> {
        Ok(self.programs.maps.skip(tgid)?)
    }

    fn unskip(&mut self, tgid: u32) {
        self.programs.maps.unskip(tgid);
    }

    fn attach_probes(&mut self, path: &Path, points: &[ProbePoint]) -> Result<Attachment, UprobeError> {
        self.watches_cuda |= points.iter().any(|point| matches!(point.call, LibraryCall::Cuda(_)));
        self.programs.attach_probes(path, points)
    }

    fn watch_goroutines(&mut self, tgid: u32, layout: Layout) {
        self.programs.maps.watch_goroutines(tgid, layout);
    }

    fn watch_nginx(&mut self, tgid: u32, stream: u32) {
        self.programs.maps.watch_nginx(tgid, stream);
    }

    fn watch_node(&mut self, tgid: u32, async_id: u32) {
        self.programs.maps.watch_node(tgid, async_id);
    }

    fn watch_python(&mut self, tgid: u32, interpreter: Interpreter) {
        self.programs.maps.watch_python(tgid, interpreter);
    }

    fn forget_tls(&mut self, gone: &HashSet<u32>) -> Result<Vec<Connection>, CaptureError> {
        Ok(self.programs.maps.forget_sessions(|tgid| gone.contains(&tgid))?)
    }

    fn cuda(&self) -> Vec<(u32, cuda::Process)> {
        // Asked several times a second, and the kernel goes through all places of an empty map.
        if self.watches_cuda { self.programs.maps.cuda() } else { Vec::new() }
    }

    fn forget_cuda(&mut self, tgid: u32) {
        self.programs.maps.forget_cuda(tgid);
    }

    fn health(&self) -> Result<Health, CaptureError> {
        let mut losses = self.programs.maps.losses()?;
        if let Some(skipped) = losses.get_mut(Loss::ProgramSkipped as usize) {
            *skipped += self.programs.skipped();
        }
        let told = [Loss::RingFullBegin, Loss::RingFullData, Loss::RingFullEnd, Loss::RingFullProcess];
        let lost: u64 = told.into_iter().filter_map(|cause| losses.get(cause as usize)).sum();
        Ok(Health {
            losses,
            begun: self.programs.maps.begun()?,
            records: self.sequence.seen(),
            unaccounted: self.sequence.missing().saturating_sub(lost + self.malformed),
            malformed: self.malformed,
        })
    }
}

/// The first one is an error worth a line; the counter tells of the others.
fn malformed(error: RecordError, before: u64) {
    if before == 0 {
        tracing::error!(%error, "the kernel programs wrote a record that is not understood");
    }
}

/// The clock of the records.
fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
