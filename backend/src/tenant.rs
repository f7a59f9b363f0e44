//! Whose data a request is about.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Tenant of everything while multitenancy is off; the name that Tempo uses.
pub const SINGLE_TENANT: &str = "single-tenant";

/// Header, and gRPC metadata key, that names the tenant.
pub const TENANT_HEADER: &str = "x-scope-orgid";

/// Most tenants that one request may name.
const MAX_TENANTS: usize = 64;

/// Longest name of a tenant, bytes.
const MAX_BYTES: usize = 150;

/// How the tenant of a request is found.
#[derive(Clone, Debug)]
pub enum Tenancy {
    /// One tenant; the header is ignored.
    Single(Arc<str>),
    /// The header says it, and must be there.
    Multi,
}

/// Why a request has no tenant.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TenantError {
    /// No header.
    #[error("no org id")]
    Missing,
    /// Too long, or with characters that are not allowed.
    #[error("tenant ID '{TENANT_HEADER}' is invalid: at most {MAX_BYTES} letters, digits and !-_.*'() are allowed")]
    Invalid,
    /// Several tenants at once can be read, not written.
    #[error("multiple org IDs present")]
    Multiple,
    /// More than can be asked at once.
    #[error("at most {MAX_TENANTS} org IDs can be asked at once")]
    TooMany,
}

/// Whose data is asked for: at least one tenant.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Tenants {
    first: Arc<str>,
    others: Vec<Arc<str>>,
}

impl Tenants {
    /// All of them, each once.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.first).chain(self.others.iter().map(|tenant| &**tenant))
    }

    /// The first, by the alphabet, and the others.
    pub fn split(&self) -> (&str, &[Arc<str>]) {
        (&self.first, &self.others)
    }
}

impl From<&str> for Tenants {
    fn from(tenant: &str) -> Self {
        Self { first: tenant.into(), others: Vec::new() }
    }
}

impl Tenancy {
    /// One header decides, or none is looked at.
    pub fn new(multitenancy: bool) -> Self {
        if multitenancy { Self::Multi } else { Self::Single(SINGLE_TENANT.into()) }
    }

    /// The tenant of a request with this header.
    pub fn tenant(&self, header: Option<&[u8]>) -> Result<Arc<str>, TenantError> {
        if let Self::Single(tenant) = self {
            return Ok(Arc::clone(tenant));
        }
        let name = header.filter(|name| !name.is_empty()).ok_or(TenantError::Missing)?;
        if name.contains(&b'|') {
            return Err(TenantError::Multiple);
        }
        valid(name)
    }

    /// The tenants of a question: several are joined by `|`.
    pub fn tenants(&self, header: Option<&[u8]>) -> Result<Tenants, TenantError> {
        if let Self::Single(tenant) = self {
            return Ok(Tenants { first: Arc::clone(tenant), others: Vec::new() });
        }
        let names = header.filter(|names| !names.is_empty()).ok_or(TenantError::Missing)?;
        let names = names.split(|byte| *byte == b'|').map(valid).collect::<Result<BTreeSet<_>, _>>()?;
        if names.len() > MAX_TENANTS {
            return Err(TenantError::TooMany);
        }
        let mut names = names.into_iter();
        let first = names.next().ok_or(TenantError::Missing)?;
        Ok(Tenants { first, others: names.collect() })
    }
}

fn valid(name: &[u8]) -> Result<Arc<str>, TenantError> {
    let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"!-_.*'()".contains(byte);
    let name = std::str::from_utf8(name).map_err(|_| TenantError::Invalid)?;
    if name.is_empty() || name.len() > MAX_BYTES || !name.as_bytes().iter().all(allowed) || matches!(name, "." | "..") {
        return Err(TenantError::Invalid);
    }
    Ok(name.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case::plain(Some("team-a_1"), Ok("team-a_1"))]
    #[case::missing(None, Err(TenantError::Missing))]
    #[case::empty(Some(""), Err(TenantError::Missing))]
    #[case::two(Some("a|b"), Err(TenantError::Multiple))]
    #[case::a_way_out_of_the_directory(Some(".."), Err(TenantError::Invalid))]
    #[case::slash(Some("a/b"), Err(TenantError::Invalid))]
    #[case::too_long(
        Some(
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
        ),
        Err(TenantError::Invalid)
    )]
    fn with_multitenancy(#[case] header: Option<&str>, #[case] expected: Result<&str, TenantError>) {
        let tenant = Tenancy::new(true).tenant(header.map(str::as_bytes));
        assert_eq!(tenant.as_deref(), expected.as_deref());
    }

    #[rstest]
    #[case::one(Some("a"), Ok(vec!["a"]))]
    #[case::several(Some("c|a|b|a"), Ok(vec!["a", "b", "c"]))]
    #[case::missing(None, Err(TenantError::Missing))]
    #[case::half(Some("a|"), Err(TenantError::Invalid))]
    #[case::a_way_out(Some("a|.."), Err(TenantError::Invalid))]
    fn of_questions(#[case] header: Option<&str>, #[case] expected: Result<Vec<&str>, TenantError>) {
        let tenants = Tenancy::new(true).tenants(header.map(str::as_bytes));
        assert_eq!(tenants.as_ref().map(|tenants| tenants.iter().collect()).map_err(|error| *error), expected);
    }

    #[test]
    fn too_many_tenants_are_not_asked() {
        let names = |count: usize| (0..count).map(|number| number.to_string()).collect::<Vec<_>>().join("|");
        let ask = |count| Tenancy::new(true).tenants(Some(names(count).as_bytes()));
        assert_eq!(ask(MAX_TENANTS).unwrap().iter().count(), MAX_TENANTS);
        assert_eq!(ask(MAX_TENANTS + 1), Err(TenantError::TooMany));
    }

    #[test]
    fn without_multitenancy_the_header_is_ignored() {
        assert_eq!(&*Tenancy::new(false).tenant(Some(b"a|b")).unwrap(), SINGLE_TENANT);
    }
}
