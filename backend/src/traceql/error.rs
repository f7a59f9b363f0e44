use thiserror::Error;

/// Why a query was refused. All are the asker's fault.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
pub enum TraceQlError {
    /// The text is no TraceQL.
    #[error("parse error at line {line}, col {column}: syntax error: {message}")]
    Syntax {
        /// 1-based.
        line: usize,
        /// 1-based, in characters.
        column: usize,
        /// What was found, and what was expected.
        message: String,
    },
    /// The text is TraceQL, but makes no sense: types do not match, a regular expression does not compile.
    #[error("{0}")]
    Invalid(String),
    /// A part of the language that Tempo reads and does not evaluate either.
    #[error("{0} not yet supported")]
    Unsupported(String),
    /// Longer than [`MAX_QUERY_BYTES`](super::MAX_QUERY_BYTES).
    #[error("TraceQL expression exceeds the configured maximum size of {max} bytes. received {bytes} bytes")]
    TooLong {
        /// Length of the query.
        bytes: usize,
        /// Longest one that is read.
        max: usize,
    },
}
