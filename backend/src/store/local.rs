//! Objects as files of a directory. What is created survives power loss; why own code: `docs/adr/0006-own-local-store.md`.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, TryLockError};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use bytes::Bytes;
use tracing::warn;

use super::path::{TEMPORARY, check, check_prefix};
use super::{Object, Store, StoreError, Upload};

/// A directory. Several processes may use it at once.
#[derive(Clone)]
pub struct LocalStore(Arc<Inner>);

struct Inner {
    root: PathBuf,
    /// The root directory, locked (shared) for as long as there may be unfinished files of ours.
    _lock: File,
    /// Directories whose names are known to be on stable storage.
    durable: Mutex<BTreeSet<PathBuf>>,
    /// Files that are there but may be gone after a power loss, which could be neither made durable nor removed. They cannot
    /// be read before the next start, so that nobody builds upon them.
    doubtful: Mutex<BTreeSet<PathBuf>>,
    /// For names of unfinished files, which no other process takes.
    random: u64,
    next: AtomicU64,
}

impl LocalStore {
    /// Opens a directory, which is made if need be. Unfinished files of a crash are removed.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        Self::try_open(root).map_err(|error| StoreError::of_io(&root.display().to_string(), error))
    }

    /// Opens a directory that must be there, to look at it: nothing in it is changed before something is created.
    pub fn open_existing(root: &Path) -> Result<Self, StoreError> {
        let opened = root.canonicalize().and_then(|root| Ok(Self::locked(File::open(&root)?, root)));
        opened.map_err(|error| StoreError::of_io(&root.display().to_string(), error))
    }

    /// Whether anybody has the directory open.
    pub fn is_in_use(root: &Path) -> Result<bool, StoreError> {
        let tried = File::open(root).map(|root| matches!(root.try_lock(), Err(TryLockError::WouldBlock)));
        tried.map_err(|error| StoreError::of_io(&root.display().to_string(), error))
    }

    fn try_open(root: &Path) -> io::Result<Self> {
        create_dir(root)?;
        let root = root.canonicalize()?;
        let lock = File::open(&root)?;
        if lock.try_lock().is_ok() {
            // Nobody else uses the directory: what is unfinished will not be finished.
            remove_files(&root.join(TEMPORARY))?;
        }
        Ok(Self::locked(lock, root))
    }

    fn locked(lock: File, root: PathBuf) -> Self {
        // Some network file systems know no such locks; then leftovers stay.
        let _unknown = lock.lock_shared();
        let (random, next) = (RandomState::new().hash_one(std::process::id()), AtomicU64::new(0));
        Self(Arc::new(Inner { root, _lock: lock, durable: Mutex::default(), doubtful: Mutex::default(), random, next }))
    }

    fn file(&self, path: &str) -> Result<PathBuf, StoreError> {
        check(path)?;
        Ok(self.0.root.join(path))
    }

    fn unfinished(&self, path: &str) -> Result<Unfinished, StoreError> {
        let target = self.file(path)?;
        let begin = || {
            let temporary = self.0.temporary()?;
            let file = File::options().write(true).create_new(true).open(&temporary)?;
            Ok(Unfinished { store: Arc::clone(&self.0), temporary, target, file })
        };
        begin().map_err(|error| of_write(path, error))
    }
}

/// A file that is missing while something is created is no missing object.
fn of_write(path: &str, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::NotFound => StoreError::Unavailable { path: path.to_owned(), source: error.into() },
        _ => StoreError::of_io(path, error),
    }
}

/// A path below a file leads nowhere.
fn of_read(path: &str, error: io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::NotADirectory => StoreError::NotFound { path: path.to_owned() },
        _ => StoreError::of_io(path, error),
    }
}

/// An object's file, and its size.
fn open_object(path: &str, file: &Path) -> Result<(File, u64), StoreError> {
    let open = || {
        let file = File::open(file)?;
        let metadata = file.metadata()?;
        if metadata.is_file() { Ok((file, metadata.len())) } else { Err(io::ErrorKind::NotFound.into()) }
    };
    open().map_err(|error| of_read(path, error))
}

fn read_at(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let len = usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::OutOfMemory)?;
    let mut content = vec![0; len];
    file.read_exact_at(&mut content, range.start)?;
    Ok(content.into())
}

impl Store for LocalStore {
    fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        let file = self.file(path)?;
        if self.0.doubtful.lock().unwrap_or_else(PoisonError::into_inner).contains(&file) {
            let source = "it could not be made to last".into();
            return Err(StoreError::Unavailable { path: path.to_owned(), source });
        }
        let (file, size) = open_object(path, &file)?;
        read_at(&file, &(0..size)).map_err(|error| of_read(path, error))
    }

    fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        let (file, size) = open_object(path, &self.file(path)?)?;
        let part = |range: &Range<u64>| {
            if range.start > range.end || range.end > size {
                return Err(StoreError::OutOfRange { path: path.to_owned(), range: range.clone(), size });
            }
            read_at(&file, range).map_err(|error| of_read(path, error))
        };
        ranges.iter().map(part).collect()
    }

    fn size(&self, path: &str) -> Result<u64, StoreError> {
        open_object(path, &self.file(path)?).map(|(_, size)| size)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, StoreError> {
        check_prefix(prefix)?;
        let mut objects = Vec::new();
        let mut waiting = vec![prefix.to_owned()];
        while let Some(folder) = waiting.pop() {
            self.list_folder(&folder, &mut objects, &mut waiting).map_err(|error| of_read(&folder, error))?;
        }
        objects.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(objects)
    }

    fn create(&self, path: &str, content: Bytes) -> Result<(), StoreError> {
        let mut unfinished = self.unfinished(path)?;
        let mut write = || {
            unfinished.file.write_all(&content)?;
            unfinished.publish()
        };
        write().map_err(|error| of_write(path, error))
    }

    fn upload(&self, path: &str) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(LocalUpload { path: path.to_owned(), written: 0, unfinished: self.unfinished(path)? }))
    }

    /// Does not wait until the deletion is on stable storage: after a power loss the object may be there again.
    fn delete(&self, path: &str) -> Result<(), StoreError> {
        match fs::remove_file(self.file(path)?).map_err(|error| of_read(path, error)) {
            Err(StoreError::NotFound { .. }) => Ok(()),
            outcome => outcome,
        }
    }
}

impl LocalStore {
    /// Adds the objects of one folder, a prefix, and the folders in it.
    fn list_folder(&self, folder: &str, objects: &mut Vec<Object>, folders: &mut Vec<String>) -> io::Result<()> {
        let Some(entries) = vanished(fs::read_dir(self.0.root.join(folder)))? else { return Ok(()) };
        for entry in entries {
            let entry = entry?;
            // No object has such a name; somebody else put it there.
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{folder}{name}");
            let Some(metadata) = vanished(entry.metadata())? else { continue };
            if check(&path).is_err() {
                continue;
            }
            if metadata.is_dir() {
                folders.push(format!("{path}/"));
            } else if metadata.is_file() {
                let modified = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
                let modified_ns = u64::try_from(modified.as_nanos()).unwrap_or(u64::MAX);
                objects.push(Object { path, bytes: metadata.len(), modified_ns });
            }
        }
        Ok(())
    }
}

/// `None` for what is not there, or was deleted just now.
fn vanished<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        outcome => outcome.map(Some),
    }
}

impl Inner {
    /// A name for an unfinished file, in a directory that is there.
    fn temporary(&self) -> io::Result<PathBuf> {
        let folder = self.root.join(TEMPORARY);
        self.make_durable(&folder)?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(folder.join(format!("{:016x}-{number}", self.random)))
    }

    /// Makes a directory below the root, so that it is still there after a power loss. One that is there already may have
    /// been made by somebody who was killed before the name was on stable storage.
    fn make_durable(&self, folder: &Path) -> io::Result<()> {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if durable.contains(folder) && folder.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(folder).map_err(|error| match error.kind() {
            // A file is in the way, which is not the object that is about to be created.
            io::ErrorKind::AlreadyExists => io::ErrorKind::NotADirectory.into(),
            _ => error,
        })?;
        for folder in folder.ancestors().take_while(|folder| *folder != self.root) {
            sync_parent(folder)?;
            durable.insert(folder.to_owned());
        }
        Ok(())
    }
}

/// Makes a directory, and the ones that it is in, so that they are still there after a power loss.
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = path.ancestors().take_while(|ancestor| !ancestor.exists()).collect();
    fs::create_dir_all(path)?;
    missing.into_iter().try_for_each(sync_parent)
}

/// A name is durable once the directory that it is in is synced.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Removes the files of a directory.
fn remove_files(folder: &Path) -> io::Result<()> {
    let Some(entries) = vanished(fs::read_dir(folder))? else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if let Err(error) = fs::remove_file(&path) {
            warn!(path = %path.display(), %error, "unfinished file cannot be removed");
        }
    }
    Ok(())
}

/// A file that no path leads to yet; removed when dropped.
struct Unfinished {
    store: Arc<Inner>,
    temporary: PathBuf,
    target: PathBuf,
    file: File,
}

impl Unfinished {
    /// Gives it its path, unless that is taken. The order counts: content, path, directory.
    fn publish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        let parent = self.target.parent().unwrap_or(&self.store.root);
        self.store.make_durable(parent)?;
        self.link(sync_parent)
    }

    /// Where the directory cannot be synced the path is taken back: whoever looks would believe that it stays.
    fn link(&self, sync: impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
        fs::hard_link(&self.temporary, &self.target)?;
        let Err(error) = sync(&self.target) else { return Ok(()) };
        if let Err(removal) = fs::remove_file(&self.target) {
            warn!(path = %self.target.display(), error = %removal, "file that may not last cannot be removed");
            self.store.doubtful.lock().unwrap_or_else(PoisonError::into_inner).insert(self.target.clone());
        }
        // Not what it says, such as that the disk is full: whether a power loss would bring the path back is not known.
        let path = self.target.strip_prefix(&self.store.root).unwrap_or(&self.target).display().to_string();
        Err(io::Error::other(StoreError::Unavailable { path, source: error.into() }))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Best effort: the next start removes what is left.
        let _leftover = fs::remove_file(&self.temporary);
    }
}

struct LocalUpload {
    path: String,
    written: u64,
    unfinished: Unfinished,
}

impl Write for LocalUpload {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        let written = self.unfinished.file.write(content)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for LocalUpload {
    fn finish(self: Box<Self>) -> Result<u64, StoreError> {
        self.unfinished.publish().map_err(|error| of_write(&self.path, error))?;
        Ok(self.written)
    }
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LocalStore").field(&self.0.root).finish()
    }
}

impl fmt::Display for LocalStore {
    /// The directory.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.root.display().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unfinished_files(store: &LocalStore) -> usize {
        fs::read_dir(store.0.root.join(TEMPORARY)).map_or(0, Iterator::count)
    }

    #[test]
    fn what_a_crash_left_is_removed_at_the_next_start_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        store.create("a", "whole".into()).unwrap();
        assert_eq!(unfinished_files(&store), 0);
        let mut upload = store.upload("b").unwrap();
        upload.write_all(b"half").unwrap();
        // Another process, such as a tool, that opens the directory of a running one leaves its files alone.
        let other = LocalStore::open(dir.path()).unwrap();
        assert_eq!(unfinished_files(&other), 1);
        drop(other);
        drop(store);
        drop(LocalStore::open(dir.path()).unwrap());
        upload.write_all(b" and half").unwrap();
        upload.finish().unwrap();
        // Nobody is there any more.
        let fresh = tempfile::tempdir().unwrap();
        fs::create_dir(fresh.path().join(TEMPORARY)).unwrap();
        fs::write(fresh.path().join("tmp/left"), "by a crash").unwrap();
        let store = LocalStore::open(fresh.path()).unwrap();
        assert_eq!(unfinished_files(&store), 0);
        assert_eq!(store.list("").unwrap(), []);
    }

    #[test]
    fn a_directory_that_vanished_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        store.create("a/b", "1".into()).unwrap();
        fs::remove_dir_all(dir.path().join("a")).unwrap();
        fs::remove_dir_all(dir.path().join(TEMPORARY)).unwrap();
        store.create("a/b", "2".into()).unwrap();
        assert_eq!(store.get("a/b").unwrap(), "2");
    }

    #[test]
    fn what_may_not_last_is_taken_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        let told = |unfinished: &Unfinished, sync: fn(&Path) -> io::Result<()>| {
            of_write("a", unfinished.link(sync).unwrap_err())
        };
        let mut unfinished = store.unfinished("a").unwrap();
        unfinished.file.write_all(b"1").unwrap();
        let error = told(&unfinished, |_| Err(io::ErrorKind::StorageFull.into()));
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(matches!(store.get("a").unwrap_err(), StoreError::NotFound { .. }));
        // Nor can it be removed: a directory is in its place.
        let error = told(&unfinished, |target| {
            fs::remove_file(target)?;
            fs::create_dir(target)?;
            Err(io::ErrorKind::InvalidData.into())
        });
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        fs::remove_dir(dir.path().join("a")).unwrap();
        unfinished.publish().unwrap();
        assert!(matches!(store.get("a").unwrap_err(), StoreError::Unavailable { .. }));
        assert_eq!(LocalStore::open(dir.path()).unwrap().get("a").unwrap(), "1");
    }

    #[test]
    fn files_and_directories_are_not_mixed_up() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        store.create("a/b", "1".into()).unwrap();
        assert!(matches!(store.get("a").unwrap_err(), StoreError::NotFound { .. }));
        assert!(matches!(store.size("a").unwrap_err(), StoreError::NotFound { .. }));
        assert!(matches!(store.get("a/b/c").unwrap_err(), StoreError::NotFound { .. }));
        assert!(matches!(store.create("a/b/c", "1".into()).unwrap_err(), StoreError::Unavailable { .. }));
        assert!(matches!(store.create("a", "1".into()).unwrap_err(), StoreError::AlreadyExists { .. }));
        assert_eq!(unfinished_files(&store), 0);
        assert!(LocalStore::open(&dir.path().join("a/b")).is_err());
    }

    #[test]
    fn errors_of_the_file_system_keep_their_meaning() {
        let told = |kind: io::ErrorKind| of_write("a", kind.into());
        assert!(matches!(told(io::ErrorKind::StorageFull), StoreError::Full { .. }));
        assert!(matches!(told(io::ErrorKind::QuotaExceeded), StoreError::Full { .. }));
        assert!(matches!(told(io::ErrorKind::PermissionDenied), StoreError::Denied { .. }));
        assert!(matches!(told(io::ErrorKind::ReadOnlyFilesystem), StoreError::Denied { .. }));
        assert!(matches!(told(io::ErrorKind::NotFound), StoreError::Unavailable { .. }));
        let inner = StoreError::Full { path: "b".to_owned(), source: "x".into() };
        assert!(
            matches!(StoreError::of_io("a", io::Error::other(inner)), StoreError::Full { path, .. } if path == "b")
        );
    }
}
