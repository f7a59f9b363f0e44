//! From settings to a client.

use std::fmt::Display;
use std::fs;
use std::time::Duration;

use http::Uri;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3ConditionalPut};
use object_store::{Certificate, ClientOptions, RetryConfig};

use super::credentials::Credentials;
use super::{Limits, SettingError};
use crate::config::{PathStyle, S3Config};
use crate::store::path;

/// A bucket's settings, completed.
pub(super) struct Settings {
    bucket: String,
    /// Empty, or ends with `/`.
    pub(super) prefix: String,
    /// URL without the bucket; none for AWS.
    endpoint: Option<String>,
    region: String,
    virtual_host: bool,
    certificates: Vec<Certificate>,
    pub(super) credentials: Credentials,
}

impl Settings {
    pub(super) fn new(config: &S3Config, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingError> {
        check(config)?;
        let set = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|value| !value.is_empty()));
        let or_variable =
            |value: &String, names: &[&str]| if value.is_empty() { set(names) } else { Some(value.clone()) };
        let endpoint = or_variable(&config.endpoint, &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
        let endpoint = endpoint.map(|endpoint| url(&endpoint, config.insecure)).transpose()?;
        let region = or_variable(&config.region, &["AWS_REGION", "AWS_DEFAULT_REGION"]);
        let region = region.or_else(|| region_of(endpoint.as_deref()?));
        // What minio-go, and so Tempo, does: other stores seldom have a name for each bucket.
        let aws = endpoint.as_ref().is_none_or(|endpoint| endpoint.contains(".amazonaws.com"));
        let prefix = config.prefix.trim_matches('/');
        let certificates = match &config.tls_ca_path {
            None => Vec::new(),
            Some(path) => {
                let problem = |error: &dyn Display| SettingError {
                    key: "tls_ca_path",
                    problem: format!("{}: {error}", path.display()),
                };
                let pem = fs::read(path).map_err(|error| problem(&error))?;
                let found = Certificate::from_pem_bundle(&pem).map_err(|error| problem(&error))?;
                if found.is_empty() {
                    return Err(problem(&"expected certificates in PEM"));
                }
                found
            }
        };
        Ok(Self {
            bucket: config.bucket.clone(),
            prefix: if prefix.is_empty() { String::new() } else { format!("{prefix}/") },
            endpoint,
            region: region.unwrap_or_else(|| "us-east-1".to_owned()),
            virtual_host: match config.forcepathstyle {
                PathStyle::Auto => aws,
                PathStyle::Path => false,
                PathStyle::VirtualHost => true,
            },
            certificates,
            credentials: Credentials::find(config, variable)?,
        })
    }

    /// Bucket and endpoint, for people.
    pub(super) fn place(&self) -> String {
        let endpoint = self.endpoint.as_deref().unwrap_or("AWS");
        let Self { bucket, prefix, region, .. } = self;
        format!("`{}` at {endpoint} (region {region})", format!("{bucket}/{prefix}").trim_end_matches('/'))
    }

    pub(super) fn client(&self, limits: Limits) -> Result<AmazonS3, SettingError> {
        let options = ClientOptions::new()
            .with_allow_http(self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")))
            .with_connect_timeout(limits.attempt.min(Duration::from_secs(5)))
            .with_timeout(limits.attempt);
        let options = self.certificates.iter().cloned().fold(options, ClientOptions::with_root_certificate);
        // One place decides what is tried again: `io::attempts`.
        let retry = RetryConfig { max_retries: 0, retry_timeout: limits.attempt, ..RetryConfig::default() };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.bucket)
            .with_region(&self.region)
            .with_virtual_hosted_style_request(self.virtual_host)
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_client_options(options)
            .with_retry(retry);
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(self.bucket_endpoint(endpoint));
        }
        let unusable = |error: object_store::Error| SettingError { key: "bucket", problem: error.to_string() };
        self.credentials.apply(builder).build().map_err(unusable)
    }

    /// With virtual hosts the bucket is the first part of the host's name.
    fn bucket_endpoint(&self, endpoint: &str) -> String {
        match endpoint.split_once("://") {
            Some((scheme, host)) if self.virtual_host => format!("{scheme}://{}.{host}", self.bucket),
            _ => endpoint.to_owned(),
        }
    }
}

/// AWS's hosts name their region.
fn region_of(endpoint: &str) -> Option<String> {
    let region = endpoint.strip_prefix("https://s3.")?.strip_suffix(".amazonaws.com")?;
    Some(region.to_owned())
}

/// What must be there, and what belongs together.
fn check(config: &S3Config) -> Result<(), SettingError> {
    let problem = |key, problem: String| Err(SettingError { key, problem });
    let S3Config { bucket, prefix, access_key, secret_key, session_token, .. } = config;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if bucket.is_empty() || !bucket.bytes().all(allowed) {
        return problem("bucket", format!("expected the name of a bucket, found `{bucket}`"));
    }
    if access_key.is_empty() && !secret_key.is_empty() {
        return problem("access_key", "expected, because secret_key is set".to_owned());
    }
    if secret_key.is_empty() && !access_key.is_empty() {
        return problem("secret_key", "expected, because access_key is set".to_owned());
    }
    if access_key.is_empty() && !session_token.is_empty() {
        return problem("session_token", "expected only with access_key and secret_key".to_owned());
    }
    let prefix = prefix.trim_matches('/');
    if prefix.len() > 100 || (!prefix.is_empty() && path::check(prefix).is_err()) {
        return problem("prefix", format!("expected at most 100 bytes such as `coati/production`, found `{prefix}`"));
    }
    Ok(())
}

/// Tempo's `host:port`, or a URL.
fn url(endpoint: &str, insecure: bool) -> Result<String, SettingError> {
    let url = match endpoint.split_once("://") {
        Some(_) => endpoint.to_owned(),
        None => format!("{}://{endpoint}", if insecure { "http" } else { "https" }),
    };
    let url = url.trim_end_matches('/');
    let sound = |uri: &Uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && matches!(uri.path(), "" | "/")
            && uri.query().is_none()
    };
    match url.parse::<Uri>() {
        Ok(uri) if sound(&uri) && !url.contains('@') => Ok(url.to_owned()),
        _ if url.contains('@') => Err(SettingError {
            key: "endpoint",
            problem: "expected no user and password; keys belong into access_key and secret_key".to_owned(),
        }),
        _ => Err(SettingError {
            key: "endpoint",
            problem: format!("expected a host, host:port or URL such as `minio:9000`, found `{endpoint}`"),
        }),
    }
}
