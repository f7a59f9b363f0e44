//! Counts what is asked of a store.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;

use super::{Object, Store, StoreError, Upload};
use crate::telemetry::StoreMetrics;

/// A store whose requests are counted, by what was asked and how it ended.
#[derive(Debug)]
pub struct MeteredStore {
    store: Arc<dyn Store>,
    metrics: StoreMetrics,
}

impl MeteredStore {
    /// Counts the requests to `store`.
    pub fn new(store: Arc<dyn Store>, metrics: StoreMetrics) -> Self {
        Self { store, metrics }
    }

    fn count<T>(
        &self,
        operation: &'static str,
        request: impl FnOnce(&dyn Store) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let begun = Instant::now();
        let answer = request(self.store.as_ref());
        self.metrics.count(operation, outcome(answer.as_ref().err()), begun.elapsed());
        answer
    }
}

fn outcome(error: Option<&StoreError>) -> &'static str {
    match error {
        None => "ok",
        Some(StoreError::NotFound { .. }) => "not_found",
        Some(StoreError::AlreadyExists { .. }) => "already_exists",
        Some(StoreError::Full { .. }) => "full",
        Some(StoreError::InvalidPath { .. } | StoreError::OutOfRange { .. }) => "invalid",
        Some(StoreError::Denied { .. }) => "denied",
        Some(StoreError::Unavailable { .. }) => "unavailable",
    }
}

impl fmt::Display for MeteredStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store.fmt(f)
    }
}

impl Store for MeteredStore {
    fn get(&self, path: &str) -> Result<Bytes, StoreError> {
        self.count("get", |store| store.get(path))
    }

    fn get_ranges(&self, path: &str, ranges: &[Range<u64>]) -> Result<Vec<Bytes>, StoreError> {
        self.count("get_ranges", |store| store.get_ranges(path, ranges))
    }

    fn size(&self, path: &str) -> Result<u64, StoreError> {
        self.count("size", |store| store.size(path))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Object>, StoreError> {
        self.count("list", |store| store.list(prefix))
    }

    fn create(&self, path: &str, content: Bytes) -> Result<(), StoreError> {
        self.count("create", |store| store.create(path, content))
    }

    fn upload(&self, path: &str) -> Result<Box<dyn Upload>, StoreError> {
        let begun = Instant::now();
        let upload = self.store.upload(path).inspect_err(|error| {
            self.metrics.count("upload", outcome(Some(error)), begun.elapsed());
        })?;
        Ok(Box::new(MeteredUpload { upload: Some(upload), metrics: self.metrics.clone(), begun }))
    }

    fn delete(&self, path: &str) -> Result<(), StoreError> {
        self.count("delete", |store| store.delete(path))
    }
}

/// Counts once, at the end: from the begin to the end of the upload.
struct MeteredUpload {
    /// None once it is finished.
    upload: Option<Box<dyn Upload>>,
    metrics: StoreMetrics,
    begun: Instant,
}

impl io::Write for MeteredUpload {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.upload.as_mut().map_or(Err(io::ErrorKind::BrokenPipe.into()), |upload| upload.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.upload.as_mut().map_or(Ok(()), io::Write::flush)
    }
}

impl Upload for MeteredUpload {
    fn finish(mut self: Box<Self>) -> Result<u64, StoreError> {
        let closed =
            || StoreError::Unavailable { path: String::new(), source: "the upload is finished already".into() };
        let finished = self.upload.take().ok_or_else(closed)?.finish();
        self.metrics.count("upload", outcome(finished.as_ref().err()), self.begun.elapsed());
        finished
    }
}

impl Drop for MeteredUpload {
    fn drop(&mut self) {
        if self.upload.is_some() {
            self.metrics.count("upload", "given_up", self.begun.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::store::MemoryStore;
    use crate::store::memory::{Fault, Operation};
    use crate::telemetry::Metrics;

    #[test]
    fn every_request_is_counted_by_its_outcome() {
        let (memory, metrics) = (MemoryStore::new(), Metrics::new());
        let store = MeteredStore::new(Arc::new(memory.clone()), metrics.store.clone());
        store.create("a", "content".into()).unwrap();
        store.create("a", "again".into()).unwrap_err();
        store.get("a").unwrap();
        store.get("b").unwrap_err();
        store.get_ranges("a", std::slice::from_ref(&(0..3))).unwrap();
        store.get_ranges("a", std::slice::from_ref(&(0..99))).unwrap_err();
        store.size("a").unwrap();
        store.list("").unwrap();
        let mut upload = store.upload("c").unwrap();
        upload.write_all(b"piece").unwrap();
        assert_eq!(upload.finish().unwrap(), 5);
        drop(store.upload("d").unwrap());
        store.delete("a").unwrap();
        memory.set_faults(|operation, path| (operation == Operation::Delete).then(|| Fault::unavailable(path)));
        store.delete("c").unwrap_err();
        assert_eq!(store.to_string(), memory.to_string());
        let text = metrics.encode().unwrap();
        for (operation, outcome) in [
            ("create", "ok"),
            ("create", "already_exists"),
            ("get", "ok"),
            ("get", "not_found"),
            ("get_ranges", "ok"),
            ("get_ranges", "invalid"),
            ("size", "ok"),
            ("list", "ok"),
            ("upload", "ok"),
            ("upload", "given_up"),
            ("delete", "ok"),
            ("delete", "unavailable"),
        ] {
            let labels = format!("{{operation=\"{operation}\",outcome=\"{outcome}\"}} 1");
            assert!(text.contains(&format!("coati_backend_store_requests_total{labels}")), "{labels} is not in {text}");
        }
        assert!(text.contains("coati_backend_store_request_duration_seconds_count{operation=\"delete\"} 2"), "{text}");
        for (operation, status, times) in
            [("GET", 200, 3), ("GET", 404, 1), ("PUT", 200, 2), ("PUT", 412, 1), ("DELETE", 503, 1)]
        {
            let labels = format!("{{operation=\"{operation}\",status_code=\"{status}\"}} {times}");
            assert!(
                text.contains(&format!("tempodb_backend_request_duration_seconds_count{labels}")),
                "{labels} is not in {text}"
            );
        }
    }
}
