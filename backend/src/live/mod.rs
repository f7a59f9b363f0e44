//! Traces in memory: everything that was acknowledged lately and is not in a block yet, whole, ready for queries.
//!
//! It is bounded: when the estimate of its memory reaches the limit, requests are refused until traces were cut. What is
//! being cut stays visible until its block is committed.

mod bell;
mod callers;
mod cut;
mod entry;
mod group;
mod set;
mod size;
mod stitch;
#[cfg(test)]
mod tests;
mod trace;

pub use bell::Bell;
pub use callers::CALLERS_KNOWN_FOR;
pub use cut::{Cut, TenantCut};
pub use entry::Life;
pub use group::{GroupError, group, group_encoded, group_message};
pub use set::{Limits, LiveSet, Room, Stats};
pub use stitch::Calls;
pub use trace::{Batch, Root, Trace, TraceId, TraceSpan};
