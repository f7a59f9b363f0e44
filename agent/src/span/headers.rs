//! Headers that spans show.

use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value};

use crate::discover::Pattern;

/// Headers of one message that are shown at most.
const MAX_HEADERS: usize = 32;
/// What stands for a value that nobody should see.
const REDACTED: &str = "REDACTED";

/// Parts of names whose values let somebody in, or say who somebody is. A part, because of `x-amz-security-token` and
/// the like.
const SENSITIVE: [&str; 16] = [
    "api-key",
    "apikey",
    "auth",
    "cookie",
    "credential",
    "csrf",
    "forwarded",
    "jwt",
    "passw",
    "real-ip",
    "secret",
    "session",
    "signature",
    "token",
    "x-client-ip",
    "xsrf",
];

/// Which headers are shown: patterns of their names in lower case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeaderConfig {
    /// Of requests.
    pub request: Vec<Pattern>,
    /// Of responses.
    pub response: Vec<Pattern>,
    /// Show what may be secret too.
    pub shows_sensitive: bool,
}

impl HeaderConfig {
    /// True if headers are asked for: then the decoder must keep them.
    pub fn wants_any(&self) -> bool {
        !(self.request.is_empty() && self.response.is_empty())
    }

    /// Adds the attributes `PREFIX.NAME` of the headers that `patterns` allow; each is a list, as a header may come
    /// several times.
    pub(super) fn capture<'a>(
        &self,
        patterns: &[Pattern],
        prefix: &str,
        headers: impl Iterator<Item = (&'a str, &'a str)>,
        attributes: &mut Vec<KeyValue>,
    ) {
        if patterns.is_empty() {
            return;
        }
        let first = attributes.len();
        for (name, value) in headers {
            let name = name.to_ascii_lowercase();
            if !patterns.iter().any(|pattern| pattern.is_match(&name)) {
                continue;
            }
            let is_hidden = !self.shows_sensitive && is_sensitive(&name);
            let value = if is_hidden { REDACTED } else { value };
            let value = AnyValue { value: Some(Value::StringValue(value.to_owned())) };
            let key = format!("{prefix}.{name}");
            let captured = attributes.get_mut(first..).unwrap_or_default();
            let has_room = captured.len() < MAX_HEADERS;
            match captured.iter_mut().find(|attribute| attribute.key == key) {
                Some(KeyValue { value: Some(AnyValue { value: Some(Value::ArrayValue(list)) }), .. }) => {
                    list.values.push(value);
                }
                _ if has_room => {
                    let list = Value::ArrayValue(ArrayValue { values: vec![value] });
                    attributes.push(KeyValue {
                        key,
                        value: Some(AnyValue { value: Some(list) }),
                        ..KeyValue::default()
                    });
                }
                _ => {}
            }
        }
    }
}

/// `name` is in lower case.
fn is_sensitive(name: &str) -> bool {
    // `:authority` and `www-authenticate`'s challenge are no secrets, but the latter is near enough to one.
    SENSITIVE.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn captured(config: &HeaderConfig, headers: &[(&str, &str)]) -> Vec<(String, Vec<String>)> {
        let mut attributes = Vec::new();
        config.capture(&config.request, "http.request.header", headers.iter().copied(), &mut attributes);
        let text = |value: AnyValue| match value.value {
            Some(Value::StringValue(text)) => text,
            other => panic!("{other:?}"),
        };
        let list = |attribute: KeyValue| match attribute.value.and_then(|value| value.value) {
            Some(Value::ArrayValue(list)) => (attribute.key, list.values.into_iter().map(text).collect()),
            other => panic!("{other:?}"),
        };
        attributes.into_iter().map(list).collect()
    }

    fn config(patterns: &[&str]) -> HeaderConfig {
        let request = patterns.iter().map(|pattern| Pattern::glob(pattern).unwrap()).collect();
        HeaderConfig { request, ..HeaderConfig::default() }
    }

    const HEADERS: [(&str, &str); 6] = [
        ("Host", "shop"),
        ("X-Request-ID", "7"),
        ("X-Tag", "a"),
        ("Authorization", "Bearer abc"),
        ("x-tag", "b"),
        ("Cookie", "id=1"),
    ];

    #[rstest]
    #[case::none(&[], &[])]
    #[case::by_name(&["x-request-id"], &[("http.request.header.x-request-id", &["7"][..])])]
    #[case::by_pattern(
        &["x-*"],
        &[("http.request.header.x-request-id", &["7"][..]), ("http.request.header.x-tag", &["a", "b"][..])]
    )]
    #[case::secrets_are_hidden(
        &["{auth,co}*"],
        &[("http.request.header.authorization", &["REDACTED"][..]), ("http.request.header.cookie", &["REDACTED"][..])]
    )]
    fn captures(#[case] patterns: &[&str], #[case] expected: &[(&str, &[&str])]) {
        let expected: Vec<(String, Vec<String>)> = expected
            .iter()
            .map(|(key, values)| ((*key).to_owned(), values.iter().map(|value| (*value).to_owned()).collect()))
            .collect();
        assert_eq!(captured(&config(patterns), &HEADERS), expected);
    }

    #[test]
    fn secrets_are_shown_to_who_asks_for_them() {
        let config = HeaderConfig { shows_sensitive: true, ..config(&["authorization"]) };
        assert_eq!(captured(&config, &HEADERS)[0].1, ["Bearer abc"]);
    }

    #[rstest]
    #[case("authorization", true)]
    #[case("proxy-authorization", true)]
    #[case("cookie", true)]
    #[case("set-cookie", true)]
    #[case("x-api-key", true)]
    #[case("x-amz-security-token", true)]
    #[case("x-auth-user", true)]
    #[case("x-csrf-token", true)]
    #[case("x-forwarded-for", true)]
    #[case("x-real-ip", true)]
    #[case("content-type", false)]
    #[case("x-request-id", false)]
    #[case("accept-encoding", false)]
    #[case("x-scope-orgid", false)]
    fn sensitive_names(#[case] name: &str, #[case] expected: bool) {
        assert_eq!(is_sensitive(name), expected);
    }

    #[test]
    fn there_are_not_endlessly_many() {
        let names: Vec<String> = (0..100).map(|number| format!("x-{number}")).collect();
        let headers: Vec<_> = names.iter().map(|name| (name.as_str(), "v")).collect();
        assert_eq!(captured(&config(&["*"]), &headers).len(), MAX_HEADERS);
    }
}
