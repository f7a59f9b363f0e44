//! Which spans count: Tempo's filter policies.

use regex::Regex;

use super::attributes::{Wanted, found, of_resource, text_of};
use crate::config::{FilterPolicy, MatchType, PolicyMatch, PolicyValue};
use crate::otlp::{SpanRef, ValueRef};
use opentelemetry_proto::tonic::common::v1::KeyValue;

/// Policies, ready to be used. Of each list those that all must match are together.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    include: Vec<Vec<Test>>,
    include_any: Vec<Vec<Test>>,
    exclude: Vec<Vec<Test>>,
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
    /// No span has this kind or status.
    #[error("expected a {what} such as `{such_as}`, found `{found}`")]
    Intrinsic {
        /// Which of the two.
        what: &'static str,
        /// One that there is.
        such_as: &'static str,
        /// What stands there.
        found: String,
    },
    /// The policy says nothing.
    #[error("expected `include`, `include_any` or `exclude`")]
    Empty,
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
        let mut filter = Self::default();
        for FilterPolicy { include, include_any, exclude } in policies {
            if include.is_none() && include_any.is_none() && exclude.is_none() {
                return Err(FilterError::Empty);
            }
            let lists = [&mut filter.include, &mut filter.include_any, &mut filter.exclude];
            for (tests, list) in [include, include_any, exclude].into_iter().zip(lists) {
                if let Some(tests) = tests {
                    list.push(compile(tests, wanted)?);
                }
            }
        }
        Ok(filter)
    }

    /// Whether all spans count.
    pub(super) const fn is_empty(&self) -> bool {
        self.include.is_empty() && self.include_any.is_empty() && self.exclude.is_empty()
    }

    /// Whether a span counts; `values` are what was found of the wanted attributes.
    pub(super) fn passes(&self, resource: &[KeyValue], span: &SpanRef<'_>, values: &[Option<ValueRef<'_>>]) -> bool {
        let Self { include, include_any, exclude } = self;
        let is_met = |tests: &Vec<Test>| tests.iter().all(|test| test.passes(resource, span, values));
        if exclude.iter().any(is_met) {
            return false;
        }
        // One of `include_any` is enough, whatever `include` says; and needed where that says nothing.
        include_any.iter().any(is_met) || include.iter().all(is_met) && (include_any.is_empty() || !include.is_empty())
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
        let known: Option<(_, &[_])> = match field {
            Field::Kind => Some(("kind", &KINDS)),
            Field::Status => Some(("status", &STATUSES)),
            _ => None,
        };
        let expected = match tests.match_type {
            MatchType::Strict => {
                if let Some((what, known)) = known
                    && let [.., such_as] = known
                    && !known.contains(&text.as_str())
                {
                    return Err(FilterError::Intrinsic { what, such_as, found: text });
                }
                Expected::Text(text)
            }
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

/// Values of the label `span_kind`, as OTLP numbers them.
const KINDS: [&str; 6] = [
    "SPAN_KIND_UNSPECIFIED",
    "SPAN_KIND_INTERNAL",
    "SPAN_KIND_SERVER",
    "SPAN_KIND_CLIENT",
    "SPAN_KIND_PRODUCER",
    "SPAN_KIND_CONSUMER",
];

/// Values of the label `status_code`.
const STATUSES: [&str; 3] = ["STATUS_CODE_UNSET", "STATUS_CODE_OK", "STATUS_CODE_ERROR"];

/// Value of the label `span_kind`.
pub(super) fn kind_name(kind: i32) -> &'static str {
    let [unspecified, ..] = KINDS;
    usize::try_from(kind).ok().and_then(|kind| KINDS.get(kind)).copied().unwrap_or(unspecified)
}

/// Value of the label `status_code`.
pub(super) fn status_name(span: &SpanRef<'_>) -> &'static str {
    let [unset, ..] = STATUSES;
    let code = span.status.map_or(0, |status| status.code);
    usize::try_from(code).ok().and_then(|code| STATUSES.get(code)).copied().unwrap_or(unset)
}
