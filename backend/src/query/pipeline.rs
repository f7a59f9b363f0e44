//! Runs a plan on the spans of one trace.

use std::collections::{HashMap, HashSet};
use std::mem::discriminant;

use super::plan::{Plan, PlannedAggregate, PlannedSpansets, PlannedStage};
use super::span::SpanView;
use super::value::Value;
use crate::traceql::{AggregateFunction, SpansetOp};

/// Some spans of a trace.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spanset<'s> {
    /// Their places in the trace, ascending; never empty in a result.
    pub spans: Vec<usize>,
    /// What `by()` and aggregates found.
    pub attributes: Vec<(&'s str, Value<'s>)>,
}

/// How two spans can stand to each other.
#[derive(Clone, Copy)]
enum Relation {
    /// The second is below the first.
    Descendant,
    Ancestor,
    Child,
    Parent,
    Sibling,
}

impl Plan {
    /// The sets of spans of a trace that the plan lets pass; none if the trace does not match.
    pub fn run<'s, S: SpanView>(&'s self, spans: &'s [S]) -> Vec<Spanset<'s>> {
        run_stages(&self.stages, spans, vec![Spanset { spans: (0..spans.len()).collect(), attributes: Vec::new() }])
    }
}

fn run_stages<'s, S: SpanView>(
    stages: &'s [PlannedStage],
    spans: &'s [S],
    input: Vec<Spanset<'s>>,
) -> Vec<Spanset<'s>> {
    stages.iter().fold(input, |sets, stage| match stage {
        PlannedStage::Spansets(expr) => sets
            .into_iter()
            .filter_map(|set| {
                let picked = pick(expr, spans, &set.spans);
                (!picked.is_empty()).then_some(Spanset { spans: picked, attributes: set.attributes })
            })
            .collect(),
        PlannedStage::Scalar { aggregate, op, bound } => sets
            .into_iter()
            .filter_map(|mut set| {
                let number = calculate(aggregate, spans, &set.spans)?;
                if !number.compare(*op, &Value::constant(bound)) {
                    return None;
                }
                set.attributes.push((&aggregate.key, number));
                Some(set)
            })
            .collect(),
        PlannedStage::By { key, expr } => {
            sets.into_iter().flat_map(|set| group(key, |span| expr.evaluate(span), spans, &set)).collect()
        }
        PlannedStage::Coalesce => {
            let mut all: Vec<usize> = sets.into_iter().flat_map(|set| set.spans).collect();
            all.sort_unstable();
            all.dedup();
            if all.is_empty() { Vec::new() } else { vec![Spanset { spans: all, attributes: Vec::new() }] }
        }
    })
}

/// The spans of a set that an expression answers with, ascending.
fn pick<S: SpanView>(expr: &PlannedSpansets, spans: &[S], set: &[usize]) -> Vec<usize> {
    match expr {
        PlannedSpansets::Filter(filter) => {
            set.iter().copied().filter(|index| spans.get(*index).is_some_and(|span| filter.holds(span))).collect()
        }
        PlannedSpansets::Pipeline(stages) => {
            let input = vec![Spanset { spans: set.to_vec(), attributes: Vec::new() }];
            union(run_stages(stages, spans, input).into_iter().map(|set| set.spans))
        }
        PlannedSpansets::Binary { op, left, right } => {
            let left = pick(left, spans, set);
            let right = pick(right, spans, set);
            combine(*op, spans, left, right)
        }
    }
}

fn combine<S: SpanView>(op: SpansetOp, spans: &[S], left: Vec<usize>, right: Vec<usize>) -> Vec<usize> {
    let below = |relation| related(relation, spans, &left, &right);
    let without = |relation| {
        let with: HashSet<usize> = related(relation, spans, &left, &right).into_iter().collect();
        right.iter().copied().filter(|index| !with.contains(index)).collect()
    };
    let both = |relation, inverse| {
        union([related(relation, spans, &left, &right), related(inverse, spans, &right, &left)].into_iter())
    };
    match op {
        SpansetOp::And if left.is_empty() || right.is_empty() => Vec::new(),
        SpansetOp::And | SpansetOp::Or => union([left, right].into_iter()),
        SpansetOp::Child => below(Relation::Child),
        SpansetOp::Parent => below(Relation::Parent),
        SpansetOp::Descendant => below(Relation::Descendant),
        SpansetOp::Ancestor => below(Relation::Ancestor),
        SpansetOp::Sibling => below(Relation::Sibling),
        SpansetOp::NotChild => without(Relation::Child),
        SpansetOp::NotParent => without(Relation::Parent),
        SpansetOp::NotDescendant => without(Relation::Descendant),
        SpansetOp::NotAncestor => without(Relation::Ancestor),
        SpansetOp::NotSibling => without(Relation::Sibling),
        SpansetOp::UnionChild => both(Relation::Child, Relation::Parent),
        SpansetOp::UnionParent => both(Relation::Parent, Relation::Child),
        SpansetOp::UnionDescendant => both(Relation::Descendant, Relation::Ancestor),
        SpansetOp::UnionAncestor => both(Relation::Ancestor, Relation::Descendant),
        SpansetOp::UnionSibling => both(Relation::Sibling, Relation::Sibling),
    }
}

fn union(sets: impl Iterator<Item = Vec<usize>>) -> Vec<usize> {
    let mut all: Vec<usize> = sets.flatten().collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Those of `to` that stand in the relation to one of `from`.
fn related<S: SpanView>(relation: Relation, spans: &[S], from: &[usize], to: &[usize]) -> Vec<usize> {
    let nested = |index: &usize| spans.get(*index).map(SpanView::nested).unwrap_or_default();
    // Spans in no tree (`left` 0) are related to nobody.
    let placed = from.iter().map(nested).filter(|n| n.left > 0);
    let keep = |test: &dyn Fn(&usize) -> bool| to.iter().copied().filter(|i| nested(i).left > 0 && test(i)).collect();
    match relation {
        Relation::Descendant => {
            // By entry, with the last exit of all entered before: intervals nest, so if one of those entered before a
            // span is left after it, that one is above it.
            let mut intervals: Vec<_> = placed.map(|n| (n.left, n.right)).collect();
            intervals.sort_unstable();
            let mut last = 0;
            for (_, right) in &mut intervals {
                last = last.max(*right);
                *right = last;
            }
            keep(&|index| {
                let n = nested(index);
                let before = intervals.partition_point(|(left, _)| *left < n.left);
                before.checked_sub(1).and_then(|i| intervals.get(i)).is_some_and(|(_, right)| *right > n.right)
            })
        }
        Relation::Ancestor => {
            let mut entries: Vec<i32> = placed.map(|n| n.left).collect();
            entries.sort_unstable();
            keep(&|index| {
                let n = nested(index);
                let next = entries.partition_point(|left| *left <= n.left);
                entries.get(next).is_some_and(|left| *left < n.right)
            })
        }
        Relation::Child => {
            let parents: HashSet<i32> = placed.map(|n| n.left).collect();
            keep(&|index| parents.contains(&nested(index).parent))
        }
        Relation::Parent => {
            let parents: HashSet<i32> = placed.map(|n| n.parent).collect();
            keep(&|index| parents.contains(&nested(index).left))
        }
        Relation::Sibling => {
            let mut families: HashMap<i32, Vec<i32>> = HashMap::new();
            for n in placed.filter(|n| n.parent > 0) {
                families.entry(n.parent).or_default().push(n.left);
            }
            keep(&|index| {
                let n = nested(index);
                families.get(&n.parent).is_some_and(|family| family.iter().any(|left| *left != n.left))
            })
        }
    }
}

/// One number for a set; none if none of its spans has a number.
fn calculate<'s, S: SpanView>(aggregate: &'s PlannedAggregate, spans: &'s [S], set: &[usize]) -> Option<Value<'s>> {
    let Some(argument) = &aggregate.argument else {
        return Some(Value::Int(i64::try_from(set.len()).unwrap_or(i64::MAX)));
    };
    let values = set.iter().filter_map(|index| spans.get(*index)).map(|span| argument.evaluate(span));
    let values: Vec<_> = values.filter(|value| value.number().is_some()).collect();
    let first = values.first()?;
    let integers = || values.iter().filter_map(Value::integer);
    if aggregate.function != AggregateFunction::Avg && values.iter().all(|v| discriminant(v) == discriminant(first)) {
        let exact = match aggregate.function {
            AggregateFunction::Max => integers().max(),
            AggregateFunction::Min => integers().min(),
            _ => integers().try_fold(0, i64::checked_add),
        };
        match (first, exact) {
            (Value::Int(_), Some(int)) => return Some(Value::Int(int)),
            (Value::Duration(_), Some(nanos)) => return Some(Value::Duration(nanos)),
            _ => {}
        }
    }
    let mut numbers: Vec<f64> = values.iter().filter_map(Value::number).collect();
    // Sums depend on the order, and the order in which spans lie says nothing.
    numbers.sort_unstable_by(f64::total_cmp);
    let numbers = numbers.into_iter();
    let number = match aggregate.function {
        AggregateFunction::Count => values.len() as f64,
        AggregateFunction::Sum => numbers.sum(),
        AggregateFunction::Avg => numbers.sum::<f64>() / values.len() as f64,
        AggregateFunction::Max => numbers.fold(f64::NEG_INFINITY, f64::max),
        AggregateFunction::Min => numbers.fold(f64::INFINITY, f64::min),
    };
    let durations = values.iter().all(|value| matches!(value, Value::Duration(_)));
    Some(if durations { Value::Duration(number.round() as i64) } else { Value::Float(number) })
}

/// One set for each value, in the order in which the values first occur.
fn group<'s, S: SpanView>(
    key: &'s str,
    value_of: impl Fn(&'s S) -> Value<'s>,
    spans: &'s [S],
    set: &Spanset<'s>,
) -> Vec<Spanset<'s>> {
    let mut groups: Vec<Spanset<'s>> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for index in &set.spans {
        let Some(span) = spans.get(*index) else { continue };
        let value = value_of(span);
        let place = *places.entry(format!("{value:?}")).or_insert(groups.len());
        if place == groups.len() {
            let mut attributes = set.attributes.clone();
            attributes.push((key, value));
            groups.push(Spanset { spans: Vec::new(), attributes });
        }
        if let Some(group) = groups.get_mut(place) {
            group.spans.push(*index);
        }
    }
    groups
}
