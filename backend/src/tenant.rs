//! Whose data a request is about.

use std::sync::Arc;

/// Tenant of everything while multitenancy is off; the name that Tempo uses.
pub const SINGLE_TENANT: &str = "single-tenant";

/// Header, and gRPC metadata key, that names the tenant.
pub const TENANT_HEADER: &str = "x-scope-orgid";

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
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"!-_.*'()".contains(byte);
        let name = std::str::from_utf8(name).map_err(|_| TenantError::Invalid)?;
        if name.len() > MAX_BYTES || !name.as_bytes().iter().all(allowed) || matches!(name, "." | "..") {
            return Err(TenantError::Invalid);
        }
        Ok(name.into())
    }
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

    #[test]
    fn without_multitenancy_the_header_is_ignored() {
        assert_eq!(&*Tenancy::new(false).tenant(Some(b"a|b")).unwrap(), SINGLE_TENANT);
    }
}
