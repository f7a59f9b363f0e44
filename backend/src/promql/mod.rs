//! The part of Prometheus that Grafana's service graph, its tables and dashboards on generated metrics need: samples of the
//! last hours in memory, PromQL, and the paths of Prometheus' API that read.
//!
//! What it answers is what Prometheus 2.42 answers from the same samples; what it does not know it refuses. Native histograms are
//! not kept.

mod aggregate;
mod binary;
mod calendar;
mod eval;
mod functions;
mod history;
mod http;
mod relabel;
#[cfg(test)]
mod tests;

pub use eval::{EvalError, MAX_QUERY_BYTES, Range, evaluate};
pub use history::{Adding, History, HistoryError, HistoryFolder, Labels, STALE, Samples, check_history};
pub use http::router;

/// Name of the label that holds a series' name.
pub const NAME: &str = "__name__";

/// A series at a moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Its labels.
    pub labels: Labels,
    /// Its value.
    pub value: f64,
}

/// What an expression is at a moment.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Scalar(f64),
    /// One number for each series.
    Vector(Vec<Sample>),
    /// The samples of each series in a time.
    Matrix(Vec<(Labels, Samples)>),
    /// A text.
    Text(String),
}
