//! Every trace that a query has to look at, shown to whoever counts, collects or compares them.

use std::collections::BTreeSet;

use super::metrics::Intervals;
use super::parent::is_of_parent;
use super::prefilter::Prefilter;
use super::search::{Inspected, Progress, Window};
use super::span::SpanView;
use crate::live::{Root, Trace, TraceId};
use crate::traceql::{Field, Intrinsic};

/// What is looked at.
#[derive(Clone, Debug)]
pub(super) struct Scan<'p> {
    /// What a trace must have.
    pub(super) filter: &'p Prefilter,
    /// When it must have been active.
    pub(super) range: TimeRange,
    /// What the range is about.
    pub(super) range_of: RangeOf,
    /// What is looked at on a span.
    pub(super) wanted: Wanted,
    /// What else is looked at on those spans of a block that a visitor of single spans picks.
    pub(super) late: Wanted,
    /// Whether the places of spans in their trees are needed.
    pub(super) nested: bool,
    /// Whether traces must be shown whole. If not, any spans may be shown together, without those that cannot match.
    pub(super) whole: bool,
    /// Whether traces that started last should come first.
    pub(super) newest_first: bool,
}

/// What must be in a time range.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum RangeOf {
    /// The start of a span.
    Spans,
    /// A moment of a trace.
    Traces,
}

/// Nanoseconds since the epoch, both included.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeRange {
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
}

impl TimeRange {
    /// Whether what lasts from `start_ns` to `end_ns` has a moment in it.
    pub(super) fn overlaps(self, start_ns: u64, end_ns: u64) -> bool {
        end_ns >= self.start_ns && start_ns <= self.end_ns
    }
}

/// What a query looks at on a span.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// Each once.
    pub(super) fields: Vec<Field>,
    /// Every attribute of every scope.
    pub(super) every_attribute: bool,
    /// Of these only that they are there.
    pub(super) names_only: bool,
}

impl Wanted {
    /// Fields that a query mentions.
    pub(super) fn of<'f>(fields: impl IntoIterator<Item = &'f Field>) -> Self {
        let mut wanted = Self::default();
        fields.into_iter().for_each(|field| wanted.add(field));
        wanted
    }

    pub(super) fn add(&mut self, field: &Field) {
        if !self.fields.contains(field) {
            self.fields.push(field.clone());
        }
    }

    /// Whether a field is an attribute of this name, of whatever scope.
    pub(super) fn mentions(&self, name: &str) -> bool {
        self.fields.iter().any(|field| matches!(field, Field::Attribute(attribute) if attribute.name == name))
    }

    /// Whether a span tells something only together with the others of its trace.
    pub(super) fn needs_trace(&self) -> bool {
        self.fields.iter().any(|field| !is_of_span(field))
    }
}

/// Whether a stored span alone tells what the field is.
pub(super) fn is_of_span(field: &Field) -> bool {
    let of_trace = matches!(
        field,
        Field::Intrinsic(
            Intrinsic::Parent
                | Intrinsic::ParentId
                | Intrinsic::ChildCount
                | Intrinsic::RootName
                | Intrinsic::RootService
        )
    );
    !of_trace && !is_of_parent(field)
}

impl From<Window> for TimeRange {
    fn from(window: Window) -> Self {
        let nanos = |seconds: u64| seconds.saturating_mul(1_000_000_000);
        Self { start_ns: window.start.map_or(0, nanos), end_ns: window.end.map_or(u64::MAX, nanos) }
    }
}

impl From<&Intervals> for TimeRange {
    fn from(intervals: &Intervals) -> Self {
        let (start_ns, end_ns) = intervals.bounds();
        Self { start_ns, end_ns }
    }
}

/// What is known of a trace as a whole.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TraceFacts {
    pub(super) id: TraceId,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    pub(super) root: Option<Root>,
}

impl TraceFacts {
    pub(super) fn of(trace: &Trace) -> Self {
        Self { id: trace.id, start_ns: trace.start_ns, end_ns: trace.end_ns, root: trace.root.clone() }
    }

    /// From the first start to the last end.
    pub(super) fn duration_ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.start_ns)
    }
}

/// Is shown traces, each once.
pub(super) trait Visitor {
    /// Takes the traces of one block on another thread; [`NoPart`] where the order of blocks matters.
    type Part: Visitor + Send;

    /// One that has seen nothing; none if it must see everything itself.
    fn part(&self) -> Option<Self::Part> {
        None
    }

    /// Takes over what a part has seen.
    fn join(&mut self, _part: Self::Part) {}

    /// Whether it needs no more of an attribute of spans that only [`Wanted::every_attribute`] asks for.
    fn knows(&self, _name: &str) -> bool {
        false
    }

    /// Whether it is to be shown this trace.
    fn wants(&self, trace: &TraceFacts) -> bool;

    /// Whether it can still want a trace that starts at this time or earlier, nanoseconds since the epoch.
    fn wants_since(&self, _start_ns: u64) -> bool {
        true
    }

    /// How many of the traces that it wants it takes before it may want fewer: looking at these in any order costs nothing.
    fn room(&self) -> usize {
        usize::MAX
    }

    /// Takes a trace. Returns whether it wants more.
    fn trace<S: SpanView>(&mut self, trace: &TraceFacts, spans: &[S]) -> bool;

    /// Takes spans of any traces, where traces need not be whole. Returns whether it wants more.
    fn spans<S: SpanView>(&mut self, spans: &[S]) -> bool;

    /// The rows of the present block whose late fields it wants to see.
    fn late_rows(&self) -> BTreeSet<usize> {
        BTreeSet::new()
    }

    /// Is shown one of them, with its late fields only.
    fn late<S: SpanView>(&mut self, _row: usize, _span: &S) {}

    /// Hears that rows that come now are of another block; what was not shown of this one will not be.
    fn block_done(&mut self) {}

    /// Hears that a part of the work is done, and when what is still to come starts at the latest; none if nothing comes.
    /// Returns whether it wants more.
    fn part_done(&mut self, _progress: Progress, _rest_starts_by: Option<u64>) -> bool {
        true
    }
}

/// The part of who must see everything himself: there is none.
#[derive(Clone, Copy, Debug)]
pub(super) enum NoPart {}

impl Visitor for NoPart {
    type Part = Self;

    fn wants(&self, _trace: &TraceFacts) -> bool {
        match *self {}
    }

    fn trace<S: SpanView>(&mut self, _trace: &TraceFacts, _spans: &[S]) -> bool {
        match *self {}
    }

    fn spans<S: SpanView>(&mut self, _spans: &[S]) -> bool {
        match *self {}
    }
}

impl Inspected {
    /// Counts a trace in memory.
    pub(super) fn count(&mut self, trace: &Trace) {
        self.traces += 1;
        self.bytes += trace.bytes as u64;
        self.spans += trace.spans.len() as u64;
    }

    /// Adds what was looked at elsewhere.
    pub(super) fn add(&mut self, other: Self) {
        self.traces += other.traces;
        self.bytes += other.bytes;
        self.spans += other.spans;
    }
}
