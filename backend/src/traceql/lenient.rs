//! Queries that somebody is still typing.

use super::ast::{FieldExpr, QueryBody, SpansetExpr, Stage};
use super::lexer::{Token, TokenKind, lex};

/// The first spanset filter of a query, or as much of it as can be understood.
///
/// Grafana asks for the values of an attribute with the query as it is so far:
/// `{ resource.service.name = "a" && span.http.status_code = }`. Its whole conditions, those joined by `&&` at the outermost
/// level, are kept and the others left away; what remains selects at least the spans that the finished query would. With
/// `||` at that level a lost condition could hide spans, so then nothing is kept. `None` stands for every span.
pub fn filter_of_unfinished(text: &str) -> Option<FieldExpr> {
    if let Ok(query) = super::parse(text) {
        let QueryBody::Spans(stages) = query.body else { return None };
        return match stages.into_iter().next() {
            Some(Stage::Spansets(SpansetExpr::Filter(filter))) => Some(filter),
            _ => None,
        };
    }
    let (tokens, readable) = readable_tokens(text);
    let open = tokens.iter().position(|token| token.kind == TokenKind::Sign("{"))?;
    let mut conditions = Vec::new();
    let mut depth = 0usize;
    let mut start = tokens.get(open)?.at.offset + 1;
    for token in tokens.iter().skip(open + 1) {
        let TokenKind::Sign(sign) = token.kind else { continue };
        match (sign, depth) {
            ("(", _) => depth += 1,
            (")", _) => depth = depth.saturating_sub(1),
            ("||", 0) => return None,
            ("&&" | "}", 0) => {
                conditions.extend(condition(readable.get(start..token.at.offset)?));
                start = token.at.offset + sign.len();
                if sign == "}" {
                    return whole(conditions);
                }
            }
            _ => {}
        }
    }
    conditions.extend(condition(readable.get(start..)?));
    whole(conditions)
}

fn whole(mut conditions: Vec<FieldExpr>) -> Option<FieldExpr> {
    if conditions.len() > 1 { Some(FieldExpr::All(conditions)) } else { conditions.pop() }
}

/// One condition, if it is complete.
fn condition(text: &str) -> Option<FieldExpr> {
    let query = super::parse(&format!("{{ {text} }}")).ok()?;
    let QueryBody::Spans(mut stages) = query.body else { return None };
    match stages.pop() {
        // `{ }` alone reads as true: that is no condition.
        Some(Stage::Spansets(SpansetExpr::Filter(filter))) if stages.is_empty() && !text.trim().is_empty() => {
            Some(filter)
        }
        _ => None,
    }
}

/// The tokens of the longest beginning that has no open string, and that beginning.
fn readable_tokens(text: &str) -> (Vec<Token>, &str) {
    let mut readable = text;
    loop {
        if let Ok(tokens) = lex(readable) {
            return (tokens, readable);
        }
        // What cannot be read begins at one of the quotes, or is a sign at the end.
        let cut = readable.rfind(['"', '`', '&', '.', '/', '\\', ':']).unwrap_or_default();
        readable = readable.get(..cut).unwrap_or_default();
    }
}
