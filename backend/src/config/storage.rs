//! Where blocks lie.

use std::fmt;
use std::path::PathBuf;

use serde::Deserialize;

use super::value::{Value, text};

/// Where blocks lie.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// Which kind of store.
    #[serde(deserialize_with = "text")]
    pub backend: StorageBackend,
    /// The bucket of `backend: s3`.
    pub s3: S3Config,
}

/// Kinds of stores.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum StorageBackend {
    /// The directory `store` of the data directory.
    #[default]
    Local,
    /// A bucket.
    S3,
}

/// A bucket. Keys that Tempo has too mean the same there, and what is empty is looked for as said.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// Name of the bucket; it must be there.
    #[serde(deserialize_with = "text")]
    pub bucket: String,
    /// Put before every path, with a `/`.
    #[serde(deserialize_with = "text")]
    pub prefix: String,
    /// Host, host and port, or URL. Else `AWS_ENDPOINT_URL`, else AWS.
    #[serde(deserialize_with = "text")]
    pub endpoint: String,
    /// Else `AWS_REGION`, else `us-east-1`.
    #[serde(deserialize_with = "text")]
    pub region: String,
    /// With `secret_key`. Else `credentials_file`, `AWS_ACCESS_KEY_ID`, what AWS gives to a pod, a task or an instance.
    #[serde(deserialize_with = "text")]
    pub access_key: Secret,
    /// Belongs to `access_key`.
    #[serde(deserialize_with = "text")]
    pub secret_key: Secret,
    /// Of credentials that end, beside `access_key` and `secret_key`.
    #[serde(deserialize_with = "text")]
    pub session_token: Secret,
    /// A file with keys, in the format of `~/.aws/credentials`; its profile `default` counts.
    #[serde(deserialize_with = "text")]
    pub credentials_file: Option<PathBuf>,
    /// Whether an endpoint that is no URL speaks HTTP without TLS.
    #[serde(deserialize_with = "text")]
    pub insecure: bool,
    /// Where the bucket's name stands in requests.
    #[serde(deserialize_with = "text")]
    pub forcepathstyle: PathStyle,
    /// Certificates, in PEM, that are trusted beside those of the system.
    #[serde(deserialize_with = "text")]
    pub tls_ca_path: Option<PathBuf>,
}

/// Where the name of a bucket stands in a request.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum PathStyle {
    /// In the host's name at AWS, else in the path.
    #[default]
    Auto,
    /// In the path.
    Path,
    /// In the host's name.
    VirtualHost,
}

/// Something that no log and no message may show.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct Secret(String);

impl Secret {
    /// What it is.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "none" } else { "secret" })
    }
}

impl Value for Secret {
    const EXPECTED: &'static str = "a text";

    fn from_text(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

impl Value for String {
    const EXPECTED: &'static str = "a text";

    fn from_text(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
}

impl Value for Option<PathBuf> {
    const EXPECTED: &'static str = "a file";

    fn from_text(text: &str) -> Option<Self> {
        Some((!text.is_empty()).then(|| text.into()))
    }
}

impl Value for StorageBackend {
    const EXPECTED: &'static str = "`local` or `s3`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "local" => Some(Self::Local),
            "s3" => Some(Self::S3),
            _ => None,
        }
    }
}

impl Value for PathStyle {
    const EXPECTED: &'static str = "`auto`, `true` or `false`";

    fn from_text(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "true" => Some(Self::Path),
            "false" => Some(Self::VirtualHost),
            _ => None,
        }
    }
}
