//! Patterns that rules are made of: shell patterns, and regular expressions where Beyla has them.

use std::fmt;

use globset::{Glob, GlobMatcher};
use regex::{Regex, RegexBuilder};

/// Bytes that a compiled expression may take: a rule is no place for a program.
const REGEX_BYTES: usize = 1 << 20;

/// A pattern, and its text.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: Box<str>,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    Glob(GlobMatcher),
    Regex(Regex),
}

impl Pattern {
    /// A shell pattern of a whole text: `*` matches anything, slashes too, `?` one character, `[a-z]` one of these,
    /// `{a,b}` alternatives. `None` if it is malformed or empty.
    pub fn glob(text: &str) -> Option<Self> {
        Self::of_glob(text, text)
    }

    /// The same for the path of an executable. A pattern without a slash is meant for the file name: `nginx` matches
    /// `/usr/sbin/nginx`.
    pub fn executable(text: &str) -> Option<Self> {
        // `{*beyla,*alloy}` is a list of patterns of whole paths.
        let is_of_path = text.contains('/') || text.starts_with('*') || text.starts_with("{*");
        if is_of_path { Self::glob(text) } else { Self::of_glob(text, &format!("{{{text},*/{text}}}")) }
    }

    /// A regular expression that matches anywhere in a text. `None` if it is malformed or empty.
    pub fn regex(text: &str) -> Option<Self> {
        let regex = RegexBuilder::new(text).size_limit(REGEX_BYTES).build().ok().filter(|_| !text.is_empty())?;
        Some(Self { text: text.into(), matcher: Matcher::Regex(regex) })
    }

    fn of_glob(text: &str, glob: &str) -> Option<Self> {
        let glob = Glob::new(glob).ok().filter(|_| !text.is_empty())?;
        Some(Self { text: text.into(), matcher: Matcher::Glob(glob.compile_matcher()) })
    }

    /// Whether it fits.
    pub fn is_match(&self, text: &str) -> bool {
        match &self.matcher {
            Matcher::Glob(glob) => glob.is_match(text),
            Matcher::Regex(regex) => regex.is_match(text),
        }
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        let is_regex = |pattern: &Self| matches!(pattern.matcher, Matcher::Regex(_));
        self.text == other.text && is_regex(self) == is_regex(other)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::name("nginx", true)]
    #[case::start_of_name("ngin", false)]
    #[case::alternatives("{ollama,nginx}", true)]
    #[case::stars_in_alternatives("{*ollama,*nginx}", true)]
    #[case::path("/usr/*/nginx", true)]
    #[case::star("*ngin*", true)]
    #[case::class("/usr/sbin/ngin[!y]", true)]
    #[case::one_character("ngin?", true)]
    fn executables(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(Pattern::executable(text).unwrap().is_match("/usr/sbin/nginx"), expected);
    }

    #[rstest]
    #[case::anywhere("ngin", true)]
    #[case::anchored("^nginx$", false)]
    #[case::alternatives("ollama|nginx", true)]
    #[case::end("/nginx$", true)]
    fn regular_expressions(#[case] text: &str, #[case] expected: bool) {
        assert_eq!(Pattern::regex(text).unwrap().is_match("/usr/sbin/nginx"), expected);
    }

    #[rstest]
    #[case::empty("")]
    #[case::unbalanced("a{b")]
    fn malformed_globs(#[case] text: &str) {
        assert_eq!(Pattern::glob(text), None);
        assert_eq!(Pattern::executable(text), None);
    }

    #[rstest]
    #[case::empty("")]
    #[case::unbalanced("(a")]
    #[case::huge("a{1000}{1000}{1000}")]
    fn malformed_expressions(#[case] text: &str) {
        assert_eq!(Pattern::regex(text), None);
    }

    proptest! {
        #[test]
        fn takes_any_text(text in ".{0,40}", subject in ".{0,40}") {
            for pattern in [Pattern::glob(&text), Pattern::executable(&text), Pattern::regex(&text)].into_iter().flatten() {
                let _ = pattern.is_match(&subject);
            }
        }
    }
}
