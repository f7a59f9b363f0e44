//! The queue on disk: what an endpoint did not take yet, oldest first, in files that outlive the agent.
//!
//! One folder holds what waits for one endpoint: segments, which are only appended to and deleted whole, and a cursor
//! that says what has been sent. All calls block; [`super::backlog`] makes them where that does no harm.

mod files;
mod format;

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{Encoded, causes::with_causes};
pub(crate) use files::Folder;
use files::{Segment, Writing};
use format::{Damage, FRAME_HEAD_BYTES, FrameHead, HEADER_BYTES, encode_cursor, encode_frame, scan, seal_frame};

/// How often a file may fail to be read before the queue goes on without it.
const READS: u32 = 10;

/// When what was written is made to outlive a loss of power. What outlives the agent alone is written at once in any case.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fsync {
    /// With every request.
    Always,
    /// This often.
    Every(Duration),
    /// When the kernel sees fit, usually within 30 seconds.
    Never,
}

/// Where and how requests wait on disk.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct QueueSettings {
    /// Folder of the queues of all endpoints.
    pub directory: PathBuf,
    /// Bytes of the files of one endpoint; beyond them the oldest requests are given up.
    pub max_bytes: u64,
    /// When files are synced.
    pub fsync: Fsync,
}

/// What can go wrong with the queue on disk.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// The folder cannot be used.
    #[error("cannot use {} for what waits to be exported", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: Arc<io::Error>,
    },
    /// Another agent has the folder.
    #[error("{} belongs to another agent that runs", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Arc<io::Error>,
    },
}

impl QueueError {
    fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { action, path: path.to_owned(), source: Arc::new(source) }
    }
}

/// What will not be sent any more.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Losses {
    /// Spans that were given up because younger ones needed their room.
    pub(crate) given_up_spans: u64,
    /// Spans that cannot be read any more, as far as it is known how many they were.
    pub(crate) damaged_spans: u64,
    /// Ranges of bytes that are no sound frames and were set aside.
    pub(crate) damaged_ranges: u64,
}

/// What is found at start.
#[derive(Debug)]
pub(crate) struct DiskQueue {
    folder: Folder,
    max_bytes: u64,
    segment_bytes: u64,
    fsync: Fsync,
    /// Oldest first; only the last may be the one that is written.
    segments: VecDeque<Segment>,
    writing: Option<Writing>,
    /// Where in the first segment the next frame to send begins.
    offset: u64,
    /// That frame, once it was read.
    head: Option<FrameHead>,
    /// Sequence number of the next frame to send, at least.
    cursor: u64,
    /// The first number that no frame has had.
    next_sequence: u64,
    losses: Losses,
    /// How often in a row the oldest segment could not be read, which may pass.
    failed_reads: u32,
    /// Since when something is not synced.
    unsynced: Option<Instant>,
}

impl DiskQueue {
    /// Reads what an earlier agent left in the folder. A frame whose end was never written is cut off.
    pub(crate) fn open(folder: Folder, settings: &QueueSettings) -> Result<Self, QueueError> {
        let found = folder.read()?;
        let mut queue = Self {
            folder,
            max_bytes: settings.max_bytes,
            // Given up in eighths; a large segment costs more to read again after a crash that lost the cursor.
            segment_bytes: (settings.max_bytes / 8).clamp(1, 8 << 20),
            fsync: settings.fsync,
            segments: found.segments,
            writing: None,
            offset: HEADER_BYTES as u64,
            head: None,
            cursor: found.cursor,
            next_sequence: found.next_sequence,
            losses: found.losses,
            failed_reads: 0,
            unsynced: None,
        };
        queue.make_room(0)?;
        Ok(queue)
    }

    /// The first sequence number that no frame has had.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// True if there is no file. Where there is one the next look at it may still find nothing to send.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Spans that wait.
    pub(crate) fn spans(&self) -> u64 {
        self.segments.iter().map(|segment| segment.spans).sum()
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.len).sum()
    }

    /// When the oldest request was queued, as far as it has been looked at: nanoseconds since the epoch.
    pub(crate) fn oldest_ns(&self) -> Option<u64> {
        let of_segment = self.segments.front().map(|segment| segment.created_ns);
        self.head.map(|head| head.queued_ns).or(of_segment)
    }

    /// What was lost since this was last asked.
    pub(crate) fn take_losses(&mut self) -> Losses {
        std::mem::take(&mut self.losses)
    }

    /// Writes a request behind all others. Its number must be higher than theirs.
    pub(crate) fn append(&mut self, request: &Encoded) -> Result<(), QueueError> {
        let now_ns = unix_ns();
        let mut frame = encode_frame(request, now_ns);
        let frame_bytes = frame.len() as u64;
        if frame_bytes + HEADER_BYTES as u64 > self.max_bytes {
            self.losses.given_up_spans += request.spans;
            return Ok(());
        }
        if self.segments.back().is_some_and(|segment| segment.len + frame_bytes > self.segment_bytes) {
            self.sync();
            self.writing = None;
        }
        self.make_room(frame_bytes + if self.writing.is_none() { HEADER_BYTES as u64 } else { 0 })?;
        if self.writing.is_none() {
            let (segment, writing) = self.folder.create(fastrand::u32(..), now_ns, self.fsync != Fsync::Never)?;
            self.segments.push_back(segment);
            self.writing = Some(writing);
        }
        let (Some(segment), Some(writing)) = (self.segments.back_mut(), &mut self.writing) else { return Ok(()) };
        seal_frame(&mut frame, writing.salt);
        if let Err(error) = writing.append(&frame, segment.len) {
            // Whether the end of it is sound is not known any more: what comes next goes into another file.
            self.writing = None;
            return Err(error);
        }
        segment.len += frame_bytes;
        segment.spans += request.spans;
        self.next_sequence = self.next_sequence.max(request.sequence + 1);
        let since = *self.unsynced.get_or_insert_with(Instant::now);
        match self.fsync {
            Fsync::Always => self.sync(),
            Fsync::Every(interval) if since.elapsed() >= interval => self.sync(),
            Fsync::Every(_) | Fsync::Never => {}
        }
        Ok(())
    }

    /// How long what was written may stay as it is until [`DiskQueue::sync`] is to be called.
    pub(crate) fn sync_within(&self) -> Option<Duration> {
        let Fsync::Every(interval) = self.fsync else { return None };
        Some(interval.saturating_sub(self.unsynced?.elapsed()))
    }

    /// Makes what was written outlive a loss of power, if that is wanted.
    pub(crate) fn sync(&mut self) {
        self.unsynced = None;
        let Some(writing) = self.writing.as_mut().filter(|_| self.fsync != Fsync::Never) else { return };
        if let Err(error) = writing.sync() {
            tracing::error!(error = with_causes(&error), "what waits on disk may not outlive a loss of power");
            // After a failed sync Linux may call the next one good although the data is lost (see docs/format/wal.md).
            self.writing = None;
        }
    }

    /// The oldest request that was not sent. What cannot be read is set aside and counted.
    pub(crate) fn oldest(&mut self) -> Result<Option<Encoded>, QueueError> {
        loop {
            let Some(segment) = self.segments.front() else { return Ok(None) };
            if self.offset >= segment.len {
                self.remove_first()?;
                continue;
            }
            match self.read_frame() {
                Ok((head, request)) if head.sequence >= self.cursor => {
                    self.head = Some(head);
                    self.failed_reads = 0;
                    return Ok(Some(request));
                }
                // Sent by an agent that was killed before it could delete it.
                Ok((head, _)) => self.offset += head.frame_len() as u64,
                Err(Unread::Damage) => self.set_aside()?,
                Err(Unread::Failed(error)) => {
                    self.failed_reads += 1;
                    if self.failed_reads < READS {
                        return Err(error);
                    }
                    tracing::error!(error = with_causes(&error), "a file of the export queue is set aside");
                    self.failed_reads = 0;
                    self.losses.damaged_ranges += 1;
                    self.losses.damaged_spans += segment_spans(self.segments.front());
                    let number = self.segments.front().map_or(0, |segment| segment.number);
                    self.folder.move_aside(number)?;
                    self.remove_first()?;
                }
            }
        }
    }

    /// The request with this number need not be sent any more. False if it is not the oldest: it was given up meanwhile.
    pub(crate) fn done(&mut self, sequence: u64) -> Result<bool, QueueError> {
        if self.head.is_none() {
            self.oldest()?;
        }
        let Some(head) = self.head.filter(|head| head.sequence == sequence) else { return Ok(false) };
        self.head = None;
        self.offset += head.frame_len() as u64;
        self.cursor = sequence + 1;
        if let Err(error) = self.folder.write_cursor(&encode_cursor(self.cursor)) {
            tracing::warn!(error = with_causes(&error), "requests may be sent twice after a crash");
        }
        if let Some(segment) = self.segments.front_mut() {
            segment.spans = segment.spans.saturating_sub(u64::from(head.spans));
            if self.offset >= segment.len {
                self.remove_first()?;
            }
        }
        Ok(true)
    }

    /// Gives up the oldest segments until there is room for so many bytes.
    fn make_room(&mut self, bytes: u64) -> Result<(), QueueError> {
        while self.bytes() + bytes > self.max_bytes {
            let Some(segment) = self.segments.front() else { break };
            self.losses.given_up_spans += segment.spans;
            self.remove_first()?;
        }
        Ok(())
    }

    fn remove_first(&mut self) -> Result<(), QueueError> {
        let Some(segment) = self.segments.pop_front() else { return Ok(()) };
        if self.segments.is_empty() {
            self.writing = None;
            self.unsynced = None;
        }
        self.offset = HEADER_BYTES as u64;
        self.head = None;
        self.folder.remove(segment.number)
    }

    fn read_frame(&self) -> Result<(FrameHead, Encoded), Unread> {
        let segment = self.segments.front().ok_or(Unread::Damage)?;
        let path = self.folder.segment(segment.number);
        let failed = |source| Unread::Failed(QueueError::file("read", &path)(source));
        let file = File::open(&path).map_err(failed)?;
        let left = usize::try_from(segment.len - self.offset).unwrap_or(usize::MAX);
        let mut bytes = vec![0; FRAME_HEAD_BYTES.min(left)];
        file.read_exact_at(&mut bytes, self.offset).map_err(failed)?;
        let head = FrameHead::decode(&bytes)?;
        if head.frame_len() > left {
            return Err(Unread::Damage);
        }
        bytes.resize(head.frame_len(), 0);
        let payload = bytes.get_mut(FRAME_HEAD_BYTES..).unwrap_or_default();
        file.read_exact_at(payload, self.offset + FRAME_HEAD_BYTES as u64).map_err(failed)?;
        Ok((head, head.request(&bytes, segment.salt)?))
    }

    /// Copies the damaged bytes at the offset to where a person can look at them, and goes on behind them.
    fn set_aside(&mut self) -> Result<(), QueueError> {
        let Some(segment) = self.segments.front() else { return Ok(()) };
        let path = self.folder.segment(segment.number);
        let bytes = fs::read(&path).map_err(QueueError::file("read", &path))?;
        let whole = usize::try_from(segment.len).unwrap_or(usize::MAX).min(bytes.len());
        let bytes = bytes.get(..whole).unwrap_or_default();
        let start = usize::try_from(self.offset).unwrap_or(usize::MAX);
        let end = match scan(bytes, start, segment.salt).next() {
            Some(format::Piece::Damaged(range, _)) => range.end,
            // It is sound and yet no request: compressed by a mistake of ours.
            Some(format::Piece::Frame(head)) => start + head.frame_len(),
            None => whole,
        };
        self.folder.set_aside(segment.number, self.offset, bytes.get(start..end).unwrap_or_default());
        self.losses.damaged_ranges += 1;
        self.offset = end as u64;
        // What a segment says of its spans is what was found sound in it, or written: the rest of it will not come.
        let sound: u64 = scan(bytes, end, segment.salt)
            .filter_map(|piece| match piece {
                format::Piece::Frame(head) if head.sequence >= self.cursor => Some(u64::from(head.spans)),
                format::Piece::Frame(_) | format::Piece::Damaged(..) => None,
            })
            .sum();
        if let Some(segment) = self.segments.front_mut() {
            self.losses.damaged_spans += segment.spans.saturating_sub(sound);
            segment.spans = sound;
        }
        Ok(())
    }
}

fn segment_spans(segment: Option<&Segment>) -> u64 {
    segment.map_or(0, |segment| segment.spans)
}

/// A segment and a cursor of anybody's bytes, for the fuzz target.
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = format::decode_cursor(bytes);
    let Ok(header) = format::Header::decode(bytes) else { return };
    let mut covered = HEADER_BYTES;
    for piece in scan(bytes, HEADER_BYTES, header.salt) {
        match piece {
            format::Piece::Frame(head) => {
                let end = covered + head.frame_len();
                let _ = head.request(bytes.get(covered..end).unwrap_or_default(), header.salt);
                covered = end;
            }
            format::Piece::Damaged(range, _) => {
                assert_eq!(range.start, covered, "pieces are without gaps");
                covered = range.end;
            }
        }
    }
    assert_eq!(covered, bytes.len(), "every byte is of one piece");
}

enum Unread {
    Damage,
    Failed(QueueError),
}

impl From<Damage> for Unread {
    fn from(_: Damage) -> Self {
        Self::Damage
    }
}

fn unix_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}
