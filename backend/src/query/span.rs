//! What a query can ask of a span.

use super::nested::NestedSet;
use super::value::Value;
use crate::traceql::{Attribute, Field, Intrinsic, Scope};

/// One span, wherever it is stored.
pub trait SpanView {
    /// An attribute of one scope, which is never [`Scope::Any`]. Of events and links, one value for each that has it.
    fn attribute(&self, scope: Scope, name: &str) -> Value<'_>;

    /// Shows all attributes of one scope, which is never [`Scope::Any`], with their names. Of events and links, a name may
    /// come more than once.
    fn each_attribute(&self, scope: Scope, visit: &mut dyn FnMut(&str, Value<'_>));

    /// A property. Of events and links, one value for each.
    fn intrinsic(&self, intrinsic: Intrinsic) -> Value<'_>;

    /// Where it stands in its trace; all zero unless the plan asked for it.
    fn nested(&self) -> NestedSet;

    /// Start, nanoseconds since the epoch.
    fn start_ns(&self) -> u64;

    /// End minus start, nanoseconds; 0 for a span that ends before it starts.
    fn duration_ns(&self) -> u64;

    /// Its row in the block that is looked at, if there is more to ask of it later than now.
    fn row(&self) -> Option<usize> {
        None
    }

    /// Where it lies, and a small number there: of spans that are in memory together those that have both in common have the
    /// same value of the field. None where that is not known.
    fn code(&self, _field: &Field) -> Option<(usize, usize)> {
        None
    }

    /// What a field of a query is on this span.
    fn field(&self, field: &Field) -> Value<'_> {
        match field {
            Field::Intrinsic(intrinsic) => self.intrinsic(*intrinsic),
            // A span alone knows nothing of the one above it: see `parent`.
            Field::Attribute(Attribute { parent: true, .. }) => Value::Nil,
            Field::Attribute(Attribute { scope, name, .. }) => self.attribute_in(*scope, name),
        }
    }

    /// An attribute of one scope, or of the first that has it.
    fn attribute_in(&self, scope: Scope, name: &str) -> Value<'_> {
        if scope != Scope::Any {
            return self.attribute(scope, name);
        }
        let mut scopes = Scope::NAMED.into_iter().map(|scope| self.attribute(scope, name));
        scopes.find(Value::exists).unwrap_or(Value::Nil)
    }
}
