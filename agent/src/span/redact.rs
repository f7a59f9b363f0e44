//! Takes secrets out of queries.

/// What stands for a value.
const REDACTED: &str = "REDACTED";

/// `query` with every value replaced; names stay, as they tell requests apart. A part without `=` is a name.
pub(super) fn query(query: &str) -> String {
    let mut redacted = String::with_capacity(query.len() + REDACTED.len());
    for part in query.split_inclusive(['&', ';']) {
        let separator = part.len() - part.trim_end_matches(['&', ';']).len();
        let (pair, separator) = part.split_at(part.len() - separator);
        match pair.split_once('=') {
            Some((name, value)) => {
                redacted.push_str(name);
                redacted.push('=');
                if !value.is_empty() {
                    redacted.push_str(REDACTED);
                }
            }
            None => redacted.push_str(pair),
        }
        redacted.push_str(separator);
    }
    redacted
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::one("token=abc", "token=REDACTED")]
    #[case::several("a=1&b=2;c=3", "a=REDACTED&b=REDACTED;c=REDACTED")]
    #[case::no_value("verbose&a=1", "verbose&a=REDACTED")]
    #[case::empty_value("a=&b=1", "a=&b=REDACTED")]
    #[case::value_with_equals("a=b=c", "a=REDACTED")]
    #[case::empty_parts("&&a=1&", "&&a=REDACTED&")]
    #[case::empty("", "")]
    fn values_go(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(query(text), expected);
    }

    proptest! {
        #[test]
        fn no_value_is_left(pairs in proptest::collection::vec(("[a-z]{1,4}", "[0-9]{1,8}"), 0..8)) {
            let text = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
            prop_assert!(!query(&text).contains(|character: char| character.is_ascii_digit()));
        }

        #[test]
        fn any_text_is_taken_and_redacting_twice_changes_nothing(text: String) {
            let once = query(&text);
            prop_assert_eq!(query(&once), once);
        }
    }
}
