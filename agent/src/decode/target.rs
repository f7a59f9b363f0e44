//! The target of a request line (RFC 9112 §3.2).

use super::http1::Field;

/// The forms of a target; `origin` and `absolute` differ only in what is there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Target {
    /// `/path?query` or `scheme://authority/path?query`.
    Path {
        /// Scheme of the absolute form.
        scheme: Option<Field>,
        /// Authority of the absolute form, user information included.
        authority: Option<Field>,
        /// Path; `None` if an absolute target has an empty one.
        path: Option<Field>,
        /// Query without the question mark.
        query: Option<Field>,
    },
    /// `host:port`, only in `CONNECT`.
    Authority(Field),
    /// `*`, only in `OPTIONS`.
    Asterisk,
    /// Of HTTP/2: the path is not known.
    Unknown {
        /// Authority, if it is.
        authority: Option<Field>,
    },
}

impl Target {
    /// Splits `target`; `field` gives the place of a piece of it.
    pub(super) fn parse(target: &str, method: &str, field: impl Fn(&[u8]) -> Field) -> Self {
        let field = |part: &str| field(part.as_bytes());
        if method == "CONNECT" {
            return Self::Authority(field(target));
        }
        if target == "*" {
            return Self::Asterisk;
        }
        let target = target.split_once('#').map_or(target, |(before_fragment, _)| before_fragment);
        let (before_query, query) = match target.split_once('?') {
            Some((before, query)) => (before, Some(field(query))),
            None => (target, None),
        };
        let absolute = if target.starts_with('/') { None } else { before_query.split_once("://") };
        let Some((scheme, rest)) = absolute else {
            return Self::Path { scheme: None, authority: None, path: Some(field(before_query)), query };
        };
        let path_at = rest.find('/').unwrap_or(rest.len());
        let (authority, path) = rest.split_at(path_at);
        Self::Path {
            scheme: Some(field(scheme)),
            authority: Some(field(authority)),
            path: if path.is_empty() { None } else { Some(field(path)) },
            query,
        }
    }
}
