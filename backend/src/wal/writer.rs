//! The one thread that writes the log.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use tokio::sync::oneshot;
use tracing::{error, info, warn};

use super::WalError;
use super::format::{Frame, Header, TENANT_BYTES};
use super::recovery::{Log, Segment};
use super::retention::Retention;
use super::segment::{AppendError, OpenSegment, file_name};
use crate::telemetry::chain;

/// Bytes after which the writer stops collecting and syncs.
const COMMIT_BYTES: usize = 1 << 20;

/// A segment is open for at most this part of the retention time, so that a frame outlives it by no more.
const AGE_PARTS: u64 = 24;

/// How the log is written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct WalConfig {
    /// A new segment is begun when the present one has this many bytes.
    pub segment_bytes: u64,
    /// What is deleted.
    pub retention: Retention,
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
    Retain { now_ns: u64 },
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

    /// Deletes what retention says; `now_ns` is nanoseconds since the epoch.
    pub fn retain(&self, now_ns: u64) {
        // A log that is closed keeps what it has.
        let _closed = self.send(Command::Retain { now_ns });
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
}

impl Writer {
    fn new(log: Log, config: WalConfig) -> Self {
        let writer = Self { log, config, active: None, buffer: Vec::new() };
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
                    Ok(Command::Retain { now_ns }) => self.retain(now_ns),
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
                warn!(error = %chain(error), requests = batch.len(), "requests refused");
            }
        }
        for ((_, answer), position) in batch.drain(..).zip(0..) {
            // Nobody waits any more if the server is going down; the frame is stored nevertheless.
            let _gone = answer.send(outcome.clone().map(|first| first + position));
        }
    }

    /// Returns the sequence number of the first frame; all are on stable storage then.
    fn write(&mut self, batch: &[(Entry, Answer)]) -> Result<u64, WalError> {
        let newest_ns = batch.iter().map(|(entry, _)| entry.received_ns).max().unwrap_or_default();
        let first = self.log.next_sequence;
        if self.active.as_ref().is_some_and(|segment| segment.len >= self.config.segment_bytes) {
            self.seal();
            self.retain(newest_ns);
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
            match segment.append(&self.buffer, newest_ns) {
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
        let Some(OpenSegment { path, header, len, newest_ns, .. }) = self.active.take() else { return };
        let Header { salt, first_sequence, .. } = header;
        self.log.segments.push(Segment { path, bytes: len, newest_ns, first_sequence, salt });
    }

    fn retain(&mut self, now_ns: u64) {
        // Where little comes in, segments would stay open for longer than their frames may live.
        let open_ns = u64::try_from(self.config.retention.age.as_nanos()).unwrap_or(u64::MAX) / AGE_PARTS;
        if self.active.as_ref().is_some_and(|segment| segment.header.created_ns.saturating_add(open_ns) < now_ns) {
            self.seal();
        }
        let active_bytes = self.active.as_ref().map_or(0, |segment| segment.len);
        let expired = self.config.retention.expired(&self.log.segments, active_bytes, now_ns);
        let mut removed = 0;
        for segment in self.log.segments.iter().take(expired) {
            if let Err(error) = self.log.disk.remove(&segment.path)
                && error.kind() != io::ErrorKind::NotFound
            {
                error!(segment = %segment.path.display(), %error, "old segment cannot be deleted");
                break;
            }
            info!(segment = %segment.path.display(), bytes = segment.bytes, "old segment deleted");
            self.log.metrics.deleted_segments.inc();
            removed += 1;
        }
        self.log.segments.drain(..removed);
        self.show_size();
    }

    fn show_size(&self) {
        let active = self.active.iter().map(|segment| segment.len);
        let sealed = self.log.segments.iter().map(|segment| segment.bytes);
        let (mut segments, mut bytes) = (0, 0);
        for len in active.chain(sealed) {
            segments += 1;
            bytes += len as i64;
        }
        self.log.metrics.segments.set(segments);
        self.log.metrics.bytes.set(bytes);
    }
}
