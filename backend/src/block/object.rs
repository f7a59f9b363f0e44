//! One object of a store, as the Parquet library reads it.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};

use crate::store::{Store, StoreError};

/// Bytes that are fetched at once where the length is not known before.
const READ_BYTES: u64 = 16 << 10;

/// An object, parts of which may be in memory already. Everything else is fetched when it is asked for, one request each.
#[derive(Clone, Debug)]
pub struct ObjectReader {
    /// None if all of the object is in memory.
    store: Option<Arc<dyn Store>>,
    path: Arc<str>,
    size: u64,
    /// In the order of their ranges, which do not overlap.
    held: Arc<[(Range<u64>, Bytes)]>,
}

impl ObjectReader {
    /// An object of which nothing is in memory.
    pub(super) fn new(store: Arc<dyn Store>, path: Arc<str>, size: u64) -> Self {
        Self { store: Some(store), path, size, held: Arc::new([]) }
    }

    /// An object that is in memory.
    pub(super) fn of_bytes(path: Arc<str>, bytes: Bytes) -> Self {
        let size = bytes.len() as u64;
        Self { store: None, path, size, held: Arc::new([(0..size, bytes)]) }
    }

    /// The same object with these parts in memory, fetched with one call of the store; other parts are forgotten.
    ///
    /// Ranges may overlap and come in any order.
    pub(super) fn prefetch(&self, ranges: impl IntoIterator<Item = Range<u64>>) -> Result<Self, StoreError> {
        let Some(store) = &self.store else { return Ok(self.clone()) };
        let ranges = merged(ranges.into_iter().collect(), self.size);
        let bytes = if ranges.is_empty() { Vec::new() } else { store.get_ranges(&self.path, &ranges)? };
        Ok(Self { held: ranges.into_iter().zip(bytes).collect(), ..self.clone() })
    }

    /// Where it lies in the store.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// Bytes of a range that lies in the object.
    fn fetch(&self, range: Range<u64>) -> Result<Bytes, ParquetError> {
        let before = self.held.partition_point(|(held, _)| held.start <= range.start);
        if let Some((held, bytes)) = before.checked_sub(1).and_then(|last| self.held.get(last))
            && range.end <= held.end
        {
            let from = (range.start - held.start) as usize;
            let to = (range.end - held.start) as usize;
            // A store that gave less than was asked for must not make this panic.
            if to <= bytes.len() {
                return Ok(bytes.slice(from..to));
            }
        }
        let store = self.store.as_ref().ok_or_else(|| ParquetError::EOF(format!("no bytes at {}", range.start)))?;
        let mut fetched =
            store.get_ranges(&self.path, std::slice::from_ref(&range)).map_err(|e| ParquetError::External(e.into()))?;
        let bytes = fetched.pop().unwrap_or_default();
        if bytes.len() as u64 != range.end - range.start {
            return Err(ParquetError::EOF(format!("{} bytes of {}", bytes.len(), range.end - range.start)));
        }
        Ok(bytes)
    }
}

/// Ranges in order, without overlaps, cut at the end of the object.
fn merged(mut ranges: Vec<Range<u64>>, size: u64) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let range = range.start..range.end.min(size);
        if range.is_empty() {
            continue;
        }
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

impl Length for ObjectReader {
    fn len(&self) -> u64 {
        self.size
    }
}

impl ChunkReader for ObjectReader {
    type T = ObjectRead;

    fn get_read(&self, start: u64) -> Result<ObjectRead, ParquetError> {
        Ok(ObjectRead { object: self.clone(), at: start, buffer: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        let end = start.checked_add(length as u64).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| {
            ParquetError::EOF(format!("{length} bytes at {start} of an object of {} bytes", self.size))
        })?;
        self.fetch(start..end)
    }
}

/// Reads an object from some place on.
#[derive(Debug)]
pub struct ObjectRead {
    object: ObjectReader,
    /// Where the buffer ends.
    at: u64,
    buffer: Bytes,
}

impl io::Read for ObjectRead {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() && self.at < self.object.size {
            let at = self.at;
            let holds = |(held, _): &&(Range<u64>, Bytes)| held.contains(&at);
            let held_to = self.object.held.iter().find(holds).map(|(held, _)| held.end);
            let end = held_to.unwrap_or(self.object.size).min(at + READ_BYTES);
            self.buffer = self.object.fetch(at..end).map_err(io::Error::other)?;
            self.at = end;
        }
        let count = self.buffer.len().min(into.len());
        if let Some(into) = into.get_mut(..count) {
            self.buffer.copy_to_slice(into);
        }
        Ok(count)
    }
}
