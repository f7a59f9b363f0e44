//! Which attributes spans have.

use foldhash::HashMap;

use super::{FinishedSpan, Sink};
use crate::discover::Pattern;

/// Keys whose answer is remembered.
const MAX_KEYS: usize = 1024;

/// Which attributes stay: patterns of their keys. `url_path` is understood as `url.path`, as in Beyla.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttributeConfig {
    /// Only these, if there are any.
    pub include: Vec<Pattern>,
    /// Of those, not these.
    pub exclude: Vec<Pattern>,
}

/// Says which attributes stay, and takes the others off spans.
#[derive(Debug, Default)]
pub struct AttributeFilter {
    config: AttributeConfig,
    known: HashMap<Box<str>, bool>,
}

impl AttributeFilter {
    /// `None` if all stay.
    pub fn new(config: &AttributeConfig) -> Option<Self> {
        let is_needed = *config != AttributeConfig::default();
        is_needed.then(|| Self { config: config.clone(), known: HashMap::default() })
    }

    /// Takes off what does not stay. Events and the resource are left as they are.
    pub fn apply(&mut self, span: &mut FinishedSpan) {
        span.span.attributes.retain(|attribute| self.keeps(&attribute.key));
    }

    /// Whether attributes with this key stay.
    pub(crate) fn keeps(&mut self, key: &str) -> bool {
        if let Some(keeps) = self.known.get(key) {
            return *keeps;
        }
        let keeps = self.config.keeps(key);
        if self.known.len() < MAX_KEYS {
            self.known.insert(key.into(), keeps);
        }
        keeps
    }
}

/// Passes on the attributes that stay.
#[derive(Debug)]
pub(crate) struct Kept<'a, S>(pub(crate) &'a mut S, pub(crate) &'a mut AttributeFilter);

impl<S: Sink> Sink for Kept<'_, S> {
    fn text(&mut self, key: &'static str, text: &str) {
        if self.1.keeps(key) {
            self.0.text(key, text);
        }
    }

    fn joined(&mut self, key: &'static str, parts: &[&str]) {
        if self.1.keeps(key) {
            self.0.joined(key, parts);
        }
    }

    fn int(&mut self, key: &'static str, number: i64) {
        if self.1.keeps(key) {
            self.0.int(key, number);
        }
    }

    fn double(&mut self, key: &'static str, number: f64) {
        if self.1.keeps(key) {
            self.0.double(key, number);
        }
    }
}

impl AttributeConfig {
    fn keeps(&self, key: &str) -> bool {
        let underscored = key.replace('.', "_");
        let is_in = |patterns: &[Pattern]| {
            patterns.iter().any(|pattern| pattern.is_match(key) || pattern.is_match(&underscored))
        };
        (self.include.is_empty() || is_in(&self.include)) && !is_in(&self.exclude)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use opentelemetry_proto::tonic::{common::v1::KeyValue, resource::v1::Resource, trace::v1::Span};
    use rstest::rstest;

    use super::*;
    use crate::discover::{Exports, Process};

    fn finished(span: Span) -> FinishedSpan {
        let process = Process {
            tgid: 1,
            service_name: "shop".to_owned(),
            resource: Resource::default(),
            sampler: None,
            exports: Exports::default(),
        };
        FinishedSpan { process: Arc::new(process), span }
    }

    #[rstest]
    #[case::all(&[], &[], &["url.path", "url.query", "http.route"])]
    #[case::some(&["url.*"], &[], &["url.path", "url.query"])]
    #[case::but(&[], &["url.query"], &["url.path", "http.route"])]
    #[case::underscores(&["url_*"], &["url_path"], &["url.query"])]
    #[case::none(&["x"], &[], &[])]
    fn selects(#[case] include: &[&str], #[case] exclude: &[&str], #[case] expected: &[&str]) {
        let patterns = |texts: &[&str]| texts.iter().map(|text| Pattern::glob(text).unwrap()).collect();
        let config = AttributeConfig { include: patterns(include), exclude: patterns(exclude) };
        let attribute = |key: &str| KeyValue { key: key.to_owned(), ..KeyValue::default() };
        for _ in 0..2 {
            let attributes = ["url.path", "url.query", "http.route"].map(attribute).to_vec();
            let mut span = finished(Span { attributes, ..Span::default() });
            if let Some(filter) = &mut AttributeFilter::new(&config) {
                filter.apply(&mut span);
            }
            let keys: Vec<_> = span.span.attributes.iter().map(|attribute| attribute.key.as_str()).collect();
            assert_eq!(keys, expected);
        }
    }
}
