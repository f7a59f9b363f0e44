//! Records from the kernel: read from the ring buffer, parsed, and put into the order in which what they tell happened.
//!
//! [`Capture`] is the real [`Source`]; tests of later stages bring their own.

mod order;
mod record;
mod ring;
mod sequence;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use coati_common::cuda;
use coati_common::event::Connection;
use coati_common::go::Layout;
use coati_common::python::Interpreter;

use crate::ebpf::{Attachment, ProbePoint, UprobeError};

pub use record::{Record, RecordError};
pub use ring::{Capture, CaptureError, Health};

/// Where the pipeline takes records from.
pub trait Source {
    /// Waits until records are ready, `timeout` at most, and appends them to `sink`, sorted by
    /// [`Header::time_ns`](coati_common::event::Header::time_ns): across calls too, but for calls of the watched
    /// processes that took longer than a few milliseconds.
    fn drain(&mut self, timeout: Duration, sink: &mut Vec<Record>) -> Result<(), CaptureError>;

    /// Appends every record that there is, without waiting and without holding any back: for the end.
    fn drain_all(&mut self, sink: &mut Vec<Record>) -> Result<(), CaptureError>;

    /// What the kernel holds of the connection with identity `connection` at the socket address `socket`, if it is
    /// still followed: for exchanges whose response is so long that later parts give no records.
    fn connection(&self, socket: u64, connection: u64) -> Result<Option<Connection>, CaptureError>;

    /// Stops watching a process.
    fn skip(&mut self, tgid: u32) -> Result<(), CaptureError>;

    /// Forgets that a process was not to be watched: it has ended, and another may get its number.
    fn unskip(&mut self, tgid: u32);

    /// Attaches the probes for libraries to functions of the file at `path`.
    fn attach_probes(&mut self, path: &Path, points: &[ProbePoint]) -> Result<Attachment, UprobeError>;

    /// The process is written in Go, and this is where its goroutines have their numbers.
    fn watch_goroutines(&mut self, tgid: u32, layout: Layout);

    /// The process runs nginx, and this is where a request has its HTTP/2 stream; 0 if that is not known.
    fn watch_nginx(&mut self, tgid: u32, stream: u32);

    /// The process runs Node.js, and this is where its objects have their async ids; 0 if that is not known.
    fn watch_node(&mut self, tgid: u32, async_id: u32);

    /// The process runs Python, and this is where it keeps what its threads do.
    fn watch_python(&mut self, tgid: u32, interpreter: Interpreter);

    /// Forgets the TLS sessions of processes that are gone; what is left of their connections.
    fn forget_tls(&mut self, gone: &HashSet<u32>) -> Result<Vec<Connection>, CaptureError>;

    /// What processes have called of CUDA so far.
    fn cuda(&self) -> Vec<(u32, cuda::Process)>;

    /// Forgets what a process that is gone has called.
    fn forget_cuda(&mut self, tgid: u32);

    /// Counters since the start.
    fn health(&self) -> Result<Health, CaptureError>;
}
