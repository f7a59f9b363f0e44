//! What is made of files, and made anew when one of them is another: certificates and tokens are renewed while the
//! backend runs.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::AccessError;

/// How a thing is made of its files.
type Make<T> = Box<dyn Fn() -> Result<T, AccessError> + Send + Sync>;

/// A thing made of files.
pub(super) struct Reloaded<T> {
    files: Vec<PathBuf>,
    make: Make<T>,
    made: RwLock<Arc<T>>,
    /// What the files were when they were read last.
    seen: Mutex<Vec<Option<Stamp>>>,
}

/// Tells one state of a file from another. Kubernetes replaces secrets by other files.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl<T> Reloaded<T> {
    /// Fails if it cannot be made now.
    pub(super) fn new(
        files: Vec<PathBuf>,
        read: impl Fn() -> Result<T, AccessError> + Send + Sync + 'static,
    ) -> Result<Self, AccessError> {
        let seen = Mutex::new(stamps(&files));
        let made = RwLock::new(Arc::new(read()?));
        Ok(Self { files, make: Box::new(read), made, seen })
    }

    /// The newest that could be made.
    pub(super) fn get(&self) -> Arc<T> {
        Arc::clone(&self.made.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks at the files; whether there is a new one. After an error the old one stays until they change again.
    pub(super) fn refresh(&self) -> Result<bool, AccessError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // Looked at before they are read: what changes meanwhile is read again the next time.
        let now = stamps(&self.files);
        if *seen == now {
            return Ok(false);
        }
        *seen = now;
        let new = Arc::new((self.make)()?);
        *self.made.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(true)
    }
}

impl<T> fmt::Debug for Reloaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reloaded").field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    files.iter().map(|path| stamp(path)).collect()
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp { inode: metadata.ino(), size: metadata.len(), changed: (metadata.mtime(), metadata.mtime_nsec()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Result<String, AccessError> {
        fs::read_to_string(path).map_err(|source| AccessError::Unreadable { path: path.to_owned(), source })
    }

    #[test]
    fn a_file_that_changes_is_read_again_and_one_that_is_gone_leaves_what_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "one").unwrap();
        let made = {
            let path = path.clone();
            Reloaded::new(vec![path.clone()], move || read(&path)).unwrap()
        };
        assert!(!made.refresh().unwrap());
        assert_eq!(*made.get(), "one");

        // As Kubernetes does it: another file takes the name.
        fs::write(folder.path().join("new"), "two").unwrap();
        fs::rename(folder.path().join("new"), &path).unwrap();
        assert!(made.refresh().unwrap());
        assert_eq!(*made.get(), "two");

        fs::remove_file(&path).unwrap();
        made.refresh().unwrap_err();
        assert_eq!(*made.get(), "two");
        // The log is told once.
        assert!(!made.refresh().unwrap());

        fs::write(&path, "three").unwrap();
        assert!(made.refresh().unwrap());
        assert_eq!(*made.get(), "three");
    }

    #[test]
    fn what_cannot_be_read_at_first_is_an_error() {
        let path = PathBuf::from("/no/such/file");
        let error = Reloaded::new(vec![path.clone()], move || read(&path)).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /no/such/file");
    }
}
