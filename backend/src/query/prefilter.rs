//! What a trace must have for a plan to accept it, as far as single spans can show it.
//!
//! A [`Prefilter`] is necessary, never sufficient: it lets every trace pass that the plan accepts, and many that it does not.
//! Its conditions look at one span and mostly at one field, so that they can be checked on columns before anything else
//! of a trace is read.

use super::expr::Expr;
use super::nested::NestedSet;
use super::parent::is_of_parent;
use super::plan::{Plan, PlannedSpansets, PlannedStage};
use super::span::SpanView;
use super::value::Value;
use crate::traceql::{Field, Intrinsic, Scope, SpansetOp};

/// Which spans a trace must have.
#[derive(Clone, Debug)]
pub(super) struct Prefilter {
    /// What [`Need::Span`] numbers.
    pub(super) conditions: Vec<Condition>,
    /// Whether a condition holds on a span whatever the rest of its trace is.
    of_part: Vec<bool>,
    need: Need,
}

/// What must be in a trace.
#[derive(Clone, Debug)]
enum Need {
    All(Vec<Need>),
    Any(Vec<Need>),
    /// A span on which the condition of this number holds.
    Span(usize),
    Nothing,
}

/// What a span must be.
#[derive(Clone, Debug)]
pub(super) enum Condition {
    All(Vec<Condition>),
    /// Empty for what no span fulfils.
    Any(Vec<Condition>),
    Leaf(Leaf),
    /// Nothing is known.
    Unknown,
}

/// A condition on one field.
#[derive(Clone, Debug)]
pub(super) struct Leaf {
    pub(super) field: Field,
    /// Mentions no other field.
    test: Expr,
}

impl Prefilter {
    /// Derives it from plans of which a trace must match one.
    pub(super) fn of<'p>(plans: impl IntoIterator<Item = &'p Plan>) -> Self {
        let mut conditions = Vec::new();
        let needs = plans.into_iter().map(|plan| of_stages(&plan.stages, &mut conditions)).collect();
        let of_part = conditions.iter().map(Condition::is_of_part).collect();
        Self { conditions, of_part, need: Need::Any(needs) }
    }

    /// Of every span: nothing is required.
    pub(super) fn nothing() -> Self {
        Self { conditions: Vec::new(), of_part: Vec::new(), need: Need::Nothing }
    }

    /// Whether a trace can match that has, for each condition, a span that fulfils it as `has` says.
    pub(super) fn admits(&self, has: &dyn Fn(usize) -> bool) -> bool {
        self.need.is_met(has)
    }

    /// Whether a trace can match of which only a part is known: one span that could be among those of a match is enough.
    pub(super) fn admits_part(&self, has: &dyn Fn(usize) -> bool) -> bool {
        self.need.is_met(&|_| false) || self.of_part.iter().enumerate().any(|(number, of_part)| !of_part || has(number))
    }

    /// Whether some trace can match among spans of which a summary is known: `leaf` says whether a condition on one field
    /// can hold on one of them. `parts` says whether some traces have spans elsewhere too.
    pub(super) fn admits_some(&self, parts: bool, leaf: &dyn Fn(&Leaf) -> bool) -> bool {
        let has = |number: usize| self.conditions.get(number).is_some_and(|condition| condition.is_possible(leaf));
        self.admits(&has) || parts && self.admits_part(&has)
    }

    /// [`Self::admits_part`] on spans at hand.
    pub(super) fn admits_part_of<S: SpanView>(&self, spans: &[S]) -> bool {
        self.admits_part(&|number| {
            self.conditions.get(number).is_some_and(|condition| spans.iter().any(|span| condition.holds(span)))
        })
    }
}

impl Need {
    fn is_met(&self, has: &dyn Fn(usize) -> bool) -> bool {
        match self {
            Self::All(needs) => needs.iter().all(|need| need.is_met(has)),
            Self::Any(needs) => needs.iter().any(|need| need.is_met(has)),
            Self::Span(number) => has(*number),
            Self::Nothing => true,
        }
    }
}

/// Every filter on the way must let some span pass; what stands between them only makes sets smaller.
fn of_stages(stages: &[PlannedStage], conditions: &mut Vec<Condition>) -> Need {
    let needs = stages.iter().filter_map(|stage| match stage {
        PlannedStage::Spansets(expr) => Some(of_spansets(expr, conditions)),
        PlannedStage::Scalar { .. } | PlannedStage::By { .. } | PlannedStage::Coalesce => None,
    });
    Need::All(needs.collect())
}

fn of_spansets(expr: &PlannedSpansets, conditions: &mut Vec<Condition>) -> Need {
    match expr {
        PlannedSpansets::Filter(filter) => match Condition::of(filter) {
            Condition::Unknown => Need::Nothing,
            condition => {
                conditions.push(condition);
                Need::Span(conditions.len() - 1)
            }
        },
        PlannedSpansets::Pipeline(stages) => of_stages(stages, conditions),
        PlannedSpansets::Binary { op, left, right } => match op {
            SpansetOp::Or => Need::Any(vec![of_spansets(left, conditions), of_spansets(right, conditions)]),
            // Their answer is a part of the right side, which is whole if nothing is on the left.
            SpansetOp::NotChild
            | SpansetOp::NotParent
            | SpansetOp::NotDescendant
            | SpansetOp::NotAncestor
            | SpansetOp::NotSibling => of_spansets(right, conditions),
            SpansetOp::And
            | SpansetOp::Child
            | SpansetOp::Parent
            | SpansetOp::Descendant
            | SpansetOp::Ancestor
            | SpansetOp::Sibling
            | SpansetOp::UnionChild
            | SpansetOp::UnionParent
            | SpansetOp::UnionDescendant
            | SpansetOp::UnionAncestor
            | SpansetOp::UnionSibling => Need::All(vec![of_spansets(left, conditions), of_spansets(right, conditions)]),
        },
    }
}

impl Condition {
    /// What must hold where `expr` does.
    pub(super) fn of(expr: &Expr) -> Self {
        match expr {
            Expr::All(list) => {
                let known: Vec<_> = list.iter().map(Self::of).filter(|item| !matches!(item, Self::Unknown)).collect();
                if known.is_empty() { Self::Unknown } else { Self::All(known) }
            }
            Expr::Any(list) => {
                let list: Vec<_> = list.iter().map(Self::of).collect();
                if list.iter().any(|item| matches!(item, Self::Unknown)) { Self::Unknown } else { Self::Any(list) }
            }
            expr => {
                let mut fields = Vec::new();
                expr.fields(&mut fields);
                match fields.as_slice() {
                    [] if expr.holds(&OneField(&Value::Nil)) => Self::Unknown,
                    [] => Self::Any(Vec::new()),
                    // What is known of the span above tells nothing of this one.
                    [field, ..] if is_of_parent(field) => Self::Unknown,
                    [field, others @ ..] if others.iter().all(|other| other == field) => {
                        Self::Leaf(Leaf { field: (*field).clone(), test: expr.clone() })
                    }
                    _ => Self::Unknown,
                }
            }
        }
    }

    /// Whether it holds on a span.
    pub(super) fn holds<S: SpanView>(&self, span: &S) -> bool {
        match self {
            Self::All(list) => list.iter().all(|item| item.holds(span)),
            Self::Any(list) => list.iter().any(|item| item.holds(span)),
            Self::Leaf(leaf) => leaf.accepts(&span.field(&leaf.field)),
            Self::Unknown => true,
        }
    }
}

impl Condition {
    fn is_of_part(&self) -> bool {
        match self {
            Self::All(list) | Self::Any(list) => list.iter().all(Self::is_of_part),
            Self::Leaf(leaf) => !matches!(
                leaf.field,
                Field::Intrinsic(
                    Intrinsic::TraceDuration
                        | Intrinsic::RootName
                        | Intrinsic::RootService
                        | Intrinsic::ParentId
                        | Intrinsic::ChildCount
                        | Intrinsic::NestedSetLeft
                        | Intrinsic::NestedSetRight
                        | Intrinsic::NestedSetParent
                )
            ),
            Self::Unknown => true,
        }
    }

    /// Whether it can hold, if `leaf` says that of conditions on one field.
    fn is_possible(&self, leaf: &dyn Fn(&Leaf) -> bool) -> bool {
        match self {
            Self::All(list) => list.iter().all(|item| item.is_possible(leaf)),
            Self::Any(list) => list.iter().any(|item| item.is_possible(leaf)),
            Self::Leaf(condition) => leaf(condition),
            Self::Unknown => true,
        }
    }
}

impl Leaf {
    /// Whether the condition holds where the field has this value.
    pub(super) fn accepts(&self, value: &Value<'_>) -> bool {
        self.test.holds(&OneField(value))
    }
}

/// A span of which one field is known.
struct OneField<'v>(&'v Value<'v>);

impl SpanView for OneField<'_> {
    fn attribute(&self, _: Scope, _: &str) -> Value<'_> {
        self.0.borrowed()
    }

    fn each_attribute(&self, _: Scope, _: &mut dyn FnMut(&str, Value<'_>)) {}

    fn intrinsic(&self, _: Intrinsic) -> Value<'_> {
        self.0.borrowed()
    }

    fn nested(&self) -> NestedSet {
        NestedSet::default()
    }

    fn start_ns(&self) -> u64 {
        0
    }

    fn duration_ns(&self) -> u64 {
        0
    }

    fn field(&self, _: &Field) -> Value<'_> {
        self.0.borrowed()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::query::LiveSpan;
    use crate::query::fixture;
    use crate::query::random;
    use crate::traceql;

    fn plan(query: &str) -> Plan {
        Plan::new(&traceql::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"))).unwrap()
    }

    /// Whether the prefilter lets the trace pass.
    fn admits(plan: &Plan, spans: &[LiveSpan<'_>]) -> bool {
        let prefilter = Prefilter::of([plan]);
        let has = |number: usize| spans.iter().any(|span| prefilter.conditions[number].holds(span));
        prefilter.admits(&has)
    }

    #[rstest]
    #[case::everything("{}", true)]
    #[case::constant("{ false }", false)]
    #[case::has_it("{ resource.service.name = \"cart\" }", true)]
    #[case::has_it_not("{ resource.service.name = \"till\" }", false)]
    #[case::not_on_one_span("{ kind = internal && status = error }", false)]
    #[case::on_two_spans("{ kind = internal } && { status = error }", true)]
    #[case::one_of_two_is_missing("{ kind = internal } && { .nope = 1 }", false)]
    #[case::either("{ kind = internal } || { .nope = 1 }", true)]
    #[case::neither("{ kind = producer } || { .nope = 1 }", false)]
    #[case::below("{ .nope = 1 } >> { kind = internal }", false)]
    #[case::not_below("{ .nope = 1 } !>> { kind = internal }", true)]
    #[case::nothing_below("{ kind = internal } !>> { .nope = 1 }", false)]
    #[case::later_filter("{ kind = internal } | by(name) | { .nope = 1 }", false)]
    #[case::inner_pipeline("({ kind = internal } | count() > 0) && { .nope = 1 }", false)]
    #[case::two_fields("{ .nope = .nope2 }", true)]
    #[case::one_field_twice("{ .db.rows - .db.rows = 1 }", false)]
    #[case::number_alone("count() > 100", true)]
    fn needs_what_the_plan_needs(#[case] query: &str, #[case] expected: bool) {
        let trace = fixture::trace(fixture::shop());
        let plan = plan(query);
        assert_eq!(admits(&plan, &LiveSpan::of_trace(&trace, plan.needs_nested)), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn never_rejects_what_the_plan_accepts(trace in random::trace(), query in random::query()) {
            let plan = plan(&query);
            let spans = LiveSpan::of_trace(&trace, plan.needs_nested);
            if !plan.run(&spans).is_empty() {
                prop_assert!(admits(&plan, &spans), "{}", query);
                prop_assert!(Prefilter::of([&plan]).admits_part_of(&spans), "{}", query);
                // Wherever the trace is divided, one of its parts is enough to notice it.
                for at in 0..=spans.len() {
                    let (left, right) = spans.split_at(at);
                    let prefilter = Prefilter::of([&plan]);
                    prop_assert!(prefilter.admits_part_of(left) || prefilter.admits_part_of(right), "{}", query);
                }
            }
        }
    }
}
