//! `/metrics`, `/healthz` and `/readyz`.

use std::{
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Router,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use prometheus_client::{
    collector::Collector,
    encoding::text::{encode_eof, encode_registry},
    registry::Registry,
};
use tokio::net::TcpListener;

use super::{Telemetry, TelemetryError};
use crate::metrics::{Format, RequestMetrics, of_text, page, plain};

/// The HTTP server, listening but not yet answering.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    telemetry: Telemetry,
    collectors: Vec<Box<dyn Collector>>,
}

#[derive(Clone)]
struct Shared {
    telemetry: Telemetry,
    registry: Arc<Registry>,
}

impl Server {
    /// Binds the address; port 0 chooses a free one.
    pub async fn bind(address: SocketAddr, telemetry: Telemetry) -> Result<Self, TelemetryError> {
        let failed = |source| TelemetryError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address, telemetry, collectors: Vec::new() })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds what somebody else measures to `/metrics`.
    pub fn add(&mut self, collector: impl Collector + 'static) {
        self.collectors.push(Box::new(collector));
    }

    /// Answers until `stop` is ready.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
        let mut registry = self.telemetry.registry();
        self.collectors.into_iter().for_each(|collector| registry.register_collector(collector));
        let registry = Arc::new(registry);
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready))
            .with_state(Shared { telemetry: self.telemetry, registry });
        axum::serve(self.listener, router).with_graceful_shutdown(stop).await
    }

    /// The address to use when none is configured: the own node only, the metrics name services.
    pub const fn default_address() -> SocketAddr {
        SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9400)
    }
}

async fn metrics(State(shared): State<Shared>, headers: HeaderMap) -> impl IntoResponse {
    // There may be several, and each may be a list.
    let accept = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let requests = &shared.telemetry.requests;
    let format = Format::of(&accept.collect::<Vec<_>>().join(","), requests.has_native());
    match written(&shared.registry, requests, format) {
        Ok(page) => (StatusCode::OK, [(header::CONTENT_TYPE, format.content_type())], page),
        Err(error) => {
            let text = format!("metrics cannot be written: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text.into_bytes())
        }
    }
}

fn written(own: &Registry, requests: &RequestMetrics, format: Format) -> Result<Vec<u8>, fmt::Error> {
    let mut text = String::new();
    encode_registry(&mut text, own)?;
    match format {
        Format::OpenMetrics => {
            requests.write(format, &mut text)?;
            encode_eof(&mut text)?;
        }
        Format::Prometheus => {
            text = plain(&text);
            requests.write(format, &mut text)?;
        }
        Format::Protobuf => return Ok(page(&[of_text(&text), requests.families()].concat())),
    }
    Ok(text.into_bytes())
}

async fn ready(State(shared): State<Shared>) -> impl IntoResponse {
    match shared.telemetry.not_ready() {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
