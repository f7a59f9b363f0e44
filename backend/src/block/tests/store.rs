//! A store in memory that counts.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::store::{Object, Store, StoreError, Upload};

#[derive(Debug, Default)]
pub(super) struct MemoryStore {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
    requests: AtomicU64,
    bytes_read: AtomicU64,
}

impl MemoryStore {
    pub(super) fn object(&self, path: &str) -> Bytes {
        self.objects.lock().unwrap().get(path).unwrap_or_else(|| panic!("{path} is not there")).clone()
    }

    pub(super) fn paths(&self) -> Vec<String> {
        self.objects.lock().unwrap().keys().cloned().collect()
    }

    /// Calls that read since the last [`MemoryStore::reset`].
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    pub(super) fn reset(&self) {
        self.requests.store(0, Ordering::Relaxed);
        self.bytes_read.store(0, Ordering::Relaxed);
    }

    fn read(&self, path: &str) -> Result<Bytes, StoreError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let found = self.objects.lock().unwrap().get(path).cloned();
        found.ok_or_else(|| StoreError::NotFound { path: path.to_owned() })
    }
}

impl fmt::Display for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("memory")
    }
}

impl Store for MemoryStore {
    fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        self.read(path)
    }

    fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        let object = self.read(path)?;
        let parts: Vec<_> = ranges.iter().map(|range| object.slice(range.start as usize..range.end as usize)).collect();
        self.bytes_read.fetch_add(parts.iter().map(|part| part.len() as u64).sum(), Ordering::Relaxed);
        Ok(parts)
    }

    fn size(&self, path: &str) -> Result<u64, StoreError> {
        Ok(self.read(path)?.len() as u64)
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, StoreError> {
        let objects = self.objects.lock().unwrap();
        let found = objects.iter().filter(|(path, _)| path.starts_with(prefix));
        Ok(found
            .map(|(path, bytes)| Object { path: path.clone(), bytes: bytes.len() as u64, modified_ns: 0 })
            .collect())
    }

    fn create(&self, path: &str, content: Bytes) -> Result<(), StoreError> {
        self.objects.lock().unwrap().insert(path.to_owned(), content);
        Ok(())
    }

    fn upload(&self, path: &str) -> Result<Box<dyn Upload>, StoreError> {
        Ok(Box::new(MemoryUpload { objects: Arc::clone(&self.objects), path: path.to_owned(), content: Vec::new() }))
    }

    fn delete(&self, path: &str) -> Result<(), StoreError> {
        self.objects.lock().unwrap().remove(path);
        Ok(())
    }
}

struct MemoryUpload {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
    path: String,
    content: Vec<u8>,
}

impl Write for MemoryUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.content.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for MemoryUpload {
    fn finish(self: Box<Self>) -> Result<u64, StoreError> {
        let size = self.content.len() as u64;
        self.objects.lock().unwrap().insert(self.path, self.content.into());
        Ok(size)
    }
}
