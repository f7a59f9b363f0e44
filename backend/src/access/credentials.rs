//! Tokens and passwords: where they come from, and whether a request has one of them.
//!
//! Only digests are kept. Each request is compared with all of them, in the same time whatever it shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::AccessError;
use super::reload::Reloaded;
use crate::config::{AuthConfig, CredentialConfig, ListenerName};
use crate::tenant::{Tenancy, TenantError};

/// SHA-256 of a token, or of `user:password`.
type Digest = [u8; 32];

/// How a request shows who it is from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Scheme {
    /// `Authorization: Bearer …`
    Bearer,
    /// `Authorization: Basic …`
    Basic,
}

/// One who may come in.
#[derive(Debug)]
pub(super) struct Credential {
    pub(super) scheme: Scheme,
    digests: Reloaded<Vec<Digest>>,
    /// None: all.
    tenants: Option<Vec<Arc<str>>>,
}

/// Where a secret stands.
enum Source {
    File(PathBuf),
    Text(String),
}

/// What a request shows.
struct Shown {
    scheme: Scheme,
    digest: Digest,
}

impl Credential {
    /// Those for this listener.
    pub(super) fn open(
        listener: ListenerName,
        config: &AuthConfig,
        multitenancy: bool,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<Self>, AccessError> {
        let here = |of: &CredentialConfig| of.listeners.is_empty() || of.listeners.contains(&listener);
        let all = config.credentials.iter().enumerate().filter(|(_, of)| here(of));
        all.map(|(index, of)| Self::read(index, of, multitenancy, variable)).collect()
    }

    fn read(
        index: usize,
        config: &CredentialConfig,
        multitenancy: bool,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, AccessError> {
        let wrong = |problem| AccessError::Credential { index, problem };
        let (token_file, password_file) = (&config.token_file, &config.password_file);
        let (token_env, password_env) = (&config.token_env, &config.password_env);
        let has_token = token_file.is_some() || !token_env.is_empty();
        let has_password = password_file.is_some() || !password_env.is_empty() || !config.username.is_empty();
        let (scheme, file, name, prefix) = match (has_token, has_password) {
            (true, false) => (Scheme::Bearer, token_file, token_env, String::new()),
            (false, true) if config.username.is_empty() || config.username.contains(':') => {
                return Err(wrong("expected a `username` without a colon"));
            }
            (false, true) => (Scheme::Basic, password_file, password_env, format!("{}:", config.username)),
            _ => {
                return Err(wrong(
                    "expected a token or a password: `token_file`, `token_env`, or `username` with `password_file` or `password_env`",
                ));
            }
        };
        let source = match (file, name.is_empty()) {
            (Some(path), true) => Source::File(path.clone()),
            (None, false) => Source::Text(
                variable(name)
                    .filter(|text| !text.is_empty())
                    .ok_or_else(|| AccessError::Variable { index, name: name.clone() })?,
            ),
            (Some(_), false) => return Err(wrong("expected a file or a variable, found both")),
            (None, true) => return Err(wrong("expected `password_file` or `password_env`")),
        };
        if !config.tenants.is_empty() && !multitenancy {
            return Err(wrong("tenants: these need `multitenancy: true`"));
        }
        let tenant = |name: &String| Tenancy::Multi.tenant(Some(name.as_bytes()));
        let tenants = config.tenants.iter().map(tenant).collect::<Result<Vec<_>, TenantError>>();
        let tenants = tenants.map_err(|source| AccessError::Tenant { index, source })?;
        let digests = match source {
            Source::Text(text) => {
                let digests = digests(&prefix, &text);
                Reloaded::new(Vec::new(), move || Ok(digests.clone()))
            }
            Source::File(path) => Reloaded::new(vec![path.clone()], move || read_digests(&prefix, &path)),
        };
        Ok(Self { scheme, digests: digests?, tenants: (!tenants.is_empty()).then_some(tenants) })
    }

    /// Looks whether its file has changed.
    pub(super) fn refresh(&self) -> Result<bool, AccessError> {
        self.digests.refresh()
    }

    /// Tenants that it is for; none if for all.
    pub(super) fn tenants(&self) -> Option<&[Arc<str>]> {
        self.tenants.as_deref()
    }

    fn fits(&self, shown: &Shown) -> bool {
        let equal = self
            .digests
            .get()
            .iter()
            .fold(0, |equal, digest| equal | digest.as_slice().ct_eq(shown.digest.as_slice()).unwrap_u8());
        equal == 1 && self.scheme == shown.scheme
    }
}

/// The one of `credentials` that this `Authorization` header shows.
pub(super) fn find<'c>(credentials: &'c [Credential], header: &[u8]) -> Option<&'c Credential> {
    let shown = shown(header)?;
    // All are compared, whichever fits.
    let mut found = None;
    for credential in credentials {
        if credential.fits(&shown) {
            found = found.or(Some(credential));
        }
    }
    found
}

fn shown(header: &[u8]) -> Option<Shown> {
    let space = header.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = header.split_at_checked(space)?;
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        Some(Shown { scheme: Scheme::Bearer, digest: Sha256::digest(rest).into() })
    } else if scheme.eq_ignore_ascii_case(b"basic") {
        let text = BASE64_STANDARD.decode(rest).ok()?;
        Some(Shown { scheme: Scheme::Basic, digest: Sha256::digest(text).into() })
    } else {
        None
    }
}

fn read_digests(prefix: &str, path: &Path) -> Result<Vec<Digest>, AccessError> {
    let text = fs::read_to_string(path).map_err(|source| AccessError::Unreadable { path: path.to_owned(), source })?;
    let digests = digests(prefix, &text);
    if digests.is_empty() { Err(AccessError::NoSecret { path: path.to_owned() }) } else { Ok(digests) }
}

/// One a line, so that a new one can be valid beside the old one for a while.
fn digests(prefix: &str, text: &str) -> Vec<Digest> {
    let secrets = text.lines().map(str::trim).filter(|line| !line.is_empty());
    secrets.map(|secret| Sha256::digest(format!("{prefix}{secret}")).into()).collect()
}
