//! How a server is reached: its certificate, ours, and who we are.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue, RETRY_AFTER, USER_AGENT};
use reqwest::{Certificate, Client, Identity, RequestBuilder, Response, Url};

use super::{ExportError, setting};
use crate::config::{BasicAuth, RemoteWriteConfig, SecretText, TlsConfig};

/// Bytes of an answer that the log shows.
const SHOWN_BYTES: usize = 400;

/// What the configuration says of a server.
#[derive(Debug)]
pub(super) struct Settings<'a> {
    /// The key that holds the URL.
    pub(super) key: &'static str,
    pub(super) url: &'a str,
    pub(super) headers: &'a BTreeMap<String, SecretText>,
    pub(super) basic_auth: Option<&'a BasicAuth>,
    pub(super) tls: &'a TlsConfig,
    pub(super) timeout: Duration,
    /// Whether it speaks HTTP/2 without being asked.
    pub(super) http2: bool,
}

impl<'a> Settings<'a> {
    pub(super) fn of_remote_write(config: &'a RemoteWriteConfig) -> Self {
        Self {
            key: "url",
            url: &config.url,
            headers: &config.headers,
            basic_auth: config.basic_auth.as_ref(),
            tls: &config.tls_config,
            timeout: config.remote_timeout,
            http2: false,
        }
    }
}

/// A server that requests are posted to.
#[derive(Debug)]
pub(super) struct Connection {
    client: Client,
    url: Url,
    basic_auth: Option<(String, String)>,
}

impl Connection {
    /// Fails if the settings, or files that they name, cannot be used.
    pub(super) fn new(settings: &Settings<'_>) -> Result<Self, ExportError> {
        let Settings { key, url, headers: own, basic_auth, tls, timeout, http2 } = settings;
        let url = Url::parse(url).map_err(|error| setting(&format!("{key}: expected a URL"), error))?;
        if !matches!(url.scheme(), "http" | "https") {
            let what = format!("{key}: expected a URL that begins with `http://` or `https://`");
            return Err(ExportError::Setting { what, source: None });
        }
        let mut headers = HeaderMap::new();
        let agent = concat!("coati-backend/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(agent));
        for (name, value) in *own {
            let what = format!("headers: {name}");
            let mut value = HeaderValue::from_str(value.0.expose()).map_err(|error| setting(&what, error))?;
            value.set_sensitive(true);
            headers.insert(HeaderName::try_from(name.as_str()).map_err(|error| setting(&what, error))?, value);
        }
        let mut client = Client::builder()
            .default_headers(headers)
            .timeout(*timeout)
            .no_proxy()
            .danger_accept_invalid_certs(tls.insecure_skip_verify);
        if *http2 {
            client = client.http2_prior_knowledge();
        }
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
        let basic_auth = basic_auth.map(credentials).transpose()?;
        Ok(Self { client, url, basic_auth })
    }

    pub(super) fn post(&self, body: Vec<u8>) -> RequestBuilder {
        let request = self.client.post(self.url.clone()).body(body);
        match &self.basic_auth {
            Some((user, password)) => request.basic_auth(user, Some(password)),
            None => request,
        }
    }
}

/// How long the server asks to wait.
pub(super) fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The beginning of an answer, on one line.
pub(super) async fn shown(response: Response) -> String {
    let body = response.bytes().await.unwrap_or_default();
    let begin = body.get(..SHOWN_BYTES).unwrap_or(&body);
    String::from_utf8_lossy(begin).trim().replace('\n', " ")
}

fn credentials(auth: &BasicAuth) -> Result<(String, String), ExportError> {
    let password = match &auth.password_file {
        Some(path) => String::from_utf8_lossy(&read("basic_auth.password_file", path)?).trim().to_owned(),
        None => auth.password.expose().to_owned(),
    };
    Ok((auth.username.clone(), password))
}

fn read(what: &str, path: &Path) -> Result<Vec<u8>, ExportError> {
    fs::read(path).map_err(|error| setting(&format!("{what}: {}", path.display()), error))
}
