//! Which labels metrics have, beside those of their service.

use super::{
    labels::{Labelled, Value},
    names::Kind,
};
use crate::discover::Pattern;

/// What is said of the labels of some metrics.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelRule {
    /// Their names, as OTLP or as `/metrics` has them; `http_server` is understood as `http.server`.
    pub metrics: Pattern,
    /// Only these, also of those that are left out otherwise; absent, those that are there otherwise.
    pub include: Option<Vec<Pattern>>,
    /// Of those, not these.
    pub exclude: Vec<Pattern>,
}

/// The labels of each kind: a bit for each, in the order in which they are visited.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct LabelChoice([u16; Kind::ALL.len()]);

impl Default for LabelChoice {
    fn default() -> Self {
        Self(Kind::ALL.map(|kind| match kind.labels() {
            [] => u16::MAX,
            labels => bits(labels.iter().map(|label| label.is_default)),
        }))
    }
}

impl LabelChoice {
    /// What these rules say, one after the other. Metrics that are counted together, such as the duration and the sizes of HTTP
    /// requests, have the same labels: a rule for one of them is for all.
    pub fn new(rules: &[LabelRule]) -> Self {
        let mut choice = Self::default();
        let kinds = Kind::ALL.iter().zip(&mut choice.0).filter(|(kind, _)| !kind.labels().is_empty());
        for (kind, bits_of_kind) in kinds {
            let of_kind =
                rules.iter().filter(|rule| kind.metrics().iter().any(|it| rule.is_for(it.otlp, it.prometheus)));
            for rule in of_kind {
                let included = bits(kind.labels().iter().map(|label| rule.includes(label.name)));
                let excluded = bits(kind.labels().iter().map(|label| matches(&rule.exclude, label.name)));
                *bits_of_kind = if rule.include.is_some() { included } else { *bits_of_kind } & !excluded;
            }
        }
        choice
    }

    /// A request without the labels that are left out.
    pub(super) fn of<'a, L>(&self, kind: Kind, labelled: &'a L) -> Chosen<'a, L> {
        Chosen { labelled, bits: self.0.get(kind as usize).copied().unwrap_or(u16::MAX) }
    }
}

impl LabelRule {
    fn is_for(&self, otlp: &str, prometheus: &str) -> bool {
        matches(std::slice::from_ref(&self.metrics), otlp) || self.metrics.is_match(prometheus)
    }

    fn includes(&self, label: &str) -> bool {
        self.include.as_ref().is_some_and(|patterns| matches(patterns, label))
    }
}

fn matches(patterns: &[Pattern], name: &str) -> bool {
    let underscored = name.replace('.', "_");
    patterns.iter().any(|pattern| pattern.is_match(name) || pattern.is_match(&underscored))
}

fn bits(labels: impl Iterator<Item = bool>) -> u16 {
    labels.zip(0..).fold(0, |bits, (is_set, place)| bits | u16::from(is_set) << place)
}

/// Labels of which some are left out.
pub(super) struct Chosen<'a, L> {
    labelled: &'a L,
    bits: u16,
}

impl<L: Labelled> Labelled for Chosen<'_, L> {
    fn visit<'a>(&'a self, see: &mut impl FnMut(&'static str, Value<'a>)) {
        let mut bits = self.bits;
        self.labelled.visit(&mut |name, value| {
            if bits & 1 == 1 {
                see(name, value);
            }
            bits >>= 1;
        });
    }
}
