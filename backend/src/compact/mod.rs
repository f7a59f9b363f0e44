//! Compaction and retention: small blocks become large ones, old ones go.
//!
//! [`plan`] says which blocks are merged and [`expired`] which go, both pure functions of the list of blocks.

#[cfg(test)]
mod fixture;
mod plan;
mod retention;

pub use plan::{Job, MAX_INPUTS, Policy, plan};
pub use retention::{Ages, Reason, expired};
