//! Connections as they come. Handshakes run beside each other, so that one that is slow holds up nobody.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::Stream;
use tracing::{debug, error};

use super::connection::Connection;
use super::{Door, tls};
use crate::telemetry::chain;

/// Time until it is looked whether a silent client is still there.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes at once; others wait.
const HANDSHAKES: usize = 1_024;

/// Connections that wait for the server to take them.
const WAITING: usize = 64;

/// Wait after an error that is not of one connection: no file descriptor is left.
const PAUSE: Duration = Duration::from_secs(1);

/// First byte of a TLS handshake record (RFC 8446, section 5.1).
const HANDSHAKE_RECORD: u8 = 22;

/// Connections of one listener, for axum and for tonic. When dropped, no more are taken.
#[derive(Debug)]
pub struct Connections {
    address: SocketAddr,
    incoming: mpsc::Receiver<Connection>,
    _accepting: JoinSet<()>,
}

impl Connections {
    pub(super) fn accept(listener: TcpListener, address: SocketAddr, door: Arc<Door>) -> Self {
        let (sender, incoming) = mpsc::channel(WAITING);
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, door, sender));
        Self { address, incoming, _accepting: accepting }
    }
}

impl Listener for Connections {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.incoming.recv().await {
            Some(connection) => {
                let address = connection.peer().address;
                (connection, address)
            }
            // Nobody takes connections any more.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl Stream for Connections {
    type Item = io::Result<Connection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.incoming.poll_recv(cx).map(|connection| connection.map(Ok))
    }
}

async fn accept(listener: TcpListener, door: Arc<Door>, sender: mpsc::Sender<Connection>) {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) if matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) => continue,
            Err(error) => {
                error!(listener = door.name(), error = %chain(&error), "no connection can be taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        prepare(&stream);
        if door.tls.is_none() {
            if sender.send(Connection::plain(stream, address)).await.is_err() {
                return;
            }
            continue;
        }
        let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await else { return };
        let (door, sender) = (Arc::clone(&door), sender.clone());
        tokio::spawn(async move {
            match timeout(HANDSHAKE, handshake(&door, stream, address)).await {
                Ok(None) => {}
                // Fails if the server has ended.
                Ok(Some(connection)) => drop(sender.send(connection).await),
                Err(_) => door.refused("handshake", Some(address), "the TLS handshake takes too long"),
            }
            drop(permit);
        });
    }
}

fn prepare(stream: &TcpStream) {
    // With Nagle's algorithm an answer of two small writes waits for the client's delayed acknowledgement: 40 ms.
    let prepared = stream.set_nodelay(true).and_then(|()| {
        set_socket_keepalive(stream, true)?;
        Ok(set_tcp_keepidle(stream, KEEPALIVE)?)
    });
    if let Err(error) = prepared {
        debug!(error = %chain(&error), "a connection keeps the system's settings");
    }
}

/// Speaks TLS from here on; nothing if that fails, of which the log is told.
async fn handshake(door: &Door, mut stream: TcpStream, address: SocketAddr) -> Option<Connection> {
    let config = door.tls.as_ref()?.get();
    let mut first = [0];
    match stream.peek(&mut first).await {
        // A probe that only looks whether the port is open.
        Ok(0) | Err(_) => return None,
        Ok(_) if first != [HANDSHAKE_RECORD] => {
            door.refused("plaintext", Some(address), "the client speaks without TLS, this listener with TLS only");
            // It is closed already, perhaps.
            let _closed = tell_plaintext(&mut stream).await;
            return None;
        }
        Ok(_) => {}
    }
    match TlsAcceptor::from(config).accept(stream).await {
        Ok(stream) => Some(Connection::tls(stream, address)),
        Err(error) => {
            let why = format!("TLS handshake: {}", tls::why_it_failed(&error));
            door.refused("handshake", Some(address), &why);
            None
        }
    }
}

/// Answers who speaks HTTP/1 in words that it understands.
async fn tell_plaintext(stream: &mut TcpStream) -> io::Result<()> {
    const TEXT: &str = "this port speaks TLS: use https";
    let mut request = [0; 4_096];
    let len = stream.read(&mut request).await?;
    let is_http1 = request.get(..len).is_some_and(|head| head.first().is_some_and(u8::is_ascii_uppercase))
        && !request.starts_with(b"PRI ");
    if is_http1 {
        let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n";
        stream.write_all(format!("{head}Content-Length: {}\r\n\r\n{TEXT}", TEXT.len()).as_bytes()).await?;
    }
    stream.shutdown().await
}
