//! Where the keys of a bucket come from.

use std::fmt;
use std::fs;
use std::path::Path;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};

use super::SettingError;
use crate::config::S3Config;

/// Variables that say how to get credentials that change: web identity, containers, the instance's metadata.
const AMBIENT: [&str; 9] = [
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_ENDPOINT_URL_STS",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_METADATA_ENDPOINT",
    "AWS_IMDSV1_FALLBACK",
];

/// Credentials, or how to get some. Shows where they come from, never what they are.
pub(super) enum Credentials {
    /// They do not change.
    Static { source: String, keys: Keys },
    /// What these variables say, in the end the instance's metadata.
    Ambient(Vec<(AmazonS3ConfigKey, String)>),
}

#[derive(Default)]
pub(super) struct Keys {
    access_key: String,
    secret_key: String,
    session_token: String,
}

impl Credentials {
    /// The settings themselves, the file that they name, variables, the file that a variable names, the surroundings.
    pub(super) fn find(config: &S3Config, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, SettingError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        if !config.access_key.is_empty() {
            let keys = Keys {
                access_key: config.access_key.expose().to_owned(),
                secret_key: config.secret_key.expose().to_owned(),
                session_token: config.session_token.expose().to_owned(),
            };
            return Ok(Self::Static { source: "storage.s3.access_key".to_owned(), keys });
        }
        if let Some(path) = &config.credentials_file {
            return Self::from_file(path);
        }
        if let (Some(access_key), Some(secret_key)) = (variable("AWS_ACCESS_KEY_ID"), variable("AWS_SECRET_ACCESS_KEY"))
        {
            let session_token = variable("AWS_SESSION_TOKEN").unwrap_or_default();
            let keys = Keys { access_key, secret_key, session_token };
            return Ok(Self::Static { source: "AWS_ACCESS_KEY_ID".to_owned(), keys });
        }
        if let Some(path) = variable("AWS_SHARED_CREDENTIALS_FILE") {
            return Self::from_file(Path::new(&path));
        }
        let setting = |name: &&str| Some((name.to_ascii_lowercase().parse().ok()?, variable(name)?));
        Ok(Self::Ambient(AMBIENT.iter().filter_map(setting).collect()))
    }

    fn from_file(path: &Path) -> Result<Self, SettingError> {
        let problem = |problem| SettingError { key: "credentials_file", problem };
        let text = fs::read_to_string(path).map_err(|error| problem(format!("{}: {error}", path.display())))?;
        let keys = Keys::parse(&text).ok_or_else(|| {
            problem(format!(
                "{}: expected a section `[default]` with `aws_access_key_id` and `aws_secret_access_key`",
                path.display()
            ))
        })?;
        Ok(Self::Static { source: path.display().to_string(), keys })
    }

    pub(super) fn apply(&self, builder: AmazonS3Builder) -> AmazonS3Builder {
        match self {
            Self::Static { keys: Keys { access_key, secret_key, session_token }, .. } => {
                let builder = builder.with_access_key_id(access_key).with_secret_access_key(secret_key);
                if session_token.is_empty() { builder } else { builder.with_token(session_token) }
            }
            Self::Ambient(settings) => {
                settings.iter().fold(builder, |builder, (key, value)| builder.with_config(*key, value))
            }
        }
    }
}

impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Static { source, .. } => f.write_str(source),
            Self::Ambient(settings) => match settings.first() {
                Some((key, _)) => write!(f, "{}", key.as_ref().to_ascii_uppercase()),
                None => f.write_str("the instance's metadata (no storage.s3.access_key is set)"),
            },
        }
    }
}

impl Keys {
    /// The profile `default` of a file in the format of AWS's own programs.
    fn parse(text: &str) -> Option<Self> {
        let mut keys = Self::default();
        let mut wanted = true;
        for line in text.lines().map(str::trim) {
            if let Some(section) = line.strip_prefix('[') {
                wanted = section.trim_end_matches(']').trim() == "default";
            } else if wanted && let Some((key, value)) = line.split_once('=') {
                let field = match key.trim() {
                    "aws_access_key_id" => &mut keys.access_key,
                    "aws_secret_access_key" => &mut keys.secret_key,
                    "aws_session_token" => &mut keys.session_token,
                    _ => continue,
                };
                value.trim().clone_into(field);
            }
        }
        (!keys.access_key.is_empty() && !keys.secret_key.is_empty()).then_some(keys)
    }
}
