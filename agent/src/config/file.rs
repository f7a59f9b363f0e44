//! The file: YAML of ours, or what other programs have, told apart by its keys.

use std::{cell::RefCell, fs, path::Path};

use serde_saphyr::{Error, with_deserializer_from_str};

use super::{Config, ConfigError, foreign};

/// Reads a file; what it does not say keeps its default. `${NAME}` stands for a variable of the environment.
pub(super) fn read(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    of_text(&text(path)?, path, variable)
}

/// The text of a file.
pub(super) fn text(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })
}

/// The same as [`read`] for its text.
pub(super) fn of_text(
    text: &str,
    path: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    if path.extension().is_some_and(|extension| extension == "alloy" || extension == "river") {
        return foreign::alloy_config(text, path, variable);
    }
    let (text, unset) = expand(text, path, variable);
    let mut config =
        if foreign::is_beyla(&text, path)? { foreign::beyla_config(&text, path)? } else { parse(&text, path)? };
    config.warnings.splice(..0, unset);
    Ok(config)
}

/// Reads YAML of ours.
pub(super) fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let key = RefCell::new(String::new());
    with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            key.replace(error.path().to_string());
            error.into_inner()
        })
    })
    .map_err(|error: Error| yaml_error(&error, path, &key.take()))
}

/// What is wrong with YAML, as one line.
pub(super) fn yaml_error(error: &Error, path: &Path, key: &str) -> ConfigError {
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
        key: key.trim_end_matches(['?', '.']).to_owned(),
        message: message.replace('\n', " "),
    }
}

/// Puts variables in: `${NAME}`, or `${NAME:-value}` for one that may not be set. Comments are left alone. Gives a line
/// for each that is not set and has no value: it is empty then.
pub(super) fn expand(text: &str, path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> (String, Vec<String>) {
    let mut unset = Vec::new();
    let mut expanded = String::with_capacity(text.len());
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_start().starts_with('#') {
            expanded.push_str(line);
            continue;
        }
        let mut rest = line;
        while let Some((before, behind)) = rest.split_once("${") {
            let Some((inside, behind)) = behind.split_once('}') else { break };
            let (name, default) = inside.split_once(":-").map_or((inside, None), |(name, value)| (name, Some(value)));
            expanded.push_str(before);
            match variable(name).filter(|value| !value.is_empty()).as_deref().or(default) {
                Some(value) => expanded.push_str(value),
                None => unset.push(format!("{}:{}: the variable {name} is not set", path.display(), number + 1)),
            }
            rest = behind;
        }
        expanded.push_str(rest);
    }
    (expanded, unset)
}
