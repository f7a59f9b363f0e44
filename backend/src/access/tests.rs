//! Who is let in and who is not, and what changes while connections are open.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::any;
use proptest::prelude::{prop_assert, proptest};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd,
};
use rstest::rstest;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::config::CredentialConfig;

fn variable(name: &str) -> Option<String> {
    (name == "TOKEN").then(|| "from the environment".to_owned())
}

fn door(config: &Config, listener: ListenerName) -> Result<Door, AccessError> {
    Door::new(listener, config, &variable, AccessMetrics::default())
}

/// Files with secrets, and a configuration that names them.
fn secrets() -> (TempDir, Config) {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        Some(path)
    };
    let mut config = Config { multitenancy: true, ..Config::default() };
    config.auth.credentials = vec![
        CredentialConfig { token_file: file("tokens", "old token\n\n  new token \n"), ..CredentialConfig::default() },
        CredentialConfig {
            token_env: "TOKEN".to_owned(),
            listeners: vec![ListenerName::Api],
            tenants: vec!["a".to_owned(), "b".to_owned()],
            ..CredentialConfig::default()
        },
        CredentialConfig {
            username: "grafana".to_owned(),
            password_file: file("password", "žluť:kůň\n"),
            tenants: vec!["a".to_owned()],
            ..CredentialConfig::default()
        },
    ];
    (folder, config)
}

const ENVIRONMENT: &str = "Bearer from the environment";
/// `grafana:žluť:kůň`
const GRAFANA: &str = "Basic Z3JhZmFuYTrFvmx1xaU6a8WvxYg=";

#[rstest]
#[case::nothing("", "", Err(Refusal::NoCredentials))]
#[case::wrong("Bearer token", "a", Err(Refusal::WrongCredentials))]
#[case::the_beginning("Bearer old toke", "a", Err(Refusal::WrongCredentials))]
#[case::empty("Bearer ", "a", Err(Refusal::WrongCredentials))]
#[case::no_scheme("old token", "a", Err(Refusal::WrongCredentials))]
#[case::another_scheme("Digest old token", "a", Err(Refusal::WrongCredentials))]
#[case::no_base64("Basic old", "a", Err(Refusal::WrongCredentials))]
#[case::a_token("Bearer old token", "any", Ok("any"))]
#[case::in_small_letters("bearer  new token", "any|other", Ok("any|other"))]
#[case::without_tenant("Bearer new token", "", Ok(""))]
#[case::of_a_tenant(ENVIRONMENT, "a", Ok("a"))]
#[case::of_both(ENVIRONMENT, "b|a", Ok("b|a"))]
#[case::of_another(ENVIRONMENT, "c", Err(Refusal::OtherTenant))]
#[case::of_another_too(ENVIRONMENT, "a|c", Err(Refusal::OtherTenant))]
#[case::of_nobody(ENVIRONMENT, "a|", Err(Refusal::OtherTenant))]
#[case::of_which(ENVIRONMENT, "", Ok(""))]
#[case::a_password(GRAFANA, "a", Ok("a"))]
#[case::the_only_tenant(GRAFANA, "", Ok("a"))]
#[case::a_password_as_token("Bearer grafana:žluť:kůň", "a", Err(Refusal::WrongCredentials))]
fn requests(#[case] shown: &str, #[case] tenant: &str, #[case] expected: Result<&str, Refusal>) {
    let (_folder, config) = secrets();
    let door = door(&config, ListenerName::Api).unwrap();
    let mut headers = HeaderMap::new();
    for (name, value) in [(AUTHORIZATION.as_str(), shown), (TENANT_HEADER, tenant)] {
        if !value.is_empty() {
            headers
                .insert(name.parse::<http::HeaderName>().unwrap(), HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
    }
    let admitted = door.admit("/api/search", &mut headers, false);
    let seen = headers.get(TENANT_HEADER).map_or("", |value| value.to_str().unwrap());
    assert_eq!(admitted.map(|()| seen), expected);
    assert_eq!(door.admit("/ready", &mut HeaderMap::new(), false), Ok(()));
}

/// Credentials that need no file.
fn from_the_environment() -> Vec<Credential> {
    let config = |username: &str| CredentialConfig {
        token_env: if username.is_empty() { "TOKEN".to_owned() } else { String::new() },
        username: username.to_owned(),
        password_env: if username.is_empty() { String::new() } else { "TOKEN".to_owned() },
        ..CredentialConfig::default()
    };
    let auth = crate::config::AuthConfig { credentials: vec![config(""), config("me")], ..Default::default() };
    Credential::open(ListenerName::Api, &auth, false, &variable).unwrap()
}

#[rstest]
#[case::token(ENVIRONMENT)]
#[case::password("Basic bWU6ZnJvbSB0aGUgZW52aXJvbm1lbnQ=")]
fn only_the_whole_header_fits(#[case] header: &str) {
    let credentials = from_the_environment();
    assert!(credentials::find(&credentials, header.as_bytes()).is_some());
    for len in 0..header.len() {
        assert!(credentials::find(&credentials, &header.as_bytes()[..len]).is_none(), "{len}");
    }
}

proptest! {
    #[test]
    fn any_header_is_read(scheme in "(Bearer|basic|[a-z]*) ?", rest in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let header = [scheme.as_bytes(), &rest].concat();
        prop_assert!(credentials::find(&from_the_environment(), &header).is_none());
    }
}

#[test]
fn a_second_tenant_header_counts_for_nothing() {
    let (_folder, config) = secrets();
    let door = door(&config, ListenerName::Api).unwrap();
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, HeaderValue::from_static(ENVIRONMENT));
    headers.append(TENANT_HEADER, HeaderValue::from_static("a"));
    headers.append(TENANT_HEADER, HeaderValue::from_static("c"));
    assert_eq!(door.admit("/api/search", &mut headers, false), Ok(()));
    assert_eq!(headers.get_all(TENANT_HEADER).iter().collect::<Vec<_>>(), ["a"]);
}

#[rstest]
#[case::api(ListenerName::Api, false, "/ready", true)]
#[case::alive(ListenerName::Api, false, "/healthz", true)]
#[case::metrics(ListenerName::Api, false, "/metrics", false)]
#[case::open_metrics(ListenerName::Api, true, "/metrics", true)]
#[case::not_below(ListenerName::Api, true, "/metrics/generated", false)]
#[case::otlp(ListenerName::OtlpHttp, true, "/ready", false)]
fn paths_for_everybody(#[case] listener: ListenerName, #[case] open: bool, #[case] path: &str, #[case] let_in: bool) {
    let (_folder, mut config) = secrets();
    config.auth.open_metrics = open;
    let door = door(&config, listener).unwrap();
    assert_eq!(door.admit(path, &mut HeaderMap::new(), false).is_ok(), let_in);
}

#[test]
fn a_credential_is_for_its_listeners_and_a_listener_without_takes_everybody() {
    let (_folder, mut config) = secrets();
    let headers = |token| HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(token))]);
    let door_to = |config: &Config, listener| door(config, listener).unwrap();
    let grpc = door_to(&config, ListenerName::OtlpGrpc);
    assert_eq!(grpc.admit("/", &mut headers(ENVIRONMENT), false), Err(Refusal::WrongCredentials));
    config.auth.credentials.drain(..1);
    config.auth.credentials.truncate(1);
    assert_eq!(door_to(&config, ListenerName::OtlpGrpc).admit("/", &mut HeaderMap::new(), false), Ok(()));
    assert_eq!(
        door_to(&config, ListenerName::Api).admit("/", &mut HeaderMap::new(), false),
        Err(Refusal::NoCredentials)
    );
}

#[test]
fn a_new_token_counts_and_an_old_one_does_not() {
    let (folder, config) = secrets();
    let door = door(&config, ListenerName::OtlpHttp).unwrap();
    let admit =
        |token| door.admit("/", &mut HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(token))]), false);
    assert_eq!(admit("Bearer old token"), Ok(()));
    fs::write(folder.path().join("tokens"), "newest token").unwrap();
    door.refresh();
    assert_eq!(admit("Bearer old token"), Err(Refusal::WrongCredentials));
    assert_eq!(admit("Bearer newest token"), Ok(()));
    // One that is emptied by accident shuts nobody out.
    fs::write(folder.path().join("tokens"), "").unwrap();
    door.refresh();
    assert_eq!(admit("Bearer newest token"), Ok(()));
}

#[test]
fn answers() {
    let (_folder, config) = secrets();
    let door = door(&config, ListenerName::Api).unwrap();
    let answer = |refusal, content_type: &'static str| {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
        let response = door.answer(refusal, &headers);
        let headers = ["www-authenticate", "grpc-status", "grpc-message"].map(|name| {
            let values = response.headers().get_all(name).iter().map(|value| value.to_str().unwrap().to_owned());
            values.collect::<Vec<_>>().join(", ")
        });
        format!("{} {}", response.status().as_u16(), headers.join(" "))
    };
    let all = [
        answer(Refusal::NoCredentials, "application/json"),
        answer(Refusal::OtherTenant, "application/json"),
        answer(Refusal::NoCertificate, "application/json"),
        answer(Refusal::WrongCredentials, "application/grpc+proto"),
        answer(Refusal::OtherTenant, "application/grpc"),
    ];
    insta::assert_snapshot!(all.map(|line| line.trim_end().to_owned()).join("\n"), @r#"
    401 Basic realm="coati", Bearer realm="coati"
    403
    403
    200  16 these%20credentials%20are%20not%20known
    200  7 these%20credentials%20are%20not%20for%20this%20tenant
    "#);
}

#[rstest]
#[case::neither(CredentialConfig::default(), "expected a token or a password")]
#[case::both(CredentialConfig { token_env: "TOKEN".into(), username: "x".into(), ..CredentialConfig::default() }, "expected a token or a password")]
#[case::no_name(CredentialConfig { password_env: "TOKEN".into(), ..CredentialConfig::default() }, "expected a `username`")]
#[case::a_colon(CredentialConfig { username: "a:b".into(), password_env: "TOKEN".into(), ..CredentialConfig::default() }, "expected a `username`")]
#[case::no_password(CredentialConfig { username: "x".into(), ..CredentialConfig::default() }, "expected `password_file` or `password_env`")]
#[case::two(CredentialConfig { token_env: "TOKEN".into(), token_file: Some("/x".into()), ..CredentialConfig::default() }, "found both")]
#[case::unset(CredentialConfig { token_env: "NO_TOKEN".into(), ..CredentialConfig::default() }, "NO_TOKEN is not set")]
#[case::tenants(CredentialConfig { token_env: "TOKEN".into(), tenants: vec!["a".into()], ..CredentialConfig::default() }, "need `multitenancy: true`")]
#[case::no_file(CredentialConfig { token_file: Some("/no/such/file".into()), ..CredentialConfig::default() }, "cannot read /no/such/file")]
fn credentials_that_cannot_be_used(#[case] credential: CredentialConfig, #[case] expected: &str) {
    let mut config = Config::default();
    config.auth.credentials = vec![credential];
    let error = check(&config, &variable).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
}

/// An authority that signs what it is asked to.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// Writes `NAME.pem` and `NAME.key`, valid until the beginning of that year.
    fn sign(&self, folder: &Path, name: &str, until: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_after = date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// A client that trusts it, with a certificate or without.
    fn client(&self, certificate: Option<(&Path, &str)>) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        match certificate {
            None => builder.with_no_client_auth(),
            Some((folder, name)) => {
                let chain = vec![CertificateDer::from_pem_file(folder.join(format!("{name}.pem"))).unwrap()];
                let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key"))).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        }
    }
}

/// A server with TLS in a folder with `server.pem` and `server.key`, and with `clients.pem` if that is there.
async fn serve(folder: &Path) -> (Arc<Door>, SocketAddr, tokio::task::JoinHandle<()>) {
    let mut config = Config::default();
    config.tls.api.cert_file = Some(folder.join("server.pem"));
    config.tls.api.key_file = Some(folder.join("server.key"));
    config.tls.api.client_ca_file = Some(folder.join("clients.pem")).filter(|path| path.exists());
    let door = Arc::new(door(&config, ListenerName::Api).unwrap());
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = door.listen(listener, address);
    let router = Router::new()
        .fallback(any(async || "here"))
        .layer(from_fn_with_state(Arc::clone(&door), guard))
        .into_make_service_with_connect_info::<Peer>();
    let served = tokio::spawn(async move { axum::serve(connections, router).await.unwrap() });
    (door, address, served)
}

async fn connect(address: SocketAddr, client: &ClientConfig) -> io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(client.clone())).connect(name, stream).await
}

/// The status line of an answer; the connection stays open.
async fn ask(stream: &mut TlsStream<TcpStream>, path: &str) -> io::Result<String> {
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await?;
    let mut answer = vec![0; 1_000];
    let len = stream.read(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer[..len]).lines().next().unwrap_or_default().to_owned())
}

fn refused(door: &Door, reason: &'static str) -> u64 {
    door.metrics.refused.get_or_create(&AccessLabels { listener: "api", reason }).get()
}

#[tokio::test]
async fn a_renewed_certificate_is_shown_to_new_clients_and_drops_nobody() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("authority"));
    authority.sign(folder.path(), "server", 2_090);
    let (door, address, served) = serve(folder.path()).await;
    let client = authority.client(None);
    let mut old = connect(address, &client).await.unwrap();
    assert_eq!(ask(&mut old, "/").await.unwrap(), "HTTP/1.1 200 OK");

    let shown = |stream: &TlsStream<TcpStream>| stream.get_ref().1.peer_certificates().unwrap()[0].to_vec();
    authority.sign(folder.path(), "server", 2_091);
    door.refresh();
    let mut new = connect(address, &client).await.unwrap();
    assert_eq!(ask(&mut new, "/").await.unwrap(), "HTTP/1.1 200 OK");
    assert_eq!(ask(&mut old, "/").await.unwrap(), "HTTP/1.1 200 OK");
    assert_ne!(shown(&old), shown(&new));

    // Half of a renewal: certificate and key do not fit, the last pair that did stays.
    fs::write(folder.path().join("server.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    door.refresh();
    let mut other = connect(address, &client).await.unwrap();
    assert_eq!(ask(&mut other, "/").await.unwrap(), "HTTP/1.1 200 OK");
    assert_eq!(shown(&other), shown(&new));
    served.abort();
}

#[tokio::test]
async fn a_client_must_have_a_certificate_of_the_right_authority_that_has_not_expired() {
    let (folder, authority, other) =
        (tempfile::tempdir().unwrap(), Authority::new("authority"), Authority::new("other authority"));
    authority.sign(folder.path(), "server", 2_090);
    authority.sign(folder.path(), "client", 2_090);
    authority.sign(folder.path(), "expired", 2_020);
    other.sign(folder.path(), "stranger", 2_090);
    fs::write(folder.path().join("clients.pem"), authority.0.pem()).unwrap();
    let (door, address, served) = serve(folder.path()).await;

    let mut known = connect(address, &authority.client(Some((folder.path(), "client")))).await.unwrap();
    assert_eq!(ask(&mut known, "/").await.unwrap(), "HTTP/1.1 200 OK");
    let mut unknown = connect(address, &authority.client(None)).await.unwrap();
    assert_eq!(ask(&mut unknown, "/").await.unwrap(), "HTTP/1.1 403 Forbidden");
    assert_eq!(ask(&mut unknown, "/ready").await.unwrap(), "HTTP/1.1 200 OK");
    assert_eq!(refused(&door, "certificate"), 1);
    for (refusals, name) in [(1, "expired"), (2, "stranger")] {
        // With TLS 1.3 a client may write before it hears that it is not welcome.
        let client = authority.client(Some((folder.path(), name)));
        let answer = match connect(address, &client).await {
            Ok(mut stream) => ask(&mut stream, "/").await,
            Err(error) => Err(error),
        };
        answer.unwrap_err();
        assert_eq!(refused(&door, "handshake"), refusals, "{name}");
    }
    served.abort();
}

#[tokio::test]
async fn who_speaks_without_tls_is_told() {
    let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("authority"));
    authority.sign(folder.path(), "server", 2_090);
    let (door, address, served) = serve(folder.path()).await;
    for (request, expected) in [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ""),
        ("\0\u{1}\u{2}", ""),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.lines().next().unwrap_or_default(), expected, "{request:?}");
    }
    assert_eq!(refused(&door, "plaintext"), 3);
    // One that only looks whether the port is open is not counted.
    drop(TcpStream::connect(address).await.unwrap());
    let mut well = connect(address, &authority.client(None)).await.unwrap();
    assert_eq!(ask(&mut well, "/").await.unwrap(), "HTTP/1.1 200 OK");
    assert_eq!(refused(&door, "handshake"), 0);
    served.abort();
}

#[rstest]
#[case::no_key(|folder: &Path| fs::remove_file(folder.join("server.key")).unwrap(), "there is no private key in ")]
#[case::no_certificate(|folder: &Path| fs::write(folder.join("server.pem"), "").unwrap(), "there is no certificate in ")]
#[case::another_key(
    |folder: &Path| fs::write(folder.join("server.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap(),
    "certificate or key cannot be used"
)]
fn certificates_that_cannot_be_used(#[case] damage: fn(&Path), #[case] expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    Authority::new("authority").sign(folder.path(), "server", 2_090);
    damage(folder.path());
    let mut config = Config::default();
    config.tls.otlp_grpc.cert_file = Some(folder.path().join("server.pem"));
    config.tls.otlp_grpc.key_file = Some(folder.path().join("server.key"));
    let error = check(&config, &variable).unwrap_err().to_string();
    assert!(error.contains(expected), "{error}");
    config.tls.otlp_grpc.cert_file = None;
    assert_eq!(
        check(&config, &variable).unwrap_err().to_string(),
        "tls.otlp_grpc: expected both `cert_file` and `key_file`"
    );
}

#[rstest]
#[case(AlertDescription::CertificateExpired, "the client says that this listener's certificate has expired")]
#[case(AlertDescription::UnknownCA, "the client does not trust this listener's certificate")]
fn alerts_in_words(#[case] alert: AlertDescription, #[case] expected: &str) {
    let error = io::Error::new(io::ErrorKind::InvalidData, rustls::Error::AlertReceived(alert));
    assert_eq!(tls::why_it_failed(&error), expected);
}
