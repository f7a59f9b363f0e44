use std::fmt::Write;

use thiserror::Error;

use super::lexer::{Position, TokenKind, lex};

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
    #[error("{message}")]
    Invalid {
        /// Why.
        message: String,
        /// The part of the query that is meant, as it is printed; empty if it is the whole.
        part: String,
    },
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

/// Most characters of a line that are shown around a mistake, on each side of it.
const SHOWN_CHARS: usize = 60;

impl TraceQlError {
    /// What is wrong, and below it the line of the query with a caret under the place, if the place is known:
    ///
    /// ```text
    /// parse error at line 1, col 3: syntax error: unexpected "nmae", expecting …; did you mean "name"?
    /// { nmae = 2 }
    ///   ^
    /// ```
    pub fn shown_in(&self, query: &str) -> String {
        let mut text = self.to_string();
        let place = match self {
            // There is nothing to be shown.
            _ if query.trim().is_empty() => None,
            Self::Syntax { line, column, .. } => Some((*line, *column)),
            Self::Invalid { part, .. } | Self::Unsupported(part) => {
                find(part, query).map(|Position { line, column, .. }| (line, column))
            }
            Self::TooLong { .. } => None,
        };
        let Some((line, column)) = place else { return text };
        let line: Vec<char> = query.split('\n').nth(line - 1).unwrap_or_default().trim_end().chars().collect();
        let before = column.saturating_sub(1);
        let from = before.saturating_sub(SHOWN_CHARS);
        let shown = line.iter().skip(from).take(2 * SHOWN_CHARS).map(|c| if c.is_control() { ' ' } else { *c });
        // Writing to a string does not fail.
        let _ = write!(text, "\n{}\n{:>width$}", shown.collect::<String>(), '^', width = before - from + 1);
        text
    }
}

/// Where the tokens of a part stand in a query, whatever their spelling and the brackets around them.
fn find(part: &str, query: &str) -> Option<Position> {
    let without_brackets = |text: &str| {
        let mut tokens = lex(text).ok()?;
        tokens.retain(|token| !matches!(token.kind, TokenKind::Sign("(" | ")") | TokenKind::End));
        Some(tokens)
    };
    let (part, query) = (without_brackets(part)?, without_brackets(query)?);
    // An error without a part is about the whole.
    if part.is_empty() {
        return None;
    }
    let mut windows = query.windows(part.len());
    let found = windows.find(|window| window.iter().zip(&part).all(|(ours, theirs)| ours.kind == theirs.kind))?;
    found.first().map(|token| token.at)
}
