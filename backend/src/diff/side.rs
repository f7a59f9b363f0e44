//! One of the two traces, in an order and with names by which it can be compared.

use std::collections::{HashMap, HashSet};

use coati_common::wellknown::resource::SERVICE_NAME;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::{Span, TracesData};

use super::value::{Attributes, attributes};
use crate::query::{hex, kind_of, status_of};
use crate::traceql::Status;

/// What makes spans of two traces the same operation.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Identity<'t> {
    pub(super) service: &'t str,
    pub(super) name: &'t str,
    pub(super) kind: &'static str,
}

/// A trace.
#[derive(Debug)]
pub(super) struct Side<'t> {
    /// Hexadecimal.
    pub(super) trace_id: String,
    /// Parents before their children, siblings by start.
    pub(super) spans: Vec<Node<'t>>,
    /// Spans with the id of another one.
    pub(super) repeated_ids: usize,
}

/// A span of it.
#[derive(Debug)]
pub(super) struct Node<'t> {
    pub(super) identity: Identity<'t>,
    /// None for a root, which a span without its parent is too.
    pub(super) parent: Option<Identity<'t>>,
    /// Where the parent is in the list.
    above: Option<usize>,
    /// Which of its siblings it is.
    place: usize,
    /// Spans from the root to it.
    pub(super) depth: usize,
    pub(super) start_ns: u64,
    pub(super) end_ns: u64,
    /// None if it has no start, or ends before it.
    pub(super) duration_ns: Option<u64>,
    /// `error`, `ok` or `unset`.
    pub(super) status: &'static str,
    pub(super) attributes: Attributes<'t>,
}

impl<'t> Side<'t> {
    pub(super) fn of(data: &'t TracesData) -> Self {
        let mut spans = Vec::new();
        for resource in &data.resource_spans {
            let of_resource = resource.resource.as_ref().map_or("", |resource| service(&resource.attributes));
            let all = resource.scope_spans.iter().flat_map(|scope| &scope.spans);
            spans.extend(all.map(|span| (span, identity(span, of_resource))));
        }
        // So siblings are in their order too, and of spans with the same id the first one has the children.
        spans.sort_by_key(|(span, _)| (span.start_time_unix_nano, span.span_id.as_slice()));
        let mut by_id: HashMap<&[u8], usize> = HashMap::new();
        for (index, (span, _)) in spans.iter().enumerate() {
            by_id.entry(&span.span_id).or_insert(index);
        }
        let mut roots = Vec::new();
        let mut children: Vec<Vec<usize>> = vec![Vec::new(); spans.len()];
        for (index, (span, _)) in spans.iter().enumerate() {
            let parent = by_id.get(span.parent_span_id.as_slice()).filter(|_| !span.parent_span_id.is_empty());
            match parent.and_then(|parent| children.get_mut(*parent)) {
                Some(siblings) => siblings.push(index),
                None => roots.push(index),
            }
        }
        let repeated_ids = spans.len() - by_id.len();
        let trace_id = spans.first().map(|(span, _)| hex(&span.trace_id)).unwrap_or_default();
        let mut side = Self { trace_id, spans: Vec::with_capacity(spans.len()), repeated_ids };
        let mut seen = HashSet::new();
        let mut place = side.walk(&spans, &children, &roots, 0, &mut seen);
        // Spans whose parents form a circle hang on no root.
        for index in 0..spans.len() {
            place = side.walk(&spans, &children, &[index], place, &mut seen);
        }
        side
    }

    /// Adds roots and all below them. Returns the place of the next root.
    fn walk(
        &mut self,
        spans: &[(&'t Span, Identity<'t>)],
        children: &[Vec<usize>],
        roots: &[usize],
        first_place: usize,
        seen: &mut HashSet<usize>,
    ) -> usize {
        let mut next_place = first_place;
        for root in roots {
            // A stack instead of recursion: traces may be as deep as they have spans.
            let mut open: Vec<(usize, Option<usize>, usize)> = vec![(*root, None, next_place)];
            while let Some((index, above, place)) = open.pop() {
                let Some((span, identity)) = spans.get(index).filter(|_| seen.insert(index)) else { continue };
                let parent = above.and_then(|above| self.spans.get(above));
                let (parent, depth) = (parent.map(|node| node.identity), parent.map_or(0, |node| node.depth) + 1);
                let here = self.spans.len();
                self.spans.push(Node::new(span, *identity, parent, (above, place, depth)));
                next_place += usize::from(above.is_none());
                let below = children.get(index).map(Vec::as_slice).unwrap_or_default().iter().enumerate();
                open.extend(below.rev().map(|(place, child)| (*child, Some(here), place)));
            }
        }
        next_place
    }

    /// Places among siblings, from the root down to a span.
    pub(super) fn path(&self, index: usize) -> Vec<usize> {
        let node = |index: usize| self.spans.get(index);
        let up = std::iter::successors(node(index), |below| node(below.above?));
        let mut path: Vec<usize> = up.map(|node| node.place).collect();
        path.reverse();
        path
    }
}

impl<'t> Node<'t> {
    fn new(
        span: &'t Span,
        identity: Identity<'t>,
        parent: Option<Identity<'t>>,
        (above, place, depth): (Option<usize>, usize, usize),
    ) -> Self {
        let (start_ns, end_ns) = (span.start_time_unix_nano, span.end_time_unix_nano);
        let duration_ns = end_ns.checked_sub(start_ns).filter(|_| start_ns > 0);
        let status = span.status.as_ref().map_or(Status::Unset, |status| status_of(status.code));
        let attributes = attributes(&span.attributes);
        Self { identity, parent, above, place, depth, start_ns, end_ns, duration_ns, status: status.name(), attributes }
    }

    pub(super) fn is_error(&self) -> bool {
        self.status == Status::Error.name()
    }
}

fn identity<'t>(span: &'t Span, of_resource: &'t str) -> Identity<'t> {
    let own = service(&span.attributes);
    Identity {
        service: if own.is_empty() { of_resource } else { own },
        name: &span.name,
        kind: kind_of(span.kind).name(),
    }
}

fn service(attributes: &[KeyValue]) -> &str {
    let name = attributes.iter().find(|attribute| attribute.key == SERVICE_NAME);
    match name.and_then(|name| name.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(name)) => name,
        _ => "",
    }
}
