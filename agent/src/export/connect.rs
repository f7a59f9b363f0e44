//! Connections to an endpoint: TCP, through a proxy if the environment names one, and TLS on it.

use std::{
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Uri};
use hyper_util::{
    client::{
        legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
        proxy::matcher::Matcher,
    },
    rt::TokioIo,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tower::Service;

use super::{
    EndpointSettings, ExportError, Protocol, is_this_node,
    tls::{Tls, TlsError},
};

/// The proxies of the environment, in the words of curl. Debug shows no passwords.
#[derive(Clone, Default)]
pub struct Proxies(Option<Arc<Matcher>>);

impl fmt::Debug for Proxies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(if self.0.is_some() { "Proxies(…)" } else { "Proxies(none)" })
    }
}

impl Proxies {
    /// Of `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY`, in either case.
    pub fn of(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let names = ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"];
        let read = |name: &str| variable(name).or_else(|| variable(&name.to_ascii_lowercase())).unwrap_or_default();
        if names.iter().all(|name| read(name).is_empty()) {
            return Self::default();
        }
        let matcher = Matcher::builder()
            .all(read("ALL_PROXY"))
            .https(read("HTTPS_PROXY"))
            .http(read("HTTP_PROXY"))
            .no(read("NO_PROXY"))
            .build();
        Self(Some(Arc::new(matcher)))
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    /// The endpoint or the proxy cannot be reached.
    #[error("cannot connect to {to}")]
    Unreachable {
        to: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The proxy does not connect us.
    #[error("the proxy {proxy} does not connect to {to}")]
    Proxy {
        proxy: String,
        to: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Files of the configuration are not what they were.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No agreement about TLS.
    #[error("no TLS with {with}")]
    Handshake {
        with: String,
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("no connection within {0:?}")]
    TooLong(Duration),
}

/// Connects to one endpoint, whatever it is asked for.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Scheme `http` and the endpoint's host and port, for the library that makes TCP connections.
    target: Uri,
    tcp: HttpConnector,
    proxy: Option<Proxy>,
    tls: Option<Tls>,
    timeout: Duration,
}

#[derive(Debug)]
struct Proxy {
    uri: Uri,
    authorization: Option<HeaderValue>,
    /// The proxy is told to make a connection; else it is sent the requests, as proxies want plain HTTP.
    tunnels: bool,
}

impl Connector {
    /// Fails if what is configured allows no connection.
    pub(super) fn new(settings: &EndpointSettings) -> Result<Self, ExportError> {
        let EndpointSettings { endpoint, protocol, timeout, tls, proxies, .. } = settings;
        let bad = |reason: String| ExportError::Endpoint { endpoint: endpoint.clone(), reason };
        let uri: Uri = endpoint.parse().map_err(|error: http::uri::InvalidUri| bad(error.to_string()))?;
        let host = uri.host().unwrap_or_default();
        let (is_tls, default_port) = match uri.scheme_str() {
            Some("http") if !host.is_empty() => (false, 80),
            Some("https") if !host.is_empty() => (true, 443),
            _ => return Err(bad("it must begin with `http://` or `https://` and name a host".to_owned())),
        };
        let target = Uri::builder()
            .scheme("http")
            .authority(format!("{host}:{}", uri.port_u16().unwrap_or(default_port)))
            .path_and_query("/")
            .build()
            .map_err(|error| bad(error.to_string()))?;
        let alpn = if *protocol == Protocol::Grpc { "h2" } else { "http/1.1" };
        let tls = match tls {
            tls if is_tls => {
                let tls = tls.clone().unwrap_or_default();
                Some(
                    Tls::new(&tls, host, alpn)
                        .map_err(|source| ExportError::Tls { endpoint: endpoint.clone(), source })?,
                )
            }
            None => None,
            Some(_) => return Err(bad("it has settings for TLS and must begin with `https://`".to_owned())),
        };
        // Who is on this node is not behind a proxy, whatever the environment of the node says.
        let proxy = proxies.0.as_ref().filter(|_| !is_this_node(host)).and_then(|proxies| proxies.intercept(&uri));
        let proxy = proxy.map(|proxy| Proxy {
            uri: proxy.uri().clone(),
            authorization: proxy.basic_auth().cloned(),
            tunnels: is_tls || *protocol == Protocol::Grpc,
        });
        if let Some(proxy) = proxy.as_ref().filter(|proxy| proxy.uri.scheme_str() != Some("http")) {
            let scheme = proxy.uri.scheme_str().unwrap_or_default();
            return Err(bad(format!("its proxy has the scheme `{scheme}`; only proxies that speak `http` are known")));
        }
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(*timeout));
        Ok(Self { shared: Arc::new(Shared { target, tcp, proxy, tls, timeout: *timeout }) })
    }

    /// What each request needs if a proxy forwards it.
    pub(super) fn proxy_authorization(&self) -> Option<HeaderValue> {
        self.shared.proxy.as_ref().filter(|proxy| !proxy.tunnels).and_then(|proxy| proxy.authorization.clone())
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, ConnectError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let timeout = shared.timeout;
            tokio::time::timeout(timeout, shared.connect()).await.map_err(|_| ConnectError::TooLong(timeout))?
        })
    }
}

impl Shared {
    async fn connect(&self) -> Result<TokioIo<Stream>, ConnectError> {
        let to = self.target.authority().map(ToString::to_string).unwrap_or_default();
        let tcp = self.tcp(&to).await?.into_inner();
        let is_forwarded = self.proxy.as_ref().is_some_and(|proxy| !proxy.tunnels);
        let Some(tls) = &self.tls else {
            return Ok(TokioIo::new(Stream { inner: Box::new(tcp), is_forwarded }));
        };
        let stream = TlsConnector::from(tls.config()?)
            .connect(tls.name(), tcp)
            .await
            .map_err(|source| ConnectError::Handshake { with: to, source })?;
        Ok(TokioIo::new(Stream { inner: Box::new(stream), is_forwarded }))
    }

    async fn tcp(&self, to: &str) -> Result<TokioIo<TcpStream>, ConnectError> {
        let mut tcp = self.tcp.clone();
        let Some(Proxy { uri, authorization, tunnels }) = &self.proxy else {
            return tcp
                .call(self.target.clone())
                .await
                .map_err(|source| ConnectError::Unreachable { to: to.to_owned(), source: source.into() });
        };
        // Without name and password, should they be in it.
        let name = format!("{}:{}", uri.host().unwrap_or_default(), uri.port_u16().unwrap_or(80));
        if !tunnels {
            return tcp
                .call(uri.clone())
                .await
                .map_err(|source| ConnectError::Unreachable { to: name, source: source.into() });
        }
        let mut tunnel = Tunnel::new(uri.clone(), tcp);
        if let Some(authorization) = authorization {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        tunnel.call(self.target.clone()).await.map_err(|source| ConnectError::Proxy {
            proxy: name,
            to: to.to_owned(),
            source: source.into(),
        })
    }
}

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A connection, encrypted or not.
pub(super) struct Stream {
    inner: Box<dyn Transport>,
    is_forwarded: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        // A proxy wants to read the whole URL.
        Connected::new().proxy(self.is_forwarded)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
