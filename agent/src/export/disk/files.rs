//! The files of the queue.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::Arc,
};

use super::{
    Losses, QueueError,
    format::{HEADER_BYTES, Header, Piece, decode_cursor, scan},
};

/// Damaged ranges that are kept; more only fill the disk.
const SET_ASIDE: usize = 64;

/// The folder of one endpoint, which nobody else has while this lives.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    cursor: File,
    /// The number of the newest segment.
    newest: u64,
}

/// A segment that is not empty.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) salt: u32,
    pub(super) created_ns: u64,
    /// Bytes that were written whole.
    pub(super) len: u64,
    /// Spans in it that were not sent.
    pub(super) spans: u64,
}

/// The end of the segment that is written.
#[derive(Debug)]
pub(super) struct Writing {
    pub(super) salt: u32,
    path: PathBuf,
    file: File,
}

/// What an earlier agent left.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) segments: VecDeque<Segment>,
    pub(super) cursor: u64,
    pub(super) next_sequence: u64,
    pub(super) losses: Losses,
}

impl Folder {
    /// Makes the folder, readable by nobody else, and keeps other agents out of it.
    pub(crate) fn lock(path: PathBuf) -> Result<Self, QueueError> {
        let failed = |source| QueueError::Folder { path: path.clone(), source: Arc::new(source) };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed)?;
        let cursor = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("cursor"))
            .map_err(failed)?;
        match cursor.try_lock() {
            Ok(()) => Ok(Self { path, cursor, newest: 0 }),
            Err(TryLockError::WouldBlock) => Err(QueueError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Where a segment is.
    pub(super) fn segment(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:016}.queue"))
    }

    /// Reads everything once. The file that a crash left without a header is removed, the frame that it left without
    /// an end is cut off.
    pub(super) fn read(&self) -> Result<Found, QueueError> {
        let mut bytes = Vec::new();
        let cursor_path = self.path.join("cursor");
        io::Read::read_to_end(&mut &self.cursor, &mut bytes).map_err(QueueError::file("read", &cursor_path))?;
        // Without it what is in the oldest segment is sent again.
        let cursor = decode_cursor(&bytes).unwrap_or(0);
        let mut found = Found { cursor, next_sequence: cursor, ..Found::default() };
        let numbers = self.numbers()?;
        for number in &numbers {
            if let Some(segment) = self.read_segment(*number, Some(number) == numbers.last(), &mut found)? {
                found.segments.push_back(segment);
            }
        }
        Ok(found)
    }

    fn read_segment(&self, number: u64, is_newest: bool, found: &mut Found) -> Result<Option<Segment>, QueueError> {
        let path = self.segment(number);
        let bytes = fs::read(&path).map_err(QueueError::file("read", &path))?;
        let header = match Header::decode(&bytes) {
            Ok(header) => header,
            Err(damage) => {
                if bytes.len() <= HEADER_BYTES {
                    // A crash came between making it and writing into it.
                    self.remove(number)?;
                } else {
                    let file = path.display();
                    tracing::warn!(%file, ?damage, "a file of the export queue cannot be read and is set aside");
                    found.losses.damaged_ranges += 1;
                    self.move_aside(number)?;
                }
                return Ok(None);
            }
        };
        let mut segment =
            Segment { number, salt: header.salt, created_ns: header.created_ns, len: bytes.len() as u64, spans: 0 };
        for piece in scan(&bytes, HEADER_BYTES, header.salt) {
            match piece {
                Piece::Frame(head) => {
                    found.next_sequence = found.next_sequence.max(head.sequence.saturating_add(1));
                    segment.spans += if head.sequence >= found.cursor { u64::from(head.spans) } else { 0 };
                }
                Piece::Damaged(range, true) if is_newest => {
                    tracing::info!(file = %path.display(), bytes = range.len(), "a request that was half written is cut off");
                    let file = OpenOptions::new().write(true).open(&path).map_err(QueueError::file("open", &path))?;
                    file.set_len(range.start as u64)
                        .and_then(|()| file.sync_all())
                        .map_err(QueueError::file("cut", &path))?;
                    segment.len = range.start as u64;
                }
                // Met again, set aside and counted, when its turn comes.
                Piece::Damaged(..) => {}
            }
        }
        Ok(Some(segment))
    }

    /// Numbers of the segments, rising.
    fn numbers(&self) -> Result<Vec<u64>, QueueError> {
        let failed = QueueError::file("list", &self.path);
        let entries: io::Result<Vec<_>> = fs::read_dir(&self.path).and_then(Iterator::collect);
        let mut numbers: Vec<u64> = entries
            .map_err(failed)?
            .iter()
            .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".queue")?.parse().ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Begins a segment behind all others.
    pub(super) fn create(
        &mut self,
        salt: u32,
        created_ns: u64,
        durable: bool,
    ) -> Result<(Segment, Writing), QueueError> {
        if self.newest == 0 {
            self.newest = self.numbers()?.last().copied().unwrap_or(0);
        }
        self.newest += 1;
        let (number, path) = (self.newest, self.segment(self.newest));
        let mut file = OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(QueueError::file("create", &path))?;
        let begun = file
            .write_all(&Header { salt, created_ns }.encode())
            .and_then(|()| if durable { File::open(&self.path)?.sync_all() } else { Ok(()) });
        if let Err(error) = begun {
            // Best effort: without a sound header it is removed at the next start.
            let _leftover = fs::remove_file(&path);
            return Err(QueueError::file("begin", &path)(error));
        }
        let segment = Segment { number, salt, created_ns, len: HEADER_BYTES as u64, spans: 0 };
        Ok((segment, Writing { salt, path, file }))
    }

    pub(super) fn remove(&self, number: u64) -> Result<(), QueueError> {
        let path = self.segment(number);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(QueueError::file("delete", &path)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    pub(super) fn write_cursor(&self, bytes: &[u8]) -> Result<(), QueueError> {
        self.cursor.write_all_at(bytes, 0).map_err(QueueError::file("write", &self.path.join("cursor")))
    }

    /// Keeps a copy of damaged bytes. Best effort: there is nothing to be done about it if that fails too.
    pub(super) fn set_aside(&self, number: u64, offset: u64, bytes: &[u8]) {
        let folder = self.path.join("damaged");
        let kept = fs::create_dir_all(&folder).and_then(|()| {
            if fs::read_dir(&folder)?.count() >= SET_ASIDE {
                return Ok(false);
            }
            fs::write(folder.join(format!("{number:016}.{offset}")), bytes).map(|()| true)
        });
        tracing::warn!(
            segment = %self.segment(number).display(),
            offset,
            bytes = bytes.len(),
            kept = kept.unwrap_or(false),
            "damage in the export queue"
        );
    }

    /// Keeps a whole segment that is not read.
    pub(super) fn move_aside(&self, number: u64) -> Result<(), QueueError> {
        let (path, folder) = (self.segment(number), self.path.join("damaged"));
        fs::create_dir_all(&folder)
            .and_then(|()| fs::rename(&path, folder.join(format!("{number:016}.0"))))
            .map_err(QueueError::file("set aside", &path))
    }
}

impl Writing {
    /// Writes a frame at the end of the file, which has `len` sound bytes; what could not be written whole is taken back.
    pub(super) fn append(&mut self, frame: &[u8], len: u64) -> Result<(), QueueError> {
        self.file.write_all(frame).map_err(|error| {
            // Best effort: a rest of it is damage that the reader knows how to skip.
            let _rest = self.file.set_len(len);
            QueueError::file("write", &self.path)(error)
        })
    }

    pub(super) fn sync(&mut self) -> Result<(), QueueError> {
        self.file.sync_data().map_err(QueueError::file("sync", &self.path))
    }
}
