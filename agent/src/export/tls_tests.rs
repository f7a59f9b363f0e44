//! TLS, client certificates, tokens and proxies, against servers that are made here.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{Router, routing::post};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceServiceServer;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd};
use rstest::rstest;
use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsAcceptor;

use super::{
    tests::{Destination, settings, traces, with},
    transport::Transport,
    *,
};
use crate::export::response::Answer;

/// Authorities and certificates of one test.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut parameters = CertificateParams::default();
        // Where two have the same name, TLS takes a certificate of the one for a forged one of the other.
        parameters.distinguished_name.push(DnType::CommonName, format!("authority {}", fastrand::u64(..)));
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
        let authority = Self { folder: tempfile::tempdir().unwrap(), issuer };
        authority.write("ca.pem", &authority.issuer.pem());
        authority
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn sign(&self, name: &str, until: i32) -> (rcgen::Certificate, KeyPair) {
        let mut parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
        parameters.not_before = date_time_ymd(2020, 1, 1);
        parameters.not_after = date_time_ymd(until, 1, 1);
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap(), key)
    }

    /// What a server needs whose certificate is for `name`; with `clients` it wants one that this authority signed.
    fn server(&self, name: &str, until: i32, clients: bool) -> ServerConfig {
        let (certificate, key) = self.sign(name, until);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = if clients {
            let mut roots = RootCertStore::empty();
            roots.add(self.issuer.der().clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.unwrap().with_client_cert_verifier(verifier)
        } else {
            builder.unwrap().with_no_client_auth()
        };
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config
    }
}

/// Both protocols, with or without TLS.
async fn listen(destination: &Destination, tls: Option<ServerConfig>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let grpc = tonic::service::Routes::new(TraceServiceServer::new(destination.clone())).into_axum_router();
    let router = Router::new().route("/v1/traces", post(traces)).with_state(destination.clone()).merge(grpc);
    let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let (router, acceptor) = (router.clone(), acceptor.clone());
            tokio::spawn(async move {
                let service = TowerToHyperService::new(router);
                let server = auto::Builder::new(TokioExecutor::new());
                match acceptor {
                    None => drop(server.serve_connection(TokioIo::new(connection), service).await),
                    Some(acceptor) => {
                        let Ok(connection) = acceptor.accept(connection).await else { return };
                        drop(server.serve_connection(TokioIo::new(connection), service).await);
                    }
                }
            });
        }
    });
    address
}

fn endpoint(address: SocketAddr, protocol: Protocol, tls: TlsSettings) -> EndpointSettings {
    let settings = with(settings(address, protocol), |it| {
        it.endpoint = it.endpoint.replacen("http://127.0.0.1", "https://localhost", 1);
        it.tls = Some(tls);
    });
    settings.endpoints.into_iter().next().unwrap()
}

/// Sends a request without spans.
async fn send(settings: &EndpointSettings) -> Answer {
    Transport::new(settings, Signal::Traces).unwrap().send(Bytes::new()).await
}

fn is_accepted(answer: &Answer) -> bool {
    matches!(answer, Answer::Accepted { rejected: 0, .. })
}

#[track_caller]
fn reason(answer: Answer) -> String {
    match answer {
        Answer::Retry { reason, .. } => reason,
        other => panic!("{other:?}"),
    }
}

#[rstest]
#[case::trusted("localhost", 2100, |tls: &mut TlsSettings, it: &Authority| tls.ca_file = Some(it.path("ca.pem")), None)]
#[case::unknown("localhost", 2100, |_: &mut TlsSettings, _: &Authority| {}, Some("nobody trusted has signed the endpoint's certificate: see `tls.ca_file`"))]
#[case::expired("localhost", 2021, |tls: &mut TlsSettings, it: &Authority| tls.ca_file = Some(it.path("ca.pem")), Some("the endpoint's certificate has expired"))]
#[case::of_another("tempo.example", 2100, |tls: &mut TlsSettings, it: &Authority| tls.ca_file = Some(it.path("ca.pem")), Some("the endpoint's certificate is for another name: see `tls.server_name`"))]
#[case::named(
    "tempo.example",
    2100,
    |tls: &mut TlsSettings, it: &Authority| {
        tls.ca_file = Some(it.path("ca.pem"));
        tls.server_name = Some("tempo.example".to_owned());
    },
    None
)]
#[case::anybody("localhost", 2021, |tls: &mut TlsSettings, _: &Authority| tls.insecure_skip_verify = true, None)]
#[tokio::test]
async fn certificates_of_the_endpoint(
    #[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol,
    #[case] name: &str,
    #[case] until: i32,
    #[case] change: fn(&mut TlsSettings, &Authority),
    #[case] refused: Option<&str>,
) {
    let authority = Authority::new();
    let address = listen(&Destination::default(), Some(authority.server(name, until, false))).await;
    // Somebody else's authority: those of the system are not the same on every machine.
    let other = Authority::new();
    let mut tls = TlsSettings { ca_file: Some(other.path("ca.pem")), ..TlsSettings::default() };
    change(&mut tls, &authority);
    let answer = send(&endpoint(address, protocol, tls)).await;
    match refused {
        None => assert!(is_accepted(&answer), "{answer:?}"),
        Some(expected) => {
            let reason = reason(answer);
            assert!(reason.ends_with(&format!("({expected})")) && !reason.contains('\n'), "{reason}");
            assert!(reason.contains(&address.port().to_string()), "{reason}");
        }
    }
}

#[rstest]
#[tokio::test]
async fn certificates_of_the_agent(#[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol) {
    let authority = Authority::new();
    let address = listen(&Destination::default(), Some(authority.server("localhost", 2100, true))).await;
    let trusting = TlsSettings { ca_file: Some(authority.path("ca.pem")), ..TlsSettings::default() };
    let missing = reason(send(&endpoint(address, protocol, trusting.clone())).await);
    assert!(
        missing.ends_with("(the endpoint wants a client certificate: see `tls.cert_file` and `tls.key_file`)"),
        "{missing}"
    );

    let somebody = Authority::new();
    let (certificate, key) = somebody.sign("agent", 2100);
    let tls = TlsSettings {
        cert_file: Some(authority.write("cert.pem", &certificate.pem())),
        key_file: Some(authority.write("key.pem", &key.serialize_pem())),
        ..trusting
    };
    let endpoint = endpoint(address, protocol, tls);
    let transport = Transport::new(&endpoint, Signal::Traces).unwrap();
    let wrong = reason(transport.send(Bytes::new()).await);
    assert!(wrong.contains("the endpoint does not accept the client certificate"), "{wrong}");

    // The files are renewed while the agent runs.
    let (certificate, key) = authority.sign("agent", 2100);
    authority.write("cert.pem", &certificate.pem());
    authority.write("key.pem", &key.serialize_pem());
    let answer = transport.send(Bytes::new()).await;
    assert!(is_accepted(&answer), "{answer:?}");
}

#[tokio::test]
async fn an_endpoint_without_tls_is_told_from_one_that_is_away() {
    let address = listen(&Destination::default(), None).await;
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let tls = TlsSettings { insecure_skip_verify: true, ..TlsSettings::default() };
        let reason = reason(send(&endpoint(address, protocol, tls)).await);
        assert!(reason.contains("no TLS with localhost:"), "{reason}");
    }
}

#[rstest]
#[case::no_such_file(|tls: &mut TlsSettings, _: &Authority| tls.ca_file = Some("/nonexistent/ca.pem".into()), "cannot read certificates from /nonexistent/ca.pem")]
#[case::no_certificate(|tls: &mut TlsSettings, it: &Authority| tls.ca_file = Some(it.write("empty.pem", "nothing\n")), "there is no certificate in ")]
#[case::half(|tls: &mut TlsSettings, it: &Authority| tls.cert_file = Some(it.path("ca.pem")), "`tls.cert_file` and `tls.key_file` belong together")]
#[case::no_key(
    |tls: &mut TlsSettings, it: &Authority| {
        tls.cert_file = Some(it.path("ca.pem"));
        tls.key_file = Some(it.path("ca.pem"));
    },
    "cannot read a private key from "
)]
#[case::no_name(|tls: &mut TlsSettings, _: &Authority| tls.server_name = Some("not a name".to_owned()), "`not a name` is no name")]
#[tokio::test]
async fn mistakes_are_found_at_the_start(
    #[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol,
    #[case] change: fn(&mut TlsSettings, &Authority),
    #[case] expected: &str,
) {
    let authority = Authority::new();
    let mut tls = TlsSettings { ca_file: Some(authority.path("ca.pem")), ..TlsSettings::default() };
    change(&mut tls, &authority);
    let error = Transport::new(&endpoint("127.0.0.1:1".parse().unwrap(), protocol, tls), Signal::Traces).unwrap_err();
    let ExportError::Tls { source, .. } = error else { panic!("{error}") };
    assert!(source.to_string().starts_with(expected), "{source}");
}

#[tokio::test]
async fn settings_for_tls_want_https() {
    let settings =
        with(settings("127.0.0.1:1".parse().unwrap(), Protocol::Grpc), |it| it.tls = Some(TlsSettings::default()));
    let error = Transport::new(&settings.endpoints[0], Signal::Traces).unwrap_err().to_string();
    assert!(error.ends_with("it has settings for TLS and must begin with `https://`"), "{error}");
}

#[rstest]
#[tokio::test]
async fn a_token_is_sent_and_a_new_one_too(#[values(Protocol::Grpc, Protocol::HttpProtobuf)] protocol: Protocol) {
    let folder = tempfile::tempdir().unwrap();
    let token_file = folder.path().join("token");
    fs::write(&token_file, "old\n").unwrap();
    let destination =
        Destination::following([tests::Step::Fail { grpc: tonic::Code::Unauthenticated, http: 401, after: None }]);
    let address = listen(&destination, None).await;
    let settings = with(settings(address, protocol), |it| it.auth = Auth::Bearer { token_file: token_file.clone() });
    let transport = Transport::new(&settings.endpoints[0], Signal::Traces).unwrap();
    // Not a reason to throw spans away: the file may be another soon.
    let refused = reason(transport.send(Bytes::new()).await);
    assert!(!refused.contains("old"), "{refused}");
    fs::write(&token_file, "another\n").unwrap();
    assert!(is_accepted(&transport.send(Bytes::new()).await));
    let sent = destination.headers().into_iter().map(|headers| headers["authorization"].to_str().unwrap().to_owned());
    assert_eq!(sent.collect::<Vec<_>>(), ["Bearer old", "Bearer another"]);
    fs::remove_file(&token_file).unwrap();
    let missing = reason(transport.send(Bytes::new()).await);
    assert!(missing.contains(token_file.to_str().unwrap()), "{missing}");
}

/// A proxy that makes connections for who gives the right password; gives the heads of its requests.
async fn proxy(to: SocketAddr) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heads, received) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let heads = heads.clone();
            tokio::spawn(async move {
                let mut connection = BufReader::new(connection);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    connection.read_line(&mut head).await.unwrap();
                }
                let _ = heads.send(head.clone());
                let mut target = TcpStream::connect(to).await.unwrap();
                if head.starts_with("CONNECT ") {
                    connection.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                    let _ = copy_bidirectional(&mut connection, &mut target).await;
                } else {
                    // One request is enough; the server answers whatever its URL looks like.
                    target.write_all(head.replacen(&format!("http://{NAME}"), "", 1).as_bytes()).await.unwrap();
                    let _ = copy_bidirectional(&mut connection, &mut target).await;
                }
            });
        }
    });
    (address, received)
}

/// Only the proxy knows where that is.
const NAME: &str = "tempo.invalid";

#[rstest]
#[case::grpc(Protocol::Grpc, false, "CONNECT tempo.invalid:80 ")]
#[case::http(Protocol::HttpProtobuf, false, "POST http://tempo.invalid/v1/traces ")]
#[case::grpc_tls(Protocol::Grpc, true, "CONNECT tempo.invalid:443 ")]
#[case::http_tls(Protocol::HttpProtobuf, true, "CONNECT tempo.invalid:443 ")]
#[tokio::test]
async fn the_proxy_of_the_environment_is_used(#[case] protocol: Protocol, #[case] tls: bool, #[case] expected: &str) {
    let authority = Authority::new();
    let address = listen(&Destination::default(), tls.then(|| authority.server(NAME, 2100, false))).await;
    let (proxy, mut heads) = proxy(address).await;
    let variable = |name: &str| match name {
        "HTTPS_PROXY" | "http_proxy" => Some(format!("http://me:secret@{proxy}")),
        _ => None,
    };
    let settings = with(settings(address, protocol), |it| {
        let (scheme, path) =
            (if tls { "https" } else { "http" }, if protocol == Protocol::Grpc { "" } else { "/v1/traces" });
        it.endpoint = format!("{scheme}://{NAME}{path}");
        it.tls = tls.then(|| TlsSettings { ca_file: Some(authority.path("ca.pem")), ..TlsSettings::default() });
        it.proxies = Proxies::of(&variable);
    });
    let settings = &settings.endpoints[0];
    assert!(!format!("{settings:?} {:?}", Transport::new(settings, Signal::Traces).unwrap()).contains("secret"));
    let answer = send(settings).await;
    assert!(is_accepted(&answer), "{answer:?}");
    let head = heads.recv().await.unwrap();
    assert!(head.starts_with(expected), "{head}");
    assert!(head.to_ascii_lowercase().contains("proxy-authorization: basic bwu6c2vjcmv0"), "{head}");
}

#[rstest]
#[case::excepted(&[("HTTP_PROXY", "http://127.0.0.1:1"), ("NO_PROXY", "localhost,127.0.0.0/8")])]
#[case::this_node(&[("HTTP_PROXY", "http://127.0.0.1:1")])]
#[tokio::test]
async fn who_is_near_needs_no_proxy(#[case] variables: &[(&str, &str)]) {
    let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let address = listen(&Destination::default(), None).await;
    let settings = with(settings(address, Protocol::Grpc), |it| it.proxies = Proxies::of(&variable));
    assert!(is_accepted(&send(&settings.endpoints[0]).await));
}
