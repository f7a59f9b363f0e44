//! Runs queries where they do not hinder others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::response::Response;
use http::{HeaderMap, Uri};
use prost::Message;

use super::ApiState;
use super::error::ApiError;
use super::json::ToJson;
use super::params::Params;
use super::respond::Format;
use crate::blocks::{Blocks, BlocksError};
use crate::live::TraceId;
use crate::query::{FoundTrace, View};
use crate::tenant::TENANT_HEADER;

/// Set when nobody waits for the answer any more.
struct Cancel(Arc<AtomicBool>);

impl Drop for Cancel {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl ApiState {
    /// Runs `job` on a thread of its own once it is its turn. The flag that it gets is set when the client has left.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Self, &AtomicBool) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(|_| ApiError::Stopped)?;
        let cancel = Cancel(Arc::default());
        let cancelled = Arc::clone(&cancel.0);
        let state = self.clone();
        let job = move || {
            let _permit = permit;
            job(&state, &cancelled)
        };
        tokio::task::spawn_blocking(job).await.map_err(|_| ApiError::Stopped)
    }

    /// Answers a request with the message that `job` makes of its tenant and parameters.
    pub(super) async fn answer<T: Message + ToJson>(
        &self,
        uri: Uri,
        headers: &HeaderMap,
        job: impl FnOnce(&Self, &str, &Params, &AtomicBool) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<Response, ApiError> {
        let tenant = self.tenant(headers)?;
        let format = Format::of(headers);
        let answer = self.run(move |state, cancelled| {
            let params = Params::of(&uri)?;
            Ok(format.answer(&job(state, &tenant, &params, cancelled)?))
        });
        answer.await?
    }

    /// Asks all traces of a tenant; again if a block was removed meanwhile.
    pub(super) fn query<T, E: Into<ApiError>>(
        &self,
        tenant: &str,
        mut query: impl FnMut(&View) -> Result<T, E>,
    ) -> Result<T, ApiError> {
        let blocks = self.blocks()?;
        again(|| {
            query(&match blocks {
                Some(blocks) => View::new(&self.live, blocks, tenant),
                None => View::of_live(self.live.snapshot(tenant)),
            })
        })
    }

    /// Looks for a trace of a tenant.
    pub(super) fn find(&self, tenant: &str, id: &TraceId) -> Result<FoundTrace, ApiError> {
        let blocks = self.blocks()?.map(Arc::as_ref);
        again(|| View::find(&self.live, blocks, tenant, id))
    }

    fn blocks(&self) -> Result<Option<&Arc<Blocks>>, ApiError> {
        self.blocks.as_ref().map(|blocks| blocks.get().ok_or(ApiError::Starting)).transpose()
    }

    /// Whose data a request asks for.
    pub(super) fn tenant(&self, headers: &HeaderMap) -> Result<Arc<str>, ApiError> {
        let header = headers.get(TENANT_HEADER).map(http::HeaderValue::as_bytes);
        Ok(self.tenancy.tenant(header)?)
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
