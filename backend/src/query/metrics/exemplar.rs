//! Spans that stand for a series: a click on one opens its trace.

use std::cmp::Ordering;
use std::collections::BTreeMap;

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
pub(super) struct Exemplars(BTreeMap<u64, Vec<Candidate>>);

#[derive(Clone, Debug)]
struct Candidate {
    rank: u64,
    exemplar: Exemplar,
}

impl Candidate {
    fn precedes(&self, other: &Self) -> bool {
        self.rank.cmp(&other.rank).then_with(|| self.exemplar.order(&other.exemplar)).is_lt()
    }
}

impl Exemplar {
    /// By start, then by whatever tells them apart: a span with several events has several values.
    fn order(&self, other: &Self) -> Ordering {
        let by_span = (self.start_ns, &self.labels).cmp(&(other.start_ns, &other.labels));
        by_span.then_with(|| self.value.total_cmp(&other.value))
    }
}

impl Exemplars {
    /// Considers a span; `most` is how many exemplars the series may have.
    pub(super) fn offer(&mut self, span: &impl SpanView, value: f64, intervals: &Intervals, most: usize) {
        if most == 0 {
            return;
        }
        let start_ns = span.start_ns();
        let (first, last) = intervals.bounds();
        let parts = most.div_ceil(PER_PART) as u64;
        let part_length = (last.saturating_sub(first) / parts).max(1);
        let part = (start_ns.saturating_sub(first) / part_length).min(parts - 1);
        let rank = mix(start_ns);
        let kept = self.0.entry(part).or_default();
        if kept.len() >= most.min(PER_PART) && kept.last().is_some_and(|last| last.rank < rank) {
            return;
        }
        let exemplar = Exemplar { start_ns, value, labels: labels(span) };
        keep(kept, Candidate { rank, exemplar }, most);
    }

    /// Adds those of another part of the work.
    pub(super) fn merge(&mut self, other: Self, most: usize) {
        for (part, candidates) in other.0 {
            let kept = self.0.entry(part).or_default();
            for candidate in candidates {
                keep(kept, candidate, most);
            }
        }
    }

    /// By start.
    pub(super) fn into_sorted(self) -> Vec<Exemplar> {
        let mut all: Vec<_> = self.0.into_values().flatten().map(|candidate| candidate.exemplar).collect();
        all.sort_by(Exemplar::order);
        all
    }
}

fn keep(kept: &mut Vec<Candidate>, candidate: Candidate, most: usize) {
    let at = kept.partition_point(|other| other.precedes(&candidate));
    kept.insert(at, candidate);
    kept.truncate(most.min(PER_PART));
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

fn labels(span: &impl SpanView) -> Vec<Label> {
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
