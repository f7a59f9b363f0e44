//! Text to tokens. Words are plain identifiers here; the parser knows which of them are keywords.

use super::error::TraceQlError;
use super::names::{Attribute, IntrinsicScope, Scope};
use super::values::{parse_duration, unquote};

/// Where a token begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Position {
    /// In the text.
    pub(super) offset: usize,
    /// 1-based.
    pub(super) line: usize,
    /// 1-based, in characters.
    pub(super) column: usize,
}

impl Position {
    pub(super) fn error(self, message: impl Into<String>) -> TraceQlError {
        TraceQlError::Syntax { line: self.line, column: self.column, message: message.into() }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub(super) kind: TokenKind,
    pub(super) at: Position,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum TokenKind {
    Word(String),
    String(String),
    Int(i64),
    Float(f64),
    Duration(i64),
    Attribute(Attribute),
    /// `span:`, its name follows as a word.
    IntrinsicScope(IntrinsicScope),
    /// Operator or bracket, as written.
    Sign(&'static str),
    End,
}

impl TokenKind {
    /// As an error names it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Word(word) => format!("\"{word}\""),
            Self::String(_) => "string".to_owned(),
            Self::Int(_) | Self::Float(_) => "number".to_owned(),
            Self::Duration(_) => "duration".to_owned(),
            Self::Attribute(attribute) => format!("attribute \"{attribute}\""),
            Self::IntrinsicScope(scope) => format!("\"{}:\"", scope.name()),
            Self::Sign(sign) => format!("\"{sign}\""),
            Self::End => "$end".to_owned(),
        }
    }
}

/// Longest first, so that the first that fits is the right one.
const SIGNS: [&str; 36] = [
    "!>>", "!<<", "&>>", "&<<", "&&", "||", "!=", "=~", "!~", ">=", "<=", ">>", "<<", "!>", "!<", "&>", "&<", "&~",
    "{", "}", "(", ")", ",", "=", ">", "<", "+", "-", "*", "/", "%", "^", "!", "|", "~", ".",
];

/// Splits a query into tokens; the last one is [`TokenKind::End`].
pub(super) fn lex(text: &str) -> Result<Vec<Token>, TraceQlError> {
    let mut lexer = Lexer { rest: text, offset: 0, line: 1, column: 1 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blank()?;
        let at = lexer.position();
        let kind = lexer.token()?;
        let end = kind == TokenKind::End;
        tokens.push(Token { kind, at });
        if end {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    offset: usize,
    line: usize,
    column: usize,
}

impl<'a> Lexer<'a> {
    fn position(&self) -> Position {
        Position { offset: self.offset, line: self.line, column: self.column }
    }

    fn error(&self, message: impl Into<String>) -> TraceQlError {
        self.position().error(message)
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.take(c.len_utf8());
        Some(c)
    }

    /// Takes `bytes` bytes, which must end at a character.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        for c in taken.chars() {
            if c == '\n' {
                self.line += 1;
                self.column = 1;
            } else {
                self.column += 1;
            }
        }
        self.offset += taken.len();
        self.rest = rest;
        taken
    }

    fn take_while(&mut self, keep: impl Fn(char) -> bool) -> &'a str {
        let end = self.rest.find(|c| !keep(c)).unwrap_or(self.rest.len());
        self.take(end)
    }

    /// White space and Go's two kinds of comments.
    fn skip_blank(&mut self) -> Result<(), TraceQlError> {
        loop {
            self.take_while(char::is_whitespace);
            if self.rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if self.rest.starts_with("/*") {
                let Some(end) = self.rest.find("*/") else {
                    return Err(self.error("comment not terminated"));
                };
                self.take(end + 2);
            } else {
                return Ok(());
            }
        }
    }

    fn token(&mut self) -> Result<TokenKind, TraceQlError> {
        let Some(first) = self.peek() else {
            return Ok(TokenKind::End);
        };
        let second = self.rest.chars().nth(1);
        match first {
            '"' => self.quoted(),
            '`' => self.raw_string(),
            '0'..='9' => self.number(),
            '.' if second.is_some_and(|c| c.is_ascii_digit()) => self.number(),
            '.' => {
                self.bump();
                self.attribute(false, Scope::Any)
            }
            c if c.is_alphabetic() || c == '_' => self.word(),
            _ => match SIGNS.iter().find(|sign| self.rest.starts_with(**sign)) {
                Some(sign) => {
                    self.take(sign.len());
                    Ok(TokenKind::Sign(sign))
                }
                None => Err(self.error(format!("unexpected character {first:?}"))),
            },
        }
    }

    fn word(&mut self) -> Result<TokenKind, TraceQlError> {
        let word = self.take_while(|c| c.is_alphanumeric() || c == '_');
        match self.peek() {
            Some('.') => {
                if word == "parent" {
                    self.bump();
                    let scope = [Scope::Span, Scope::Resource]
                        .into_iter()
                        .find(|s| self.rest.strip_prefix(s.name()).is_some_and(|rest| rest.starts_with('.')));
                    self.take(scope.map_or(0, |s| s.name().len() + 1));
                    return self.attribute(true, scope.unwrap_or(Scope::Any));
                }
                if let Some(scope) = Scope::NAMED.into_iter().find(|s| s.name() == word) {
                    self.bump();
                    return self.attribute(false, scope);
                }
            }
            Some(':') => {
                if let Some(scope) = IntrinsicScope::ALL.into_iter().find(|s| s.name() == word) {
                    self.bump();
                    return Ok(TokenKind::IntrinsicScope(scope));
                }
            }
            _ => {}
        }
        Ok(TokenKind::Word(word.to_owned()))
    }

    /// The name after the scope. Anything but space and brackets and comparison signs belongs to it; parts may be quoted.
    fn attribute(&mut self, parent: bool, scope: Scope) -> Result<TokenKind, TraceQlError> {
        let start = self.position();
        let mut name = String::new();
        loop {
            match self.peek() {
                Some('"') => {
                    self.bump();
                    self.quoted_part(&mut name)?;
                }
                Some(c) if is_attribute_char(c) => name.push_str(self.take(c.len_utf8())),
                _ if name.is_empty() => return Err(start.error("expecting the name of an attribute")),
                _ => return Ok(TokenKind::Attribute(Attribute { parent, scope, name })),
            }
        }
    }

    fn quoted_part(&mut self, name: &mut String) -> Result<(), TraceQlError> {
        loop {
            let at = self.position();
            match self.bump() {
                Some('"') => return Ok(()),
                Some('\\') => match self.bump() {
                    Some(c @ ('"' | '\\')) => name.push(c),
                    _ => return Err(at.error("invalid escape sequence")),
                },
                Some(c) => name.push(c),
                None => return Err(at.error("unexpected EOF, expecting \"")),
            }
        }
    }

    fn quoted(&mut self) -> Result<TokenKind, TraceQlError> {
        let start = self.position();
        self.bump();
        let mut escaped = false;
        let end = self.rest.find(|c| {
            let ends = c == '\n' || (c == '"' && !escaped);
            escaped = c == '\\' && !escaped;
            ends
        });
        match end {
            Some(end) if self.rest.as_bytes().get(end) == Some(&b'"') => {
                let body = self.take(end);
                self.bump();
                unquote(body).map(TokenKind::String).map_err(|message| start.error(message))
            }
            _ => Err(start.error("literal not terminated, expecting \"")),
        }
    }

    fn raw_string(&mut self) -> Result<TokenKind, TraceQlError> {
        let start = self.position();
        self.bump();
        let Some(end) = self.rest.find('`') else {
            return Err(start.error("literal not terminated, expecting `"));
        };
        let body = self.take(end).replace('\r', "");
        self.bump();
        Ok(TokenKind::String(body))
    }

    fn number(&mut self) -> Result<TokenKind, TraceQlError> {
        let start = self.position();
        // What could be a duration is one, if it reads as one.
        let long =
            self.rest.find(|c: char| !c.is_ascii_digit() && !"nsumhµμdwy.".contains(c)).unwrap_or(self.rest.len());
        if let Some(nanos) = self.rest.get(..long).and_then(parse_duration) {
            self.take(long);
            return Ok(TokenKind::Duration(nanos));
        }
        let text = self.take(number_length(self.rest));
        if let Ok(int) = text.parse::<i64>() {
            return Ok(TokenKind::Int(int));
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(start.error(format!("integer {text} is out of range")));
        }
        match text.parse::<f64>() {
            Ok(float) if float.is_finite() => Ok(TokenKind::Float(float)),
            _ => Err(start.error(format!("number {text} is out of range"))),
        }
    }
}

/// Bytes of `12`, `1.5`, `.5`, `1e9`, `1.5e-3` at the beginning of a text.
fn number_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes.iter().skip(from).take_while(|b| b.is_ascii_digit()).count();
    let mut length = digits(0);
    if bytes.get(length) == Some(&b'.') {
        length += 1 + digits(length + 1);
    }
    if matches!(bytes.get(length), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(length + 1), Some(b'+' | b'-')));
        let exponent = digits(length + 1 + sign);
        if exponent > 0 {
            length += 1 + sign + exponent;
        }
    }
    length
}

/// Whether a character may stand in the name of an attribute without quotes.
pub(super) fn is_attribute_char(c: char) -> bool {
    !c.is_whitespace() && !"{}()=~!<>&|^,".contains(c)
}
