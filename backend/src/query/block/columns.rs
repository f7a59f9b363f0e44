//! Which columns of a block a query has to read.

use parquet::arrow::ProjectionMask;

use crate::block::Block;
use crate::block::schema::{attribute, column, event, promoted_column};
use crate::query::scan::Wanted;
use crate::traceql::{Attribute, Field, Intrinsic, Scope};

/// Columns of one block.
#[derive(Clone, Debug, Default)]
pub(super) struct Columns {
    /// Top-level columns that are read whole.
    names: Vec<String>,
    /// Of these top-level columns only some leaves are read: paths that the leaves begin with.
    leaves: Vec<String>,
    /// Attributes with a column of their own: key and name of the column.
    pub(super) promoted: Vec<(Box<str>, String)>,
}

impl Columns {
    /// Those that show what is wanted.
    pub(super) fn of(block: &Block, wanted: &Wanted) -> Self {
        let mut columns = Self::default();
        wanted.fields.iter().for_each(|field| columns.add(block, field));
        if wanted.every_attribute {
            for promoted in block.promoted() {
                columns.add_promoted(&promoted.key);
            }
            let lists = [column::ATTRIBUTES, column::EVENTS, column::LINKS];
            let lists = if wanted.names_only { &[] } else { lists.as_slice() };
            for name in [column::RESOURCE, column::SCOPE].iter().chain(lists) {
                columns.add_name(name);
            }
            if wanted.names_only {
                let of_list = |list: &str| format!("{list}.list.element.{}", attribute::KEY);
                columns.add_leaf(of_list(column::ATTRIBUTES));
                for list in [column::EVENTS, column::LINKS] {
                    columns.add_leaf(of_list(&format!("{list}.list.element.{}", event::ATTRIBUTES)));
                }
            }
        }
        columns
    }

    /// Whether nothing is to be read.
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty() && self.leaves.is_empty()
    }

    /// Adds all of the others.
    pub(super) fn add_all(&mut self, others: Self) {
        others.names.iter().for_each(|name| self.add_name(name));
        others.leaves.into_iter().for_each(|path| self.add_leaf(path));
        others.promoted.iter().for_each(|(key, _)| self.add_promoted(key));
    }

    /// Adds a top-level column.
    pub(super) fn add_name(&mut self, name: &str) {
        if !self.names.iter().any(|known| known == name) {
            self.names.push(name.to_owned());
        }
    }

    fn add_leaf(&mut self, path: String) {
        if !self.leaves.contains(&path) {
            self.leaves.push(path);
        }
    }

    /// Adds the column of an attribute that has one.
    pub(super) fn add_promoted(&mut self, key: &str) {
        let name = promoted_column(key);
        self.add_name(&name);
        if !self.promoted.iter().any(|(known, _)| **known == *key) {
            self.promoted.push((key.into(), name));
        }
    }

    /// Removes top-level columns that are no attributes.
    pub(super) fn remove_names(&mut self, names: &[&str]) {
        self.names.retain(|name| !names.contains(&name.as_str()));
    }

    /// Removes the columns of attributes of these keys.
    pub(super) fn remove_promoted(&mut self, is_unwanted: impl Fn(&str) -> bool) {
        let Self { names, promoted, .. } = self;
        promoted.retain(|(key, name)| {
            let is_wanted = !is_unwanted(key);
            if !is_wanted {
                names.retain(|known| known != name);
            }
            is_wanted
        });
    }

    /// The column, if there is one only, which is read whole.
    pub(super) fn only(&self) -> Option<&str> {
        match (self.names.as_slice(), self.leaves.as_slice()) {
            ([name], []) => Some(name),
            _ => None,
        }
    }

    fn add(&mut self, block: &Block, field: &Field) {
        match field {
            Field::Attribute(Attribute { scope, name, .. }) => match scope {
                Scope::Span => self.add_span_attribute(block, name),
                Scope::Resource => self.add_name(column::RESOURCE),
                Scope::Instrumentation => self.add_name(column::SCOPE),
                // Only their attributes, which most events and links have none of.
                Scope::Event => self.add_leaf(format!("{}.list.element.{}", column::EVENTS, event::ATTRIBUTES)),
                Scope::Link => self.add_leaf(format!("{}.list.element.{}", column::LINKS, event::ATTRIBUTES)),
                Scope::Any => {
                    for scope in Scope::NAMED {
                        let field = Attribute { parent: false, scope, name: name.clone() };
                        self.add(block, &Field::Attribute(field));
                    }
                }
            },
            Field::Intrinsic(intrinsic) => self.add_intrinsic(*intrinsic),
        }
    }

    fn add_span_attribute(&mut self, block: &Block, name: &str) {
        let of = block.promoted().iter().find(|promoted| *promoted.key == *name).map(|promoted| promoted.of);
        if of.is_some() {
            self.add_promoted(name);
        }
        let counts = block.attribute_counts();
        // Values of another type than that of the column are in the list.
        let is_listed = match of {
            Some(of) => counts.has_others(name, of),
            None => counts.may_have(name),
        };
        if is_listed {
            self.add_name(column::ATTRIBUTES);
        }
    }

    fn add_intrinsic(&mut self, intrinsic: Intrinsic) {
        let start = [column::TRACE_START, column::START_OFFSET];
        let names: &[&str] = match intrinsic {
            Intrinsic::Duration => &[column::TRACE_START, column::START_OFFSET, column::DURATION],
            Intrinsic::Name => &[column::NAME],
            Intrinsic::Status => &[column::STATUS_CODE],
            Intrinsic::StatusMessage => &[column::STATUS_MESSAGE],
            Intrinsic::Kind => &[column::KIND],
            Intrinsic::Parent => &[],
            Intrinsic::ChildCount
            | Intrinsic::NestedSetLeft
            | Intrinsic::NestedSetRight
            | Intrinsic::NestedSetParent => &[column::NESTED_LEFT, column::NESTED_RIGHT, column::NESTED_PARENT],
            Intrinsic::SpanId => &[column::SPAN_ID],
            Intrinsic::ParentId => {
                &[column::SPAN_ID, column::PARENT_SPAN_ID, column::NESTED_LEFT, column::NESTED_PARENT]
            }
            Intrinsic::TraceId => &[column::TRACE_ID],
            Intrinsic::TraceDuration => &[column::TRACE_START, column::TRACE_END],
            Intrinsic::RootName | Intrinsic::RootService => {
                &[column::NESTED_PARENT, column::TRACE_START, column::START_OFFSET, column::NAME, column::RESOURCE]
            }
            Intrinsic::EventName => {
                self.add_leaf(format!("{}.list.element.{}", column::EVENTS, event::NAME));
                &[]
            }
            Intrinsic::EventTimeSinceStart => {
                self.add_leaf(format!("{}.list.element.{}", column::EVENTS, event::TIME_OFFSET));
                &start
            }
            Intrinsic::LinkTraceId | Intrinsic::LinkSpanId => &[column::LINKS],
            Intrinsic::InstrumentationName | Intrinsic::InstrumentationVersion => &[column::SCOPE],
        };
        for name in names {
            self.add_name(name);
        }
    }

    /// As the Parquet library wants it.
    pub(super) fn mask(&self, block: &Block) -> ProjectionMask {
        let schema = block.metadata().parquet_schema();
        let leaves = schema.columns().iter().enumerate().filter(|(_, leaf)| {
            let path = leaf.path();
            let root = path.parts().first().map(String::as_str).unwrap_or_default();
            let path = path.string();
            let begins = |prefix: &String| {
                path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            };
            self.names.iter().any(|name| name == root) || self.leaves.iter().any(begins)
        });
        ProjectionMask::leaves(schema, leaves.map(|(number, _)| number))
    }
}
