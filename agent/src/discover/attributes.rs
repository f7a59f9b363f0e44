//! `OTEL_RESOURCE_ATTRIBUTES`, as the OpenTelemetry specification defines it.

use percent_encoding::percent_decode_str;

/// The pairs of `key1=value1,key2=value2`, percent-decoded, in order.
///
/// `None` if any pair is malformed: the specification wants the whole value discarded then, because half of an
/// identity is worse than none.
pub(super) fn parse(text: &str) -> Option<Vec<(String, String)>> {
    text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).map(parse_pair).collect()
}

fn parse_pair(pair: &str) -> Option<(String, String)> {
    let (key, value) = pair.split_once('=')?;
    let key = decode(key.trim())?;
    (!key.is_empty()).then_some(())?;
    Some((key, decode(value.trim())?))
}

fn decode(text: &str) -> Option<String> {
    has_valid_escapes(text).then_some(())?;
    percent_decode_str(text).decode_utf8().ok().map(String::from)
}

/// The decoder lets a `%` that begins no escape through; here it makes the value malformed.
fn has_valid_escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::empty("", &[])]
    #[case::one("service.name=shop", &[("service.name", "shop")])]
    #[case::several("a=1,b=2", &[("a", "1"), ("b", "2")])]
    #[case::spaces(" a = 1 , b = 2 ", &[("a", "1"), ("b", "2")])]
    #[case::trailing_comma("a=1,", &[("a", "1")])]
    #[case::empty_value("a=", &[("a", "")])]
    #[case::equals_in_value("a=b=c", &[("a", "b=c")])]
    #[case::escapes("team=r%26d%2C%20east", &[("team", "r&d, east")])]
    #[case::utf8_escape("city=Z%C3%BCrich", &[("city", "Zürich")])]
    fn parses(#[case] text: &str, #[case] expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!(parse(text), Some(expected));
    }

    #[rstest]
    #[case::no_equals("a=1,b")]
    #[case::no_key("=1")]
    #[case::cut_escape("a=%2")]
    #[case::bad_escape("a=100%zz")]
    #[case::not_utf8("a=%ff")]
    fn discards_the_whole_value(#[case] text: &str) {
        assert_eq!(parse(text), None);
    }

    #[test]
    fn takes_every_prefix() {
        let text = "service.name=shop,team=r%26d,city=Z%C3%BCrich";
        for length in 0..=text.len() {
            if let Some(pairs) = parse(text.get(..length).unwrap()) {
                assert!(pairs.len() <= 3, "{length}");
            }
        }
    }

    proptest! {
        #[test]
        fn takes_any_text(text in ".*") {
            let _ = parse(&text);
        }
    }
}
