//! What is printed reads back, and no text makes the parser fail: with random trees and texts.

use super::*;

fn name() -> impl Strategy<Value = String> {
    prop_oneof!["[a-z][a-z.]{0,8}", "[ -~]{1,8}", "\\PC{1,4}"]
}

fn attribute() -> impl Strategy<Value = Field> {
    let scope = prop::sample::select(vec![
        Scope::Any,
        Scope::Resource,
        Scope::Span,
        Scope::Event,
        Scope::Link,
        Scope::Instrumentation,
    ]);
    (scope, name(), any::<bool>()).prop_map(|(scope, name, parent)| {
        // Others have no parent.
        let parent = parent && matches!(scope, Scope::Any | Scope::Resource | Scope::Span);
        Field::Attribute(Attribute { parent, scope, name })
    })
}

fn any_field() -> impl Strategy<Value = Field> {
    prop_oneof![attribute(), prop::sample::select(Intrinsic::ALL.to_vec()).prop_map(Field::Intrinsic)]
}

fn literal() -> impl Strategy<Value = Literal> {
    prop_oneof![
        any::<String>().prop_map(Literal::String),
        any::<i64>().prop_map(Literal::Int),
        prop::num::f64::NORMAL.prop_map(Literal::Float),
        (-i64::MAX..i64::MAX).prop_map(Literal::Duration),
        any::<bool>().prop_map(Literal::Bool),
        prop::sample::select(Status::ALL.to_vec()).prop_map(Literal::Status),
        prop::sample::select(Kind::ALL.to_vec()).prop_map(Literal::Kind),
    ]
}

fn binary_op() -> impl Strategy<Value = BinaryOp> {
    prop::sample::select(vec![
        BinaryOp::Add,
        BinaryOp::Sub,
        BinaryOp::Mul,
        BinaryOp::Div,
        BinaryOp::Mod,
        BinaryOp::Pow,
        BinaryOp::Eq,
        BinaryOp::NotEq,
        BinaryOp::Less,
        BinaryOp::LessEq,
        BinaryOp::Greater,
        BinaryOp::GreaterEq,
        BinaryOp::Match,
        BinaryOp::NotMatch,
    ])
}

/// Trees that the parser can give: chains are flat on the left, a sign before a number is part of it.
fn field_expr() -> impl Strategy<Value = FieldExpr> {
    let leaf = prop_oneof![literal().prop_map(FieldExpr::Literal), any_field().prop_map(FieldExpr::Field)];
    leaf.prop_recursive(5, 32, 3, |inner| {
        let boxed = inner.clone().prop_map(Box::new);
        let list = prop::collection::vec(inner.clone(), 2..4);
        prop_oneof![
            (binary_op(), boxed.clone(), boxed.clone()).prop_map(|(op, left, right)| FieldExpr::Binary {
                op,
                left,
                right
            }),
            list.clone().prop_filter("flat", |l| !matches!(l[0], FieldExpr::All(_))).prop_map(FieldExpr::All),
            list.prop_filter("flat", |l| !matches!(l[0], FieldExpr::Any(_))).prop_map(FieldExpr::Any),
            boxed.clone().prop_map(FieldExpr::Not),
            inner
                .prop_filter("folded", |e| !matches!(
                    e,
                    FieldExpr::Literal(Literal::Int(_) | Literal::Float(_) | Literal::Duration(_))
                ))
                .prop_map(|e| FieldExpr::Negate(Box::new(e))),
            boxed.clone().prop_map(FieldExpr::Exists),
            boxed.prop_map(FieldExpr::Missing),
        ]
    })
}

fn spanset_expr() -> impl Strategy<Value = SpansetExpr> {
    field_expr().prop_map(SpansetExpr::Filter).prop_recursive(3, 8, 2, |inner| {
        let op = prop::sample::select(SpansetOp::ALL.to_vec());
        let pipeline = (inner.clone(), field_expr())
            .prop_map(|(e, by)| SpansetExpr::Pipeline(vec![Stage::Spansets(e), Stage::By(by), Stage::Coalesce]));
        prop_oneof![
            (op, inner.clone(), inner).prop_map(|(op, left, right)| SpansetExpr::Binary {
                op,
                left: Box::new(left),
                right: Box::new(right)
            }),
            pipeline,
        ]
    })
}

fn stage() -> impl Strategy<Value = Stage> {
    prop_oneof![
        spanset_expr().prop_map(Stage::Spansets),
        field_expr().prop_map(Stage::By),
        prop::collection::vec(any_field(), 1..4).prop_map(Stage::Select),
        (field_expr(), any::<i32>()).prop_map(|(argument, bound)| Stage::Scalar(ScalarFilter {
            op: BinaryOp::Greater,
            left: ScalarExpr::Aggregate(Aggregate { function: AggregateFunction::Avg, argument: Some(argument) }),
            right: ScalarExpr::Literal(Literal::Int(bound.into())),
        })),
    ]
}

fn metrics_function() -> impl Strategy<Value = MetricsFunction> {
    prop_oneof![
        Just(MetricsFunction::Rate),
        Just(MetricsFunction::CountOverTime),
        any_field().prop_map(MetricsFunction::MinOverTime),
        any_field().prop_map(MetricsFunction::MaxOverTime),
        any_field().prop_map(MetricsFunction::AvgOverTime),
        any_field().prop_map(MetricsFunction::SumOverTime),
        any_field().prop_map(MetricsFunction::HistogramOverTime),
        (any_field(), prop::collection::vec(0.0..=1.0, 1..4))
            .prop_map(|(of, quantiles)| MetricsFunction::QuantileOverTime(of, quantiles)),
        (field_expr(), 1_i64..1000, prop::option::of((0_i64..100, 0_i64..i64::MAX)))
            .prop_map(|(filter, top, range)| MetricsFunction::Compare { filter, top, range }),
    ]
}

fn metrics_expr() -> impl Strategy<Value = MetricsExpr> {
    let by = prop::collection::vec(any_field(), 0..3);
    let query = (prop::collection::vec(stage(), 1..3), metrics_function(), by)
        .prop_map(|(stages, function, by)| MetricsExpr::Query(MetricsQuery { stages, function, by }));
    query.prop_recursive(3, 8, 2, |inner| {
        let op = prop::sample::select(vec![BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div]);
        let number = prop_oneof![
            any::<i64>().prop_map(Literal::Int),
            prop::num::f64::NORMAL.prop_map(Literal::Float),
            (0..i64::MAX).prop_map(Literal::Duration)
        ];
        let order = prop::sample::select(vec![BinaryOp::Greater, BinaryOp::LessEq, BinaryOp::Eq, BinaryOp::NotEq]);
        let stage = prop_oneof![
            (1_i64..100).prop_map(SecondStage::TopK),
            (1_i64..100).prop_map(SecondStage::BottomK),
            (order, number.clone()).prop_map(|(op, bound)| SecondStage::Filter(op, bound)),
        ];
        let right = prop_oneof![inner.clone(), number.prop_map(MetricsExpr::Literal)];
        prop_oneof![
            (op, inner.clone(), right).prop_map(|(op, left, right)| MetricsExpr::Binary {
                op,
                left: Box::new(left),
                right: Box::new(right)
            }),
            (inner, stage).prop_map(|(inner, stage)| MetricsExpr::Second(Box::new(inner), stage)),
        ]
    })
}

proptest! {
    #[test]
    fn printed_metrics_read_back(
        metrics in metrics_expr(),
        hints in prop::collection::vec(("[a-z_]{1,8}", literal()), 0..3),
    ) {
        let hints = hints.into_iter().map(|(name, value)| Hint { name, value }).collect();
        let query = Query { body: QueryBody::Metrics(metrics), hints };
        let printed = query.to_string();
        prop_assert_eq!(parser::parse(&printed), Ok(query.clone()), "{}", printed);
    }

    #[test]
    fn errors_are_shown_for_any_text(text in "\\PC{0,64}", lines in "[{}()a-z.=&| \n\t\"]{0,40}") {
        for text in [text, lines] {
            if let Err(error) = parse(&text) {
                prop_assert!(error.shown_in(&text).starts_with(&error.to_string()));
            }
        }
    }

    #[test]
    fn what_is_printed_reads_back(stages in prop::collection::vec(stage(), 1..4)) {
        let query = Query { body: QueryBody::Spans(stages), hints: Vec::new() };
        let printed = query.to_string();
        prop_assert_eq!(parser::parse(&printed), Ok(query.clone()), "{}", printed);
    }

    #[test]
    fn any_text_is_survived(text in "\\PC{0,64}") {
        let _ = parse(&text);
        let _ = filter_of_unfinished(&text);
    }

    #[test]
    fn any_mix_of_tokens_is_survived(tokens in prop::collection::vec(prop::sample::select(vec![
        "{", "}", "(", ")", "&&", "||", "|", "!", "-", "+", "*", "/", "^", "%", "=", "!=", "=~", "!~", "<", ">", ">>", "<<",
        "&>>", "!<", "~", ",", ".a", "span.b", "parent.c", "span:", "name", "status", "nil", "1", "1.5", "2s", "\"x\"",
        "`y`", "true", "error", "server", "count", "avg", "by", "coalesce", "select", "rate", "topk", "compare", "with",
        "quantile_over_time", "\"", "`", ".", "&", "/*", "//", "\n", "minInt", "9223372036854775808",
    ]), 0..24)) {
        let text = tokens.join(" ");
        if let Ok(query) = parser::parse(&text) {
            let printed = query.to_string();
            prop_assert_eq!(parser::parse(&printed), Ok(query.clone()), "{} printed as {}", text, printed);
        }
        let _ = parse(&text);
        let _ = filter_of_unfinished(&text);
    }
}
