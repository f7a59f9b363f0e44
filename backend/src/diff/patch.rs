//! `trace-patch-v0`: what makes the second trace of the first one.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use serde::Serialize;
use serde_json::Value;

use super::pairs::{Pairs, duration_differs};
use super::side::{Identity, Node, Side};
use super::value::{differs, shown};
use super::{DiffError, Format};

/// Most steps from roots to spans that are told.
const MOST_STEPS: usize = 4_000_000;

#[derive(Debug, Serialize)]
pub(super) struct Patch<'t> {
    version: &'static str,
    base: Meta<'t>,
    compare: Meta<'t>,
    pub(super) stats: Stats,
    pub(super) modified: Vec<Modified<'t>>,
    pub(super) added: Vec<Whole<'t>>,
    pub(super) removed: Vec<Whole<'t>>,
    pub(super) warnings: Vec<Warning>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Meta<'t> {
    trace_id: &'t str,
    span_count: usize,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Stats {
    pub(super) span_count_a: usize,
    pub(super) span_count_b: usize,
    pub(super) matched_spans: usize,
    pub(super) modified_spans: usize,
    pub(super) added_spans: usize,
    pub(super) removed_spans: usize,
    pub(super) field_changes: usize,
    pub(super) attribute_changes: usize,
    /// Of the format; events are not compared.
    event_changes: usize,
    /// Of the format; it is always whole.
    truncated: bool,
}

/// A span that is in both traces and not the same.
#[derive(Debug, Serialize)]
pub(super) struct Modified<'t> {
    pub(super) span: Located<'t>,
    pub(super) changes: Vec<Change<'t>>,
}

/// A span and where it is.
#[derive(Debug, Serialize)]
pub(super) struct Located<'t> {
    path: Vec<usize>,
    pub(super) service: &'t str,
    name: &'t str,
    kind: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Change<'t> {
    op: Op,
    pub(super) target: Target<'t>,
    pub(super) before: Value,
    pub(super) after: Value,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Op {
    Add,
    Remove,
    Modify,
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Target<'t> {
    Field { name: Field },
    Attribute { scope: &'static str, key: &'t str },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Field {
    DurationNanos,
    Status,
}

/// A span that only one of the traces has.
#[derive(Debug, Serialize)]
pub(super) struct Whole<'t> {
    target: Place,
    pub(super) span: Snapshot<'t>,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Place {
    r#type: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    path: Vec<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parent_path: Vec<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
}

#[derive(Debug, Serialize)]
pub(super) struct Snapshot<'t> {
    path: Vec<usize>,
    pub(super) service: &'t str,
    name: &'t str,
    kind: &'static str,
    duration_nanos: u64,
    pub(super) status: &'static str,
}

/// What has to be known to read the comparison right.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Warning {
    code: &'static str,
    message: String,
}

impl<'t> Patch<'t> {
    pub(super) fn of(base: &'t Side<'t>, compare: &'t Side<'t>, pairs: &Pairs) -> Result<Self, DiffError> {
        let mut told = Self {
            version: Format::Patch.name(),
            base: Meta { trace_id: &base.trace_id, span_count: base.spans.len() },
            compare: Meta { trace_id: &compare.trace_id, span_count: compare.spans.len() },
            stats: Stats::default(),
            modified: Vec::new(),
            added: Vec::new(),
            removed: Vec::new(),
            warnings: warnings(base, compare, pairs),
        };
        let mut steps = 0;
        let mut path = |side: &Side<'_>, index: usize, node: &Node<'_>| {
            steps += node.depth;
            if steps > MOST_STEPS {
                return Err(DiffError::TooDeep { limit: MOST_STEPS });
            }
            Ok(side.path(index))
        };
        for (index, (node, partner)) in compare.spans.iter().zip(&pairs.of_compare).enumerate() {
            let Some(partner) = partner.and_then(|partner| base.spans.get(partner)) else {
                let path = path(compare, index, node)?;
                let (parent_path, at) = path.split_last().map_or((Vec::new(), 0), |(at, above)| (above.to_vec(), *at));
                let target = Place { r#type: "span", parent_path, index: Some(at), ..Place::default() };
                told.added.push(Whole { target, span: Snapshot::of(node, path) });
                continue;
            };
            let mut changes = fields(partner, node);
            told.stats.field_changes += changes.len();
            let of_attributes = attributes(partner, node);
            told.stats.attribute_changes += of_attributes.len();
            changes.extend(of_attributes);
            if !changes.is_empty() {
                let span = Located::of(node.identity, path(compare, index, node)?);
                told.modified.push(Modified { span, changes });
            }
        }
        for (index, (node, _)) in base.spans.iter().zip(&pairs.has_partner).enumerate().filter(|(_, (_, has))| !**has) {
            let path = path(base, index, node)?;
            let target = Place { r#type: "span", path: path.clone(), ..Place::default() };
            told.removed.push(Whole { target, span: Snapshot::of(node, path) });
        }
        told.stats = Stats {
            span_count_a: base.spans.len(),
            span_count_b: compare.spans.len(),
            matched_spans: pairs.of_compare.iter().flatten().count(),
            modified_spans: told.modified.len(),
            added_spans: told.added.len(),
            removed_spans: told.removed.len(),
            ..told.stats
        };
        Ok(told)
    }
}

impl<'t> Located<'t> {
    fn of(Identity { service, name, kind }: Identity<'t>, path: Vec<usize>) -> Self {
        Self { path, service, name, kind }
    }
}

impl<'t> Snapshot<'t> {
    fn of(node: &Node<'t>, path: Vec<usize>) -> Self {
        let Identity { service, name, kind } = node.identity;
        let duration_nanos = node.duration_ns.unwrap_or_default();
        Self { path, service, name, kind, duration_nanos, status: node.status }
    }
}

/// A duration that is none is null.
fn fields<'t>(base: &Node<'t>, compare: &Node<'t>) -> Vec<Change<'t>> {
    let modify = |name, before, after| Change { op: Op::Modify, target: Target::Field { name }, before, after };
    let mut changes = Vec::new();
    if duration_differs(base.duration_ns, compare.duration_ns) {
        changes.push(modify(Field::DurationNanos, base.duration_ns.into(), compare.duration_ns.into()));
    }
    if base.status != compare.status {
        changes.push(modify(Field::Status, base.status.into(), compare.status.into()));
    }
    changes
}

/// In the order of the keys.
fn attributes<'t>(base: &Node<'t>, compare: &Node<'t>) -> Vec<Change<'t>> {
    let keys: BTreeSet<&'t str> = base.attributes.keys().chain(compare.attributes.keys()).copied().collect();
    let change = |key: &'t str| {
        let (before, after) = (base.attributes.get(key), compare.attributes.get(key));
        let op = match (before, after) {
            (None, _) => Op::Add,
            (_, None) => Op::Remove,
            (Some(before), Some(after)) if differs(key, *before, *after) => Op::Modify,
            _ => return None,
        };
        let [before, after] = [before, after].map(|value| shown(value.copied().flatten()));
        Some(Change { op, target: Target::Attribute { scope: "span", key }, before, after })
    };
    keys.into_iter().filter_map(change).collect()
}

fn warnings(base: &Side<'_>, compare: &Side<'_>, pairs: &Pairs) -> Vec<Warning> {
    let sides = [("base", base), ("compare", compare)];
    let mut warnings = Vec::new();
    let mut warn = |code, message| warnings.push(Warning { code, message });
    let names = sides.iter().flat_map(|(_, side)| &side.spans).map(|node| node.identity);
    if let Some(Identity { service, name, kind }) = names.into_iter().find(|identity| has_id(identity.name)) {
        let message = format!(
            "the name {name:?} of a span of service {service:?}, kind {kind:?}, seems to contain an id; spans are compared by \
             their names, so the same operation may count as removed and added"
        );
        warn("high_cardinality_span_name", message);
    }
    for (name, side) in sides {
        let invalid = side.spans.iter().filter(|node| node.duration_ns.is_none()).count();
        if invalid > 0 {
            let message = format!("{invalid} spans of {name} have no start, or end before it: they have no duration");
            warn("invalid_duration", message);
        }
        if side.repeated_ids > 0 {
            let message = format!("{} spans of {name} have the id of another span", side.repeated_ids);
            warn("duplicate_span_id", message);
        }
    }
    if pairs.ambiguous > 0 {
        let message = format!(
            "{} operations come several times in the same place: which span of one trace is which of the other is a guess, \
             the one with the fewest changes",
            pairs.ambiguous
        );
        warn("ambiguous_span_match", message);
    }
    warnings
}

/// Whether a name has a word that is a number of six digits and more, or hexadecimal of eight characters and more.
fn has_id(name: &str) -> bool {
    #[expect(clippy::unwrap_used, reason = "a constant that a test compiles")]
    static ID: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"(?i)\b(?:[0-9]{6,}|[0-9a-f][0-9a-f-]{7,})\b").unwrap());
    // Some words are hexadecimal by chance, but few have a digit.
    ID.find_iter(name).any(|found| found.as_str().bytes().any(|byte| byte.is_ascii_digit()))
}
