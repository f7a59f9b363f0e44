//! Spans that stand for a series: a click on one opens its trace.

use std::cmp::Ordering;
use std::collections::HashMap;

use coati_common::wellknown::resource::SERVICE_NAME;

use super::intervals::Intervals;
use super::label::{Label, LabelValue};
use crate::query::span::SpanView;
use crate::query::value::Value;
use crate::traceql::{Attribute, Field, Intrinsic, Scope};

/// Most exemplars in one part of the time range.
const PER_PART: usize = 2;

/// A span that a series counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Exemplar {
    /// Its start, nanoseconds since the epoch.
    pub start_ns: u64,
    /// What the series measures on it; not a number while that is only known of the whole series.
    pub value: f64,
    /// Who it is; `trace:id` is the first.
    pub labels: Vec<Label>,
}

/// Some exemplars of one series, spread over the time range.
///
/// Which ones stay is decided by a hash of their start, so it depends neither on the order in which they are seen nor on
/// how the work is divided.
#[derive(Clone, Debug, Default)]
pub(super) struct Exemplars {
    /// Of each part of the time range, as far as there are any, by rank.
    parts: Vec<Vec<Candidate>>,
}

#[derive(Clone, Debug)]
struct Candidate {
    rank: u64,
    start_ns: u64,
    value: f64,
    who: Who,
}

/// Whom a candidate stands for.
#[derive(Clone, Debug)]
enum Who {
    /// Known by these labels.
    Known(Vec<Label>),
    /// The span in this row of the block that is looked at: its labels are read when it is known who stays.
    Row(usize),
}

/// How a time range is cut into parts, and how many exemplars each of them may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spread {
    first_ns: u64,
    part_ns: u64,
    parts: usize,
    per_part: usize,
}

impl Candidate {
    /// Of two with the same rank the start is the same.
    fn order(&self, other: &Self) -> Ordering {
        self.rank.cmp(&other.rank).then_with(|| match (&self.who, &other.who) {
            (Who::Known(ours), Who::Known(theirs)) => ours.cmp(theirs).then_with(|| self.value.total_cmp(&other.value)),
            // All of a rank stay until they are known.
            _ => Ordering::Equal,
        })
    }
}

impl Exemplar {
    /// By start, then by whatever tells them apart: a span with several events has several values.
    fn order(&self, other: &Self) -> Ordering {
        let by_span = (self.start_ns, &self.labels).cmp(&(other.start_ns, &other.labels));
        by_span.then_with(|| self.value.total_cmp(&other.value))
    }
}

impl Spread {
    /// `most` is how many exemplars a series may have; none if it may have none.
    pub(super) fn new(intervals: &Intervals, most: usize) -> Option<Self> {
        if most == 0 {
            return None;
        }
        let (first_ns, last_ns) = intervals.bounds();
        let parts = most.div_ceil(PER_PART);
        let part_ns = (last_ns.saturating_sub(first_ns) / parts as u64).max(1);
        Some(Self { first_ns, part_ns, parts, per_part: most.min(PER_PART) })
    }

    fn part_of(self, start_ns: u64) -> usize {
        let part = start_ns.saturating_sub(self.first_ns) / self.part_ns;
        usize::try_from(part).unwrap_or(usize::MAX).min(self.parts - 1)
    }

    /// Adds a candidate to those of its part, and leaves the first ones.
    fn keep(self, candidates: &mut Vec<Candidate>, candidate: Candidate) {
        let is_known = matches!(candidate.who, Who::Known(_));
        let at = candidates.partition_point(|other| other.order(&candidate).is_le());
        candidates.insert(at, candidate);
        let Some(last) = candidates.get(self.per_part - 1).map(|candidate| candidate.rank) else { return };
        // Of a rank, which one comes first is decided when all are known.
        let keep = if is_known { self.per_part } else { candidates.partition_point(|other| other.rank <= last) };
        candidates.truncate(keep);
    }
}

impl Exemplars {
    /// Considers a span.
    pub(super) fn offer(&mut self, span: &impl SpanView, value: f64, spread: Spread) {
        let start_ns = span.start_ns();
        let part = spread.part_of(start_ns);
        let rank = mix(start_ns);
        if part >= self.parts.len() {
            self.parts.resize_with(part + 1, Vec::new);
        }
        let Some(kept) = self.parts.get_mut(part) else { return };
        if kept.len() >= spread.per_part && kept.last().is_some_and(|last| last.rank < rank) {
            return;
        }
        let who = span.row().map_or_else(|| Who::Known(labels(span)), Who::Row);
        spread.keep(kept, Candidate { rank, start_ns, value, who });
    }

    /// The rows whose labels are not read yet.
    pub(super) fn rows(&self) -> impl Iterator<Item = usize> {
        self.parts.iter().flatten().filter_map(|candidate| match candidate.who {
            Who::Row(row) => Some(row),
            Who::Known(_) => None,
        })
    }

    /// Learns the labels of spans by their rows, forgets those whose labels were not read, and decides who stays.
    pub(super) fn settle(&mut self, labels: &HashMap<usize, Vec<Label>>, spread: Spread) {
        let of_row = |candidate: &Candidate| matches!(candidate.who, Who::Row(_));
        for kept in self.parts.iter_mut().filter(|kept| kept.iter().any(of_row)) {
            for mut candidate in std::mem::take(kept) {
                if let Who::Row(row) = candidate.who {
                    let Some(labels) = labels.get(&row) else { continue };
                    candidate.who = Who::Known(labels.clone());
                }
                spread.keep(kept, candidate);
            }
        }
    }

    /// Adds those of another part of the work, which are settled, as these are.
    pub(super) fn merge(&mut self, other: Self, spread: Spread) {
        if self.parts.len() < other.parts.len() {
            self.parts.resize_with(other.parts.len(), Vec::new);
        }
        for (kept, candidates) in self.parts.iter_mut().zip(other.parts) {
            for candidate in candidates {
                spread.keep(kept, candidate);
            }
        }
    }

    /// By start.
    pub(super) fn into_sorted(self) -> Vec<Exemplar> {
        let known = self.parts.into_iter().flatten().filter_map(|Candidate { start_ns, value, who, .. }| match who {
            Who::Known(labels) => Some(Exemplar { start_ns, value, labels }),
            Who::Row(_) => None,
        });
        let mut all: Vec<_> = known.collect();
        all.sort_by(Exemplar::order);
        all
    }
}

/// The finisher of `splitmix64`: neighbouring numbers get far apart.
fn mix(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// What an exemplar tells of its span.
pub(super) fn fields() -> [Field; 5] {
    let service = Attribute { parent: false, scope: Scope::Resource, name: SERVICE_NAME.to_owned() };
    [
        Field::Intrinsic(Intrinsic::TraceId),
        Field::Intrinsic(Intrinsic::SpanId),
        Field::Intrinsic(Intrinsic::Name),
        Field::Intrinsic(Intrinsic::Duration),
        Field::Attribute(service),
    ]
}

/// What it tells of this one.
pub(super) fn labels(span: &impl SpanView) -> Vec<Label> {
    let [trace_id, others @ ..] = fields();
    // As a search prints it.
    let id = match span.field(&trace_id) {
        Value::String(id) => LabelValue::text(id.trim_start_matches('0')),
        other => LabelValue::of(&other),
    };
    let others = others.into_iter().map(|field| (field.to_string(), LabelValue::of(&span.field(&field))));
    let others = others.filter(|(_, value)| *value != LabelValue::Nil);
    [(trace_id.to_string(), id)].into_iter().chain(others).collect()
}
