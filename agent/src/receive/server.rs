//! The listeners, and what keeps senders from taking more than their share.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Request, State, connect_info::Connected},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::post,
    serve::IncomingStream,
};
use http::StatusCode;
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tonic::{Code, Status};

use super::{
    Gpus, ReceiveError, ReceiveSettings, Refusal, Senders, TRACES_ONLY, grpc,
    http::{self as otlp_http, Http},
    relay::Relay,
    sender::Connection,
};
use crate::{export::RelayQueue, telemetry::Telemetry};

/// Requests that are read and taken apart at once: each may be large.
const AT_ONCE: usize = 8;
/// How long a request may take to come, and to be dealt with.
const WITHIN: Duration = Duration::from_secs(10);

const TRACE_SERVICE: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const METRICS_SERVICE: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
const LOGS_SERVICE: &str = "/opentelemetry.proto.collector.logs.v1.LogsService/Export";

/// Listening, but not yet answering.
#[derive(Debug)]
pub struct Receiver {
    listeners: Vec<TcpListener>,
    max_request_bytes: usize,
}

impl Receiver {
    /// Binds the addresses; port 0 chooses a free one.
    pub async fn bind(settings: &ReceiveSettings) -> Result<Self, ReceiveError> {
        let mut listeners = Vec::new();
        for address in settings.listen.iter().copied() {
            let listener = TcpListener::bind(address).await;
            listeners.push(listener.map_err(|source| ReceiveError { address, source })?);
        }
        Ok(Self { listeners, max_request_bytes: settings.max_request_bytes })
    }

    /// Where it listens.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Answers, on the runtime that this is called on, for as long as that runs. `queue` says when there is no more to be
    /// taken.
    pub fn start(self, queue: RelayQueue, senders: Senders, gpus: Option<Gpus>, telemetry: Telemetry) {
        let relay = Relay { queue, senders, gpus, telemetry };
        let router = router(relay, self.max_request_bytes);
        for listener in self.listeners {
            let service = router.clone().into_make_service_with_connect_info::<Connection>();
            tokio::spawn(async move {
                if let Err(error) = axum::serve(listener, service).await {
                    tracing::error!(%error, "OTLP is not received any more");
                }
            });
        }
    }
}

impl Connected<IncomingStream<'_, TcpListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        let remote = *stream.remote_addr();
        Self::new(stream.io().local_addr().unwrap_or(remote), remote)
    }
}

/// Both transports on one port: who sends says which by what it sends.
fn router(relay: Relay, max_request_bytes: usize) -> Router {
    let bounds = Bounds { turns: Arc::new(Semaphore::new(AT_ONCE)), relay: relay.clone(), max_request_bytes };
    let http = Http { relay: relay.clone(), max_request_bytes };
    Router::new()
        .route("/v1/traces", post(otlp_http::traces))
        .with_state(http)
        .route_service(TRACE_SERVICE, grpc::service(relay, max_request_bytes))
        .layer(middleware::from_fn_with_state(bounds, bounded))
        // Outside of the bounds: nothing of these is read.
        .route(METRICS_SERVICE, post(other_service))
        .route(LOGS_SERVICE, post(other_service))
        .fallback(otlp_http::others)
}

async fn other_service() -> Response {
    Status::unimplemented(TRACES_ONLY).into_http::<axum::body::Body>().into_response()
}

#[derive(Clone)]
struct Bounds {
    turns: Arc<Semaphore>,
    relay: Relay,
    max_request_bytes: usize,
}

/// Lets so many requests in at once, and each for so long.
async fn bounded(
    State(bounds): State<Bounds>,
    ConnectInfo(connection): ConnectInfo<Connection>,
    mut request: Request,
    next: Next,
) -> Response {
    request.extensions_mut().insert(connection);
    let is_grpc = request.uri().path() == TRACE_SERVICE;
    let answer = async {
        // Closed by nobody.
        let _turn = bounds.turns.acquire().await.ok();
        next.run(request).await
    };
    let Ok(answer) = timeout(WITHIN, answer).await else {
        bounds.relay.refused(&Refusal::TooSlow);
        let status = grpc::status(&Refusal::TooSlow);
        return if is_grpc {
            status.into_http::<axum::body::Body>().into_response()
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, status.message().to_owned()).into_response()
        };
    };
    // tonic says so of a message that is too large; senders would try it again for ever. Nothing else here does.
    if Status::from_header_map(answer.headers()).is_some_and(|status| status.code() == Code::OutOfRange) {
        let refusal = Refusal::TooLarge { limit: bounds.max_request_bytes };
        bounds.relay.refused(&refusal);
        return grpc::status(&refusal).into_http::<axum::body::Body>().into_response();
    }
    answer
}
