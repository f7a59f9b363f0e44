//! `/metrics/generated`: what was counted, for a server that fetches it.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

use super::collected::Collected;
use super::expose::expose;
use crate::telemetry::CONTENT_TYPE as OPEN_METRICS;
use crate::tenant::{TENANT_HEADER, Tenancy};

/// The newest collection.
#[derive(Clone, Debug, Default)]
pub struct Latest(Arc<Mutex<Option<Arc<Collected>>>>);

impl Latest {
    pub(super) fn set(&self, collected: Arc<Collected>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(collected);
    }

    fn get(&self) -> Option<Arc<Collected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[derive(Clone, Debug)]
struct Shown {
    latest: Latest,
    tenancy: Tenancy,
    trace_id_label: Arc<str>,
}

/// The route.
pub fn router(latest: Latest, tenancy: Tenancy, trace_id_label: &str) -> Router {
    let shown = Shown { latest, tenancy, trace_id_label: trace_id_label.into() };
    Router::new().route("/metrics/generated", get(generated)).with_state(shown)
}

async fn generated(State(shown): State<Shown>, headers: HeaderMap) -> Response {
    let Shown { latest, tenancy, trace_id_label } = shown;
    let tenant = match tenancy.tenant(headers.get(TENANT_HEADER).map(http::HeaderValue::as_bytes)) {
        Ok(tenant) => tenant,
        Err(error) => return (StatusCode::UNAUTHORIZED, error.to_string()).into_response(),
    };
    let latest = latest.get();
    // Megabytes of text hold nobody up.
    let text = tokio::task::spawn_blocking(move || {
        let found = latest.as_ref().and_then(|latest| latest.tenants.iter().find(|found| found.tenant == tenant));
        expose(found, &trace_id_label)
    });
    match text.await {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
