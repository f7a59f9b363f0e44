//! Which spans become metrics.

use serde::Deserialize;

/// Which spans count: those that match `include`, in all policies that have it, or `include_any` in one of them; but not those
/// that match `exclude`.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct FilterPolicy {
    /// What must match.
    pub include: Option<PolicyMatch>,
    /// What need not match more than this.
    pub include_any: Option<PolicyMatch>,
    /// What is left out.
    pub exclude: Option<PolicyMatch>,
}

/// Attributes to match, all of them.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct PolicyMatch {
    /// How values are compared.
    pub match_type: MatchType,
    /// What is compared.
    pub attributes: Vec<PolicyAttribute>,
}

/// How values are compared.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
pub enum MatchType {
    /// They are the same.
    Strict,
    /// The text has a part that the expression matches.
    Regex,
}

/// An attribute and its value.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct PolicyAttribute {
    /// `kind`, `status`, `name`, or an attribute with its scope such as `resource.service.name` and `span.http.method`.
    pub key: String,
    /// Value, or regular expression.
    pub value: PolicyValue,
}

/// A value as YAML has it.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
pub enum PolicyValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Another number.
    Double(f64),
    /// A text.
    Text(String),
}

/// There is no way to write one that is not a number.
impl Eq for PolicyValue {}
