//! Metrics queries: spans in, numbers over time out.
//!
//! ```text
//! traces ─► Partial::observe ─┐
//! traces ─► Partial::observe ─┴► Partial::merge ─► Partial::finish ─► MetricsResult
//! ```
//!
//! A span counts in the interval of its own start, whenever it came. Quantiles come from sketches and are within 1 %;
//! everything else is exact. The same data gives the same answer, however the work is divided.

mod compare;
mod exemplar;
mod groups;
mod intervals;
mod label;
mod memory;
mod plan;
mod series;
mod sketch;
#[cfg(test)]
mod tests;

use std::borrow::BorrowMut;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;

pub use exemplar::Exemplar;
pub use intervals::{Intervals, default_step};
pub use label::{Label, LabelValue};
pub use plan::MetricsPlan;
pub use series::Series;

use self::compare::Comparison;
use self::exemplar::Spread;
use self::groups::{Context, Groups, Places};
use self::memory::Memory;
use self::plan::Node;
use self::series::Operand;
use super::parent::WithParent;
use super::prefilter::Prefilter;
use super::scan::{RangeOf, Scan, TraceFacts, Visitor, Wanted};
use super::search::Inspected;
use super::span::SpanView;
use super::view::View;
use crate::blocks::BlocksError;
use crate::traceql::Field;

/// Most exemplars of an answer.
pub const MAX_EXEMPLARS: usize = 100;

/// What is asked, and within which limits.
#[derive(Clone, Debug)]
pub struct MetricsRequest {
    /// What.
    pub plan: MetricsPlan,
    /// When.
    pub intervals: Intervals,
    /// Most exemplars; the query may ask for another number, up to [`MAX_EXEMPLARS`].
    pub exemplars: usize,
    /// Most series in the answer; 0 for any number.
    pub max_series: usize,
    /// Most memory for partial results, bytes.
    pub max_bytes: usize,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricsResult {
    /// Those that have a value, in the order of their labels.
    pub series: Vec<Series>,
    /// What was looked at for it.
    pub inspected: Inspected,
    /// Why something is missing.
    pub partial: Option<String>,
}

/// What was counted on a part of all spans.
#[derive(Clone, Debug)]
pub struct Partial {
    leaves: Vec<Leaf>,
    inspected: Inspected,
    /// Blocks that could not be read.
    skipped: usize,
    memory: Memory,
    /// Labels of exemplars that were read after everything else of the present block, by row.
    late: HashMap<usize, Vec<Label>>,
}

#[derive(Clone, Debug)]
enum Leaf {
    Groups(Groups),
    Comparison(Comparison),
}

impl MetricsRequest {
    /// Most exemplars of the answer.
    fn most_exemplars(&self) -> usize {
        if self.intervals.is_instant() { 0 } else { self.plan.exemplars.unwrap_or(self.exemplars).min(MAX_EXEMPLARS) }
    }

    /// How they are spread over the series; none if there are none.
    fn spread(&self) -> Option<Spread> {
        Spread::new(&self.intervals, self.most_exemplars())
    }
}

impl Partial {
    /// Nothing counted yet.
    pub fn new(request: &MetricsRequest) -> Self {
        let leaves = request.plan.leaves.iter().map(|leaf| match leaf.compare {
            Some(_) => Leaf::Comparison(Comparison::default()),
            None => Leaf::Groups(Groups::default()),
        });
        let memory = Memory::new(request.max_bytes);
        Self { leaves: leaves.collect(), inspected: Inspected::default(), skipped: 0, memory, late: HashMap::new() }
    }

    /// Counts the spans of one whole trace.
    pub fn observe<S: SpanView>(&mut self, spans: &[S], request: &MetricsRequest) {
        if request.plan.needs_parents {
            self.count(&WithParent::of_trace(spans), request);
        } else {
            self.count(spans, request);
        }
    }

    fn count<S: SpanView>(&mut self, spans: &[S], request: &MetricsRequest) {
        let exemplars = request.spread();
        for (plan, leaf) in request.plan.leaves.iter().zip(&mut self.leaves) {
            let query = Context { leaf: plan, intervals: &request.intervals, exemplars };
            let sets = plan.spans.run(spans);
            let picked = sets.iter().flat_map(|set| &set.spans).filter_map(|index| spans.get(*index));
            // Of a trace each series counts the first span only, if traces are to be counted.
            let picked: Vec<_> =
                if request.plan.counts_traces { first_of_each_group(picked, &plan.by) } else { picked.collect() };
            let mut known = Places::of(picked.len());
            for span in picked {
                match (&mut *leaf, &plan.compare) {
                    (Leaf::Groups(groups), _) => groups.observe(span, query, &mut self.memory, &mut known),
                    (Leaf::Comparison(comparison), Some(compare)) => {
                        comparison.observe(span, compare, query, &mut self.memory);
                    }
                    // Leaves are made from their plans.
                    (Leaf::Comparison(_), None) => {}
                }
            }
        }
    }

    /// Counts all that is in view; a part of it if `cancelled` is set on the way. Fails if the store does.
    pub fn observe_view(
        &mut self,
        view: &View,
        request: &MetricsRequest,
        cancelled: &AtomicBool,
    ) -> Result<(), BlocksError> {
        let plan = &request.plan;
        let filter = Prefilter::of(plan.leaves.iter().map(|leaf| &leaf.spans));
        let mut wanted = plan.wanted();
        let mut late = Wanted::default();
        let whole =
            plan.counts_traces || wanted.needs_trace() || plan.leaves.iter().any(|leaf| !leaf.spans.is_of_spans());
        if request.most_exemplars() > 0 {
            // Few spans become exemplars; where traces are read whole, that is hardly more.
            let fields = if whole { &mut wanted } else { &mut late };
            for field in exemplar::fields() {
                fields.add(&field);
            }
        }
        let scan = Scan {
            filter: &filter,
            range: (&request.intervals).into(),
            range_of: RangeOf::Spans,
            nested: plan.needs_nested,
            whole,
            wanted,
            late,
            newest_first: false,
        };
        let progress = view.scan(&scan, &mut Counting { request, partial: &mut *self }, cancelled)?;
        self.inspected.add(progress.inspected);
        self.skipped += progress.skipped;
        Ok(())
    }

    /// Adds what was counted on other spans for the same request.
    pub fn merge(&mut self, other: Self, request: &MetricsRequest) {
        self.inspected.add(other.inspected);
        self.skipped += other.skipped;
        self.memory.merge(&other.memory);
        let exemplars = request.spread();
        for (ours, theirs) in self.leaves.iter_mut().zip(other.leaves) {
            match (ours, theirs) {
                (Leaf::Groups(ours), Leaf::Groups(theirs)) => {
                    ours.merge(theirs, exemplars, &mut self.memory);
                }
                (Leaf::Comparison(ours), Leaf::Comparison(theirs)) => ours.merge(theirs, &mut self.memory),
                // The same request has the same leaves.
                _ => {}
            }
        }
    }

    /// Makes the answer.
    pub fn finish(self, request: &MetricsRequest) -> MetricsResult {
        let intervals = &request.intervals;
        let mut leaves: Vec<Vec<Series>> = Vec::with_capacity(self.leaves.len());
        for (plan, leaf) in request.plan.leaves.iter().zip(self.leaves) {
            leaves.push(match (leaf, &plan.compare) {
                (Leaf::Groups(groups), _) => {
                    let groups = groups.into_series(plan, intervals).into_iter();
                    groups.flat_map(|group| series::finish_group(group, plan, intervals)).collect()
                }
                (Leaf::Comparison(comparison), Some(compare)) => comparison.into_series(compare),
                (Leaf::Comparison(_), None) => Vec::new(),
            });
        }
        let mut series = match evaluate(&request.plan.root, &mut leaves) {
            Operand::Series(series) => series,
            Operand::Number(number) => {
                let name = ("__name__".to_owned(), LabelValue::Text(number.to_string()));
                vec![Series::new(vec![name], vec![number; intervals.count()])]
            }
        };
        series.retain(|series| series.values.iter().any(|value| !value.is_nan()));
        series::sort(&mut series);
        let mut partial = self.memory.exceeded().then(|| {
            format!(
                "Query exceeds the memory limit of {} bytes, a partial response is returned. Warning: the accuracy of \
                 each individual value is not guaranteed.",
                request.max_bytes
            )
        });
        if request.max_series > 0 && series.len() > request.max_series {
            series.truncate(request.max_series);
            partial.get_or_insert_with(|| {
                format!(
                    "Response exceeds maximum series limit of {}, a partial response is returned. Warning: the \
                     accuracy of each individual value is not guaranteed.",
                    request.max_series
                )
            });
        }
        if self.skipped > 0 {
            partial.get_or_insert_with(|| {
                format!("{} blocks cannot be read, a partial response is returned without their spans.", self.skipped)
            });
        }
        for series in &mut series {
            series::settle_exemplars(series, intervals);
        }
        share_exemplars(&mut series, request.most_exemplars());
        MetricsResult { series, inspected: self.inspected, partial }
    }
}

/// Of the spans of a trace that go into the same series, the one that starts first.
fn first_of_each_group<'s, S: SpanView>(spans: impl Iterator<Item = &'s S>, by: &[Field]) -> Vec<&'s S> {
    let mut spans: Vec<&S> = spans.collect();
    // The order in which spans lie says nothing; of those that start together any stands for the trace.
    spans.sort_by_key(|span| span.start_ns());
    let mut seen = HashSet::new();
    spans.retain(|span| seen.insert(by.iter().map(|field| format!("{:?}", span.field(field))).collect::<Vec<_>>()));
    spans
}

/// Answers a metrics query from all that is in view; incomplete soon after `cancelled` is set.
///
/// Fails if the store does.
pub fn query_metrics(
    view: &View,
    request: &MetricsRequest,
    cancelled: &AtomicBool,
) -> Result<MetricsResult, BlocksError> {
    let mut partial = Partial::new(request);
    partial.observe_view(view, request, cancelled)?;
    Ok(partial.finish(request))
}

/// A metrics query at work, on a partial result that is its own or somebody else's.
struct Counting<'r, P> {
    request: &'r MetricsRequest,
    partial: P,
}

impl<'r, P: BorrowMut<Partial>> Visitor for Counting<'r, P> {
    type Part = Counting<'r, Partial>;

    fn part(&self) -> Option<Self::Part> {
        Some(Counting { request: self.request, partial: Partial::new(self.request) })
    }

    fn join(&mut self, part: Self::Part) {
        self.partial.borrow_mut().merge(part.partial, self.request);
    }

    fn wants(&self, trace: &TraceFacts) -> bool {
        let (start, end) = self.request.intervals.bounds();
        // A span without an end has nothing to do with the end of its trace.
        let ended_before = trace.end_ns < start && trace.start_ns <= trace.end_ns;
        !ended_before && trace.start_ns <= end
    }

    fn trace<S: SpanView>(&mut self, _trace: &TraceFacts, spans: &[S]) -> bool {
        self.spans(spans)
    }

    fn spans<S: SpanView>(&mut self, spans: &[S]) -> bool {
        self.partial.borrow_mut().observe(spans, self.request);
        true
    }

    fn late_rows(&self) -> BTreeSet<usize> {
        let groups = self.partial.borrow().leaves.iter().filter_map(|leaf| match leaf {
            Leaf::Groups(groups) => Some(groups.rows()),
            Leaf::Comparison(_) => None,
        });
        groups.flatten().collect()
    }

    fn late<S: SpanView>(&mut self, row: usize, span: &S) {
        self.partial.borrow_mut().late.insert(row, exemplar::labels(span));
    }

    fn block_done(&mut self) {
        let partial: &mut Partial = self.partial.borrow_mut();
        let labels = std::mem::take(&mut partial.late);
        let Some(spread) = self.request.spread() else { return };
        for leaf in &mut partial.leaves {
            if let Leaf::Groups(groups) = leaf {
                groups.settle(&labels, spread);
            }
        }
    }
}

/// Every leaf is used once.
fn evaluate(node: &Node, leaves: &mut [Vec<Series>]) -> Operand {
    let on_series = |operand: Operand, change: &dyn Fn(Vec<Series>) -> Vec<Series>| match operand {
        Operand::Series(series) => Operand::Series(change(series)),
        number @ Operand::Number(_) => number,
    };
    match node {
        Node::Leaf(index) => Operand::Series(leaves.get_mut(*index).map(std::mem::take).unwrap_or_default()),
        Node::Number(number) => Operand::Number(*number),
        Node::Binary { op, left, right } => {
            let left = evaluate(left, leaves);
            series::combine(*op, left, evaluate(right, leaves))
        }
        Node::Top { most, largest, of } => {
            on_series(evaluate(of, leaves), &|series| series::top(series, *most, *largest))
        }
        Node::Filter { op, bound, of } => {
            on_series(evaluate(of, leaves), &|series| series::filter(series, *op, *bound))
        }
    }
}

/// Leaves no more exemplars than asked for, to every series as many.
fn share_exemplars(series: &mut [Series], most: usize) {
    let with = series.iter().filter(|series| !series.exemplars.is_empty()).count();
    let share = (most / with.max(1)).max(1);
    let mut left = most;
    for exemplars in series.iter_mut().map(|series| &mut series.exemplars) {
        let share = share.min(left);
        // Evenly spread, since they are sorted by time.
        let len = exemplars.len().max(1);
        let mut index = 0;
        exemplars.retain(|_| {
            let keep = share > 0 && (index == 0 || index * share / len != (index - 1) * share / len);
            index += 1;
            keep
        });
        exemplars.truncate(share);
        left -= exemplars.len();
    }
}
