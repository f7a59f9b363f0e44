//! Sends what waits to a server: one request after the other, until it is taken or refused.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, StatusCode};
use reqwest::{Certificate, Client, Identity, Response, Url};
use tracing::{info, warn};

use super::RemoteWriteError;
use super::queue::{Queue, Queued};
use crate::config::{BasicAuth, RemoteWriteConfig};
use crate::telemetry::chain;
use crate::tenant::TENANT_HEADER;

/// Wait after the first failure; each is twice the one before, up to the longest.
const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Longest wait that a server may ask for.
const LONGEST_ASKED: Duration = Duration::from_mins(5);

/// Bytes of an answer that the log shows.
const SHOWN_BYTES: usize = 400;

/// Sends what waits for one server.
#[derive(Debug)]
pub struct Sender {
    queue: Arc<Queue>,
    client: Client,
    url: Url,
    basic_auth: Option<(String, String)>,
    /// Whether the server is told the tenant.
    tells_tenant: bool,
}

enum Outcome {
    Taken,
    Refused(String),
    Later { why: String, after: Option<Duration> },
}

/// How a server is reached.
struct Connection {
    client: Client,
    url: Url,
    basic_auth: Option<(String, String)>,
}

impl Connection {
    /// Fails if the settings, or files that they name, cannot be used.
    fn new(config: &RemoteWriteConfig) -> Result<Self, RemoteWriteError> {
        let url = Url::parse(&config.url).map_err(|error| setting("url: expected a URL", error))?;
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("snappy"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
        headers.insert("x-prometheus-remote-write-version", HeaderValue::from_static("0.1.0"));
        let agent = concat!("coati-backend/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        for (name, value) in &config.headers {
            let what = format!("headers: {name}");
            let mut value = HeaderValue::from_str(value.0.expose()).map_err(|error| setting(&what, error))?;
            value.set_sensitive(true);
            headers.insert(HeaderName::try_from(name.as_str()).map_err(|error| setting(&what, error))?, value);
        }
        let tls = &config.tls_config;
        let mut client = Client::builder()
            .default_headers(headers)
            .timeout(config.remote_timeout)
            .no_proxy()
            .danger_accept_invalid_certs(tls.insecure_skip_verify);
        if let Some(path) = &tls.ca_file {
            let pem = read("tls_config.ca_file", path)?;
            let certificates = Certificate::from_pem_bundle(&pem);
            for certificate in certificates.map_err(|error| setting("tls_config.ca_file", error))? {
                client = client.add_root_certificate(certificate);
            }
        }
        if let (Some(certificate), Some(key)) = (&tls.cert_file, &tls.key_file) {
            let mut pem = read("tls_config.cert_file", certificate)?;
            pem.extend(read("tls_config.key_file", key)?);
            client = client.identity(Identity::from_pem(&pem).map_err(|error| setting("tls_config.key_file", error))?);
        }
        let client = client.build().map_err(|error| setting("the client cannot be made", error))?;
        let basic_auth = config.basic_auth.as_ref().map(credentials).transpose()?;
        Ok(Self { client, url, basic_auth })
    }
}

/// Fails if the settings, or files that they name, cannot be used.
pub(in crate::generator) fn check(config: &RemoteWriteConfig) -> Result<(), RemoteWriteError> {
    Connection::new(config).map(drop)
}

impl Sender {
    /// Fails if the settings cannot be used. `tells_tenant`: whether the server is told the tenant.
    pub fn new(queue: Arc<Queue>, config: &RemoteWriteConfig, tells_tenant: bool) -> Result<Self, RemoteWriteError> {
        let Connection { client, url, basic_auth } = Connection::new(config)?;
        Ok(Self { queue, client, url, basic_auth, tells_tenant })
    }

    /// Sends for ever.
    pub async fn run(self) {
        let mut wait = FIRST_WAIT;
        let mut failing = false;
        loop {
            let queue = Arc::clone(&self.queue);
            let oldest = tokio::task::spawn_blocking(move || queue.oldest()).await.ok().flatten();
            let Some((number, queued)) = oldest else {
                self.queue.more.notified().await;
                continue;
            };
            let url = self.queue.url();
            match self.send(&queued).await {
                Outcome::Taken => {
                    let metrics = &self.queue.metrics;
                    metrics.sent_samples.get_or_create(&self.queue.endpoint).inc_by(queued.samples.into());
                    let seconds = (queued.time_ms / 1_000) as i64;
                    metrics.newest_sent.get_or_create(&self.queue.endpoint).set(seconds);
                    if std::mem::take(&mut failing) {
                        info!(url, "samples are taken again");
                    }
                }
                Outcome::Refused(why) => {
                    warn!(url, samples = queued.samples, why, "samples were refused and are lost");
                    self.queue.lost("refused", queued.samples);
                }
                Outcome::Later { why, after } => {
                    if !std::mem::replace(&mut failing, true) {
                        warn!(url, why, "samples cannot be sent, they wait on disk");
                    }
                    self.queue.metrics.retries.get_or_create(&self.queue.endpoint).inc();
                    tokio::time::sleep(after.map_or(wait, |after| after.min(LONGEST_ASKED))).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    continue;
                }
            }
            wait = FIRST_WAIT;
            let queue = Arc::clone(&self.queue);
            // It fails only when the runtime ends.
            let _ended = tokio::task::spawn_blocking(move || queue.done(number)).await;
        }
    }

    async fn send(&self, queued: &Queued) -> Outcome {
        let mut request = self.client.post(self.url.clone()).body(queued.body.clone());
        if let Some((user, password)) = &self.basic_auth {
            request = request.basic_auth(user, Some(password));
        }
        if self.tells_tenant {
            request = request.header(TENANT_HEADER, &queued.tenant);
        }
        match request.send().await {
            Ok(response) if response.status().is_success() => Outcome::Taken,
            Ok(response) => {
                let (status, after) = (response.status(), retry_after(&response));
                let why = format!("{status}: {}", shown(response).await);
                if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
                    Outcome::Later { why, after }
                } else {
                    Outcome::Refused(why)
                }
            }
            Err(error) => Outcome::Later { why: chain(&error.without_url()), after: None },
        }
    }
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The beginning of an answer, on one line.
async fn shown(response: Response) -> String {
    let body = response.bytes().await.unwrap_or_default();
    let begin = body.get(..SHOWN_BYTES).unwrap_or(&body);
    String::from_utf8_lossy(begin).trim().replace('\n', " ")
}

fn credentials(auth: &BasicAuth) -> Result<(String, String), RemoteWriteError> {
    let password = match &auth.password_file {
        Some(path) => String::from_utf8_lossy(&read("basic_auth.password_file", path)?).trim().to_owned(),
        None => auth.password.expose().to_owned(),
    };
    Ok((auth.username.clone(), password))
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>, RemoteWriteError> {
    fs::read(path).map_err(|error| setting(&format!("{what}: {}", path.display()), error))
}

fn setting(what: &str, error: impl std::error::Error + Send + Sync + 'static) -> RemoteWriteError {
    RemoteWriteError::Setting { what: what.to_owned(), source: Some(Box::new(error)) }
}
