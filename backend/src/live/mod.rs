//! Traces in memory.

mod trace;

pub use trace::{Batch, Root, Trace, TraceId};
