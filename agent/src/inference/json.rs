//! Values of an object's keys in JSON that may be cut at either end.
//!
//! What the kernel copies of a body is its start and its end: neither is a document. [`Scanner`] walks over tokens, knows
//! how deep it is, and tells of the scalars at the paths that are asked for; it stops at the cut. [`tail`] finds scalars
//! by their keys in the end of a body, where the depth is not known.

use std::borrow::Cow;

/// Deepest nesting that is walked into.
const DEPTH: usize = 64;

/// A scalar. A string that is cut is none.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    /// A string, escapes resolved.
    Text(Cow<'a, str>),
    /// A number.
    Number(f64),
    /// `true` or `false`.
    Bool(bool),
    /// `null`
    Null,
}

/// The scalars of the document that begins with `bytes`, with the keys that lead to each: as far as the bytes go.
/// Places in arrays have no key. `take` says whether it wants more. The keys that lead to a string that the bytes end in,
/// and what there is of it.
pub(super) fn scan<'a>(
    bytes: &'a [u8],
    mut take: impl FnMut(&[Cow<'a, str>], Scalar<'a>) -> bool,
) -> Option<(Vec<Cow<'a, str>>, String)> {
    let mut scanner = Scanner { bytes, at: 0 };
    let mut path: Vec<Cow<'a, str>> = Vec::new();
    // What is open: an object, or an array.
    let mut open: Vec<bool> = Vec::new();
    let mut key: Option<Cow<'a, str>> = None;
    let mut is_named = Vec::new();
    while let Some(token) = scanner.next() {
        let has_keys = open.last().copied().unwrap_or(false);
        match token {
            Token::Open(is_object) => {
                if open.len() >= DEPTH {
                    return None;
                }
                open.push(is_object);
                is_named.push(key.is_some());
                path.extend(key.take());
            }
            Token::Close(is_object) => {
                if open.pop() != Some(is_object) {
                    return None;
                }
                if is_named.pop() == Some(true) {
                    path.pop();
                }
                key = None;
            }
            Token::Comma => key = None,
            Token::Colon => {}
            Token::Scalar(Scalar::Text(text)) if has_keys && key.is_none() => key = Some(text),
            Token::Scalar(scalar) => {
                let has_key = key.is_some();
                path.extend(key.take());
                let wants_more = take(&path, scalar);
                if has_key {
                    path.pop();
                }
                if !wants_more {
                    return None;
                }
            }
        }
    }
    let is_value = !open.last().copied().unwrap_or(false) || key.is_some();
    path.extend(key);
    Some((path, scanner.cut_string()?)).filter(|_| is_value)
}

/// The last scalar that stands behind `"key":` in the end of a body.
pub(super) fn last<'a>(bytes: &'a [u8], key: &str) -> Option<Scalar<'a>> {
    let quoted = [b"\"", key.as_bytes(), b"\""].concat();
    let mut places = (0..bytes.len().saturating_sub(quoted.len())).rev();
    places.find_map(|place| {
        let rest = bytes.get(place..)?.strip_prefix(&quoted[..])?.trim_ascii_start();
        // Within a string the quotes of a key are escaped.
        if place > 0 && bytes.get(place - 1) == Some(&b'\\') {
            return None;
        }
        let mut scanner = Scanner { bytes: rest.strip_prefix(b":")?, at: 0 };
        match scanner.next()? {
            Token::Scalar(scalar) => Some(scalar),
            _ => None,
        }
    })
}

/// The last number behind a key.
pub(super) fn last_number(bytes: &[u8], key: &str) -> Option<f64> {
    match last(bytes, key)? {
        Scalar::Number(number) => Some(number),
        _ => None,
    }
}

/// The last count behind a key.
pub(super) fn last_count(bytes: &[u8], key: &str) -> Option<u64> {
    last_number(bytes, key).and_then(count)
}

/// The last text behind a key.
pub(super) fn last_text(bytes: &[u8], key: &str) -> Option<String> {
    match last(bytes, key)? {
        Scalar::Text(text) => Some(text.into_owned()),
        _ => None,
    }
}

/// A number that counts something.
pub(super) fn count(number: f64) -> Option<u64> {
    (number >= 0.0 && number.fract() == 0.0 && number < 9e15).then_some(number as u64)
}

enum Token<'a> {
    /// Of an object, else of an array.
    Open(bool),
    Close(bool),
    Comma,
    Colon,
    Scalar(Scalar<'a>),
}

struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Scanner<'a> {
    /// The next token; `None` at the end, at a token that may be cut, and at what is no JSON.
    fn next(&mut self) -> Option<Token<'a>> {
        while self.peek()?.is_ascii_whitespace() {
            self.at += 1;
        }
        let token = match self.peek()? {
            b'{' => Token::Open(true),
            b'[' => Token::Open(false),
            b'}' => Token::Close(true),
            b']' => Token::Close(false),
            b',' => Token::Comma,
            b':' => Token::Colon,
            b'"' => return self.string().map(Scalar::Text).map(Token::Scalar),
            _ => return self.word().map(Token::Scalar),
        };
        self.at += 1;
        Some(token)
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn string(&mut self) -> Option<Cow<'a, str>> {
        let start = self.at + 1;
        let mut end = start;
        let mut has_escapes = false;
        loop {
            match self.bytes.get(end)? {
                b'"' => break,
                b'\\' => {
                    has_escapes = true;
                    end += 2;
                }
                _ => end += 1,
            }
        }
        self.at = end + 1;
        if has_escapes {
            // The quotes too: then it is a document.
            return serde_json::from_slice::<String>(self.bytes.get(start - 1..=end)?).ok().map(Cow::Owned);
        }
        Some(String::from_utf8_lossy(self.bytes.get(start..end)?))
    }

    /// What there is of a string that the bytes end in.
    fn cut_string(&self) -> Option<String> {
        let rest = self.bytes.get(self.at..)?.strip_prefix(b"\"")?;
        // It may be cut within a character or an escape, of which the longest has 12 bytes.
        (0..=12.min(rest.len())).find_map(|cut| {
            let quoted = [b"\"", rest.get(..rest.len() - cut)?, b"\""].concat();
            serde_json::from_slice(&quoted).ok()
        })
    }

    /// A number or a name. One that reaches the end may go on behind it.
    fn word(&mut self) -> Option<Scalar<'a>> {
        let rest = self.bytes.get(self.at..)?;
        let length = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']') || byte.is_ascii_whitespace())?;
        let word = std::str::from_utf8(rest.get(..length)?).ok()?;
        self.at += length;
        match word {
            "true" => Some(Scalar::Bool(true)),
            "false" => Some(Scalar::Bool(false)),
            "null" => Some(Scalar::Null),
            _ if word.starts_with(|letter: char| letter == '-' || letter.is_ascii_digit()) => {
                word.parse().ok().map(Scalar::Number)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// Every scalar, as `a.b=value`.
    fn all(bytes: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        scan(bytes, |path, scalar| {
            let value = match scalar {
                Scalar::Text(text) => text.into_owned(),
                Scalar::Number(number) => number.to_string(),
                Scalar::Bool(value) => value.to_string(),
                Scalar::Null => "null".to_owned(),
            };
            found.push(format!("{}={value}", path.join(".")));
            true
        });
        found
    }

    const REQUEST: &str = r#"{"model": "llama3.2:1b", "stream": true, "options": {"seed": 1, "model": "not this"},
        "messages": [{"role": "user", "content": "say \"model\": \"x\" {[ \u00e9 \\"}], "n": -1.5e3, "z": null, "last": 7 }"#;

    #[test]
    fn scalars_have_the_keys_that_lead_to_them() {
        let expected = [
            "model=llama3.2:1b",
            "stream=true",
            "options.seed=1",
            "options.model=not this",
            "messages.role=user",
            "messages.content=say \"model\": \"x\" {[ é \\",
            "n=-1500",
            "z=null",
            "last=7",
        ];
        assert_eq!(all(REQUEST.as_bytes()), expected);
    }

    /// A cut document tells the beginning of what the whole one does, and nothing else.
    #[test]
    fn a_cut_takes_scalars_from_the_end_only() {
        let whole = all(REQUEST.as_bytes());
        for length in 0..=REQUEST.len() {
            let found = all(&REQUEST.as_bytes()[..length]);
            assert_eq!(found, whole[..found.len()], "{length} bytes");
        }
    }

    #[rstest]
    #[case::nothing("", "model", None)]
    #[case::in_the_end(r#"garbage"}, "eval_count": 12, "x": {"y": 1}}"#, "eval_count", Some(12))]
    #[case::the_last_one(r#""n": 1}} {"n": 2}"#, "n", Some(2))]
    #[case::in_a_text(r#"{"n": 3, "text": "a \"n\": 4 }"}"#, "n", Some(3))]
    #[case::cut_behind_it(r#""n": 12"#, "n", None)]
    #[case::no_number(r#""n": "12","#, "n", None)]
    #[case::not_a_count(r#""n": 1.5}"#, "n", None)]
    #[case::other_key(r#""eval_counts": 12}"#, "eval_count", None)]
    #[case::end_of_other_key(r#""prompt_eval_count": 12}"#, "eval_count", None)]
    fn the_last_value_of_a_key(#[case] bytes: &str, #[case] key: &str, #[case] expected: Option<u64>) {
        assert_eq!(last_count(bytes.as_bytes(), key), expected);
    }

    #[test]
    fn too_deep_is_given_up() {
        let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(all(deep.as_bytes()).is_empty());
    }

    proptest! {
        #[test]
        fn takes_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300), key in "[a-z]{0,3}") {
            let _ = all(&bytes);
            let _ = last(&bytes, &key);
        }

        /// As serde_json reads it.
        #[test]
        fn finds_what_serde_finds(keys in prop::collection::vec("[a-z]{1,6}", 1..6), texts in prop::collection::vec(".{0,12}", 6)) {
            let pairs: serde_json::Map<_, _> = keys.iter().zip(&texts).map(|(key, text)| (key.clone(), text.clone().into())).collect();
            let text = serde_json::to_string(&pairs).unwrap();
            let expected: Vec<_> = pairs.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap())).collect();
            prop_assert_eq!(all(text.as_bytes()), expected);
        }
    }
}
