//! What is wrong with a configuration: one line each.

use std::path::PathBuf;

/// A configuration that cannot be used. The text of each is one line that says where, and what is expected there.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Who may come in is not said in a way that can be used.
    #[error("{}: {}", path.display(), on_one_line(source))]
    Access {
        /// The file.
        path: PathBuf,
        /// Key and reason.
        source: crate::access::AccessError,
    },
    /// Something in the file is wrong.
    #[error("{}:{line}: {}{message}", path.display(), key_prefix(key))]
    File {
        /// The file.
        path: PathBuf,
        /// Line in the file, from 1.
        line: u64,
        /// The key, with the sections that it is in; empty where the file is no YAML.
        key: String,
        /// What is expected and what was found.
        message: String,
    },
    /// A flag that does not exist, or lacks its value.
    #[error("{0}")]
    Flag(String),
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// What metrics are made of, or where they are sent, is not said in a way that can be used.
    #[error("{}: {}", path.display(), on_one_line(source))]
    Generator {
        /// The file.
        path: PathBuf,
        /// Key and reason.
        source: crate::generator::SettingError,
    },
    /// Settings of a bucket that do not fit together, or a file that they name.
    #[error(transparent)]
    Storage(#[from] crate::store::SettingError),
    /// A flag or an environment variable has a value that it cannot have.
    #[error("{place}: expected {expected}, found `{found}`")]
    Value {
        /// The flag or the variable.
        place: String,
        /// What is expected.
        expected: &'static str,
        /// What was found.
        found: String,
    },
}

fn key_prefix(key: &str) -> String {
    if key.is_empty() { String::new() } else { format!("{key}: ") }
}

/// An error and its causes; that of a regular expression has several lines.
fn on_one_line(error: &dyn std::error::Error) -> String {
    crate::telemetry::chain(error).split_whitespace().collect::<Vec<_>>().join(" ")
}
