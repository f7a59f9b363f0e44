//! Names of spans as their metrics have them: patterns, if that is wanted.

use super::drain::Drain;
use super::room::Refused;
use crate::config::SpanNameSanitization;

/// The names of a tenant's spans.
#[derive(Debug)]
pub(super) struct Names {
    drain: Drain,
    /// Sets of labels there would be, if names are only looked at.
    would_be: Option<Refused>,
    /// Spans whose name is not the pattern, since that was last told.
    pub(super) sanitized: u64,
}

impl Names {
    pub(super) fn new(mode: SpanNameSanitization) -> Option<Self> {
        let would_be = match mode {
            SpanNameSanitization::Disabled => return None,
            SpanNameSanitization::DryRun => Some(Refused::default()),
            SpanNameSanitization::Enabled => None,
        };
        Some(Self { drain: Drain::default(), would_be, sanitized: 0 })
    }

    /// Whether names stay as they are.
    pub(super) const fn is_dry_run(&self) -> bool {
        self.would_be.is_some()
    }

    /// The pattern that a name has; none if it is the name.
    pub(super) fn pattern(&mut self, name: &str) -> Option<&str> {
        let pattern = self.drain.pattern(name);
        self.sanitized += u64::from(pattern.is_some());
        pattern
    }

    /// Takes in a name of before.
    pub(super) fn learn(&mut self, name: &str) {
        _ = self.drain.pattern(name);
    }

    /// Counts a set of labels that there would be.
    pub(super) fn note(&mut self, entity: u64, window_ms: u64, now_ms: u64) {
        if let Some(would_be) = &mut self.would_be {
            would_be.insert(entity, window_ms, now_ms);
        }
    }

    /// How many there would be, about; none if that is how many there are.
    pub(super) fn would_be(&mut self, now_ms: u64) -> Option<u64> {
        self.would_be.as_mut().map(|would_be| would_be.demand(std::iter::empty(), now_ms))
    }
}
