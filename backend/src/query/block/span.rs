//! Spans of a block, as queries see them.

use std::collections::HashMap;
use std::ptr;

use foldhash::fast::RandomState;
use opentelemetry_proto::tonic::common::v1::KeyValue;

use super::mask;
use super::rows::Rows;
use crate::live::{Root, TraceId};
use crate::query::live::{hex, kind_of, status_of};
use crate::query::nested::NestedSet;
use crate::query::scan::TraceFacts;
use crate::query::span::SpanView;
use crate::query::value::Value;
use crate::traceql::{Field, Intrinsic, Scope};

/// A row.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockSpan<'r> {
    pub(super) rows: &'r Rows<'r>,
    pub(super) row: usize,
    /// None if its trace is not known whole.
    pub(super) trace: Option<&'r Family>,
    /// Where it is in the block, if other columns of it may be read later.
    pub(super) place: Option<usize>,
}

/// What a span knows of its trace and of the others in it.
#[derive(Debug)]
pub(super) struct Family {
    id: TraceId,
    /// Of the spans in this block, nanoseconds since the epoch.
    start_ns: u64,
    end_ns: u64,
    root: Option<Root>,
    /// By the left number of the parent; only if somebody asks how many they are.
    children: HashMap<i32, i64, RandomState>,
    /// Ids of spans by their left numbers; only if somebody asks for ids of parents.
    ids: HashMap<i32, Vec<u8>, RandomState>,
}

impl Family {
    /// Of the rows of one trace.
    pub(super) fn of(trace: &TraceFacts, places: &[(&Rows<'_>, usize)], counts_children: bool) -> Self {
        let TraceFacts { id, start_ns, end_ns, ref root } = *trace;
        let (children, ids) = (HashMap::default(), HashMap::default());
        let mut family = Self { id, start_ns, end_ns, root: root.clone(), children, ids };
        if counts_children {
            for (rows, row) in places {
                *family.children.entry(rows.nested_parent(*row)).or_insert(0) += 1;
            }
        }
        for (rows, row) in places.iter().filter(|(rows, _)| rows.parent_span_ids.is_some()) {
            family.ids.insert(rows.nested_left(*row), rows.span_id(*row).to_vec());
        }
        family
    }
}

impl BlockSpan<'_> {
    fn trace_id(&self) -> TraceId {
        self.trace.map_or_else(|| self.rows.trace_id(self.row), |trace| trace.id)
    }

    /// Nanoseconds since the epoch.
    fn trace_times_ns(&self) -> (u64, u64) {
        let read = || (self.rows.trace_start_ns(self.row), self.rows.trace_end_ns(self.row));
        self.trace.map_or_else(read, |trace| (trace.start_ns, trace.end_ns))
    }

    fn scope_attributes(&self, scope: Scope) -> &[KeyValue] {
        match scope {
            Scope::Resource => self.rows.resource(self.row).map_or(&[], |entry| &entry.resource.attributes),
            Scope::Instrumentation => self.rows.scope(self.row).map_or(&[], |entry| &entry.scope.attributes),
            _ => &[],
        }
    }

    /// Of events or links.
    fn many(&self, scope: Scope, name: &str) -> Value<'_> {
        let mut found = Vec::new();
        self.each_of_many(scope, &mut |key, value| {
            if key == name {
                match value {
                    Value::List(values) => found.extend(values),
                    Value::Nil => {}
                    value => found.push(value),
                }
            }
        });
        Value::of_many(found)
    }

    fn each_of_many<'s>(&'s self, scope: Scope, visit: &mut dyn FnMut(&'s str, Value<'s>)) {
        match scope {
            Scope::Event => {
                let attributes = self.rows.events.iter().flat_map(|events| events.attributes(self.row));
                attributes.for_each(|(key, value)| visit(key, value));
            }
            Scope::Link => {
                let attributes = self.rows.links.iter().flat_map(|links| links.attributes(self.row));
                attributes.for_each(|(key, value)| visit(key, value));
            }
            _ => {}
        }
    }

    fn parent_id(&self) -> Vec<u8> {
        if let Some(id) = self.rows.parent_span_ids.as_ref().and_then(|ids| ids.get(self.row)) {
            return id.to_vec();
        }
        let parent = self.rows.nested_parent(self.row);
        let id = (parent > 0).then_some(self.trace).flatten().and_then(|trace| trace.ids.get(&parent));
        id.cloned().unwrap_or_default()
    }
}

impl SpanView for BlockSpan<'_> {
    fn attribute(&self, scope: Scope, name: &str) -> Value<'_> {
        match scope {
            Scope::Span => {
                let mut promoted = self.rows.promoted.iter().filter(|(key, _)| **key == *name);
                let promoted = promoted.find_map(|(_, column)| column.get(self.row));
                let listed = || self.rows.attributes.as_ref().and_then(|lists| lists.get(self.row, name));
                promoted.or_else(listed).unwrap_or(Value::Nil)
            }
            Scope::Resource | Scope::Instrumentation => {
                let attributes = self.scope_attributes(scope);
                attributes.iter().find(|kv| kv.key == name).map_or(Value::Nil, |kv| Value::of(kv.value.as_ref()))
            }
            Scope::Any | Scope::Event | Scope::Link => self.many(scope, name),
        }
    }

    fn each_attribute(&self, scope: Scope, visit: &mut dyn FnMut(&str, Value<'_>)) {
        match scope {
            Scope::Span => {
                for (key, column) in &self.rows.promoted {
                    if let Some(value) = column.get(self.row) {
                        visit(key, value);
                    }
                }
                let listed = self.rows.attributes.iter().flat_map(|lists| lists.of_row(self.row));
                listed.for_each(|(key, value)| visit(key, value));
            }
            Scope::Resource | Scope::Instrumentation => {
                self.scope_attributes(scope).iter().for_each(|kv| visit(&kv.key, Value::of(kv.value.as_ref())));
            }
            Scope::Any | Scope::Event | Scope::Link => self.each_of_many(scope, visit),
        }
    }

    fn intrinsic(&self, intrinsic: Intrinsic) -> Value<'_> {
        let (rows, row) = (self.rows, self.row);
        let nanos = |nanos: u64| Value::Duration(i64::try_from(nanos).unwrap_or(i64::MAX));
        let root = || self.trace.and_then(|trace| trace.root.as_ref());
        let ids = |ids: Vec<&[u8]>| Value::of_many(ids.into_iter().map(|id| Value::text(hex(id))).collect());
        match intrinsic {
            Intrinsic::Duration => nanos(self.duration_ns()),
            Intrinsic::Name => Value::text_of(rows.names.as_ref().and_then(|names| names.get(row)).unwrap_or_default()),
            Intrinsic::Status => Value::Status(status_of(rows.status_code(row))),
            Intrinsic::StatusMessage => {
                let messages = rows.status_messages.as_ref();
                Value::text_of(messages.and_then(|messages| messages.get(row)).unwrap_or_default())
            }
            Intrinsic::Kind => Value::Kind(kind_of(rows.kind(row))),
            Intrinsic::Parent => Value::Nil,
            Intrinsic::ChildCount => {
                let left = rows.nested_left(row);
                let children = self.trace.filter(|_| left > 0).and_then(|trace| trace.children.get(&left));
                Value::Int(children.copied().unwrap_or_default())
            }
            Intrinsic::SpanId => Value::text(hex(rows.span_id(row))),
            Intrinsic::ParentId => Value::text(hex(&self.parent_id())),
            Intrinsic::NestedSetLeft => Value::Int(rows.nested_left(row).into()),
            Intrinsic::NestedSetRight => Value::Int(rows.nested_right(row).into()),
            Intrinsic::NestedSetParent => Value::Int(rows.nested_parent(row).into()),
            Intrinsic::TraceId => Value::text(self.trace_id().to_string()),
            Intrinsic::TraceDuration => {
                let (start_ns, end_ns) = self.trace_times_ns();
                nanos(end_ns.saturating_sub(start_ns))
            }
            Intrinsic::RootName => root().map_or(Value::Nil, |root| Value::text_of(&root.span_name)),
            Intrinsic::RootService => root().map_or(Value::Nil, |root| Value::text_of(&root.service_name)),
            Intrinsic::EventName => {
                let names = rows.events.iter().flat_map(|events| events.names(row));
                Value::of_many(names.map(Value::text_of).collect())
            }
            Intrinsic::EventTimeSinceStart => {
                let start_ns = self.start_ns();
                let since = |offset: i64| nanos(start_ns.wrapping_add(offset.cast_unsigned()).saturating_sub(start_ns));
                let offsets = rows.events.iter().flat_map(|events| events.time_offsets(row));
                Value::of_many(offsets.map(since).collect())
            }
            Intrinsic::LinkTraceId => ids(rows.links.iter().flat_map(|links| links.trace_ids(row)).collect()),
            Intrinsic::LinkSpanId => ids(rows.links.iter().flat_map(|links| links.span_ids(row)).collect()),
            Intrinsic::InstrumentationName => Value::text_of(rows.scope(row).map_or("", |entry| &entry.scope.name)),
            Intrinsic::InstrumentationVersion => {
                Value::text_of(rows.scope(row).map_or("", |entry| &entry.scope.version))
            }
        }
    }

    fn nested(&self) -> NestedSet {
        NestedSet {
            left: self.rows.nested_left(self.row),
            right: self.rows.nested_right(self.row),
            parent: self.rows.nested_parent(self.row),
        }
    }

    fn row(&self) -> Option<usize> {
        self.place
    }

    fn code(&self, field: &Field) -> Option<(usize, usize)> {
        Some((ptr::from_ref(self.rows).addr(), mask::code(field, self.rows, self.row)?))
    }

    fn start_ns(&self) -> u64 {
        match self.trace {
            Some(trace) => self.rows.start_in(self.row, trace.start_ns),
            None => self.rows.start_ns(self.row),
        }
    }

    fn duration_ns(&self) -> u64 {
        self.rows.duration_ns(self.row, self.start_ns())
    }
}
