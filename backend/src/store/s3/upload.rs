//! An object that is written in parts.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::multipart::PartId;

use super::bucket::Bucket;
use super::error::unavailable;
use super::io::Pending;
use super::{PIECE_BYTES, S3Store};
use crate::store::{StoreError, Upload};

/// How long a dropped upload waits until its parts are given back.
const ABORT_WITHIN: Duration = Duration::from_secs(2);

/// An object in writing. One part is on its way while the next is filled; an object of less than a part is created at once.
pub(super) struct S3Upload {
    store: S3Store,
    path: String,
    written: u64,
    part: Vec<u8>,
    /// Its name in the store, once it has parts.
    name: Option<Arc<str>>,
    sending: Option<Pending<PartId>>,
    sent: Vec<PartId>,
    failed: bool,
}

impl S3Upload {
    pub(super) fn new(store: S3Store, path: &str) -> Self {
        Self {
            store,
            path: path.to_owned(),
            written: 0,
            part: Vec::new(),
            name: None,
            sending: None,
            sent: Vec::new(),
            failed: false,
        }
    }

    fn bucket(&self) -> Arc<Bucket> {
        self.store.bucket()
    }

    /// Sends the part that was filled, once the one before it is there.
    fn send(&mut self) -> Result<(), StoreError> {
        let name = if let Some(name) = &self.name {
            Arc::clone(name)
        } else {
            let name = self.store.io.run(&self.path, self.bucket().begin(self.path.clone()))?;
            Arc::clone(self.name.insert(name))
        };
        self.collect()?;
        let content = Bytes::from(mem::take(&mut self.part));
        let part = self.bucket().put_part(self.path.clone(), name, self.sent.len(), content);
        self.sending = Some(self.store.io.begin(&self.path, part));
        Ok(())
    }

    /// Waits for the part that is on its way.
    fn collect(&mut self) -> Result<(), StoreError> {
        if let Some(sending) = self.sending.take() {
            self.sent.push(sending.wait()?);
        }
        Ok(())
    }

    fn try_finish(&mut self) -> Result<(), StoreError> {
        if self.failed {
            return Err(unavailable(&self.path, "a part of it could not be written"));
        }
        if self.name.is_none() {
            let content = Bytes::from(mem::take(&mut self.part));
            return self.store.io.run(&self.path, self.bucket().create(self.path.clone(), content));
        }
        if !self.part.is_empty() {
            self.send()?;
        }
        self.collect()?;
        let Some(name) = &self.name else { return Ok(()) };
        let parts = mem::take(&mut self.sent);
        let completed = self.bucket().complete(self.path.clone(), Arc::clone(name), parts, self.written);
        self.store.io.run(&self.path, completed)?;
        self.name = None;
        Ok(())
    }
}

impl Write for S3Upload {
    fn write(&mut self, content: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(io::Error::other(unavailable(&self.path, "a part of it could not be written")));
        }
        let room = (PIECE_BYTES as usize).saturating_sub(self.part.len());
        let taken = content.get(..room).unwrap_or(content);
        self.part.extend_from_slice(taken);
        if self.part.len() as u64 >= PIECE_BYTES {
            self.send().map_err(|error| {
                self.failed = true;
                io::Error::other(error)
            })?;
        }
        self.written += taken.len() as u64;
        Ok(taken.len())
    }

    /// Does nothing: parts have a size.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Upload for S3Upload {
    fn finish(mut self: Box<Self>) -> Result<u64, StoreError> {
        self.try_finish()?;
        Ok(self.written)
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        if let Some(name) = self.name.take() {
            // A part that is still on its way would not be given back.
            let _failed = self.collect();
            let aborted = self.bucket().abort(self.path.clone(), name);
            self.store.io.begin(&self.path, aborted).wait_at_most(ABORT_WITHIN);
        }
    }
}
