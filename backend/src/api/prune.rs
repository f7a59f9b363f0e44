//! `span_pruning` of `/api/v2/traces/{id}`: many alike spans become one that stands for them.
//!
//! Spans are alike if they lie below the same span, are the same operation with the same status, and have alike spans
//! below them. The span that stands for them is the one that took longest, over all their time, with attributes
//! `aggregation.…` about all of them.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::{Span, TracesData};
use prost::Message;

use super::error::ApiError;
use super::params::{Params, go_integer};
use super::part::depth;

/// Upper bounds of the buckets of durations, milliseconds.
const BOUNDS_MS: [u64; 11] = [5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000];

/// Fewest spans that become one, if the request does not say.
const DEFAULT_MIN_SPANS: usize = 5;

/// When spans become one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Pruning {
    /// Patterns with `*`: spans must have the same of each attribute that one of them matches.
    group_by: Vec<String>,
    /// Fewest spans that become one.
    min_spans: usize,
    /// How many levels of spans such spans may have below them.
    max_depth: usize,
}

/// Spans that are alike, as far as what is below them.
#[derive(Eq, Hash, PartialEq)]
struct Likeness<'t> {
    /// Which resource and scope.
    origin: (usize, usize),
    name: &'t str,
    kind: i32,
    status: i32,
    /// Those of `group_by`, encoded.
    attributes: BTreeMap<&'t str, Vec<u8>>,
    /// Likenesses of the spans below it, ascending, each once.
    below: Vec<usize>,
}

/// A span and where it is.
struct Node<'t> {
    span: &'t Span,
    /// Which resource, scope and span.
    place: (usize, usize, usize),
    children: Vec<usize>,
    parent: Option<usize>,
    /// Levels of spans below it, and a number for its [`Likeness`]; none if it stays as it is.
    alike: Option<(usize, usize)>,
}

/// A span that stands for others.
struct Summary {
    members: Vec<usize>,
    span_id: Vec<u8>,
    parent_span_id: Vec<u8>,
}

impl Pruning {
    /// None if all spans are wanted.
    pub(super) fn of(params: &Params) -> Result<Option<Self>, ApiError> {
        if !params.flag("span_pruning")? {
            return Ok(None);
        }
        let invalid = |why: String| ApiError::bad(format!("invalid span_pruning_min_spans: {why}"));
        let min_spans = match params.get("span_pruning_min_spans") {
            None => DEFAULT_MIN_SPANS,
            Some(text) => match go_integer("Atoi", text).map_err(invalid)? {
                number @ 2.. => usize::try_from(number).unwrap_or(usize::MAX),
                number => return Err(invalid(format!("{number} is less than 2"))),
            },
        };
        let patterns = params.get("span_pruning_group_by").unwrap_or_default().split(',').map(str::trim);
        Ok(Some(Self {
            group_by: patterns.filter(|pattern| !pattern.is_empty()).map(str::to_owned).collect(),
            min_spans,
            max_depth: depth(params, "span_pruning_max_parent_depth", 1)?,
        }))
    }

    /// Puts one span in the place of many that are alike.
    pub(super) fn prune(&self, data: &mut TracesData) {
        let nodes = self.nodes(data);
        let summaries = self.summaries(&nodes);
        if summaries.is_empty() {
            return;
        }
        let mut gone: HashSet<(usize, usize, usize)> = HashSet::new();
        let mut come: Vec<((usize, usize), Span)> = Vec::new();
        for summary in &summaries {
            let members: Vec<_> = summary.members.iter().filter_map(|member| nodes.get(*member)).collect();
            gone.extend(members.iter().map(|node| node.place));
            if let Some(longest) = members.iter().max_by_key(|node| duration_ns(node.span)) {
                let (resource, scope, _) = longest.place;
                come.push(((resource, scope), summary.span(longest.span, &members)));
            }
        }
        drop(nodes);
        for (resource, of_resource) in data.resource_spans.iter_mut().enumerate() {
            for (scope, of_scope) in of_resource.scope_spans.iter_mut().enumerate() {
                let mut number = 0..;
                of_scope.spans.retain(|_| number.next().is_none_or(|span| !gone.contains(&(resource, scope, span))));
            }
        }
        for ((resource, scope), span) in come {
            let scopes = data.resource_spans.get_mut(resource).map(|resource| &mut resource.scope_spans);
            if let Some(scope) = scopes.and_then(|scopes| scopes.get_mut(scope)) {
                scope.spans.push(span);
            }
        }
        for resource in &mut data.resource_spans {
            resource.scope_spans.retain(|scope| !scope.spans.is_empty());
        }
        data.resource_spans.retain(|resource| !resource.scope_spans.is_empty());
    }

    fn nodes<'t>(&self, data: &'t TracesData) -> Vec<Node<'t>> {
        let mut nodes = Vec::new();
        for (resource, of_resource) in data.resource_spans.iter().enumerate() {
            for (scope, of_scope) in of_resource.scope_spans.iter().enumerate() {
                nodes.extend(of_scope.spans.iter().enumerate().map(|(number, span)| Node {
                    span,
                    place: (resource, scope, number),
                    children: Vec::new(),
                    parent: None,
                    alike: None,
                }));
            }
        }
        // What has the id of another span stays as it is: whose children are whose is not known.
        let mut by_id: HashMap<&[u8], usize> = HashMap::new();
        let mut twice: HashSet<usize> = HashSet::new();
        for (index, node) in nodes.iter().enumerate() {
            match by_id.entry(&node.span.span_id) {
                Entry::Vacant(slot) => _ = slot.insert(index),
                Entry::Occupied(first) => twice.extend([index, *first.get()]),
            }
        }
        for index in 0..nodes.len() {
            let parent = nodes.get(index).and_then(|node| by_id.get(&*node.span.parent_span_id)).copied();
            if let Some(children) = parent.and_then(|parent| nodes.get_mut(parent)).map(|node| &mut node.children) {
                children.push(index);
            }
            if let Some(node) = nodes.get_mut(index) {
                node.parent = parent;
            }
        }
        self.compare(&mut nodes, &twice);
        nodes
    }

    /// Numbers what is alike, from spans with nothing below them upwards. Parents in a circle are never reached.
    fn compare(&self, nodes: &mut [Node<'_>], twice: &HashSet<usize>) {
        let mut likenesses: HashMap<Likeness<'_>, usize> = HashMap::new();
        let mut waits_for: Vec<usize> = nodes.iter().map(|node| node.children.len()).collect();
        let mut ready: Vec<usize> = (0..nodes.len()).filter(|index| waits_for.get(*index) == Some(&0)).collect();
        while let Some(index) = ready.pop() {
            let Some(node) = nodes.get(index) else { continue };
            let below: Option<Vec<(usize, usize)>> =
                node.children.iter().map(|child| nodes.get(*child).and_then(|child| child.alike)).collect();
            let (span, parent) = (node.span, node.parent);
            let alike = below.filter(|_| !twice.contains(&index)).and_then(|below| {
                let depth = below.iter().map(|(depth, _)| depth + 1).max().unwrap_or_default();
                let mut below: Vec<usize> = below.into_iter().map(|(_, likeness)| likeness).collect();
                below.sort_unstable();
                below.dedup();
                let (resource, scope, _) = node.place;
                let likeness = Likeness {
                    origin: (resource, scope),
                    name: &span.name,
                    kind: span.kind,
                    status: span.status.as_ref().map_or(0, |status| status.code),
                    attributes: self.attributes(span),
                    below,
                };
                let next = likenesses.len();
                (depth <= self.max_depth).then(|| (depth, *likenesses.entry(likeness).or_insert(next)))
            });
            if let Some(node) = nodes.get_mut(index) {
                node.alike = alike;
            }
            if let Some((parent, open)) = parent.and_then(|parent| Some((parent, waits_for.get_mut(parent)?))) {
                *open -= 1;
                if *open == 0 {
                    ready.push(parent);
                }
            }
        }
    }

    fn attributes<'t>(&self, span: &'t Span) -> BTreeMap<&'t str, Vec<u8>> {
        let is_wanted = |key: &str| self.group_by.iter().any(|pattern| matches(pattern, key));
        let wanted = span.attributes.iter().filter(|attribute| is_wanted(&attribute.key));
        wanted.map(|attribute| (attribute.key.as_str(), attribute.encode_to_vec())).collect()
    }

    /// What stands for what. A root stands for itself.
    fn summaries(&self, nodes: &[Node<'_>]) -> Vec<Summary> {
        let by_likeness = |members: &[usize]| {
            let mut groups: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            let children = members.iter().filter_map(|member| nodes.get(*member)).flat_map(|node| &node.children);
            for child in children {
                if let Some((_, likeness)) = nodes.get(*child).and_then(|child| child.alike) {
                    groups.entry(likeness).or_default().push(*child);
                }
            }
            groups.into_values()
        };
        let mut summaries = Vec::new();
        let mut gone: HashSet<usize> = HashSet::new();
        // From the top down: what is below spans that become one becomes one with them.
        let depth =
            |index: &usize| nodes.get(*index).and_then(|node| node.alike).map_or(usize::MAX, |(depth, _)| depth);
        let mut order: Vec<usize> = (0..nodes.len()).collect();
        order.sort_by_key(|index| Reverse(depth(index)));
        for index in order {
            if gone.contains(&index) {
                continue;
            }
            let Some(node) = nodes.get(index) else { continue };
            for members in by_likeness(&[index]).filter(|members| members.len() >= self.min_spans) {
                let mut open = vec![Summary::new(members, &node.span.span_id, nodes)];
                while let Some(summary) = open.pop() {
                    gone.extend(&summary.members);
                    let below = by_likeness(&summary.members);
                    open.extend(below.map(|members| Summary::new(members, &summary.span_id, nodes)));
                    summaries.push(summary);
                }
            }
        }
        summaries
    }
}

impl Summary {
    /// The id is the same for the same spans.
    fn new(members: Vec<usize>, parent_span_id: &[u8], nodes: &[Node<'_>]) -> Self {
        let mut hasher = DefaultHasher::new();
        for node in members.iter().filter_map(|member| nodes.get(*member)) {
            node.span.span_id.hash(&mut hasher);
        }
        // No span has the id 0.
        let span_id = hasher.finish().max(1).to_be_bytes().to_vec();
        Self { members, span_id, parent_span_id: parent_span_id.to_vec() }
    }

    fn span(&self, longest: &Span, members: &[&Node<'_>]) -> Span {
        let durations: Vec<u64> = members.iter().map(|node| duration_ns(node.span)).collect();
        let count = durations.len() as u64;
        let total = durations.iter().fold(0, |sum: u64, duration| sum.saturating_add(*duration));
        let bounds = BOUNDS_MS.iter().map(|bound| double(*bound as f64 / 1e3));
        let within = BOUNDS_MS.map(|bound| durations.iter().filter(|duration| **duration <= bound * 1_000_000).count());
        let counts = within.into_iter().chain([durations.len()]).map(|count| int(count as u64));
        let about = [
            ("is_summary", Any::BoolValue(true)),
            ("span_count", int(count)),
            ("duration_min_ns", int(durations.iter().copied().min().unwrap_or_default())),
            ("duration_max_ns", int(durations.iter().copied().max().unwrap_or_default())),
            ("duration_avg_ns", int(total / count.max(1))),
            ("duration_total_ns", int(total)),
            ("histogram_bucket_bounds_s", list(bounds)),
            ("histogram_bucket_counts", list(counts)),
        ];
        let about = about.into_iter().map(|(name, value)| KeyValue {
            key: format!("aggregation.{name}"),
            value: Some(AnyValue { value: Some(value) }),
            ..KeyValue::default()
        });
        Span {
            span_id: self.span_id.clone(),
            parent_span_id: self.parent_span_id.clone(),
            start_time_unix_nano: members.iter().map(|node| node.span.start_time_unix_nano).min().unwrap_or_default(),
            end_time_unix_nano: members.iter().map(|node| node.span.end_time_unix_nano).max().unwrap_or_default(),
            attributes: longest.attributes.iter().cloned().chain(about).collect(),
            // They are those of one span.
            events: Vec::new(),
            links: Vec::new(),
            ..longest.clone()
        }
    }
}

fn duration_ns(span: &Span) -> u64 {
    span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano)
}

fn int(number: u64) -> Any {
    Any::IntValue(i64::try_from(number).unwrap_or(i64::MAX))
}

fn double(number: f64) -> Any {
    Any::DoubleValue(number)
}

fn list(values: impl Iterator<Item = Any>) -> Any {
    Any::ArrayValue(ArrayValue { values: values.map(|value| AnyValue { value: Some(value) }).collect() })
}

/// Whether a key is one of a pattern, in which `*` stands for anything.
fn matches(pattern: &str, key: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| key.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::live::TraceId;
    use crate::query::fixture::{attributes, service, span, text};

    const TRACE: TraceId = TraceId([7; 16]);

    fn pruning(group_by: &[&str], min_spans: usize, max_depth: usize) -> Pruning {
        Pruning { group_by: group_by.iter().map(|pattern| (*pattern).to_owned()).collect(), min_spans, max_depth }
    }

    fn data(spans: Vec<Span>) -> TracesData {
        TracesData { resource_spans: vec![service("shop", &[], "", spans)] }
    }

    fn failed(span: Span) -> Span {
        let status = opentelemetry_proto::tonic::trace::v1::Status { code: 2, message: String::new() };
        Span { status: Some(status), ..span }
    }

    fn spans(data: &TracesData) -> Vec<&Span> {
        data.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans).collect()
    }

    /// `name` or `name*count`, each below its parent, in their order of names.
    fn tree(data: &TracesData) -> BTreeSet<String> {
        let all = spans(data);
        let shown = |span: &Span| match about(span, "span_count") {
            Some(Any::IntValue(count)) => format!("{}*{count}", span.name),
            _ => span.name.clone(),
        };
        let parent = |span: &Span| all.iter().find(|other| other.span_id == span.parent_span_id);
        all.iter().map(|span| parent(span).map_or(String::new(), |parent| shown(parent) + "/") + &shown(span)).collect()
    }

    fn about(span: &Span, name: &str) -> Option<Any> {
        let name = format!("aggregation.{name}");
        span.attributes.iter().find(|attribute| attribute.key == name)?.value.clone()?.value
    }

    fn pruned(pruning: &Pruning, all: Vec<Span>) -> TracesData {
        let mut data = data(all);
        pruning.prune(&mut data);
        data
    }

    fn queries() -> Vec<Span> {
        let mut all = vec![span(TRACE, 1, 0, "root", 0, 100)];
        all.extend((2..8).map(|id| span(TRACE, id, 1, "SELECT", u64::from(id) * 10, u64::from(id))));
        all.push(failed(span(TRACE, 8, 1, "SELECT", 90, 1)));
        all.push(span(TRACE, 9, 1, "INSERT", 95, 1));
        all
    }

    #[test]
    fn many_alike_become_one_that_tells_of_all() {
        let data = pruned(&pruning(&[], 5, 1), queries());
        assert_eq!(
            tree(&data),
            BTreeSet::from(["root", "root/SELECT", "root/SELECT*6", "root/INSERT"].map(str::to_owned))
        );
        let all = spans(&data);
        let summary = all.iter().find(|span| about(span, "is_summary") == Some(Any::BoolValue(true))).unwrap();
        let times = [summary.start_time_unix_nano, summary.end_time_unix_nano]
            .map(|ns| (ns - crate::query::fixture::EPOCH) / 1_000_000);
        assert_eq!(times, [20, 77]);
        for (name, ms) in [("duration_min_ns", 2), ("duration_max_ns", 7), ("duration_total_ns", 27)] {
            assert_eq!(about(summary, name), Some(int(ms * 1_000_000)), "{name}");
        }
        assert_eq!(about(summary, "duration_avg_ns"), Some(int(4_500_000)));
        let Some(Any::ArrayValue(counts)) = about(summary, "histogram_bucket_counts") else { panic!() };
        let counts: Vec<_> = counts.values.into_iter().map(|count| count.value.unwrap()).collect();
        assert_eq!((counts[0].clone(), counts[1].clone(), counts[11].clone()), (int(4), int(6), int(6)));
    }

    #[test]
    fn fewer_stay() {
        assert_eq!(spans(&pruned(&pruning(&[], 7, 1), queries())).len(), 9);
    }

    #[rstest]
    #[case::all(&[], &["SELECT*6"])]
    #[case::each_system(&["db.*"], &["SELECT*3"])]
    #[case::another(&["http.*"], &["SELECT*6"])]
    fn attributes_tell_apart(#[case] group_by: &[&str], #[case] expected: &[&str]) {
        let mut all = vec![span(TRACE, 1, 0, "root", 0, 100)];
        all.extend((2..8).map(|id| {
            let system = if id % 2 == 0 { "mysql" } else { "postgresql" };
            Span { attributes: attributes(&[("db.system", text(system))]), ..span(TRACE, id, 1, "SELECT", 1, 1) }
        }));
        let data = pruned(&pruning(group_by, 3, 1), all);
        let found: BTreeSet<_> =
            tree(&data).into_iter().filter_map(|path| Some(path.split_once('/')?.1.to_owned())).collect();
        assert_eq!(found, expected.iter().map(|name| (*name).to_owned()).collect());
    }

    /// Three handlers with a SELECT, one with an INSERT.
    fn handlers() -> Vec<Span> {
        let mut all = vec![span(TRACE, 1, 0, "root", 0, 100)];
        for id in 2..6 {
            let below = if id == 5 { "INSERT" } else { "SELECT" };
            all.push(span(TRACE, id, 1, "handler", 1, 9));
            all.push(span(TRACE, id + 10, id, below, 2, 3));
        }
        all
    }

    #[rstest]
    #[case::with_parents(1, &["root", "root/handler*3", "handler*3/SELECT*3", "root/handler", "handler/INSERT"])]
    #[case::only_leaves(0, &["root", "root/handler", "handler/SELECT", "handler/INSERT"])]
    fn what_is_below_alike_spans_becomes_one_with_them(#[case] depth: usize, #[case] expected: &[&str]) {
        let data = pruned(&pruning(&[], 2, depth), handlers());
        assert_eq!(tree(&data), expected.iter().map(|name| (*name).to_owned()).collect());
    }

    #[test]
    fn circles_and_ids_that_come_twice_stay() {
        let all = vec![
            span(TRACE, 1, 2, "a", 0, 1),
            span(TRACE, 2, 1, "a", 0, 1),
            span(TRACE, 3, 0, "root", 0, 1),
            span(TRACE, 4, 3, "b", 0, 1),
            span(TRACE, 4, 3, "b", 0, 1),
            span(TRACE, 5, 5, "own", 0, 1),
        ];
        assert_eq!(pruned(&pruning(&[], 2, usize::MAX), all.clone()), data(all));
    }

    #[rstest]
    #[case::same("db.name", "db.name", true)]
    #[case::longer("db.name", "db.names", false)]
    #[case::begin("db.*", "db.system", true)]
    #[case::other("db.*", "http.method", false)]
    #[case::end("*.method", "http.request.method", true)]
    #[case::both("http.*.method", "http.request.method", true)]
    #[case::too_short("aa*aa", "aaa", false)]
    #[case::any("*", "", true)]
    fn patterns(#[case] pattern: &str, #[case] key: &str, #[case] expected: bool) {
        assert_eq!(matches(pattern, key), expected);
    }

    proptest! {
        #[test]
        fn no_span_is_lost(
            of in prop::collection::vec((1u8..20, 0u8..20, "[ab]"), 0..30), min in 2usize..4, depth in 0usize..3,
        ) {
            let all: Vec<_> = of.into_iter().map(|(id, parent, name)| span(TRACE, id, parent, &name, 0, 1)).collect();
            let count = all.len();
            let data = pruned(&pruning(&[], min, depth), all);
            let stands_for = |span: &&Span| match about(span, "span_count") {
                Some(Any::IntValue(count)) => count as usize,
                _ => 1,
            };
            prop_assert_eq!(spans(&data).iter().map(stands_for).sum::<usize>(), count);
            // Whose parent was there has one.
            let ids: HashSet<_> = spans(&data).iter().map(|span| span.span_id.clone()).collect();
            for span in spans(&data) {
                let was_summary = about(span, "is_summary").is_some();
                prop_assert!(!was_summary || ids.contains(&span.parent_span_id));
            }
        }
    }
}
