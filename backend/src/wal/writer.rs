//! The one thread that writes the log.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::{debug, error, warn};

use super::WalError;
use super::format::{Frame, Header, TENANT_BYTES};
use super::recovery::{Log, Segment};
use super::segment::{AppendError, OpenSegment, file_name};
use crate::telemetry::chain;

/// Bytes after which the writer stops collecting and syncs.
const COMMIT_BYTES: usize = 1 << 20;

/// A segment is open for at most this time once something in it is in blocks, so that an idle log becomes empty.
const OPEN_NS: u64 = 60_000_000_000;

/// Time between lines about commits that fail.
const WARN: Duration = Duration::from_secs(10);

/// How the log is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WalConfig {
    /// A new segment is begun when the present one has this many bytes.
    pub segment_bytes: u64,
    /// A log of this size takes nothing more until a part of it is released.
    pub max_bytes: u64,
}

/// One request for the log.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Whose it is, at most 255 bytes.
    pub tenant: Arc<str>,
    /// When it was received, nanoseconds since the epoch.
    pub received_ns: u64,
    /// Bytes of the payload before compression.
    pub raw_len: u32,
    /// Whether the payload is compressed with zstd.
    pub compressed: bool,
    /// An encoded `ExportTraceServiceRequest`.
    pub payload: Bytes,
}

/// The log, open for writing.
#[derive(Debug)]
pub struct Wal {
    commands: Mutex<Option<Sender<Command>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Command {
    Append(Entry, Answer),
    Release { checkpoint: u64, now_ns: u64 },
}

type Answer = oneshot::Sender<Result<u64, WalError>>;

impl Wal {
    /// Starts the writer. The first segment is begun with the first frame.
    pub fn start(log: Log, config: WalConfig) -> io::Result<Self> {
        let (commands, received) = channel();
        let writer = Writer::new(log, config);
        let thread = Builder::new().name("wal-writer".to_owned()).spawn(move || writer.run(&received))?;
        Ok(Self { commands: Mutex::new(Some(commands)), thread: Mutex::new(Some(thread)) })
    }

    /// Stores a request; returns its sequence number once it is on stable storage.
    pub async fn append(&self, entry: Entry) -> Result<u64, WalError> {
        let (answer, answered) = oneshot::channel();
        self.send(Command::Append(entry, answer))?;
        answered.await.unwrap_or(Err(WalError::Closed))
    }

    /// Says that every frame with a lower number than `checkpoint` is in committed blocks: segments with nothing else in
    /// them are deleted. `now_ns` is nanoseconds since the epoch.
    pub fn release(&self, checkpoint: u64, now_ns: u64) {
        // A log that is closed keeps what it has.
        let _closed = self.send(Command::Release { checkpoint, now_ns });
    }

    /// Writes what waits, then stops. Blocks.
    pub fn close(&self) {
        drop(self.commands.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            error!("the writer of the log panicked");
        }
    }

    fn send(&self, command: Command) -> Result<(), WalError> {
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = commands.as_ref().ok_or(WalError::Closed)?;
        sender.send(command).map_err(|_| WalError::Closed)
    }
}

struct Writer {
    log: Log,
    config: WalConfig,
    active: Option<OpenSegment>,
    buffer: Vec<u8>,
    warned: Option<Instant>,
}

impl Writer {
    fn new(log: Log, config: WalConfig) -> Self {
        let writer = Self { log, config, active: None, buffer: Vec::new(), warned: None };
        writer.show_size();
        writer
    }

    /// Group commit without a timer: while one sync runs the next requests queue up, and the sync after it takes them
    /// all. Waiting for more on an idle disk would only add delay (measured: `docs/adr/0005-log.md`).
    fn run(mut self, commands: &Receiver<Command>) {
        let mut batch = Vec::new();
        while let Ok(command) = commands.recv() {
            let mut bytes = 0;
            let mut next = Ok(command);
            loop {
                match next {
                    Ok(Command::Append(entry, answer)) => {
                        bytes += entry.payload.len();
                        batch.push((entry, answer));
                    }
                    Ok(Command::Release { checkpoint, now_ns }) => self.release(checkpoint, now_ns),
                    Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
                }
                if bytes >= COMMIT_BYTES {
                    break;
                }
                next = commands.try_recv();
            }
            self.commit(&mut batch);
        }
    }

    fn commit(&mut self, batch: &mut Vec<(Entry, Answer)>) {
        if batch.is_empty() {
            return;
        }
        let started = Instant::now();
        let outcome = self.write(batch);
        let metrics = &self.log.metrics;
        match &outcome {
            Ok(_) => metrics.commit_seconds.observe(started.elapsed().as_secs_f64()),
            Err(error) => {
                metrics.failed_commits.inc();
                // A line for each would fill a disk that is full anyway.
                if self.warned.is_none_or(|warned| warned.elapsed() >= WARN) {
                    self.warned = Some(Instant::now());
                    warn!(error = %chain(error), failures = metrics.failed_commits.get(), "requests refused");
                }
            }
        }
        for ((_, answer), position) in batch.drain(..).zip(0..) {
            // Nobody waits any more if the server is going down; the frame is stored nevertheless.
            let _gone = answer.send(outcome.clone().map(|first| first + position));
        }
    }

    /// Returns the sequence number of the first frame; all are on stable storage then.
    fn write(&mut self, batch: &[(Entry, Answer)]) -> Result<u64, WalError> {
        let (bytes, limit) = (self.bytes(), self.config.max_bytes);
        if bytes >= limit {
            return Err(WalError::Backlog { bytes, limit });
        }
        let newest_ns = batch.iter().map(|(entry, _)| entry.received_ns).max().unwrap_or_default();
        let first = self.log.next_sequence;
        if self.active.as_ref().is_some_and(|segment| segment.len >= self.config.segment_bytes) {
            self.seal();
        }
        // A segment whose sync failed is given up, and the frames go into a new one; should that fail too, the disk is
        // broken and the requests are refused. The next commit tries again.
        let mut attempts = VecDeque::from([self.active.take()]);
        if attempts.front().is_some_and(Option::is_some) {
            attempts.push_back(None);
        }
        let mut failed = None;
        for attempt in attempts {
            let mut segment = match attempt {
                Some(segment) => segment,
                None => self.begin(newest_ns).map_err(WalError::of_write)?,
            };
            self.encode(batch, segment.header.salt);
            match segment.append(&self.buffer) {
                Ok(()) => {
                    self.active = Some(segment);
                    self.log.next_sequence += batch.len() as u64;
                    self.show_size();
                    return Ok(first);
                }
                Err(AppendError::Refused(error)) => {
                    self.active = Some(segment);
                    return Err(WalError::of_write(error));
                }
                Err(AppendError::Poisoned(error)) => {
                    error!(segment = %segment.path.display(), %error, "segment given up");
                    self.log.metrics.poisoned_segments.inc();
                    self.active = Some(segment);
                    self.seal();
                    failed = Some(error);
                }
            }
        }
        Err(failed.map_or(WalError::Closed, WalError::of_write))
    }

    fn encode(&mut self, batch: &[(Entry, Answer)], salt: u32) {
        self.buffer.clear();
        for ((entry, _), sequence) in batch.iter().zip(self.log.next_sequence..) {
            let Entry { tenant, received_ns, raw_len, compressed, payload } = entry;
            debug_assert!(tenant.len() <= TENANT_BYTES, "receivers check the tenant's name");
            let frame = Frame {
                sequence,
                received_ns: *received_ns,
                tenant,
                raw_len: *raw_len,
                compressed: *compressed,
                payload,
            };
            frame.encode(salt, &mut self.buffer);
        }
    }

    fn begin(&mut self, now_ns: u64) -> io::Result<OpenSegment> {
        let number = self.log.next_number;
        self.log.next_number += 1;
        let salt = RandomState::new().hash_one(number) as u32;
        let header = Header { salt, first_sequence: self.log.next_sequence, created_ns: now_ns };
        OpenSegment::create(self.log.disk.as_ref(), self.log.dir.join(file_name(number)), header)
    }

    /// Turns the active segment into one that can be deleted.
    fn seal(&mut self) {
        let Some(OpenSegment { path, header, len, .. }) = self.active.take() else { return };
        let Header { salt, first_sequence, .. } = header;
        self.log.segments.push(Segment { path, bytes: len, first_sequence, salt });
    }

    fn release(&mut self, checkpoint: u64, now_ns: u64) {
        if self.active.as_ref().is_some_and(|OpenSegment { header, .. }| {
            header.first_sequence < checkpoint && header.created_ns.abs_diff(now_ns) > OPEN_NS
        }) {
            self.seal();
        }
        let behind = self.active.as_ref().map_or(self.log.next_sequence, |segment| segment.header.first_sequence);
        let released = released(&self.log.segments, behind, checkpoint);
        let mut removed = 0;
        for segment in self.log.segments.iter().take(released) {
            if let Err(error) = self.log.disk.remove(&segment.path)
                && error.kind() != io::ErrorKind::NotFound
            {
                error!(segment = %segment.path.display(), %error, "segment cannot be deleted although it is in blocks");
                break;
            }
            debug!(segment = %segment.path.display(), bytes = segment.bytes, "segment deleted, it is in blocks");
            self.log.metrics.deleted_segments.inc();
            removed += 1;
        }
        self.log.segments.drain(..removed);
        self.show_size();
    }

    fn bytes(&self) -> u64 {
        let active = self.active.as_ref().map_or(0, |segment| segment.len);
        active + self.log.segments.iter().map(|segment| segment.bytes).sum::<u64>()
    }

    fn show_size(&self) {
        let segments = self.log.segments.len() + usize::from(self.active.is_some());
        self.log.metrics.segments.set(segments as i64);
        self.log.metrics.bytes.set(self.bytes() as i64);
    }
}

/// How many of `sealed` (oldest first) hold only frames below `checkpoint`; `behind` is the first number that is in none.
fn released(sealed: &[Segment], behind: u64, checkpoint: u64) -> usize {
    // A segment ends where the next one begins.
    let ends = sealed.iter().skip(1).map(|segment| segment.first_sequence).chain([behind]);
    sealed.iter().zip(ends).take_while(|(_, end)| *end <= checkpoint).count()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nothing(1, 0)]
    #[case::not_all_of_the_first(3, 0)]
    #[case::all_of_the_first(4, 1)]
    #[case::two(9, 2)]
    #[case::everything(10, 3)]
    fn segments_with_nothing_but_released_frames_go(#[case] checkpoint: u64, #[case] expected: usize) {
        let segment = |first_sequence| Segment { path: "x.wal".into(), bytes: 10, first_sequence, salt: 0 };
        assert_eq!(released(&[1, 4, 8].map(segment), 10, checkpoint), expected);
        assert_eq!(released(&[], 10, checkpoint), 0);
    }
}
