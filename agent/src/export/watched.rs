//! Files that are read again when they change: tokens and certificates are renewed while the agent runs.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

/// Something that is made of files, and made anew when one of them is another.
pub(super) struct Watched<T> {
    files: Vec<PathBuf>,
    made: Mutex<Option<(Vec<Stamp>, T)>>,
}

impl<T> fmt::Debug for Watched<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Watched").field("files", &self.files).finish_non_exhaustive()
    }
}

/// What tells one state of a file from another. Kubernetes replaces secrets by other files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl<T: Clone> Watched<T> {
    /// Of these files.
    pub(super) fn new(files: Vec<PathBuf>) -> Self {
        Self { files, made: Mutex::new(None) }
    }

    /// What the files make now.
    pub(super) fn get<E>(&self, read: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let stamps = self.files.iter().map(stamp).collect::<io::Result<Vec<_>>>().ok();
        let mut last = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(stamps), Some((of, made))) = (&stamps, &*last)
            && stamps == of
        {
            return Ok(made.clone());
        }
        let new = read()?;
        // A file that is not there any more has just been read by chance; the next call looks again.
        *last = stamps.map(|stamps| (stamps, new.clone()));
        Ok(new)
    }
}

fn stamp(path: &PathBuf) -> io::Result<Stamp> {
    let metadata = fs::metadata(path)?;
    Ok(Stamp { inode: metadata.ino(), size: metadata.len(), changed: (metadata.mtime(), metadata.mtime_nsec()) })
}
