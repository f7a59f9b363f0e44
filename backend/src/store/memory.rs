//! Objects in memory, and faults that a test wants: for tests and benchmarks.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::path::{check, check_prefix};
use super::{Object, Store, StoreError, Upload};

/// What a store is asked for.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Operation {
    /// [`Store::get`].
    Get,
    /// [`Store::get_ranges`].
    GetRanges,
    /// [`Store::size`].
    Size,
    /// [`Store::list`].
    List,
    /// [`Store::create`].
    Create,
    /// [`Store::upload`].
    Upload,
    /// [`Upload::finish`].
    Finish,
    /// [`Store::delete`].
    Delete,
}

/// What goes wrong with a call.
#[derive(Debug)]
pub enum Fault {
    /// Nothing is done, and this is the answer.
    Refused(StoreError),
    /// It is done, but the answer is lost: [`StoreError::Unavailable`].
    AnswerLost,
    /// It is done, but this is the answer.
    DoneBut(StoreError),
}

impl Fault {
    /// Nothing is done: [`StoreError::Unavailable`].
    pub fn unavailable(path: &str) -> Self {
        Self::Refused(StoreError::Unavailable { path: path.to_owned(), source: "a fault of the test".into() })
    }

    /// Nothing is done: [`StoreError::Full`].
    pub fn full(path: &str) -> Self {
        Self::Refused(StoreError::Full { path: path.to_owned(), source: "a fault of the test".into() })
    }
}

/// Decides about each call, before it is done; may wait, to delay it.
type Hook = Arc<dyn Fn(Operation, &str) -> Option<Fault> + Send + Sync>;

/// Objects in memory. Clones share them.
#[derive(Clone, Default)]
pub struct MemoryStore(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, (Bytes, u64)>,
    now_ns: u64,
    hook: Option<Hook>,
}

impl MemoryStore {
    /// An empty store; its clock stands at 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the store's clock, nanoseconds since the epoch: it gives [`Object::modified_ns`].
    pub fn set_now(&self, now_ns: u64) {
        self.state().now_ns = now_ns;
    }

    /// From now on `hook` decides about each call, by operation and path, before it is done; it may wait, to delay it.
    /// It may use the store itself only if it lets those calls pass.
    pub fn set_faults(&self, hook: impl Fn(Operation, &str) -> Option<Fault> + Send + Sync + 'static) {
        self.state().hook = Some(Arc::new(hook));
    }

    /// From now on nothing goes wrong.
    pub fn clear_faults(&self) {
        self.state().hook = None;
    }

    /// Puts an object there whatever was there before, as nothing but damage does it.
    pub fn overwrite(&self, path: &str, content: impl Into<Bytes>) {
        self.state().put(path, content.into());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one call, with what is to go wrong with it.
    fn call<T>(
        &self,
        operation: Operation,
        path: &str,
        work: impl FnOnce(&mut State) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        // Not locked while the hook runs: it may wait for other calls.
        let hook = self.state().hook.clone();
        match hook.and_then(|hook| hook(operation, path)) {
            None => work(&mut self.state()),
            Some(Fault::Refused(error)) => Err(error),
            Some(Fault::AnswerLost) => {
                work(&mut self.state())?;
                Err(StoreError::Unavailable { path: path.to_owned(), source: "the answer was lost".into() })
            }
            Some(Fault::DoneBut(error)) => {
                work(&mut self.state())?;
                Err(error)
            }
        }
    }
}

impl State {
    fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        let found = self.objects.get(path).map(|(content, _)| content.clone());
        found.ok_or_else(|| StoreError::NotFound { path: path.to_owned() })
    }

    fn put(&mut self, path: &str, content: Bytes) {
        self.objects.insert(path.to_owned(), (content, self.now_ns));
    }

    fn create(&mut self, path: &str, content: Bytes) -> Result<(), StoreError> {
        if self.objects.contains_key(path) {
            return Err(StoreError::AlreadyExists { path: path.to_owned() });
        }
        self.put(path, content);
        Ok(())
    }
}

impl Store for MemoryStore {
    fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        check(path)?;
        self.call(Operation::Get, path, |state| state.get(path))
    }

    fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        check(path)?;
        let content = self.call(Operation::GetRanges, path, |state| state.get(path))?;
        let size = content.len() as u64;
        let part = |range: &Range<u64>| {
            if range.start > range.end || range.end > size {
                return Err(StoreError::OutOfRange { path: path.to_owned(), range: range.clone(), size });
            }
            Ok(content.slice(range.start as usize..range.end as usize))
        };
        ranges.iter().map(part).collect()
    }

    fn size(&self, path: &str) -> Result<u64, StoreError> {
        check(path)?;
        self.call(Operation::Size, path, |state| state.get(path).map(|content| content.len() as u64))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, StoreError> {
        check_prefix(prefix)?;
        self.call(Operation::List, prefix, |state| {
            let from_prefix = state.objects.range(prefix.to_owned()..);
            let found = from_prefix.take_while(|(path, _)| path.starts_with(prefix));
            Ok(found
                .map(|(path, (content, modified_ns))| Object {
                    path: path.clone(),
                    bytes: content.len() as u64,
                    modified_ns: *modified_ns,
                })
                .collect())
        })
    }

    fn create(&self, path: &str, content: Bytes) -> Result<(), StoreError> {
        check(path)?;
        self.call(Operation::Create, path, |state| state.create(path, content))
    }

    fn upload(&self, path: &str) -> Result<Box<dyn Upload>, StoreError> {
        check(path)?;
        self.call(Operation::Upload, path, |_| Ok(()))?;
        Ok(Box::new(MemoryUpload { store: self.clone(), path: path.to_owned(), content: Vec::new() }))
    }

    fn delete(&self, path: &str) -> Result<(), StoreError> {
        check(path)?;
        self.call(Operation::Delete, path, |state| {
            state.objects.remove(path);
            Ok(())
        })
    }
}

struct MemoryUpload {
    store: MemoryStore,
    path: String,
    content: Vec<u8>,
}

impl Write for MemoryUpload {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        self.content.write(content)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for MemoryUpload {
    fn finish(self: Box<Self>) -> Result<u64, StoreError> {
        let Self { store, path, content } = *self;
        let size = content.len() as u64;
        store.call(Operation::Finish, &path, |state| state.create(&path, content.into()))?;
        Ok(size)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.state().objects.keys()).finish()
    }
}

impl fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}
