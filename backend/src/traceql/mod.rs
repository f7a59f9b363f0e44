//! TraceQL: text in, typed tree out.
//!
//! [`parse`] reads the whole language that Tempo reads (spanset filters, structural operators, pipelines, aggregates,
//! metrics, hints) and checks its types, so what it returns can be planned. What the planner cannot do yet, it refuses
//! itself (see `query::PlanError`).
//!
//! The tree prints as TraceQL again ([`std::fmt::Display`]), and `parse(tree.to_string()) == tree`.

mod ast;
mod display;
mod error;
mod field;
mod lenient;
mod lexer;
mod metrics;
mod names;
mod operators;
mod parser;
mod suggest;
mod validate;
mod values;

pub use ast::{
    Aggregate, AggregateFunction, BinaryOp, FieldExpr, Hint, Kind, Literal, MetricsExpr, MetricsFunction, MetricsQuery,
    Query, QueryBody, ScalarExpr, ScalarFilter, SecondStage, SpansetExpr, SpansetOp, Stage, Status,
};
pub use error::TraceQlError;
pub use lenient::filter_of_unfinished;
pub use names::{Attribute, Field, Intrinsic, IntrinsicScope, Scope};
pub use validate::regex_of;
pub use values::parse_duration;

/// Longest query that is read, in bytes.
pub const MAX_QUERY_BYTES: usize = 131_072;

/// Reads and checks one query.
pub fn parse(text: &str) -> Result<Query, TraceQlError> {
    let query = parser::parse(text)?;
    validate::query(&query)?;
    Ok(query)
}

/// Reads the name of one attribute or intrinsic: `resource.service.name`, `.foo`, `span:name`, `status`.
pub fn parse_field(text: &str) -> Result<Field, TraceQlError> {
    parser::parse_field(text)
}

#[cfg(test)]
mod tests;
