//! The search of Tempo's first generation: `tags=key=value …`, as TraceQL.

use crate::traceql::{
    Attribute, BinaryOp, Field, FieldExpr, Intrinsic, Literal, Scope, SpansetExpr, SpansetOp, Status,
};

/// Traces that have every tag, each on any span: a text that contains the value, or a number or truth that equals it.
/// `None` if there are no tags.
pub fn expression_of_tags(tags: &[(String, String)]) -> Option<SpansetExpr> {
    tags.iter()
        .map(|(key, value)| SpansetExpr::Filter(condition(key, value)))
        .reduce(|left, right| SpansetExpr::Binary { op: SpansetOp::And, left: Box::new(left), right: Box::new(right) })
}

fn condition(key: &str, value: &str) -> FieldExpr {
    let status = match (key, value) {
        ("error", "true") => Some(Status::Error),
        ("status.code", _) => Status::ALL.into_iter().find(|status| status.name() == value),
        _ => None,
    };
    if let Some(status) = status {
        return equals(&Field::Intrinsic(Intrinsic::Status), Literal::Status(status));
    }
    let field = match key {
        "name" => Field::Intrinsic(Intrinsic::Name),
        "root.name" => Field::Intrinsic(Intrinsic::RootName),
        "root.service.name" => Field::Intrinsic(Intrinsic::RootService),
        _ => Field::Attribute(Attribute { parent: false, scope: Scope::Any, name: key.to_owned() }),
    };
    let contains = FieldExpr::Binary {
        op: BinaryOp::Match,
        left: Box::new(FieldExpr::Field(field.clone())),
        right: Box::new(FieldExpr::Literal(Literal::String(format!(".*{}.*", regex::escape(value))))),
    };
    let int = value.parse().ok().map(Literal::Int);
    let float = || value.parse().ok().filter(|float: &f64| float.is_finite()).map(Literal::Float);
    let other = int.or_else(float).or_else(|| value.parse().ok().map(Literal::Bool));
    match (field, other) {
        (field @ Field::Attribute(_), Some(literal)) => FieldExpr::Any(vec![contains, equals(&field, literal)]),
        _ => contains,
    }
}

fn equals(field: &Field, literal: Literal) -> FieldExpr {
    FieldExpr::Binary {
        op: BinaryOp::Eq,
        left: Box::new(FieldExpr::Field(field.clone())),
        right: Box::new(FieldExpr::Literal(literal)),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::text(&[("http.method", "GET")], r#"{ .http.method =~ ".*GET.*" }"#)]
    #[case::escaped(&[("url", "a.b")], r#"{ .url =~ ".*a\\.b.*" }"#)]
    #[case::number(&[("code", "200")], r#"{ .code =~ ".*200.*" || .code = 200 }"#)]
    #[case::float(&[("x", "1.5")], r#"{ .x =~ ".*1\\.5.*" || .x = 1.5 }"#)]
    #[case::truth(&[("ok", "true")], r#"{ .ok =~ ".*true.*" || .ok = true }"#)]
    #[case::error(&[("error", "true")], "{ status = error }")]
    #[case::status(&[("status.code", "ok")], "{ status = ok }")]
    #[case::names(
        &[("name", "1"), ("root.name", "b"), ("root.service.name", "c")],
        r#"({ name =~ ".*1.*" } && { rootName =~ ".*b.*" }) && { rootServiceName =~ ".*c.*" }"#
    )]
    fn tags_become_traceql(#[case] tags: &[(&str, &str)], #[case] query: &str) {
        let tags: Vec<_> = tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        assert_eq!(expression_of_tags(&tags).unwrap().to_string(), query);
    }

    #[test]
    fn no_tags_are_no_condition() {
        assert_eq!(expression_of_tags(&[]), None);
    }
}
