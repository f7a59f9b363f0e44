//! What is done on the thread of the bucket.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::iter;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode,
    PutOptions,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;

use super::error::{of, of_write, unavailable};
use super::io::{attempts, attempts_to_create};
use super::ranges::Plan;
use super::{Limits, PIECE_BYTES};
use crate::store::path::check;
use crate::store::{Object, StoreError};

/// Requests that one reading of ranges has open at once.
const PARALLEL: usize = 8;

/// Objects that are listed by one request; what S3 gives at most.
const PAGE: usize = 1_000;

/// User metadata that tells which call created an object.
const MARK: Attribute = Attribute::Metadata(Cow::Borrowed("creation"));

/// A bucket, or the part of it below a prefix.
pub(super) struct Bucket {
    pub(super) client: AmazonS3,
    pub(super) limits: Limits,
    /// Empty, or ends with `/`.
    pub(super) prefix: String,
    /// For people.
    pub(super) place: String,
}

impl Bucket {
    pub(super) fn key(&self, path: &str) -> Result<Path, StoreError> {
        let key = Path::parse(format!("{}{path}", self.prefix));
        key.map_err(|_| StoreError::InvalidPath { path: path.to_owned(), reason: "S3 allows no such key" })
    }

    /// Whether it can be reached and listed.
    pub(super) async fn probe(self: Arc<Self>) -> Result<(), StoreError> {
        attempts(self.limits, "", || self.page("", None)).await.map(drop)
    }

    pub(super) async fn get(self: Arc<Self>, path: String) -> Result<Bytes, StoreError> {
        let key = self.key(&path)?;
        let whole = attempts(self.limits, &path, || async {
            let found = self.client.get(&key).await.map_err(|error| of(&path, &error))?;
            if found.meta.size > PIECE_BYTES { Ok(Err(found.meta.size)) } else { self.body(&path, found).await.map(Ok) }
        });
        match whole.await? {
            Ok(content) => Ok(content),
            Err(size) => {
                let parts = self.get_ranges(path, iter::once(0..size).collect()).await?;
                Ok(parts.into_iter().next().unwrap_or_default())
            }
        }
    }

    /// The content that an answer announced, all of it.
    async fn body(&self, path: &str, found: GetResult) -> Result<Bytes, StoreError> {
        let announced = found.range.end - found.range.start;
        let content = found.bytes().await.map_err(|error| of(path, &error))?;
        if content.len() as u64 == announced { Ok(content) } else { Err(unavailable(path, "the answer was cut off")) }
    }

    pub(super) async fn get_ranges(
        self: Arc<Self>,
        path: String,
        ranges: Vec<Range<u64>>,
    ) -> Result<Vec<Bytes>, StoreError> {
        let beyond = |size: u64| {
            let range = ranges.iter().find(|range| range.start > range.end || range.end > size)?;
            Some(StoreError::OutOfRange { path: path.clone(), range: range.clone(), size })
        };
        // Nobody's mistake makes us ask for pieces without end.
        if ranges.iter().any(|range| range.start > range.end || range.end - range.start > PIECE_BYTES)
            && let Some(error) = beyond(Arc::clone(&self).size(path.clone()).await?)
        {
            return Err(error);
        }
        let plan = Plan::new(&ranges, PIECE_BYTES);
        let slots = Arc::new(Semaphore::new(PARALLEL));
        let mut requests = JoinSet::new();
        for (number, piece) in plan.pieces().iter().cloned().enumerate() {
            let (bucket, path, slots) = (Arc::clone(&self), path.clone(), Arc::clone(&slots));
            requests.spawn(async move {
                let _slot = slots.acquire_owned().await;
                Ok::<_, StoreError>((number, bucket.get_piece(&path, piece).await?))
            });
        }
        let mut contents = vec![Bytes::new(); plan.pieces().len()];
        while let Some(outcome) = requests.join_next().await {
            let outcome = outcome.map_err(|error| unavailable(&path, error)).flatten();
            let (number, content) = outcome.map_err(|error| match error {
                StoreError::OutOfRange { size, .. } => beyond(size).unwrap_or(error),
                error => error,
            })?;
            if let Some(slot) = contents.get_mut(number) {
                *slot = content;
            }
        }
        Ok(ranges.iter().map(|range| plan.cut(range, &contents)).collect())
    }

    async fn get_piece(&self, path: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let key = self.key(path)?;
        let piece = attempts(self.limits, path, || async {
            let options = GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
            let beyond = |size| StoreError::OutOfRange { path: path.to_owned(), range: range.clone(), size };
            let error = match self.client.get_opts(&key, options).await {
                Ok(found) if range.end > found.meta.size => return Err(beyond(found.meta.size)),
                Ok(found) => return self.body(path, found).await,
                Err(error) => of(path, &error),
            };
            // Stores tell in many ways that nothing of a range is there.
            match self.client.head(&key).await {
                Ok(found) if range.end > found.size => Err(beyond(found.size)),
                _ => Err(error),
            }
        });
        piece.await
    }

    pub(super) async fn size(self: Arc<Self>, path: String) -> Result<u64, StoreError> {
        let key = self.key(&path)?;
        let found =
            attempts(self.limits, &path, || async { self.client.head(&key).await.map_err(|error| of(&path, &error)) });
        Ok(found.await?.size)
    }

    pub(super) async fn list(self: Arc<Self>, prefix: String) -> Result<Vec<Object>, StoreError> {
        let mut objects = Vec::new();
        let mut last: Option<Path> = None;
        loop {
            let page = attempts(self.limits, &prefix, || self.page(&prefix, last.as_ref())).await?;
            let (more, end) = (page.len() >= PAGE, page.last().map(|found| found.location.clone()));
            objects.extend(page.iter().filter_map(|found| self.object(&prefix, found)));
            match end {
                Some(end) if more => last = Some(end),
                _ => break,
            }
        }
        objects.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(objects)
    }

    /// What one request lists, behind `last`.
    async fn page(&self, prefix: &str, last: Option<&Path>) -> Result<Vec<ObjectMeta>, StoreError> {
        let folder = format!("{}{prefix}", self.prefix);
        let folder = if folder.is_empty() { None } else { Some(self.key(prefix.trim_end_matches('/'))?) };
        let found = match last {
            None => self.client.list(folder.as_ref()),
            Some(last) => self.client.list_with_offset(folder.as_ref(), last),
        };
        let page: Result<Vec<_>, _> = found.take(PAGE).collect().await;
        page.map_err(|error| of_write(prefix, &error))
    }

    /// `None` for what is no object of ours, such as the markers with which some programs make folders.
    fn object(&self, prefix: &str, found: &ObjectMeta) -> Option<Object> {
        let path = found.location.as_ref().strip_prefix(&self.prefix)?.to_owned();
        if !path.starts_with(prefix) || check(&path).is_err() {
            return None;
        }
        let modified_ns = u64::try_from(found.last_modified.timestamp_nanos_opt()?).ok()?;
        Some(Object { path, bytes: found.size, modified_ns })
    }

    pub(super) async fn create(self: Arc<Self>, path: String, content: Bytes) -> Result<(), StoreError> {
        let key = self.key(&path)?;
        let mark = format!("{:016x}{:016x}", random(), random());
        let attributes = Attributes::from_iter([(MARK, mark.clone())]);
        let created = attempts_to_create(self.limits, &path, || async {
            let attributes = attributes.clone();
            let options = PutOptions { mode: PutMode::Create, attributes, ..PutOptions::default() };
            match self.client.put_opts(&key, content.clone().into(), options).await {
                Ok(_) => Ok(()),
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                    self.is_ours(&path, &key, &mark).await
                }
                Err(error) => Err(of_write(&path, &error)),
            }
        });
        created.await
    }

    /// Something is in the way, or somebody was at the same moment; it may be what an earlier try of ours did, without our
    /// hearing of it.
    async fn is_ours(&self, path: &str, key: &Path, mark: &str) -> Result<(), StoreError> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.client.get_opts(key, options).await.map_err(|error| of(path, &error)) {
            Ok(found) if found.attributes.get(&MARK).is_some_and(|found| found.as_ref() == mark) => Ok(()),
            Ok(_) => Err(StoreError::AlreadyExists { path: path.to_owned() }),
            Err(StoreError::NotFound { .. }) => Err(unavailable(path, "another call was in the way, try again")),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn delete(self: Arc<Self>, path: String) -> Result<(), StoreError> {
        let key = self.key(&path)?;
        let deleted = attempts(self.limits, &path, || async {
            match self.client.delete(&key).await.map_err(|error| of(&path, &error)) {
                Err(StoreError::NotFound { .. }) => Ok(()),
                outcome => outcome,
            }
        });
        deleted.await
    }

    /// Begins an upload in parts; gives its name.
    pub(super) async fn begin(self: Arc<Self>, path: String) -> Result<Arc<str>, StoreError> {
        let key = self.key(&path)?;
        let begun = attempts(self.limits, &path, || async {
            self.client.create_multipart(&key).await.map_err(|error| of_write(&path, &error))
        });
        begun.await.map(Arc::from)
    }

    /// Uploads the part with this number, from 0.
    pub(super) async fn put_part(
        self: Arc<Self>,
        path: String,
        upload: Arc<str>,
        number: usize,
        content: Bytes,
    ) -> Result<PartId, StoreError> {
        let (key, upload) = (self.key(&path)?, upload.to_string());
        let put = attempts(self.limits, &path, || async {
            let part = self.client.put_part(&key, &upload, number, content.clone().into());
            part.await.map_err(|error| of_write(&path, &error))
        });
        put.await
    }

    /// Makes an object of `size` bytes of the parts.
    pub(super) async fn complete(
        self: Arc<Self>,
        path: String,
        upload: Arc<str>,
        parts: Vec<PartId>,
        size: u64,
    ) -> Result<(), StoreError> {
        let (key, upload) = (self.key(&path)?, upload.to_string());
        let completed = attempts(self.limits, &path, || async {
            let Err(error) = self.client.complete_multipart(&key, &upload, parts.clone()).await else { return Ok(()) };
            // The answer to an earlier try may have got lost; then the upload is no more, and the object is there.
            match self.client.head(&key).await {
                Ok(found) if found.size == size => Ok(()),
                _ => Err(of_write(&path, &error)),
            }
        });
        completed.await
    }

    /// Gives the parts back.
    pub(super) async fn abort(self: Arc<Self>, path: String, upload: Arc<str>) -> Result<(), StoreError> {
        let (key, upload) = (self.key(&path)?, upload.to_string());
        let aborted = attempts(self.limits, &path, || async {
            match self.client.abort_multipart(&key, &upload).await.map_err(|error| of(&path, &error)) {
                Err(StoreError::NotFound { .. }) => Ok(()),
                outcome => outcome,
            }
        });
        aborted.await
    }
}

/// A number that nobody else gets.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(())
}
