//! The YAML file.

use std::{cell::RefCell, fs, path::Path};

use serde_saphyr::{Error, with_deserializer_from_str};

use super::{Config, ConfigError};

/// Reads a file; what it does not say keeps its default.
pub(super) fn read(path: &Path) -> Result<Config, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
    parse(&text, path)
}

/// The same for its text.
pub(super) fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let key = RefCell::new(String::new());
    with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            key.replace(error.path().to_string());
            error.into_inner()
        })
    })
    .map_err(|error: Error| {
        let message = match error.without_snippet() {
            Error::DuplicateMappingKey { key: Some(key), .. } => format!("expected `{key}` at most once"),
            error => error.to_string(),
        };
        // The line is named before the message, in the form that editors and terminals understand.
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(message, _)| message);
        ConfigError::File {
            path: path.to_owned(),
            line: error.location().map_or(1, |location| location.line()),
            // What has no key of ours has a `?` there.
            key: key.take().trim_end_matches(['?', '.']).to_owned(),
            message: message.replace('\n', " "),
        }
    })
}
