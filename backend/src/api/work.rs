//! Runs queries where they do not hinder others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, Uri};
use prost::Message;
use tokio::time::{sleep, timeout};

use super::ApiState;
use super::error::ApiError;
use super::json::ToJson;
use super::params::Params;
use super::respond::Format;
use crate::blocks::{Blocks, BlocksError};
use crate::live::TraceId;
use crate::query::{FoundTrace, View};
use crate::tenant::{TENANT_HEADER, Tenants};

/// Says what is missing in an answer whose form has no room for it.
pub(super) const PARTIAL: HeaderName = HeaderName::from_static("coati-partial");

/// A request at work.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Set when the work is to end: nobody waits for the answer any more, or its time is over.
    stop: AtomicBool,
    /// Set when its time is over.
    late: AtomicBool,
    /// Headers of the answer.
    notes: Mutex<Vec<(HeaderName, HeaderValue)>>,
}

impl Work {
    /// Set when the work is to end.
    pub(super) fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// Adds a header to the answer, if it comes over HTTP.
    pub(super) fn note(&self, name: HeaderName, value: &str) {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.notes.lock().unwrap_or_else(PoisonError::into_inner).push((name, value));
        }
    }

    fn take_notes(&self) -> Vec<(HeaderName, HeaderValue)> {
        std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Ends the work when nobody waits for the answer any more.
struct Cancel(Arc<Work>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

impl ApiState {
    /// Runs `job` on a thread of its own once it is its turn, which must come within the time that a query may take.
    /// [`Work::stop`] is set when the client has left, or when the time is over.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Self, &Work) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let limit = self.limits.max_duration;
        let permit = timeout(limit, Arc::clone(&self.permits).acquire_owned()).await.map_err(|_| ApiError::Busy)?;
        let permit = permit.map_err(|_| ApiError::Stopped)?;
        let work = Arc::new(Work::default());
        let _cancel = Cancel(Arc::clone(&work));
        let (state, of_job) = (self.clone(), Arc::clone(&work));
        let mut job = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            job(&state, &of_job)
        });
        let done = tokio::select! {
            done = &mut job => done,
            () = sleep(limit) => {
                work.late.store(true, Ordering::Relaxed);
                work.stop.store(true, Ordering::Relaxed);
                job.await
            }
        };
        done.map_err(|_| ApiError::Stopped)
    }

    /// Answers a request with the message that `job` makes of its tenant and parameters.
    pub(super) async fn answer<T: Message + ToJson>(
        &self,
        uri: Uri,
        headers: &HeaderMap,
        job: impl FnOnce(&Self, &Tenants, &Params, &Work) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let tenants = self.tenants(headers)?;
        let format = Format::of(headers);
        let answer = self.run(move |state, work| {
            let params = Params::of(&uri)?;
            let mut response = format.answer(&job(state, &tenants, &params, work)?);
            response.headers_mut().extend(work.take_notes());
            Ok(response)
        });
        answer.await?
    }

    /// Asks all traces of some tenants; again if a block was removed meanwhile. What was stopped because it took too long or
    /// read too much has no answer.
    pub(super) fn query<T, E: Into<ApiError>>(
        &self,
        tenants: &Tenants,
        work: &Work,
        mut query: impl FnMut(&View) -> Result<T, E>,
    ) -> Result<T, ApiError> {
        let blocks = self.blocks()?;
        again(|| {
            let view = match blocks {
                Some(blocks) => View::of_tenants(&self.live, blocks, tenants),
                None => View::of_live(tenants.iter().flat_map(|tenant| self.live.snapshot(tenant)).collect()),
            };
            let view = view.reading_at_most(self.limits.max_read_bytes.0);
            let answer = query(&view).map_err(E::into)?;
            if work.late.load(Ordering::Relaxed) {
                return Err(ApiError::TooSlow { limit: self.limits.max_duration });
            }
            if view.read_too_much() {
                return Err(ApiError::TooMuchRead { limit: self.limits.max_read_bytes });
            }
            Ok(answer)
        })
    }

    /// Looks for a trace of some tenants; what several have of it becomes one.
    pub(super) fn find(&self, tenants: &Tenants, id: &TraceId) -> Result<FoundTrace, ApiError> {
        let blocks = self.blocks()?.map(Arc::as_ref);
        again(|| {
            let mut whole = FoundTrace::default();
            for tenant in tenants.iter() {
                whole.add(View::find(&self.live, blocks, tenant, id)?);
            }
            Ok::<_, ApiError>(whole)
        })
    }

    fn blocks(&self) -> Result<Option<&Arc<Blocks>>, ApiError> {
        self.blocks.as_ref().map(|blocks| blocks.get().ok_or(ApiError::Starting)).transpose()
    }

    /// Whose data a request asks for.
    pub(super) fn tenants(&self, headers: &HeaderMap) -> Result<Tenants, ApiError> {
        let header = headers.get(TENANT_HEADER).map(HeaderValue::as_bytes);
        Ok(self.tenancy.tenants(header)?)
    }
}

/// Asks again, with a newer list of blocks, if a block was removed while it was read.
fn again<T, E: Into<ApiError>>(mut query: impl FnMut() -> Result<T, E>) -> Result<T, ApiError> {
    const TIMES: usize = 5;
    for _ in 1..TIMES {
        match query().map_err(E::into) {
            Err(ApiError::Blocks(BlocksError::Gone { .. })) => {}
            answer => return answer,
        }
    }
    query().map_err(E::into)
}
