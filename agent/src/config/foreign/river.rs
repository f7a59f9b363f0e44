//! The syntax of Grafana Alloy's files (once called River): blocks, attributes, and expressions.
//!
//! Literals, lists and objects are understood, `sys.env("NAME")` and sums of strings computed, and all other expressions
//! kept as text: files hold components that are of no interest here. More than Alloy's own reader takes is taken:
//! statements need no line of their own.

use super::tree::{Data, Node};

/// How deep blocks, lists and parentheses may lie in each other.
const MAX_DEPTH: usize = 64;

/// A statement.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Statement {
    /// `name = value`.
    Attribute(String, Node),
    /// `name "label" { … }`.
    Block(Block),
}

/// A block.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Block {
    /// Words with dots between them.
    pub(super) name: String,
    pub(super) label: Option<String>,
    pub(super) line: u64,
    pub(super) body: Vec<Statement>,
}

/// Why a text is no such file.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("line {line}: expected {expected}")]
pub(super) struct SyntaxError {
    /// Line, from 1.
    pub(super) line: u64,
    /// What should be there.
    pub(super) expected: &'static str,
}

/// Reads a file. Variables of the environment come from `variable`.
pub(super) fn parse(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Vec<Statement>, SyntaxError> {
    let mut parser = Parser { text, rest: text, variable, depth: 0 };
    let body = parser.body()?;
    parser.skip();
    if parser.rest.is_empty() { Ok(body) } else { Err(parser.error("a block, an attribute or the end of the file")) }
}

struct Parser<'a> {
    text: &'a str,
    /// What is not read yet: an end of `text`.
    rest: &'a str,
    variable: &'a dyn Fn(&str) -> Option<String>,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// Statements up to a brace that closes, or the end.
    fn body(&mut self) -> Result<Vec<Statement>, SyntaxError> {
        let mut body = Vec::new();
        loop {
            self.skip();
            // Semicolons are not needed but harmless.
            if self.takes(";") {
                continue;
            }
            if self.rest.is_empty() || self.rest.starts_with('}') {
                return Ok(body);
            }
            body.push(self.statement()?);
        }
    }

    fn statement(&mut self) -> Result<Statement, SyntaxError> {
        let line = self.line();
        let name = self.path().ok_or_else(|| self.error("a block or an attribute"))?;
        self.skip_blanks();
        if self.takes("=") {
            self.skip();
            let value = self.nested(Self::expression)?;
            return Ok(Statement::Attribute(name, value));
        }
        let label = if self.rest.starts_with('"') { Some(self.string()?) } else { None };
        self.skip_blanks();
        if !self.takes("{") {
            return Err(self.error("`=`, a label or `{`"));
        }
        let body = self.nested(Self::body)?;
        self.expect("}")?;
        Ok(Statement::Block(Block { name, label, line, body }))
    }

    /// Operands with operators between them; what is not a sum of strings stays text.
    fn expression(&mut self) -> Result<Node, SyntaxError> {
        const OPERATORS: [&str; 14] = ["||", "&&", "==", "!=", "<=", ">=", "<", ">", "+", "-", "*", "/", "%", "^"];
        let (start, line) = (self.rest, self.line());
        let mut value = self.operand()?;
        loop {
            self.skip_blanks();
            let Some(operator) = OPERATORS.into_iter().find(|operator| self.takes(operator)) else { return Ok(value) };
            self.skip();
            let right = self.operand()?;
            value.data = match (operator, value.data, right.data) {
                ("+", Data::Text(left), Data::Text(right)) => Data::Text(left + &right),
                _ => Data::Expression(self.since(start)),
            };
            value.line = line;
        }
    }

    fn operand(&mut self) -> Result<Node, SyntaxError> {
        let (start, line) = (self.rest, self.line());
        let first = self.rest.chars().next();
        let data = match first {
            Some('"') => Data::Text(self.string()?),
            Some('`') => Data::Text(self.raw_string()?),
            Some('[') => self.nested(Self::array)?,
            Some('{') => self.nested(Self::object)?,
            Some('(') => self.nested(Self::parenthesised)?,
            Some('!' | '-') => {
                self.take(1);
                self.skip_blanks();
                let inner = self.nested(Self::operand)?;
                match inner.data {
                    Data::Text(number)
                        if first == Some('-') && number.starts_with(|letter: char| letter.is_ascii_digit()) =>
                    {
                        Data::Text(format!("-{number}"))
                    }
                    _ => Data::Expression(self.since(start)),
                }
            }
            Some(letter) if letter.is_ascii_digit() => Data::Text(self.number()),
            _ => {
                let name = self.path().ok_or_else(|| self.error("a value"))?;
                match name.as_str() {
                    "true" | "false" => Data::Text(name),
                    "null" => Data::Nothing,
                    _ => Data::Expression(name),
                }
            }
        };
        let mut node = Node { line, data };
        // Calls, places in lists, and names behind them.
        loop {
            if self.rest.starts_with('(') {
                let arguments = self.nested(Self::arguments)?;
                node.data = self.called(&node.data, &arguments, start);
            } else if self.rest.starts_with('[') {
                self.nested(Self::array)?;
                node.data = Data::Expression(self.since(start));
            } else if self.rest.starts_with('.') {
                self.take(1);
                self.path().ok_or_else(|| self.error("a name"))?;
                node.data = Data::Expression(self.since(start));
            } else {
                return Ok(node);
            }
        }
    }

    /// The few functions that configurations of exporters use.
    fn called(&self, function: &Data, arguments: &[Node], start: &str) -> Data {
        let name = match function {
            Data::Expression(name) => name.as_str(),
            _ => "",
        };
        match (name, arguments) {
            ("env" | "sys.env", [Node { data: Data::Text(name), .. }]) => {
                Data::Text((self.variable)(name).unwrap_or_default())
            }
            ("nonsensitive" | "convert.nonsensitive", [argument]) => argument.data.clone(),
            _ => Data::Expression(self.since(start)),
        }
    }

    fn arguments(&mut self) -> Result<Vec<Node>, SyntaxError> {
        self.items("(", ")", Self::expression)
    }

    fn array(&mut self) -> Result<Data, SyntaxError> {
        self.items("[", "]", Self::expression).map(Data::List)
    }

    fn object(&mut self) -> Result<Data, SyntaxError> {
        let entry = |parser: &mut Self| {
            let name = if parser.rest.starts_with('"') { Some(parser.string()?) } else { parser.path() };
            let name = name.ok_or_else(|| parser.error("a name"))?;
            parser.skip();
            parser.expect("=")?;
            parser.skip();
            Ok((name, parser.expression()?))
        };
        self.items("{", "}", entry).map(Data::Map)
    }

    fn parenthesised(&mut self) -> Result<Data, SyntaxError> {
        self.expect("(")?;
        self.skip();
        let inner = self.expression()?;
        self.skip();
        self.expect(")")?;
        Ok(inner.data)
    }

    /// Things with commas between them, and behind the last one if need be.
    fn items<T>(
        &mut self,
        open: &'static str,
        close: &'static str,
        item: impl Fn(&mut Self) -> Result<T, SyntaxError>,
    ) -> Result<Vec<T>, SyntaxError> {
        self.expect(open)?;
        let mut items = Vec::new();
        loop {
            self.skip();
            if self.takes(close) {
                return Ok(items);
            }
            items.push(item(self)?);
            self.skip();
            if !self.takes(",") && !self.rest.starts_with(close) {
                return Err(self.error("`,` or the end of the list"));
            }
        }
    }

    fn nested<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, SyntaxError>) -> Result<T, SyntaxError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error("fewer things within each other"));
        }
        let outcome = read(self);
        self.depth -= 1;
        outcome
    }

    fn string(&mut self) -> Result<String, SyntaxError> {
        const EXPECTED: &str = "the end of the string";
        self.expect("\"")?;
        let mut text = String::new();
        loop {
            let end = self.rest.find(['"', '\\', '\n']).ok_or_else(|| self.error(EXPECTED))?;
            text.push_str(self.take(end));
            if self.takes("\"") {
                return Ok(text);
            }
            if !self.takes("\\") {
                return Err(self.error(EXPECTED));
            }
            text.push(self.escape()?);
        }
    }

    /// What stands behind a backslash.
    fn escape(&mut self) -> Result<char, SyntaxError> {
        let kind = self.rest.chars().next().ok_or_else(|| self.error("an escape"))?;
        self.take(kind.len_utf8());
        let digits = match kind {
            'a' => return Ok('\u{7}'),
            'b' => return Ok('\u{8}'),
            'f' => return Ok('\u{c}'),
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'v' => return Ok('\u{b}'),
            '"' | '\'' | '\\' => return Ok(kind),
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => return Err(self.error("an escape such as `\\n` or `\\u00e9`")),
        };
        let code = self.rest.get(..digits).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let letter = code.and_then(char::from_u32).ok_or_else(|| self.error("hexadecimal digits of a character"))?;
        self.take(digits);
        Ok(letter)
    }

    fn raw_string(&mut self) -> Result<String, SyntaxError> {
        self.expect("`")?;
        let end = self.rest.find('`').ok_or_else(|| self.error("the end of the string"))?;
        let text = self.take(end).to_owned();
        self.expect("`")?;
        Ok(text)
    }

    /// As it is written: what it means is known where it is used.
    fn number(&mut self) -> String {
        let mut previous = ' ';
        let is_part = |letter: char| {
            let is_exponents = matches!(letter, '+' | '-') && matches!(previous, 'e' | 'E');
            previous = letter;
            letter.is_ascii_alphanumeric() || letter == '.' || is_exponents
        };
        let mut is_part = is_part;
        let end = self.rest.find(|letter: char| !is_part(letter)).unwrap_or(self.rest.len());
        self.take(end).to_owned()
    }

    /// Words with dots between them.
    fn path(&mut self) -> Option<String> {
        let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
        let starts = self.rest.starts_with(|letter: char| letter.is_alphabetic() || letter == '_');
        let end = self.rest.find(|letter: char| !is_word(letter) && letter != '.').unwrap_or(self.rest.len());
        starts.then(|| self.take(end).to_owned())
    }

    fn expect(&mut self, wanted: &'static str) -> Result<(), SyntaxError> {
        if self.takes(wanted) { Ok(()) } else { Err(self.error(expected(wanted))) }
    }

    fn takes(&mut self, wanted: &str) -> bool {
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// The next `bytes`, which end between characters.
    fn take(&mut self, bytes: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(bytes).unwrap_or((self.rest, ""));
        self.rest = rest;
        taken
    }

    /// Spaces, ends of lines and comments.
    fn skip(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if self.rest.starts_with("//") {
                let end = self.rest.find('\n').unwrap_or(self.rest.len());
                self.take(end);
            } else if self.rest.starts_with("/*") {
                let end = self.rest.find("*/").map_or(self.rest.len(), |end| end + 2);
                self.take(end);
            } else {
                return;
            }
        }
    }

    /// Spaces within a line.
    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        // A comment is no division.
        if self.rest.starts_with("//") || self.rest.starts_with("/*") {
            self.skip();
        }
    }

    /// The text from there to here.
    fn since(&self, start: &str) -> String {
        start.get(..start.len().saturating_sub(self.rest.len())).unwrap_or_default().trim_end().to_owned()
    }

    fn line(&self) -> u64 {
        let read = self.text.len() - self.rest.len();
        let ends = self.text.bytes().take(read).filter(|byte| *byte == b'\n').count();
        ends as u64 + 1
    }

    fn error(&self, expected: &'static str) -> SyntaxError {
        SyntaxError { line: self.line(), expected }
    }
}

/// As a message shows it.
const fn expected(wanted: &'static str) -> &'static str {
    match wanted.as_bytes() {
        b"}" => "`}`",
        b")" => "`)`",
        b"=" => "`=`",
        b"`" => "the end of the string",
        _ => wanted,
    }
}

#[cfg(test)]
#[path = "river_tests.rs"]
mod tests;
