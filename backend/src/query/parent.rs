//! `parent.…`: attributes of the span above.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::nested::NestedSet;
use super::span::SpanView;
use super::value::Value;
use crate::traceql::{Attribute, Field, Intrinsic, Scope};

/// Whether a field is one of the parent.
pub(super) fn is_of_parent(field: &Field) -> bool {
    matches!(field, Field::Attribute(Attribute { parent: true, .. }))
}

/// A span that knows the one above it.
pub(super) struct WithParent<'s, S> {
    span: &'s S,
    /// None for roots, and for spans whose parent never came.
    parent: Option<&'s S>,
}

impl<'s, S: SpanView> WithParent<'s, S> {
    /// The spans of a whole trace, which must be numbered, in their order.
    pub(super) fn of_trace(spans: &'s [S]) -> Vec<Self> {
        let mut by_left: HashMap<i32, &S, RandomState> = HashMap::default();
        by_left.extend(spans.iter().map(|span| (span.nested().left, span)).filter(|(left, _)| *left > 0));
        spans.iter().map(|span| Self { span, parent: by_left.get(&span.nested().parent).copied() }).collect()
    }
}

impl<S: SpanView> SpanView for WithParent<'_, S> {
    fn attribute(&self, scope: Scope, name: &str) -> Value<'_> {
        self.span.attribute(scope, name)
    }

    fn each_attribute(&self, scope: Scope, visit: &mut dyn FnMut(&str, Value<'_>)) {
        self.span.each_attribute(scope, visit);
    }

    fn intrinsic(&self, intrinsic: Intrinsic) -> Value<'_> {
        self.span.intrinsic(intrinsic)
    }

    fn nested(&self) -> NestedSet {
        self.span.nested()
    }

    fn start_ns(&self) -> u64 {
        self.span.start_ns()
    }

    fn duration_ns(&self) -> u64 {
        self.span.duration_ns()
    }

    fn row(&self) -> Option<usize> {
        self.span.row()
    }

    fn field(&self, field: &Field) -> Value<'_> {
        match field {
            Field::Attribute(Attribute { parent: true, scope, name }) => {
                self.parent.map_or(Value::Nil, |parent| parent.attribute_in(*scope, name))
            }
            field => self.span.field(field),
        }
    }
}
