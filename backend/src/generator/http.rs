//! `/metrics/generated`: what was counted, for a server that fetches it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};

use super::collected::{Collected, TenantSnapshot, Turn};
use super::expose::expose;
use crate::telemetry::CONTENT_TYPE as OPEN_METRICS;
use crate::tenant::{TENANT_HEADER, Tenancy};

/// The newest samples of each tenant.
#[derive(Clone, Debug, Default)]
pub struct Latest(Arc<Mutex<BTreeMap<Arc<str>, Arc<TenantSnapshot>>>>);

impl Latest {
    /// Of tenants whose time it is not yet those of before stay.
    pub(super) fn set(&self, collected: &Collected) {
        let mut latest = self.lock();
        for snapshot in &collected.tenants {
            match snapshot.turn {
                Turn::Now => _ = latest.insert(Arc::clone(&snapshot.tenant), Arc::clone(snapshot)),
                Turn::Later => {}
                Turn::Never => _ = latest.remove(&snapshot.tenant),
            }
        }
    }

    pub(super) fn get(&self, tenant: &str) -> Option<Arc<TenantSnapshot>> {
        self.lock().get(tenant).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<TenantSnapshot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Debug)]
struct Shown {
    latest: Latest,
    tenancy: Tenancy,
}

/// The route.
pub fn router(latest: Latest, tenancy: Tenancy) -> Router {
    Router::new().route("/metrics/generated", get(generated)).with_state(Shown { latest, tenancy })
}

async fn generated(State(shown): State<Shown>, headers: HeaderMap) -> Response {
    let Shown { latest, tenancy } = shown;
    let tenant = match tenancy.tenant(headers.get(TENANT_HEADER).map(http::HeaderValue::as_bytes)) {
        Ok(tenant) => tenant,
        Err(error) => return (StatusCode::UNAUTHORIZED, error.to_string()).into_response(),
    };
    let found = latest.get(&tenant);
    // Megabytes of text hold nobody up.
    let text = tokio::task::spawn_blocking(move || expose(found.as_deref()));
    match text.await {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
