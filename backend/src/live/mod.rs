//! Traces in memory: everything that was acknowledged lately, whole, ready for queries.
//!
//! Until blocks exist this is what queries see. It is bounded: when the estimate of its memory passes the limit, the
//! traces that were quiet for longest leave. They stay in the log, but are not searchable any more.

mod group;
mod set;
mod size;
#[cfg(test)]
mod tests;
mod trace;

pub use group::{TraceBatch, group, ungroup};
pub use set::{Limits, LiveSet, Stats};
pub use trace::{Batch, Root, Trace, TraceId, is_root};
