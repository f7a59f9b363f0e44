//! The segment that is being written.

use std::path::PathBuf;

use std::io;

use super::disk::{Disk, SegmentFile};
use super::format::{HEADER_BYTES, Header};

/// Name of the segment with a number; names sort as numbers do.
pub(super) fn file_name(number: u64) -> String {
    format!("{number:016}.wal")
}

/// Number of the segment that a file name names.
pub(super) fn file_number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".wal")?;
    (digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok()).flatten()
}

/// An open segment. Everything up to `len` is on stable storage.
pub(super) struct OpenSegment {
    pub(super) path: PathBuf,
    pub(super) header: Header,
    pub(super) len: u64,
    file: Box<dyn SegmentFile>,
}

impl OpenSegment {
    /// Creates the file and makes its header durable. A file that could be begun but not finished is removed.
    pub(super) fn create(disk: &dyn Disk, path: PathBuf, header: Header) -> io::Result<Self> {
        let mut file = disk.create(&path)?;
        if let Err(error) = file.append(&header.encode()).and_then(|()| file.sync()) {
            // Best effort: a leftover without frames is removed at the next start.
            let _leftover = disk.remove(&path);
            return Err(error);
        }
        Ok(Self { path, header, len: HEADER_BYTES as u64, file })
    }

    /// Appends frames that were encoded with this segment's salt; returns when they are on stable storage.
    pub(super) fn append(&mut self, frames: &[u8]) -> Result<(), AppendError> {
        if let Err(source) = self.file.append(frames) {
            // Take the partial frames back, so that the file ends with a sound one.
            return Err(match self.file.truncate(self.len) {
                Ok(()) => AppendError::Refused(source),
                Err(_) => AppendError::Poisoned(source),
            });
        }
        if let Err(source) = self.file.sync() {
            // Best effort: these frames are written again elsewhere or refused, so they should not be found here.
            let _kept = self.file.truncate(self.len);
            return Err(AppendError::Poisoned(source));
        }
        self.len += frames.len() as u64;
        Ok(())
    }
}

/// Why frames are not on stable storage.
pub(super) enum AppendError {
    /// Nothing was written; the segment is as it was before.
    Refused(io::Error),
    /// The segment must not be written or synced again.
    ///
    /// After a failed `fsync` Linux marks the pages clean: another `fsync` of the same file can succeed although the
    /// data never reached the disk (Rebello et al., "Can Applications Recover from fsync Failures?", USENIX ATC 2020;
    /// <https://lwn.net/Articles/752063/>). Only frames that earlier syncs covered are known to be there.
    Poisoned(io::Error),
}
