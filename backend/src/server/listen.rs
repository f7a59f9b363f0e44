//! Listens, and serves what comes through the doors until the server stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::error;

use super::ServerError;
use crate::access::{self, Connections, Door, Peer};
use crate::receive::GrpcReceiver;
use crate::telemetry::chain;

/// Requests of one connection at once: each may hold a whole request in memory before it counts as being in work.
const STREAMS: u32 = 32;

/// Largest frame of HTTP/2: senders that heed it need one for most requests, where the usual 16 KiB make several, each with
/// work of its own.
const FRAME_BYTES: u32 = 256 << 10;

/// Time between looks whether a silent sender is still there.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// Listens on an address that this flag names.
pub(super) async fn bind(address: SocketAddr, flag: &'static str) -> Result<(TcpListener, SocketAddr), ServerError> {
    let bound = TcpListener::bind(address).await.and_then(|listener| Ok((listener.local_addr()?, listener)));
    let (address, listener) = bound.map_err(|source| ServerError::Bind { address, flag, source })?;
    Ok((listener, address))
}

/// Serves what comes to this door until the server stops.
pub(super) fn serve_http(
    door: &Arc<Door>,
    (listener, address): (TcpListener, SocketAddr),
    router: Router,
    mut stopped: watch::Receiver<bool>,
) -> impl Future<Output = ()> + use<> {
    let name = door.name();
    let connections = door.listen(listener, address);
    let router = router.layer(from_fn_with_state(Arc::clone(door), access::guard));
    let service = router.into_make_service_with_connect_info::<Peer>();
    async move {
        let stop = async move { _ = stopped.wait_for(|stop| *stop).await };
        if let Err(error) = axum::serve(connections, service).with_graceful_shutdown(stop).await {
            error!(listener = name, error = %chain(&error), "listener broke off");
        }
    }
}

/// The same for OTLP over gRPC.
pub(super) fn serve_grpc(
    door: &Arc<Door>,
    (listener, address): (TcpListener, SocketAddr),
    receiver: GrpcReceiver,
    mut stopped: watch::Receiver<bool>,
) -> impl Future<Output = ()> + use<> {
    let name = door.name();
    let connections: Connections = door.listen(listener, address);
    let receiver = receiver.behind(Arc::clone(door));
    async move {
        let stop = async move { _ = stopped.wait_for(|stop| *stop).await };
        let server = tonic::transport::Server::builder()
            .http2_adaptive_window(Some(true))
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(STREAMS)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_service(receiver)
            .serve_with_incoming_shutdown(connections, stop);
        if let Err(error) = server.await {
            error!(listener = name, error = %chain(&error), "listener broke off");
        }
    }
}
