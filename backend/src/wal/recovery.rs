//! What is found at start: segments are listed, the end of the newest is repaired, frames are read oldest first.

use std::fs;
use std::io;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::{error, warn};

use super::WalError;
use super::disk::{Disk, sync_parent};
use super::format::{Damage, Frame, HEADER_BYTES, Header, HeaderDamage};
use super::reader::{Piece, scan};
use super::segment::file_number;
use crate::telemetry::WalMetrics;

const QUARANTINE: &str = "quarantine";

/// A segment that is not written any more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Segment {
    /// Its file.
    pub path: PathBuf,
    /// Size of the file.
    pub bytes: u64,
    /// Sequence number that its first frame has.
    pub first_sequence: u64,
    pub(super) salt: u32,
}

/// The log as it is found at start.
#[derive(Clone)]
pub struct Log {
    pub(super) dir: PathBuf,
    pub(super) disk: Arc<dyn Disk>,
    pub(super) metrics: WalMetrics,
    /// Oldest first.
    pub(super) segments: Vec<Segment>,
    pub(super) next_sequence: u64,
    pub(super) next_number: u64,
}

impl Log {
    /// Opens the log in `dir`, creating the directory if need be.
    ///
    /// The end of the newest segment is repaired: bytes behind its last sound frame are what a crash left of a write
    /// that nobody was told about; they are cut off and the file is synced.
    pub fn open(dir: &Path, disk: Arc<dyn Disk>, metrics: WalMetrics) -> Result<Self, WalError> {
        let read_error = |source| WalError::Read { path: dir.to_owned(), source: Arc::new(source) };
        fs::create_dir_all(dir).map_err(read_error)?;
        sync_parent(dir).map_err(read_error)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(dir).map_err(read_error)? {
            let path = entry.map_err(read_error)?.path();
            if let Some(number) = path.file_name().and_then(|name| file_number(name.to_str()?)) {
                files.push((number, path));
            }
        }
        files.sort_unstable();
        metrics.quarantine_bytes.set(quarantine_bytes(dir) as i64);
        let next_number = files.last().map_or(1, |(number, _)| number + 1);
        let mut log = Self { dir: dir.to_owned(), disk, metrics, segments: Vec::new(), next_sequence: 1, next_number };
        for (_, path) in files {
            log.add(path)?;
        }
        log.finish()?;
        Ok(log)
    }

    /// Number that the next frame gets.
    pub fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Segments, oldest first.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Sees to it that new frames get this number or a higher one: a log that lost its end, or all of it, must not give
    /// a number again that is taken for released.
    pub fn number_from(&mut self, sequence: u64) {
        self.next_sequence = self.next_sequence.max(sequence);
    }

    /// Gives every sound frame from number `from` on to `visit`, the oldest first, until that breaks. Segments without
    /// such frames are not read. Damage is set aside and reported.
    pub fn oldest_first<B>(
        &self,
        from: u64,
        mut visit: impl FnMut(&Frame<'_>) -> ControlFlow<B>,
    ) -> Result<ControlFlow<B>, WalError> {
        let ends = self.segments.iter().skip(1).map(|segment| segment.first_sequence).chain([u64::MAX]);
        for (segment, end) in self.segments.iter().zip(ends) {
            if end <= from {
                continue;
            }
            let bytes = fs::read(&segment.path)
                .map_err(|source| WalError::Read { path: segment.path.clone(), source: Arc::new(source) })?;
            for frame in self.frames(segment, &bytes) {
                // A batch whose sync failed is written again into the next segment, or refused and its numbers given to
                // others there: of two frames with one number the newer is taken.
                if (from..end).contains(&frame.sequence)
                    && let ControlFlow::Break(value) = visit(&frame)
                {
                    return Ok(ControlFlow::Break(value));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn frames<'a>(&self, segment: &Segment, bytes: &'a [u8]) -> Vec<Frame<'a>> {
        let mut frames = Vec::new();
        for piece in scan(bytes, HEADER_BYTES, segment.salt) {
            match piece {
                Piece::Frame(_, frame) => frames.push(frame),
                // An error is reported; the range stays in its segment, copied or not.
                Piece::Damaged(range, damage) => _ = self.set_aside(&segment.path, bytes, range, damage),
            }
        }
        frames
    }

    fn add(&mut self, path: PathBuf) -> Result<(), WalError> {
        let read_error = |source| WalError::Read { path: path.clone(), source: Arc::new(source) };
        let bytes = fs::metadata(&path).map_err(read_error)?.len();
        let header = match Header::decode(&read_start(&path).map_err(read_error)?) {
            Ok(header) => header,
            Err(HeaderDamage::Version(version)) => return Err(WalError::Version { path, version }),
            Err(HeaderDamage::Incomplete) => {
                // The file was created, and then came the crash: no frame can have been acknowledged from it.
                warn!(segment = %path.display(), bytes, "segment without a header removed");
                return self.disk.remove(&path).map_err(read_error);
            }
            Err(HeaderDamage::Checksum) => {
                let content = fs::read(&path).map_err(read_error)?;
                // Without its salt no frame can be told from garbage. Once the copy is safe the segment only takes room.
                return match self.set_aside(&path, &content, 0..content.len(), Damage::Checksum) {
                    Ok(()) => self.disk.remove(&path).map_err(read_error),
                    Err(_) => Ok(()), // Reported; tried again at the next start.
                };
            }
        };
        let Header { salt, first_sequence, .. } = header;
        self.segments.push(Segment { path, bytes, first_sequence, salt });
        Ok(())
    }

    /// Repairs the end of the newest segment and finds out where numbering goes on.
    fn finish(&mut self) -> Result<(), WalError> {
        while let Some(mut segment) = self.segments.pop() {
            let read_error = |source| WalError::Read { path: segment.path.clone(), source: Arc::new(source) };
            self.next_sequence = self.next_sequence.max(segment.first_sequence);
            let bytes = fs::read(&segment.path).map_err(read_error)?;
            let mut sound_end = HEADER_BYTES;
            let mut keep = false;
            for piece in scan(&bytes, HEADER_BYTES, segment.salt) {
                match piece {
                    Piece::Frame(offset, frame) => {
                        sound_end = offset + super::format::FRAME_OVERHEAD + frame.tenant.len() + frame.payload.len();
                        self.next_sequence = self.next_sequence.max(frame.sequence + 1);
                        keep = true;
                    }
                    Piece::Damaged(range, damage) if range.end == bytes.len() => {
                        if !self.cut(&segment.path, &bytes, range, damage).map_err(read_error)? {
                            // Left whole: new frames go to a new segment anyway.
                            sound_end = bytes.len();
                            keep = true;
                        }
                    }
                    Piece::Damaged(..) => {} // Set aside by `oldest_first`.
                }
            }
            segment.bytes = sound_end as u64;
            if keep {
                self.segments.push(segment);
                return Ok(());
            }
            // Without frames it says nothing but where numbering goes on; the next one to be written says that too.
            self.disk.remove(&segment.path).map_err(read_error)?;
        }
        Ok(())
    }

    /// Removes the damaged end of the newest segment; what a crash left of the last write, nothing acknowledged.
    ///
    /// It could also be an acknowledged frame that was damaged later: so it is kept aside like every damage, and left
    /// where it is if that fails: false.
    fn cut(&self, path: &Path, bytes: &[u8], range: Range<usize>, damage: Damage) -> io::Result<bool> {
        let keep = range.start as u64;
        let cut = range.len() as u64;
        if damage != Damage::Incomplete || bytes.len() - range.start > super::format::FRAME_OVERHEAD {
            let saved = self.set_aside(path, bytes, range, damage);
            if saved.is_err() {
                return Ok(false);
            }
        }
        warn!(segment = %path.display(), offset = keep, bytes = cut, "torn end of the log cut off");
        self.metrics.truncated_bytes.inc_by(cut);
        let mut file = self.disk.open(path)?;
        file.truncate(keep)?;
        file.sync()?;
        Ok(true)
    }

    /// Copies damaged bytes to `quarantine/`, named by segment and position, and syncs the copy; the segment stays as it is.
    fn set_aside(&self, path: &Path, bytes: &[u8], range: Range<usize>, damage: Damage) -> io::Result<()> {
        let (offset, len) = (range.start, range.len());
        let damaged = bytes.get(range).unwrap_or_default();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let copy = self.dir.join(QUARANTINE).join(format!("{name}.{offset}"));
        error!(segment = %path.display(), offset, bytes = len, ?damage, copy = %copy.display(), "damaged part of the log set aside");
        self.metrics.damaged_ranges.inc();
        self.save(&copy, damaged).inspect_err(|error| {
            error!(copy = %copy.display(), %error, "damaged part of the log could not be copied; it stays in its segment");
        })
    }

    /// Evidence is never overwritten: numbers of segments begin again when the log was empty, so another range may have
    /// the name already, and then a number is added to it.
    fn save(&self, copy: &Path, damaged: &[u8]) -> io::Result<()> {
        if let Some(directory) = copy.parent() {
            fs::create_dir_all(directory)?;
            sync_parent(directory)?;
        }
        let numbered = (2..u32::MAX).map(|number| copy.with_added_extension(number.to_string()));
        for copy in std::iter::once(copy.to_owned()).chain(numbered) {
            match fs::read(&copy) {
                Ok(found) if found == damaged => return self.disk.open(&copy)?.sync(),
                // Of the same range at an earlier start, not whole.
                Ok(found) if damaged.starts_with(&found) => self.disk.remove(&copy)?,
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            let mut file = self.disk.create(&copy)?;
            file.append(damaged)?;
            file.sync()?;
            self.metrics.quarantine_bytes.inc_by(damaged.len() as i64);
            return Ok(());
        }
        Ok(())
    }
}

/// Size of all copies of damaged ranges.
fn quarantine_bytes(dir: &Path) -> u64 {
    let files = fs::read_dir(dir.join(QUARANTINE)).into_iter().flatten();
    files.filter_map(|file| Some(file.ok()?.metadata().ok()?.len())).sum()
}

fn read_start(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut start = Vec::with_capacity(HEADER_BYTES);
    fs::File::open(path)?.take(HEADER_BYTES as u64).read_to_end(&mut start)?;
    Ok(start)
}
