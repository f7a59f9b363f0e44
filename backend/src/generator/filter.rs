//! Which spans count: Tempo's filter policies.

use regex::Regex;

use super::attributes::{Wanted, found, of_resource, text_of};
use crate::config::{FilterPolicy, MatchType, PolicyMatch, PolicyValue};
use crate::otlp::{SpanRef, ValueRef};
use opentelemetry_proto::tonic::common::v1::KeyValue;

/// Policies, ready to be used.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    policies: Vec<Policy>,
}

#[derive(Clone, Debug)]
struct Policy {
    include: Option<Vec<Test>>,
    include_any: Option<Vec<Test>>,
    exclude: Option<Vec<Test>>,
}

#[derive(Clone, Debug)]
struct Test {
    field: Field,
    expected: Expected,
}

#[derive(Clone, Debug)]
enum Field {
    Kind,
    Status,
    Name,
    Resource(String),
    /// Number of the attribute.
    Span(usize),
}

#[derive(Clone, Debug)]
enum Expected {
    Text(String),
    Regex(Regex),
}

/// A policy that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// The key has no scope.
    #[error("expected the key `kind`, `status`, `name`, `resource.…` or `span.…`, found `{0}`")]
    Key(String),
    /// The regular expression is none.
    #[error("expected a regular expression, found `{text}`")]
    Regex {
        /// What stands there.
        text: String,
        /// Why it is none.
        #[source]
        source: Box<regex::Error>,
    },
}

impl Filter {
    pub(super) fn new(policies: &[FilterPolicy], wanted: &mut Wanted) -> Result<Self, FilterError> {
        let mut compile = |tests: &Option<PolicyMatch>| tests.as_ref().map(|tests| compile(tests, wanted)).transpose();
        let policies = policies.iter().map(|policy| {
            let FilterPolicy { include, include_any, exclude } = policy;
            Ok(Policy { include: compile(include)?, include_any: compile(include_any)?, exclude: compile(exclude)? })
        });
        Ok(Self { policies: policies.collect::<Result<_, _>>()? })
    }

    /// Whether a span counts; `values` are what was found of the wanted attributes.
    pub(super) fn passes(&self, resource: &[KeyValue], span: &SpanRef<'_>, values: &[Option<ValueRef<'_>>]) -> bool {
        let passes = |test: &Test| test.passes(resource, span, values);
        self.policies.iter().all(|Policy { include, include_any, exclude }| {
            include.as_ref().is_none_or(|tests| tests.iter().all(passes))
                && include_any.as_ref().is_none_or(|tests| tests.iter().any(passes))
                && exclude.as_ref().is_none_or(|tests| !tests.iter().all(passes))
        })
    }
}

fn compile(tests: &PolicyMatch, wanted: &mut Wanted) -> Result<Vec<Test>, FilterError> {
    let tests = tests.attributes.iter().map(|attribute| {
        let field = match attribute.key.as_str() {
            "kind" | "span:kind" => Field::Kind,
            "status" | "span:status" => Field::Status,
            "name" | "span:name" => Field::Name,
            key => match (key.strip_prefix("resource."), key.strip_prefix("span.")) {
                (Some(key), _) => Field::Resource(key.to_owned()),
                (_, Some(key)) => Field::Span(wanted.add(key)),
                _ => return Err(FilterError::Key(key.to_owned())),
            },
        };
        let text = match &attribute.value {
            PolicyValue::Bool(value) => value.to_string(),
            PolicyValue::Int(value) => value.to_string(),
            PolicyValue::Double(value) => value.to_string(),
            PolicyValue::Text(value) => value.clone(),
        };
        let expected = match tests.match_type {
            MatchType::Strict => Expected::Text(text),
            MatchType::Regex => Expected::Regex(
                Regex::new(&text).map_err(|source| FilterError::Regex { text, source: Box::new(source) })?,
            ),
        };
        Ok(Test { field, expected })
    });
    tests.collect()
}

impl Test {
    fn passes(&self, resource: &[KeyValue], span: &SpanRef<'_>, values: &[Option<ValueRef<'_>>]) -> bool {
        match &self.field {
            Field::Kind => self.expected.is(kind_name(span.kind)),
            Field::Status => self.expected.is(status_name(span)),
            Field::Name => self.expected.is(span.name.as_str()),
            Field::Resource(key) => of_resource(resource, key).is_some_and(|value| self.expected.is(&value)),
            Field::Span(number) => found(values, *number).is_some_and(|value| self.expected.is(&text_of(value))),
        }
    }
}

impl Expected {
    fn is(&self, value: &str) -> bool {
        match self {
            Self::Text(text) => text == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// Value of the label `span_kind`.
pub(super) fn kind_name(kind: i32) -> &'static str {
    match kind {
        1 => "SPAN_KIND_INTERNAL",
        2 => "SPAN_KIND_SERVER",
        3 => "SPAN_KIND_CLIENT",
        4 => "SPAN_KIND_PRODUCER",
        5 => "SPAN_KIND_CONSUMER",
        _ => "SPAN_KIND_UNSPECIFIED",
    }
}

/// Value of the label `status_code`.
pub(super) fn status_name(span: &SpanRef<'_>) -> &'static str {
    match span.status.map_or(0, |status| status.code) {
        1 => "STATUS_CODE_OK",
        2 => "STATUS_CODE_ERROR",
        _ => "STATUS_CODE_UNSET",
    }
}
