//! A part of a trace: `q` of `/api/v2/traces/{id}` and what says how much around the matches stays.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use opentelemetry_proto::tonic::trace::v1::{Span, TracesData};

use super::error::ApiError;
use super::params::{Params, go_integer};
use crate::live::Trace;
use crate::query::{Plan, SearchRequest, View, hex, search};
use crate::traceql::{self, QueryBody, SpansetExpr, Stage};

/// Which spans of a trace are wanted.
#[derive(Clone, Debug)]
pub(super) struct Part {
    plan: Plan,
    /// How many spans above a match stay, as far as there are any.
    above: usize,
    /// How many levels of spans below a match stay.
    below: usize,
}

impl Part {
    /// None if the whole trace is wanted.
    pub(super) fn of(params: &Params) -> Result<Option<Self>, ApiError> {
        let Some(text) = params.get("q") else { return Ok(None) };
        let invalid = |why: String| ApiError::bad(format!("invalid TraceQL query: {why}"));
        let query = traceql::parse(text).map_err(|error| invalid(error.shown_in(text)))?;
        let filter = match &query.body {
            QueryBody::Spans(stages) => match stages.as_slice() {
                [Stage::Spansets(SpansetExpr::Filter(filter))] => filter,
                _ => return Err(invalid("a trace by id takes one filter, such as { status = error }".to_owned())),
            },
            QueryBody::Metrics(_) => return Err(invalid("a trace by id takes one filter, no metrics".to_owned())),
        };
        let plan = Plan::of_filter(filter).map_err(|error| invalid(error.to_string()))?;
        let above = if params.flag("keep_hierarchy")? { depth(params, "ancestor_depth", -1)? } else { 0 };
        Ok(Some(Self { plan, above, below: depth(params, "match_depth", 0)? }))
    }

    /// Removes all other spans from a trace, and what is empty then.
    pub(super) fn cut(self, trace: &Arc<Trace>, data: &mut TracesData) -> Result<(), ApiError> {
        let request = SearchRequest { plan: Some(self.plan), show_spans: true, limit: 1, ..SearchRequest::default() };
        let found = search(&View::of_live(vec![Arc::clone(trace)]), &request, &AtomicBool::new(false))?;
        let spans = found.traces.iter().flat_map(|trace| &trace.spansets).flat_map(|set| &set.spans);
        let matched: HashSet<&str> = spans.map(|span| span.id.as_str()).collect();
        let all =
            || data.resource_spans.iter().flat_map(|resource| &resource.scope_spans).flat_map(|scope| &scope.spans);
        let parents: HashMap<&[u8], &[u8]> = all().map(|span| (&*span.span_id, &*span.parent_span_id)).collect();
        let is_match = |id: &[u8]| matched.contains(hex(id).as_str());
        let mut kept: HashSet<Vec<u8>> = HashSet::new();
        for Span { span_id, .. } in all() {
            let up = |id: &[u8]| parents.get(id).copied().filter(|parent| parents.contains_key(parent));
            // From a match its ancestors, from any other span up to a match that it is below of. Parents may form a
            // circle, but no way is longer than there are spans.
            let above = std::iter::successors(Some(span_id.as_slice()), |id| up(id)).take(parents.len());
            if is_match(span_id) {
                kept.extend(above.take(self.above.saturating_add(1)).map(<[u8]>::to_vec));
            } else if self.below > 0 && above.skip(1).take(self.below).any(is_match) {
                kept.insert(span_id.clone());
            }
        }
        for resource in &mut data.resource_spans {
            for scope in &mut resource.scope_spans {
                scope.spans.retain(|span| kept.contains(&span.span_id));
            }
            resource.scope_spans.retain(|scope| !scope.spans.is_empty());
        }
        data.resource_spans.retain(|resource| !resource.scope_spans.is_empty());
        Ok(())
    }
}

/// A number of levels; -1 for all.
pub(super) fn depth(params: &Params, name: &str, default: i64) -> Result<usize, ApiError> {
    let depth = match params.get(name) {
        None => default,
        Some(text) => go_integer("Atoi", text).map_err(|error| ApiError::bad(format!("invalid {name}: {error}")))?,
    };
    match depth {
        -1 => Ok(usize::MAX),
        depth => usize::try_from(depth).map_err(|_| ApiError::bad(format!("invalid {name}: must be -1 or more"))),
    }
}
