//! Configurations of other programs: Beyla's YAML (OBI's is the same), and Beyla in Grafana Alloy.
//!
//! Each is translated key by key into a file of ours. What is not supported is a warning that names the key and what to
//! use instead; nothing is silently ignored.

mod alloy;
mod beyla;
mod river;
mod rules;
mod tree;

#[cfg(test)]
mod tests;

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::{Config, ConfigError, file};
pub(super) use beyla::duration;
use tree::Node;

/// What a file of Beyla says, in our words.
pub fn from_beyla(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    let (text, unset) = file::expand(&file::text(path)?, path, variable);
    let mut config = beyla_config(&text, path)?;
    config.warnings.splice(..0, unset);
    Ok(config)
}

/// What the first block `beyla.ebpf` of a file of Alloy says, and the exporters that it points to.
pub fn from_alloy(path: &Path, variable: &dyn Fn(&str) -> Option<String>) -> Result<Config, ConfigError> {
    alloy_config(&file::text(path)?, path, variable)
}

/// Whether YAML has keys that Beyla has and we have not, and none that only we have.
pub(super) fn is_beyla(text: &str, path: &Path) -> Result<bool, ConfigError> {
    const OURS: [&str; 9] =
        ["export", "gpu", "hooks", "kernel_debug", "listen", "print", "receive", "spans", "telemetry"];
    let root = Node::of_yaml(text, path)?;
    let has = |names: &[&str]| root.map().iter().any(|(key, _)| names.contains(&key.as_str()));
    Ok(has(beyla::SECTIONS) && !has(&OURS))
}

/// Translates Beyla's YAML.
pub(super) fn beyla_config(text: &str, path: &Path) -> Result<Config, ConfigError> {
    let root = Node::of_yaml(text, path)?;
    let mut translation = Translation::new(path);
    beyla::translate(&root, &mut translation);
    translation.finish()
}

/// Translates a file of Alloy.
pub(super) fn alloy_config(
    text: &str,
    path: &Path,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let statements = river::parse(text, variable).map_err(|error| ConfigError::File {
        path: path.to_owned(),
        line: error.line,
        key: String::new(),
        message: format!("expected {}", error.expected),
    })?;
    let mut translation = Translation::new(path);
    alloy::translate(&statements, &mut translation)?;
    translation.finish()
}

/// A file of ours in the making.
struct Translation<'a> {
    path: &'a Path,
    ours: Map<String, Json>,
    /// Of each key of ours: the other program's, and its line.
    origins: Vec<(String, String, u64)>,
    warnings: Vec<String>,
}

impl<'a> Translation<'a> {
    fn new(path: &'a Path) -> Self {
        Self { path, ours: Map::new(), origins: Vec::new(), warnings: Vec::new() }
    }

    /// Sets a key of ours, `section.key`, because of one of theirs.
    fn set(&mut self, ours: &str, value: Json, theirs: &str, line: u64) {
        self.origins.push((ours.to_owned(), theirs.to_owned(), line));
        let (sections, key) = ours.rsplit_once('.').unwrap_or(("", ours));
        let mut object = &mut self.ours;
        for section in sections.split('.').filter(|section| !section.is_empty()) {
            let entry = object.entry(section).or_insert_with(|| Json::Object(Map::new()));
            let Json::Object(inner) = entry else { return };
            object = inner;
        }
        object.insert(key.to_owned(), value);
    }

    /// Whether a key of ours was set.
    fn has(&self, ours: &str) -> bool {
        self.origins.iter().any(|(key, ..)| key == ours)
    }

    /// What a key of ours, `section.key`, was set to.
    fn get(&self, ours: &str) -> Option<&Json> {
        let mut parts = ours.split('.');
        let first = self.ours.get(parts.next()?)?;
        parts.try_fold(first, |object, key| object.get(key))
    }

    /// Notes that an entry of a list came from there.
    fn note(&mut self, ours: String, theirs: String, line: u64) {
        self.origins.push((ours, theirs, line));
    }

    /// A key of theirs is not supported, or not as it is there.
    fn warn(&mut self, theirs: &str, line: u64, instead: &str) {
        self.warnings.push(format!("{}:{line}: {theirs}: {instead}", self.path.display()));
    }

    /// Reads the file of ours.
    fn finish(self) -> Result<Config, ConfigError> {
        let Self { path, ours, origins, warnings } = self;
        let mut config: Config = serde_path_to_error::deserialize(Json::Object(ours)).map_err(|error| {
            let key = error.path().to_string();
            // The key itself, else the nearest around it.
            let origin = origins
                .iter()
                .filter(|(ours, ..)| {
                    key == *ours || key.strip_prefix(ours).is_some_and(|rest| rest.starts_with(['.', '[']))
                })
                .max_by_key(|(ours, ..)| ours.len());
            let (key, line) = origin.map_or((key.as_str(), 1), |(_, theirs, line)| (theirs.as_str(), *line));
            ConfigError::File { path: path.to_owned(), line, key: key.to_owned(), message: error.inner().to_string() }
        })?;
        config.warnings = warnings;
        Ok(config)
    }
}
