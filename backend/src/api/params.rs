//! What stands after the `?`, read and refused as Tempo does.

use axum::extract::Query;
use http::Uri;

use super::error::ApiError;
use crate::live::TraceId;
use crate::query::Window;
use crate::traceql::parse_duration;

/// Parameters of a request. The first of a name counts; an empty one counts as not given.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn of(uri: &Uri) -> Result<Self, ApiError> {
        Query::try_from_uri(uri).map(|Query(params)| Self(params)).map_err(|error| ApiError::bad(error.body_text()))
    }

    /// Parameters that did not come in a URI.
    pub(super) fn of_pairs(pairs: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        (!value.is_empty()).then_some(value)
    }

    /// `start` and `end`, seconds since the epoch.
    pub(super) fn window(&self) -> Result<Window, ApiError> {
        let window = Window { start: self.seconds("start")?, end: self.seconds("end")? };
        if let Window { start: Some(start), end: Some(end) } = window
            && end <= start
        {
            return Err(ApiError::bad(format!(
                "http parameter start must be before end. received start={start} end={end}"
            )));
        }
        Ok(window)
    }

    /// 0 counts as not given.
    fn seconds(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let seconds =
            go_integer("ParseInt", text).map_err(|error| ApiError::bad(format!("invalid {name}: {error}")))?;
        let seconds = u32::try_from(seconds).map_err(|_| {
            ApiError::bad(format!("invalid {name}: strconv.ParseInt: parsing {text:?}: value out of range"))
        })?;
        Ok(Some(u64::from(seconds)).filter(|seconds| *seconds > 0))
    }

    /// A positive count.
    pub(super) fn limit(&self) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.get("limit") else { return Ok(None) };
        let limit = go_integer("Atoi", text).map_err(|error| ApiError::bad(format!("invalid limit: {error}")))?;
        match usize::try_from(limit) {
            Ok(limit @ 1..) => Ok(Some(limit)),
            _ => Err(ApiError::bad("invalid limit: must be a positive number")),
        }
    }

    /// How many traces are left out.
    pub(super) fn offset(&self) -> Result<usize, ApiError> {
        let Some(text) = self.get("offset") else { return Ok(0) };
        let offset = go_integer("Atoi", text).map_err(|error| ApiError::bad(format!("invalid offset: {error}")))?;
        usize::try_from(offset).map_err(|_| ApiError::bad("invalid offset: must be a non-negative number"))
    }

    /// True or false; false if it is not given.
    pub(super) fn flag(&self, name: &str) -> Result<bool, ApiError> {
        match self.get(name) {
            Some("true" | "1") => Ok(true),
            None | Some("false" | "0") => Ok(false),
            Some(other) => Err(ApiError::bad(format!("invalid {name}: {other}, expecting true or false"))),
        }
    }

    /// Spans for each spanset; 0 for all.
    pub(super) fn spans_per_spanset(&self) -> Result<Option<usize>, ApiError> {
        let Some(text) = self.get("spss") else { return Ok(None) };
        let count = go_integer("Atoi", text).map_err(|error| ApiError::bad(format!("invalid spss: {error}")))?;
        let count = usize::try_from(count).map_err(|_| ApiError::bad("invalid spss: must be a non-negative number"))?;
        Ok(Some(count))
    }

    /// A duration of Go, nanoseconds.
    pub(super) fn duration(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let nanos = parse_duration(text.strip_prefix('+').unwrap_or(text));
        let nanos = nanos.and_then(|nanos| u64::try_from(nanos).ok());
        nanos.map(Some).ok_or_else(|| ApiError::bad(format!("invalid {name}: time: invalid duration {text:?}")))
    }

    /// `tags`, in logfmt.
    pub(super) fn tags(&self) -> Result<Vec<(String, String)>, ApiError> {
        let tags =
            logfmt(self.get("tags").unwrap_or_default()).map_err(|e| ApiError::bad(format!("invalid tags: {e}")))?;
        for (index, (key, _)) in tags.iter().enumerate() {
            if tags.iter().skip(index + 1).any(|(other, _)| other == key) {
                return Err(ApiError::bad(format!("invalid tags: tag {key} has been set twice")));
            }
        }
        Ok(tags)
    }
}

/// A number, with the words of Go's `strconv` if it is none.
pub(super) fn go_integer(function: &str, text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("strconv.{function}: parsing {text:?}: invalid syntax"));
    }
    text.parse().map_err(|_| format!("strconv.{function}: parsing {text:?}: value out of range"))
}

/// Most tags in one search.
const MAX_TAGS: usize = 64;

/// Reads `a=b c="d e" f`.
fn logfmt(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut pairs = Vec::new();
    let mut chars = text.chars().enumerate().peekable();
    loop {
        while chars.next_if(|(_, c)| *c <= ' ').is_some() {}
        let Some((at, first)) = chars.peek().copied() else { return Ok(pairs) };
        if first == '=' || first == '"' {
            return Err(format!("unexpected {first:?} at pos {}", at + 1));
        }
        if pairs.len() == MAX_TAGS {
            return Err(format!("more than {MAX_TAGS} tags"));
        }
        let mut key = String::new();
        while let Some((_, c)) = chars.next_if(|(_, c)| *c > ' ' && *c != '=' && *c != '"') {
            key.push(c);
        }
        let mut value = String::new();
        if chars.next_if(|(_, c)| *c == '=').is_some() {
            if chars.next_if(|(_, c)| *c == '"').is_some() {
                loop {
                    match chars.next() {
                        Some((_, '"')) => break,
                        Some((_, '\\')) => value.push(match chars.next() {
                            Some((_, 'n')) => '\n',
                            Some((_, 't')) => '\t',
                            Some((_, 'r')) => '\r',
                            Some((_, c @ ('"' | '\\' | '/'))) => c,
                            _ => return Err("invalid quoted value".to_owned()),
                        }),
                        Some((_, c)) => value.push(c),
                        None => return Err("unterminated quoted value".to_owned()),
                    }
                }
            } else {
                while let Some((_, c)) = chars.next_if(|(_, c)| *c > ' ' && *c != '=' && *c != '"') {
                    value.push(c);
                }
            }
        }
        if let Some((at, c)) = chars.next_if(|(_, c)| *c > ' ') {
            return Err(format!("unexpected {c:?} at pos {}", at + 1));
        }
        pairs.push((key, value));
    }
}

/// Reads the id of a trace; zeros at its front may be missing.
pub(super) fn trace_id(text: &str) -> Result<TraceId, ApiError> {
    let mut id = 0u128;
    let mut digits = 0;
    for (index, c) in text.chars().enumerate() {
        let Some(digit) = c.to_digit(16) else {
            return Err(ApiError::bad(format!(
                "trace IDs can only contain hex characters: invalid character '{c}' at position {}",
                index + 1
            )));
        };
        id = id << 4 | u128::from(digit);
        digits += 1;
    }
    if digits > 32 {
        return Err(ApiError::bad("trace IDs can't be larger than 128 bits"));
    }
    Ok(TraceId(id.to_be_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::empty("", &[])]
    #[case::blank("  ", &[])]
    #[case::pairs("a=b c=d", &[("a", "b"), ("c", "d")])]
    #[case::quoted(r#"a="b c" d="\"\\\n""#, &[("a", "b c"), ("d", "\"\\\n")])]
    #[case::no_value("a b= c", &[("a", ""), ("b", ""), ("c", "")])]
    #[case::dots("service.name=cart", &[("service.name", "cart")])]
    fn reads_tags(#[case] text: &str, #[case] expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        assert_eq!(logfmt(text), Ok(expected));
    }

    #[rstest]
    #[case::no_key("=b", "unexpected '=' at pos 1")]
    #[case::two_signs("a=b=c", "unexpected '=' at pos 4")]
    #[case::quote("a\"b", "unexpected '\"' at pos 2")]
    #[case::open("a=\"b", "unterminated quoted value")]
    #[case::escape("a=\"\\", "invalid quoted value")]
    fn refuses_tags(#[case] text: &str, #[case] error: &str) {
        assert_eq!(logfmt(text), Err(error.to_owned()));
    }

    #[test]
    fn tags_are_limited() {
        assert_eq!(logfmt(&"a=b ".repeat(65)), Err("more than 64 tags".to_owned()));
    }

    #[test]
    fn every_prefix_of_tags_is_survived() {
        let text = r#"a=b service.name="c d\"\\\n" e= f"#;
        for end in 0..text.len() {
            let _ = logfmt(text.get(..end).unwrap());
        }
    }

    #[rstest]
    #[case::whole("000a1b02030405060708090a0b0c0d0e", "000a1b02030405060708090a0b0c0d0e")]
    #[case::odd("a1b02030405060708090a0b0c0d0e", "000a1b02030405060708090a0b0c0d0e")]
    #[case::capitals("ABC", "00000000000000000000000000000abc")]
    fn reads_ids(#[case] text: &str, #[case] id: &str) {
        assert_eq!(trace_id(text).unwrap().to_string(), id);
    }

    #[rstest]
    #[case::letter("12xz", "trace IDs can only contain hex characters: invalid character 'x' at position 3")]
    #[case::space("12 ", "trace IDs can only contain hex characters: invalid character ' ' at position 3")]
    #[case::long("000a1b02030405060708090a0b0c0d0e0", "trace IDs can't be larger than 128 bits")]
    fn refuses_ids(#[case] text: &str, #[case] error: &str) {
        assert_eq!(trace_id(text).unwrap_err().to_string(), error);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            let _ = logfmt(&text);
            let _ = trace_id(&text);
            let _ = go_integer("Atoi", &text);
        }
    }
}
