//! Queries over traces: a tree of [`crate::traceql`] becomes a [`Plan`], a plan picks spans from whole traces.
//!
//! A plan sees spans only through [`SpanView`], so that spans in memory and spans in blocks are searched by the same code.

mod expr;
mod live;
mod nested;
mod pipeline;
mod plan;
mod scan;
mod search;
mod span;
mod tags;
mod value;

pub use live::{LiveSpan, distinct_spans};
pub use nested::NestedSet;
pub use pipeline::Spanset;
pub use plan::{Plan, PlanError};
pub use scan::{TagScan, scan_names, scan_values};
pub use search::{
    Inspected, SearchRequest, SearchResult, ServiceStats, SpanMatch, SpansetMatch, TraceMatch, Window, search,
};
pub use span::SpanView;
pub use tags::expression_of_tags;
pub use value::Value;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
