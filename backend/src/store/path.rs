//! What an object may be called, in every store.

use super::StoreError;

/// What Linux allows for the name of a file.
const PART_BYTES: usize = 255;

/// S3 allows 1,024 bytes; the rest is for the prefix that a bucket is used with.
const PATH_BYTES: usize = 900;

/// The first part of the paths of [`super::LocalStore`]'s own files.
pub(super) const TEMPORARY: &str = "tmp";

/// Refuses what cannot be an object's path.
pub(super) fn check(path: &str) -> Result<(), StoreError> {
    let reason = if path.len() > PATH_BYTES {
        "longer than 900 bytes"
    } else if path.split('/').any(str::is_empty) {
        "a part is empty"
    } else if path.split('/').any(|part| part == "." || part == "..") {
        "a part is `.` or `..`"
    } else if path.split('/').any(|part| part.len() > PART_BYTES) {
        "a part is longer than 255 bytes"
    } else if path.chars().any(char::is_control) {
        "a control character"
    } else if path.split('/').next() == Some(TEMPORARY) {
        "`tmp` is for unfinished files"
    } else {
        return Ok(());
    };
    Err(StoreError::InvalidPath { path: path.to_owned(), reason })
}

/// Refuses what cannot be a prefix of a listing: it is empty, or a path and `/`.
pub(super) fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    match prefix.strip_suffix('/') {
        None if prefix.is_empty() => Ok(()),
        None => Err(StoreError::InvalidPath { path: prefix.to_owned(), reason: "a prefix ends with `/`" }),
        Some(path) => check(path),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("a", true)]
    #[case("blocks/t/1.parquet", true)]
    #[case("blocks/!-_.*'()/ü %2F+.parquet", true)]
    #[case(".../..a", true)]
    #[case("a/tmp", true)]
    #[case("", false)]
    #[case("/a", false)]
    #[case("a/", false)]
    #[case("a//b", false)]
    #[case("a/../b", false)]
    #[case("..", false)]
    #[case("./a", false)]
    #[case("a\nb", false)]
    #[case("a\0", false)]
    #[case("tmp", false)]
    #[case("tmp/a", false)]
    fn paths(#[case] path: &str, #[case] good: bool) {
        assert_eq!(check(path).is_ok(), good);
        assert_eq!(check_prefix(&format!("{path}/")).is_ok(), good);
    }

    #[test]
    fn too_long() {
        check(&"x".repeat(255)).unwrap();
        check(&"x".repeat(256)).unwrap_err();
        check("xxxxxxxx/".repeat(100).trim_end_matches('/')).unwrap();
        check(&"xxxxxxxx/x".repeat(91)).unwrap_err();
    }

    #[test]
    fn prefixes() {
        check_prefix("").unwrap();
        check_prefix("a").unwrap_err();
    }
}
