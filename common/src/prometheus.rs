//! Prometheus' text format.

/// Letters that stand differently between the quotes of a label's value.
const ESCAPED: [(char, &str); 3] = [('\\', "\\\\"), ('"', "\\\""), ('\n', "\\n")];

/// Hands over the value of a label as it stands between quotes, piece by piece.
pub fn label_value(value: &str, mut push: impl FnMut(&str)) {
    for piece in value.split_inclusive(ESCAPED.map(|(letter, _)| letter)) {
        let special = ESCAPED.iter().find_map(|(letter, escaped)| Some((piece.strip_suffix(*letter)?, *escaped)));
        let (plain, escaped) = special.unwrap_or((piece, ""));
        push(plain);
        push(escaped);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::string::String;

    use super::*;

    fn escaped(value: &str) -> String {
        let mut text = String::new();
        label_value(value, |piece| text.push_str(piece));
        text
    }

    #[test]
    fn values_stand_between_quotes() {
        for (value, expected) in [
            ("", ""),
            ("GET /é", "GET /é"),
            ("a\"b\\c\nd", r#"a\"b\\c\nd"#),
            ("\\", r"\\"),
            ("\"\"\n", r#"\"\"\n"#),
            ("\\n", r"\\n"),
        ] {
            assert_eq!(escaped(value), expected);
        }
    }
}
