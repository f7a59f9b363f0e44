//! Compaction and retention: small blocks become large ones, old ones go.
//!
//! [`plan`] says which blocks are merged and [`expired`] which go, both pure functions of the list of blocks. [`merge`]
//! makes one block of several. [`Compactor`] carries out what is due: files first, then one commit that adds the new block
//! and removes the old ones, so that a crash at any moment leaves either the old blocks or the new one.

#[cfg(test)]
mod fixture;
mod late;
mod merge;
mod plan;
mod retention;
mod runner;
#[cfg(test)]
mod tests;

use std::io;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

pub use merge::{Merged, merge};
pub use plan::{Job, MAX_INPUTS, Policy, plan};
pub use retention::{Ages, Reason, SteadyTime, expired};
pub use runner::{Compactor, Outcome, Running};

use crate::block::{BlockError, BlockId};
use crate::blocks::BlocksError;
use crate::telemetry::LevelLabels;

type ByLevel = Family<LevelLabels, Counter>;

/// Why blocks were not merged or deleted.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// The list of blocks could not be changed.
    #[error("compaction or retention cannot be committed")]
    Commit(#[source] BlocksError),
    /// A block that was to be merged cannot be read.
    #[error("block {block} cannot be read")]
    Input {
        /// Which.
        block: BlockId,
        /// Why.
        #[source]
        source: BlockError,
    },
    /// The new block cannot be written.
    #[error("block {block} cannot be written")]
    Output {
        /// Which.
        block: BlockId,
        /// Why.
        #[source]
        source: BlockError,
    },
    /// There is no thread to merge on.
    #[error("no thread can be started to merge blocks")]
    Thread(#[source] io::Error),
    /// It was told to stop.
    #[error("stopped")]
    Stopped,
}
