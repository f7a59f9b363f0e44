//! Queries over traces: a tree of [`crate::traceql`] becomes a [`Plan`], a plan picks spans from whole traces.
//!
//! A plan sees spans only through [`SpanView`], so that spans in memory and spans in blocks are searched by the same code.

mod block;
mod distinct;
mod expr;
mod live;
mod metrics;
mod nested;
mod otlp;
mod parent;
mod pipeline;
mod plan;
mod prefilter;
mod scan;
mod search;
mod span;
mod tag_scan;
mod tags;
mod value;
mod view;

pub(crate) use block::{FullTags, TagReader};
pub use distinct::distinct_spans;
pub use live::LiveSpan;
pub(crate) use live::{hex, kind_of, status_of};
pub use metrics::{
    Exemplar, Intervals, Label, LabelValue, MAX_EXEMPLARS, MetricsPlan, MetricsRequest, MetricsResult, Partial, Series,
    default_step, query_metrics,
};
pub use nested::NestedSet;
pub(crate) use nested::{Link as NestedLink, number as number_nested};
pub use otlp::traces_data;
pub use pipeline::Spanset;
pub use plan::{Plan, PlanError};
pub use search::{
    Inspected, Order, OrderBy, Progress, SearchError, SearchRequest, SearchResult, ServiceStats, SpanMatch,
    SpansetMatch, TraceMatch, Window, search, search_in_parts,
};
pub use span::SpanView;
pub use tag_scan::{TagScan, scan_names, scan_values};
pub use tags::expression_of_tags;
pub use value::{Value, go_duration};
pub use view::{FoundTrace, View};

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
pub(crate) mod random;
#[cfg(test)]
mod tests;
